package orchestrator_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// deliveries are those that a handler was told of, and the contexts that told it.
type deliveries struct {
	mu   sync.Mutex
	told []orchestrator.Delivery
	ctxs []context.Context
}

// note returns how many there were before.
func (d *deliveries) note(ctx context.Context) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	told, _ := orchestrator.DeliveryFrom(ctx)
	d.told, d.ctxs = append(d.told, told), append(d.ctxs, ctx)
	return len(d.told) - 1
}

// A handler is told of each call: of failures as attempts, of interruptions not, and of a
// parked event as a replay. What it was told stays so in a context that it keeps.
func TestDelivery(t *testing.T) {
	t.Parallel()
	if _, ok := orchestrator.DeliveryFrom(t.Context()); ok {
		t.Error("there is a delivery outside of handlers")
	}
	for _, kind := range []string{"plain", "transactional", "batched", "plain batch"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(3)
			var seen deliveries
			batches := strings.Contains(kind, "batch")
			handle := func(ctx context.Context, position int64, n int) error {
				calls := seen.note(ctx)
				switch {
				case position > 1:
				case n > 1:
					return errors.New("somewhere")
				case calls == 0 || batches && calls == 1:
					return errors.New("once")
				}
				d, _ := orchestrator.DeliveryFrom(ctx)
				if position == 1 && d.Replay == orchestrator.NoReplay {
					return errors.New("twice")
				}
				return nil
			}
			var p orchestrator.Projection[orchestrator.Event]
			switch kind {
			case "plain":
				p = orchestrator.Plain("p", func(ctx context.Context, e orchestrator.Event) error { return handle(ctx, e.GlobalPosition, 1) })
			case "transactional":
				p = orchestrator.Transactional("p", func(ctx context.Context, _ orchestrator.Tx, e orchestrator.Event) error {
					return handle(ctx, e.GlobalPosition, 1)
				})
			case "plain batch":
				p = orchestrator.PlainBatch("p", func(ctx context.Context, events []orchestrator.Event) error {
					return handle(ctx, events[0].GlobalPosition, len(events))
				})
			default:
				p = orchestrator.Batch("p", func(ctx context.Context, _ orchestrator.Tx, events []orchestrator.Event) error {
					return handle(ctx, events[0].GlobalPosition, len(events))
				})
			}
			cfg := w.Config(w.DB, "set")
			cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 2}}
			r := testworld.Run(t, cfg, p)
			pgtest.Eventually(t, "the first event is parked, and the others are handled", func() bool {
				positions, _ := w.Parked("p")
				return len(positions) == 1 && w.Reached() == 3
			})
			if _, err := ops.RetryParked(t.Context(), w.DB, "p", ops.ParkedSelector{All: true}); err != nil {
				t.Fatal(err)
			}
			pgtest.Eventually(t, "it is handled", func() bool { positions, _ := w.Parked("p"); return len(positions) == 0 })
			r.Stop()

			at := func(position int64, events, attempt int, replay orchestrator.Replay) orchestrator.Delivery {
				return orchestrator.Delivery{
					Projection: "p", Assignment: orchestrator.Assignment{ReplicaSet: "set", Generation: 1, TotalPartitions: 1},
					Position: position, Events: events, Attempt: attempt, Replay: replay,
				}
			}
			want := []orchestrator.Delivery{at(1, 1, 1, ""), at(1, 1, 2, ""), at(2, 1, 1, ""), at(3, 1, 1, ""), at(1, 1, 3, orchestrator.ReplayParked)}
			if batches {
				want = append([]orchestrator.Delivery{at(1, 3, 1, "")}, want...)
				want = append(want[:3], at(2, 2, 1, ""), want[5])
			}
			if diff := cmp.Diff(want, seen.told); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for i, ctx := range seen.ctxs {
				if d, _ := orchestrator.DeliveryFrom(ctx); d != seen.told[i] {
					t.Errorf("the context of call %d says %+v by now, and said %+v", i+1, d, seen.told[i])
				}
			}
		})
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	key := orchestrator.Delivery{Projection: "search", Position: 4711, Assignment: orchestrator.Assignment{Generation: 3, Partition: 2}, Attempt: 7, Replay: orchestrator.ReplayParked}.IdempotencyKey()
	if key != "search/4711" {
		t.Errorf("it is %q", key)
	}
	ctx := orchestrator.ContextWithDelivery(t.Context(), orchestrator.Delivery{Position: 5})
	if d, ok := orchestrator.DeliveryFrom(ctx); !ok || d.Position != 5 {
		t.Errorf("a context for a test says %+v, %t", d, ok)
	}
}
