package orchestrator_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A handler whose connection is ended has not failed: the observer is told of no failure,
// StopOnFailure does not stop, no attempt is counted, and Status says what has happened.
func TestALostConnectionIsNoFailure(t *testing.T) {
	for _, kind := range []string{"transactional", "batched"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(10)
			var mended atomic.Bool
			handle := func(ctx context.Context, tx orchestrator.Tx) error {
				if mended.Load() {
					return nil
				}
				_, err := tx.ExecContext(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
				return err
			}
			p := orchestrator.Transactional(kind, func(ctx context.Context, tx orchestrator.Tx, _ orchestrator.Event) error { return handle(ctx, tx) })
			if kind == "batched" {
				p = orchestrator.Batch(kind, func(ctx context.Context, tx orchestrator.Tx, _ []orchestrator.Event) error { return handle(ctx, tx) })
			}
			cfg := w.Config(w.DB, "set")
			cfg.Failures = map[string]orchestrator.FailureRule{kind: {Policy: orchestrator.StopOnFailure, Attempts: 1000}}
			r, s := w.Seen(t, cfg, p)
			w.Active("set", 1)
			pgtest.Eventually(t, "the status says what interrupts the handler", func() bool {
				_, waits := w.Stand("set")
				return len(waits["interrupted"]) == 1 && strings.Contains(waits["interrupted"][0].Text, "position 1")
			})
			pgtest.Eventually(t, "the view for psql says it as well", func() bool {
				return w.Number(`SELECT count(*) FROM orchestrator_status_partitions WHERE error LIKE 'interrupted: %'`) == 1
			})
			if _, waits := w.Stand("set"); len(waits["retry"]) > 0 {
				t.Errorf("the status says %+v", waits)
			}
			l := testworld.Reported(t, s, "an interruption", kind, 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Interruption != "" })
			if l.Attempts != 0 || l.Error != "" {
				t.Errorf("it reports %+v", l)
			}
			mended.Store(true)
			pgtest.Eventually(t, "all events are handled", func() bool { return w.Reached() == 10 })
			r.Stop()
			if failed := testworld.Told[orchestrator.HandlerFailed](s); len(failed) > 0 {
				t.Errorf("the observer is told of %d failures, the first of them %+v", len(failed), failed[0])
			}
		})
	}
}

// A handler that is cancelled, since it takes long to stop, has not failed either.
func TestACancelledHandlerIsNoFailure(t *testing.T) {
	for _, kind := range []string{"plain", "transactional", "batched", "plain batch"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(1)
			in := make(chan struct{}, 1)
			var cause atomic.Value
			cfg := w.Config(w.DB, "set")
			cfg.OnFailure, cfg.CoordinationTimeout, cfg.LeaseOnly = orchestrator.StopOnFailure, time.Second, true
			r, s := w.Seen(t, cfg, w.kindOf(kind, testworld.Effects{Projection: "p", Hook: func(ctx context.Context, _ orchestrator.Event) error {
				in <- struct{}{}
				<-ctx.Done()
				cause.Store(context.Cause(ctx))
				return errors.New("it could not be done")
			}}))
			<-in
			r.Stop() // and Run returns no HandlerError
			if failed := testworld.Told[orchestrator.HandlerFailed](s); len(failed) > 0 {
				t.Errorf("the observer is told of %+v", failed)
			}
			if err, _ := cause.Load().(error); !errors.Is(err, orchestrator.ErrGenerationSuperseded) {
				t.Errorf("the cause is %v", err)
			}
			if n := w.Handled("p"); n != 0 {
				t.Errorf("%d events are handled", n)
			}
		})
	}
}
