package orchestrator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A lane runs one projection on one partition. protocol.Lane decides each next step, and the
// code here carries it out: fetch, call the handler, commit, park. The writes of a handler's
// transaction and the checkpoint commit together or not at all, and never under a superseded
// generation: the statement that moves the checkpoint is the fence (internal/store).

// A run is all lanes of one share, that is, of this worker's partitions of one generation.
type run[E any] struct {
	share    protocol.Share
	source   func() Source // the incarnation that runs them
	over     bool          // all have ended; only the loop uses it
	lanes    []*lane[E]
	behind   atomic.Int64   // lanes that have not caught up
	busy     sync.WaitGroup // lanes that have not ended
	draining chan struct{}  // closed: finish the event in hand, commit, end
	once     sync.Once
	ctx      context.Context
	cancelc  context.CancelCauseFunc
	scope    atomic.Pointer[handlerScope]
	follows  followers
}

// A handlerScope is the context of the handlers between two suspensions. When the worker
// can't reach the database on its dedicated connection, the scope ends, and another begins.
type handlerScope struct {
	context.Context
	end context.CancelCauseFunc
}

// startRun starts a lane for each projection on each partition, except for paused
// projections. When all lanes have ended, it tells the session.
func startRun[E any](w *worker[E], s protocol.Share) *run[E] {
	id := w.session.ID()
	r := &run[E]{share: s, source: func() Source { return w.source(id) }, draining: make(chan struct{})}
	r.ctx, r.cancelc = context.WithCancelCause(w.life)
	r.begin()
	shown := w.shown.Swap(nil)
	for _, a := range s.Assignments() {
		for i, name := range w.names {
			if s.Runs(name) {
				l := newLane(w, r, i, a)
				if shown != nil {
					l.shown = (*shown)[l.id]
				}
				r.lanes = append(r.lanes, l)
			}
		}
	}
	w.catchUp.begin(len(r.lanes))
	r.behind.Store(int64(len(r.lanes)))
	for _, l := range r.lanes {
		r.busy.Go(l.loop)
	}
	go func() {
		r.busy.Wait()
		if len(r.lanes) == 0 { // all is paused
			select {
			case <-r.draining:
			case <-r.ctx.Done():
			}
		}
		r.cancelc(nil)
		w.input(protocol.Stopped{Generation: s.Generation, Settled: r.settled()})
	}()
	return r
}

// settled reports whether no commit of any lane can take effect later. All have ended.
func (r *run[E]) settled() bool {
	return !slices.ContainsFunc(r.lanes, func(l *lane[E]) bool { return !l.certain.Load() })
}

// begin begins a handler scope, and returns the previous one.
func (r *run[E]) begin() (before *handlerScope) {
	s := &handlerScope{}
	s.Context, s.end = context.WithCancelCause(r.ctx)
	return r.scope.Swap(s)
}

// suspend cancels the handlers that run. If one does not return, its statement may wait on a
// silent connection, which is cut after suspendPatience.
func (r *run[E]) suspend() {
	before := r.begin()
	before.end(ErrSuspended)
	time.AfterFunc(suspendPatience, func() {
		for _, l := range r.lanes {
			if tx := l.open.Load(); tx != nil && l.inScope.Load() == before {
				tx.Cut() // its transaction must not commit anyway
			}
		}
	})
}

// suspendPatience is how long a handler that is suspended has to return before the
// connection of its transaction is closed.
const suspendPatience = time.Second

func (r *run[E]) drain() { r.once.Do(func() { close(r.draining) }) }

func (r *run[E]) cancel(cause error) {
	r.drain()
	r.cancelc(cause)
}

// inHand describes the lanes that have not ended, with their positions.
func (r *run[E]) inHand() []string {
	var out []string
	for _, l := range r.lanes {
		if l.ended.Load() {
			continue
		}
		if position := l.position.Load(); position != 0 {
			out = append(out, fmt.Sprintf("projection %q, partition %d, at position %d", l.id.Projection, l.id.Assignment.Partition, position))
		} else {
			out = append(out, fmt.Sprintf("projection %q, partition %d, between two events", l.id.Projection, l.id.Assignment.Partition))
		}
	}
	return out
}

// A lane runs one projection on one partition: it carries out the actions of protocol.Lane
// and returns the answers. It decides nothing.
type lane[E any] struct {
	id     store.Lane
	ctx    context.Context // cancelled: stop at once, commit nothing more
	run    *run[E]
	worker *worker[E]
	log    *slog.Logger

	core         *protocol.Lane
	shown        protocol.Found // the checkpoint, if the heartbeat that started the lane returned it
	subscription *subscription[E]
	handle       func(ctx context.Context, events []*Record[E]) error // calls the projection
	kind         protocol.LaneKind
	handlerScope *handlerScope // of the latest call
	calls        callContexts

	events  []*Record[E]    // the core's pending events, in their pages
	page    []Record[E]     // the latest that was read
	again   []*Record[E]    // the parked event that is retried
	full    bool            // there was no room to park, which was logged
	tx      *handlerTx      // the open transaction
	endTx   func()          // ends its context
	did     protocol.LaneDo // the latest action
	err     error           // and its error
	fault   error           // the latest error of a handler, or of what followed it in its transaction
	calling bool            // the handler has not returned
	there   bool            // it has caught up
	// For suspend: the transaction again, and the handler scope of the handler that is
	// called; nil: none is.
	open     atomic.Pointer[dbconn.Tx]
	inScope  atomic.Pointer[handlerScope]
	position atomic.Int64 // of the event in hand; 0: none
	ended    atomic.Bool
	certain  atomic.Bool // it has ended Settled

	// For reports.
	last    *Record[E]     // of the latest page, if there was more behind it
	began   time.Time      // when the batch under way did; zero: none is
	skipped int            // events of others that were read since the latest commit
	watch   protocol.Stall // the loop's
	// failedLong: it was logged that the handler keeps failing in this stall; the loop's.
	failedLong bool
	pace       protocol.Pace // likewise
	mu         sync.Mutex
	status     laneStatus[E]
}

// source and name are the worker and the lane of an observer's event.
func (l *lane[E]) source() Source { return l.run.source() }

func (l *lane[E]) name() Lane {
	a := l.id.Assignment
	return Lane{Projection: l.id.Projection, Generation: a.Generation, Partition: a.Partition, TotalPartitions: a.Total}
}

// newLane returns the lane of the worker's i-th projection.
func newLane[E any](w *worker[E], r *run[E], i int, a protocol.Assignment) *lane[E] {
	name := w.names[i]
	l := &lane[E]{
		id: store.Lane{Projection: name, Assignment: a}, ctx: r.ctx, run: r, worker: w, subscription: w.feed.subscribe(w.scopes[i], a),
		log: w.log.With("projection", name, "generation", a.Generation, "partition", a.Partition),
	}
	handout := newHandout[E]()
	switch p := w.projections[i].(type) {
	case BatchProjection[E]:
		l.kind = protocol.Batched
		l.handle = func(ctx context.Context, events []*Record[E]) error {
			return p.HandleBatch(ctx, l.tx, handout.all(events))
		}
	case TransactionalProjection[E]:
		l.kind = protocol.Transactional
		l.handle = func(ctx context.Context, events []*Record[E]) error {
			return p.HandleTx(ctx, l.tx, handout.event(events[0].Event))
		}
	case PlainBatchProjection[E]:
		l.kind = protocol.PlainBatched
		l.handle = func(ctx context.Context, events []*Record[E]) error {
			return p.HandlePlainBatch(ctx, handout.all(events))
		}
	default:
		l.handle = func(ctx context.Context, events []*Record[E]) error {
			return p.Handle(ctx, handout.event(events[0].Event))
		}
	}
	l.core = protocol.NewLane(a, w.cfg.laneConfig(l.kind, name))
	return l
}

// timing returns the configuration of the session.
func (c Config[E]) timing() protocol.Timing {
	return protocol.Timing{Heartbeat: c.HeartbeatInterval, Lease: c.StaleWorkerTimeout, Drain: c.CoordinationTimeout}
}

// feedConfig returns the configuration of the feed.
func (c Config[E]) feedConfig() protocol.FeedConfig {
	page := max(pageEvents, c.BatchSize)
	for name := range c.own {
		page = max(page, c.batchSize(name))
	}
	return protocol.FeedConfig{Bytes: c.ReadAheadBytes, Page: page, Poll: c.PollInterval}
}

// pageEvents is how many events are read at once. Between two pages, server and reader both
// wait for a round trip, so pages should be large; the memory of a page has its own limit.
const pageEvents = 2000

// laneConfig returns the configuration of a projection's lanes.
func (c Config[E]) laneConfig(kind protocol.LaneKind, projection string) protocol.LaneConfig {
	rule, retry := c.failureRule(projection), c.retry(projection)
	return protocol.LaneConfig{
		Kind: kind, Batch: c.batchSize(projection), Poll: c.PollInterval, Lease: c.StaleWorkerTimeout,
		Retry:     protocol.Backoff{Min: retry.Min, Max: retry.Max},
		OnFailure: protocol.FailurePolicy(rule.Policy), Attempts: rule.Attempts, MaxParked: rule.MaxParked,
	}
}

// signals returns what the core needs to know before each step.
func (l *lane[E]) signals(now time.Time) protocol.Signals {
	terms := l.worker.leases.at.Load()
	s := protocol.Signals{Canceled: l.ctx.Err() != nil, LeaseOver: terms.Over(now), Unproven: terms.Unproven(now)}
	select {
	case <-l.run.draining:
		s.Asked = true
	default:
	}
	return s
}

// loop runs the lane until it ends. A handler that ends its goroutine, which is the lane's,
// has failed, and the lane continues on another one.
func (l *lane[E]) loop() { l.live(protocol.LaneAnswer{}) }

func (l *lane[E]) live(answer protocol.LaneAnswer) {
	var end *protocol.LaneAction
	defer func() {
		switch {
		case end != nil:
			l.subscription.close()
			l.certain.Store(end.Settled)
			l.ended.Store(true)
			l.reportEnd(*end)
		case l.calling:
			l.calling = false
			answer := l.judge(protocol.LaneHandle, protocol.LaneAnswer{Jitter: mathrand.Float64()}, exited("the handler"))
			l.run.busy.Go(func() { l.live(answer) })
		default: // a panic in the library
			l.subscription.close()
			l.ended.Store(true)
		}
	}()
	end = l.work(answer)
}

// reportEnd tells the session of the lane's end, and Run the error to return.
func (l *lane[E]) reportEnd(end protocol.LaneAction) {
	switch in := end.End.Tells(l.id.Assignment.Generation).(type) {
	case nil:
	case protocol.Shutdown:
		l.worker.fail(l.reason(end))
	default:
		l.worker.input(in)
	}
}

// work carries the core from answer to action until it ends.
func (l *lane[E]) work(answer protocol.LaneAnswer) *protocol.LaneAction {
	for {
		now := time.Now()
		action := l.core.Next(now, l.signals(now), answer)
		l.keep()
		l.note(now, action)
		if action.Thwarted > 0 {
			l.worker.input(protocol.Thwarted{Vain: action.Thwarted})
		}
		if action.Rollback && l.tx != nil {
			rollback(l.tx, l.endTx)
			l.tx = nil
			l.open.Store(nil)
		}
		if action.Do == protocol.LaneEnd {
			end := action // or every action would be on the heap
			return &end
		}
		answer = l.do(action)
	}
}

// keep makes l.events the events that are pending in the core.
func (l *lane[E]) keep() {
	kept := l.core.Kept()
	for _, i := range kept {
		l.events = append(l.events, &l.page[i])
	}
	l.skipped += len(l.page) - len(kept)
	l.page = nil
	if n := l.core.Pending(); n == 0 {
		clear(l.events) // or their pages would stay
		l.events = l.events[:0]
	} else {
		l.events = l.events[len(l.events)-n:]
	}
}

// note reports what the core has done, and the action that it decided on.
func (l *lane[E]) note(now time.Time, a protocol.LaneAction) {
	l.caughtUp(a)
	if events, ok := l.core.Committed(); ok {
		if to := l.worker.to; to.BatchCommitted != nil {
			position, _ := l.core.Position()
			took := time.Duration(0)
			if !l.began.IsZero() {
				took = now.Sub(l.began)
			}
			emit(to, to.BatchCommitted, BatchCommitted{l.source(), l.name(), events, l.skipped, position, took})
		}
		l.skipped, l.began = 0, time.Time{}
	}
	if a.Rollback {
		l.began = time.Time{}
	}
	if a.Err != nil && (a.Do == protocol.LanePause || a.Do == protocol.LanePark || a.End == protocol.EndHandlerFailed) {
		l.fault = a.Err
	}
	switch a.Do {
	case protocol.LaneOpen, protocol.LaneHandle, protocol.LaneSave:
		if l.began.IsZero() {
			l.began = now
		}
	case protocol.LanePause, protocol.LaneEnd:
		if a.Why == protocol.HandlerCut {
			l.began = time.Time{}
		}
		if a.Why == protocol.HandlerFailed || a.End == protocol.EndHandlerFailed {
			l.began = time.Time{}
			l.failed(a.Position, a.Attempts, a.Do == protocol.LaneEnd, a.Retry)
		}
	}
	l.noteStatus(a)
}

// failed reports a failure of the handler, with the time until the next attempt, if there is
// one.
func (l *lane[E]) failed(position int64, attempt int, final bool, retry time.Duration) {
	emit(l.worker.to, l.worker.to.HandlerFailed, HandlerFailed{l.source(), l.name(), position, attempt, final, retry, redact.Error(l.fault)})
}

// do carries out an action and returns how it went.
func (l *lane[E]) do(a protocol.LaneAction) protocol.LaneAnswer {
	answer := protocol.LaneAnswer{Jitter: mathrand.Float64()}
	var err error
	switch a.Do {
	case protocol.LaneLoad:
		answer.Found, l.shown = l.shown, protocol.Found{}
		if !answer.Found.Exists {
			answer.Found, err = bounded(l.ctx, l.worker.patience(), func(ctx context.Context) (protocol.Found, error) {
				return l.worker.store.Load(ctx, l.id)
			}, nil)
		}
		if err == nil && answer.Found.Exists && !answer.Found.Follows {
			l.worker.versions.seen(l.worker.log, l.id.Projection, "")
		}
	case protocol.LaneFind:
		answer.Found, err = bounded(l.ctx, l.worker.patience(), func(ctx context.Context) (protocol.Found, error) {
			return l.worker.store.Find(ctx, l.id)
		}, nil)
	case protocol.LaneRead:
		var s subscriptionPage[E]
		if s, err = l.subscription.read(l.ctx, l.run.draining, a.After, a.Limit); err != nil {
			err = fmt.Errorf("%w: read after position %d: %w", ErrEventStore, a.After, err)
		}
		l.page, answer.Page, answer.Passed, answer.More = s.events, s.keys, s.passed, s.more
		if l.last = nil; s.more && len(s.events) > 0 {
			l.last = &s.events[len(s.events)-1]
		}
	case protocol.LaneFollow:
		answer.Followed, err = l.run.follows.liveProgress(l.id.Projection, a.Fresh, func() (protocol.Followed, error) {
			seen, err := bounded(l.ctx, l.worker.patience(), func(ctx context.Context) (protocol.Followed, error) {
				return l.worker.store.Followed(ctx, l.id.Projection)
			}, nil)
			if err == nil {
				l.worker.versions.seen(l.worker.log, l.id.Projection, seen.Version)
			}
			return seen, err
		})
	case protocol.LaneOpen:
		err = l.begin()
	case protocol.LaneProve:
		if a.Why == protocol.Suspended {
			l.log.Info("handler interrupted, will be called again", "position", a.Position, "cause", l.interruption())
		}
		l.prove()
		return answer
	case protocol.LaneHandle:
		events := l.again
		if !a.Parked {
			events = l.events[a.First : a.First+a.Count]
		}
		var begun bool
		if begun, err = l.call(&a, events); !begun {
			answer.Failure = protocol.NotBegun
			return answer
		}
	case protocol.LaneWrite:
		err = l.write(a.From, a.To)
	case protocol.LaneCommit:
		err = l.commit()
	case protocol.LaneSave:
		from, to := a.From, a.To // or a would be on the heap, also to handle an event
		err = boundedDo(l.ctx, l.worker.patience(), func(ctx context.Context) error {
			return l.worker.store.Save(ctx, l.id, from, to)
		})
	case protocol.LanePause:
		l.pause(a)
		return answer
	default:
		answer, err = l.doParked(a, answer)
	}
	if answer = l.judge(a.Do, answer, err); a.Do != protocol.LaneHandle && store.CantWrite(err) {
		store.DropStandbys(l.ctx, l.worker.cfg.DB)
	}
	if answer.Failure == protocol.Fenced {
		emit(l.worker.to, l.worker.to.CommitRefused, CommitRefused{l.source(), l.name(), a.To.Position})
	}
	return answer
}

// judge completes an answer with how the action went.
func (l *lane[E]) judge(do protocol.LaneDo, answer protocol.LaneAnswer, err error) protocol.LaneAnswer {
	l.did, l.err = do, err
	if err == nil {
		return answer
	}
	facts := store.FactsOf(err)
	_, bad := err.(*unreadable)
	if bad { // whatever that wraps
		facts, err = protocol.Facts{Failed: true}, own("the row", err)
	}
	cancelled := l.handlerScope != nil && l.handlerScope.Err() != nil
	facts, answer.Failure = l.core.Judge(time.Now(), facts, cancelled, l.worker.leases.at.Load().Terms)
	if facts.Idled {
		err = own("", fmt.Errorf("the server ended the transaction: the handler left it idle for longer than StaleWorkerTimeout (%s): %w", l.worker.cfg.StaleWorkerTimeout, err))
	}
	if do == protocol.LaneHandle || answer.Failure == protocol.Fault ||
		l.kind.InTransaction() && (do == protocol.LaneWrite || do == protocol.LaneCommit || do == protocol.LaneUnpark) {
		l.fault = err // what precedes the event is committed first
	}
	return answer
}

// interruption returns why the library has cancelled the handler.
func (l *lane[E]) interruption() error {
	return cmp.Or(context.Cause(l.handlerScope), ErrSuspended)
}

// begin starts a transaction. A transaction ends with the context that it was begun with, so
// that is not the one with the timeout; but when the timeout is over, the request must
// leave the pool's queue, or it would stay there behind all others.
func (l *lane[E]) begin() error {
	ctx, cancel := context.WithCancel(l.ctx)
	l.worker.handlers.soon()
	tx, err := bounded(l.ctx, l.worker.patience(), func(call context.Context) (*dbconn.Tx, error) {
		defer context.AfterFunc(call, cancel)()
		return l.worker.store.BeginHandler(ctx)
	}, func(tx *dbconn.Tx) { rollback(&handlerTx{tx: tx}, cancel) })
	l.worker.handlers.soon()
	if err != nil {
		cancel()
		return err
	}
	l.tx, l.endTx = &handlerTx{tx: tx}, cancel
	l.open.Store(tx)
	return nil
}

// rollback rolls a transaction back, in the background: its connection may not answer.
func rollback(t *handlerTx, endTx func()) {
	go func() {
		defer endTx()
		ctx, cancel := context.WithTimeout(context.Background(), rollbackPatience)
		defer cancel()
		t.mu.Lock()
		_ = t.endCopies(rollbackPatience) // of a handler that has panicked
		t.mu.Unlock()
		_ = t.tx.During(ctx, t.tx.Rollback) // an error says that it has ended
	}()
}

// rollbackPatience is how long to wait for a rollback. Then the connection is closed, which
// ends the transaction as well.
const rollbackPatience = time.Second

func (l *lane[E]) write(from, to protocol.Checkpoint) error {
	tx := l.tx.tx
	return boundedDo(l.ctx, l.worker.patience(), func(ctx context.Context) error {
		return tx.During(ctx, func() error { return l.worker.store.Commit(ctx, tx.Tx, l.id, from, to) })
	})
}

func (l *lane[E]) commit() error {
	tx := l.tx.tx
	err := boundedDo(l.ctx, l.worker.patience(), func(ctx context.Context) error { return tx.During(ctx, tx.Commit) })
	if err == nil {
		l.tx = nil
		l.open.Store(nil)
		l.endTx()
	}
	return err
}

// prove waits until the database has answered on the worker's dedicated connection.
func (l *lane[E]) prove() {
	terms := l.worker.leases.at.Load()
	if !terms.Unproven(time.Now()) {
		return
	}
	l.worker.input(protocol.ProofWanted{})
	select {
	case <-terms.changed:
	case <-l.run.draining:
	case <-l.ctx.Done():
	}
}

// within sets the handler scope of the next calls of the handler.
func (l *lane[E]) within(s *handlerScope) {
	if s == l.handlerScope {
		return
	}
	a := l.id.Assignment
	l.handlerScope = s
	l.calls.begin(s, l.id.Projection, Assignment{
		ReplicaSet: l.worker.cfg.ReplicaSet, Generation: a.Generation, Partition: a.Partition, TotalPartitions: a.Total,
	})
}

// call calls the handler, and turns its failure into an error of the library. The handler
// counts as running before the proof is checked for the last time. So when the proof runs
// out, either the session knows that a handler runs, or none begins.
func (l *lane[E]) call(a *protocol.LaneAction, events []*Record[E]) (begun bool, err error) {
	l.worker.handlers.begin()
	defer l.worker.handlers.end()
	l.within(l.run.scope.Load())
	if l.worker.leases.at.Load().Unproven(time.Now()) {
		return false, nil
	}
	position := events[0].Position
	l.position.Store(position)
	defer l.position.Store(0)
	l.inScope.Store(l.handlerScope)
	defer l.inScope.Store(nil)
	l.calling = true // and it stays so if this goroutine ends
	err = l.guarded(l.calls.call(a, position, len(events)), events)
	l.calling = false
	return true, err
}

// guarded is safely, without allocating a closure for each event.
func (l *lane[E]) guarded(ctx *callContext, events []*Record[E]) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked("the handler", v)
		}
	}()
	if err := unreadableIn(events); err != nil {
		return err
	}
	if l.worker.cfg.Around != nil {
		return own("Config.Around", l.around(ctx, events))
	}
	return l.settled(own("the handler", l.handle(ctx, events)))
}

// settled returns what has become of a call of the handler, which has returned err.
func (l *lane[E]) settled(err error) error {
	if l.tx != nil {
		err = l.tx.settle(err, l.worker.patience())
	}
	return own("the handler", err)
}

// pause waits, at most until the lane is asked to stop.
func (l *lane[E]) pause(a protocol.LaneAction) {
	switch {
	case a.Why == protocol.HandlerFailed:
		l.log.Warn("handler failed, will retry", "position", a.Position, "attempt", a.Attempts, "retry_in", a.Retry, "error", l.fault)
	case a.Why == protocol.HandlerCut:
		l.log.Info("handler interrupted, will be called again", "position", a.Position, "cause", l.fault)
	case a.Why == protocol.ParkedFull && !l.full:
		l.full = true
		l.log.Error("too many events parked, partition waits", "position", a.Position)
	case a.Why == protocol.DatabaseFailed && !store.LockTimeout(l.err):
		l.log.Warn("database operation failed, retrying", "doing", doing[l.did], "error", l.err)
	}
	var news <-chan struct{}
	if a.Why == protocol.NothingNew {
		news = l.subscription.news
	}
	t := time.NewTimer(a.For)
	defer t.Stop()
	select {
	case <-t.C:
	case <-news:
	case <-l.run.draining:
	case <-l.ctx.Done():
	}
	if a.Why == protocol.HandlerFailed || a.Why == protocol.HandlerWaits {
		l.readAgain()
	}
}

// doing names the operation in which the database failed.
var doing = map[protocol.LaneDo]string{
	protocol.LaneLoad: "read the checkpoint", protocol.LaneFind: "read the checkpoint", protocol.LaneRead: "read events", protocol.LaneOpen: "begin a transaction",
	protocol.LaneFollow: "read how far the live version of the projection is",
	protocol.LaneWrite:  "commit", protocol.LaneCommit: "commit", protocol.LaneSave: "commit",
	protocol.LaneLoadParked: "look for parked events", protocol.LanePark: "park events", protocol.LaneFetch: "read a parked event",
	protocol.LaneUnpark: "commit", protocol.LaneDrop: "delete a parked event", protocol.LaneNote: "note a failure",
	protocol.LaneLocate: "answer an order to park an event", protocol.LaneLapse: "answer an order to park an event",
}

// reason returns the error of Run that the lane's end causes.
func (l *lane[E]) reason(end protocol.LaneAction) error {
	switch {
	case end.End == protocol.EndHandlerFailed:
		return &HandlerError{
			Projection: l.id.Projection, Position: end.Position, Partition: l.id.Assignment.Partition,
			Attempts: end.Attempts, Err: l.fault,
		}
	case end.Err != nil:
		return fmt.Errorf("%w: %w", ErrEventStore, end.Err)
	}
	return explain(l.err)
}

// doParked is do for the actions about parked events.
func (l *lane[E]) doParked(a protocol.LaneAction, answer protocol.LaneAnswer) (protocol.LaneAnswer, error) {
	var err error
	s, patience := l.worker.store, l.worker.patience()
	switch a.Do {
	case protocol.LaneLoadParked:
		look := s.Parked
		if a.Requests {
			look = s.Requested
		}
		answer.Parked, err = bounded(l.ctx, patience, func(ctx context.Context) ([]protocol.Parked, error) { return look(ctx, l.id) }, nil)
	case protocol.LanePark:
		parked, text := l.core.Parking(), ""
		if a.Attempts > 0 {
			text = fmt.Sprint(redact.Error(l.fault))
		}
		if a.Ordered {
			text = strings.TrimSuffix(byOrder+text, ": ")
		}
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error { return s.Park(ctx, l.id, a.From, a.To, parked, text) })
		if err == nil {
			l.parked(a, parked)
		}
	case protocol.LaneFetch:
		l.again, answer.Page = nil, nil
		var e *Record[E]
		e, err = bounded(l.ctx, patience, func(ctx context.Context) (*Record[E], error) { return l.subscription.fetch(ctx, a.Position) }, nil)
		if e != nil {
			l.again, answer.Page = []*Record[E]{e}, []protocol.Key{{Position: e.Position, Aggregate: e.AggregateID}}
		}
	case protocol.LaneUnpark:
		tx := l.tx.tx
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error {
			return tx.During(ctx, func() error { return s.Unpark(ctx, tx.Tx, l.id, a.Position) })
		})
	case protocol.LaneDrop:
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error { return s.Drop(ctx, l.id, a.Position) })
		if err == nil && a.Discard {
			l.log.Info("parked event discarded", "position", a.Position)
		}
	case protocol.LaneNote:
		failure := a.Err
		if failure == nil {
			failure = l.fault
			l.failed(a.Position, a.Attempts, true, 0)
		}
		l.log.Error("retry of a parked event failed", "position", a.Position, "attempt", a.Attempts, "error", failure)
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error {
			return s.Note(ctx, l.id, a.Position, a.Attempts, fmt.Sprint(redact.Error(failure)))
		})
	case protocol.LaneLocate:
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error { return s.Locate(ctx, l.id, a.Order, a.Slot) })
	case protocol.LaneLapse:
		err = boundedDo(l.ctx, patience, func(ctx context.Context) error { return s.Lapse(ctx, l.id, a.Order, a.Err.Error()) })
		if err == nil {
			l.log.Info("order to park an event not carried out", "position", a.Position, "reason", a.Err)
		}
	}
	return answer, err
}

// byOrder begins the error of an event that was parked by order.
const byOrder = "parked by order: "

// parked reports that events were parked.
func (l *lane[E]) parked(a protocol.LaneAction, parked []protocol.Parked) {
	l.full = false
	for _, p := range parked {
		e := EventParked{Source: l.source(), Lane: l.name(), Position: p.Position, AggregateID: p.Aggregate, Attempts: p.Attempts, Ordered: a.Ordered}
		if p.Attempts > 0 {
			e.Err = redact.Error(l.fault)
		}
		if p.Attempts > 0 && !a.Ordered {
			l.failed(p.Position, p.Attempts, true, 0)
		}
		emit(l.worker.to, l.worker.to.EventParked, e)
		if a.Ordered {
			l.log.Warn("event parked by order", "position", p.Position, "aggregate", p.Aggregate, "attempts", p.Attempts, "error", e.Err)
		} else if p.Attempts > 0 {
			l.log.Error("event parked", "position", p.Position, "aggregate", p.Aggregate, "attempts", p.Attempts, "error", l.fault)
		} else {
			l.log.Debug("event parked behind another", "position", p.Position, "aggregate", p.Aggregate)
		}
	}
}

// readAgain reads the first pending event that could not be read again, before the next
// attempt: its row may have been fixed.
func (l *lane[E]) readAgain() {
	i := slices.IndexFunc(l.events, func(e *Record[E]) bool { return e.Err != nil })
	if i < 0 || l.signals(time.Now()).Asked {
		return
	}
	position := l.events[i].Position
	again, err := bounded(l.ctx, l.worker.patience(), func(ctx context.Context) (*Record[E], error) { return l.subscription.fetch(ctx, position) }, nil)
	if err == nil && again != nil {
		l.events[i] = again
	}
}

// fetch reads the event at a position, nil if there is none within the scope.
func (s *subscription[E]) fetch(ctx context.Context, position int64) (r *Record[E], err error) {
	if failed := contained(func() { r, err = s.at(ctx, position) }); failed != nil {
		return nil, fmt.Errorf("%w: read at position %d: %w", ErrEventStore, position, failed)
	}
	return r, err
}

func (s *subscription[E]) at(ctx context.Context, position int64) (*Record[E], error) {
	page, err := s.feed.events.Read(ctx, ReadRequest{After: position - 1, Limit: 1, Scope: s.scope})
	if err != nil {
		return nil, fmt.Errorf("%w: read at position %d: %w", ErrEventStore, position, err)
	}
	if len(page.Records) == 0 {
		if _, _, _, err := protocol.StorePage(position-1, 1, nil, page.Through, page.More); err != nil {
			return nil, fmt.Errorf("%w: read at position %d: %w", ErrEventStore, position, err)
		}
		return nil, nil
	}
	if page.Records[0].Position != position {
		return nil, nil
	}
	e := &page.Records[0]
	switch out, err := leavesOut(s.scope, e, s.feed.emptyIsValue()); {
	case err != nil:
		return nil, fmt.Errorf("%w: read at position %d: %w", ErrEventStore, position, err)
	case out:
		return nil, nil
	}
	return e, nil
}
