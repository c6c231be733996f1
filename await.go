package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A ParkedError says that events which somebody waits for are not handled, but
// parked (see ParkEvents).
type ParkedError struct {
	Projection string
	Events     int   // parked at or below the position
	First      int64 // the lowest of their positions
}

func (e *ParkedError) Error() string {
	return fmt.Sprintf("projection %q: %d events are parked, the first at position %d", e.Projection, e.Events, e.First)
}

// WaitFor waits until a projection has handled every event up to a position, on
// all of its partitions, and that is committed: for reading one's own writes, and
// for tests. It returns a *ParkedError if it has gone past some without handling
// them, and when ctx ends the cause of that. A projection that does not get there is
// waited for until then: one that has not run yet, is paused (ops.Pause), halted
// (HaltLane), or fails again and again. So give ctx a deadline; ops.Status tells what is
// the matter. A rewind that is ordered and not carried out yet is waited for as well.
//
// Where the event stream ends before a checkpoint of the projection (it was emptied, or
// restored from before), nothing counts as handled, from when a worker that runs it has
// reported that: a HeartbeatInterval and half a minute later at most.
//
// It looks at the checkpoints of all partitions, and not at the highest. Where a
// projection has many partitions and events come thick, those that had no event of
// their own say so about once a second.
func WaitFor(ctx context.Context, db *sql.DB, projection string, position int64) error {
	if problem := store.NameProblem(projection); problem != "" {
		return fmt.Errorf("%w: WaitFor: the name of the projection %s", ErrInvalidConfig, problem)
	}
	var handled store.Handled
	err := calls.Await(ctx, func() (_ bool, err error) {
		handled, err = store.HandledTo(ctx, db, projection, position)
		return handled.To, err
	})
	if err != nil {
		return fmt.Errorf("wait for projection %q to reach position %d: %w", projection, position, err)
	}
	if handled.Parked > 0 {
		return &ParkedError{projection, handled.Parked, handled.First}
	}
	return nil
}

// A HeadStore is an EventStore that can tell where its stream ends, as Table can.
type HeadStore interface {
	// Head returns the highest position of an event that is committed; 0: there
	// is none.
	Head(ctx context.Context) (int64, error)
}

// CatchUp runs as Run does until everything that was in the event store when it
// was called is handled by all of the projections, by this worker or others. Then
// it leaves and returns nil: for tests and for jobs that run once. It returns a
// *ParkedError for events that were parked instead, ctx.Err() when ctx ends before,
// and what else Run returns. The event store must be a HeadStore.
//
// It does not end, before ctx does, where a projection is paused or halted, or its
// handler fails for ever: what it waits for does not come. Give ctx a deadline, or the
// projection the policy StopOnFailure.
func (o *Orchestrator[E]) CatchUp(ctx context.Context, projections []Projection[E]) error {
	names, err := projectionNames(projections)
	if err != nil {
		return err
	}
	events, ok := o.cfg.EventStore.(HeadStore)
	if !ok {
		return fmt.Errorf("%w: CatchUp needs an event store that is a HeadStore, and %T has no Head", ErrInvalidConfig, o.cfg.EventStore)
	}
	// Before anything waits for what is in the tables.
	err = calls.Await(ctx, func() (bool, error) {
		err := store.New(o.cfg.DB, string(o.cfg.ReplicaSet), store.Options{}).Check(ctx)
		return err == nil, err
	})
	if err != nil {
		return redact.Error(explain(err))
	}
	var head int64
	err = calls.Await(ctx, func() (ok bool, err error) {
		head, err = events.Head(ctx)
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("look for the end of the stream: %w", err)
	}

	if t, ok := events.(interface {
		reaches(context.Context) (head, given int64, err error)
	}); ok {
		if err := o.withinStream(ctx, names, t.reaches); err != nil {
			return err
		}
	}

	running, stop := context.WithCancel(ctx)
	defer stop()
	caughtUp := make(chan error, 1)
	go func() {
		defer stop()
		var errs []error
		for _, name := range names {
			errs = append(errs, WaitFor(running, o.cfg.DB, name, head))
		}
		caughtUp <- errors.Join(errs...)
	}()
	err = o.run(running, projections)
	stop()
	waited := <-caughtUp
	if ctx.Err() == nil && err == running.Err() { // and not what a handler has made of its own
		return waited
	}
	return err
}

// withinStream makes sure that no projection has gone beyond the end of the stream:
// everything up to there would seem to be handled.
func (o *Orchestrator[E]) withinStream(ctx context.Context, names []string, reaches func(context.Context) (head, given int64, err error)) error {
	_, given, err := reaches(ctx)
	if err != nil {
		return fmt.Errorf("look for the end of the stream: %w", err)
	}
	for _, name := range names {
		switch at, err := store.Highest(ctx, o.cfg.DB, name); {
		case err != nil:
			return err
		case at > given:
			return fmt.Errorf("%w: projection %q stands at position %d, and the event stream ends before that, at %d: it was emptied, restored or replaced; rewind the projection", ErrEventStore, name, at, given)
		}
	}
	return nil
}
