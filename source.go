package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The interface between the library and an event store: a Table, or one of the program's
// own, which can do all that Table can.

// Record is an event as an EventStore returns it.
type Record[E any] struct {
	// Position is the event's position in the stream: positive, unique, ascending.
	Position int64
	// AggregateID decides the partition. Events with the same one are handled in order.
	AggregateID string
	// AggregateType, BoundedContext and EventType are what the scope of a projection
	// selects by. They may be empty if no projection has a scope.
	AggregateType, BoundedContext, EventType string
	// Event is what handlers are called with.
	Event E
	// Err is why the event could not be read or decoded; nil: it could. Position and
	// AggregateID are required nevertheless. The handler is not called: the event has failed
	// for its projection (see Config.OnFailure), and is read again before the next attempt.
	// Other partitions and projections continue.
	Err error
	// Size is about how many bytes the event takes in memory, for
	// Config.ReadAheadBytes. 0: it is estimated.
	Size int
	// Time is the time of the event, from which the lag in seconds is computed. Zero: not
	// known.
	Time time.Time
}

// at returns the time of the event; zero: not known.
func (r *Record[E]) at() (at time.Time) {
	if r != nil {
		at = r.Time
	}
	return at
}

// EventStore reads one event stream. Table reads an events table in PostgreSQL whose
// positions come from a sequence (or identity) in the inserting transaction; write your own
// for anything else. Records that it has returned are shared by all projections of the
// process: do not modify them afterwards. A method that panics, or ends its goroutine, has
// failed and is called again.
//
// An EventStore may also be a Checker, a GapWaiter and a HeadStore; and a FinalStore and a
// TimeStore, for projections that start elsewhere than at the first event.
type EventStore[E any] interface {
	// Read returns the events whose positions are above r.After, in ascending order.
	//
	// It must return an event only if no event can become visible later at a lower
	// position; the same holds for Page.Through. If positions come from a sequence,
	// transactions commit in any order, so an event behind a gap must be held back until
	// no transaction can fill the gap any more. Otherwise events are lost.
	//
	// Errors are retried with backoff, except those that no retry can fix (SQLSTATE
	// classes 22, 3D, 3F and 42: a name does not exist, or may not be read), which Run
	// returns. Read is called from several goroutines. One call serves all projections
	// and partitions of the process whose positions are close together, in all replica
	// sets with the same EventStore.
	Read(ctx context.Context, r ReadRequest) (Page[E], error)
}

// ReadRequest is what an EventStore should read.
type ReadRequest struct {
	// After is the position above which events are read; at least 0.
	After int64
	// Limit is the largest number of events; at least 1.
	Limit int
	// Scope selects events. A store may ignore it, since events out of the scope are
	// left out afterwards. Records must have set what the scope selects by
	// (AggregateType, BoundedContext, EventType): one that has not is an error, and no
	// projection moves past it.
	Scope Scope
	// MaxBytes is about how many bytes the page should take in memory; 0: no limit. A
	// store may ignore it. A single event that is larger is still read.
	MaxBytes int
}

// Page is what an EventStore has read.
type Page[E any] struct {
	// Records are the events, in ascending order of positions.
	Records []Record[E]
	// Through is the position up to which the stream was read. It may be beyond the last
	// record, if what follows is out of scope or was deleted. 0: the position of the last
	// record.
	Through int64
	// More is true if there may be more events now: then the next Read follows at once. A page
	// of ReadRequest.Limit records implies it. If it is false, the stream ends at Through for
	// now.
	More bool
}

// Scope selects events: those of these types, of aggregates of these types, in these bounded
// contexts. An empty list includes all.
//
// A new version of a program may change a scope. The new scope applies to events that the
// projection has not reached: to handle what an earlier, narrower one left out, use
// ops.Rewind. A parked event outside of the new scope can't be retried; it holds back the
// events of its aggregate until it is discarded.
type Scope struct {
	// AggregateTypes and BoundedContexts are compared with the Record's.
	AggregateTypes, BoundedContexts []string
	// EventTypes are compared with Record.EventType.
	EventTypes []string
}

// Includes reports whether an event with these properties is within the scope.
func (s Scope) Includes(aggregateType, boundedContext, eventType string) bool {
	return (len(s.AggregateTypes) == 0 || slices.Contains(s.AggregateTypes, aggregateType)) &&
		(len(s.BoundedContexts) == 0 || slices.Contains(s.BoundedContexts, boundedContext)) &&
		(len(s.EventTypes) == 0 || slices.Contains(s.EventTypes, eventType))
}

// equal reports whether two scopes say the same, in the same order.
func (s Scope) equal(o Scope) bool {
	return slices.Equal(s.AggregateTypes, o.AggregateTypes) && slices.Equal(s.BoundedContexts, o.BoundedContexts) && slices.Equal(s.EventTypes, o.EventTypes)
}

// all reports whether the scope leaves nothing out.
func (s Scope) all() bool {
	return len(s.AggregateTypes) == 0 && len(s.BoundedContexts) == 0 && len(s.EventTypes) == 0
}

// problem returns what is wrong with a name in the scope: no event can have it, and with a
// scope that silently matches nothing the projection would skip everything.
func (s Scope) problem() string {
	for _, part := range []struct {
		method string
		names  []string
	}{{"AggregateTypes", s.AggregateTypes}, {"BoundedContexts", s.BoundedContexts}, {"EventTypes", s.EventTypes}} {
		for i, name := range part.names {
			switch {
			case name == "": // may be one
			case !utf8.ValidString(name):
				return fmt.Sprintf("%s()[%d] %q is not valid UTF-8, so no event can have it; remove it", part.method, i, name)
			case strings.ContainsRune(name, 0):
				return fmt.Sprintf("%s()[%d] %q contains NUL, so no event can have it; remove it", part.method, i, name)
			}
		}
	}
	return ""
}

// leavesOut reports whether an event is out of the scope. If an empty text is not a value,
// an event without what the scope selects by is an error: to leave it out could lose it.
func leavesOut[E any](s Scope, e *Record[E], emptyIsValue bool) (bool, error) {
	var unsaid string
	for _, part := range []struct {
		field string
		value string
		names []string
	}{
		{"AggregateType", e.AggregateType, s.AggregateTypes},
		{"BoundedContext", e.BoundedContext, s.BoundedContexts},
		{"EventType", e.EventType, s.EventTypes},
	} {
		switch {
		case len(part.names) == 0 || slices.Contains(part.names, part.value):
		case part.value != "" || emptyIsValue:
			return true, nil
		default:
			unsaid = part.field
		}
	}
	if unsaid != "" {
		return false, fmt.Errorf("the event at position %d has no Record.%s, but the scope of a projection needs it: set it", e.Position, unsaid)
	}
	return false, nil
}

// scopeSaid asks a projection for its scope.
func scopeSaid[E any](p Projection[E]) (s Scope) {
	if p, ok := p.(ScopedProjection[E]); ok {
		s.AggregateTypes, s.BoundedContexts = slices.Clone(p.AggregateTypes()), slices.Clone(p.BoundedContexts())
	}
	if p, ok := p.(EventTypedProjection[E]); ok {
		s.EventTypes = slices.Clone(p.EventTypes())
	}
	return s
}

// scopeOf returns the scope of a projection, or why the event store can't read it.
func scopeOf[E any](events EventStore[E], p Projection[E], name string) (Scope, error) {
	scope, err := apart("AggregateTypes, BoundedContexts or EventTypes", func() (Scope, error) { return scopeSaid(p), nil })
	if err != nil {
		return Scope{}, fmt.Errorf("%w: AggregateTypes, BoundedContexts or EventTypes of projection %q failed: %w", ErrInvalidConfig, name, err)
	}
	if scope.all() {
		return Scope{}, nil
	}
	if problem := scope.problem(); problem != "" {
		return scope, fmt.Errorf("%w: projection %q is scoped: %s", ErrInvalidConfig, name, problem)
	}
	if table, ok := events.(*Table[E]); ok {
		if err := table.scopeProblem(fmt.Sprintf("projection %q", name), scope); err != nil {
			return scope, err
		}
	}
	return scope, nil
}

// Checker is an EventStore that can check at the start whether it can work.
type Checker interface {
	// Check returns why the store can't be read; nil: it can. Run calls it before the
	// worker joins, and returns its error, or calls it again if that is temporary.
	Check(ctx context.Context) error
}

// GapWaiter is an EventStore that reports the gap that its readers wait at.
type GapWaiter interface {
	// Waiting returns the gap, and false if there is none. It is called after each read,
	// and must return at once.
	Waiting() (Gap, bool)
}

// HeadStore is an EventStore that knows where its stream ends. Lag and CatchUp need it.
type HeadStore interface {
	// Head returns the highest position of a committed event; 0: there is none.
	Head(ctx context.Context) (int64, error)
}
