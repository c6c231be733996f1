package orchestrator

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// One worker's part in coordination. Two pure state machines in internal/protocol decide
// everything: Step (coordinator.go there) turns the members of a replica set into generations,
// inside the database transaction of the worker that asks; Session (session.go there) is one
// worker's side. The loop below passes inputs to the session and carries out its actions. It
// decides nothing.

// A worker is one call of Run.
type worker[E any] struct {
	name        protocol.WorkerID // of its first incarnation
	goesBy      atomic.Value      // the name of its present one, a string, for the log
	cfg         Config[E]
	projections []Projection[E]
	names       []string
	scopes      []Scope // of each projection
	starts      starts
	versions    versions

	store   *store.Store
	feed    *feed[E]
	session *protocol.Session
	log     *slog.Logger
	to      *observerQueue

	// life ends with Run, and not with Run's context: a worker that is stopping still
	// commits and leaves.
	life context.Context
	end  context.CancelFunc
	busy sync.WaitGroup // syncs under way

	inputs     chan protocol.Input
	hints      chan struct{} // notifications; holds one, since more have the same effect
	fatal      chan error
	syncError  error // of the latest request that has failed; the loop reads it after that input
	leases     *lease
	handlers   handlers
	presence   presence
	unspare    func()                 // releases the dedicated connection's place in the pool
	moved      atomic.Bool            // a request has found a server that takes no writes
	unattached atomic.Pointer[error]  // the latest error of the dedicated connection
	leaseOnly  atomic.Pointer[string] // why crash detection is off; nil: it is on, or Config.LeaseOnly is set
	keeps      atomic.Int64           // how long the dedicated connection is kept after Run, in nanoseconds
	health     *healthState
	run        *run[E]                                       // what the session has started
	shown      atomic.Pointer[map[store.Lane]protocol.Found] // the checkpoints that the latest heartbeat has returned
	foreseen   atomic.Pointer[store.Foresight]               // what the checks at the start have read of the set
	waiting    waiting
	watch      watch
	joined     protocol.WorkerID // the latest incarnation that became a member
	stream     string            // what the event store reads; "": not known
	reporting  reporting
	catchUp    catchUp
	paused     paused
}

// waiting is since when this worker has seen a generation wait for others, and when it last
// logged that.
type waiting struct {
	generation   int64
	since, noted time.Time
}

// lease has the terms of the lease, which every lane checks before it calls a handler.
type lease struct{ at atomic.Pointer[terms] }

// terms are those of the session.
type terms struct {
	protocol.Terms
	changed chan struct{} // closed when there is a newer proof
}

func newLease() *lease {
	l := &lease{}
	l.at.Store(&terms{changed: make(chan struct{})})
	return l
}

// set copies the session's terms.
func (l *lease) set(s *protocol.Session) {
	old := l.at.Load()
	t := &terms{s.Terms(), old.changed}
	proven := t.Bound != old.Bound || !t.Begin.Equal(old.Begin)
	if proven {
		t.changed = make(chan struct{})
	}
	l.at.Store(t)
	if proven {
		close(old.changed)
	}
}

// handlers counts the handlers that run.
type handlers struct {
	running atomic.Int64
	began   atomic.Bool // one has begun since the last call of lately
}

func (h *handlers) begin() {
	h.running.Add(1)
	if !h.began.Load() {
		h.began.Store(true)
	}
}

// soon notes that one will begin, or continue, within a moment.
func (h *handlers) soon() { h.began.Store(true) }

func (h *handlers) end() { h.running.Add(-1) }

// lately reports whether one runs, or has begun since the last call.
func (h *handlers) lately() bool { return h.began.Swap(false) || h.running.Load() > 0 }

func newWorker[E any](ctx context.Context, cfg Config[E], projections []Projection[E], names []string, scopes []Scope, of map[string]Start, rebuilds map[string]string) *worker[E] {
	name := workerName()
	w := &worker[E]{
		name: protocol.WorkerID(name), cfg: cfg, projections: projections, names: names, scopes: scopes,
		starts: starts{of: of, found: map[string]int64{}},
		feed:   joinFeed(cfg.EventStore, cfg.feedConfig(), cfg.StaleWorkerTimeout),
		session: protocol.NewSession(protocol.WorkerID(name),
			cfg.timing(), protocol.Request{Wants: cfg.Partitions, MaxPartitions: cfg.MaxPartitions, JoinWindow: cfg.JoinWindow, Vacate: cfg.ReplacementWindow}),
		inputs:    make(chan protocol.Input),
		hints:     make(chan struct{}, 1),
		fatal:     make(chan error),
		leases:    newLease(),
		reporting: reporting{slot: make(chan struct{}, 1)},
	}
	w.store = store.New(cfg.DB, string(cfg.ReplicaSet), store.Options{Schema: cfg.Schema, Bounds: store.BoundsOf(cfg.StaleWorkerTimeout), Starts: w.startPositions, Rebuilds: rebuilds})
	w.goesBy.Store(name)
	w.log = slog.New(namedLog{cfg.Logger.With("replica_set", string(cfg.ReplicaSet)).Handler(), &w.goesBy})
	w.to = newObserverQueue(cfg.Observer, w.log)
	w.present()
	w.life, w.end = context.WithCancel(context.WithoutCancel(ctx))
	return w
}

// workerName returns a unique name that shows where the worker is: host, process id and a
// random part.
func workerName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	host = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= '~' {
			return '_'
		}
		return r
	}, host[:min(len(host), 100)])
	n, _ := rand.Int(rand.Reader, big.NewInt(1<<40)) // crypto/rand never fails
	return fmt.Sprintf("%s-%d-%08s", host, os.Getpid(), n.Text(36))
}

// source returns the Source of an event about a worker of the set.
func (w *worker[E]) source(id protocol.WorkerID) Source {
	return Source{ReplicaSet: w.cfg.ReplicaSet, Worker: string(id), At: time.Now()}
}

// listen subscribes the worker to notifications, and returns the function that ends that.
func (w *worker[E]) listen() (leave func()) {
	return listen(w.cfg.Notifier, w.log, &subscriber{
		set: string(w.cfg.ReplicaSet), events: w.cfg.EventsChannel,
		poll: func() {
			select {
			case w.hints <- struct{}{}:
			default:
			}
		},
		eventsHeard: w.feed.listen(),
	})
}

// check returns an error, before the worker joins, if the tables or the event store can't be
// used. It waits for a database that is away.
func (w *worker[E]) check(ctx context.Context) error {
	backoff := protocol.RetryStart.Backoff()
	for failures := 1; ; failures++ {
		err := w.checkOnce(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !store.FactsOf(err).Away():
			return explain(err)
		}
		w.log.Warn("database unreachable, retrying", "error", err)
		if !calls.Sleep(ctx, backoff.Delay(failures, mathrand.Float64())) {
			return ctx.Err()
		}
	}
}

// checkOnce makes the checks concurrently, since the start waits for them, and returns the
// error that says what to do first. Checks that need fewer round trips than that of the event
// store are made one after the other, on one connection of the pool: opening another one
// would take longer.
func (w *worker[E]) checkOnce(ctx context.Context) error {
	bounded := func(check func(context.Context) error) func() error {
		return func() error { return boundedDo(ctx, w.cfg.StaleWorkerTimeout, check) }
	}
	then := func(checks ...func() error) func() error {
		return func() error {
			for _, check := range checks {
				if err := check(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	var unidentified error // returned only if there is no other error
	err := sideBySide(
		then(bounded(w.checkSettings), func() error {
			unidentified = bounded(w.identify)()
			return nil
		}),
		then(bounded(w.store.Check), bounded(w.checkNames), bounded(w.foresee)),
		bounded(w.checkEvents))
	if err != nil {
		return err
	}
	return unidentified
}

func (w *worker[E]) checkSettings(ctx context.Context) error {
	err := w.store.CheckSettings(ctx)
	if errors.Is(err, store.ErrSettings) {
		return fmt.Errorf("%w: Config.DB: %w", ErrInvalidConfig, err)
	}
	return err
}

func (w *worker[E]) checkEvents(ctx context.Context) error {
	c, ok := w.cfg.EventStore.(Checker)
	if !ok {
		return nil
	}
	if err := safely("the event store", func() error { return c.Check(ctx) }); err != nil {
		return fmt.Errorf("%w: %w", ErrEventStore, err)
	}
	return nil
}

func (w *worker[E]) identify(ctx context.Context) (err error) {
	if s, ok := w.cfg.EventStore.(identified); ok {
		w.stream, err = s.identity(ctx, w.cfg.DB)
	}
	return err
}

// checkNames returns an error if the database can't store a name, because its encoding lacks a
// character.
func (w *worker[E]) checkNames(ctx context.Context) error {
	c, err := dbconn.Take(ctx, w.cfg.DB)
	if err != nil {
		return fmt.Errorf("check that the database can hold the names: %w", err)
	}
	defer c.Close()
	return c.During(ctx, func() error {
		if err := store.Holds(ctx, c, string(w.cfg.ReplicaSet)); err != nil {
			return unstorable("Config.ReplicaSet", err)
		}
		for i, name := range w.names {
			if err := store.Holds(ctx, c, name); err != nil {
				return unstorable(fmt.Sprintf("the name of projections[%d]", i), err)
			}
		}
		return nil
	})
}

// foresee reads the set in advance, so that the join need not.
func (w *worker[E]) foresee(ctx context.Context) error {
	w.foreseen.Store(w.store.Foresee(ctx, w.session.ID(), time.Now()))
	return nil
}

func unstorable(field string, err error) error {
	if store.Unstorable(err) {
		return fmt.Errorf("%w: %s %w", ErrInvalidConfig, field, err)
	}
	return fmt.Errorf("check that the database can hold %s: %w", field, err)
}

// explain adds what to do to an error of a database that no retry makes usable.
func explain(err error) error {
	switch {
	case store.FactsOf(err).Malformed:
		return fmt.Errorf("%w: the connection string of the database: %w", ErrInvalidConfig, err)
	case store.FactsOf(err).Closed:
		return fmt.Errorf("orchestrator: the *sql.DB was closed before Run returned: %w", err)
	}
	return err
}

// An identified event store has an identity, with which the workers of a replica set make sure
// that they all read the same.
type identified interface {
	identity(ctx context.Context, coordination *sql.DB) (string, error)
}

// loop passes inputs to the session and carries out its actions until it exits.
func (w *worker[E]) loop(ctx context.Context) error {
	defer w.busy.Wait()
	defer w.end()

	wake := time.NewTimer(0)
	defer wake.Stop()
	looks := time.NewTicker(w.observeEvery())
	defer looks.Stop()
	shutdown := ctx.Done()
	var cause error // why Run ends, if not for ctx
	fail := func(err error) {
		if cause == nil {
			cause = err
			w.log.Error("worker failed", "error", err)
		}
	}
	for {
		var in protocol.Input
		select {
		case <-shutdown:
			in, shutdown = protocol.Shutdown{Replaced: true}, nil
		case err := <-w.fatal:
			fail(err)
			in = protocol.Shutdown{}
		case in = <-w.inputs:
			w.note(in)
		case <-w.hints:
			in = protocol.Hinted{}
		case <-wake.C:
			in = protocol.Tick{}
		case <-looks.C:
			in = w.observe(time.Now())
		}
		now, id := time.Now(), w.session.ID()
		w.session.Handling(w.handlers.lately())
		actions := w.session.Next(now, in)
		w.leases.set(w.session)
		if again := w.session.ID(); again != id {
			w.log.Info("rejoining as a new worker", "new_worker", string(again))
			w.goesBy.Store(string(again))
		}
		w.health.turn(now, in, actions)
		for _, action := range actions {
			switch a := action.(type) {
			case protocol.Sync:
				report := w.takeReport(now, a.Request)
				w.busy.Go(func() { w.sync(a.Request, report) })
			case protocol.Start:
				w.start(a.Share)
			case protocol.Drain:
				w.log.Debug("finishing the events in hand", "generation", a.Generation)
				if shutdown != nil && cause == nil {
					emit(w.to, w.to.GenerationSuperseded, GenerationSuperseded{w.run.source(), a.Generation})
				}
				w.run.drain()
			case protocol.Cancel:
				w.cancel(a)
			case protocol.Suspend:
				w.log.Warn("handlers suspended: database unreachable for 0.65s") // protocol.presenceOwn
				w.run.suspend()
			case protocol.Forgo:
				w.forgo(a.Why)
			case protocol.Attach:
				w.busy.Go(func() { w.attach(a) })
			case protocol.Prove:
				id := w.session.ID()
				w.busy.Go(func() { w.prove(a, id) })
			case protocol.Wake:
				// A session that only waits for handlers may sleep for long. An
				// early Tick changes nothing, and shows probes that the loop runs.
				wake.Reset(min(a.At.Sub(now), w.cfg.HeartbeatInterval))
			case protocol.GiveUp:
				fail(w.refusal(a.Why))
			case protocol.LaneMissing:
				w.log.Warn("internal error: a projection has ended on a partition, rejoining; please report this", "generation", a.Generation)
			case protocol.Exit:
				if a.Cause == protocol.DrainTimeout {
					return w.stuck(a.Keep, cause)
				}
				w.leavePresence(a.Keep)
				w.log.Info("left the replica set")
				if cause != nil {
					return cause
				}
				return ctx.Err()
			}
		}
	}
}

// sync carries out one request and passes the answer to the session.
func (w *worker[E]) sync(r protocol.Request, report []byte) {
	sent := time.Now()
	result, err := w.ask(r)
	source, latency := w.source(r.Worker), time.Since(sent)
	if err == nil {
		if !result.Since.IsZero() {
			sent = result.Since
		}
		if r.Leave {
			w.unreport(r.Worker)
			if m, vacant := result.Group.Vacancy(r.Worker); vacant {
				w.log.Info("partitions reserved for a replacement worker", "partitions", protocol.FormatPartitions(m.Partitions), "for", r.Vacate)
			}
		}
		emit(w.to, w.to.Heartbeat, Heartbeat{Source: source, Latency: latency})
		w.decided(source, result)
		w.shown.Store(&result.Checkpoints)
		w.input(protocol.Synced{Request: r, Sent: sent, View: result.View})
		w.writeReport(r.Worker, report)
		return
	}
	emit(w.to, w.to.Heartbeat, Heartbeat{Source: source, Latency: latency, Err: redact.Error(err)})
	failed := protocol.SyncFailed{Request: r, Sent: sent, Jitter: mathrand.Float64(), Facts: store.FactsOf(err)}
	var taken *store.TakenError
	if errors.As(err, &taken) {
		failed.Database = taken.Now
	}
	if store.CantWrite(err) {
		w.moved.Store(true)
		store.DropStandbys(w.life, w.cfg.DB)
	}
	switch {
	case failed.Facts.Coordination() != protocol.SyncPasses: // see refusal
	case taken != nil:
		w.log.Info("waiting for the lease of a worker in another replica set to end", "projection", taken.Projection,
			"other_replica_set", taken.ReplicaSet, "other_worker", string(taken.Worker))
	case w.life.Err() == nil:
		w.log.Warn("coordination failed, retrying", "error", err)
	}
	w.syncError = err
	w.input(failed)
}

// refusal returns the error of Run if no retry of the latest request can succeed.
func (w *worker[E]) refusal(why protocol.SyncFailure) error {
	if store.Misnamed(w.syncError) {
		return fmt.Errorf("%w: %w", ErrInvalidConfig, w.syncError)
	}
	switch why {
	case protocol.SyncStranger:
		return fmt.Errorf("%w: %w", ErrEventStore, w.syncError)
	case protocol.SyncTaken:
		return fmt.Errorf("%w: %w", ErrProjectionTaken, w.syncError)
	}
	return explain(fmt.Errorf("coordinate replica set %q: %w", w.cfg.ReplicaSet, w.syncError))
}

// ask sends one request.
func (w *worker[E]) ask(r protocol.Request) (store.Result, error) {
	var foreseen *store.Foresight
	if r.Join {
		r.Stream = w.stream
		if f := w.foreseen.Swap(nil); f.Fresh(time.Now(), r) {
			foreseen = f
		}
	}
	return bounded(w.life, w.patience(), func(ctx context.Context) (store.Result, error) {
		if r.Join {
			if err := w.startAgain(ctx); err != nil {
				return store.Result{}, err
			}
		}
		return w.store.SyncForeseen(ctx, r, w.names, foreseen)
	}, nil)
}

// reporting is the state of writing the worker's reports. Nothing depends on a report.
type reporting struct {
	slot    chan struct{} // holds one while a report is written; then the next one is skipped
	failing bool          // the latest could not be written
	pause   time.Time     // no report is written before this time
}

// unreportMax is how long a worker that leaves may take to remove its report.
const unreportMax = 200 * time.Millisecond

// reportPause is how long a worker without the privilege to write reports waits
// before it tries again.
const reportPause = time.Minute

// writeReport writes a report, in a statement of its own: a report that can't be written,
// because of a lock, a privilege or its content, must not cost the lease.
func (w *worker[E]) writeReport(id protocol.WorkerID, report []byte) {
	if report == nil {
		return
	}
	select {
	case w.reporting.slot <- struct{}{}:
		defer func() { <-w.reporting.slot }()
	default:
		return
	}
	if time.Now().Before(w.reporting.pause) {
		return
	}
	err := boundedDo(w.life, w.patience(), func(ctx context.Context) error { return w.store.Report(ctx, id, report) })
	if store.Denied(err) {
		w.reporting.pause = time.Now().Add(reportPause)
	}
	switch failed := err != nil; {
	case w.life.Err() != nil || failed == w.reporting.failing:
	case failed:
		w.reporting.failing = true
		w.log.Warn("cannot write status reports; status will be out of date", "error", err)
	default:
		w.reporting.failing = false
		w.log.Info("status reports are written again")
	}
}

// unreport removes the report of a worker that leaves. If that fails, the next report of
// another worker removes it.
func (w *worker[E]) unreport(id protocol.WorkerID) {
	ctx, cancel := context.WithTimeout(w.life, unreportMax)
	defer cancel()
	select {
	case w.reporting.slot <- struct{}{}: // not while one is written
		defer func() { <-w.reporting.slot }()
		_ = boundedDo(ctx, unreportMax, func(ctx context.Context) error { return w.store.Unreport(ctx, id) })
	case <-ctx.Done():
	}
}

// patience is how long to wait for one answer of the database.
func (w *worker[E]) patience() time.Duration { return w.cfg.timing().Patience() }

// input passes an input to the loop, unless that has ended.
func (w *worker[E]) input(in protocol.Input) {
	select {
	case w.inputs <- in:
	case <-w.life.Done():
	}
}

// fail makes Run stop and return err.
func (w *worker[E]) fail(err error) {
	select {
	case w.fatal <- err:
	case <-w.life.Done():
	}
}

// note logs and reports what an input means.
func (w *worker[E]) note(in protocol.Input) {
	switch in := in.(type) {
	case protocol.Synced:
		if id := w.session.ID(); in.View.Member && in.Request.Worker == id && w.joined != id {
			w.joined = id
			w.log.Info("joined the replica set")
			emit(w.to, w.to.WorkerJoined, WorkerJoined{w.source(id)})
		}
	case protocol.Refused:
		w.log.Info("partitions lost: a commit was refused, or the lease has ended", "generation", in.Generation)
	case protocol.Stopped:
		w.stopped()
	}
}

// stopped notes that no lane runs any more.
func (w *worker[E]) stopped() {
	for _, l := range w.run.lanes {
		if l.watch.End() {
			l.mu.Lock()
			position := l.status.position
			l.mu.Unlock()
			w.unstalled(time.Now(), l, position)
		}
	}
	w.run.over = true
	s := w.run.share
	w.log.Info("partitions stopped", "generation", s.Generation)
	emit(w.to, w.to.PartitionsChanged, PartitionsChanged{Source: w.run.source(), Generation: s.Generation, TotalPartitions: s.Total})
}

// gap reports a gap that reads wait at, or that they do not wait any more.
func (w *worker[E]) gap(g Gap, resolved bool) {
	e := GapWaited{Source: w.source(w.name), Position: g.Position, Backends: g.Backends}
	if resolved {
		e.Backends, e.Over, e.Waited = nil, true, time.Since(g.Since)
	}
	emit(w.to, w.to.GapWaited, e)
}

// start starts the lanes of a share.
func (w *worker[E]) start(s protocol.Share) {
	w.log.Info("partitions started", "generation", s.Generation, "partitions", protocol.FormatPartitions(s.Partitions), "total_partitions", s.Total)
	if t, ok := w.cfg.EventStore.(interface{ askAgain(context.Context) }); ok {
		w.busy.Go(func() { // assumptions may have changed with the members; later, when all run
			if calls.Sleep(w.life, time.Second+mathrand.N(time.Second)) {
				t.askAgain(w.life)
			}
		})
	}
	w.run, w.watch.generation = startRun(w, s), s.Generation
	emit(w.to, w.to.PartitionsChanged, PartitionsChanged{w.run.source(), s.Generation, s.Partitions, s.Total})
}

func (w *worker[E]) cancel(a protocol.Cancel) {
	if a.Lost {
		w.log.Warn("lease lost, handlers cancelled", "generation", a.Generation)
		emit(w.to, w.to.LeaseLost, LeaseLost{w.run.source(), a.Generation})
		w.run.cancel(ErrLeaseLost)
		return
	}
	w.log.Warn("handlers did not stop in time, cancelling them", "generation", a.Generation, "handlers", list(w.run.inHand()))
	w.run.cancel(ErrGenerationSuperseded)
}

// stuck returns the error for handlers that did not return. It does not wait for their
// goroutines. The dedicated connection is kept for a time.
func (w *worker[E]) stuck(keep time.Duration, cause error) error {
	w.run.cancel(ErrGenerationSuperseded)
	inHand := w.run.inHand()
	emit(w.to, w.to.CoordinationTimeout, CoordinationTimeout{w.run.source(), w.run.share.Generation, inHand})
	w.leavePresence(keep)
	err := fmt.Errorf("%w: these handlers did not return within %s of being asked to stop: %s",
		ErrCoordinationTimeout, w.cfg.CoordinationTimeout, strings.Join(inHand, ", "))
	return errors.Join(err, cause)
}

// decided logs and reports what this worker has decided for the set: generations that it
// opened or activated, workers that it removed, and whom a generation waits for.
func (w *worker[E]) decided(source Source, r store.Result) {
	d, g := r.Decision, r.Group
	if len(d.Expired) > 0 {
		w.log.Warn("expired workers removed", "workers", list(d.Expired))
	}
	for _, id := range d.Expired {
		emit(w.to, w.to.WorkerExpired, WorkerExpired{source, string(id)})
	}
	for _, id := range d.Lapsed {
		w.log.Info("no replacement worker came, reserved partitions are reassigned", "from", string(id))
	}
	for _, t := range d.Taken {
		w.log.Info("replacement worker took over reserved partitions", "from", string(t.From), "by", string(t.By))
	}
	if d.Opened {
		w.log.Info("generation opened", "generation", g.Generation, "reason", g.Reason, "total_partitions", g.Total, "waits_for", list(d.WaitsFor))
		emit(w.to, w.to.GenerationOpened, GenerationOpened{source, g.Generation, g.Reason, g.Total, texts(d.WaitsFor)})
	}
	if d.Activated {
		took := max(0, r.View.Now.Sub(r.OpenedAt))
		w.log.Info("generation activated", "generation", g.Generation, "reason", g.Reason, "total_partitions", g.Total,
			"duration", took, "waited_for", list(r.WaitedFor))
		emit(w.to, w.to.GenerationActivated, GenerationActivated{source, g.Generation, g.Reason, g.Total, took, texts(r.WaitedFor)})
	}
	if len(d.WaitsFor) > 0 {
		w.delayed(source, g.Generation, d.WaitsFor)
	}
}

// delayed logs and reports the workers that a generation waits for, after longer than their
// heartbeats explain, and then every ten seconds.
func (w *worker[E]) delayed(source Source, generation int64, holders []protocol.WorkerID) {
	now := time.Now()
	if w.waiting.generation != generation {
		w.waiting = waiting{generation: generation, since: now}
	}
	waited := now.Sub(w.waiting.since)
	if waited > 2*w.cfg.HeartbeatInterval && now.Sub(w.waiting.noted) > 10*time.Second {
		w.waiting.noted = now
		w.log.Warn("waiting for workers to stop", "generation", generation, "workers", list(holders), "waited", waited)
		emit(w.to, w.to.GenerationDelayed, GenerationDelayed{source, generation, texts(holders), waited})
	}
}

func texts(ids []protocol.WorkerID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return out
}
