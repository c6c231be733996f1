package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const rolloutWorkers = 10

// together measures ten workers that call Run at once, with the defaults.
func together(ctx context.Context, b *bench) (rows []row, err error) {
	f, err := newFleet(ctx, b, 3*rolloutWorkers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.end(ctx)) }()
	f.window, f.hints = defaultJoinWindow, true
	began := time.Now()
	for range rolloutWorkers {
		if err := f.joinGoroutine(f.pool); err != nil {
			return nil, err
		}
	}
	at, generation, err := f.settle(ctx, 0)
	if err != nil {
		return nil, err
	}
	further := float64(generation - 1)
	return []row{
		newRow("together/generations", "after the first", []float64{further}).goal("≤ 1", further <= 1),
		newRow("together/settled", milliseconds, []float64{millis(at.Sub(began))}).
			noted(fmt.Sprintf("JoinWindow is %s", f.window)),
	}, nil
}

// rolling measures a deployment. Every second it starts a new worker, and tells the oldest to
// leave as soon as the new one has joined, until all are new. A leave within the JoinWindow of a
// join makes one generation with it.
func rolling(ctx context.Context, b *bench) (rows []row, err error) {
	f, err := newFleet(ctx, b, 3*(rolloutWorkers+1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.end(ctx)) }()
	f.window, f.hints = defaultJoinWindow, true
	for range rolloutWorkers {
		if err := f.joinGoroutine(f.pool); err != nil {
			return nil, err
		}
	}
	_, first, err := f.settle(ctx, 0)
	if err != nil {
		return nil, err
	}
	pace := time.NewTicker(time.Second)
	defer pace.Stop()
	for range rolloutWorkers {
		<-pace.C
		if err := f.joinGoroutine(f.pool); err != nil {
			return nil, err
		}
		if err := f.joined(ctx, rolloutWorkers+1); err != nil {
			return nil, err
		}
		f.leave()
	}
	last := time.Now()
	at, generation, err := f.settle(ctx, first)
	if err != nil {
		return nil, err
	}
	opened := float64(generation - first)
	return []row{
		newRow("rolling/generations", "generations", []float64{opened}).goal("≤ 11", opened <= rolloutWorkers+1),
		newRow("rolling/settled", milliseconds, []float64{millis(at.Sub(last))}).noted("after the last change"),
	}, nil
}

// joined waits until n workers are members.
func (f *fleet) joined(ctx context.Context, n int) error {
	for members := 0; members < n; {
		time.Sleep(5 * time.Millisecond)
		if err := f.watched.QueryRowContext(ctx, `SELECT count(*) FROM orchestrator_workers`).Scan(&members); err != nil {
			return err
		}
	}
	return nil
}
