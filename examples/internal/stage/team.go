package stage

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"
)

// A Team is the workers of an example. They are goroutines of one process; in production
// they are processes of their own.
type Team struct {
	ctx     context.Context // ends when a worker fails, or after limit
	fail    context.CancelCauseFunc
	workers sync.WaitGroup
}

// limit ends a run in which something never happens.
const limit = 2 * time.Minute

// NewTeam returns one without workers.
func NewTeam(ctx context.Context) *Team {
	t := &Team{}
	t.ctx, t.fail = context.WithCancelCause(ctx)
	late := time.AfterFunc(limit, func() { t.fail(fmt.Errorf("gave up after %s", limit)) })
	context.AfterFunc(t.ctx, func() { late.Stop() })
	return t
}

// Start starts a worker. leave stops it.
func (t *Team) Start(work func(context.Context) error) (leave context.CancelFunc) {
	ctx, leave := context.WithCancel(t.ctx)
	t.workers.Go(func() {
		if err := work(ctx); err != nil || ctx.Err() == nil {
			t.fail(err)
		}
	})
	return leave
}

// Stop stops all workers, and waits for them.
func (t *Team) Stop() {
	t.fail(nil)
	t.workers.Wait()
}

// Await waits until a query returns true. If a worker fails, it returns that one's
// error.
func (t *Team) Await(db *sql.DB, query string, args ...any) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var yes bool
		err := db.QueryRowContext(t.ctx, query, args...).Scan(&yes)
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		if yes || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-t.ctx.Done():
		}
	}
}

// AwaitPartitions waits until a replica set runs a generation with this number of
// partitions, and returns its number.
func (t *Team) AwaitPartitions(db *sql.DB, set string, n int) (generation int64, err error) {
	err = t.Await(db, `
SELECT EXISTS (SELECT FROM orchestrator_replica_sets WHERE name = $1 AND phase = 'active' AND total = $2)`, set, n)
	if err != nil {
		return 0, err
	}
	return Generation(t.ctx, db, set)
}

// Generation returns the newest generation of a replica set; 0: there is none.
func Generation(ctx context.Context, db *sql.DB, set string) (g int64, err error) {
	err = db.QueryRowContext(ctx, `SELECT coalesce(max(generation), 0) FROM orchestrator_replica_sets WHERE name = $1`, set).Scan(&g)
	return g, err
}
