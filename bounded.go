package orchestrator

import (
	"context"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
)

// bounded is calls.Within for a call that may be the program's own code: see safely.
func bounded[T any](ctx context.Context, d time.Duration, call func(context.Context) (T, error), late func(T)) (T, error) {
	return calls.Within(ctx, d, func(ctx context.Context) (value T, err error) {
		err = safely("the call", func() (err error) {
			value, err = call(ctx)
			return err
		})
		return value, err
	}, late)
}

// boundedDo is bounded for a call that returns nothing.
func boundedDo(ctx context.Context, d time.Duration, call func(context.Context) error) error {
	_, err := bounded(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }, nil)
	return err
}
