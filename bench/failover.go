package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// failover measures sets of worker processes with the defaults and without a Notifier. One process
// is killed, at any moment of its heartbeat interval, and replaced when the others work.
//
// Several sets run at the same time: one waits for its moment while another is measured. No two
// are measured at once: between a kill and the takeover, the other sets are idle, or the
// replacement of an earlier process joins.
func failover(ctx context.Context, b *bench) ([]row, error) {
	twos, fives, tens := failoverRow{"failover", 5, 2}, failoverRow{"failover-5", 2, 5}, failoverRow{"failover-10", 2, 10}
	rows, err := failoversOf(ctx, b, twos, fives)
	if err != nil {
		return rows, err
	}
	last, err := failoversOf(ctx, b, tens)
	return append(rows, last...), err
}

// A failoverRow is a row for a number of sets with a number of processes each.
type failoverRow struct {
	name            string
	sets, processes int
}

// crashes is the number of crashes in a row.
const crashes = 20

func failoversOf(ctx context.Context, b *bench, all ...failoverRow) ([]row, error) {
	type outcome struct {
		row  int
		took []float64
		err  error
	}
	outcomes := make(chan outcome)
	var turn sync.Mutex
	n := 0
	for i, r := range all {
		for range r.sets {
			f, err := newFleet(ctx, b, poolSize)
			if err != nil {
				return nil, err
			}
			n++
			go func() {
				took, err := f.failovers(ctx, r.processes, crashes/r.sets, &turn)
				outcomes <- outcome{i, took, errors.Join(err, f.end(ctx))}
			}()
		}
	}
	took := make([][]float64, len(all))
	var errs []error
	for range n {
		o := <-outcomes
		took[o.row], errs = append(took[o.row], o.took...), append(errs, o.err)
	}
	var rows []row
	for i, r := range all {
		result := newRow(r.name, milliseconds, took[i])
		rows = append(rows, result.goal("max ≤ 2000", result.Value.N > 0 && result.Value.High <= 2000).
			noted(fmt.Sprintf("one of %d processes; StaleWorkerTimeout is %s", r.processes, defaultStaleWorkerTimeout)))
	}
	return rows, errors.Join(errs...)
}

// watching is how long a worker's dedicated connection must exist before the worker detects
// crashes.
const watching = 5500 * time.Millisecond

// failovers kills processes, one after another. Of two processes, the other must have been there
// for a while; of more, some must.
func (f *fleet) failovers(ctx context.Context, processes, times int, turn *sync.Mutex) (took []float64, err error) {
	for range processes {
		if _, err := f.joinProcess(); err != nil {
			return nil, err
		}
	}
	_, generation, err := f.settle(ctx, 0)
	for len(took) < times && err == nil {
		if len(took) == 0 || processes == 2 {
			time.Sleep(watching)
		}
		time.Sleep(rand.N(defaultHeartbeatInterval))
		turn.Lock()
		killed := time.Now()
		f.kill(rand.IntN(processes))
		var at time.Time
		at, generation, err = f.settle(ctx, generation)
		turn.Unlock()
		if err != nil {
			break
		}
		if took = append(took, millis(at.Sub(killed))); len(took) == times {
			break
		}
		if _, err = f.joinProcess(); err == nil {
			_, generation, err = f.settle(ctx, generation)
		}
	}
	return took, err
}
