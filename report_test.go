package orchestrator_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// reported waits for a report of which a lane is as it should be.
func reported(t *testing.T, s *witness, what, projection string, partition int, is func(orchestrator.WorkerReport, orchestrator.LaneReport) bool) orchestrator.LaneReport {
	t.Helper()
	var found orchestrator.LaneReport
	awaited(t, s, what, func(r orchestrator.WorkerReport) bool {
		return slices.ContainsFunc(r.Lanes, func(l orchestrator.LaneReport) bool {
			found = l
			return l.Projection == projection && l.Partition == partition && is(r, l)
		})
	})
	return found
}

// Where all that is left is for others, a lane is not behind, whatever its
// checkpoint says; and a worker at the end of the stream asks for nothing more.
func TestLagOfWhoSkipsEverything(t *testing.T) {
	w := newWorld(t)
	db, f := faulty(t, w.url)
	cfg := w.config(db, "set")
	cfg.Partitions = 2
	var asked atomic.Int64
	f.onQuery(func(query string) {
		if strings.Contains(query, "max(") && strings.Contains(query, `FROM "events"`) && !strings.Contains(query, "lag(") {
			asked.Add(1)
		}
	})
	_, s := w.seen(t, cfg,
		transactional{effects{name: "transactional"}},
		scopedNamed{"scoped", scope{types: []string{"another"}}})
	w.active("set", 2)
	w.exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'the only one', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 500) AS i`)
	w.caughtUp("transactional")
	for _, p := range []string{"transactional", "scoped"} {
		for k := range 2 {
			l := reported(t, s, "a lane at the end", p, k, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
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
	cfg := w.config(w.db, "set")
	cfg.StallAfter = 50 * time.Millisecond
	w.append(10)
	projections := []projection{transactional{effects{name: "transactional"}}, batched{effects{name: "batched"}}}
	r, s := w.seen(t, cfg, projections...)
	w.caughtUp(exact...)
	w.ordered("set")(ops.Rewind(t.Context(), w.db, "set", "batched", 1000))
	atEnd := func(end int64) {
		t.Helper()
		for name, position := range map[string]int64{"transactional": end, "batched": 1000} {
			reported(t, s, "what stands at the end, or beyond it", name, 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
				behind, state := int64(0), "idle"
				if name == "batched" {
					behind, state = -1, "beyond"
				}
				return r.Head == end && l.Position == position && l.Behind == behind && l.BehindSeconds == 0 && string(l.State) == state
			})
		}
	}
	atEnd(10)
	r.stop()
	before := told[orchestrator.WorkerReport](s)
	r, s = w.seen(t, cfg, projections...)
	atEnd(10)
	w.append(10)
	eventually(t, "what is not beyond goes on", func() bool { return w.handled("transactional") == 20 })
	atEnd(20)
	r.stop()
	for _, r := range append(before, told[orchestrator.WorkerReport](s)...) {
		if r.Head > 20 {
			t.Errorf("the stream is said to end at %d", r.Head)
		}
	}
}

// A backlog is told by its number and by the age of its first event; what is
// appended meanwhile is seen, though nobody reads it.
func TestLagOfABacklog(t *testing.T) {
	w := newWorld(t)
	w.append(3000)
	w.exec(`UPDATE events SET created_at = now() - interval '1 hour'`)
	cfg := w.config(w.db, "set")
	cfg.StallAfter = 100 * time.Millisecond
	gate := make(chan struct{})
	_, s := w.seen(t, cfg, plain{effects{name: "plain", hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 11 {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return nil
	}}, w.db})
	l := reported(t, s, "the backlog", "plain", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 3000 && l.Position == 10 && l.Handling == 11
	})
	if l.Behind != 2990 || l.BehindSeconds < 3600 || l.State != "handling" {
		t.Errorf("%+v, want 2990 positions and an hour behind", l)
	}
	w.append(2000)
	reported(t, s, "what was appended", "plain", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 5000 && l.Behind == 4990
	})
	stalled := awaited(t, s, "the stall", func(e orchestrator.Stalled) bool { return e.Position == 10 })
	if stalled.For < cfg.StallAfter || !strings.HasSuffix(stalled.Reason, "at position 11") || stalled.Projection != "plain" {
		t.Errorf("stalled %+v", stalled)
	}
	reported(t, s, "that it is stalled", "plain", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Stalled })
	close(gate)
	awaited(t, s, "that it moves", func(e orchestrator.Unstalled) bool { return e.Projection == "plain" && e.Position > 10 })
	w.caughtUp("plain")
	reported(t, s, "that nothing is left", "plain", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 5000 && l.Behind == 0 && l.BehindSeconds == 0 && !l.Stalled
	})
}

// Behind a gap, what is beyond it counts, and the reason is its transaction.
func TestLagBehindAGap(t *testing.T) {
	w := newWorld(t)
	w.append(5)
	cfg := w.config(w.db, "set")
	cfg.StallAfter = 100 * time.Millisecond
	_, s := w.seen(t, cfg, transactional{effects{name: "transactional"}})
	w.caughtUp("transactional")
	tx, err := w.connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := tx.QueryRowContext(t.Context(), fmt.Sprintf(insertEvent, 7)+` RETURNING pg_backend_pid()`, 1).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	w.exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'another', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 4) AS i`)
	gap := awaited(t, s, "the gap", any1[orchestrator.GapWaited])
	if gap.Position != 6 || !slices.Equal(gap.Backends, []int{pid}) {
		t.Errorf("waited at %+v, want position 6 and backend %d", gap, pid)
	}
	reported(t, s, "what is beyond the gap", "transactional", 0, func(r orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return r.Head == 10 && r.Gap != nil && r.Gap.Position == 6 && l.Position == 5 && l.Behind == 5 && l.BehindSeconds > 0
	})
	stalled := awaited(t, s, "the stall", func(e orchestrator.Stalled) bool { return e.Position == 5 })
	if stalled.Reason != fmt.Sprintf("waits for the transaction of backend %d at the gap at position 6", pid) {
		t.Errorf("stalled %+v", stalled)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	resolved := awaited(t, s, "its end", any1[orchestrator.GapResolved])
	if resolved.Position != 6 || resolved.Waited <= 0 {
		t.Errorf("resolved %+v", resolved)
	}
	awaited(t, s, "that it moves", any1[orchestrator.Unstalled])
	w.caughtUp("transactional")
}

// A handler that fails stalls its partition, which ends when the worker stops.
func TestStallOfAFailingHandler(t *testing.T) {
	w := newWorld(t)
	w.append(5)
	cfg := w.config(w.db, "set")
	cfg.StallAfter = 200 * time.Millisecond
	r, s := w.seen(t, cfg, transactional{effects{name: "transactional", hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 3 {
			return context.DeadlineExceeded
		}
		return nil
	}}})
	atTheFault := func(e orchestrator.Stalled) bool { return e.Position == 2 }
	awaited(t, s, "the stall", atTheFault)
	l := reported(t, s, "the failure", "transactional", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Attempts > 1 && l.Stalled })
	if l.Position != 2 || l.Behind != 3 || l.Error != context.DeadlineExceeded.Error() {
		t.Errorf("reported %+v", l)
	}
	r.stop()
	stalls := told[orchestrator.Stalled](s)
	if n, ended := len(stalls), len(told[orchestrator.Unstalled](s)); n != ended {
		t.Errorf("%d stalls are told, and %d ends of one", n, ended)
	}
	if stalls = slices.DeleteFunc(stalls, func(e orchestrator.Stalled) bool { return !atTheFault(e) }); len(stalls) != 1 {
		t.Errorf("it is told %d times", len(stalls))
	}
}

// What a worker reports stands in the database, while it is a member.
func TestReportsAreWritten(t *testing.T) {
	w := newWorld(t)
	w.append(10)
	a := run(t, w.config(w.db, "set"), transactional{effects{name: "transactional"}})
	w.active("set", 1)
	b := run(t, w.config(w.db, "set"), transactional{effects{name: "transactional"}})
	w.active("set", 2)
	eventually(t, "both have reported", func() bool {
		return w.number(`
SELECT count(*) FROM orchestrator_reports r JOIN orchestrator_workers w ON w.replica_set = r.replica_set AND w.id = r.worker
 WHERE report ->> 'state' = 'running' AND report ->> 'worker' = w.id AND report -> 'partitions' = w.partitions
   AND (report ->> 'generation')::bigint = w.generation AND (report ->> 'head')::bigint = 10
   AND (report #>> '{lanes,0,position}')::bigint = 10 AND reported_at > now() - interval '1 hour'`) == 2
	})
	var text []byte
	if err := w.db.QueryRowContext(t.Context(), `SELECT report FROM orchestrator_reports LIMIT 1`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var report orchestrator.WorkerReport
	if err := json.Unmarshal(text, &report); err != nil || report.ReplicaSet != "set" || len(report.Lanes) != 1 {
		t.Errorf("%s is read as %+v, %v", text, report, err)
	}
	b.stop()
	eventually(t, "the report of who has left is gone", func() bool { return w.number(`SELECT count(*) FROM orchestrator_reports`) == 1 })
	a.stop()
	if n := w.number(`SELECT count(*) FROM orchestrator_reports`); n != 0 {
		t.Errorf("%d reports of workers that have left", n)
	}
}

// A lock on the table of reports, for longer than a lease, costs nobody a lease, and
// keeps nobody from joining or leaving. Afterwards reports are written again.
func TestReportsThatAreLocked(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(w.db, "set")
	cfg.LeaseOnly = true // connections that wait are the pool's
	noticed := &watchedLog{to: testWriter{t}}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
	tx, err := w.connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE orchestrator_reports IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	r, s := w.seen(t, cfg, transactional{effects{name: "transactional"}})
	noticed.wait(t, "cannot write status reports")
	other := run(t, w.config(w.db, "set"), transactional{effects{name: "transactional"}})
	w.active("set", 2)
	w.append(100)
	w.caughtUp("transactional")
	w.heartbeats(20)
	other.stop()
	w.active("set", 1)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	noticed.wait(t, "status reports are written again")
	eventually(t, "there is a report", func() bool { return w.number(`SELECT count(*) FROM orchestrator_reports`) == 1 })
	r.stop()
	if n := len(told[orchestrator.HeartbeatFailed](s)) + len(told[orchestrator.LeaseLost](s)); n != 0 {
		t.Errorf("%d heartbeats failed, or leases were lost", n)
	}
	w.checkEffects("transactional")
}

// A report that can't be written does no harm.
func TestReportsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$`)
	w.exec(`CREATE TRIGGER refuse BEFORE INSERT ON orchestrator_reports FOR EACH ROW EXECUTE FUNCTION refuse()`)
	cfg := w.config(w.db, "set")
	noticed := &watchedLog{to: testWriter{t}}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
	r, s := w.seen(t, cfg, transactional{effects{name: "transactional"}})
	noticed.wait(t, "cannot write status reports")
	w.append(100)
	w.caughtUp("transactional")
	beats := w.heartbeats(20)
	r.stop()
	if n := len(told[orchestrator.HeartbeatFailed](s)) + len(told[orchestrator.LeaseLost](s)); n != 0 {
		t.Errorf("%d failures in %d heartbeats", n, beats)
	}
	if n := strings.Count(noticed.text.String(), "cannot write status reports"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}
