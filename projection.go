package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// A Projection builds a read model from events. Its name identifies its
// progress: another name is another projection, which starts from the first
// event, or where its Start says.
//
// All projections of a process share the events: do not modify what is behind their
// pointers and maps. The byte slices in an event's own fields, such as the Payload of
// an Event, are a copy of each call's own: a handler may write into them, and keep them.
//
// Handle gets the events of this worker's partition, each aggregate's in
// order, one at a time. If it returns nil, the event counts as handled when
// the checkpoint is committed, after the batch; a worker that dies in between
// hands the event to its successor again. So Handle should be idempotent, or
// the projection transactional.
//
// If Handle returns an error, panics or ends its goroutine, the event is retried (see
// Config.Retry and Config.OnFailure) and nothing of the partition moves past
// it; nothing else stands still for it. What Go can't recover from ends the process all
// the same: a stack that overflows, also in the Error method of what is returned, or a
// map that two goroutines write at once. If its context is cancelled, it should return soon, with any error: the
// partition is about to be somebody else's. See DeliveryFrom for what else
// the context knows.
//
// A projection must be safe for use by several goroutines if the same value is
// handed to more than one Orchestrator.
type Projection[E any] interface {
	// Name is 1 to 200 bytes without control characters, and unique among the
	// projections of a Run.
	Name() string
	Handle(ctx context.Context, event E) error
}

// A ScopedProjection is a Projection of a part of the stream: it gets the events
// of these aggregate types in these bounded contexts, and no others. An empty
// list includes all. An event store may leave the rest out (ReadRequest.Scope), as Table does. Both
// methods are called once, by Run.
type ScopedProjection[E any] interface {
	Projection[E]
	AggregateTypes() []string
	BoundedContexts() []string
}

// An EventTypedProjection is a Projection of some types of events: it gets those, and no
// others. An empty list includes all. If it is a ScopedProjection as well, it gets the events
// that are of these types and within that scope. EventTypes is called once, by Run.
type EventTypedProjection[E any] interface {
	Projection[E]
	EventTypes() []string
}

// A TransactionalProjection is a Projection whose writes go through tx and
// commit together with the checkpoint: each event's are committed exactly
// once, whatever crashes. HandleTx is called in place of Handle, for several
// events in one transaction.
//
// If the transaction does not commit, its events are handled again in another.
// It is a READ COMMITTED transaction of Config.DB. The server ends it if it
// stays idle for StaleWorkerTimeout: one event must not take that long without
// a statement. (A batch of many events is cut where it takes long.)
//
// The handler must not end the transaction, and must close the rows of its queries:
// both are noticed, and count as its failure. Savepoints are its own affair. So are SET
// ROLE and SET search_path, LOCAL or not: they hold until the events of the batch are
// handled, also for those that come after this one, and are taken back before the
// commit.
type TransactionalProjection[E any] interface {
	Projection[E]
	HandleTx(ctx context.Context, tx Tx, event E) error
}

// A BatchProjection is a TransactionalProjection that takes up to BatchSize
// events at once. HandleBatch is called in place of Handle and HandleTx. When
// it fails, nothing of the batch is committed, and shorter batches are tried
// until the event at fault stands alone. It must not leave tx idle for
// StaleWorkerTimeout.
type BatchProjection[E any] interface {
	Projection[E]
	HandleBatch(ctx context.Context, tx Tx, events []E) error
}

// A PlainBatchProjection is a Projection that takes up to Config.BatchSize events at once,
// without a transaction: for search indexes, brokers, and whatever else takes many at
// once. HandlePlainBatch is called in place of Handle. If it returns nil, the events count
// as handled when the checkpoint is committed, right after it. If it fails, whatever it
// has done of the batch may be done again: shorter batches are tried until the event at
// fault stands alone. So it should be idempotent. Each aggregate's events come in order.
type PlainBatchProjection[E any] interface {
	Projection[E]
	HandlePlainBatch(ctx context.Context, events []E) error
}

// Tx is what a handler may do with its transaction: everything but end it. All but Raw
// are methods of *sql.Tx, and what sqlc and others call DBTX. A statement that
// would end the transaction (COMMIT, ROLLBACK, END, ABORT, PREPARE TRANSACTION) is
// refused, and the handler fails. A Tx is of no use when the handler has returned.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	// Raw calls f with the driver's connection, on which the transaction is, as
	// sql.Conn.Raw does: for what only the driver can do, such as pgx's CopyFrom
	// (driverConn.(*stdlib.Conn).Conn()). f must not end the transaction, nor leave
	// anything under way, nor keep driverConn, and Raw must have returned before the
	// handler does. While f runs, the other methods return an error; statements and
	// rows that they have returned must not be used. If f panics, or returns driver.ErrBadConn, the connection is
	// closed, and the handler fails.
	Raw(f func(driverConn any) error) error
}

// Plain returns a projection that calls handle for one event at a time, outside
// of any transaction: for e-mails, brokers, and stores that can't share a
// transaction with the checkpoint. An event may be handled again after a crash,
// so handle should be idempotent. See Projection.
func Plain[E any](name string, handle func(ctx context.Context, event E) error, options ...ProjectionOption) Projection[E] {
	return plainFunc[E]{newSettings(name, handle == nil, options), handle}
}

// Transactional returns a projection whose writes go through tx and commit
// together with the checkpoint: each event is applied exactly once. See
// TransactionalProjection.
func Transactional[E any](name string, handle func(ctx context.Context, tx Tx, event E) error, options ...ProjectionOption) Projection[E] {
	return transactionalFunc[E]{uncalled[E]{newSettings(name, handle == nil, options)}, handle}
}

// Batch returns a transactional projection that takes up to Config.BatchSize
// events in one call. See BatchProjection.
func Batch[E any](name string, handle func(ctx context.Context, tx Tx, events []E) error, options ...ProjectionOption) Projection[E] {
	return batchFunc[E]{uncalled[E]{newSettings(name, handle == nil, options)}, handle}
}

// PlainBatch returns a projection that takes up to Config.BatchSize events in one call,
// outside of any transaction. Events may be handled again after a failure or a crash. A
// call has no deadline of its own: give what handle calls one made from ctx, or all
// projections one by Config.Around. See PlainBatchProjection.
func PlainBatch[E any](name string, handle func(ctx context.Context, events []E) error, options ...ProjectionOption) Projection[E] {
	return plainBatchFunc[E]{uncalled[E]{newSettings(name, handle == nil, options)}, handle}
}

// A ProjectionOption is a setting of one projection, for Plain, PlainBatch,
// Transactional and Batch.
type ProjectionOption func(*projectionSettings)

// WithScope restricts a projection to a part of the event stream: some aggregate types,
// bounded contexts, event types. What is outside of the scope is never handed to it, and
// does not leave the server where a Table is read. With replaces all of the projection's
// own scope by it. Default: the whole stream.
func WithScope(s Scope) ProjectionOption {
	return func(p *projectionSettings) { p.scope = s }
}

// WithFailureRule sets what a failure of the projection's handler does, in place
// of Config.OnFailure. Run refuses it beside an entry for the same projection in
// Config.Failures. Default: Config.OnFailure.
func WithFailureRule(r FailureRule) ProjectionOption {
	return func(p *projectionSettings) { p.rule = &r }
}

// WithBatchSize sets how many of the projection's events are handled at most between two
// commits, at least 1: for Batch and PlainBatch, in one call. Default: Config.BatchSize.
func WithBatchSize(n int) ProjectionOption {
	return func(p *projectionSettings) { p.batch = &n }
}

// WithRetry sets the delay before the projection's handler is called again with an event
// that it has failed at. Zero fields mean their defaults. Default: Config.Retry.
func WithRetry(r Retry) ProjectionOption {
	return func(p *projectionSettings) { p.retry = &r }
}

// WithStallAfter sets how long a partition of the projection may stand still before that is
// told, more than 0: longer for one whose handler takes long. Default: Config.StallAfter.
func WithStallAfter(d time.Duration) ProjectionOption {
	return func(p *projectionSettings) { p.stall = &d }
}

// With returns the projection with options, for one that is a type of yours. What it is
// called by, its scope, where it starts and what it rebuilds are those of p, unless an option says otherwise.
func With[E any](p Projection[E], options ...ProjectionOption) Projection[E] {
	if isNil(p) {
		return p // which Run refuses
	}
	options = append([]ProjectionOption{WithScope(scopeSaid(p))}, options...)
	if s, ok := p.(StartingProjection[E]); ok {
		options = append([]ProjectionOption{WithStart(s.StartAt())}, options...)
	}
	if r, ok := p.(RebuildProjection[E]); ok {
		options = append([]ProjectionOption{WithRebuildOf(r.RebuildOf())}, options...)
	}
	if own, ok := p.(interface{ settings() projectionSettings }); ok {
		before := own.settings()
		options = append([]ProjectionOption{func(s *projectionSettings) { *s = before }}, options...)
	}
	switch q := p.(type) {
	case BatchProjection[E]:
		return Batch(p.Name(), q.HandleBatch, options...)
	case TransactionalProjection[E]:
		return Transactional(p.Name(), q.HandleTx, options...)
	case PlainBatchProjection[E]:
		return PlainBatch(p.Name(), q.HandlePlainBatch, options...)
	}
	return Plain(p.Name(), p.Handle, options...)
}

// WithStart sets where the projection starts if it has not run yet. Default: the beginning.
func WithStart(s Start) ProjectionOption {
	return func(p *projectionSettings) { p.start = s }
}

// WithRebuildOf says that the projection is a new version of another one, the live one, which
// it is to replace: see RebuildProjection.
func WithRebuildOf(live string) ProjectionOption {
	return func(p *projectionSettings) { p.rebuildOf = live }
}

// projectionSettings are what the constructors' projections have in common.
type projectionSettings struct {
	name    string
	missing bool // the handler is nil
	scope   Scope
	// nil: as Config says
	rule  *FailureRule
	batch *int
	retry *Retry
	stall *time.Duration

	start     Start
	rebuildOf string
}

// problem says what is wrong with which option.
func (s projectionSettings) problem() (option, problem string) {
	if s.rule != nil {
		if field, problem := s.rule.problem(); problem != "" {
			return "WithFailureRule", "has a rule whose " + field + " " + problem
		}
	}
	switch {
	case s.batch != nil && *s.batch < 1:
		return "WithBatchSize", fmt.Sprintf("is %d; it must be at least 1", *s.batch)
	case s.retry != nil && (s.retry.Min < 0 || s.retry.Max < 0):
		return "WithRetry", fmt.Sprintf("is %s to %s; a delay can't be negative", s.retry.Min, s.retry.Max)
	case s.retry != nil && s.retry.withDefaults().Max < s.retry.withDefaults().Min:
		r := s.retry.withDefaults()
		return "WithRetry", fmt.Sprintf("has a Max of %s, less than its Min, which is %s", r.Max, r.Min)
	case s.stall != nil && *s.stall <= 0:
		return "WithStallAfter", fmt.Sprintf("is %s; it must be more than 0", *s.stall)
	}
	return "", ""
}

func newSettings(name string, missing bool, options []ProjectionOption) projectionSettings {
	s := projectionSettings{name: name, missing: missing}
	for _, set := range options {
		set(&s)
	}
	return s
}

func (s projectionSettings) Name() string                 { return s.name }
func (s projectionSettings) AggregateTypes() []string     { return s.scope.AggregateTypes }
func (s projectionSettings) BoundedContexts() []string    { return s.scope.BoundedContexts }
func (s projectionSettings) EventTypes() []string         { return s.scope.EventTypes }
func (s projectionSettings) StartAt() Start               { return s.start }
func (s projectionSettings) RebuildOf() string            { return s.rebuildOf }
func (s projectionSettings) settings() projectionSettings { return s }

type (
	plainFunc[E any] struct {
		projectionSettings
		handle func(context.Context, E) error
	}
	transactionalFunc[E any] struct {
		uncalled[E]
		handle func(context.Context, Tx, E) error
	}
	batchFunc[E any] struct {
		uncalled[E]
		handle func(context.Context, Tx, []E) error
	}
	plainBatchFunc[E any] struct {
		uncalled[E]
		handle func(context.Context, []E) error
	}
	// uncalled completes a Projection whose Handle is never called.
	uncalled[E any] struct{ projectionSettings }
)

func (uncalled[E]) Handle(context.Context, E) error {
	return errors.New("orchestrator: Handle was called on a projection made by Transactional, Batch or PlainBatch")
}

func (p plainFunc[E]) Handle(ctx context.Context, e E) error { return p.handle(ctx, e) }

func (p transactionalFunc[E]) HandleTx(ctx context.Context, tx Tx, e E) error {
	return p.handle(ctx, tx, e)
}

func (p batchFunc[E]) HandleBatch(ctx context.Context, tx Tx, events []E) error {
	return p.handle(ctx, tx, events)
}

func (p plainBatchFunc[E]) HandlePlainBatch(ctx context.Context, events []E) error {
	return p.handle(ctx, events)
}
