package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// unhinted: workers at the defaults, without a Notifier and without events, of which one
// joins or leaves at any moment of the others' heartbeats. The time counts from the call of
// Run, or from the cancelling of its context, until every partition is handled again; the
// JoinWindow is in it. Several sets change side by side: what they do takes a hundredth of
// the time for which they wait.
func unhinted(ctx context.Context, b *bench) ([]row, error) {
	const sets, workers, pairs = 4, 10, 3
	type outcome struct {
		joins, leaves []float64
		err           error
	}
	outcomes := make(chan outcome)
	for range sets {
		f, err := newFleet(ctx, b, 4*(workers+1))
		if err != nil {
			return nil, err
		}
		f.window = 0
		go func() {
			var o outcome
			o.joins, o.leaves, o.err = f.unhinted(ctx, workers, pairs)
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

// unhinted measures so many joins and leaves.
func (f *fleet) unhinted(ctx context.Context, workers, pairs int) (joins, leaves []float64, err error) {
	for range workers {
		if err := f.joinGoroutine(f.pool); err != nil {
			return nil, nil, err
		}
	}
	_, generation, err := f.settle(ctx, 0)
	for n := 0; n < 2*pairs && err == nil; n++ {
		time.Sleep(rand.N(defaultHeartbeatInterval))
		changed := time.Now()
		into := &joins
		if n%2 == 0 {
			err = f.joinGoroutine(f.pool)
		} else {
			f.leave()
			into = &leaves
		}
		if err != nil {
			break
		}
		var at time.Time
		if at, generation, err = f.settle(ctx, generation); err == nil {
			*into = append(*into, millis(at.Sub(changed)))
		}
	}
	return joins, leaves, err
}
