package stage

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"
)

// A Team is the workers of an example: goroutines of one process, where they
// would be processes of their own.
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

// Start starts a worker, and returns how to have it leave.
func (t *Team) Start(work func(context.Context) error) (leave context.CancelFunc) {
	ctx, leave := context.WithCancel(t.ctx)
	t.workers.Go(func() {
		if err := work(ctx); err != nil || ctx.Err() == nil {
			t.fail(err)
		}
	})
	return leave
}

// Stop has all workers leave, and waits for them.
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
