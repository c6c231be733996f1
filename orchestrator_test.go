package orchestrator_test

import (
	"context"
	"database/sql"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Workers join and leave one at a time; every projection sees every event, in
// every layout.
func TestScaleUpAndDown(t *testing.T) {
	w := newWorld(t)
	h := &history{}
	w.append(500)
	a := run(t, w.config(w.db, "set"), w.all(w.db, h)...)
	w.active("set", 1)
	w.caughtUp(names...)

	w.append(500)
	b := run(t, w.config(w.db, "set"), w.all(w.db, h)...)
	w.active("set", 2)
	w.append(500)
	c := run(t, w.config(w.db, "set"), w.all(w.db, h)...)
	w.active("set", 3)
	w.append(500)
	w.caughtUp(names...)

	a.stop()
	w.active("set", 2)
	w.append(500)
	b.stop()
	w.active("set", 1)
	w.append(500)
	w.caughtUp(names...)
	c.stop()

	h.check(t)
	w.checkEffects(names...) // nobody crashed: even the plain one is exact
}

// Several replica sets run in one process, over the same events and apart
// from each other.
func TestSeveralReplicaSets(t *testing.T) {
	w := newWorld(t)
	w.append(300)
	one := func(name string) projection { return transactional{effects{name: name}} }
	critical := run(t, w.config(w.db, "critical"), one("orders"))
	analytics := []*running{
		run(t, w.config(w.db, "analytics"), one("report"), one("search")),
		run(t, w.config(w.db, "analytics"), one("report"), one("search")),
	}
	w.active("critical", 1)
	generation := w.active("analytics", 2)
	w.append(300)
	critical.stop()
	w.caughtUp("report", "search")
	if now := w.active("analytics", 2); now != generation {
		t.Errorf("generation %d of analytics follows %d though only critical changed", now, generation)
	}
	for _, r := range analytics {
		r.stop()
	}
	w.checkEffects("report", "search")
}

// L2: nothing changes while nobody comes or goes, and a worker alone commits
// nothing while there is nothing to commit.
func TestStaysStill(t *testing.T) {
	w := newWorld(t)
	db, f := faulty(t, w.url)
	w.append(100)
	run(t, w.config(db, "set"), w.all(w.db, nil)...)
	run(t, w.config(w.db, "set"), w.all(w.db, nil)...)
	generation := w.active("set", 2)
	w.caughtUp(names...)
	// Let the latest skipped positions be committed, and 40 heartbeats pass.
	settled := w.checkpointsSettled()
	commits := f.commits.Load()
	var locks atomic.Int64
	f.onQuery(func(query string) {
		if strings.Contains(query, "orchestrator_replica_sets WHERE name = $1 FOR UPDATE") {
			locks.Add(1)
		}
	})
	beats := w.heartbeats(40)
	if now := w.number(`SELECT generation FROM orchestrator_replica_sets`); now != generation {
		t.Errorf("generation %d follows %d without a change of membership", now, generation)
	}
	if after := f.commits.Load(); after != commits {
		t.Errorf("%d commits in %d heartbeats with nothing to do", after-commits, beats)
	}
	if n := locks.Load(); n != 0 {
		t.Errorf("the set was locked %d times in %d heartbeats with nothing to do", n, beats)
	}
	if now := w.checkpointsSettled(); now != settled {
		t.Errorf("checkpoints moved from %d to %d without events", settled, now)
	}
}

// checkpointsSettled waits until every checkpoint has passed every event, and
// returns their sum.
func (w *world) checkpointsSettled() (sum int64) {
	w.t.Helper()
	eventually(w.t, "every checkpoint is at the end", func() bool {
		sum = w.number(`SELECT sum(position) FROM orchestrator_checkpoints`)
		return w.number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position < (SELECT max(global_position) FROM events)`) == 0
	})
	return sum
}

// heartbeats waits until some worker's lease was renewed n times.
func (w *world) heartbeats(n int) int {
	w.t.Helper()
	last, seen := int64(0), 0
	eventually(w.t, "heartbeats have passed", func() bool {
		now := w.number(`SELECT (extract(epoch FROM max(lease_until)) * 1e6)::bigint FROM orchestrator_workers`)
		if now != last {
			last = now
			seen++
		}
		return seen > n
	})
	return seen
}

// Events that belong to other partitions cost no commit each: a lane that
// owns none of them commits a few times, however many it passes.
func TestSkippedEventsCostNoCommits(t *testing.T) {
	w := newWorld(t)
	// All events are of one aggregate, so one of two partitions has none.
	w.exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'the only one', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 5000) AS i`)
	var workers []*running
	var counts []*faults
	for range 2 {
		db, f := faulty(t, w.url)
		cfg := w.config(db, "set")
		cfg.BatchSize = 10
		counts = append(counts, f)
		workers = append(workers, run(t, cfg, transactional{effects{name: "transactional"}}))
	}
	w.active("set", 2)
	w.caughtUp("transactional")
	w.checkpointsSettled()
	for _, r := range workers {
		r.stop()
	}
	few := min(counts[0].commits.Load(), counts[1].commits.Load())
	many := max(counts[0].commits.Load(), counts[1].commits.Load())
	if many < 400 || few > 100 {
		t.Errorf("the owner of all events committed %d times, the owner of none %d times", many, few)
	}
	w.checkEffects("transactional")
}

// Run leaves no goroutine behind.
func TestNoGoroutineIsLeftBehind(t *testing.T) { // not beside others, whose goroutines come and go
	w := newWorld(t)
	w.append(100)
	// The pool's own goroutines end when it is closed.
	db, err := sql.Open("postgres", w.url)
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.config(db, "set")
	cfg.ListenURL, cfg.EventsChannel = w.url, "events"
	r := run(t, cfg, w.all(db, nil)...)
	w.caughtUp(names...)
	eventually(t, "it listens", func() bool { return w.number(listening) == 1 })
	r.stop()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	// The stacks that mention the library, other than the test's own and those of tests
	// that wait for their turn.
	eventually(t, "all goroutines have ended", func() bool {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, s := range strings.Split(string(stacks), "\n\n") {
			if strings.Contains(s, "pupsourcing-orchestrator.") && !strings.Contains(s, "TestNoGoroutineIsLeftBehind") && !strings.Contains(s, "testing.(*T).Parallel") {
				return false
			}
		}
		return true
	})
}

// The database can't be reached when Run is called: it waits, and can be
// cancelled.
func TestDatabaseAwayAtTheStart(t *testing.T) {
	cfg := valid(t)
	noticed := &watchedLog{to: testWriter{t}}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
	r := run(t, cfg, named("a"))
	noticed.wait(t, "database is away")
	r.stop()
}

// A handler is told what it runs under.
func TestAssignmentInTheHandlersContext(t *testing.T) {
	if _, ok := orchestrator.AssignmentFrom(t.Context()); ok {
		t.Error("there is an assignment outside of handlers")
	}
	w := newWorld(t)
	w.append(1)
	var got atomic.Value
	r := run(t, w.config(w.db, "set"), transactional{effects{name: "transactional", hook: func(ctx context.Context, _ orchestrator.Event) error {
		a, _ := orchestrator.AssignmentFrom(ctx)
		got.Store(a)
		return nil
	}}})
	w.caughtUp("transactional")
	r.stop()
	want := orchestrator.Assignment{ReplicaSet: "set", Generation: 1, Partition: 0, TotalPartitions: 1}
	if diff := cmp.Diff(want, got.Load()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
