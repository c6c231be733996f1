package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// idle: workers at the defaults, each with a pool of its own as in a process of
// its own, and no events. The server counts the transactions; an idle worker's
// are of one statement each. (The server's counters may be a second old, at both
// ends of the time.)
func idle(ctx context.Context, b *bench, workers int) (rows []row, err error) {
	long := 20 * time.Second // of heartbeats, four intervals
	if b.quick {
		long = 5 * time.Second
	}
	connections, err := b.connections(ctx)
	if err != nil {
		return nil, err
	}
	if most := 4 * workers; most > connections {
		return nil, fmt.Errorf("%d workers may need %d connections, and the server allows %d", workers, most, connections)
	}
	f, err := newFleet(ctx, b, 1)
	if err != nil {
		return nil, err
	}
	var pools []*sql.DB
	defer func() { // the workers first
		err = errors.Join(err, f.end(ctx))
		for _, pool := range pools {
			err = errors.Join(err, pool.Close())
		}
	}()
	for range workers {
		pool, err := f.d.pool("worker")
		if err != nil {
			return nil, err
		}
		pools = append(pools, pool)
		if err := f.joinGoroutine(pool); err != nil {
			return nil, err
		}
	}
	if _, _, err := f.settle(ctx, 0); err != nil {
		return nil, err
	}
	// They become lazy by and by. And a session that rests tells the server what it
	// did when it does something later, or after ten seconds (from PostgreSQL 15 on):
	// what the workers did to start would count as idling.
	time.Sleep(11 * time.Second)
	if _, _, err := f.generation(ctx); err != nil {
		return nil, err
	}
	before, err := b.transactions(ctx, f.d)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	time.Sleep(long)
	after, err := b.transactions(ctx, f.d)
	if err != nil {
		return nil, err
	}
	perSecond := float64(after-before) / time.Since(began).Seconds() / float64(workers)
	var open float64
	err = f.watched.QueryRowContext(ctx, `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'worker'`).Scan(&open)
	if err != nil {
		return nil, err
	}
	open /= float64(workers)
	name := fmt.Sprintf("idle-%d/", workers)
	return []row{
		newRow(name+"statements", "1/s per worker", []float64{perSecond}).goal("≤ 2", perSecond <= 2),
		newRow(name+"connections", "per worker", []float64{open}).goal("≤ 3", open <= 3),
	}, nil
}

// transactions returns how many there were in a database. It asks from another,
// so as not to count itself.
func (b *bench) transactions(ctx context.Context, d *database) (n int64, err error) {
	err = b.databases[0].db.QueryRowContext(ctx,
		`SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1`, d.name).Scan(&n)
	return n, err
}
