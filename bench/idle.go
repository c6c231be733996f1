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
// ends of the time.) The sets do nothing side by side.
func idle(ctx context.Context, b *bench) (rows []row, err error) {
	sizes, long := []int{1, 10, 50}, 20*time.Second // of heartbeats, four intervals
	if b.quick {
		sizes, long = []int{10}, 5*time.Second
	}
	// Of workers that have settled, three each; of those that join, one more.
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
	// They become lazy by and by. And a session that rests tells the server what it
	// did when it does something later, or after ten seconds (from PostgreSQL 15 on):
	// what the workers did to start would count as idling.
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

// An idleSet is workers that have nothing to do.
type idleSet struct {
	fleet  *fleet
	pools  []*sql.DB // of each
	before int64     // transactions
	began  time.Time
}

func (s *idleSet) start(ctx context.Context, workers int) error {
	for range workers {
		pool, err := s.fleet.d.pool("worker")
		if err != nil {
			return err
		}
		pool.SetMaxIdleConns(2) // as database/sql has it: a larger pool keeps what the start has opened
		s.pools = append(s.pools, pool)
		if err := s.fleet.joinGoroutine(pool); err != nil {
			return err
		}
	}
	_, _, err := s.fleet.settle(ctx, 0)
	return err
}

// end has the workers leave before it closes their pools.
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

// transactions returns how many there were in a database. It asks from another,
// so as not to count itself.
func (b *bench) transactions(ctx context.Context, d *database) (n int64, err error) {
	err = b.databases[0].db.QueryRowContext(ctx,
		`SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1`, d.name).Scan(&n)
	return n, err
}
