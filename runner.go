package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A run is all lanes of one assignment.
type run[E any] struct {
	lanes    []*lane[E]
	draining chan struct{} // closed: finish the event in hand, commit, end
	once     sync.Once
	cancelc  context.CancelCauseFunc
}

// startRun starts a lane for each projection. When all have ended, the
// session hears of it.
func startRun[E any](w *worker[E], a protocol.Assignment) *run[E] {
	ctx := context.WithValue(w.life, assignmentKey{}, Assignment{
		ReplicaSet: w.cfg.ReplicaSet, Generation: a.Generation, Partition: a.Partition, TotalPartitions: a.Total,
	})
	r := &run[E]{draining: make(chan struct{})}
	ctx, r.cancelc = context.WithCancelCause(ctx)
	var lanes sync.WaitGroup
	for i, p := range w.projections {
		l := newLane(ctx, w, r, p, w.names[i], a)
		r.lanes = append(r.lanes, l)
		lanes.Go(l.loop)
	}
	go func() {
		lanes.Wait()
		r.cancelc(nil)
		w.input(protocol.Stopped{Generation: a.Generation})
	}()
	return r
}

func (r *run[E]) drain() { r.once.Do(func() { close(r.draining) }) }

func (r *run[E]) cancel(cause error) {
	r.drain()
	r.cancelc(cause)
}

// inHand names the lanes that have not ended, and what they are at.
func (r *run[E]) inHand() []string {
	var out []string
	for _, l := range r.lanes {
		if l.ended.Load() {
			continue
		}
		if position := l.position.Load(); position != 0 {
			out = append(out, fmt.Sprintf("projection %q at position %d", l.id.Projection, position))
		} else {
			out = append(out, fmt.Sprintf("projection %q between two events", l.id.Projection))
		}
	}
	return out
}

// A lane runs one projection on one partition: read, handle, commit. What to
// handle and what to commit is for protocol.Lane to say.
type lane[E any] struct {
	id     store.Lane
	ctx    context.Context // cancelled: stop at once, commit nothing more
	run    *run[E]
	worker *worker[E]
	log    *slog.Logger

	// handle calls the projection with events and commits. It is one of
	// plain, transactional and batch.
	handle func(events []Record[E]) error

	core     *protocol.Lane
	events   []Record[E]  // the core's pending events
	position atomic.Int64 // of the event in hand; 0: none
	ended    atomic.Bool

	// Failures of the database in a row, until something could be read, and
	// until something was committed.
	readFailures, failures int
}

func newLane[E any](ctx context.Context, w *worker[E], r *run[E], p Projection[E], name string, a protocol.Assignment) *lane[E] {
	l := &lane[E]{
		id: store.Lane{Projection: name, Assignment: a}, ctx: ctx, run: r, worker: w,
		log: w.log.With("projection", name, "generation", a.Generation, "partition", a.Partition),
	}
	switch p := p.(type) {
	case BatchProjection[E]:
		l.handle = func(events []Record[E]) error { return l.batch(p, events) }
	case TransactionalProjection[E]:
		l.handle = func(events []Record[E]) error { return l.transactional(p, events) }
	default:
		l.handle = func(events []Record[E]) error { return l.plain(p, events) }
	}
	return l
}

// Reasons for which a lane ends or pauses.
var (
	errStop    = errors.New("asked to stop")
	errRefused = errors.New("commit refused")
	errRewound = errors.New("set back to the committed checkpoint")
)

// stopping reports whether to start no further event: the generation is
// draining, or the lease is over. It is asked before each event, since a
// process that was frozen goes on in the middle of a batch.
func (l *lane[E]) stopping() bool {
	return l.asked() || l.worker.leases.over(time.Now())
}

// asked reports whether the lane was asked to end.
func (l *lane[E]) asked() bool {
	select {
	case <-l.run.draining:
		return true
	default:
		return l.ctx.Err() != nil
	}
}

// wait pauses the lane, and returns errStop if it is to stop.
func (l *lane[E]) wait(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-l.run.draining:
		return errStop
	case <-l.ctx.Done():
		return errStop
	}
}

// loop is the life of a lane.
func (l *lane[E]) loop() {
	err := fmt.Errorf("projection %q: a handler ended its goroutine (runtime.Goexit)", l.id.Projection)
	defer func() {
		l.ended.Store(true)
		switch {
		case errors.Is(err, errStop) && l.asked():
		case errors.Is(err, errStop), errors.Is(err, errRefused):
			// Nobody has asked the lane to end: it saw the lease end, which may
			// have been renewed in the same moment. The session has to know, or
			// it goes on holding a partition of which this lane is missing.
			l.worker.input(protocol.Refused{Generation: l.id.Assignment.Generation})
		default:
			l.worker.fail(err)
		}
	}()
	err = l.work()
}

// work goes from batch to batch until there is a reason to end.
func (l *lane[E]) work() error {
	err := l.load()
	idle := time.Duration(0)
	for err == nil || errors.Is(err, errRewound) {
		if l.stopping() {
			return errStop
		}
		more, failure := l.fill()
		if failure != nil {
			return failure
		}
		if n := l.core.Batch(l.worker.cfg.BatchSize); n > 0 {
			idle, err = 0, l.handle(l.events[:n])
			continue
		}
		err = nil
		if l.core.SkipDue(time.Now()) {
			err = l.commit(0)
		}
		if more {
			idle = 0
		} else if err == nil {
			// Nothing new: look again soon, and ever less often.
			idle = min(max(2*idle, 5*time.Millisecond), l.worker.cfg.PollInterval)
			err = l.wait(idle)
		}
	}
	return err
}

// load reads the checkpoint that activation left for this lane.
func (l *lane[E]) load() error {
	found, err := l.find()
	if err != nil {
		return err
	}
	if !found.Exists || found.Generation != l.id.Assignment.Generation {
		return errRefused
	}
	l.failures = 0
	l.core = protocol.NewLane(l.id.Assignment.Partition, l.id.Assignment.Total, found.Checkpoint, time.Now())
	return nil
}

// find reads the lane's row until that succeeds.
func (l *lane[E]) find() (protocol.Found, error) {
	for {
		found, err := bounded(l.ctx, l.worker.patience(), func(ctx context.Context) (protocol.Found, error) {
			return l.worker.store.Find(ctx, l.id)
		}, nil)
		if err == nil {
			return found, nil
		}
		if err := l.databaseFailed(&l.failures, "read the checkpoint", err); err != nil {
			return found, err
		}
	}
}

// databaseFailed waits before another attempt, or returns why there is none.
func (l *lane[E]) databaseFailed(failures *int, doing string, err error) error {
	if l.ctx.Err() != nil {
		return errStop
	}
	if store.Permanent(err) {
		return err
	}
	*failures++
	if !store.LockTimeout(err) {
		l.log.Warn("can't "+doing+", trying again", "error", err)
	}
	backoff := protocol.Backoff{Min: 20 * time.Millisecond, Max: time.Second}
	return l.wait(backoff.Delay(*failures, mathrand.Float64()))
}

// fill reads until there is a batch of the lane's own events, or no more for
// now, and reports whether there may be more.
func (l *lane[E]) fill() (more bool, err error) {
	size := l.worker.cfg.BatchSize
	for l.core.Pending() < size {
		after := l.core.Cursor()
		page, err := bounded(l.ctx, l.worker.cfg.StaleWorkerTimeout, func(ctx context.Context) ([]Record[E], error) {
			return l.worker.cfg.EventStore.Read(ctx, after, size)
		}, nil)
		if err != nil {
			if store.Permanent(err) && l.ctx.Err() == nil {
				return false, fmt.Errorf("%w: read after position %d: %w", ErrEventStore, l.core.Cursor(), err)
			}
			return true, l.databaseFailed(&l.readFailures, "read events", err)
		}
		l.readFailures = 0
		keys := make([]protocol.Key, len(page))
		for i, r := range page {
			keys[i] = protocol.Key{Position: r.Position, Slot: protocol.SlotOf(r.AggregateID)}
		}
		keep, err := l.core.Accept(keys)
		if err != nil {
			return false, fmt.Errorf("%w: read after position %d, limit %d: %w", ErrEventStore, l.core.Cursor(), size, err)
		}
		for _, i := range keep {
			l.events = append(l.events, page[i])
		}
		if len(page) < size {
			return false, nil
		}
		if l.stopping() || l.core.Pending() == 0 && l.core.SkipDue(time.Now()) {
			return true, nil
		}
	}
	return true, nil
}

// plain hands events to Handle one by one and commits the checkpoint after
// them.
func (l *lane[E]) plain(p Projection[E], events []Record[E]) error {
	done := 0
	var failure error
	for _, e := range events {
		if l.stopping() {
			break
		}
		if failure = l.call(e.Position, func() error { return p.Handle(l.ctx, e.Event) }); failure != nil {
			break
		}
		done++
	}
	if l.ctx.Err() != nil {
		return errStop
	}
	if done > 0 {
		if err := l.commit(done); err != nil {
			return err
		}
	}
	if failure != nil {
		// What preceded the event is committed, so it is the first pending.
		f := fault{certain: true}
		f.position, f.attempts = l.core.Failed(0)
		return l.failed(f, failure, store.PassingState(failure))
	}
	return nil
}

// commit moves the checkpoint past the first n pending events, which are
// handled. They are not handled again because a commit failed: it is retried
// until it has happened or can't happen any more.
func (l *lane[E]) commit(n int) error {
	next := l.core.After(n)
	for {
		err := l.tryCommit(next)
		if err == nil {
			l.committed(next)
			return nil
		}
		outcome, err := l.resolve(next, err)
		if err != nil || outcome == protocol.Done {
			return err
		}
	}
}

func (l *lane[E]) tryCommit(next protocol.Checkpoint) error {
	tx, err := l.begin(l.worker.store.Begin)
	if err != nil {
		return err
	}
	return l.finish(tx, next)
}

// begin starts a transaction.
func (l *lane[E]) begin(call func(context.Context) (*sql.Tx, error)) (*sql.Tx, error) {
	// The transaction lives as long as the context that it was begun with, so
	// that is the lane's, and not the bounded one.
	return bounded(l.ctx, l.worker.patience(), func(context.Context) (*sql.Tx, error) { return call(l.ctx) }, rollback)
}

// rollback ends a transaction that is of no more use, in the background: its
// connection may be the reason.
func rollback(tx *sql.Tx) { go tx.Rollback() } // an error says that it has ended

// finish writes the checkpoint and commits, or rolls back. COMMIT is sent only
// after the write was answered: while its outcome is unknown, the row is
// locked.
func (l *lane[E]) finish(tx *sql.Tx, next protocol.Checkpoint) error {
	from := l.core.Checkpoint()
	err := boundedDo(l.ctx, l.worker.patience(), func(ctx context.Context) error {
		if err := l.worker.store.Commit(ctx, tx, l.id, from, next); err != nil {
			return err
		}
		// A write whose answer came after the lane gave up must not be
		// committed: the lane may have looked at the row before it was locked.
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return &commitError{err}
		}
		return nil
	})
	if err != nil {
		rollback(tx)
	}
	return err
}

// A commitError is what COMMIT itself returned.
type commitError struct{ error }

func (e *commitError) Unwrap() error { return e.error }

// handlerFault reports whether a transaction failed because of what a handler
// did in it: COMMIT says so, where constraints and triggers are deferred to
// it, or the handler has swallowed a statement's error.
func handlerFault(err error) bool {
	var atCommit *commitError
	return errors.As(err, &atCommit) && store.State(err) != "" && !store.PassingState(err) || store.FailedTransaction(err)
}

// committed notes that the store has next.
func (l *lane[E]) committed(next protocol.Checkpoint) {
	l.core.Committed(next, time.Now())
	l.events = l.events[len(l.events)-l.core.Pending():]
	l.failures = 0
}

// resolve finds out what has become of a commit that returned an error: it is
// Done, or Undone and to be tried again, or the lane can't go on from it.
func (l *lane[E]) resolve(next protocol.Checkpoint, err error) (protocol.Outcome, error) {
	if !errors.Is(err, store.ErrSuperseded) {
		if err := l.databaseFailed(&l.failures, "commit", err); err != nil {
			return "", err
		}
	}
	found, err := l.find()
	if err != nil {
		return "", err
	}
	outcome := l.core.Resolve(l.id.Assignment.Generation, next, found)
	switch outcome {
	case protocol.Done:
		l.committed(next)
		return outcome, nil
	case protocol.Superseded:
		return outcome, errRefused
	case protocol.Elsewhere:
		l.core.Rewind(found.Checkpoint, time.Now())
		l.events = nil
		return outcome, errRewound
	default:
		return outcome, nil
	}
}

// A fault is an event that a handler failed at.
type fault struct {
	position int64
	attempts int
	// certain: the event was the first of its batch and did fail. Otherwise
	// the next batch is shorter, and shows more.
	certain bool
}

// transactional hands events to HandleTx in one transaction, which commits
// with the checkpoint.
func (l *lane[E]) transactional(p TransactionalProjection[E], events []Record[E]) error {
	at := 0
	return l.transact(func(tx *sql.Tx) (done int, err error) {
		started := time.Now()
		for at = range events {
			// The server ends a transaction that is idle for a lease, and
			// handlers may leave it idle.
			if l.stopping() || at > 0 && time.Since(started) > l.worker.cfg.StaleWorkerTimeout/4 {
				return at, nil
			}
			if err := l.call(events[at].Position, func() error { return p.HandleTx(l.ctx, tx, events[at].Event) }); err != nil {
				return 0, err
			}
		}
		return len(events), nil
	}, func() (f fault) {
		f.position, f.attempts = l.core.Failed(at)
		f.certain = at == 0
		return f
	})
}

// batch hands events to HandleBatch in a transaction, which commits with the
// checkpoint.
func (l *lane[E]) batch(p BatchProjection[E], events []Record[E]) error {
	return l.transact(func(tx *sql.Tx) (int, error) {
		values := make([]E, len(events))
		for i, e := range events {
			values[i] = e.Event
		}
		return len(events), l.call(events[0].Position, func() error { return p.HandleBatch(l.ctx, tx, values) })
	}, func() fault { return l.within(len(events)) })
}

// within is the fault of one of the first n pending events, nobody knows
// which.
func (l *lane[E]) within(n int) (f fault) {
	f.position, f.attempts = l.core.FailedWithin(n)
	f.certain = n == 1
	return f
}

// transact runs handlers in a transaction. They return how many of the pending
// events they have done; at says which one an error of theirs is about.
func (l *lane[E]) transact(handlers func(*sql.Tx) (done int, err error), at func() fault) error {
	tx, err := l.begin(l.worker.store.BeginHandler)
	if err != nil {
		return l.databaseFailed(&l.failures, "begin a transaction", err)
	}
	done, failure := handlers(tx)
	if l.ctx.Err() != nil || failure != nil || done == 0 {
		rollback(tx) // before any pause: it may hold locks
	}
	switch {
	case l.ctx.Err() != nil:
		return errStop
	case failure != nil:
		return l.failed(at(), failure, store.Passing(failure))
	case done == 0:
		return errStop
	}
	next := l.core.After(done)
	err = l.finish(tx, next)
	if err == nil {
		l.committed(next)
		return nil
	}
	if handlerFault(err) {
		return l.failed(l.within(done), err, false)
	}
	outcome, err := l.resolve(next, err)
	if outcome == protocol.Undone {
		// The events are handled again in another transaction: a shorter one,
		// in case it was its length that ended it.
		l.core.FailedWithin(done)
	}
	return err
}

// call runs a handler and turns a panic into an error.
func (l *lane[E]) call(position int64, handler func() error) (err error) {
	l.position.Store(position)
	defer l.position.Store(0)
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return handler()
}

// failed waits before the event is handled again, or returns why it isn't.
func (l *lane[E]) failed(f fault, failure error, passing bool) error {
	if l.worker.cfg.OnFailure == StopOnFailure && f.certain && !passing {
		return &HandlerError{
			Projection: l.id.Projection, Position: f.position, Partition: l.id.Assignment.Partition,
			Attempts: f.attempts, Err: failure,
		}
	}
	retry := protocol.Backoff{Min: l.worker.cfg.Retry.Min, Max: l.worker.cfg.Retry.Max}
	delay := retry.Delay(f.attempts, mathrand.Float64())
	l.log.Error("handler failed, will retry", "position", f.position, "attempt", f.attempts, "retry_in", delay, "error", failure)
	return l.wait(delay)
}
