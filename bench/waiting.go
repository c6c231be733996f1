package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// waiting measures workers whose handler waits for 1 ms, as for another service. The events are
// counted from the moment when all workers work, over the same time for all contenders. The
// stream's 1000 aggregates are spread evenly, and there are more events than time. Four workers
// on one advisory lock, where one does everything, run at the same time.
func waiting(ctx context.Context, b *bench) ([]row, error) {
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	rate := func(workers, partitions int) func(context.Context, *sql.DB) (float64, error) {
		return func(ctx context.Context, pool *sql.DB) (float64, error) {
			return waitingRate(ctx, b, d, pool, workers, partitions)
		}
	}
	return b.race(ctx, d, 3, []contender{
		{"waiting/1-worker", rate(1, 1), 0},
		{"waiting/4-workers", rate(4, 1), 3.8},
		{"waiting/16-partitions", rate(1, 16), 14},
		{"waiting/4-by-lock", func(ctx context.Context, pool *sql.DB) (float64, error) { return leaderRate(ctx, b, pool) }, 0},
	})
}

func waitingRate(ctx context.Context, b *bench, d *database, pool *sql.DB, workers, partitions int) (rate float64, err error) {
	f := &fleet{
		partitions: partitions,
		d:          d, set: b.fresh("set"), projection: b.fresh("p"), window: time.Millisecond, handler: time.Millisecond,
		ledger: openLedger(), reports: make(chan report, 1000),
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	for range workers {
		if err := f.joinGoroutine(pool); err != nil {
			return 0, err
		}
	}
	if err := f.together(ctx); err != nil {
		return 0, err
	}
	began, before := time.Now(), f.ledger.count.Load()
	time.Sleep(1500 * time.Millisecond)
	return float64(f.ledger.count.Load()-before) / time.Since(began).Seconds(), nil
}

// together waits until all workers handle events of the stream under one generation.
func (f *fleet) together(ctx context.Context) error {
	under := map[*member]report{}
	for {
		if _, generation := f.agreed(under); generation > 0 {
			return nil
		}
		select {
		case r := <-f.reports:
			under[r.by] = r
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d workers to work: %w", len(f.members), context.Cause(ctx))
		}
	}
}

// stop makes all workers leave in the middle of the stream, and checks what they handled.
func (f *fleet) stop() (err error) {
	for _, m := range f.members {
		err = errors.Join(err, m.stop())
	}
	return errors.Join(err, f.ledger.check())
}
