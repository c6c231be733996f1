// Package calls makes calls that may never return, polls for conditions, and sleeps. Each of
// its functions ends with its context.
package calls

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Within makes a call and waits for it no longer than d, even if the call ignores its context:
// a driver may be opening a connection to a server that does not answer. An abandoned call
// goes on in the background. If it succeeds then, late gets its result.
func Within[T any](ctx context.Context, d time.Duration, call func(context.Context) (T, error), late func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	done, abandoned := make(chan result), make(chan struct{})
	go func() {
		defer cancel()
		r := result{err: errors.New("the call has ended its goroutine (runtime.Goexit)")}
		defer func() {
			select {
			case done <- r:
			case <-abandoned:
				if r.err == nil && late != nil {
					late(r.value)
				}
			}
		}()
		r.value, r.err = call(ctx)
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	// Most drivers return now, with a more precise error.
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

// Do is Within for a call that returns nothing.
func Do(ctx context.Context, d time.Duration, call func(context.Context) error) error {
	_, err := Within(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }, nil)
	return err
}

// Await calls ask until it returns true, with a growing delay between calls, at most ten times a
// second. It goes on after errors that may pass, such as an unreachable database.
func Await(ctx context.Context, ask func() (bool, error)) error {
	for asked := 1; ; asked++ {
		ok, err := ask()
		if ok || err != nil && !store.Passing(err) {
			return redact.Error(err)
		}
		if !Sleep(ctx, protocol.RetryAwait.Backoff().Delay(asked, 0)) {
			return errors.Join(context.Cause(ctx), redact.Error(err))
		}
	}
}

// Sleep waits for d, and returns false if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
