package ops_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// lastOrder returns the latest order to park an event, from History.
func (w *world) lastOrder(set orchestrator.ReplicaSetName) ops.ParkOrder {
	w.T.Helper()
	records, err := ops.History(w.T.Context(), w.DB, set, 100)
	if err != nil {
		w.T.Fatal(err)
	}
	var last ops.ParkOrder
	for _, r := range records {
		for _, o := range r.ParkOrders {
			if o.Number > last.Number {
				last = o
			}
		}
	}
	return last
}

// failsAt waits until the status shows that a projection fails at an event.
func (w *world) failsAt(set orchestrator.ReplicaSetName, position int64) {
	w.T.Helper()
	pgtest.Eventually(w.T, fmt.Sprintf("%s fails at event %d", set, position), func() bool {
		s, _ := ops.Status(w.T.Context(), w.DB, set) // the set may not exist yet
		return slices.ContainsFunc(s.Waits, func(wait ops.Wait) bool { return wait.Kind == ops.WaitRetry && wait.Position == position })
	})
}

// For each kind of projection, and each policy that never parks, an order parks the event that
// blocks a partition, and the later events of its aggregate. All others go on. When the handler
// works again and the parked events are retried, each event has had its effect once.
func TestPark(t *testing.T) {
	t.Parallel()
	for _, policy := range []orchestrator.FailurePolicy{orchestrator.RetryForever, orchestrator.StopOnFailure} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			ctx := t.Context()
			w.Append(200)
			events := w.OfAggregate("a3")
			poison, want := events[2], events[2:]
			var mended atomic.Bool
			hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.GlobalPosition == poison })
			kinds := map[string]func(testworld.Effects) orchestrator.Projection[orchestrator.Event]{
				"plain":         func(e testworld.Effects) orchestrator.Projection[orchestrator.Event] { return e.Plain(w.DB) },
				"transactional": func(e testworld.Effects) orchestrator.Projection[orchestrator.Event] { return e.Transactional() },
				"batched":       func(e testworld.Effects) orchestrator.Projection[orchestrator.Event] { return e.Batched() },
			}
			for name, kind := range kinds {
				cfg := w.Config(w.DB, orchestrator.ReplicaSetName("of "+name))
				cfg.LeaseOnly = true // or the plain projection may repeat events on a loaded machine
				cfg.Failures = map[string]orchestrator.FailureRule{name: {Policy: policy, Attempts: 1}}
				p := kind(testworld.Effects{Projection: name, Hook: hook})
				r := testworld.Run(t, cfg, p)
				if policy == orchestrator.StopOnFailure {
					if err := r.Failed(); !errors.As(err, new(*orchestrator.HandlerError)) {
						t.Fatalf("%s ends with %v", name, err)
					}
				} else {
					w.failsAt(cfg.ReplicaSet, poison)
				}
				order, err := ops.Park(ctx, w.DB, cfg.ReplicaSet, name, poison, "ann")
				if err != nil {
					t.Fatal(err)
				}
				if policy == orchestrator.StopOnFailure {
					s, err := ops.Status(ctx, w.DB, cfg.ReplicaSet)
					if err != nil || len(s.ParkOrders) != 1 || s.ParkOrders[0].State != ops.ParkWaiting || s.ParkOrders[0].By != "ann" {
						t.Errorf("the status shows the orders %+v, %v", s.ParkOrders, err)
					}
					r = testworld.Run(t, cfg, p)
				}
				if err := ops.AwaitPark(ctx, w.DB, order); err != nil {
					t.Fatal(err)
				}
				pgtest.Eventually(t, "all others are handled by "+name, func() bool { return w.Handled(name) == int64(200-len(want)) })
				var all []ops.ParkedEvent
				pgtest.Eventually(t, "the later ones of the aggregate are parked by "+name, func() bool {
					got, rows := w.Parked(name)
					all = rows
					return slices.Equal(got, want)
				})
				if !strings.HasPrefix(all[0].Error, "parked by order") || all[1].Error != "" {
					t.Errorf("%s has parked %+v", name, all)
				}
				if o := w.lastOrder(cfg.ReplicaSet); o.Number != order || o.State != ops.ParkDone || o.By != "ann" || o.Position != poison || o.EndedAt == nil {
					t.Errorf("the history of %s tells of %+v", name, o)
				}
				if _, err := ops.Park(ctx, w.DB, cfg.ReplicaSet, name, poison, "ann"); !errors.Is(err, ops.ErrRejected) {
					t.Errorf("to park what is parked: %v", err)
				}
				mended.Store(true)
				w.Retry(name, ops.ParkedSelector{All: true})
				w.CaughtUp(name)
				pgtest.Eventually(t, "nothing is parked by "+name, func() bool { got, _ := w.Parked(name); return len(got) == 0 })
				r.Stop()
				w.CheckEffects(name)
				mended.Store(false)
			}
		})
	}
}

// An order for another event than the one that fails parks nothing, whether the projection is
// past that event, has not reached it, or never will. The error names projection and position.
func TestParkRejectsAnotherEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.Append(20)
	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.GlobalPosition == 12 })
	cfg := w.Config(w.DB, "set")
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: hook}.Plain(w.DB))
	w.failsAt("set", 12)
	for _, position := range []int64{11, 13} {
		order, err := ops.Park(ctx, w.DB, "set", "p", position, "ann")
		if err == nil {
			err = ops.AwaitPark(ctx, w.DB, order)
		}
		if !errors.Is(err, ops.ErrRejected) || !strings.Contains(err.Error(), `"p"`) || !strings.Contains(err.Error(), fmt.Sprint(position)) {
			t.Errorf("to park %d: %v", position, err)
		}
	}
	if o := w.lastOrder("set"); o.State != ops.ParkLapsed || o.Position != 13 || !strings.Contains(o.Reason, "is at position 12") {
		t.Errorf("the history tells of %+v", o)
	}
	mended.Store(true)
	w.CaughtUp("p")
	for what, order := range map[string]func() (int64, error){
		"what is handled":   func() (int64, error) { return ops.Park(ctx, w.DB, "set", "p", 12, "ann") },
		"position 0":        func() (int64, error) { return ops.Park(ctx, w.DB, "set", "p", 0, "ann") },
		"no projection":     func() (int64, error) { return ops.Park(ctx, w.DB, "set", "nobody", 21, "ann") },
		"no replica set":    func() (int64, error) { return ops.Park(ctx, w.DB, "nothing", "p", 21, "ann") },
		"without by":        func() (int64, error) { return ops.Park(ctx, w.DB, "set", "p", 21, "") },
		"beyond the stream": func() (int64, error) { w.stream("set", 20); return ops.Park(ctx, w.DB, "set", "p", 21, "ann") },
	} {
		if _, err := order(); !errors.Is(err, ops.ErrRejected) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := ops.AwaitPark(ctx, w.DB, 1<<40); !errors.Is(err, ops.ErrRejected) {
		t.Errorf("an order that there is not: %v", err)
	}
	r.Stop()
	if got, _ := w.Parked("p"); len(got) != 0 {
		t.Errorf("%v are parked", got)
	}
	w.CheckEffects("p")
}

// stream waits until a worker has reported the end of the stream.
func (w *world) stream(set orchestrator.ReplicaSetName, head int64) {
	pgtest.Eventually(w.T, "the head is reported", func() bool { s, _ := w.Stand(set); return s.Head == head })
}

// An event at which a handler hangs is parked when the call returns with an error. If the call
// succeeds, the order lapses, also if no lane reads it any more.
func TestParkWhileAHandlerHangs(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{true, false} {
		t.Run(fmt.Sprintf("fails=%t", fails), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			ctx := t.Context()
			w.Append(20)
			hangs, hold := make(chan struct{}), make(chan struct{})
			var called atomic.Bool
			hook := func(_ context.Context, e orchestrator.Event) error {
				if e.GlobalPosition == 12 && called.CompareAndSwap(false, true) {
					close(hangs)
					<-hold
				}
				if e.GlobalPosition == 12 && fails {
					return errors.New("it is broken")
				}
				return nil
			}
			r := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "p", Hook: hook}.Transactional())
			<-hangs
			order, err := ops.Park(ctx, w.DB, "set", "p", 12, "ann")
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ops.Park(ctx, w.DB, "set", "p", 12, "bob"); again != order || err != nil {
				t.Errorf("the same order again: %d, %v, and %d before", again, err, order)
			}
			if o := w.lastOrder("set"); o.State != ops.ParkWaiting {
				t.Errorf("while the handler hangs, the history tells of %+v", o)
			}
			close(hold)
			switch err := ops.AwaitPark(ctx, w.DB, order); {
			case fails && err != nil:
				t.Error(err)
			case !fails && (!errors.Is(err, ops.ErrRejected) || !strings.Contains(err.Error(), "is past this event")):
				t.Errorf("of an event that was handled: %v", err)
			}
			pgtest.Eventually(t, "the rest is handled", func() bool {
				got, _ := w.Parked("p")
				return w.Handled("p")+int64(len(got)) == 20
			})
			r.Stop()
		})
	}
}

// An event that can't be read is parked by order like one at which the handler fails. An order
// that is given while the projection is paused waits until it is resumed.
func TestParkWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.Append(20)
	w.Exec(`ALTER TABLE events ALTER COLUMN event_type DROP NOT NULL`)
	w.Exec(`UPDATE events SET event_type = NULL WHERE global_position = 12`)
	r := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "p"}.Batched())
	w.failsAt("set", 12)
	w.Ordered("set")(ops.Pause(ctx, w.DB, "set", "p"))
	order, err := ops.Park(ctx, w.DB, "set", "p", 12, "ann")
	if err != nil {
		t.Fatal(err)
	}
	w.Ordered("set")(ops.Resume(ctx, w.DB, "set", "p"))
	if err := ops.AwaitPark(ctx, w.DB, order); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the rest is handled", func() bool {
		got, all := w.Parked("p")
		return w.Handled("p")+int64(len(got)) == 20 && got[0] == 12 && all[0].AggregateID != ""
	})
	r.Stop()
}

// The worker that has the partition by then carries out the order.
func TestParkAcrossRebalances(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.Append(100)
	poison := w.OfAggregate("a5")[1]
	hook := testworld.Failing(new(atomic.Bool), func(e orchestrator.Event) bool { return e.GlobalPosition == poison })
	cfg := w.Config(w.DB, "set")
	p := testworld.Effects{Projection: "p", Hook: hook}.Transactional()
	first := testworld.Run(t, cfg, p)
	w.failsAt("set", poison)
	first.Stop()
	order, err := ops.Park(ctx, w.DB, "set", "p", poison, "ann")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		testworld.Run(t, cfg, p)
	}
	w.Active("set", 2)
	if err := ops.AwaitPark(ctx, w.DB, order); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "all others are handled", func() bool {
		got, _ := w.Parked("p")
		return w.Handled("p")+int64(len(got)) == 100
	})
}
