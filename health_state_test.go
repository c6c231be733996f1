package orchestrator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

var (
	healthTiming = protocol.Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: time.Minute}
	healthBegin  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Run may be called again, and several times at once.
func TestHealthOfSeveralRuns(t *testing.T) {
	runs := func(at time.Time) (f facts) {
		f.Health = protocol.NewHealth(healthTiming, 0)
		f.Turn(at, protocol.Synced{}, []protocol.Action{protocol.Start{Share: protocol.Share{Generation: 1}}})
		return f
	}
	placed, stuck := runs(healthBegin), runs(healthBegin.Add(-time.Hour))
	begins := facts{Health: protocol.NewHealth(healthTiming, 0)}
	over := facts{ended: true}
	failed := facts{ended: true, err: ErrCoordinationTimeout}
	for _, c := range []struct {
		name        string
		runs        []facts
		live, ready bool
		detail      string
	}{
		{"Run was not called", nil, true, false, "Run has not been called"},
		{"one runs", []facts{placed}, true, true, `replica set "orders": runs generation 1`},
		{"one runs, one begins", []facts{placed, begins}, true, false, ": is starting"},
		{"one is stuck", []facts{placed, stuck}, false, false, "has not run for"},
		{"one runs, one was stopped", []facts{placed, over}, true, true, ": runs"},
		{"all were stopped", []facts{over, over}, true, false, "was stopped"},
		// Its handler may still run; a process that does not end by itself is ended.
		{"one has failed", []facts{placed, failed}, false, false, "Run has returned: a handler did not stop in time; see the log"},
	} {
		h := healthOf("orders", healthBegin, c.runs)
		if h.Live != c.live || h.Ready != c.ready || !strings.Contains(h.Detail, c.detail) {
			t.Errorf("%s: %+v; want live %t, ready %t, …%s…", c.name, h, c.live, c.ready, c.detail)
		}
	}
}

// How Run ends decides whether the process is to be restarted.
func TestHealthAtTheEnd(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		live bool
	}{
		{"its context was cancelled", canceled, context.Canceled, true},
		{"it gave up", t.Context(), ErrSchema, false},
		{"it was cancelled, and a handler did not return", canceled, errors.Join(ErrCoordinationTimeout, nil), false},
		{"something below it was cancelled", t.Context(), context.Canceled, false},
		{"it panicked", t.Context(), nil, false},
	} {
		var r runs
		r.begin(healthTiming, 0).end(c.ctx, c.err)
		if h := healthOf("orders", healthBegin, r.all()); h.Live != c.live || h.Ready {
			t.Errorf("%s: %+v, want live %t, not ready", c.name, h, c.live)
		}
		r.begin(healthTiming, 0) // again
		if h := healthOf("orders", healthBegin, r.all()); !h.Live || len(r.of) != 1 {
			t.Errorf("%s, and Run was called again: %+v", c.name, h)
		}
	}
}
