package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

// An error that stands for the program's names the type of that, and of what it is within,
// where there is only a wrapper around it.
func TestErrorType(t *testing.T) {
	t.Parallel()
	path := &fs.PathError{Op: "open", Path: "x", Err: errors.New("gone")}
	for want, err := range map[string]error{
		"*fs.PathError":                 path,
		"context.deadlineExceededError": fmt.Errorf("read: %w", context.DeadlineExceeded),
		"*errors.errorString":           Permanent(fmt.Errorf("twice: %w", fmt.Errorf("once: %w", errors.New("x")))),
		"*orchestrator.PanicError":      &PanicError{Value: 1},
		"*errors.joinError":             errors.Join(path, path),
		"*fmt.wrapError":                fmt.Errorf("nothing: %w", nil),
		"":                              (*fs.PathError)(nil), // it panics
	} {
		e := own("the handler", err).(*foreignError)
		if got := e.ErrorType(); got != want {
			t.Errorf("%T: the type is %q, want %q", err, got, want)
		}
		if again := own("Config.Around", fmt.Errorf("around: %w", e)).(*foreignError).ErrorType(); again != want {
			t.Errorf("%T, wrapped once more: the type is %q, want %q", err, again, want)
		}
	}
}
