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

// Waiting for a projection: all of a process that wait in the same tables share one look at
// a time, however many they are.

// A ParkedError says that events which somebody waits for are not handled, but
// parked (see ParkEvents).
type ParkedError struct {
	Projection string
	Events     int   // parked at or below the position
	First      int64 // the lowest of their positions
}

func (e *ParkedError) Error() string {
	if e.Events == 1 {
		return fmt.Sprintf("projection %q: 1 event is parked, at position %d", e.Projection, e.First)
	}
	return fmt.Sprintf("projection %q: %d events are parked, the first at position %d", e.Projection, e.Events, e.First)
}

// A BehindError says how far a projection was when there was no more time to wait for it.
type BehindError struct {
	Projection string
	Position   int64 // that is waited for
	// Handled is the position up to which everything that is waited for was handled at the
	// latest look: of the aggregate, or on all partitions. -1: the projection has not run
	// yet, or there was no look.
	Handled int64
	Err     error // why the wait has ended: context.Cause, and what kept it from looking
}

// Behind returns by how many positions.
func (e *BehindError) Behind() int64 { return e.Position - max(e.Handled, 0) }

func (e *BehindError) Error() string {
	if e.Handled < 0 {
		return fmt.Sprintf("wait for projection %q to reach position %d: its progress is not known yet: %v", e.Projection, e.Position, e.Err)
	}
	return fmt.Sprintf("wait for projection %q to reach position %d: it is at %d, %d behind: %v", e.Projection, e.Position, e.Handled, e.Behind(), e.Err)
}

func (e *BehindError) Unwrap() error { return e.Err }

// WaitFor waits until a projection has handled every event up to a position, on
// all of its partitions, and that is committed: for tests, and before a read model is read
// as a whole. It returns a *ParkedError if it has gone past some without handling
// them, and a *BehindError, which wraps context.Cause(ctx), when ctx ends. A projection that
// does not get there is waited for until then: one that has not run yet, is paused
// (ops.Pause), or fails again and again. So give ctx a deadline; ops.Status tells what is
// the matter. A rewind that is ordered and not carried out yet is waited for as well.
//
// Where the event stream ends before a checkpoint of the projection (it was emptied, or
// restored from before), nothing counts as handled, from when a worker that runs it has
// reported that: a HeartbeatInterval and half a minute later at most.
//
// It looks at the checkpoints of all partitions, and not at the highest. Where a
// projection has many partitions and events come thick, those that had no event of
// their own say so about once a second. Who waits for one event uses WaitForEvent.
//
// All waits of a process with the same db share one look at a time, at most 100 in a second
// and ever fewer while nobody else begins to wait.
func WaitFor(ctx context.Context, db *sql.DB, projection string, position int64, options ...TablesOption) error {
	return waitFor(ctx, db, "WaitFor", store.Awaited{Projection: projection, Position: position}, options)
}

// WaitForEvent waits until a projection has handled the event of an aggregate at a position,
// and that is committed: for reading one's own write, right after the transaction that
// appended it. It is WaitFor for the aggregate alone: it neither waits for other partitions
// nor fails with a *ParkedError for what is parked of other aggregates. The event counts as
// handled as well where the projection has left it out, by its scope or by where it started.
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

// A waitGroup looks for all that wait in the same tables, while there are some.
type waitGroup struct {
	tables store.Tables
	of     map[*wait]bool
	more   chan struct{} // holds one: somebody has begun to wait
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

// leave takes a wait out, and reports whether it was still waiting.
func (g *waitGroup) leave(w *wait) bool {
	waits.Lock()
	defer waits.Unlock()
	waited := g.of[w]
	delete(g.of, w)
	return waited
}

const (
	waitLookMin = 10 * time.Millisecond // between two looks
	waitLookMax = 250 * time.Millisecond
	// waitLookIn bounds one look: a connection that has fallen silent must not hold up
	// those who begin to wait later.
	waitLookIn = 10 * time.Second
)

// poll looks until nobody waits any more.
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
		case <-g.more: // who begins to wait is looked for soon
			pause = waitLookMin
		case <-time.After(pause - time.Since(began)):
			continue
		}
		time.Sleep(pause - time.Since(began))
	}
}

// waiting returns those who wait, and when the latest has begun. Where there is none, the
// group is over.
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

// take takes in what a look has found. A database that is away is waited for.
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
