package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Projection builds a read model from events. Most programs make one with Transactional,
// Batch, Plain or PlainBatch; a type of your own implements this interface, and perhaps
// one or more of the interfaces below. Its name identifies its progress: another name is
// another projection, which starts at the first event or at its Start.
//
// Handle is called with the events of this worker's partitions, one at a time, and in order
// for each aggregate. After the batch the library commits the checkpoint; the events are
// handled then. If the worker dies before that, the next owner of the partition handles them
// again. So Handle should be idempotent, or the projection transactional.
//
// When Handle returns an error, panics or ends its goroutine, the event is retried (see
// Config.Retry and Config.OnFailure). The partition of the projection waits; others continue.
// Only a fault that Go can't recover from ends the process: a stack overflow, or two
// goroutines that write one map. When its context is cancelled, Handle should return soon,
// with any error: another worker is about to get the partition. DeliveryFrom returns more
// about the call from the context.
//
// All projections of a process share the events: do not modify what their pointers and
// maps refer to. The byte slices in an event's own fields, such as Event.Payload, are
// copied for each call: a handler may modify and keep them.
//
// A projection is used by several goroutines at the same time if Config.Partitions is more
// than 1, or if several Orchestrators run it.
type Projection[E any] interface {
	// Name returns 1 to 200 bytes without control characters. It is unique among the
	// projections of a Run.
	Name() string
	// Handle handles one event.
	Handle(ctx context.Context, event E) error
}

// ScopedProjection is a Projection that handles only the events of some aggregate types in
// some bounded contexts. An empty list includes all. A Table filters them in PostgreSQL.
// Run calls each method once.
type ScopedProjection[E any] interface {
	Projection[E]
	// AggregateTypes returns the aggregate types of the scope.
	AggregateTypes() []string
	// BoundedContexts returns the bounded contexts of the scope.
	BoundedContexts() []string
}

// EventTypedProjection is a Projection that handles only the events of some types. An empty
// list includes all. If it is a ScopedProjection too, both restrict it.
type EventTypedProjection[E any] interface {
	Projection[E]
	// EventTypes returns the event types of the scope. Run calls it once.
	EventTypes() []string
}

// TransactionalProjection is a Projection whose writes go through a transaction that also
// commits the checkpoint, so that the writes for each event are committed exactly once.
// HandleTx is called in place of Handle, for several events in one transaction. If it does
// not commit, its events are handled again in another transaction.
//
// It is a READ COMMITTED transaction of Config.DB. The server ends it if it is idle for
// StaleWorkerTimeout: a handler must not take that long between two statements.
//
// The handler must not end the transaction, and must close the rows of its queries; otherwise
// it has failed. It may use savepoints. It may also SET ROLE and SET search_path, LOCAL or
// not: both apply to the rest of the batch, and are reset before the commit.
type TransactionalProjection[E any] interface {
	Projection[E]
	// HandleTx handles one event, and writes through tx.
	HandleTx(ctx context.Context, tx Tx, event E) error
}

// BatchProjection is a TransactionalProjection that handles up to BatchSize events in one
// call. HandleBatch is called in place of Handle and HandleTx. When it fails, nothing of the
// batch is committed, and the library tries shorter batches until the event at fault is alone.
type BatchProjection[E any] interface {
	Projection[E]
	// HandleBatch handles events, in ascending order of positions, and writes through tx.
	HandleBatch(ctx context.Context, tx Tx, events []E) error
}

// PlainBatchProjection is a Projection that handles up to BatchSize events in one call,
// without a transaction: for search indexes, brokers and the like. HandlePlainBatch is called
// in place of Handle. When it returns nil, the library commits the checkpoint; the events are
// handled then. When it fails, the library tries shorter batches until the event at fault is
// alone. Events that the failed call has already handled are handled again, so it should be
// idempotent.
type PlainBatchProjection[E any] interface {
	Projection[E]
	// HandlePlainBatch handles events, in ascending order of positions.
	HandlePlainBatch(ctx context.Context, events []E) error
}

// Tx is the transaction of a handler. The handler can't end it. All methods but Raw are those
// of *sql.Tx (sqlc and others call this set DBTX). A statement that would end the transaction
// (COMMIT, ROLLBACK, END, ABORT, PREPARE TRANSACTION) is refused, and the handler has failed.
// A Tx can't be used after the handler has returned.
type Tx interface {
	// ExecContext is that of *sql.Tx.
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	// PrepareContext is that of *sql.Tx.
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	// QueryContext is that of *sql.Tx.
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	// QueryRowContext is that of *sql.Tx.
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	// Raw calls f with the driver's connection of the transaction, like sql.Conn.Raw. It
	// is for what only the driver can do, such as pgx's CopyFrom
	// (driverConn.(*stdlib.Conn).Conn()). f must not end the transaction, leave an
	// operation unfinished or keep driverConn, and Raw must return before the handler
	// does. While f runs, the other methods return an error, and statements and rows
	// that they have returned must not be used. If f panics, or returns
	// driver.ErrBadConn, the connection is closed, and the handler has failed.
	Raw(f func(driverConn any) error) error
}

// Plain returns a projection that calls handle for one event at a time, without a
// transaction: for mail, brokers, and stores that can't share a transaction with the
// checkpoint. An event may be handled again after a crash, so handle should be idempotent.
// See Projection.
func Plain[E any](name string, handle func(ctx context.Context, event E) error, options ...ProjectionOption) Projection[E] {
	return plainFunc[E]{newSettings(name, handle == nil, options), handle}
}

// Transactional returns a projection that calls handle for one event at a time. What handle
// writes through tx is committed together with the checkpoint, exactly once. See
// TransactionalProjection.
func Transactional[E any](name string, handle func(ctx context.Context, tx Tx, event E) error, options ...ProjectionOption) Projection[E] {
	return transactionalFunc[E]{uncalled[E]{newSettings(name, handle == nil, options)}, handle}
}

// Batch returns a transactional projection that calls handle with up to BatchSize events.
// See BatchProjection.
func Batch[E any](name string, handle func(ctx context.Context, tx Tx, events []E) error, options ...ProjectionOption) Projection[E] {
	return batchFunc[E]{uncalled[E]{newSettings(name, handle == nil, options)}, handle}
}

// PlainBatch returns a projection that calls handle with up to BatchSize events, without a
// transaction. Events may be handled again after a failure or a crash, so handle should be
// idempotent. ctx has no deadline: derive one in handle, or in Config.Around for all
// projections. See PlainBatchProjection.
func PlainBatch[E any](name string, handle func(ctx context.Context, events []E) error, options ...ProjectionOption) Projection[E] {
	return plainBatchFunc[E]{uncalled[E]{newSettings(name, handle == nil, options)}, handle}
}

// ProjectionOption is a setting of one projection, for Plain, PlainBatch, Transactional,
// Batch and With.
type ProjectionOption func(*projectionSettings)

// WithScope restricts a projection to some aggregate types, bounded contexts or event types.
// It is never called with other events; a Table filters them in PostgreSQL. In With, it
// replaces the whole scope of the projection. Default: all events.
func WithScope(s Scope) ProjectionOption {
	return func(p *projectionSettings) { p.scope = s }
}

// WithFailureRule sets what happens when the projection's handler fails. Run refuses it
// together with an entry for the same projection in Config.Failures. Default:
// Config.OnFailure.
func WithFailureRule(r FailureRule) ProjectionOption {
	return func(p *projectionSettings) { p.rule = &r }
}

// WithBatchSize sets the largest number of events between two commits; for Batch and
// PlainBatch, that is in one call. At least 1. Default: Config.BatchSize.
func WithBatchSize(n int) ProjectionOption {
	return func(p *projectionSettings) { p.batch = &n }
}

// WithRetry sets the delay before a failed event is handled again. Zero fields mean the
// defaults of Retry. Default: Config.Retry.
func WithRetry(r Retry) ProjectionOption {
	return func(p *projectionSettings) { p.retry = &r }
}

// WithStallAfter sets the time without progress after which a partition of the projection is
// reported as stalled. More than 0; set it above the time of the slowest handler. Default:
// Config.StallAfter.
func WithStallAfter(d time.Duration) ProjectionOption {
	return func(p *projectionSettings) { p.stall = &d }
}

// With returns p with options, for a projection that is a type of your own. It keeps p's
// name, kind, scope, start and live version, unless an option replaces them.
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

// WithStart sets where in the event stream the projection starts if it has not run yet.
// Default: the first event.
func WithStart(s Start) ProjectionOption {
	return func(p *projectionSettings) { p.start = s }
}

// WithRebuildOf makes the projection a new version of the projection named live, which it is
// to replace: see RebuildProjection. Default: it is a projection of its own.
func WithRebuildOf(live string) ProjectionOption {
	return func(p *projectionSettings) { p.rebuildOf = live }
}

// projectionSettings are those of the projections that the constructors make.
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

// problem returns which option is wrong, and why.
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
