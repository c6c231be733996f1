package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// idle measures workers with the defaults and without events. Each has a pool of its own, as a
// process has. The server counts the transactions; each transaction of an idle worker is one
// statement. (The server's counters may be a second old, at the start and at the end.) The sets
// are idle at the same time.
func idle(ctx context.Context, b *bench) (rows []row, err error) {
	sizes, long := []int{1, 10, 50}, 20*time.Second // 20 s are four heartbeat intervals
	if b.quick {
		sizes, long = []int{10}, 5*time.Second
	}
	// Settled workers have three connections each; joining workers have one more.
	most := 4 * sizes[len(sizes)-1]
	for _, n := range sizes[:len(sizes)-1] {
		most += 3 * n
	}
	connections, err := b.connections(ctx)
	if err != nil {
		return nil, err
	}
	if most > connections {
		return nil, fmt.Errorf("the workers may need %d connections, and the server allows %d", most, connections)
	}
	var sets []*idleSet
	defer func() {
		for _, s := range sets {
			err = errors.Join(err, s.end(ctx))
		}
	}()
	for _, n := range sizes {
		f, err := newFleet(ctx, b, 1)
		if err != nil {
			return nil, err
		}
		s := &idleSet{fleet: f}
		sets = append(sets, s)
		if err := s.start(ctx, n); err != nil {
			return nil, err
		}
	}
	// Workers poll less and less often. A session that rests reports its statistics to the
	// server with its next statement, or after ten seconds (since PostgreSQL 15). Without this
	// pause, statements of the start would count as idle.
	time.Sleep(11 * time.Second)
	for _, s := range sets {
		if s.before, err = b.transactions(ctx, s.fleet.d); err != nil {
			return nil, err
		}
		s.began = time.Now()
	}
	time.Sleep(long)
	for _, s := range sets {
		r, err := s.rows(ctx, b)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// An idleSet is a number of workers without events.
type idleSet struct {
	fleet  *fleet
	pools  []*sql.DB // the pool of each worker
	before int64     // transactions before the measurement
	began  time.Time
}

func (s *idleSet) start(ctx context.Context, workers int) error {
	for range workers {
		pool, err := s.fleet.d.pool("worker")
		if err != nil {
			return err
		}
		pool.SetMaxIdleConns(2) // the default of database/sql: a larger pool would keep connections of the start
		s.pools = append(s.pools, pool)
		if err := s.fleet.joinGoroutine(pool); err != nil {
			return err
		}
	}
	_, _, err := s.fleet.settle(ctx, 0)
	return err
}

// end makes the workers leave, and then closes their pools.
func (s *idleSet) end(ctx context.Context) error {
	err := s.fleet.end(ctx)
	for _, pool := range s.pools {
		err = errors.Join(err, pool.Close())
	}
	return err
}

func (s *idleSet) rows(ctx context.Context, b *bench) ([]row, error) {
	after, err := b.transactions(ctx, s.fleet.d)
	if err != nil {
		return nil, err
	}
	workers := float64(len(s.pools))
	perSecond := float64(after-s.before) / time.Since(s.began).Seconds() / workers
	var open float64
	err = s.fleet.watched.QueryRowContext(ctx, `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'worker'`).Scan(&open)
	open /= workers
	name := fmt.Sprintf("idle/%d-workers-", len(s.pools))
	return []row{
		newRow(name+"statements", "1/s per worker", []float64{perSecond}).goal("≤ 2", perSecond <= 2),
		newRow(name+"connections", "per worker", []float64{open}).goal("≤ 3", open <= 3),
	}, err
}

// transactions returns the number of transactions in a database. It asks from another database,
// so as not to count itself.
func (b *bench) transactions(ctx context.Context, d *database) (n int64, err error) {
	err = b.databases[0].db.QueryRowContext(ctx,
		`SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1`, d.name).Scan(&n)
	return n, err
}
