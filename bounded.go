package orchestrator

import (
	"context"
	"fmt"
	"time"
)

// bounded makes a call to a database that can't outlast d, whether the driver
// honours its context or not: lib/pq goes on reading from a connection whose
// other end has fallen silent until the kernel gives up, a quarter of an hour
// later, though a new connection would work at once. A call that is given up
// goes on in the background; late takes what it returns then, if it succeeds. The call
// may be the program's code: see safely.
func bounded[T any](ctx context.Context, d time.Duration, call func(context.Context) (T, error), late func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	done, abandoned := make(chan result), make(chan struct{})
	go func() {
		defer cancel()
		r := result{err: exited("the call")}
		defer func() {
			select {
			case done <- r:
			case <-abandoned:
				if r.err == nil && late != nil {
					late(r.value)
				}
			}
		}()
		r.err = safely("the call", func() (err error) {
			r.value, err = call(ctx)
			return err
		})
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	// Most drivers return now, with a better error.
	grace := time.NewTimer(min(d/10, 100*time.Millisecond))
	defer grace.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-grace.C:
		close(abandoned)
		var none T
		return none, fmt.Errorf("no answer from the database: %w", context.Cause(ctx))
	}
}

// boundedDo is bounded for a call that returns nothing.
func boundedDo(ctx context.Context, d time.Duration, call func(context.Context) error) error {
	_, err := bounded(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }, nil)
	return err
}
