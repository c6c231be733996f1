package orchestrator_test

import (
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Of each kind of projection, the handler fails at one event. That is parked, and
// with it what comes later of its aggregate, before and after workers join and
// leave; all others go on. When the handler is mended, everything is retried, in
// order, and each event has had its effect once.
func TestParkAcrossRebalances(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mended atomic.Bool
	w.Append(500)
	poison := w.OfAggregate("a7")[2]
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.GlobalPosition == poison })
	projections := func() []orchestrator.Projection[orchestrator.Event] {
		return []orchestrator.Projection[orchestrator.Event]{
			testworld.Effects{Projection: "plain", Hook: hook}.Plain(w.DB),
			testworld.Effects{Projection: "transactional", Hook: hook}.Transactional(),
			testworld.Effects{Projection: "batched", Hook: hook}.Batched(),
		}
	}
	cfg := testworld.Parking(w.Config(w.DB, "set"), testworld.Names...)
	cfg.LeaseOnly = true // or the plain one may repeat events where the machine is loaded

	// settled waits until every event is handled or parked, which are those of
	// the aggregate from the poisoned one on.
	settled := func() {
		t.Helper()
		aggregate := w.OfAggregate("a7")
		want := aggregate[slices.Index(aggregate, poison):]
		for _, name := range testworld.Names {
			pgtest.Eventually(t, "all but the parked events are handled by "+name, func() bool {
				return w.Handled(name)+int64(len(want)) == w.Number(`SELECT count(*) FROM events`)
			})
			var got []int64
			var events []ops.ParkedEvent
			pgtest.Eventually(t, "those are parked by "+name, func() bool {
				got, events = w.Parked(name)
				return len(got) == len(want)
			})
			if !slices.Equal(got, want) {
				t.Errorf("%s has parked %v, want %v", name, got, want)
			}
			for i, e := range events {
				if behind := i > 0; e.AggregateID != "a7" || behind != (e.Attempts == 0 && e.Error == "") || e.ParkedAt.IsZero() {
					t.Errorf("%s has parked %+v", name, e)
				}
			}
			if e := events[0]; e.Attempts < 2 || !strings.HasPrefix(e.Error, "can't handle a7") {
				t.Errorf("%s has parked %+v first", name, e)
			}
		}
	}
	first := testworld.Run(t, cfg, projections()...)
	settled()
	second := testworld.Run(t, cfg, projections()...)
	third := testworld.Run(t, cfg, projections()...)
	w.Active("set", 3)
	w.Append(500)
	settled()
	first.Stop()
	w.Append(500)
	settled()

	mended.Store(true)
	for _, name := range testworld.Names {
		if n := w.Retry(name, ops.ParkedSelector{AggregateID: "a7"}); n == 0 {
			t.Errorf("nothing of %s is to be retried", name)
		}
	}
	w.Append(500)
	w.CaughtUp(testworld.Names...)
	for _, name := range testworld.Names {
		pgtest.Eventually(t, name+" has nothing parked any more", func() bool {
			got, _ := w.Parked(name)
			return len(got) == 0
		})
	}
	second.Stop()
	third.Stop()
	w.CheckEffects(testworld.Names...)
}

// Beyond the bound the lane waits, until there is room.
func TestParkedBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(200)
	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" || e.AggregateID == "a4" })
	cfg := testworld.Parking(w.Config(w.DB, "set"), "transactional")
	log := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	cfg.Failures["transactional"] = orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 1, MaxParked: 3}
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: hook}.Transactional())
	log.Wait(t, "too many events parked")
	got, _ := w.Parked("transactional")
	if len(got) != 3 {
		t.Errorf("%v are parked, want three", got)
	}
	before := w.Handled("transactional")
	if stands := w.Number(`SELECT position FROM orchestrator_checkpoints`); before != stands-3 {
		t.Errorf("%d events are handled up to %d, with three parked", before, stands)
	}
	mended.Store(true)
	w.Retry("transactional", ops.ParkedSelector{All: true})
	pgtest.Eventually(t, "all are handled", func() bool {
		if got, _ := w.Parked("transactional"); len(got) > 0 {
			w.Retry("transactional", ops.ParkedSelector{All: true})
		}
		return w.Handled("transactional") == 200
	})
	r.Stop()
	w.CheckEffects("transactional")
}

// What comes later of a parked aggregate waits also under a policy that parks
// nothing.
func TestParkedUnderAnotherPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(200)
	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" })
	cfg := testworld.Parking(w.Config(w.DB, "set"), "transactional")
	p := testworld.Effects{Projection: "transactional", Hook: hook}.Transactional()
	r := testworld.Run(t, cfg, p)
	pgtest.Eventually(t, "they are parked", func() bool {
		got, _ := w.Parked("transactional")
		return slices.Equal(got, w.OfAggregate("a3"))
	})
	r.Stop()
	mended.Store(true)
	cfg.Failures = nil
	w.Append(200)
	r = testworld.Run(t, cfg, p)
	pgtest.Eventually(t, "they are parked", func() bool {
		got, _ := w.Parked("transactional")
		return slices.Equal(got, w.OfAggregate("a3"))
	})
	w.Retry("transactional", ops.ParkedSelector{All: true})
	w.CaughtUp("transactional")
	r.Stop()
	w.CheckEffects("transactional")
}
