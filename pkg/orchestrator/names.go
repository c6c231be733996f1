package orchestrator

import (
	"context"
	"database/sql"
	"net/http"

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

// What users need of the root package, so that they import one.
type (
	// ReplicaSetName names a group of projections that scale together.
	ReplicaSetName = root.ReplicaSetName
	// Retry is an exponential backoff. See [root.Retry].
	Retry = root.Retry
	// A Notifier hears PostgreSQL's notifications. See [root.Notifier].
	Notifier = root.Notifier
	// A FailurePolicy says what happens when a handler fails, and a FailureRule
	// when it has failed often enough.
	FailurePolicy = root.FailurePolicy
	FailureRule   = root.FailureRule
	// A ParkedEvent is one that a projection has gone past without handling it,
	// and a ParkedSelector says which of them are meant.
	ParkedEvent    = root.ParkedEvent
	ParkedSelector = root.ParkedSelector

	// Tx is what a handler may do with its transaction: everything but end it.
	// It is an es.DBTX, so that a handler can append with it, too.
	Tx = root.Tx

	// An Assignment says under what a handler runs. See [root.Assignment].
	Assignment = root.Assignment
	// A HandlerError is returned by Run for a handler that failed.
	HandlerError = root.HandlerError
	// A PanicError is a handler's panic, turned into an error.
	PanicError = root.PanicError
	// A Gap is a position that readers wait at.
	Gap = root.Gap

	// An Observer is told what a worker does. See [root.Observer].
	Observer = root.Observer
	// A Source says whose doing something is.
	Source = root.Source
	// A Lane is one projection on one partition under one generation.
	Lane = root.Lane
	// A WorkerReport is what a worker says of itself.
	WorkerReport = root.WorkerReport
	// A LaneReport is how far one projection is on one partition.
	LaneReport = root.LaneReport
	// A GapReport is a missing position that a transaction may still fill.
	GapReport = root.GapReport
	// Health is what probes want to know of an Orchestrator. See [root.Health].
	Health = root.Health
	// A HealthChecker is an Orchestrator, of this package or the root.
	HealthChecker = root.HealthChecker

	// ImportConfig says whose progress to import, and to where.
	ImportConfig = root.ImportConfig
	// OldCheckpoints is the table of a store's processors. The zero value is
	// pupsourcing's default. A StoreConfig.CheckpointsTable of another name is
	// Table, as PostgreSQL has it: in lower case, unless it was quoted there.
	OldCheckpoints = root.OldCheckpoints
	// Imported is what an import did, or what a dry run would have done.
	Imported = root.Imported
	// An ImportedPartition is what became of one old checkpoint.
	ImportedPartition = root.ImportedPartition
)

// What an Observer is told.
type (
	GenerationOpened     = root.GenerationOpened
	GenerationActivated  = root.GenerationActivated
	GenerationSuperseded = root.GenerationSuperseded
	GenerationDelayed    = root.GenerationDelayed
	WorkerJoined         = root.WorkerJoined
	WorkerLeft           = root.WorkerLeft
	WorkerExpired        = root.WorkerExpired
	Started              = root.Started
	Stopped              = root.Stopped
	Heartbeat            = root.Heartbeat
	HeartbeatFailed      = root.HeartbeatFailed
	LeaseLost            = root.LeaseLost
	CoordinationTimeout  = root.CoordinationTimeout
	BatchCommitted       = root.BatchCommitted
	CommitRefused        = root.CommitRefused
	HandlerFailed        = root.HandlerFailed
	EventParked          = root.EventParked
	GapWaited            = root.GapWaited
	GapResolved          = root.GapResolved
	Stalled              = root.Stalled
	Unstalled            = root.Unstalled
)

// Defaults of Config's fields.
const (
	DefaultHeartbeatInterval   = root.DefaultHeartbeatInterval
	DefaultStaleWorkerTimeout  = root.DefaultStaleWorkerTimeout
	DefaultCoordinationTimeout = root.DefaultCoordinationTimeout
	DefaultBatchSize           = root.DefaultBatchSize
	DefaultJoinWindow          = root.DefaultJoinWindow
	DefaultPollInterval        = root.DefaultPollInterval
	DefaultReadAheadBytes      = root.DefaultReadAheadBytes
	DefaultRetryMin            = root.DefaultRetryMin
	DefaultRetryMax            = root.DefaultRetryMax
	DefaultStallAfter          = root.DefaultStallAfter
	DefaultAttempts            = root.DefaultAttempts
	DefaultMaxParked           = root.DefaultMaxParked
)

// DefaultImportWatch is the default of ImportConfig.Watch.
const DefaultImportWatch = root.DefaultImportWatch

// MaxTotalPartitions is the largest number of partitions that a replica set
// can have, whatever MaxPartitions says.
const MaxTotalPartitions = root.MaxTotalPartitions

// The failure policies.
const (
	RetryForever  = root.RetryForever
	StopOnFailure = root.StopOnFailure
	HaltLane      = root.HaltLane
	ParkEvents    = root.ParkEvents
)

// The errors say in the root package when they happen and what to do.
var (
	ErrInvalidConfig        = root.ErrInvalidConfig
	ErrSchema               = root.ErrSchema
	ErrProjectionTaken      = root.ErrProjectionTaken
	ErrCoordinationTimeout  = root.ErrCoordinationTimeout
	ErrGenerationSuperseded = root.ErrGenerationSuperseded
	ErrLeaseLost            = root.ErrLeaseLost
	ErrUnproven             = root.ErrUnproven
	ErrEventStore           = root.ErrEventStore
	ErrCheckpointsExist     = root.ErrCheckpointsExist
	ErrOldCheckpoints       = root.ErrOldCheckpoints
	ErrStillMoving          = root.ErrStillMoving
	ErrNoProjection         = root.ErrNoProjection
	ErrNotParked            = root.ErrNotParked
)

// Schema is the SQL that RunMigrations applies, for other migration tools.
var Schema = root.Schema

// RunMigrations creates or upgrades the orchestrator's tables; pupsourcing's
// own are not its business. A program may call it at every start, in many
// processes at once. See [root.RunMigrations].
func RunMigrations(db *sql.DB) error { return root.RunMigrations(db) }

// Migrate is RunMigrations with a context. See [root.Migrate].
func Migrate(ctx context.Context, db *sql.DB) error { return root.Migrate(ctx, db) }

// ImportCheckpoints makes the checkpoints of processors (postgres.NewProcessor),
// partition k of a fixed total each, the starting point of a projection here.
// Stop them all, import, and start workers. See [root.ImportCheckpoints] for when
// it refuses.
func ImportCheckpoints(ctx context.Context, cfg ImportConfig) (Imported, error) {
	return root.ImportCheckpoints(ctx, cfg)
}

// HealthHandler answers the probes /livez and /readyz of a process that runs these
// Orchestrators. See [root.HealthHandler].
func HealthHandler(of ...HealthChecker) http.Handler { return root.HealthHandler(of...) }

// Parked returns what a projection has parked, at most limit events. See
// [root.Parked].
func Parked(ctx context.Context, db *sql.DB, projection string, limit int) ([]ParkedEvent, error) {
	return root.Parked(ctx, db, projection, limit)
}

// RetryParked asks for parked events to be handled now, and returns how many that
// are. See [root.RetryParked].
func RetryParked(ctx context.Context, db *sql.DB, projection string, which ParkedSelector) (int, error) {
	return root.RetryParked(ctx, db, projection, which)
}

// DiscardParked asks for parked events to be forgotten. See [root.DiscardParked].
func DiscardParked(ctx context.Context, db *sql.DB, projection string, which ParkedSelector) (int, error) {
	return root.DiscardParked(ctx, db, projection, which)
}

// AssignmentFrom returns the assignment under which the handler that was given
// ctx runs, and false outside of handlers.
func AssignmentFrom(ctx context.Context) (Assignment, bool) { return root.AssignmentFrom(ctx) }

// ContextWithAssignment returns a context from which AssignmentFrom returns a,
// for tests of handlers.
func ContextWithAssignment(ctx context.Context, a Assignment) context.Context {
	return root.ContextWithAssignment(ctx, a)
}
