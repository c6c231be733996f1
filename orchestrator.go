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

// An Orchestrator is one worker of a replica set.
type Orchestrator[E any] struct {
	cfg  Config[E]
	runs runs
}

// New checks the configuration, without touching the database, and returns an
// Orchestrator. The error is ErrInvalidConfig and names the field.
func New[E any](cfg Config[E]) (*Orchestrator[E], error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Orchestrator[E]{cfg: cfg}, nil
}

// Run joins the replica set and handles events of the partitions that it is
// assigned, until ctx is cancelled. Then the events in hand are finished and
// committed, the membership is given up, so that the others re-partition
// without waiting for anything, and Run returns nil. (With a ReplacementWindow the
// next worker takes this one's partitions, and the others do not re-partition.)
//
// Run returns an error only when it can't go on: ErrInvalidConfig,
// ErrSchema, ErrProjectionTaken, ErrEventStore, ErrCoordinationTimeout, a
// *HandlerError under the policy StopOnFailure, a handler that ends its
// goroutine, a DB that was closed, or what the server says about a privilege or a
// table that is missing. Losing a partition, a new
// generation, a database that is away for a while are not errors. A login that the
// server refuses ends Run at its start; later it is tried again, since passwords are
// changed. No text of an error has a connection string in it.
//
// Each call of Run is a worker of its own. All workers of a replica set should
// run the same projections. During a roll-out that adds one, it stays idle on
// partitions whose worker does not know it yet.
func (o *Orchestrator[E]) Run(ctx context.Context, projections []Projection[E]) error {
	return unlessEnded(ctx, o.run(ctx, projections, o.cfg.ReplacementWindow))
}

// unlessEnded returns why Run has ended, nil if that was since ctx has.
func unlessEnded(ctx context.Context, err error) error {
	if err != nil && err == ctx.Err() {
		return nil
	}
	return err
}

// run is Run. It returns ctx.Err() where Run returns nil. The worker's place is kept for
// so long.
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
			if start.kind != startBeginning { // what is between the live one and the start would be nobody's
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

// carried makes sure that the pool of DB can carry the worker, where its driver knows, and
// has it do so until release is called.
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

// CatchUp runs as Run does until everything that was in the event store when it
// was called is handled by all of the projections, by this worker or others. Then
// it leaves and returns nil: for tests and for jobs that run once. It returns a
// *ParkedError for events that were parked instead, ctx.Err() when ctx ends before,
// and what else Run returns. The event store must be a HeadStore.
//
// It does not end, before ctx does, where a projection is paused, or its handler
// fails for ever, or where it follows a live version (WithRebuildOf) that does not get
// there: what it waits for does not come. Give ctx a deadline, or the
// projection the policy StopOnFailure.
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

// withinStream makes sure that no projection has gone beyond the end of the stream:
// everything up to there would seem to be handled.
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
