package orchestrator

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/getpup/pupsourcing/es/projection"

	root "github.com/getpup/pupsourcing-orchestrator"
)

// Config configures an Orchestrator. DB, EventStore and ReplicaSet are required; a zero in
// any other field means its default.
//
// Fields without a comment are those of [root.Config], with the same meaning and the same
// defaults.
type Config struct {
	// DB is the database that has the events table, in which the workers find each
	// other, and in which the progress and the writes of transactional projections are
	// committed. See [root.Config] for how many connections it needs.
	DB *sql.DB
	// EventStore is what the events are appended with. It says that they are
	// in PostgreSQL and in which layout; they are read from EventsTable.
	EventStore *postgres.Store
	// EventsTable is the StoreConfig.EventsTable of EventStore, written as it is
	// there. The store can't be asked for it, so whoever has set it there must
	// set it here. Default: events, which is pupsourcing's.
	EventsTable string
	ReplicaSet  ReplicaSetName
	Schema      string

	HeartbeatInterval   time.Duration
	StaleWorkerTimeout  time.Duration
	CoordinationTimeout time.Duration
	BatchSize           int

	Partitions        int
	MaxPartitions     int
	JoinWindow        time.Duration
	ReplacementWindow time.Duration
	PollInterval      time.Duration
	ReadAheadBytes    int
	Notifier          Notifier
	EventsChannel     string
	Retry             Retry
	OnFailure         FailurePolicy
	Failures          map[string]FailureRule
	Around            func(ctx context.Context, d Delivery, next func(ctx context.Context) error) error
	LeaseOnly         bool

	// Logger gets a line for each generation and each thing that is wrong, a
	// warning as an error that says so (level=WARN). For a logger that has only
	// Info and Error, see WithoutDebug. Default: slog.Default().
	Logger     es.Logger
	Observer   *Observer
	StallAfter time.Duration
}

// An Orchestrator is one worker of a replica set.
type Orchestrator struct {
	root   *root.Orchestrator[es.PersistedEvent]
	events *eventsTable
}

// New checks the configuration, without touching the database, and returns an
// Orchestrator. The error is ErrInvalidConfig and names the field.
func New(cfg Config) (*Orchestrator, error) {
	switch {
	case cfg.DB == nil:
		return nil, configError("DB", "is nil; open a database with sql.Open")
	case cfg.EventStore == nil:
		return nil, configError("EventStore", "is nil; use postgres.NewStore")
	}
	events, err := tableOf(cfg.DB, cfg.EventsTable)
	if err != nil {
		return nil, err
	}
	o, err := root.New(cfg.translate(events))
	if err != nil {
		return nil, err
	}
	return &Orchestrator{root: o, events: events}, nil
}

func (c Config) translate(events *eventsTable) root.Config[es.PersistedEvent] {
	t := root.Config[es.PersistedEvent]{
		DB:                  c.DB,
		EventStore:          events,
		ReplicaSet:          c.ReplicaSet,
		Schema:              c.Schema,
		HeartbeatInterval:   c.HeartbeatInterval,
		StaleWorkerTimeout:  c.StaleWorkerTimeout,
		CoordinationTimeout: c.CoordinationTimeout,
		BatchSize:           c.BatchSize,
		Partitions:          c.Partitions,
		MaxPartitions:       c.MaxPartitions,
		JoinWindow:          c.JoinWindow,
		ReplacementWindow:   c.ReplacementWindow,
		PollInterval:        c.PollInterval,
		ReadAheadBytes:      c.ReadAheadBytes,
		Notifier:            c.Notifier,
		EventsChannel:       c.EventsChannel,
		Retry:               c.Retry,
		OnFailure:           c.OnFailure,
		Failures:            c.Failures,
		Around:              c.Around,
		LeaseOnly:           c.LeaseOnly,
		Observer:            c.Observer,
		StallAfter:          c.StallAfter,
	}
	if c.Logger != nil {
		t.Logger = slog.New(handler{logger: c.Logger})
	}
	return t
}

func configError(field, problem string) error {
	return fmt.Errorf("%w: Config.%s %s", ErrInvalidConfig, field, problem)
}

// Run joins the replica set and handles events of the partitions that it is
// assigned, until ctx is cancelled. Then the events in hand are finished and
// committed, the membership is given up, so that the others re-partition
// without waiting for anything, and Run returns nil.
//
// Run returns an error only when it can't go on: ErrInvalidConfig,
// ErrSchema, ErrProjectionTaken, ErrEventStore, ErrCoordinationTimeout, a
// *HandlerError under the policy StopOnFailure, a handler that ends its
// goroutine, or what the server says about a privilege or a table that is
// missing. Losing a partition, a new generation, a database that is away for a
// while are not errors.
//
// Each call of Run is a worker of its own. All workers of a replica set should
// run the same projections. During a roll-out that adds one, it stays idle on
// partitions whose worker does not know it yet.
func (o *Orchestrator) Run(ctx context.Context, projections []projection.Projection) error {
	translated, err := translate(projections)
	if err != nil {
		return err
	}
	return o.root.Run(ctx, translated)
}

// CatchUp runs as Run does until everything that was in the event store when it was
// called is handled by all of the projections, and returns nil: for tests and for
// jobs that run once. It returns a *ParkedError for events that were parked instead.
func (o *Orchestrator) CatchUp(ctx context.Context, projections []projection.Projection) error {
	translated, err := translate(projections)
	if err != nil {
		return err
	}
	return o.root.CatchUp(ctx, translated)
}

// Health returns how the workers are that this Orchestrator's calls of Run are, for
// HealthHandler.
func (o *Orchestrator) Health() Health { return o.root.Health() }

// Waiting returns the gap in the events table that readers wait at, if there
// is one: a transaction that has appended and stays open holds them back.
func (o *Orchestrator) Waiting() (Gap, bool) { return o.events.Waiting() }
