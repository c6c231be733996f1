package orchestratorpgx

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Config returns a configuration with everything that can be had from a pool: the workers
// find each other in its database, hear of each other on one of its connections, and read
// the events from its table events, in pupsourcing's layout. Whatever else Config has may
// be set afterwards, and what is set here may be changed.
func Config(pool *pgxpool.Pool, set orchestrator.ReplicaSetName) (orchestrator.Config[orchestrator.Event], error) {
	if pool == nil {
		return orchestrator.Config[orchestrator.Event]{}, fmt.Errorf("%w: Config was given a nil pool", orchestrator.ErrInvalidConfig)
	}
	events, err := NewEventTable(pool, "")
	return ConfigFor(pool, set, events), err
}

// ConfigFor is Config with another event store, such as NewTable or NewStructTable return.
func ConfigFor[E any](pool *pgxpool.Pool, set orchestrator.ReplicaSetName, events orchestrator.EventStore[E]) orchestrator.Config[E] {
	if pool == nil {
		return orchestrator.Config[E]{EventStore: events, ReplicaSet: set} // New says that there is no DB
	}
	return orchestrator.Config[E]{DB: DB(pool), EventStore: events, ReplicaSet: set, Notifier: NewNotifier(pool)}
}
