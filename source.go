package orchestrator

import "context"

// A Record is an event as an EventStore hands it out.
type Record[E any] struct {
	// Position in the event stream: positive, unique, ascending.
	Position int64
	// AggregateID decides the partition. Events that have the same are handled
	// in order.
	AggregateID string
	Event       E
}

// An EventStore reads one event stream. Table is one for any events table in
// PostgreSQL; write your own for anything else.
type EventStore[E any] interface {
	// Read returns the events whose positions are above after, in ascending
	// order, at most limit of them, and fewer only when there are no more for
	// now.
	//
	// It may return an event only when every lower position is final: no event
	// may become visible later below one that was returned. Where positions
	// come from a sequence and transactions commit in any order, an event that
	// follows a gap must be held back until nobody can fill the gap any more;
	// otherwise events are lost.
	//
	// Errors are retried with backoff, except those that retrying can't heal
	// (SQLSTATE classes 22, 3D, 3F and 42: something named doesn't exist, or
	// may not be read). Read is called from several goroutines.
	Read(ctx context.Context, after int64, limit int) ([]Record[E], error)
}

// A Checker is an EventStore that can tell before the start whether it can
// work. Run calls Check and returns its error, unless that is one that passes.
type Checker interface {
	Check(ctx context.Context) error
}
