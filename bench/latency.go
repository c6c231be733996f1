package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/pqnotify"
)

// latency measures an idle worker with the defaults. The time counts from the return of the
// INSERT, which commits, to the call of the handler. The pauses are long enough for the worker
// to poll at its slowest rate.
func latency(ctx context.Context, b *bench) ([]row, error) {
	var rows [2]row
	var errs [2]error
	var databases [2]*database
	for i := range databases {
		if databases[i], errs[i] = b.empty(ctx); errs[i] != nil {
			return nil, errs[i]
		}
	}
	var done sync.WaitGroup
	for i := range rows { // at the same time, since both are idle most of the time
		done.Go(func() { rows[i], errs[i] = latencyOf(ctx, b, databases[i], i == 1) })
	}
	done.Wait()
	without, with := rows[0], rows[1]
	return []row{
		without.goal("median ≤ 1000", without.Value.Median <= millis(defaultPollInterval)),
		with.goal("median ≤ 10", with.Value.Median <= 10),
	}, errors.Join(errs[:]...)
}

func latencyOf(ctx context.Context, b *bench, d *database, hints bool) (r row, err error) {
	samples := 20
	if b.quick {
		samples = 5
	}
	name := "latency/polling"
	if hints {
		name = "latency/hints"
		if _, err := d.db.ExecContext(ctx, notifying); err != nil {
			return r, err
		}
	}
	pool, err := d.pool("worker")
	if err != nil {
		return r, err
	}
	defer pool.Close()
	cfg, err := config(pool, "latency")
	if err != nil {
		return r, err
	}
	if hints {
		cfg.EventsChannel = eventsChannel
		if cfg.Notifier, err = pqnotify.New(d.url); err != nil {
			return r, err
		}
	}
	handled := make(chan time.Time, samples+1)
	l := openLedger()
	m, err := start(cfg, checking{name: "latency", ledger: l, began: func(context.Context) { handled <- time.Now() }})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, m.stop(), l.check()) }()
	a := &appender{d: d, versions: map[int]int64{}}
	var took []float64
	for n := range samples + 1 { // the first one is handled when the worker has joined, and does not count
		if n > 0 {
			time.Sleep(2*defaultPollInterval + rand.N(defaultPollInterval))
		}
		if err := a.append(ctx, []int{1}); err != nil {
			return r, err
		}
		committed := time.Now()
		select {
		case at := <-handled:
			if n > 0 {
				took = append(took, millis(at.Sub(committed)))
			}
		case <-m.done:
			return r, errors.New("the worker has ended by itself")
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
	}
	return newRow(name, milliseconds, took), nil
}
