package orchestrator_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Where all that is left is for others, a lane is not behind, whatever its
// checkpoint says; and a worker at the end of the stream asks for nothing more.
func TestLagOfWhoSkipsEverything(t *testing.T) {
	w := newWorld(t)
	db, f := testworld.Faulty(t, w.URL)
	cfg := w.Config(db, "set")
	cfg.Partitions = 2
	var asked atomic.Int64
	f.OnQuery(func(query string) {
		if strings.Contains(query, "max(") && strings.Contains(query, `FROM "events"`) && !strings.Contains(query, "lag(") {
			asked.Add(1)
		}
	})
	_, s := w.Seen(t, cfg,
		testworld.Effects{Projection: "transactional"}.Transactional(),
		scopedNamed{"scoped", scope{types: []string{"another"}}})
	w.Active("set", 2)
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'the only one', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 500) AS i`)
	w.CaughtUp("transactional")
	for _, p := range []string{"transactional", "scoped"} {
		for k := range 2 {
			l := testworld.Reported(t, s, "a lane at the end", p, k, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
				return r.Head == 500 && l.Position == 500
			})
			if l.Behind != 0 || l.BehindSeconds != 0 || l.State != "idle" || l.TotalPartitions != 2 || l.Stalled {
				t.Errorf("%+v, want to be idle and not behind", l)
			}
		}
	}
	w.checkpointsSettled()
	before := asked.Load()
	w.heartbeats(40)
	if n := asked.Load() - before; n != 0 {
		t.Errorf("with nothing to do, the end of the stream was asked for %d times", n)
	}
}

// A projection that is set beyond the end of the stream has no others be behind, nor
// have stalled; also where workers start anew.
func TestLagBesideOneBeyondTheEnd(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = 50 * time.Millisecond
	w.Append(10)
	projections := []projection{testworld.Effects{Projection: "transactional"}.Transactional(), testworld.Effects{Projection: "batched"}.Batched()}
	r, s := w.Seen(t, cfg, projections...)
	w.CaughtUp(testworld.Exact...)
	w.Ordered("set")(ops.Rewind(t.Context(), w.DB, "set", "batched", 1000))
	atEnd := func(end int64) {
		t.Helper()
		for name, position := range map[string]int64{"transactional": end, "batched": 1000} {
			testworld.Reported(t, s, "what stands at the end, or beyond it", name, 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
				behind, state := int64(0), "idle"
				if name == "batched" {
					behind, state = -1, "beyond"
				}
				return r.Head == end && l.Position == position && l.Behind == behind && l.BehindSeconds == 0 && string(l.State) == state
			})
		}
	}
	atEnd(10)
	r.Stop()
	before := testworld.Told[orchestrator.WorkerReport](s)
	r, s = w.Seen(t, cfg, projections...)
	atEnd(10)
	w.Append(10)
	pgtest.Eventually(t, "what is not beyond goes on", func() bool { return w.Handled("transactional") == 20 })
	atEnd(20)
	r.Stop()
	for _, r := range append(before, testworld.Told[orchestrator.WorkerReport](s)...) {
		if r.Head > 20 {
			t.Errorf("the stream is said to end at %d", r.Head)
		}
	}
}

// A backlog is told by its number and by the age of its first event; what is
// appended meanwhile is seen, though nobody reads it.
func TestLagOfABacklog(t *testing.T) {
	w := newWorld(t)
	w.Append(3000)
	w.Exec(`UPDATE events SET created_at = now() - interval '1 hour'`)
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = 100 * time.Millisecond
	gate := make(chan struct{})
	_, s := w.Seen(t, cfg, testworld.Effects{Projection: "plain", Hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 11 {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return nil
	}}.Plain(w.DB))
	l := testworld.Reported(t, s, "the backlog", "plain", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 3000 && l.Position == 10 && l.Handling == 11
	})
	if l.Behind != 2990 || l.BehindSeconds < 3600 || l.State != "handling" {
		t.Errorf("%+v, want 2990 positions and an hour behind", l)
	}
	w.Append(2000)
	testworld.Reported(t, s, "what was appended", "plain", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 5000 && l.Behind == 4990
	})
	stalled := testworld.Awaited(t, s, "the stall", func(e orchestrator.Stalled) bool { return e.Position == 10 && !e.Over })
	if stalled.For < cfg.StallAfter || !strings.HasSuffix(stalled.Reason, "at position 11") || stalled.Projection != "plain" {
		t.Errorf("stalled %+v", stalled)
	}
	testworld.Reported(t, s, "that it is stalled", "plain", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Stalled })
	close(gate)
	testworld.Awaited(t, s, "that it moves", func(e orchestrator.Stalled) bool {
		return e.Projection == "plain" && e.Position > 10 && e.Over && e.Reason == "" && e.For >= stalled.For
	})
	w.CaughtUp("plain")
	testworld.Reported(t, s, "that nothing is left, and how fast it was", "plain", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 5000 && l.Behind == 0 && l.BehindSeconds == 0 && !l.Stalled && l.PerSecond > 0
	})
}

// Behind a gap, what is beyond it counts, and the reason is its transaction.
func TestLagBehindAGap(t *testing.T) {
	w := newWorld(t)
	w.Append(5)
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = 100 * time.Millisecond
	_, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	tx, err := w.Connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := tx.QueryRowContext(t.Context(), fmt.Sprintf(testworld.InsertEvent, 7)+` RETURNING pg_backend_pid()`, 1).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'another', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 4) AS i`)
	gap := testworld.Awaited(t, s, "the gap", func(e orchestrator.GapWaited) bool { return !e.Over })
	if gap.Position != 6 || !slices.Equal(gap.Backends, []int{pid}) {
		t.Errorf("waited at %+v, want position 6 and backend %d", gap, pid)
	}
	testworld.Reported(t, s, "what is beyond the gap", "transactional", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 10 && r.Gap != nil && r.Gap.Position == 6 && l.Position == 5 && l.Behind == 5 && l.BehindSeconds > 0
	})
	stalled := testworld.Awaited(t, s, "the stall", func(e orchestrator.Stalled) bool { return e.Position == 5 && !e.Over })
	if stalled.Reason != fmt.Sprintf("waits for the transaction of backend %d at the gap at position 6", pid) {
		t.Errorf("stalled %+v", stalled)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	resolved := testworld.Awaited(t, s, "its end", func(e orchestrator.GapWaited) bool { return e.Over })
	if resolved.Position != 6 || resolved.Waited <= 0 || len(resolved.Backends) > 0 {
		t.Errorf("resolved %+v", resolved)
	}
	testworld.Awaited(t, s, "that it moves", func(e orchestrator.Stalled) bool { return e.Over })
	w.CaughtUp("transactional")
}

// A handler that fails stalls its partition, which ends when the worker stops.
func TestStallOfAFailingHandler(t *testing.T) {
	w := newWorld(t)
	w.Append(5)
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = 200 * time.Millisecond
	log := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	r, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 3 {
			return context.DeadlineExceeded
		}
		return nil
	}}.Transactional())
	atTheFault := func(e orchestrator.Stalled) bool { return e.Position == 2 && !e.Over }
	testworld.Awaited(t, s, "the stall", atTheFault)
	l := testworld.Reported(t, s, "the failure", "transactional", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Attempts > 1 && l.Stalled })
	if l.Position != 2 || l.Behind != 3 || l.Error != context.DeadlineExceeded.Error() {
		t.Errorf("reported %+v", l)
	}
	r.Stop()
	stalls := testworld.Told[orchestrator.Stalled](s)
	over := func(e orchestrator.Stalled) bool { return e.Over }
	ended := len(slices.DeleteFunc(slices.Clone(stalls), func(e orchestrator.Stalled) bool { return !over(e) }))
	if n := len(slices.DeleteFunc(slices.Clone(stalls), over)); n != ended {
		t.Errorf("%d stalls are told, and %d ends of one", n, ended)
	}
	if stalls = slices.DeleteFunc(stalls, func(e orchestrator.Stalled) bool { return !atTheFault(e) }); len(stalls) != 1 {
		t.Errorf("it is told %d times", len(stalls))
	}
	// Attempts are warnings, and the stall is the one error.
	if stalled, errs := log.Count(`level=ERROR msg="handler keeps failing, partition stalled"`), log.Count("level=ERROR"); stalled != 1 || errs != 1 {
		t.Errorf("%d lines say that the handler keeps failing, of %d errors", stalled, errs)
	}
}

// What a worker reports stands in the database, while it is a member.
func TestReportsAreWritten(t *testing.T) {
	w := newWorld(t)
	w.Append(10)
	a := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 1)
	b := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 2)
	pgtest.Eventually(t, "both have reported", func() bool {
		return w.Number(`
SELECT count(*) FROM orchestrator_reports r JOIN orchestrator_workers w ON w.replica_set = r.replica_set AND w.id = r.worker
 WHERE report ->> 'state' = 'running' AND report ->> 'worker' = w.id AND report -> 'partitions' = w.partitions
   AND (report ->> 'generation')::bigint = w.generation AND (report ->> 'head')::bigint = 10
   AND (report #>> '{lanes,0,position}')::bigint = 10 AND reported_at > now() - interval '1 hour'`) == 2
	})
	var text []byte
	if err := w.DB.QueryRowContext(t.Context(), `SELECT report FROM orchestrator_reports LIMIT 1`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var report orchestrator.WorkerReport
	if err := json.Unmarshal(text, &report); err != nil || report.ReplicaSet != "set" || len(report.Lanes) != 1 {
		t.Errorf("%s is read as %+v, %v", text, report, err)
	}
	b.Stop()
	pgtest.Eventually(t, "the report of who has left is gone", func() bool { return w.Reports() == 1 })
	a.Stop()
	if n := w.Reports(); n != 0 {
		t.Errorf("%d reports of workers that have left", n)
	}
}

// A lock on the table of reports, for longer than a lease, costs nobody a lease, and
// keeps nobody from joining or leaving. Afterwards reports are written again.
func TestReportsThatAreLocked(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.LeaseOnly = true // connections that wait are the pool's
	noticed := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
	tx, err := w.Connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE orchestrator_reports IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	r, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	noticed.Wait(t, "cannot write status reports")
	other := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 2)
	w.Append(100)
	w.CaughtUp("transactional")
	w.heartbeats(20)
	other.Stop()
	w.Active("set", 1)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	noticed.Wait(t, "status reports are written again")
	pgtest.Eventually(t, "there is a report", func() bool { return w.Reports() == 1 })
	r.Stop()
	if n := len(failedBeats(s)) + len(testworld.Told[orchestrator.LeaseLost](s)); n != 0 {
		t.Errorf("%d heartbeats failed, or leases were lost", n)
	}
	w.CheckEffects("transactional")
}

// A report that can't be written does no harm.
func TestReportsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.Exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$`)
	w.Exec(`CREATE TRIGGER refuse BEFORE INSERT ON orchestrator_reports FOR EACH ROW EXECUTE FUNCTION refuse()`)
	cfg := w.Config(w.DB, "set")
	noticed := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
	r, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	noticed.Wait(t, "cannot write status reports")
	w.Append(100)
	w.CaughtUp("transactional")
	beats := w.heartbeats(20)
	r.Stop()
	if n := len(failedBeats(s)) + len(testworld.Told[orchestrator.LeaseLost](s)); n != 0 {
		t.Errorf("%d failures in %d heartbeats", n, beats)
	}
	if n := noticed.Count("cannot write status reports"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// A worker logs once that it has handled what there was when its partitions began, with how
// many events, whatever re-partitions follow. A worker that comes later does the same.
func TestReportsCaughtUpOnce(t *testing.T) {
	w := newWorld(t)
	w.Append(50)
	logged := func() (orchestrator.Config[orchestrator.Event], *testworld.Log) {
		cfg, log := w.Config(w.DB, "set"), &testworld.Log{To: t.Output()}
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		return cfg, log
	}
	cfg, first := logged()
	one := testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Transactional(), testworld.Effects{Projection: "q"}.Transactional())
	first.Wait(t, `msg="caught up"`)
	if first.Count(" events=100 ") != 1 {
		t.Error("two projections of 50 events: not 100 events")
	}
	cfg, second := logged()
	two := testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Transactional(), testworld.Effects{Projection: "q"}.Transactional())
	second.Wait(t, `msg="caught up"`)
	two.Stop()
	generation := w.Active("set", 1)
	w.Append(50)
	w.CaughtUp("p", "q")
	one.Stop()
	if a, b := first.Count(`msg="caught up"`), second.Count(`msg="caught up"`); a != 1 || b != 1 {
		t.Errorf("caught up: the first worker says it %d times, the second %d times, in %d generations", a, b, generation)
	}
	if n := first.Count("waited_for=") + first.Count("duration=0s"); n > 2 { // of the generations with the second
		t.Errorf("%d lines have keys without a value", n)
	}
}

// A stall that begins while a call of the handler takes long is an error too once the handler
// fails, and is logged as one once.
func TestStallThatBecomesAFailureIsAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = 50 * time.Millisecond
	log := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	stalled, once := make(chan struct{}), sync.Once{}
	cfg.Observer = &orchestrator.Observer{Stalled: func(orchestrator.Stalled) { once.Do(func() { close(stalled) }) }}
	testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(ctx context.Context, _ orchestrator.Event) error {
		select { // the first call lasts until then
		case <-stalled:
		case <-ctx.Done():
		}
		return errors.New("no route to host")
	}}.Transactional())
	const failing = `level=ERROR msg="handler keeps failing, partition stalled"`
	pgtest.Eventually(t, "the failure is logged as an error", func() bool { return log.Count(failing) > 0 })
	failures := log.Count("handler failed, will retry")
	pgtest.Eventually(t, "it has failed again and again", func() bool { return log.Count("handler failed, will retry") > failures+3 })
	if n := log.Count(failing); n != 1 {
		t.Errorf("it is logged as an error %d times", n)
	}
}

// A report has a fixed sentence for a connection that can't be made, since pages show it.
func TestReportsNameNoHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	from, err := wire.To(w.URL, 0)
	if err != nil {
		t.Fatal(err)
	}
	events, err := sql.Open("postgres", from.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = events.Close() })
	cfg := w.Config(w.DB, "set")
	cfg.EventStore, err = orchestrator.NewEventTable(events, "events")
	if err != nil {
		t.Fatal(err)
	}
	testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Plain(w.DB))
	w.CaughtUp("p")
	from.Close() // only the events can't be read any more
	w.Append(1)
	pgtest.Eventually(t, "the report says that the connection is refused", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_reports WHERE report::text LIKE '%the database refused the connection%'`) == 1
	})
	if n := w.Number(`SELECT count(*) FROM orchestrator_reports WHERE report::text LIKE '%127.0.0.1%'`); n != 0 {
		t.Error("the report names the host")
	}
}
