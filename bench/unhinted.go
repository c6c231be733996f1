package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// unhinted measures workers with the defaults, without a Notifier and without events. One of
// them joins or leaves at any moment of the others' heartbeats. The time counts from the call of
// Run, or from the cancelling of its context, until every partition is handled again. It
// includes the JoinWindow. Several sets run at the same time: one waits for its moment while
// another changes; no two change at once.
func unhinted(ctx context.Context, b *bench) ([]row, error) {
	const sets, workers, pairs = 4, 10, 3
	type outcome struct {
		joins, leaves []float64
		err           error
	}
	outcomes := make(chan outcome)
	var turn sync.Mutex
	for range sets {
		f, err := newFleet(ctx, b, 4*(workers+1))
		if err != nil {
			return nil, err
		}
		f.window = 0
		go func() {
			var o outcome
			o.joins, o.leaves, o.err = f.unhinted(ctx, workers, pairs, &turn)
			o.err = errors.Join(o.err, f.end(ctx))
			outcomes <- o
		}()
	}
	var joins, leaves []float64
	var errs []error
	for range sets {
		o := <-outcomes
		joins, leaves, errs = append(joins, o.joins...), append(leaves, o.leaves...), append(errs, o.err)
	}
	var rows []row
	for _, r := range []row{
		newRow("unhinted/join", milliseconds, joins).noted("JoinWindow is " + defaultJoinWindow.String()),
		newRow("unhinted/leave", milliseconds, leaves),
	} {
		rows = append(rows, r.goal("max ≤ 1000", r.Value.N > 0 && r.Value.High <= 1000))
	}
	return rows, errors.Join(errs...)
}

// unhinted measures a number of joins and leaves.
func (f *fleet) unhinted(ctx context.Context, workers, pairs int, turn *sync.Mutex) (joins, leaves []float64, err error) {
	for range workers {
		if err := f.joinGoroutine(f.pool); err != nil {
			return nil, nil, err
		}
	}
	_, generation, err := f.settle(ctx, 0)
	change := func(begin func() error) (took float64) {
		if err != nil {
			return 0
		}
		time.Sleep(rand.N(defaultHeartbeatInterval))
		turn.Lock()
		defer turn.Unlock()
		changed := time.Now()
		if err = begin(); err != nil {
			return 0
		}
		var at time.Time
		at, generation, err = f.settle(ctx, generation)
		return millis(at.Sub(changed))
	}
	for range pairs {
		joins = append(joins, change(func() error { return f.joinGoroutine(f.pool) }))
		leaves = append(leaves, change(func() error { f.leave(); return nil }))
	}
	return joins, leaves, err
}
