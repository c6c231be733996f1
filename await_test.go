package orchestrator_test

import (
	"context"
	"errors"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// WaitFor goes by the slowest partition, and counts marks as handled.
func TestWaitFor(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(w.db, "set")
	cfg.Partitions, cfg.BatchSize = 4, 1
	w.append(100)
	held := make(chan struct{})
	run(t, cfg, transactional{effects{name: "transactional", hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 60 {
			select {
			case <-held:
			case <-ctx.Done():
			}
		}
		return nil
	}}})
	if err := orchestrator.WaitFor(t.Context(), w.db, "transactional", 30); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other partitions have gone on", func() bool { return w.handled("transactional") > 70 })
	// A deadline that is over: it looks once.
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no more time"))
	if err := orchestrator.WaitFor(ctx, w.db, "transactional", 60); err == nil {
		t.Error("position 60 counts as handled, and its handler has not returned")
	}
	close(held)
	if err := orchestrator.WaitFor(t.Context(), w.db, "transactional", 100); err != nil {
		t.Fatal(err)
	}
	w.checkEffects("transactional")
}

func TestWaitForCountsMarks(t *testing.T) {
	w := newWorld(t)
	handled := func(position int64) bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- orchestrator.WaitFor(ctx, w.db, "p", position) }()
		for looks := 0; looks < 3; {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				return true
			default:
				w.number(`SELECT count(*) FROM orchestrator_checkpoints`)
				looks++
			}
		}
		cancel()
		return <-done == nil
	}
	if handled(1) {
		t.Error("a projection that has no checkpoint has handled position 1")
	}
	w.exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, ahead, updated_at)
SELECT 'p', k, 'set', 1, 2520, 10, jsonb_build_array(jsonb_build_array(k, 20), jsonb_build_array(k + 2520, CASE WHEN k = 7 THEN 15 ELSE 20 END)), now()
  FROM generate_series(0, 2519) AS k`)
	ctx := t.Context()
	if err := orchestrator.WaitFor(ctx, w.db, "p", 15); err != nil {
		t.Error(err)
	}
	if handled(16) {
		t.Error("slot 2527 has handled 15, and 16 counts as handled")
	}
	w.exec(`UPDATE orchestrator_checkpoints SET ahead = '[[7, 20], [2527, 20]]' WHERE partition = 7`)
	if err := orchestrator.WaitFor(ctx, w.db, "p", 20); err != nil {
		t.Error(err)
	}
	w.exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('p', 12, 1, 'a', 'no', 3, now())`)
	var parked *orchestrator.ParkedError
	if err := orchestrator.WaitFor(ctx, w.db, "p", 20); !errors.As(err, &parked) || parked.Events != 1 || parked.First != 12 {
		t.Errorf("with a parked event: %v", err)
	}
	if err := orchestrator.WaitFor(ctx, w.db, "p", 11); err != nil {
		t.Errorf("below the parked event: %v", err)
	}
}

// CatchUp ends by itself, with everything handled that was there.
func TestCatchUp(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(w.db, "set")
	cfg.Partitions = 3
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.CatchUp(t.Context(), w.all(w.db, nil)); err != nil { // of nothing
		t.Fatal(err)
	}
	for range 2 {
		w.append(200)
		if err := o.CatchUp(t.Context(), w.all(w.db, nil)); err != nil {
			t.Fatal(err)
		}
		w.checkEffects(append(exact, "plain")...)
		if n := w.number(`SELECT count(*) FROM orchestrator_workers`); n != 0 {
			t.Errorf("%d workers are left", n)
		}
	}
}

func TestCatchUpThatCannot(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(w.db, "set")
	w.append(10)
	broken := errors.New("broken")
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	fails := transactional{effects{name: "fails", hook: func(context.Context, orchestrator.Event) error { return broken }}}
	if err := o.CatchUp(t.Context(), []orchestrator.Projection[orchestrator.Event]{fails}); !errors.Is(err, broken) {
		t.Errorf("a handler that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stops := transactional{effects{name: "stops", hook: func(ctx context.Context, _ orchestrator.Event) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}}}
	if err := o.CatchUp(ctx, []orchestrator.Projection[orchestrator.Event]{stops}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	cfg.EventStore = headless{cfg.EventStore}
	if o, err = orchestrator.New(cfg); err != nil {
		t.Fatal(err)
	}
	if err := o.CatchUp(t.Context(), w.all(w.db, nil)); !errors.Is(err, orchestrator.ErrInvalidConfig) {
		t.Errorf("an event store without Head: %v", err)
	}
}

// headless is an event store that can't tell where its stream ends.
type headless struct {
	events orchestrator.EventStore[orchestrator.Event]
}

func (s headless) Read(ctx context.Context, after int64, limit int) ([]orchestrator.Record[orchestrator.Event], error) {
	return s.events.Read(ctx, after, limit)
}
