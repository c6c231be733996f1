package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

// distance measures a transactional projection on ten partitions, which inserts a row for each
// event, with a given round-trip time between worker and database. A worker with the defaults
// and one with LeaseOnly run at the same time.
func distance(ctx context.Context, b *bench) (rows []row, err error) {
	d, err := b.empty(ctx)
	if err != nil {
		return nil, err
	}
	d.events = 60_000
	if _, err := d.db.ExecContext(ctx, fill, d.events, aggregates); err != nil {
		return nil, err
	}
	for _, ms := range []int{10, 200} {
		pair, err := b.distant(ctx, d, time.Duration(ms)*time.Millisecond)
		if err != nil {
			return rows, err
		}
		base := newRow(fmt.Sprintf("distance/%dms-lease-only", ms), eventsPerSecond, pair[:1])
		r := newRow(fmt.Sprintf("distance/%dms", ms), eventsPerSecond, pair[1:]).to(base)
		rows = append(rows, base, r.goal("≥ 0.9", r.Ratio.Median >= 0.9))
	}
	return rows, nil
}

// distant returns how many events each of the two commits per second, from the moment when both
// have started.
func (b *bench) distant(ctx context.Context, d *database, roundTrip time.Duration) (rates []float64, err error) {
	const length = 8 * time.Second
	names := []string{b.fresh("lease"), b.fresh("default")}
	for i, name := range names {
		w, err := wire.To(d.url, roundTrip/2)
		if err != nil {
			return nil, err
		}
		defer w.Close()
		pool, err := (&database{url: w.URL}).pool("worker")
		if err != nil {
			return nil, err
		}
		defer pool.Close()
		cfg, err := config(pool, b.fresh("set"))
		if err != nil {
			return nil, err
		}
		cfg.LeaseOnly, cfg.BatchSize, cfg.Partitions = i == 0, 1, 10
		m, err := start(cfg, each{name})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, m.stop()) }()
	}
	committed := func() (n [2]int64, err error) {
		err = d.db.QueryRowContext(ctx, `
SELECT count(*) FILTER (WHERE projection = $1), count(*) FILTER (WHERE projection = $2) FROM effects`, names[0], names[1]).Scan(&n[0], &n[1])
		return n, err
	}
	var first, last [2]int64
	for first[0] == 0 || first[1] == 0 {
		time.Sleep(20 * time.Millisecond)
		if first, err = committed(); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	time.Sleep(length)
	if last, err = committed(); err != nil {
		return nil, err
	}
	for i := range names {
		if last[i] >= d.events {
			return nil, errors.New("there were too few events")
		}
		rates = append(rates, float64(last[i]-first[i])/time.Since(began).Seconds())
	}
	return rates, nil
}

// each inserts a row for each event.
type each struct{ name string }

func (p each) Name() string { return p.name }

func (p each) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a transactional projection")
}

func (p each) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	return insertEffects(ctx, tx, p.name, []orchestrator.Event{e})
}
