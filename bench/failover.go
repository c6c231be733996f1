package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// failover: sets of worker processes, at the defaults, without a Notifier. One of them is
// killed, at any moment of its heartbeat's interval, and replaced when the others work.
func failover(ctx context.Context, b *bench) ([]row, error) {
	var rows []row
	for _, c := range []struct {
		name            string
		sets, processes int
	}{{"failover", 5, 2}, {"failover-5", 2, 5}, {"failover-10", 1, 10}} {
		r, err := failoverOf(ctx, b, c.name, c.sets, c.processes)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// crashes is of how many crashes a row is.
const crashes = 20

func failoverOf(ctx context.Context, b *bench, name string, sets, processes int) (row, error) {
	type outcome struct {
		took []float64
		err  error
	}
	outcomes := make(chan outcome)
	for range sets {
		f, err := newFleet(ctx, b, poolSize)
		if err != nil {
			return row{}, err
		}
		go func() {
			took, err := f.failovers(ctx, processes, crashes/sets)
			outcomes <- outcome{took, errors.Join(err, f.end(ctx))}
		}()
	}
	var took []float64
	var errs []error
	for range sets {
		o := <-outcomes
		took, errs = append(took, o.took...), append(errs, o.err)
	}
	r := newRow(name, milliseconds, took)
	r = r.goal("max ≤ 2000", len(took) > 0 && r.Value.High <= 2000).
		noted(fmt.Sprintf("one of %d processes; StaleWorkerTimeout is %s", processes, defaultStaleWorkerTimeout))
	return r, errors.Join(errs...)
}

// watching is how long a worker's own connection must have been there before it
// misses others.
const watching = 5500 * time.Millisecond

// failovers kills processes, one after another. Of two, the other has to have been there
// for a while; of more, some have.
func (f *fleet) failovers(ctx context.Context, processes, times int) (took []float64, err error) {
	for range processes {
		if _, err := f.joinProcess(); err != nil {
			return nil, err
		}
	}
	_, generation, err := f.settle(ctx, 0)
	if err != nil {
		return nil, err
	}
	for {
		if len(took) == 0 || processes == 2 {
			time.Sleep(watching)
		}
		time.Sleep(rand.N(defaultHeartbeatInterval))
		killed := time.Now()
		f.kill(rand.IntN(processes))
		at, g, err := f.settle(ctx, generation)
		if err != nil {
			return took, err
		}
		if took = append(took, millis(at.Sub(killed))); len(took) == times {
			return took, nil
		}
		if _, err := f.joinProcess(); err != nil {
			return took, err
		}
		if _, generation, err = f.settle(ctx, g); err != nil {
			return took, err
		}
	}
}
