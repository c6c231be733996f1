package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// What a program may bring in the place of a Table: an event store of its own. All that
// Table can do, it can do: read a part of the stream, bound a page, say how far it has
// seen, tell where the stream ends and what readers wait for.

// A Record is an event as an EventStore hands it out.
type Record[E any] struct {
	// Position in the event stream: positive, unique, ascending.
	Position int64
	// AggregateID decides the partition. Events that have the same are handled
	// in order.
	AggregateID string
	// AggregateType, BoundedContext and EventType are what the scope of a projection is
	// about. They need not be set where no projection has one.
	AggregateType, BoundedContext, EventType string
	Event                                    E
	// Err says that the event could not be read, and why: it can't be decoded, say.
	// Its position and aggregate id are needed all the same. Projections are not
	// called with it; it is a failure of that event, which is read again before the
	// next attempt (Config.OnFailure says what follows), and holds up no other
	// projection or partition.
	Err error
	// Size is about how many bytes the event takes in memory, for
	// Config.ReadAheadBytes. 0: it is estimated.
	Size int
	// Time is when the event came about. Zero: not known.
	Time time.Time
}

// at returns when the event came about; zero: not known.
func (r *Record[E]) at() (at time.Time) {
	if r != nil {
		at = r.Time
	}
	return at
}

// An EventStore reads one event stream. Table is one for an events table in
// PostgreSQL whose positions come from a sequence (or identity) that the inserting
// transaction itself uses; write your own for anything else. What it returns is
// handed to all projections of the process: do not modify it afterwards. A method
// that panics, or ends its goroutine, has failed and is called again.
//
// It may also be a Checker, a GapWaiter and a HeadStore; and a FinalStore and a TimeStore,
// for projections that don't start at the beginning.
type EventStore[E any] interface {
	// Read returns the events whose positions are above r.After, in ascending order.
	//
	// It may return an event only when every lower position is final: no event
	// may become visible later below one that was returned, or below Page.Through.
	// Where positions come from a sequence and transactions commit in any order, an
	// event that follows a gap must be held back until nobody can fill the gap any
	// more; otherwise events are lost.
	//
	// Errors are retried with backoff, except those that retrying can't heal
	// (SQLSTATE classes 22, 3D, 3F and 42: something named doesn't exist, or
	// may not be read). Read is called from several goroutines, and once for all
	// projections and partitions of a process that stand near each other, in all
	// replica sets to which the same EventStore was given.
	Read(ctx context.Context, r ReadRequest) (Page[E], error)
}

// A ReadRequest says which events an EventStore should read.
type ReadRequest struct {
	// After is the position above which events are read; at least 0.
	After int64
	// Limit is the largest number of events; at least 1.
	Limit int
	// Scope is the part of the stream that is asked for. A store may ignore it:
	// events that are out of scope are left out afterwards. The records must have
	// their AggregateType, BoundedContext or EventType set where the scope is about it:
	// a record without it is an error, and its event is not passed.
	Scope Scope
	// MaxBytes is about how many bytes the page should take in memory; 0: as many as
	// it does. A store may ignore it. An event that alone is larger is still read.
	MaxBytes int
}

// A Page is what an EventStore has read.
type Page[E any] struct {
	// Records are the events, in ascending order.
	Records []Record[E]
	// Through is the position up to which everything has been seen. It may lie beyond
	// the last record, where what follows is out of scope, or was deleted. 0: the
	// position of the last record.
	Through int64
	// More reports whether there may be more events at once, so that the next Read
	// need not wait. A page of ReadRequest.Limit records counts as if it were set.
	// Where a shorter page leaves it false, the stream is taken to end there for now.
	More bool
}

// A Scope is the part of an event stream that a projection wants: the events of
// these types, of aggregates of these types, in these bounded contexts. An empty list
// includes all.
//
// A scope may change from one version of a program to the next. It counts for what a
// projection has not come to yet: where it becomes wider, ops.Rewind has what was left out
// handled. A parked event that is out of a narrower scope can't be retried any more, and
// holds back the events of its aggregate that are within it, until it is discarded.
type Scope struct {
	AggregateTypes, BoundedContexts []string
	// EventTypes are the names of the types, as Event.EventType has them.
	EventTypes []string
}

// Includes reports whether an event is within the scope.
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

// problem says what is wrong with a name in the scope: no event can have it, and a
// scope that silently matches nothing would have the projection pass everything.
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

// leavesOut reports whether an event is out of the scope. One that does not say what the
// scope is about, unless an empty text is a value, is an error: to leave it out could be to
// lose it.
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
		return false, fmt.Errorf("the event at position %d has no Record.%s, by which the scope of a projection selects: set it", e.Position, unsaid)
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

// scopeOf returns the scope of a projection, or what keeps the event store from
// reading it.
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

// A Checker is an EventStore that can tell before the start whether it can
// work. Run calls Check and returns its error, unless that is temporary; then it tries
// again.
type Checker interface {
	Check(ctx context.Context) error
}

// A GapWaiter is an EventStore that can tell what its readers wait for.
type GapWaiter interface {
	Waiting() (Gap, bool)
}

// A HeadStore is an EventStore that can tell where its stream ends, as Table can.
type HeadStore interface {
	// Head returns the highest position of an event that is committed; 0: there
	// is none.
	Head(ctx context.Context) (int64, error)
}
