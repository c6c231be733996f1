package orchestrator_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func isPaused(l orchestrator.LaneReport) bool { return l.State == orchestrator.LanePaused }

// A projection that is paused is in the reports of whoever has its partitions, with its
// lag, what is parked and since when it is paused; through re-partitions, restarts and a
// pause of everything.
func TestReportsOfWhatIsPaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(200)
	poison := w.OfAggregate("a7")[0]
	parked := len(w.OfAggregate("a7"))
	cfg := testworld.Parking(w.Config(w.DB, "set"), "batched")
	projections := func() []projection {
		hook := testworld.Failing(new(atomic.Bool), func(e orchestrator.Event) bool { return e.GlobalPosition == poison })
		return []projection{testworld.Effects{Projection: "transactional"}.Transactional(), testworld.Effects{Projection: "batched", Hook: hook}.Batched()}
	}
	a, s := w.Seen(t, cfg, projections()...)
	w.CaughtUp("transactional")
	pgtest.Eventually(t, "the parked events", func() bool { got, _ := w.Parked("batched"); return len(got) == parked })
	testworld.Reported(t, s, "all of it handled or parked", "batched", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return l.Position == 200 && l.Parked == parked
	})
	w.Ordered("set")(ops.Pause(t.Context(), w.DB, "set", "batched"))
	w.Append(100)
	first := testworld.Reported(t, s, "it paused", "batched", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return isPaused(l) && l.Behind == 100
	})
	if first.Position != 200 || first.BehindSeconds <= 0 || first.Parked != parked || first.ParkedSeconds <= 0 || first.Stalled || first.TotalPartitions != 1 || first.Since.IsZero() {
		t.Errorf("reported %+v", first)
	}
	testworld.Reported(t, s, "the other one at the end", "transactional", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return l.State == orchestrator.LaneIdle && l.Position == 300
	})

	b, other := w.Seen(t, cfg, projections()...)
	w.Active("set", 2)
	var both [2]orchestrator.LaneReport
	for i, s := range []*testworld.Witness{s, other} {
		testworld.Awaited(t, s, "the paused partition of a worker", func(r orchestrator.WorkerReport) bool {
			at := slices.IndexFunc(r.Lanes, func(l orchestrator.LaneReport) bool {
				return l.Projection == "batched" && isPaused(l) && l.TotalPartitions == 2
			})
			if at >= 0 {
				both[i] = r.Lanes[at]
			}
			return at >= 0
		})
	}
	if both[0].Parked+both[1].Parked != parked || both[0].Partition+both[1].Partition != 1 {
		t.Errorf("reported %+v", both)
	}
	for _, l := range both {
		if !l.Since.Equal(first.Since) {
			t.Errorf("paused since %s, and before it was since %s", l.Since, first.Since)
		}
	}
	a.Stop()
	b.Stop()

	a, s = w.Seen(t, cfg, projections()...)
	w.Ordered("set")(ops.PauseAll(t.Context(), w.DB, "set"))
	w.Append(100)
	for name, behind := range map[string]int64{"batched": 200, "transactional": 100} {
		l := testworld.Reported(t, s, name+" paused with all others", name, 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
			return isPaused(l) && r.Head == 400 && l.Behind == behind
		})
		if again := l.Since.Equal(first.Since); again != (name == "batched") || l.Since.Before(first.Since) {
			t.Errorf("%s is paused since %s, and batched since %s", name, l.Since, first.Since)
		}
	}
	w.Ordered("set")(ops.ResumeAll(t.Context(), w.DB, "set"))
	w.CaughtUp("transactional")
	testworld.Reported(t, s, "that it runs again", "batched", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return !isPaused(l) && l.Position == 400 && l.Parked >= parked
	})
	w.Ordered("set")(ops.Pause(t.Context(), w.DB, "set", "batched"))
	last := testworld.Reported(t, s, "it paused again", "batched", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return isPaused(l) && l.Position == 400
	})
	if !last.Since.After(first.Since) || time.Since(last.Since) > time.Hour {
		t.Errorf("paused since %s, and the time before since %s", last.Since, first.Since)
	}
	a.Stop()
}

// A version that another one has replaced stays paused, and is in no report: nobody has to
// do anything about it.
func TestReportsWithoutWhatWasReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	projections := []projection{testworld.Effects{Projection: "transactional"}.Transactional(), testworld.Effects{Projection: "batched"}.Batched()}
	w.Append(10)
	a := testworld.Run(t, w.Config(w.DB, "set"), projections...)
	w.CaughtUp("transactional", "batched")
	w.Ordered("set")(ops.PauseAll(t.Context(), w.DB, "set"))
	a.Stop()
	w.Exec(`UPDATE orchestrator_projections SET replaced = true WHERE name = 'batched'`)
	a, s := w.Seen(t, w.Config(w.DB, "set"), projections...)
	testworld.Reported(t, s, "the other one", "transactional", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return isPaused(l) })
	a.Stop()
	for _, r := range testworld.Told[orchestrator.WorkerReport](s) {
		if slices.ContainsFunc(r.Lanes, func(l orchestrator.LaneReport) bool { return l.Projection == "batched" }) {
			t.Errorf("reported %+v", r.Lanes)
		}
	}
}

// A version that is built beside the live one says so.
func TestReportsOfARebuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	live := testworld.Effects{Projection: "transactional"}.Transactional()
	a := testworld.Run(t, w.Config(w.DB, "set"), live)
	w.CaughtUp("transactional")
	a.Stop()
	a, s := w.Seen(t, w.Config(w.DB, "set"), live,
		orchestrator.With(testworld.Effects{Projection: "batched"}.Batched(), orchestrator.WithRebuildOf("transactional")))
	for name, rebuild := range map[string]bool{"transactional": false, "batched": true} {
		l := testworld.Reported(t, s, name, name, 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Position == 10 })
		if l.Rebuild != rebuild {
			t.Errorf("%s: %+v", name, l)
		}
	}
	a.Stop()
}

// While a worker waits for another one's handler to stop, what it ran is in its reports: how
// far its events are behind, which wait.
func TestReportsOfWhoWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(20)
	gate := make(chan struct{})
	hook := func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 21 {
			<-gate
		}
		return nil
	}
	projections := func() []projection {
		return []projection{testworld.Effects{Projection: "plain", Hook: hook}.Plain(w.DB), testworld.Effects{Projection: "transactional"}.Transactional()}
	}
	cfg := w.Config(w.DB, "set")
	_, a := w.Seen(t, cfg, projections()...)
	w.Active("set", 1)
	_, b := w.Seen(t, cfg, projections()...)
	w.Active("set", 2)
	w.CaughtUp("plain", "transactional")
	w.Ordered("set")(ops.Pause(t.Context(), w.DB, "set", "transactional"))
	w.Append(1) // which one of the two gets
	pgtest.Eventually(t, "the handler hangs", func() bool {
		return slices.ContainsFunc(testworld.Told[orchestrator.WorkerReport](a, b), func(r orchestrator.WorkerReport) bool {
			return slices.ContainsFunc(r.Lanes, func(l orchestrator.LaneReport) bool { return l.Handling == 21 })
		})
	})
	testworld.Run(t, cfg, projections()...)
	waits := func(behind, behindPaused int64) func() bool {
		return func() bool {
			return slices.ContainsFunc(testworld.Told[orchestrator.WorkerReport](a, b), func(r orchestrator.WorkerReport) bool {
				return r.State == orchestrator.WorkerWaiting && len(r.Lanes) == 2 && len(r.Partitions) == 0 &&
					r.Lanes[0].State == orchestrator.LaneEnded && r.Lanes[0].Behind == behind && r.Lanes[0].BehindSeconds > 0 == (behind > 0) &&
					r.Lanes[1].State == orchestrator.LanePaused && r.Lanes[1].Behind == behindPaused
			})
		}
	}
	pgtest.Eventually(t, "the other one waits, and reports what it ran", waits(0, 1))
	w.Append(10)
	pgtest.Eventually(t, "it reports what comes meanwhile", waits(10, 11))
	close(gate)
	w.CaughtUp("plain")
}

// Where it can't be read how far paused projections are, reports go on without them.
func TestReportsWhereWhatIsPausedIsNotKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	db, f := testworld.Faulty(t, w.URL)
	gate := make(chan struct{})
	f.OnQuery(func(query string) {
		if strings.Contains(query, "'hold of '") {
			<-gate
		}
	})
	cfg := w.Config(db, "set")
	cfg.StaleWorkerTimeout = 6 * time.Second // a third of it is the worker's patience
	a, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional(), testworld.Effects{Projection: "batched"}.Batched())
	w.Active("set", 1)
	w.Ordered("set")(ops.Pause(t.Context(), w.DB, "set", "batched"))
	w.Append(10)
	testworld.Awaited(t, s, "reports without it", func(r orchestrator.WorkerReport) bool {
		return len(r.Lanes) == 1 && r.Lanes[0].Projection == "transactional" && r.Lanes[0].Position == 10
	})
	close(gate)
	testworld.Reported(t, s, "that it is paused", "batched", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return isPaused(l) })
	a.Stop()
}
