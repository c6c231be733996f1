package orchestratorpgx

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// NewTable is orchestrator.NewTable with a pool: the table is read by pgx itself, in the
// binary format, and Fields may return whatever pgx can scan into as well. The events are
// the same, and so is all that an orchestrator.Table promises.
func NewTable[E any](pool *pgxpool.Pool, cfg orchestrator.TableConfig[E]) (*orchestrator.Table[E], error) {
	if pool == nil {
		return nil, fmt.Errorf("%w: NewTable was given a nil pool", orchestrator.ErrInvalidConfig)
	}
	return orchestrator.NewTable(DB(pool), cfg)
}

// NewEventTable is orchestrator.NewEventTable with a pool; see NewTable.
func NewEventTable(pool *pgxpool.Pool, table string) (*orchestrator.Table[orchestrator.Event], error) {
	if pool == nil {
		return nil, fmt.Errorf("%w: NewEventTable was given a nil pool", orchestrator.ErrInvalidConfig)
	}
	return orchestrator.NewEventTable(DB(pool), table)
}
