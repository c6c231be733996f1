package orchestrator

import (
	"context"
	"database/sql"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/projection"

	root "github.com/getpup/pupsourcing-orchestrator"
)

// TransactionalProjection is a projection with HandleTx, which is called instead of Handle.
// Writes through tx commit together with the checkpoint. See [root.TransactionalProjection].
type TransactionalProjection interface {
	projection.Projection
	HandleTx(ctx context.Context, tx Tx, event es.PersistedEvent) error
}

// BatchProjection is a projection with HandleBatch, which is called instead of Handle with up to
// Config.BatchSize events and a transaction. See [root.BatchProjection].
type BatchProjection interface {
	projection.Projection
	HandleBatch(ctx context.Context, tx Tx, events []es.PersistedEvent) error
}

// PlainBatchProjection is a projection with HandlePlainBatch, which is called instead of Handle
// with up to Config.BatchSize events and without a transaction. See
// [root.PlainBatchProjection].
type PlainBatchProjection interface {
	projection.Projection
	HandlePlainBatch(ctx context.Context, events []es.PersistedEvent) error
}

// StartingProjection is a projection that sets where it starts on its first run: StartNow,
// StartAfter, StartAtTime, or the beginning for the zero Start. See
// [root.StartingProjection].
type StartingProjection interface {
	projection.Projection
	StartAt() Start
}

// RebuildProjection is a projection that is a new version of a live projection, to replace it.
// See [root.RebuildProjection] and ops.Promote.
type RebuildProjection interface {
	projection.Projection
	RebuildOf() string
}

// EventTypedProjection is a projection that gets only events of some types: those whose
// PersistedEvent.EventType EventTypes returns. See [root.EventTypedProjection].
type EventTypedProjection interface {
	projection.Projection
	EventTypes() []string
}

// StartNow starts a projection at the end of the stream: it gets only new events. See
// [root.StartNow].
func StartNow() Start { return root.StartNow() }

// StartAfter starts a projection after a position. See [root.StartAfter].
func StartAfter(position int64) Start { return root.StartAfter(position) }

// StartAtTime starts a projection at the events created since t (created_at). See
// [root.StartAtTime].
func StartAtTime(t time.Time) Start { return root.StartAtTime(t) }

// With returns a projection of any kind with options. Options override its methods. See
// [root.With].
func With(p projection.Projection, options ...ProjectionOption) projection.Projection {
	own, err := translateOne(p)
	if err == nil {
		own = root.With(own, options...)
	}
	return configured{p, own, err}
}

// WithScope sets the part of the stream that the projection gets, and overrides all of its
// methods about that. See [root.WithScope].
func WithScope(s Scope) ProjectionOption { return root.WithScope(s) }

// WithStart sets where the projection starts on its first run. See [root.WithStart].
func WithStart(s Start) ProjectionOption { return root.WithStart(s) }

// WithRebuildOf makes the projection a new version of a live projection. See
// [root.WithRebuildOf].
func WithRebuildOf(live string) ProjectionOption { return root.WithRebuildOf(live) }

// WithFailureRule sets the failure rule, and overrides Config.OnFailure. See
// [root.WithFailureRule].
func WithFailureRule(r FailureRule) ProjectionOption { return root.WithFailureRule(r) }

// WithBatchSize overrides Config.BatchSize. See [root.WithBatchSize].
func WithBatchSize(n int) ProjectionOption { return root.WithBatchSize(n) }

// WithRetry overrides Config.Retry. See [root.WithRetry].
func WithRetry(r Retry) ProjectionOption { return root.WithRetry(r) }

// WithStallAfter overrides Config.StallAfter. See [root.WithStallAfter].
func WithStallAfter(d time.Duration) ProjectionOption { return root.WithStallAfter(d) }

// Types of the root package.
type (
	// ReplicaSetName names a group of projections that scale together.
	ReplicaSetName = root.ReplicaSetName
	// Scope is the part of the stream that a projection gets. See [root.Scope].
	Scope = root.Scope
	// ProjectionOption is a setting of one projection, for With.
	ProjectionOption = root.ProjectionOption
	// Start is where a projection starts on its first run. See [root.Start].
	Start = root.Start
	// Retry is an exponential backoff. See [root.Retry].
	Retry = root.Retry
	// FailurePolicy is what happens when a handler fails. See [root.FailurePolicy].
	FailurePolicy = root.FailurePolicy
	// FailureRule is a FailurePolicy and when it applies. See [root.FailureRule].
	FailureRule = root.FailureRule
	// Delivery describes one call of a handler. See [root.Delivery].
	Delivery = root.Delivery
	// Notifier receives PostgreSQL's notifications. See [root.Notifier].
	Notifier = root.Notifier
	// Observer is a set of callbacks about what a worker does. See [root.Observer].
	Observer = root.Observer
	// Tx is a handler's transaction. It is an es.DBTX, so a handler can append with it.
	Tx = root.Tx
	// Health is the state of an Orchestrator's workers. See [root.Health].
	Health = root.Health
	// Gap is a missing position that an open transaction may still fill. Readers wait at it.
	Gap = root.Gap
	// HandlerError is returned by Run if a handler failed. See [root.HandlerError].
	HandlerError = root.HandlerError
)

// The failure policies. See [root.FailurePolicy].
const (
	RetryForever  = root.RetryForever
	StopOnFailure = root.StopOnFailure
	ParkEvents    = root.ParkEvents
)

// Errors of Run and New, and causes of handlers' contexts. The root package documents when each
// is returned and what to do.
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

// Permanent wraps an error that a retry can't fix: the failure rule applies at once. See
// [root.Permanent].
func Permanent(err error) error { return root.Permanent(err) }

// RunMigrations creates or upgrades the library's tables. It does not touch pupsourcing's
// tables. Programs can call it at every start, in many processes at once. See
// [root.RunMigrations]. [root.Migrate] also takes a context, and SQL of the program
// ([root.WithSQL]).
func RunMigrations(db *sql.DB) error { return root.RunMigrations(db) }
