package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// WaitFor goes by the slowest partition, and counts marks as handled.
func TestWaitFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.Partitions, cfg.BatchSize = 4, 1
	w.Append(100)
	held := make(chan struct{})
	testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 60 {
			select {
			case <-held:
			case <-ctx.Done():
			}
		}
		return nil
	}}.Transactional())
	if err := orchestrator.WaitFor(t.Context(), w.DB, "transactional", 30); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the other partitions have gone on", func() bool { return w.Handled("transactional") > 70 })
	// A deadline that is over: it looks once.
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no more time"))
	if err := orchestrator.WaitFor(ctx, w.DB, "transactional", 60); err == nil {
		t.Error("position 60 counts as handled, and its handler has not returned")
	}
	close(held)
	if err := orchestrator.WaitFor(t.Context(), w.DB, "transactional", 100); err != nil {
		t.Fatal(err)
	}
	w.CheckEffects("transactional")
}

// waitedFor reports whether WaitFor finds that a projection has handled a position,
// and gives up after some looks.
func (w *world) waitedFor(projection string, position int64) bool {
	w.T.Helper()
	ctx, cancel := context.WithCancel(w.T.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- orchestrator.WaitFor(ctx, w.DB, projection, position) }()
	for range 3 {
		select {
		case err := <-done:
			if err != nil {
				w.T.Fatal(err)
			}
			return true
		default:
			w.Number(`SELECT count(*) FROM orchestrator_checkpoints`)
		}
	}
	cancel()
	return <-done == nil
}

func TestWaitForCountsMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	handled := func(position int64) bool { return w.waitedFor("p", position) }
	if handled(1) {
		t.Error("a projection that has no checkpoint has handled position 1")
	}
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, ahead, updated_at)
SELECT 'p', k, 'set', 1, 2520, 10, jsonb_build_array(jsonb_build_array(k, 20), jsonb_build_array(k + 2520, CASE WHEN k = 7 THEN 15 ELSE 20 END)), now()
  FROM generate_series(0, 2519) AS k`)
	ctx := t.Context()
	if err := orchestrator.WaitFor(ctx, w.DB, "p", 15); err != nil {
		t.Error(err)
	}
	if handled(16) {
		t.Error("slot 2527 has handled 15, and 16 counts as handled")
	}
	w.Exec(`UPDATE orchestrator_checkpoints SET ahead = '[[7, 20], [2527, 20]]' WHERE partition = 7`)
	if err := orchestrator.WaitFor(ctx, w.DB, "p", 20); err != nil {
		t.Error(err)
	}
	w.Exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('p', 12, 1, 'a', 'no', 3, now())`)
	var parked *orchestrator.ParkedError
	if err := orchestrator.WaitFor(ctx, w.DB, "p", 20); !errors.As(err, &parked) || parked.Events != 1 || parked.First != 12 {
		t.Errorf("with a parked event: %v", err)
	}
	if err := orchestrator.WaitFor(ctx, w.DB, "p", 11); err != nil {
		t.Errorf("below the parked event: %v", err)
	}
}

// CatchUp ends by itself, with everything handled that was there.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.Partitions, cfg.LeaseOnly = 3, true // or the plain one may repeat events where the machine is loaded
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.CatchUp(t.Context(), w.All(w.DB, nil)); err != nil { // of nothing
		t.Fatal(err)
	}
	for range 2 {
		w.Append(200)
		if err := o.CatchUp(t.Context(), w.All(w.DB, nil)); err != nil {
			t.Fatal(err)
		}
		w.CheckEffects(append(testworld.Exact, "plain")...)
		if n := w.Members(); n != 0 {
			t.Errorf("%d workers are left", n)
		}
	}
}

// What is paused, or fails for ever, does not catch up: CatchUp goes on until ctx ends.
func TestCatchUpWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"transactional": {Policy: orchestrator.RetryForever}}
	failure := errors.New("odd")
	broken := testworld.Effects{Projection: "transactional", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 15 {
			return failure
		}
		return nil
	}}.Transactional()
	projections := []orchestrator.Projection[orchestrator.Event]{broken, testworld.Effects{Projection: "batched"}.Batched(), testworld.Effects{Projection: "plain"}.Plain(w.DB)}
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Append(10)
	if err := o.CatchUp(t.Context(), projections); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Pause(t.Context(), w.DB, "set", "batched"); err != nil {
		t.Fatal(err)
	}
	w.Append(10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- o.CatchUp(ctx, projections) }()
	w.CaughtUp("plain")
	pgtest.Eventually(t, "one fails", func() bool {
		_, waits := w.Stand("set")
		return len(waits["retry"]) == 1 && waits["retry"][0].Position == 15 && len(waits["paused"]) == 1
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("with one that is paused, and one that fails: %v", err)
	}
	if n := w.Handled("batched"); n != 10 {
		t.Errorf("what is paused has handled %d events, and 10 before", n)
	}
}

func TestCatchUpThatCannot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	w.Append(10)
	broken := errors.New("broken")
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	fails := testworld.Effects{Projection: "fails", Hook: func(context.Context, orchestrator.Event) error { return broken }}.Transactional()
	if err := o.CatchUp(t.Context(), []orchestrator.Projection[orchestrator.Event]{fails}); !errors.Is(err, broken) {
		t.Errorf("a handler that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stops := testworld.Effects{Projection: "stops", Hook: func(context.Context, orchestrator.Event) error {
		cancel() // CatchUp's, and not the handler's, which goes on for CoordinationTimeout/2
		return nil
	}}.Transactional()
	if err := o.CatchUp(ctx, []orchestrator.Projection[orchestrator.Event]{stops}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	cfg.EventStore = headless{cfg.EventStore}
	if o, err = orchestrator.New(cfg); err != nil {
		t.Fatal(err)
	}
	if err := o.CatchUp(t.Context(), w.All(w.DB, nil)); !errors.Is(err, orchestrator.ErrInvalidConfig) {
		t.Errorf("an event store without Head: %v", err)
	}
	w.Exec(`DROP TABLE orchestrator_schema, orchestrator_checkpoints CASCADE`)
	if o, err = orchestrator.New(w.Config(w.DB, "set")); err != nil {
		t.Fatal(err)
	}
	for range 5 { // two goroutines ask for tables
		if err := o.CatchUp(t.Context(), w.All(w.DB, nil)); !errors.Is(err, orchestrator.ErrSchema) {
			t.Errorf("without the tables: %v", err)
		}
	}
}

// headless is an event store that can't tell where its stream ends.
type headless struct {
	events orchestrator.EventStore[orchestrator.Event]
}

func (s headless) Read(ctx context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	return s.events.Read(ctx, r)
}

// A rewind that is ordered and not carried out yet is of events that are to be
// handled again: who waits for them waits for that, with workers there and without.
func TestWaitForKnowsOfARewind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	cfg := w.Config(w.DB, "set")
	w.Append(50)
	first := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	first.Stop()
	if _, err := ops.Rewind(ctx, w.DB, "set", "transactional", 20); err != nil {
		t.Fatal(err)
	}
	if err := orchestrator.WaitFor(ctx, w.DB, "transactional", 20); err != nil { // which is not rewound
		t.Fatal(err)
	}
	if w.waitedFor("transactional", 21) {
		t.Error("what is to be handled again counts as handled")
	}
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Exec(`DELETE FROM effects WHERE position > 20`)
	if err := o.CatchUp(ctx, []orchestrator.Projection[orchestrator.Event]{testworld.Effects{Projection: "transactional"}.Transactional()}); err != nil {
		t.Fatal(err)
	}
	w.CheckEffects("transactional")
}

// What is parked and how far the projection is are of one moment: a rewind between
// two looks forgets the one, and takes back the other.
func TestWaitForAmidARewind(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
VALUES ('p', 0, 'set', 1, 1, 20, now())`)
	const parks = `INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('p', 12, 1, 'a', 'no', 3, now())`
	w.Exec(parks)
	tx, err := w.DB.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	// Of the activation that carries the rewind out.
	if _, err := tx.ExecContext(ctx, `LOCK TABLE orchestrator_parked`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- orchestrator.WaitFor(ctx, w.DB, "p", 15) }()
	pgtest.Eventually(t, "it waits for what is parked", func() bool {
		return w.Number(`SELECT count(*) FROM pg_locks WHERE relation = 'orchestrator_parked'::regclass AND NOT granted`) == 1
	})
	for _, query := range []string{
		`UPDATE orchestrator_checkpoints SET position = 0, generation = 2`,
		`DELETE FROM orchestrator_parked`,
	} {
		if _, err := tx.ExecContext(ctx, query); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "it has looked", func() bool {
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%orchestrator_parked%' AND pid <> pg_backend_pid()`) == 0
	})
	w.Exec(`WITH parked AS (` + parks + `) UPDATE orchestrator_checkpoints SET position = 20`)
	var parked *orchestrator.ParkedError
	if err := <-done; !errors.As(err, &parked) || parked.First != 12 {
		t.Errorf("event 12 was never handled, and waiting for it ended with %v", err)
	}
}

// The error with which a handler ends the run is what CatchUp returns, whatever it
// wraps.
func TestCatchUpReturnsWhatEndedIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	broken := fmt.Errorf("of a call that the handler has cancelled: %w", context.Canceled)
	fails := testworld.Effects{Projection: "fails", Hook: func(context.Context, orchestrator.Event) error { return broken }}.Transactional()
	err = o.CatchUp(t.Context(), []orchestrator.Projection[orchestrator.Event]{fails})
	var handler *orchestrator.HandlerError
	if !errors.As(err, &handler) {
		t.Errorf("CatchUp returned %v, want what the handler failed with", err)
	}
}

// WaitForEvent waits for one aggregate: neither another partition that stands still nor
// another aggregate's parked event is in its way.
func TestWaitForEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	const one, other, unknown = "one", "other \u201cquoted\u201d\x00", "unknown"
	slot, beside := protocol.SlotOf(one), protocol.SlotOf(other)
	if slot%2 == beside%2 {
		t.Fatal("they are in one partition")
	}
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, ahead, updated_at)
SELECT 'single', k, 'set', 1, 2, CASE WHEN k = $1 % 2 THEN 10 ELSE 3 END, CASE WHEN k = $1 % 2 THEN jsonb_build_array(jsonb_build_array($1::int, 20)) END, now()
  FROM generate_series(0, 1) AS k`, slot)
	parks := func(position int64, aggregate string) {
		w.Exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('single', $1, $2, $3, 'no', 3, now())`,
			position, protocol.SlotOf(aggregate), protocol.Storable(aggregate))
	}
	ended, cancel := context.WithCancelCause(ctx)
	late := errors.New("no more time")
	behind := func(position int64, aggregate string, by int64) {
		t.Helper()
		soon, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		done := make(chan error, 1)
		go func() { done <- orchestrator.WaitForEvent(soon, w.DB, "single", position, aggregate) }()
		pgtest.Eventually(t, "it has looked", func() bool { return orchestrator.WaitedAt("single", position) >= 0 })
		cancel(late)
		var err *orchestrator.BehindError
		if got := <-done; !errors.As(got, &err) || err.Behind() != by || !errors.Is(got, late) {
			t.Errorf("%d of %q: %v, want %d behind", position, aggregate, got, by)
		}
	}
	parks(4, other)
	if err := orchestrator.WaitForEvent(ctx, w.DB, "single", 20, one); err != nil {
		t.Error(err)
	}
	behind(21, one, 1)
	behind(20, other, 17)
	w.Exec(`UPDATE orchestrator_checkpoints SET position = 30, ahead = NULL`)
	parks(29, one)
	var parked *orchestrator.ParkedError
	if err := orchestrator.WaitForEvent(ctx, w.DB, "single", 30, other); !errors.As(err, &parked) || parked.Events != 1 || parked.First != 4 {
		t.Errorf("with an event of its own that is parked: %v", err)
	}
	if err := orchestrator.WaitForEvent(ctx, w.DB, "single", 28, one); err != nil {
		t.Errorf("below its parked event: %v", err)
	}
	if err := orchestrator.WaitForEvent(ctx, w.DB, "single", 30, unknown); err != nil {
		t.Error(err)
	}
	w.Exec(`DELETE FROM orchestrator_checkpoints WHERE partition = 1`)
	cancel(late)
	var behindErr *orchestrator.BehindError
	if err := orchestrator.WaitForEvent(ended, w.DB, "single", 5, one); !errors.As(err, &behindErr) || behindErr.Handled != -1 || !errors.Is(err, late) {
		t.Errorf("with no time at all: %v", err)
	}
	if err := orchestrator.WaitForEvent(ctx, nil, "single", 5, one); !errors.Is(err, orchestrator.ErrInvalidConfig) {
		t.Errorf("without a database: %v", err)
	}
	if err := orchestrator.WaitForEvent(ctx, w.DB, "", 5, one); !errors.Is(err, orchestrator.ErrInvalidConfig) {
		t.Errorf("without a projection: %v", err)
	}
}

// However many wait, one statement looks for all of them at a time.
func TestWaitsShareTheirLooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
VALUES ('shared', 0, 'set', 1, 1, 10, now())`)
	db, f := testworld.Faulty(t, w.URL)
	var looks, inFlight, most atomic.Int64
	first, hold := make(chan struct{}), make(chan struct{})
	f.OnQuery(func(query string) {
		if !strings.Contains(query, "orchestrator_parked") {
			return
		}
		most.Store(max(most.Load(), inFlight.Add(1)))
		if looks.Add(1) == 1 {
			close(first)
			<-hold
		}
		inFlight.Add(-1)
	})
	const waiters = 500
	done := make(chan error, waiters)
	begin := func(n int) {
		for i := range n {
			go func() {
				if i%2 == 0 {
					done <- orchestrator.WaitFor(t.Context(), db, "shared", 20)
				} else {
					done <- orchestrator.WaitForEvent(t.Context(), db, "shared", 20, fmt.Sprint(i))
				}
			}()
		}
	}
	begin(1)
	<-first
	begin(waiters - 1)
	pgtest.Eventually(t, "all wait", func() bool { return orchestrator.Waiting("shared") == waiters })
	w.Exec(`UPDATE orchestrator_checkpoints SET position = 20`)
	close(hold)
	for range waiters {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if looks.Load() > 3 || most.Load() != 1 {
		t.Errorf("%d waiters took %d looks, at most %d at a time", waiters, looks.Load(), most.Load())
	}
}

// The library's tables may be in a schema of their own.
func TestCatchUpInASchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := orchestrator.Migrate(t.Context(), w.DB, orchestrator.InSchema("elsewhere")); err != nil {
		t.Fatal(err)
	}
	w.Exec(`DROP TABLE orchestrator_checkpoints CASCADE`) // those of the search path
	w.Append(10)
	cfg := w.Config(w.DB, "set")
	cfg.Schema = "elsewhere"
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.CatchUp(t.Context(), []orchestrator.Projection[orchestrator.Event]{testworld.Effects{Projection: "transactional"}.Transactional()}); err != nil {
		t.Fatal(err)
	}
	w.CheckEffects("transactional")
}
