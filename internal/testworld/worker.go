package testworld

import (
	"context"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Running is a worker that was started.
type Running struct {
	t      testing.TB
	Cancel context.CancelFunc // cancels the context of Run
	Done   chan struct{}      // closed when Run has returned
	Err    error              // the result of Run, once Done is closed
}

// Run starts a worker. It ends at the end of the test at the latest.
func Run(t testing.TB, cfg orchestrator.Config[orchestrator.Event], projections ...orchestrator.Projection[orchestrator.Event]) *Running {
	t.Helper()
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Running{t: t, Cancel: cancel, Done: make(chan struct{})}
	go func() {
		defer close(r.Done)
		r.Err = o.Run(ctx, projections)
	}()
	t.Cleanup(r.Kill)
	return r
}

// Kill cancels the worker's context and waits for Run to return.
func (r *Running) Kill() {
	r.Cancel()
	<-r.Done
}

// Stop does what Kill does, and fails the test if Run returns an error.
func (r *Running) Stop() {
	r.t.Helper()
	r.Kill()
	if r.Err != nil {
		r.t.Fatalf("Run returned %v after a graceful stop", r.Err)
	}
}

// Failed waits until Run returns by itself, and returns its error.
func (r *Running) Failed() error {
	r.t.Helper()
	select {
	case <-r.Done:
	case <-time.After(Limit):
		r.t.Fatal("Run did not return")
	}
	return r.Err
}
