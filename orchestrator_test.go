package orchestrator_test

import (
	"database/sql"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// Workers join and leave one at a time; every projection sees every event, in
// every layout.
func TestScaleUpAndDown(t *testing.T) {
	w := newWorld(t)
	h := &testworld.History{}
	w.Append(500)
	a := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	w.Active("set", 1)
	w.CaughtUp(testworld.Names...)

	w.Append(500)
	b := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	w.Active("set", 2)
	w.Append(500)
	c := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	w.Active("set", 3)
	w.Append(500)
	w.CaughtUp(testworld.Names...)

	a.Stop()
	w.Active("set", 2)
	w.Append(500)
	b.Stop()
	w.Active("set", 1)
	w.Append(500)
	w.CaughtUp(testworld.Names...)
	c.Stop()

	h.Check(t)
	w.CheckEffects(testworld.Names...) // nobody crashed: even the plain one is exact
}

// Several replica sets run in one process, over the same events and apart
// from each other.
func TestSeveralReplicaSets(t *testing.T) {
	w := newWorld(t)
	w.Append(300)
	one := func(name string) projection { return testworld.Effects{Projection: name}.Transactional() }
	critical := testworld.Run(t, w.Config(w.DB, "critical"), one("orders"))
	analytics := []*testworld.Running{
		testworld.Run(t, w.Config(w.DB, "analytics"), one("report"), one("search")),
		testworld.Run(t, w.Config(w.DB, "analytics"), one("report"), one("search")),
	}
	w.Active("critical", 1)
	generation := w.Active("analytics", 2)
	w.Append(300)
	critical.Stop()
	w.CaughtUp("report", "search")
	if now := w.Active("analytics", 2); now != generation {
		t.Errorf("generation %d of analytics follows %d though only critical changed", now, generation)
	}
	for _, r := range analytics {
		r.Stop()
	}
	w.CheckEffects("report", "search")
}

// L2: no generation is opened while no worker joins or leaves, and a worker commits nothing
// while there is nothing to commit.
func TestGenerationStaysWhileMembersStay(t *testing.T) {
	w := newWorld(t)
	db, f := testworld.Faulty(t, w.URL)
	w.Append(100)
	testworld.Run(t, w.Config(db, "set"), w.All(w.DB, nil)...)
	testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, nil)...)
	generation := w.Active("set", 2)
	w.CaughtUp(testworld.Names...)
	// Let the latest skipped positions be committed, and 40 heartbeats pass.
	settled := w.checkpointsSettled()
	commits := f.Commits.Load()
	var locks atomic.Int64
	f.OnQuery(func(query string) {
		if strings.Contains(query, "orchestrator_replica_sets WHERE name = $1 FOR UPDATE") {
			locks.Add(1)
		}
	})
	beats := w.heartbeats(40)
	if now := w.Generation(); now != generation {
		t.Errorf("generation %d follows %d without a change of membership", now, generation)
	}
	if after := f.Commits.Load(); after != commits {
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
	w.T.Helper()
	pgtest.Eventually(w.T, "every checkpoint is at the end", func() bool {
		sum = w.Number(`SELECT sum(position) FROM orchestrator_checkpoints`)
		return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position < (SELECT max(global_position) FROM events)`) == 0
	})
	return sum
}

// heartbeats waits until some worker's lease was renewed n times.
func (w *world) heartbeats(n int) int {
	w.T.Helper()
	last, seen := int64(0), 0
	pgtest.Eventually(w.T, "heartbeats have passed", func() bool {
		now := w.Number(`SELECT (extract(epoch FROM max(lease_until)) * 1e6)::bigint FROM orchestrator_workers`)
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
	t.Parallel()
	w := newWorld(t)
	// All events are of one aggregate, so one of two partitions has none.
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'the only one', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 5000) AS i`)
	var workers []*testworld.Running
	var counts []*testworld.Faults
	for range 2 {
		db, f := testworld.Faulty(t, w.URL)
		cfg := w.Config(db, "set")
		cfg.BatchSize = 10
		counts = append(counts, f)
		workers = append(workers, testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional()))
	}
	w.Active("set", 2)
	w.CaughtUp("transactional")
	w.checkpointsSettled()
	for _, r := range workers {
		r.Stop()
	}
	few := min(counts[0].Commits.Load(), counts[1].Commits.Load())
	many := max(counts[0].Commits.Load(), counts[1].Commits.Load())
	if many < 400 || few > 100 {
		t.Errorf("the owner of all events committed %d times, the owner of none %d times", many, few)
	}
	w.CheckEffects("transactional")
}

// Run leaves no goroutine behind.
func TestNoGoroutineIsLeftBehind(t *testing.T) { // not beside others, whose goroutines come and go
	w := newWorld(t)
	w.Append(100)
	// The pool's own goroutines end when it is closed.
	db, err := sql.Open("postgres", w.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.Config(db, "set")
	cfg.Notifier, cfg.EventsChannel = notifier(t, w.URL), "events"
	r := testworld.Run(t, cfg, w.All(db, nil)...)
	w.CaughtUp(testworld.Names...)
	pgtest.Eventually(t, "it listens", func() bool { return w.Number(listening) == 1 })
	r.Stop()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	// The stacks that mention the library, other than the test's own and those of tests
	// that wait for their turn.
	pgtest.Eventually(t, "all goroutines have ended", func() bool {
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
	noticed := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, nil))
	r := testworld.Run(t, cfg, named("a"))
	noticed.Wait(t, "database unreachable")
	r.Stop()
}
