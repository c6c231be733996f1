package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// What a handler is told of the call that it is in: a Delivery, from its context. And what
// may stand around each call: Config.Around, which can neither leave the handler out
// unnoticed, nor call it twice, nor leave it behind.

// An Assignment says under what a handler runs.
type Assignment struct {
	ReplicaSet ReplicaSetName
	// Generation only ever grows within a replica set. An outside system that
	// remembers the highest it has seen, and refuses smaller ones, refuses
	// whatever a superseded worker still sends (a fencing token).
	Generation int64
	// Partition counts from 0 to TotalPartitions-1.
	Partition       int
	TotalPartitions int
}

// A Delivery is one call of a handler: for which projection and which event, under what
// assignment, and which attempt it is.
type Delivery struct {
	// Projection is the name of the projection.
	Projection string
	Assignment
	// Position is the event's in the event store. Where the call has several events, it
	// is the first one's.
	Position int64
	// Events is how many events the call has: 1, for all but batches.
	Events int
	// Attempt is 1 when the event is handled for the first time, and 1 more each time
	// that the handler has failed at it. An interruption is no failure: the handler's
	// context was cancelled by the library, or its connection was lost (see FailureRule).
	// It is the worker's own count, and begins anew with each generation; that of a
	// parked event is kept with it. Of a batch it counts only once the event stands alone.
	Attempt int
	// Replay says whether the projection has been past the event before.
	Replay Replay
}

// A Replay says why a handler is called with an event that its projection has been past
// already. More reasons may come. Nothing is remembered of what was handled before
// ops.Rewind: such events come as new ones.
type Replay string

const (
	NoReplay     Replay = ""       // it has not, as far as is known
	ReplayParked Replay = "parked" // the event was parked, and somebody has asked for it: see ops.RetryParked
	// ReplayRebuild: the projection is built anew beside the live one, which has handled the
	// event: see WithRebuildOf. Write the read model, and leave out what goes beyond it,
	// such as mail, which the live one has sent.
	ReplayRebuild Replay = "rebuild"
)

// IdempotencyKey returns a text that is the same for each delivery of the event at Position
// to the projection, whatever the attempt, the worker, the generation and the partition,
// and the same for no other event: "search/4711". An outside system that remembers the
// keys it has seen recognises an event that is handled again. For the others of a batch,
// set Position to theirs first.
func (d Delivery) IdempotencyKey() string {
	return d.Projection + "/" + strconv.FormatInt(d.Position, 10)
}

// DeliveryFrom returns the call of a handler that ctx was made for, and false outside of
// handlers.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	switch d := ctx.Value(deliveryKey{}).(type) {
	case *callContext:
		return d.delivery(), true
	case Delivery:
		return d, true
	}
	return Delivery{}, false
}

// ContextWithDelivery returns a context from which DeliveryFrom returns d, for tests of
// handlers.
func ContextWithDelivery(ctx context.Context, d Delivery) context.Context {
	return context.WithValue(ctx, deliveryKey{}, d)
}

type deliveryKey struct{}

// EventsFrom returns the events of the call that Config.Around is in, from its context:
// one, but for batches. They are what the event store has read, and shared: their bytes
// must not be modified. It returns nil elsewhere, also when that call of Around has
// returned, and where Config has another E.
func EventsFrom[E any](ctx context.Context) []Record[E] {
	h, _ := ctx.Value(eventsKey[E]{}).(*handedOver[E])
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var events []Record[E]
	for _, e := range h.events {
		events = append(events, *e)
	}
	return events
}

type eventsKey[E any] struct{}

// A handedOver is the context of one call of Config.Around, which knows the events. The
// lane uses the slice again for the next call, and who keeps the context must not keep
// whole pages: so it is empty when Around has returned.
type handedOver[E any] struct {
	*callContext
	mu     sync.Mutex
	events []*Record[E]
}

func (h *handedOver[E]) Value(key any) any {
	if key == (eventsKey[E]{}) {
		return h
	}
	return h.callContext.Value(key)
}

func (h *handedOver[E]) over() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = nil
}

// A callContext is the context of one call of a handler. It never changes, since a handler
// may keep it. They are allocated many at once, and are small: for each event that is a
// good part of what the library does beside the handler (BenchmarkHandle).
type callContext struct {
	of              *laneContext
	position        int64
	events, attempt int32
	parked, rebuild bool
}

// A laneContext is what all calls of a lane have in common in one handler scope.
type laneContext struct {
	*handlerScope
	projection string
	assignment Assignment
}

func (c *callContext) Deadline() (time.Time, bool) { return c.of.Deadline() }
func (c *callContext) Done() <-chan struct{}       { return c.of.Done() }
func (c *callContext) Err() error                  { return c.of.Err() }

func (c *callContext) Value(key any) any {
	if key == (deliveryKey{}) {
		return c
	}
	return c.of.Value(key)
}

func (c *callContext) delivery() Delivery {
	d := Delivery{Projection: c.of.projection, Assignment: c.of.assignment, Position: c.position, Events: int(c.events), Attempt: int(c.attempt)}
	switch {
	case c.rebuild:
		d.Replay = ReplayRebuild
	case c.parked:
		d.Replay = ReplayParked
	}
	return d
}

// callContexts makes the contexts of one lane's calls.
type callContexts struct {
	of   *laneContext
	next []callContext // of which none was given out
}

// callsAtOnce is how many are allocated at once. A handler that keeps one keeps them all.
const callsAtOnce = 64

// begin is called with the handler scope in which the next calls are.
func (c *callContexts) begin(s *handlerScope, projection string, a Assignment) {
	c.of = &laneContext{s, projection, a}
}

// call returns the context of a call that hands n events over, from position on.
func (c *callContexts) call(a *protocol.LaneAction, position int64, n int) *callContext {
	if len(c.next) == 0 {
		c.next = make([]callContext, callsAtOnce)
	}
	made := &c.next[0]
	c.next = c.next[1:]
	*made = callContext{c.of, position, int32(n), int32(a.Attempts) + 1, a.Parked, a.Replay}
	return made
}

// A nextCall is what one call of Config.Around is given as next: it calls the handler, once
// and while Around runs. Whatever else Around does with it is a fault of the delivery.
type nextCall struct {
	given  *callContext
	handle func(ctx context.Context) error

	mu    sync.Mutex
	begun chan struct{} // closed when the handler has returned; nil: it was not called
	over  bool          // Around has returned
	fault error
}

var (
	errNextNever   = errors.New("Config.Around returned nil without calling next, so the handler was not called: call next, or return an error")
	errNextTwice   = errors.New("Config.Around called next twice: the handler was called once")
	errNextLate    = errors.New("Config.Around called next after it had returned: the handler was not called")
	errNextLeft    = errors.New("Config.Around returned before next did: it must wait for next")
	errNextContext = errors.New("Config.Around called next with a context that is not derived from its own: the handler was not called")
)

// next is for Config.Around.
func (n *nextCall) next(ctx context.Context) error {
	own := ctx != nil && ctx.Value(deliveryKey{}) == any(n.given)
	if err := n.begin(own); err != nil {
		return err
	}
	defer close(n.begun)
	return n.handle(ctx)
}

func (n *nextCall) begin(own bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.over:
		return errNextLate
	case n.begun != nil:
		n.fault = errNextTwice
	case !own:
		n.fault = errNextContext
	default:
		n.begun = make(chan struct{})
		return nil
	}
	return n.fault
}

// end takes what Around has returned. It waits for the handler: nothing else may be done
// with its events before it has returned (S1).
func (n *nextCall) end(err error) error {
	n.mu.Lock()
	begun, fault := n.begun, n.fault
	n.over = true
	n.mu.Unlock()
	if begun != nil {
		select {
		case <-begun:
		default:
			fault = cmp.Or(fault, errNextLeft)
			<-begun
		}
	}
	switch {
	case fault != nil && err != nil:
		return fmt.Errorf("%w (it returned: %w)", fault, own("Config.Around", err))
	case fault != nil:
		return fault
	case begun == nil && err == nil:
		return errNextNever
	}
	return err
}

// around calls Config.Around, which calls the handler. A panic of the handler's is an error
// to it.
func (l *lane[E]) around(ctx *callContext, events []*Record[E]) (err error) {
	n := &nextCall{given: ctx, handle: func(ctx context.Context) error {
		return l.settled(safely("the handler", func() error { return l.handle(ctx, events) }))
	}}
	h := &handedOver[E]{callContext: ctx, events: events}
	defer h.over() // when the handler has returned
	defer func() { err = n.end(err) }()
	return l.worker.cfg.Around(h, ctx.delivery(), n.next)
}
