package orchestrator

import (
	"context"
	"database/sql"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/projection"

	root "github.com/getpup/pupsourcing-orchestrator"
)

// A TransactionalProjection also has HandleTx, which is called in place of Handle.
// Its writes through tx commit together with the checkpoint. See
// [root.TransactionalProjection].
type TransactionalProjection interface {
	projection.Projection
	HandleTx(ctx context.Context, tx Tx, event es.PersistedEvent) error
}

// A BatchProjection also has HandleBatch, which is called in place of Handle and
// takes up to Config.BatchSize events. See [root.BatchProjection].
type BatchProjection interface {
	projection.Projection
	HandleBatch(ctx context.Context, tx Tx, events []es.PersistedEvent) error
}

// A PlainBatchProjection also has HandlePlainBatch, which is called in place of Handle and
// takes up to Config.BatchSize events, without a transaction. See
// [root.PlainBatchProjection].
type PlainBatchProjection interface {
	projection.Projection
	HandlePlainBatch(ctx context.Context, events []es.PersistedEvent) error
}

// A StartingProjection also says where it starts if it has not run yet: StartNow, StartAfter,
// StartAtTime, or, with the zero Start, at the beginning. See [root.StartingProjection].
type StartingProjection interface {
	projection.Projection
	StartAt() Start
}

// A RebuildProjection also says of which live projection it is a new version, to take its
// place: see [root.RebuildProjection] and ops.Promote.
type RebuildProjection interface {
	projection.Projection
	RebuildOf() string
}

// An EventTypedProjection gets the events of these types only, which are the
// PersistedEvent.EventType. See [root.EventTypedProjection].
type EventTypedProjection interface {
	projection.Projection
	EventTypes() []string
}

// StartNow is for what is new: see [root.StartNow].
func StartNow() Start { return root.StartNow() }

// StartAfter is for what is above a position: see [root.StartAfter].
func StartAfter(position int64) Start { return root.StartAfter(position) }

// StartAtTime is for what came about since then (created_at): see [root.StartAtTime].
func StartAtTime(t time.Time) Start { return root.StartAtTime(t) }

// With returns the projection, of whichever of the forms, with options. Its scope and where it
// starts are what its methods say, unless an option says otherwise. See [root.With].
func With(p projection.Projection, options ...ProjectionOption) projection.Projection {
	own, err := translateOne(p)
	if err == nil {
		own = root.With(own, options...)
	}
	return configured{p, own, err}
}

// WithScope is for what it wants of the stream, in place of all that its methods say of that:
// see [root.WithScope].
func WithScope(s Scope) ProjectionOption { return root.WithScope(s) }

// WithStart is for where it starts if it has not run yet: see [root.WithStart].
func WithStart(s Start) ProjectionOption { return root.WithStart(s) }

// WithRebuildOf is for a new version of a live projection: see [root.WithRebuildOf].
func WithRebuildOf(live string) ProjectionOption { return root.WithRebuildOf(live) }

// WithFailureRule is in place of Config.OnFailure: see [root.WithFailureRule].
func WithFailureRule(r FailureRule) ProjectionOption { return root.WithFailureRule(r) }

// WithBatchSize is in place of Config.BatchSize: see [root.WithBatchSize].
func WithBatchSize(n int) ProjectionOption { return root.WithBatchSize(n) }

// WithRetry is in place of Config.Retry: see [root.WithRetry].
func WithRetry(r Retry) ProjectionOption { return root.WithRetry(r) }

// WithStallAfter is in place of Config.StallAfter: see [root.WithStallAfter].
func WithStallAfter(d time.Duration) ProjectionOption { return root.WithStallAfter(d) }

// What the signatures here and Config's fields need of the root package.
type (
	// ReplicaSetName names a group of projections that scale together.
	ReplicaSetName = root.ReplicaSetName
	// A Scope is the part of the stream that a projection wants. See [root.Scope].
	Scope = root.Scope
	// A ProjectionOption is a setting of one projection, for With.
	ProjectionOption = root.ProjectionOption
	// A Start says where a new projection starts. See [root.Start].
	Start = root.Start
	// Retry is an exponential backoff. See [root.Retry].
	Retry = root.Retry
	// A FailurePolicy says what a handler's failure does. See [root.FailurePolicy].
	FailurePolicy = root.FailurePolicy
	// A FailureRule says when a handler has failed often enough. See [root.FailureRule].
	FailureRule = root.FailureRule
	// A Delivery is one call of a handler. See [root.Delivery].
	Delivery = root.Delivery
	// A Notifier hears PostgreSQL's notifications. See [root.Notifier].
	Notifier = root.Notifier
	// An Observer is told what a worker does. See [root.Observer].
	Observer = root.Observer
	// Tx is a handler's transaction. It is an es.DBTX, so a handler can append with it.
	Tx = root.Tx
	// Health is the state of an Orchestrator's workers. See [root.Health].
	Health = root.Health
	// A Gap is a position that readers wait at.
	Gap = root.Gap
	// A HandlerError is returned by Run for a handler that failed. See [root.HandlerError].
	HandlerError = root.HandlerError
)

// The failure policies. See [root.FailurePolicy].
const (
	RetryForever  = root.RetryForever
	StopOnFailure = root.StopOnFailure
	ParkEvents    = root.ParkEvents
)

// What Run, New and handlers' contexts return. The root package says when, and what to
// do.
var (
	ErrInvalidConfig        = root.ErrInvalidConfig
	ErrSchema               = root.ErrSchema
	ErrProjectionTaken      = root.ErrProjectionTaken
	ErrEventStore           = root.ErrEventStore
	ErrCoordinationTimeout  = root.ErrCoordinationTimeout
	ErrGenerationSuperseded = root.ErrGenerationSuperseded
	ErrLeaseLost            = root.ErrLeaseLost
	ErrSuspended            = root.ErrSuspended
)

// Permanent returns err as an error that trying again can't mend: the failure rule applies
// at once. See [root.Permanent].
func Permanent(err error) error { return root.Permanent(err) }

// RunMigrations creates or upgrades the orchestrator's tables; pupsourcing's own are
// not touched. A program may call it at every start, in many processes at once. See
// [root.RunMigrations], and [root.Migrate] for one with a context, which also runs SQL of the
// program's own ([root.WithSQL]).
func RunMigrations(db *sql.DB) error { return root.RunMigrations(db) }
