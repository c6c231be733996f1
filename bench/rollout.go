package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

const rolloutWorkers = 10

// together: ten workers call Run at once, at the defaults.
func together(ctx context.Context, b *bench) (rows []row, err error) {
	f, err := newFleet(ctx, b, 3*rolloutWorkers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.end(ctx)) }()
	f.window = orchestrator.DefaultJoinWindow
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

// rolling: every second the oldest of ten workers is told to leave, and a new one
// calls Run at the same moment, until all are new.
func rolling(ctx context.Context, b *bench) (rows []row, err error) {
	f, err := newFleet(ctx, b, 3*(rolloutWorkers+1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.end(ctx)) }()
	f.window = orchestrator.DefaultJoinWindow
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
		f.leave()
		if err := f.joinGoroutine(f.pool); err != nil {
			return nil, err
		}
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
