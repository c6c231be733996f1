package ops_test

import (
	"context"
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
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// version returns one version of a read model. Each row says which event it is for, and whether
// the event was a replay. live are the events that were not: those for which the version has
// caused side effects.
func version(w *world, name string, options ...orchestrator.ProjectionOption) orchestrator.Projection[orchestrator.Event] {
	w.T.Helper()
	w.Exec(fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s (position bigint PRIMARY KEY, replay text NOT NULL)`, name))
	return orchestrator.Transactional(name, func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		d, _ := orchestrator.DeliveryFrom(ctx)
		_, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (position, replay) VALUES ($1, $2)`, name), e.GlobalPosition, string(d.Replay))
		return err
	}, options...)
}

// appending appends events until stop is called. stop returns their number.
func appending(w *world) (stop func()) {
	var wg sync.WaitGroup
	var over atomic.Bool
	wg.Go(func() {
		for !over.Load() {
			w.Append(20)
		}
	})
	return func() { over.Store(true); wg.Wait() }
}

// split checks that each event was handled as new by exactly one of two versions, and that live
// has handled all events.
func (w *world) split(live, other string) {
	w.T.Helper()
	pgtest.Eventually(w.T, live+" has all events", func() bool {
		return w.Number(`SELECT count(*) FROM `+live) == w.Number(`SELECT count(*) FROM events`)
	})
	if n := w.Number(fmt.Sprintf(`
SELECT count(*) FROM events e
 WHERE (SELECT count(*) FROM (SELECT position FROM %s WHERE replay = '' UNION ALL SELECT position FROM %s WHERE replay = '') x
         WHERE x.position = e.global_position) <> 1`, live, other)); n > 0 {
		w.T.Errorf("%d events were not handled as new by one of the two versions, and one alone", n)
	}
	if n := w.Number(fmt.Sprintf(`SELECT count(*) FROM %s a JOIN %s b USING (position) WHERE a.replay <> '' AND b.replay <> ''`, live, other)); n > 0 {
		w.T.Errorf("%d events were replays to both", n)
	}
}

// A read model is rebuilt beside the live one while events are appended, takes its place, gives
// the place back, and is removed.
func TestPromote(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		liveSet, nextSet     orchestrator.ReplicaSetName
		liveWorkers, workers int
	}{
		{"in a set of its own, of one worker", "live", "next", 3, 1},
		{"in a set of its own, of more workers", "live", "next", 1, 2},
		{"in the same program", "set", "set", 0, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			logged := &testworld.Log{To: t.Output()}
			config := func(set orchestrator.ReplicaSetName) orchestrator.Config[orchestrator.Event] {
				cfg := w.Config(w.DB, set)
				cfg.Logger = slog.New(slog.NewTextHandler(logged, nil))
				return cfg
			}
			live := version(w, "orders")
			next := version(w, "orders_v2", orchestrator.WithRebuildOf("orders"))
			w.Exec(`CREATE VIEW model AS SELECT * FROM orders`)
			w.Append(100)
			if tt.liveWorkers == 0 { // the only program of the projection, before
				first := testworld.Run(t, w.Config(w.DB, tt.liveSet), live)
				w.Active(tt.liveSet, 1)
				first.Stop()
			}
			var running []*testworld.Running
			for range tt.liveWorkers {
				running = append(running, testworld.Run(t, config(tt.liveSet), live))
			}
			if tt.liveWorkers > 0 {
				w.Active(tt.liveSet, tt.liveWorkers)
			}
			stop := appending(w)
			defer stop()
			projections := []orchestrator.Projection[orchestrator.Event]{next}
			if tt.liveWorkers == 0 {
				projections = append(projections, live)
			}
			for range tt.workers {
				running = append(running, testworld.Run(t, config(tt.nextSet), projections...))
			}
			w.Active(tt.nextSet, tt.workers)
			for i, to := range []string{"orders_v2", "orders", "orders_v2"} {
				p, err := ops.Promote(ctx, w.DB, to, `CREATE OR REPLACE VIEW model AS SELECT * FROM `+to)
				if err != nil {
					t.Fatal(err)
				}
				if p.Live != to || p.Replaced == "" {
					t.Errorf("promoted: %+v", p)
				}
				before := w.Number(`SELECT count(*) FROM ` + p.Replaced)
				if again, err := ops.Promote(ctx, w.DB, to, `SELECT 1/0`); err != nil || again.Replaced != "" {
					t.Errorf("promoted again: %+v, %v", again, err)
				}
				pgtest.Eventually(t, "new events are handled by "+to, func() bool {
					return w.Number(fmt.Sprintf(`SELECT count(*) FROM %s a WHERE replay = '' AND NOT EXISTS (SELECT FROM %s b WHERE b.position = a.position)`, to, p.Replaced)) > 50
				})
				if after := w.Number(`SELECT count(*) FROM ` + p.Replaced); after != before {
					t.Errorf("round %d: %s has handled %d events since it was replaced", i, p.Replaced, after-before)
				}
				logged.Wait(t, fmt.Sprintf("projection=%s live=%s", to, p.Replaced))
				logged.Wait(t, fmt.Sprintf("projection=%s replaced=%s", to, p.Replaced))
				if name, err := ops.Live(ctx, w.DB, p.Replaced); err != nil || name != to {
					t.Errorf("live is %s, %v", name, err)
				}
			}
			stop()
			w.split("orders_v2", "orders")
			if err := ops.Retire(ctx, w.DB, "orders"); !errors.Is(err, ops.ErrRejected) {
				t.Errorf("retired while a program has it: %v", err)
			}
			if err := ops.Retire(ctx, w.DB, "orders_v2"); !errors.Is(err, ops.ErrRejected) {
				t.Errorf("retired while it is live: %v", err)
			}
			for _, r := range running {
				r.Stop()
			}
			if err := ops.Retire(ctx, w.DB, "orders"); err != nil {
				t.Error(err)
			}
			if n := w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'orders'`); n != 0 {
				t.Errorf("%d checkpoints are left", n)
			}
			o, err := orchestrator.New(w.Config(w.DB, tt.liveSet))
			if err != nil {
				t.Fatal(err)
			}
			err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{live})
			if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(fmt.Sprint(err), `projection "orders" was retired`) {
				t.Errorf("a retired projection runs: %v", err)
			}
		})
	}
}

// If the live version has stopped for good at different positions on different slots, the
// rebuild reaches its position on each slot.
func TestPromoteWhileTheLiveVersionIsStuck(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var mended atomic.Bool
	cfg := w.Config(w.DB, "live")
	cfg.Retry = orchestrator.Retry{Min: time.Millisecond, Max: time.Millisecond}
	inner := version(w, "orders").(orchestrator.TransactionalProjection[orchestrator.Event])
	live := orchestrator.Transactional("orders", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		if e.GlobalPosition == 30 && !mended.Load() {
			return errors.New("poison")
		}
		return inner.HandleTx(ctx, tx, e)
	})
	var running []*testworld.Running
	for range 3 {
		running = append(running, testworld.Run(t, cfg, live))
	}
	w.Active("live", 3)
	w.Append(300)
	pgtest.Eventually(t, "all of the other partitions is handled", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'orders' AND position >= 300`) == 2
	})
	running[0].Stop() // and there are marks
	w.Active("live", 2)
	testworld.Run(t, w.Config(w.DB, "next"), version(w, "orders_v2", orchestrator.WithRebuildOf("orders")))
	w.Active("next", 1)
	if _, err := ops.Promote(ctx, w.DB, "orders_v2", ""); err != nil {
		t.Fatal(err)
	}
	mended.Store(true)
	w.split("orders_v2", "orders")
	if n := w.Number(`SELECT count(*) FROM orders_v2 WHERE replay <> '' AND position NOT IN (SELECT position FROM orders)`); n > 0 {
		t.Errorf("%d events were replays for both versions", n)
	}
}

// If a program crashes during a promotion, the live version goes on as before, a few seconds
// later.
func TestPromoteThatCrashes(t *testing.T) {
	w := newWorld(t)
	testworld.Run(t, w.Config(w.DB, "live"), version(w, "orders"))
	w.Active("live", 1)
	w.Append(10)
	testworld.Run(t, w.Config(w.DB, "next"), version(w, "orders_v2", orchestrator.WithRebuildOf("orders")))
	w.Active("next", 1)
	w.Exec(`CREATE TABLE model (id int); INSERT INTO model VALUES (1)`)
	_, err := ops.Promote(t.Context(), w.DB, "orders_v2", `DELETE FROM model; SELECT 1/0`)
	if err == nil || !strings.Contains(err.Error(), "division by zero") || !strings.Contains(err.Error(), "nothing of it has happened") {
		t.Errorf("SQL that fails: %v", err)
	}
	w.Ordered("live")(ops.HoldForTest(t.Context(), w.DB, "live", "orders")) // and the hold is not renewed
	w.Append(10)
	pgtest.Eventually(t, "the live one goes on", func() bool { return w.Number(`SELECT count(*) FROM orders`) == 20 })
	pgtest.Eventually(t, "the other one follows", func() bool { return w.Number(`SELECT count(*) FROM orders_v2 WHERE replay <> ''`) == 20 })
	if n := w.Number(`SELECT count(*) FROM model`); n != 1 {
		t.Errorf("the program's SQL has had an effect")
	}
	w.split("orders", "orders_v2")
}

// If the rebuild has parked events that the live version has handled, it can't be promoted:
// readers would lose those events.
func TestPromoteWithParkedEvents(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	poison := func(p orchestrator.Projection[orchestrator.Event], positions ...int64) orchestrator.Projection[orchestrator.Event] {
		inner := p.(orchestrator.TransactionalProjection[orchestrator.Event])
		return orchestrator.With(orchestrator.Transactional(p.Name(), func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
			if slices.Contains(positions, e.GlobalPosition) {
				return orchestrator.Permanent(errors.New("poison"))
			}
			return inner.HandleTx(ctx, tx, e)
		}, orchestrator.WithFailureRule(orchestrator.FailureRule{Policy: orchestrator.ParkEvents})), orchestrator.WithRebuildOf(p.(orchestrator.RebuildProjection[orchestrator.Event]).RebuildOf()))
	}
	testworld.Run(t, w.Config(w.DB, "live"), poison(version(w, "orders"), 5))
	w.Active("live", 1)
	w.Append(20)
	testworld.Run(t, w.Config(w.DB, "next"), poison(version(w, "orders_v2", orchestrator.WithRebuildOf("orders")), 5, 7))
	w.Active("next", 1)
	pgtest.Eventually(t, "events are parked", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position IN (5, 7)`) == 3
	})
	_, err := ops.Promote(ctx, w.DB, "orders_v2", "")
	if !errors.Is(err, ops.ErrRejected) || !strings.Contains(err.Error(), "the first at position 7") {
		t.Errorf("promoted with an event that it alone has parked: %v", err)
	}
	if _, err := ops.DiscardParked(ctx, w.DB, "orders_v2", ops.ParkedSelector{Positions: []int64{7}}); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "it is discarded", func() bool { return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position = 7`) == 0 })
	parked := w.Number(`SELECT count(*) FROM orchestrator_parked WHERE projection = 'orders'`)
	pgtest.Eventually(t, "it is promoted", func() bool {
		p, err := ops.Promote(ctx, w.DB, "orders_v2", "")
		if err == nil && p.Parked != int(parked) {
			t.Errorf("%d are parked, and it says %d", parked, p.Parked)
		}
		return err == nil
	})
}

// A projection that has run on its own can't become a rebuild: it would go on from its
// checkpoints, and handle all events as new.
func TestRebuildOfWhatHasRun(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	running := testworld.Run(t, w.Config(w.DB, "live"), version(w, "orders"), version(w, "orders_v2"))
	w.Active("live", 1)
	running.Stop()
	o, err := orchestrator.New(w.Config(w.DB, "live"))
	if err != nil {
		t.Fatal(err)
	}
	err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{version(w, "orders_v2", orchestrator.WithRebuildOf("orders"))})
	want := `projection "orders_v2" can't be a rebuild of "orders": it has checkpoints as a projection of its own`
	if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

// An order about a projection that no worker has does not make it a live version.
func TestRewindBeforeARebuild(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	testworld.Run(t, w.Config(w.DB, "set"), version(w, "orders"))
	w.Active("set", 1)
	w.Append(20)
	w.Ordered("set")(ops.Rewind(ctx, w.DB, "set", "orders_v2", 5))
	testworld.Run(t, w.Config(w.DB, "set"), version(w, "orders"), version(w, "orders_v2", orchestrator.WithRebuildOf("orders")))
	w.Active("set", 2)
	pgtest.Eventually(t, "it follows", func() bool { return w.Number(`SELECT count(*) FROM orders_v2`) > 0 })
	if n := w.Number(`SELECT count(*) FROM orders_v2 WHERE replay = ''`); n > 0 {
		t.Errorf("%d events are new to it as well", n)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_projections WHERE name = 'orders_v2' AND follows = 'orders'`); n != 1 {
		t.Errorf("it does not follow the live version")
	}
}

// beside runs the two versions of orders in sets of their own, with ten events.
func beside(w *world, options ...orchestrator.ProjectionOption) (live, next *testworld.Running) {
	w.T.Helper()
	live = testworld.Run(w.T, w.Config(w.DB, "live"), version(w, "orders", options...), version(w, "other"))
	w.Active("live", 1)
	w.Append(10)
	next = testworld.Run(w.T, w.Config(w.DB, "next"), version(w, "orders_v2", append(options, orchestrator.WithRebuildOf("orders"))...))
	w.Active("next", 1)
	return live, next
}

// A retired projection stays retired, whatever its set runs later, and all functions go on to
// answer as before.
func TestRetired(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	live, _ := beside(w)
	if _, err := ops.Promote(ctx, w.DB, "orders_v2", ""); err != nil {
		t.Fatal(err)
	}
	live.Stop()
	if err := ops.Retire(ctx, w.DB, "orders"); err != nil {
		t.Fatal(err)
	}
	testworld.Run(t, w.Config(w.DB, "live"), version(w, "other"))
	w.Active("live", 1)
	if n := w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'orders'`); n != 0 {
		t.Errorf("the next generation has given it %d checkpoints", n)
	}
	o, err := orchestrator.New(w.Config(w.DB, "live"))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{version(w, "orders"), version(w, "other")}); !errors.Is(err, orchestrator.ErrInvalidConfig) {
		t.Errorf("a program that has it runs: %v", err)
	}
	if name, err := ops.Live(ctx, w.DB, "orders"); name != "orders_v2" || err != nil {
		t.Errorf("live is %s, %v", name, err)
	}
	if p, err := ops.Promote(ctx, w.DB, "orders_v2", ""); err != nil || p.Replaced != "" {
		t.Errorf("promoted again: %+v, %v", p, err)
	}
	if err := ops.Retire(ctx, w.DB, "orders"); err != nil {
		t.Errorf("retired again: %v", err)
	}
}

// Retiring a projection stops no worker, although its set has one paused projection less.
func TestRetireStopsNoWorker(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	old, _ := beside(w)
	if _, err := ops.Promote(ctx, w.DB, "orders_v2", ""); err != nil {
		t.Fatal(err)
	}
	cfg := w.Config(w.DB, "live")
	cfg.ReplacementWindow = time.Hour
	testworld.Run(t, cfg, version(w, "other"))
	w.Active("live", 2)
	second := testworld.Run(t, cfg, version(w, "other"))
	w.Active("live", 3)
	old.Stop()
	w.Active("live", 2)
	stays := w.Workers("live")[0].Worker
	if err := ops.Retire(ctx, w.DB, "orders"); err != nil {
		t.Fatal(err)
	}
	second.Stop() // its place is reserved: no generation is opened
	testworld.Run(t, cfg, version(w, "other"))
	w.Append(100)
	pgtest.Eventually(t, "all is handled", func() bool {
		return w.Number(`SELECT count(*) FROM other`) == w.Number(`SELECT count(*) FROM events`)
	})
	if now := w.Workers("live")[0].Worker; now != stays {
		t.Errorf("%s has joined again, as %s", stays, now)
	}
}

// If a rebuild is set to a position beyond the live version, no version would handle the events
// between. If no worker runs the rebuild, no version would handle any. Promote waits in both
// cases.
func TestPromoteWaits(t *testing.T) {
	w := newWorld(t)
	_, next := beside(w)
	w.Ordered("next")(ops.Rewind(t.Context(), w.DB, "next", "orders_v2", 15))
	promote := func(why string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if p, err := ops.Promote(ctx, w.DB, "orders_v2", ""); !errors.Is(err, context.DeadlineExceeded) || p != (ops.Promotion{}) {
			t.Errorf("%s: %+v, %v", why, p, err)
		}
	}
	promote("it is ahead")
	w.Append(10)
	next.Stop()
	promote("no worker runs it")
	testworld.Run(t, w.Config(w.DB, "next"), version(w, "orders_v2"))
	if _, err := ops.Promote(t.Context(), w.DB, "orders_v2", ""); err != nil {
		t.Error(err)
	}
}

// The SQL may belong to another role, which owns the read model and can't access the library's
// tables.
func TestPromoteWithARole(t *testing.T) {
	w := newWorld(t)
	beside(w)
	role := fmt.Sprintf("owner_%d", time.Now().UnixNano())
	w.Exec(`CREATE ROLE ` + role)
	t.Cleanup(func() { _, _ = w.DB.Exec(`DROP ROLE ` + role) })
	if _, err := ops.Promote(t.Context(), w.DB, "orders_v2", `SET ROLE `+role+`; SELECT 1`); err != nil {
		t.Error(err)
	}
}

// An event that both versions have parked was new to neither. If it is retried when the new
// version is live, it counts as new.
func TestRetryAfterPromote(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var mended atomic.Bool
	poison := func(name string, o ...orchestrator.ProjectionOption) orchestrator.Projection[orchestrator.Event] {
		inner := version(w, name).(orchestrator.TransactionalProjection[orchestrator.Event])
		o = append(o, orchestrator.WithFailureRule(orchestrator.FailureRule{Policy: orchestrator.ParkEvents}))
		return orchestrator.Transactional(name, func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
			if e.GlobalPosition == 5 && !mended.Load() {
				return orchestrator.Permanent(errors.New("poison"))
			}
			return inner.HandleTx(ctx, tx, e)
		}, o...)
	}
	testworld.Run(t, w.Config(w.DB, "live"), poison("orders"))
	w.Active("live", 1)
	w.Append(10)
	testworld.Run(t, w.Config(w.DB, "next"), poison("orders_v2", orchestrator.WithRebuildOf("orders")))
	w.Active("next", 1)
	pgtest.Eventually(t, "it is parked by both", func() bool { return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position = 5`) == 2 })
	if _, err := ops.Promote(ctx, w.DB, "orders_v2", ""); err != nil {
		t.Fatal(err)
	}
	mended.Store(true)
	if _, err := ops.RetryParked(ctx, w.DB, "orders_v2", ops.ParkedSelector{Positions: []int64{5}}); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "it is handled", func() bool { return w.Number(`SELECT count(*) FROM orders_v2 WHERE position = 5`) == 1 })
	if n := w.Number(`SELECT count(*) FROM orders_v2 WHERE position = 5 AND replay = 'parked'`); n != 1 {
		t.Error("the event was told to be a replay of the live version's")
	}
}

// Invalid input is refused by name.
func TestPromoteRefuses(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	testworld.Run(t, w.Config(w.DB, "live"), version(w, "orders"))
	w.Active("live", 1)
	for _, tt := range []struct{ projection, script, want string }{
		{"none", "", `there is no projection "none"`},
		{"", "", "the name of the projection is empty"},
		{"orders", "", `projection "orders" is not a rebuild`},
		{"orders", "SELECT 1; COMMIT", "the SQL must not contain COMMIT"},
	} {
		if _, err := ops.Promote(ctx, w.DB, tt.projection, tt.script); !errors.Is(err, ops.ErrRejected) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("promote %q: %v, want %s", tt.projection, err, tt.want)
		}
	}
	for _, tt := range []struct{ of, want string }{
		{"nothing", `projection "orders_v2" can't be a rebuild of "nothing": projection "nothing" has never run`},
		{"orders_v2", `projection "orders_v2" can't be a rebuild of itself`},
		{strings.Repeat("x", 300), "the name that RebuildOf returned"},
	} {
		o, err := orchestrator.New(w.Config(w.DB, "next"))
		if err != nil {
			t.Fatal(err)
		}
		err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{version(w, "orders_v2", orchestrator.WithRebuildOf(tt.of))})
		if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("a rebuild of %q: %v, want %s", tt.of, err, tt.want)
		}
	}
	o, err := orchestrator.New(w.Config(w.DB, "next"))
	if err != nil {
		t.Fatal(err)
	}
	err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{
		version(w, "orders_v2", orchestrator.WithRebuildOf("orders"), orchestrator.WithStart(orchestrator.StartNow())),
	})
	if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(fmt.Sprint(err), "remove WithStart") {
		t.Errorf("a rebuild that starts now: %v", err)
	}
}

// A pending rewind is carried out before the rewound projection can take the live version's
// place. Otherwise it would handle replays as new events.
func TestPromoteWaitsForARewind(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	live := testworld.Run(t, w.Config(w.DB, "live"), version(w, "orders"))
	w.Active("live", 1)
	w.Append(20)
	v2 := version(w, "orders_v2", orchestrator.WithRebuildOf("orders"))
	next := testworld.Run(t, w.Config(w.DB, "next"), v2)
	w.Active("next", 1)
	pgtest.Eventually(t, "it has caught up", func() bool { return w.Number(`SELECT count(*) FROM orders_v2`) == 20 })
	live.Stop()
	next.Stop()
	w.Exec(`TRUNCATE orders_v2`)
	w.Ordered("next")(ops.Rewind(ctx, w.DB, "next", "orders_v2", 0)) // no worker is there to carry it out
	w.Ordered("live")(ops.HoldForTest(ctx, w.DB, "live", "orders"))
	_, err := store.Promote(ctx, store.Tables{DB: w.DB}, "orders_v2", "orders", "")
	if notYet := (*store.NotYetError)(nil); !errors.As(err, &notYet) {
		t.Fatalf("promoted while a rewind is due: %v", err)
	}
	testworld.Run(t, w.Config(w.DB, "next"), v2)
	if _, err := ops.Promote(ctx, w.DB, "orders_v2", ""); err != nil {
		t.Fatal(err)
	}
	if n := w.Number(`SELECT count(*) FROM orders_v2 WHERE replay = ''`); n > 0 {
		t.Errorf("%d events are new to both", n)
	}
}
