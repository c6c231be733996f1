package orchestrator

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Waiting for a projection. All waits of a process in the same tables share one query at a
// time, however many they are.

// ParkedError is returned by WaitFor, WaitForEvent and CatchUp if events up to the position
// were parked instead of handled (see ParkEvents).
type ParkedError struct {
	// Projection is the name of the projection.
	Projection string
	// Events is the number of events that are parked at or below the position.
	Events int
	// First is the lowest of their positions.
	First int64
}

// Error names the projection, the number of events and the first position.
func (e *ParkedError) Error() string {
	if e.Events == 1 {
		return fmt.Sprintf("projection %q: 1 event is parked, at position %d", e.Projection, e.First)
	}
	return fmt.Sprintf("projection %q: %d events are parked, the first at position %d", e.Projection, e.Events, e.First)
}

// BehindError is returned by WaitFor and WaitForEvent if the context ends before the
// projection has reached the position.
type BehindError struct {
	// Projection is the name of the projection.
	Projection string
	// Position is the one that was waited for.
	Position int64
	// Handled is the position up to which everything was handled when that was last
	// read: on all partitions, or, for WaitForEvent, of the aggregate. -1: the projection
	// has not run, or nothing could be read.
	Handled int64
	// Err is the context's error (context.Cause), with the error of the latest query if
	// that has failed.
	Err error
}

// Behind returns the number of positions between Handled and Position.
func (e *BehindError) Behind() int64 { return e.Position - max(e.Handled, 0) }

// Error names the projection, the position and how far behind it the projection is.
func (e *BehindError) Error() string {
	if e.Handled < 0 {
		return fmt.Sprintf("wait for projection %q to reach position %d: its progress is not known yet: %v", e.Projection, e.Position, e.Err)
	}
	return fmt.Sprintf("wait for projection %q to reach position %d: it is at %d, %d behind: %v", e.Projection, e.Position, e.Handled, e.Behind(), e.Err)
}

// Unwrap returns Err.
func (e *BehindError) Unwrap() error { return e.Err }

// WaitFor waits until a projection has handled and committed every event up to a position,
// on all of its partitions. It is for tests, and for reading a read model as a whole.
//
// It returns a *ParkedError if some of the events were parked instead, and a *BehindError,
// which wraps context.Cause(ctx), when ctx ends first. Give ctx a deadline: WaitFor also waits
// while the projection has not run yet, is paused (ops.Pause) or always fails, and while a
// rewind is pending. ops.Status has the reason.
//
// If the event stream was emptied or restored, so that it ends before a checkpoint of the
// projection, no event counts as handled. That applies once a worker has reported it, at most
// a HeartbeatInterval and half a minute later.
//
// Partitions without events of their own move their checkpoints about once a second, so
// WaitFor may take that long while events arrive quickly. To wait for one event, use
// WaitForEvent.
//
// All waits of a process with the same db share one query at a time: at most 100 a second, and
// fewer with time while no new wait begins.
func WaitFor(ctx context.Context, db *sql.DB, projection string, position int64, options ...TablesOption) error {
	return waitFor(ctx, db, "WaitFor", store.Awaited{Projection: projection, Position: position}, options)
}

// WaitForEvent waits until a projection has handled and committed the event of an aggregate
// at a position. It is for reading your own writes, right after the transaction that has
// appended the event. It is like WaitFor, for one aggregate: it does not wait for other
// partitions, and returns no *ParkedError for events of other aggregates. An event that is
// outside of the projection's scope, or before its start, counts as handled.
func WaitForEvent(ctx context.Context, db *sql.DB, projection string, position int64, aggregateID string, options ...TablesOption) error {
	return waitFor(ctx, db, "WaitForEvent", store.Awaited{Projection: projection, Position: position, One: true, Aggregate: aggregateID}, options)
}

func waitFor(ctx context.Context, db *sql.DB, function string, a store.Awaited, options []TablesOption) error {
	if db == nil {
		return fmt.Errorf("%w: %s: db is nil", ErrInvalidConfig, function)
	}
	if problem := store.NameProblem(a.Projection); problem != "" {
		return fmt.Errorf("%w: %s: the name of the projection %s", ErrInvalidConfig, function, problem)
	}
	w := &wait{Awaited: a, began: time.Now(), done: make(chan struct{}), at: -1}
	g := join(store.TablesOf(db, options), w)
	select {
	case <-w.done:
	case <-ctx.Done():
		if g.leave(w) {
			return &BehindError{a.Projection, a.Position, w.at, behindFor(context.Cause(ctx), w.err)}
		}
	}
	switch {
	case w.err != nil:
		return fmt.Errorf("wait for projection %q to reach position %d: %w", a.Projection, a.Position, w.err)
	case w.parked.Parked > 0:
		return &ParkedError{a.Projection, w.parked.Parked, w.parked.First}
	}
	return nil
}

func behindFor(cause, err error) error {
	if err == nil {
		return cause
	}
	return fmt.Errorf("%w (%w)", cause, err)
}

// A wait is one call of waitFor. What is below done is its group's until that is closed, or
// the wait has left.
type wait struct {
	store.Awaited
	began  time.Time
	done   chan struct{}
	at     int64
	parked store.Handled
	err    error
}

// waits are the groups of those that wait in the same tables.
var waits = struct {
	sync.Mutex
	of map[store.Tables]*waitGroup
}{of: map[store.Tables]*waitGroup{}}

// A waitGroup polls for all waits in the same tables, while there are some.
type waitGroup struct {
	tables store.Tables
	of     map[*wait]bool
	more   chan struct{} // holds one: a wait has begun
}

// join adds a wait to those in the same tables.
func join(t store.Tables, w *wait) *waitGroup {
	waits.Lock()
	defer waits.Unlock()
	g := waits.of[t]
	if g == nil {
		g = &waitGroup{tables: t, of: map[*wait]bool{}, more: make(chan struct{}, 1)}
		waits.of[t] = g
		go g.poll()
	}
	g.of[w] = true
	select {
	case g.more <- struct{}{}:
	default:
	}
	return g
}

// leave removes a wait, and reports whether it was still waiting.
func (g *waitGroup) leave(w *wait) bool {
	waits.Lock()
	defer waits.Unlock()
	waited := g.of[w]
	delete(g.of, w)
	return waited
}

const (
	waitLookMin = 10 * time.Millisecond // between two polls
	waitLookMax = 250 * time.Millisecond
	// waitLookIn is the timeout of one poll: a silent connection must not hold up waits
	// that begin later.
	waitLookIn = 10 * time.Second
)

// poll polls until there are no more waits.
func (g *waitGroup) poll() {
	for {
		those, youngest := g.waiting()
		if len(those) == 0 {
			return
		}
		began := time.Now()
		awaited := make([]store.Awaited, len(those))
		for i, w := range those {
			awaited[i] = w.Awaited
		}
		handled, err := bounded(context.Background(), waitLookIn, func(ctx context.Context) ([]store.Handled, error) {
			return store.HandledTo(ctx, g.tables, awaited...)
		}, nil)
		g.take(those, handled, err)

		pause := min(max(waitLookMin, began.Sub(youngest)/10), waitLookMax)
		select {
		case <-g.more: // a new wait is polled for soon
			pause = waitLookMin
		case <-time.After(pause - time.Since(began)):
			continue
		}
		time.Sleep(pause - time.Since(began))
	}
}

// waiting returns the waits, and when the latest has begun. If there are none, it removes the
// group.
func (g *waitGroup) waiting() (those []*wait, youngest time.Time) {
	waits.Lock()
	defer waits.Unlock()
	for w := range g.of {
		those = append(those, w)
		if w.began.After(youngest) {
			youngest = w.began
		}
	}
	if len(those) == 0 {
		delete(waits.of, g.tables)
	}
	return those, youngest
}

// take ends the waits for which a poll has found an answer. A database that is away is waited
// for.
func (g *waitGroup) take(those []*wait, handled []store.Handled, err error) {
	waits.Lock()
	defer waits.Unlock()
	for i, w := range those {
		if !g.of[w] {
			continue
		}
		w.err = redact.Error(err)
		switch {
		case err == nil:
			if w.at = handled[i].At; !handled[i].To {
				continue
			}
			w.parked = handled[i]
		case store.Passing(err):
			continue
		}
		delete(g.of, w)
		close(w.done)
	}
}
