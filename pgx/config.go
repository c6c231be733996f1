package orchestratorpgx

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Config returns a configuration with DB, EventStore, ReplicaSet and Notifier set: everything
// uses the pool, and the events are read from the table events in pupsourcing's layout. All
// fields can be changed afterwards. It returns ErrInvalidConfig if the pool is nil.
func Config(pool *pgxpool.Pool, set orchestrator.ReplicaSetName) (orchestrator.Config[orchestrator.Event], error) {
	if pool == nil {
		return orchestrator.Config[orchestrator.Event]{}, fmt.Errorf("%w: orchestratorpgx.Config: the pool is nil; create one with pgxpool.New", orchestrator.ErrInvalidConfig)
	}
	events, err := NewEventTable(pool, "")
	return ConfigFor(pool, set, events), err
}

// ConfigFor is Config with another event store, such as the result of NewTable or
// NewStructTable.
func ConfigFor[E any](pool *pgxpool.Pool, set orchestrator.ReplicaSetName, events orchestrator.EventStore[E]) orchestrator.Config[E] {
	if pool == nil {
		return orchestrator.Config[E]{EventStore: events, ReplicaSet: set} // New returns the error that DB is nil
	}
	return orchestrator.Config[E]{DB: DB(pool), EventStore: events, ReplicaSet: set, Notifier: NewNotifier(pool)}
}
