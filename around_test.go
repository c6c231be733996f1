package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

type around = func(ctx context.Context, d orchestrator.Delivery, next func(context.Context) error) error

// What is around the handlers sees each call of each kind, with its delivery, hands its
// context on, and hears how it went; a panic is an error. A parked event as well.
func TestAround(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"plain", "transactional", "batched", "plain batch"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(3)
			type key struct{}
			var seen deliveries
			var mu sync.Mutex
			var results []string
			var handed [][]int64
			var mended atomic.Bool
			cfg := w.Config(w.DB, "set")
			cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 1}}
			cfg.Around = func(ctx context.Context, d orchestrator.Delivery, next func(context.Context) error) error {
				seen.note(ctx)
				if told, ok := orchestrator.DeliveryFrom(ctx); !ok || told != d {
					t.Errorf("the context says %+v, the argument %+v", told, d)
				}
				var positions []int64
				for _, e := range orchestrator.EventsFrom[orchestrator.Event](ctx) {
					if e.Position != e.Event.GlobalPosition || e.AggregateID != e.Event.AggregateID {
						t.Errorf("the record is %+v", e)
					}
					positions = append(positions, e.Position)
				}
				if others := orchestrator.EventsFrom[string](ctx); others != nil {
					t.Errorf("it has events of another type: %v", others)
				}
				err := next(context.WithValue(ctx, key{}, d.Position))
				var panicked *orchestrator.PanicError
				mu.Lock()
				defer mu.Unlock()
				handed = append(handed, positions)
				results = append(results, fmt.Sprint(d.Position, "+", d.Events, " panic ", errors.As(err, &panicked), " nil ", err == nil))
				return err
			}
			p := w.kindOf(kind, testworld.Effects{Projection: "p", Hook: func(ctx context.Context, e orchestrator.Event) error {
				d, _ := orchestrator.DeliveryFrom(ctx)
				if ctx.Value(key{}) != d.Position {
					t.Errorf("the handler is not given the context, but %v", ctx.Value(key{}))
				}
				if e.GlobalPosition == 1 && !mended.Load() {
					panic("boom")
				}
				return nil
			}})
			r := testworld.Run(t, cfg, p)
			pgtest.Eventually(t, "the first event is parked, and the others are handled", func() bool {
				positions, _ := w.Parked("p")
				return len(positions) == 1 && w.Reached() == 3
			})
			mended.Store(true)
			if _, err := ops.RetryParked(t.Context(), w.DB, "p", ops.ParkedSelector{All: true}); err != nil {
				t.Fatal(err)
			}
			w.CaughtUp("p")
			r.Stop()
			events := "[[1] [2] [3] [1]]"
			want := []string{"1+1 panic true nil false", "2+1 panic false nil true", "3+1 panic false nil true", "1+1 panic false nil true"}
			if strings.Contains(kind, "batch") {
				events = "[[1 2 3] [1] [2 3] [1]]"
				want = []string{"1+3 panic true nil false", "1+1 panic true nil false", "2+2 panic false nil true", "1+1 panic false nil true"}
			}
			if got := strings.Join(results, "; "); got != strings.Join(want, "; ") {
				t.Errorf("it has seen %s; want %s", got, strings.Join(want, "; "))
			}
			if got := fmt.Sprint(handed); got != events {
				t.Errorf("the events of the calls are %s, want %s", got, events)
			}
			for i, ctx := range seen.ctxs {
				if kept := orchestrator.EventsFrom[orchestrator.Event](ctx); kept != nil {
					t.Errorf("call %d is over, and its context has the events %v", i, kept)
				}
			}
			if last := seen.told[len(seen.told)-1]; last.Replay != orchestrator.ReplayParked {
				t.Errorf("the last delivery is %+v", last)
			}
		})
	}
}

// Whatever it does wrong is the failure of the call, with an error that says what; and the
// handler is called once at most, and never left behind.
func TestAroundFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		around around
		calls  int64 // of the handler, for each delivery
		want   string
	}{
		"never calls next": {func(context.Context, orchestrator.Delivery, func(context.Context) error) error { return nil },
			0, "without calling next"},
		"has an error of its own": {func(context.Context, orchestrator.Delivery, func(context.Context) error) error {
			return errors.New("not today")
		},
			0, "not today"},
		"calls next twice": {func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			_ = next(ctx)
			_ = next(ctx)
			return nil
		}, 1, "called next twice"},
		"calls next twice, and has an error of its own": {func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			_ = next(ctx)
			_ = next(ctx)
			return errors.New("not today")
		}, 1, "called next twice: the handler was called once (it returned: not today)"},
		"returns before next has": {func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			begun := make(chan struct{})
			go func() {
				_ = next(context.WithValue(ctx, began{}, begun))
			}()
			<-begun
			return nil
		}, 1, "returned before next did"},
		"panics beside next": {func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			begun := make(chan struct{})
			go func() {
				_ = next(context.WithValue(ctx, began{}, begun))
			}()
			<-begun
			panic("boom")
		}, 1, "boom"},
		"ends its goroutine beside next": {func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			begun := make(chan struct{})
			go func() {
				_ = next(context.WithValue(ctx, began{}, begun))
			}()
			<-begun
			runtime.Goexit()
			return nil
		}, 1, "ended its goroutine"},
		"hands on another context": {func(_ context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			return next(context.Background())
		}, 0, "not derived from its own"},
		"hands on no context": {func(_ context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			return next(nil) //nolint:staticcheck // that is the mistake
		}, 0, "not derived from its own"},
		"returns a hostile error": {func(context.Context, orchestrator.Delivery, func(context.Context) error) error {
			return panicsIn{"Error"}
		}, 0, "whose Error or String method panics"},
		"sets a deadline": {func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
			ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			return next(ctx)
		}, 1, "deadline exceeded"},
	} {
		for _, kind := range []string{"plain", "transactional"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.Append(1)
				var calls, open, deliveries atomic.Int64
				cfg := w.Config(w.DB, "set")
				cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 2}}
				cfg.Around = func(ctx context.Context, d orchestrator.Delivery, next func(context.Context) error) error {
					deliveries.Add(1)
					if n := open.Load(); n != 0 {
						t.Errorf("%d handlers still run", n)
					}
					returned := make(chan struct{})
					defer close(returned)
					return test.around(context.WithValue(ctx, left{}, returned), d, next)
				}
				r := testworld.Run(t, cfg, w.kindOf(kind, testworld.Effects{Projection: "p", Hook: func(ctx context.Context, _ orchestrator.Event) error {
					open.Add(1)
					defer open.Add(-1)
					calls.Add(1)
					if begun, ok := ctx.Value(began{}).(chan struct{}); ok {
						close(begun)
						<-ctx.Value(left{}).(chan struct{}) // it goes on when Around has returned
					}
					if name == "sets a deadline" {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				}}))
				var parked []ops.ParkedEvent
				pgtest.Eventually(t, "the event is parked", func() bool { _, parked = w.Parked("p"); return len(parked) == 1 })
				r.Stop()
				if !strings.Contains(parked[0].Error, test.want) {
					t.Errorf("it is parked for %q, want %q", parked[0].Error, test.want)
				}
				if n := calls.Load(); deliveries.Load() != 2 || n != 2*test.calls {
					t.Errorf("%d deliveries, and the handler was called %d times", deliveries.Load(), n)
				}
				if n := w.Handled("p"); n != 0 && kind == "transactional" {
					t.Errorf("%d effects are committed", n)
				}
			})
		}
	}
}

// began is the key of a channel that the handler closes.
type began struct{}

// left is the key of a channel that is closed when Around has returned.
type left struct{}

// What calls next when Around has returned, is refused.
func TestAroundCallsLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	var calls atomic.Int64
	late := make(chan func() error, 1)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.StopOnFailure
	cfg.Around = func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
		late <- func() error { return next(ctx) }
		return errors.New("not now")
	}
	err := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error { calls.Add(1); return nil }}.Plain(w.DB)).Failed()
	if err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("Run returned %v", err)
	}
	if err := (<-late)(); err == nil || !strings.Contains(err.Error(), "after it had returned") || calls.Load() != 0 {
		t.Errorf("next returned %v, and the handler was called %d times", err, calls.Load())
	}
}
