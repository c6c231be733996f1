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

// Config configures an Orchestrator. DB, EventStore and ReplicaSet are required. Zero values of
// other fields mean their defaults. Fields without a comment have the meaning and the default
// of the same field in [root.Config].
type Config struct {
	// DB is the database of the events table. It also holds the library's tables, and the
	// writes of transactional projections commit in it. [root.Config] says how many
	// connections it needs.
	DB *sql.DB
	// EventStore is the store that appends the events. The library reads them from
	// EventsTable, and not through the store.
	EventStore *postgres.Store
	// EventsTable is the StoreConfig.EventsTable of EventStore, spelled the same way. It
	// can't be read from the store. Default: events, as in pupsourcing.
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

	// Logger gets the log messages. A warning is logged by Error, with level=WARN. For a
	// logger that has only Info and Error, see WithoutDebug. Default: slog.Default().
	Logger     es.Logger
	Observer   *Observer
	StallAfter time.Duration
}

// Orchestrator runs projections as a worker of a replica set.
type Orchestrator struct {
	root   *root.Orchestrator[es.PersistedEvent]
	events *eventsTable
}

// New returns an Orchestrator. It checks the configuration, but does not connect to the
// database. It returns ErrInvalidConfig, which names the field.
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

// Run joins the replica set and handles the events of its partitions until ctx is cancelled.
// Then it finishes and commits the events in progress, leaves the replica set, so that the
// other workers rebalance at once, and returns nil.
//
// Run returns an error only if it can't go on: ErrInvalidConfig, ErrSchema,
// ErrProjectionTaken, ErrEventStore, ErrCoordinationTimeout, a *HandlerError under the policy
// StopOnFailure, an error about a handler that ends its goroutine, or the server's error about
// a missing privilege or table. A lost partition, a new generation and a database that is
// unreachable for a while are not errors.
//
// Each call of Run is a worker of its own. All workers of a replica set should run the same
// projections. During a roll-out that adds a projection, the projection is idle on partitions
// whose worker does not have it yet.
func (o *Orchestrator) Run(ctx context.Context, projections []projection.Projection) error {
	translated, err := translate(projections)
	if err != nil {
		return err
	}
	return o.root.Run(ctx, translated)
}

// CatchUp runs like Run until all projections have handled every event that existed when it was
// called. Then it returns nil. It is for tests and one-off jobs. It returns a *ParkedError if
// events were parked instead.
func (o *Orchestrator) CatchUp(ctx context.Context, projections []projection.Projection) error {
	translated, err := translate(projections)
	if err != nil {
		return err
	}
	return o.root.CatchUp(ctx, translated)
}

// Health returns the state of this Orchestrator's workers, for HealthHandler.
func (o *Orchestrator) Health() Health { return o.root.Health() }

// Waiting returns the gap in the events table at which readers wait. ok is false if there is
// none. A gap stays as long as a transaction that has appended events stays open.
func (o *Orchestrator) Waiting() (Gap, bool) { return o.events.Waiting() }
