package orchestratorpgx

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// NewTable returns an events table that pgx reads natively, in the binary format. It is
// orchestrator.NewTable for a pool, with the same guarantees and the same events. Fields may
// also return destinations that only pgx can scan into. It returns ErrInvalidConfig if the pool
// is nil.
func NewTable[E any](pool *pgxpool.Pool, cfg orchestrator.TableConfig[E]) (*orchestrator.Table[E], error) {
	if pool == nil {
		return nil, fmt.Errorf("%w: orchestratorpgx.NewTable: the pool is nil; create one with pgxpool.New", orchestrator.ErrInvalidConfig)
	}
	return orchestrator.NewTable(DB(pool), cfg)
}

// NewEventTable returns an events table in pupsourcing's layout that pgx reads natively. It is
// orchestrator.NewEventTable for a pool. See NewTable.
func NewEventTable(pool *pgxpool.Pool, table string) (*orchestrator.Table[orchestrator.Event], error) {
	if pool == nil {
		return nil, fmt.Errorf("%w: orchestratorpgx.NewEventTable: the pool is nil; create one with pgxpool.New", orchestrator.ErrInvalidConfig)
	}
	return orchestrator.NewEventTable(DB(pool), table)
}
