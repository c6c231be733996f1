package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// What a handler calls permanent goes to the failure rule at once, however deep it is
// wrapped, and whatever is wrapped by it.
func TestPermanent(t *testing.T) {
	t.Parallel()
	hostile := hostile()
	for name, fail := range map[string]func() error{
		"as it is":      func() error { return orchestrator.Permanent(fs.ErrNotExist) },
		"wrapped":       func() error { return fmt.Errorf("a: %w", fmt.Errorf("b: %w", orchestrator.Permanent(fs.ErrNotExist))) },
		"joined":        func() error { return errors.Join(errors.New("other"), orchestrator.Permanent(fs.ErrNotExist)) },
		"panics":        func() error { panic(orchestrator.Permanent(fs.ErrNotExist)) },
		"of a deadline": func() error { return orchestrator.Permanent(context.DeadlineExceeded) },
		"of a hostile error": func() error {
			return errors.Join(orchestrator.Permanent(hostile["panics in Error"]()), errors.New("other"))
		},
	} {
		for _, kind := range []string{"plain", "transactional", "batched", "plain batch"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.Append(9)
				bad := w.Number(`SELECT min(global_position) + 4 FROM events`)
				var calls atomic.Int64
				p := w.kindOf(kind, testworld.Effects{Projection: "p", Hook: func(_ context.Context, e orchestrator.Event) error {
					if e.GlobalPosition != bad {
						return nil
					}
					calls.Add(1)
					return fail()
				}})
				cfg := w.Config(w.DB, "set")
				cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 1000}}
				r := testworld.Run(t, cfg, p)
				var parked []ops.ParkedEvent
				pgtest.Eventually(t, "it is parked", func() (is bool) {
					_, parked = w.Parked("p")
					return len(parked) > 0
				})
				r.Stop()
				most := map[string]int64{"plain": 1, "transactional": 2, "batched": 4, "plain batch": 4}[kind] // of 9, 4, 2 and 1
				if n := calls.Load(); n > most || parked[0].Position != bad {
					t.Errorf("it was called %d times, want at most %d, and has parked %+v", n, most, parked[0])
				}
			})
		}
	}
}

// errors.Is and errors.As find what is wrapped, also in what Run returns; nil stays nil.
func TestPermanentUnwraps(t *testing.T) {
	t.Parallel()
	if err := orchestrator.Permanent(nil); err != nil {
		t.Errorf("of nil: %v", err)
	}
	cause := &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist}
	permanent := orchestrator.Permanent(cause)
	var as *fs.PathError
	if !errors.Is(permanent, fs.ErrNotExist) || !errors.As(permanent, &as) || as != cause || permanent.Error() != cause.Error() {
		t.Errorf("it is %v", permanent)
	}
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.StopOnFailure, Attempts: 1000}}
	err := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error {
		return fmt.Errorf("wrapped: %w", permanent)
	}}.Plain(w.DB)).Failed()
	if as = nil; !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &as) || as != cause {
		t.Errorf("Run returned %v", err)
	}
}
