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

// What a handler knows of its call, a Delivery in its context; and Config.Around, which
// wraps each call. Around must call the handler, once, and wait for it: a call in which it
// does not has failed.

// Assignment is the partition and the generation that a handler is called for.
type Assignment struct {
	// ReplicaSet is the name of the replica set.
	ReplicaSet ReplicaSetName
	// Generation only grows within a replica set. It is a fencing token: an outside
	// system that remembers the highest one it has seen and refuses lower ones refuses
	// everything that a superseded worker still sends.
	Generation int64
	// Partition is the number of the partition, from 0 to TotalPartitions-1.
	Partition int
	// TotalPartitions is the number of partitions of the generation.
	TotalPartitions int
}

// Delivery describes one call of a handler.
type Delivery struct {
	// Projection is the name of the projection.
	Projection string
	Assignment
	// Position is the position of the event, or of the first event of a batch.
	Position int64
	// Events is the number of events of the call: 1, except for batches.
	Events int
	// Attempt is 1 for the first call with the event, and 1 more after each failure. An
	// interruption is not a failure (see FailureRule). Each worker counts for itself, from 1
	// again in each generation; the count of a parked event is stored with it. In a batch, a
	// failure counts only when the event is alone.
	Attempt int
	// Replay is why the event is a replay. Default: NoReplay, it is none.
	Replay Replay
}

// Replay is why a handler is called with an event that its projection, or the live version of
// it, has already passed. More values may be added. Events after an ops.Rewind are not marked
// as replays: the library does not record which of them were handled before.
type Replay string

const (
	// NoReplay means that the projection has not passed the event, as far as the library
	// knows.
	NoReplay Replay = ""
	// ReplayParked means that the event was parked, and is retried: see ops.RetryParked.
	ReplayParked Replay = "parked"
	// ReplayRebuild means that the projection is a rebuild, and the live version has handled
	// the event: see WithRebuildOf. Update the read model, and leave out other effects, such
	// as mail: the live version has had them.
	ReplayRebuild Replay = "rebuild"
)

// IdempotencyKey returns a text that identifies the event at Position for the projection,
// such as "search/4711". It is the same in every attempt, worker, generation and partition,
// so an outside system that remembers the keys it has seen recognizes an event that is
// handled again. For the other events of a batch, set Position to theirs first.
func (d Delivery) IdempotencyKey() string {
	return d.Projection + "/" + strconv.FormatInt(d.Position, 10)
}

// DeliveryFrom returns the Delivery of the handler that ctx was passed to. It returns false
// outside of handlers.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	switch d := ctx.Value(deliveryKey{}).(type) {
	case *callContext:
		return d.delivery(), true
	case Delivery:
		return d, true
	}
	return Delivery{}, false
}

// ContextWithDelivery returns a context for which DeliveryFrom returns d. It is for tests of
// handlers.
func ContextWithDelivery(ctx context.Context, d Delivery) context.Context {
	return context.WithValue(ctx, deliveryKey{}, d)
}

type deliveryKey struct{}

// EventsFrom returns the events of a call of Config.Around, from the context of that call:
// one, or those of a batch. They are shared, and their bytes must not be modified. It
// returns nil for any other context, after Around has returned, and if E is not Config's.
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

// A handedOver is the context of one call of Config.Around, and has its events. It is
// emptied when Around has returned: the lane uses the slice again for the next call, and a
// context that is kept must not keep whole pages in memory.
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
// may keep it. It is small, and many are allocated at once: allocating one for each event
// would be a good part of the library's cost per event (BenchmarkHandle).
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
	next []callContext // not used yet
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

// A nextCall is next in one call of Config.Around: it calls the handler, once and while
// Around runs. Any other use of it is a failure of the call.
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

// next is passed to Config.Around.
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

// end returns what has become of the call, once Around has returned err. It waits for the
// handler: nothing else may be done with its events before it has returned (S1).
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

// around calls Config.Around, which calls the handler. A panic of the handler becomes an
// error for it.
func (l *lane[E]) around(ctx *callContext, events []*Record[E]) (err error) {
	n := &nextCall{given: ctx, handle: func(ctx context.Context) error {
		return l.settled(safely("the handler", func() error { return l.handle(ctx, events) }))
	}}
	h := &handedOver[E]{callContext: ctx, events: events}
	defer h.over() // when the handler has returned
	defer func() { err = n.end(err) }()
	return l.worker.cfg.Around(h, ctx.delivery(), n.next)
}
