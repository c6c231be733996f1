package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Orchestrator runs workers of one replica set: each call of Run is one worker.
type Orchestrator[E any] struct {
	cfg  Config[E]
	runs runs
}

// New returns an Orchestrator, after it has checked the configuration. It does not use the
// database. The error is ErrInvalidConfig and names the field.
func New[E any](cfg Config[E]) (*Orchestrator[E], error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Orchestrator[E]{cfg: cfg}, nil
}

// Run joins the replica set and handles the events of its partitions until ctx is
// cancelled. Then it finishes and commits the events in hand, leaves, and returns nil; the
// other workers re-partition at once. (With a ReplacementWindow, the next worker takes over
// its partitions, and the others do not re-partition.)
//
// Run returns an error only when it can't continue: ErrInvalidConfig, ErrSchema,
// ErrProjectionTaken, ErrEventStore, ErrCoordinationTimeout, a *HandlerError under the
// policy StopOnFailure, the error of a DB that was closed, or the server's error about a
// missing privilege or table. A lost partition, a new generation and a database that is
// away for a while are not errors. A refused login is an error at the start only; later it
// is retried, since passwords change. No error has a connection string in its text.
//
// Each call of Run is a worker of its own. All workers of a replica set should run the
// same projections. While a rolling update adds a projection, it stays idle on partitions
// whose worker does not have it yet.
func (o *Orchestrator[E]) Run(ctx context.Context, projections []Projection[E]) error {
	return unlessEnded(ctx, o.run(ctx, projections, o.cfg.ReplacementWindow))
}

// unlessEnded returns err, or nil if Run has ended because ctx has.
func unlessEnded(ctx context.Context, err error) error {
	if err != nil && err == ctx.Err() {
		return nil
	}
	return err
}

// run is Run, with the time for which the worker's partitions are reserved. It returns
// ctx.Err() where Run returns nil.
func (o *Orchestrator[E]) run(ctx context.Context, projections []Projection[E], replacement time.Duration) (err error) {
	health := o.runs.begin(o.cfg.timing(), o.cfg.JoinWindow)
	defer func() {
		err = redact.Error(err)
		health.end(ctx, err)
	}()
	defer func() {
		if err != nil && !health.begun() && err != ctx.Err() {
			log := o.cfg.Logger.With("replica_set", string(o.cfg.ReplicaSet))
			log.Error("worker did not start", "error", err)
		}
	}()
	names, err := projectionNames(projections)
	if err == nil {
		err = o.cfg.checkFailures(names)
	}
	var cfg Config[E]
	if err == nil {
		cfg, err = o.cfg.withSettingsOf(projections)
	}
	if err != nil {
		return err
	}
	cfg.ReplacementWindow = replacement
	var scopes []Scope
	starts, rebuilds := map[string]Start{}, map[string]string{}
	for i, p := range projections {
		scope, err := scopeOf(o.cfg.EventStore, p, names[i])
		if err != nil {
			return err
		}
		scopes = append(scopes, scope)
		start, err := startOf(o.cfg.EventStore, p, names[i])
		if err != nil {
			return err
		}
		if start.kind != startBeginning {
			starts[names[i]] = start
		}
		live, err := rebuildOf(p, names[i])
		if err != nil {
			return err
		}
		if live != "" {
			if start.kind != startBeginning { // no version would handle the events between the live one and the start
				return fmt.Errorf("%w: projection %q is a rebuild of %q, which starts at the first event: remove WithStart", ErrInvalidConfig, names[i], live)
			}
			rebuilds[names[i]] = live
		}
	}
	release, err := cfg.carried(ctx, projections)
	if err != nil {
		return err
	}
	defer release()
	w := newWorker(ctx, cfg, projections, names, scopes, starts, rebuilds)
	defer func() {
		emit(w.to, w.to.WorkerLeft, WorkerLeft{Source: w.source(w.session.ID()), Err: redact.Error(unlessEnded(ctx, err))})
		w.to.close()
	}()
	w.health = health
	defer w.unspare()
	defer w.feed.leave()
	defer w.feed.watch(w.gap)()
	defer w.listen()()
	defer w.end()
	if err := w.check(ctx); err != nil {
		return err
	}
	if err := w.checkStarts(ctx); err != nil {
		return err
	}
	return w.loop(ctx)
}

// carried reserves the worker's connections in the pool of DB until release is called, if
// the driver can tell what the pool has, and returns an error if there are too few.
func (c Config[E]) carried(ctx context.Context, projections []Projection[E]) (release func(), err error) {
	l := dbconn.Load{Notifier: c.Notifier}
	if !c.LeaseOnly {
		l.Keeps = presencePool
	}
	for _, p := range projections {
		switch p.(type) {
		case BatchProjection[E], TransactionalProjection[E]:
			l.Handlers += c.Partitions
		}
	}
	err = calls.Await(ctx, func() (bool, error) {
		var refused string
		var err error
		if release, refused, err = dbconn.Carry(ctx, c.DB, l); refused != "" {
			return false, configError("DB", refused)
		}
		return err == nil, err
	})
	if err != nil && ctx.Err() != nil { // the database was away until then
		err = ctx.Err()
	}
	return release, err
}

// CatchUp runs like Run until all of the projections, on this worker or others, have
// handled every event that the event store had when CatchUp was called. Then it leaves and
// returns nil. It is for tests and for jobs that run once. It returns a *ParkedError if
// events were parked instead, ctx.Err() if ctx ends first, and else the errors of Run. The
// event store must be a HeadStore.
//
// CatchUp does not return before ctx ends if a projection is paused, if its handler always
// fails under RetryForever, or if it is a rebuild (WithRebuildOf) whose live version does not
// catch up. Give ctx a deadline, or the projection the policy StopOnFailure.
func (o *Orchestrator[E]) CatchUp(ctx context.Context, projections []Projection[E]) error {
	names, err := projectionNames(projections)
	if err != nil {
		return err
	}
	events, ok := o.cfg.EventStore.(HeadStore)
	if !ok {
		return fmt.Errorf("%w: CatchUp needs a HeadStore: give %T a method Head(context.Context) (int64, error)", ErrInvalidConfig, o.cfg.EventStore)
	}
	// Before anything waits for what is in the tables.
	err = calls.Await(ctx, func() (bool, error) {
		err := store.New(o.cfg.DB, string(o.cfg.ReplicaSet), store.Options{Schema: o.cfg.Schema}).Check(ctx)
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
		return fmt.Errorf("find the end of the stream: %w", err)
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
			errs = append(errs, WaitFor(running, o.cfg.DB, name, head, inSchema(o.cfg.Schema)))
		}
		caughtUp <- errors.Join(errs...)
	}()
	err = o.run(running, projections, 0)
	stop()
	waited := <-caughtUp
	if ctx.Err() == nil && err == running.Err() { // and not what a handler has made of its own
		return waited
	}
	return err
}

// withinStream returns an error if a projection is beyond the end of the stream, since
// everything up to there would count as handled.
func (o *Orchestrator[E]) withinStream(ctx context.Context, names []string, reaches func(context.Context) (head, given int64, err error)) error {
	_, given, err := reaches(ctx)
	if err != nil {
		return fmt.Errorf("find the end of the stream: %w", err)
	}
	for _, name := range names {
		switch at, err := store.Highest(ctx, store.Tables{DB: o.cfg.DB, Schema: o.cfg.Schema}, name); {
		case err != nil:
			return err
		case at > given:
			return fmt.Errorf("%w: projection %q is at position %d, beyond the end of the event stream at %d: the stream was emptied, restored or replaced; rewind the projection", ErrEventStore, name, at, given)
		}
	}
	return nil
}
