package orchestrator

import (
	"context"
	"database/sql"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Where a new projection starts. It is decided once, in the transaction in which the first
// worker joins with it: internal/store/start.go has the reason. protocol.Ending finds up to
// where the stream is final.

// Start is where in the event stream a new projection starts: one that no worker has run
// before, so that it has no checkpoint. A projection that has one continues from there. If
// programs disagree, the Start of the first worker that runs the projection counts.
// ops.Rewind sets any projection to a position.
//
// The zero Start is the first event.
type Start struct {
	kind     startKind
	position int64
	time     time.Time
}

type startKind int

const (
	startBeginning startKind = iota
	startNow
	startAfter
	startAtTime
)

// StartNow starts at the end of the stream as it is when the first worker joins with the
// projection: for example, for a mailer that must not mail for old events. Every event that is
// committed later is handled, whatever its position. Events that were final when the worker
// began to join are not handled. (An event above a position that an open transaction has taken
// is not final.)
//
// The event store must be a FinalStore, as Table is. Before it joins for the first time, the
// worker waits for the transactions that are appending events. If one stays open, the log
// names its server process.
func StartNow() Start { return Start{kind: startNow} }

// StartAfter starts with the first event above a position, which is at least 0. Run refuses a
// position beyond the end of a Table.
func StartAfter(position int64) Start { return Start{kind: startAfter, position: position} }

// StartAtTime starts with the first event, in the order of positions, whose time is t or
// later, and handles all that follow, whatever their times. If there is no such event, it
// starts as StartNow does. Run refuses a time in the future, and the zero time.
//
// The event store must be a TimeStore, as a Table with a TableConfig.TimeColumn is.
func StartAtTime(t time.Time) Start { return Start{kind: startAtTime, time: t} }

// String returns the start as it is written in Go.
func (s Start) String() string {
	switch s.kind {
	case startNow:
		return "StartNow()"
	case startAfter:
		return fmt.Sprintf("StartAfter(%d)", s.position)
	case startAtTime:
		return fmt.Sprintf("StartAtTime(%s)", s.time.Format(time.RFC3339Nano))
	}
	return "the beginning"
}

// StartingProjection is a Projection with a Start. For the projections of the constructors
// there is WithStart.
type StartingProjection[E any] interface {
	Projection[E]
	// StartAt returns the start. Run calls it once.
	StartAt() Start
}

// FinalStore is an EventStore that knows up to where its stream is final, for StartNow.
type FinalStore interface {
	// Final returns the position up to which the stream is final: no event can become visible
	// later at or below it. That may be below the highest position, if an open transaction has
	// taken a lower one. 0: nothing is final. The first call has plenty of time; a later one,
	// while other workers wait, a second or two.
	Final(ctx context.Context) (position int64, err error)
}

// TimeStore is an EventStore that knows the times of its events, for StartAtTime.
type TimeStore interface {
	// PositionBefore returns the position before the first event, in the order of
	// positions, whose time is t or later. If there is none, or if one with a lower
	// position may still become visible, it returns what FinalStore.Final returns.
	PositionBefore(ctx context.Context, t time.Time) (position int64, err error)
}

// startOf returns where a projection starts, or why it can't.
func startOf[E any](events EventStore[E], p Projection[E], name string) (Start, error) {
	starting, ok := p.(StartingProjection[E])
	if !ok {
		return Start{}, nil
	}
	start, err := apart("StartAt", func() (Start, error) { return starting.StartAt(), nil })
	if err != nil {
		return start, fmt.Errorf("%w: StartAt of projection %q failed: %w", ErrInvalidConfig, name, err)
	}
	if problem := startProblem(events, start); problem != "" {
		return start, startError(name, start, problem)
	}
	return start, nil
}

func startError(projection string, s Start, problem string) error {
	return fmt.Errorf("%w: projection %q: %s: %s", ErrInvalidConfig, projection, s, problem)
}

// startProblem returns what is wrong with a start, as far as that needs no database.
func startProblem[E any](events EventStore[E], s Start) string {
	switch s.kind {
	case startNow:
		if _, ok := events.(FinalStore); !ok {
			return fmt.Sprintf("the event store, %T, is not a FinalStore; give it a method Final(context.Context) (int64, error)", events)
		}
	case startAfter:
		if s.position < 0 {
			return "a position can't be negative"
		}
	case startAtTime:
		switch {
		case s.time.IsZero():
			return "the time is zero; leave the start out to begin with the first event"
		case s.time.Year() < 1:
			return "the time is before the year 1"
		case s.time.After(time.Now()):
			return "the time is in the future"
		}
		timed, ok := events.(TimeStore)
		if !ok {
			return fmt.Sprintf("the event store, %T, is not a TimeStore; give it a method PositionBefore(context.Context, time.Time) (int64, error)", events)
		}
		if t, ok := timed.(interface{ timeProblem() string }); ok {
			return t.timeProblem()
		}
	}
	return ""
}

// starts are where a worker's projections start, except those that do at the first event.
type starts struct {
	of map[string]Start

	mu       sync.Mutex
	found    map[string]int64 // positions that can't change any more
	prepared time.Time        // when that was done; zero: it was not
	done     bool             // all have a checkpoint
}

// startPatience is how long an event store may look for a time, which may take a scan of
// all events; and startSoon for how long what was prepared is good.
const (
	startPatience = 10 * time.Minute
	startSoon     = 30 * time.Second
	startNoted    = 10 * time.Second
)

// checkStarts finds, before the worker joins, where new projections start, as far as that
// takes time or may fail. It waits for a database that is away, and for transactions that
// append.
func (w *worker[E]) checkStarts(ctx context.Context) error {
	if len(w.starts.of) == 0 {
		return nil
	}
	if problem := w.startsAlone(); problem != nil {
		return problem
	}
	backoff := protocol.RetryStart.Backoff()
	for failures := 1; ; failures++ {
		err := boundedDo(ctx, startPatience, w.prepareStarts)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !store.FactsOf(err).Away():
			return explain(err)
		}
		w.log.Warn("cannot determine where a new projection starts, retrying", "error", err)
		if !calls.Sleep(ctx, backoff.Delay(failures, mathrand.Float64())) {
			return ctx.Err()
		}
	}
}

// startsAlone returns an error where the pool has one connection: the join has it when the
// event store is asked for its end.
func (w *worker[E]) startsAlone() error {
	t, ok := w.cfg.EventStore.(interface{ reads(*sql.DB) bool })
	if !ok || !t.reads(w.cfg.DB) || w.cfg.DB.Stats().MaxOpenConnections != 1 {
		return nil
	}
	for name, start := range w.starts.of {
		if start.kind == startNow {
			return configError("DB", fmt.Sprintf("has one connection (SetMaxOpenConns), but projection %q starts with StartNow, which needs two", name))
		}
	}
	return nil
}

// prepareStarts finds the starts that can't change, and lets the event store find its end,
// so that it knows it at once when startPositions asks.
func (w *worker[E]) prepareStarts(ctx context.Context) error {
	s := &w.starts
	var names []string
	for name := range s.of {
		names = append(names, name)
	}
	slices.Sort(names)
	fresh, err := bounded(ctx, w.cfg.StaleWorkerTimeout, func(ctx context.Context) ([]string, error) { return w.store.Fresh(ctx, names) }, nil)
	if err != nil {
		return err
	}
	now := false
	for _, name := range fresh {
		switch start := s.of[name]; start.kind {
		case startNow:
			now = true
		default:
			if err := w.findStart(ctx, name, start); err != nil {
				return err
			}
		}
	}
	if now {
		if err := w.settle(ctx); err != nil {
			return fmt.Errorf("%w: the end of the stream, where a new projection starts: %w", ErrEventStore, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared, s.done = time.Now(), len(fresh) == 0
	return nil
}

// findStart finds the position of a start that is not StartNow.
func (w *worker[E]) findStart(ctx context.Context, name string, start Start) error {
	s := &w.starts
	s.mu.Lock()
	_, known := s.found[name]
	s.mu.Unlock()
	if known {
		return nil
	}
	position := start.position
	switch start.kind {
	case startAfter:
		if t, ok := w.cfg.EventStore.(interface {
			reaches(context.Context) (head, given int64, err error)
		}); ok {
			given, err := bounded(ctx, lookMax, func(ctx context.Context) (given int64, err error) {
				_, given, err = t.reaches(ctx)
				return given, err
			}, nil)
			if err != nil {
				return fmt.Errorf("%w: projection %q: %s: %w", ErrEventStore, name, start, err)
			}
			if position > given {
				return startError(name, start, fmt.Sprintf("the event stream ends at position %d", given))
			}
		}
	case startAtTime:
		err := safely("the event store", func() (err error) {
			position, err = w.cfg.EventStore.(TimeStore).PositionBefore(ctx, start.time)
			return err
		})
		if err != nil {
			return fmt.Errorf("%w: projection %q: %s: %w", ErrEventStore, name, start, err)
		}
		if position < 0 {
			return fmt.Errorf("%w: projection %q: %s: PositionBefore returned the negative position %d", ErrEventStore, name, start, position)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found[name] = position
	return nil
}

// settle lets the event store find its end, without haste.
func (w *worker[E]) settle(ctx context.Context) error {
	t, ok := w.cfg.EventStore.(interface {
		settle(context.Context, func([]int)) error
	})
	if !ok {
		_, err := w.final(ctx)
		return err
	}
	var noted time.Time
	began := time.Now()
	return t.settle(ctx, func(backends []int) {
		now := time.Now()
		if now.Sub(began) > time.Second && now.Sub(noted) > startNoted {
			noted = now
			w.log.Warn("a new projection starts at the end of the stream: waiting for open transactions that append events", "backends", list(backends), "waited", now.Sub(began))
		}
	})
}

func (w *worker[E]) final(ctx context.Context) (position int64, err error) {
	err = safely("the event store", func() (err error) {
		position, err = w.cfg.EventStore.(FinalStore).Final(ctx)
		return err
	})
	if err == nil && position < 0 {
		err = fmt.Errorf("%w: Final returned the negative position %d", ErrEventStore, position)
	}
	return position, err
}

// startAgain prepares once more before a join that comes late, or after one that failed: the
// set must not be locked for long.
func (w *worker[E]) startAgain(ctx context.Context) error {
	s := &w.starts
	s.mu.Lock()
	due := len(s.of) > 0 && !s.done && time.Since(s.prepared) > startSoon
	s.mu.Unlock()
	if !due {
		return nil
	}
	return w.prepareStarts(ctx)
}

// startPositions returns where projections start: see store.Starts.
func (w *worker[E]) startPositions(ctx context.Context, projections []string) (map[string]int64, error) {
	positions := map[string]int64{}
	var now []string
	for _, name := range projections {
		switch start := w.starts.of[name]; start.kind {
		case startBeginning:
		case startNow:
			now = append(now, name)
		default:
			if err := w.findStart(ctx, name, start); err != nil {
				return nil, err
			}
			w.starts.mu.Lock()
			positions[name] = w.starts.found[name]
			w.starts.mu.Unlock()
		}
	}
	if len(now) == 0 {
		return positions, nil
	}
	final, err := bounded(ctx, startPatience, w.final, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the end of the stream: %w", ErrEventStore, err)
	}
	for _, name := range now {
		positions[name] = final
	}
	return positions, nil
}
