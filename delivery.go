package orchestrator

import (
	"context"
	"strconv"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// What a handler is told of the call that it is in: a Delivery, from its context.

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

// A Delivery is one call of a handler: with which event, under what, and the how manieth
// it is.
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

// A callContext is the context of one call of a handler. It never changes, since a handler
// may keep it. They are allocated many at once: to allocate one for each event would cost
// as much as all else that the library does for it (BenchmarkHandle).
type callContext struct {
	context.Context // the spell
	to              *addressee
	position        int64
	events, attempt int32
	parked          bool
}

// An addressee is what all deliveries of a lane have in common.
type addressee struct {
	projection string
	assignment Assignment
}

func (c *callContext) Value(key any) any {
	if key == (deliveryKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func (c *callContext) delivery() Delivery {
	d := Delivery{Projection: c.to.projection, Assignment: c.to.assignment, Position: c.position, Events: int(c.events), Attempt: int(c.attempt)}
	if c.parked {
		d.Replay = ReplayParked
	}
	return d
}

// callContexts makes the contexts of one lane's calls.
type callContexts struct {
	to   *addressee
	next []callContext // of which none was given out
}

// callsAtOnce is how many are allocated at once. A handler that keeps one keeps them all.
const callsAtOnce = 64

// of returns the context of a call, in a spell, that hands n events over, from position on.
func (c *callContexts) of(spell context.Context, a *protocol.LaneAction, position int64, n int) *callContext {
	if len(c.next) == 0 {
		c.next = make([]callContext, callsAtOnce)
	}
	made := &c.next[0]
	c.next = c.next[1:]
	*made = callContext{spell, c.to, position, int32(n), int32(a.Attempts) + 1, a.Parked}
	return made
}
