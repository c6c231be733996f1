package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// failover: several sets of two processes each, at the defaults. One of the two
// is killed, at any moment of its heartbeat's interval, and replaced when the
// other works. Both have run for a few seconds then: a worker that has just
// started misses nobody.
func failover(ctx context.Context, b *bench) ([]row, error) {
	const sets = 5
	type outcome struct {
		took []float64
		err  error
	}
	outcomes := make(chan outcome)
	for range sets {
		f, err := newFleet(ctx, b, poolSize)
		if err != nil {
			return nil, err
		}
		go func() {
			took, err := f.failovers(ctx)
			outcomes <- outcome{took, errors.Join(err, f.end(ctx))}
		}()
	}
	var took []float64
	var errs []error
	for range sets {
		o := <-outcomes
		took, errs = append(took, o.took...), append(errs, o.err)
	}
	r := newRow("failover", milliseconds, took)
	r = r.goal("max ≤ 2000", len(took) > 0 && r.Value.High <= 2000).
		noted(fmt.Sprintf("StaleWorkerTimeout is %s", defaultStaleWorkerTimeout))
	return []row{r}, errors.Join(errs...)
}

// watching is how long a worker's own connection must have been there before it
// misses others.
const watching = 5500 * time.Millisecond

func (f *fleet) failovers(ctx context.Context) (took []float64, err error) {
	for range 2 {
		if _, err := f.joinProcess(); err != nil {
			return nil, err
		}
	}
	_, generation, err := f.settle(ctx, 0)
	if err != nil {
		return nil, err
	}
	for began := time.Now(); ; {
		time.Sleep(watching + rand.N(defaultHeartbeatInterval))
		killed := time.Now()
		f.kill(rand.IntN(2))
		at, g, err := f.settle(ctx, generation)
		if err != nil {
			return took, err
		}
		took = append(took, millis(at.Sub(killed)))
		if time.Since(began) > 35*time.Second || len(took) == 10 {
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
