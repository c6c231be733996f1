package orchestrator_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A countedStore is a stream of n events of a size, which counts how it is read.
type countedStore struct {
	n, size int64
	reads   atomic.Int64 // that found something
	read    atomic.Int64 // events that were
}

func (s *countedStore) Read(_ context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	var page []orchestrator.Record[orchestrator.Event]
	for p := r.After + 1; p <= s.n && len(page) < r.Limit; p++ {
		page = append(page, orchestrator.Record[orchestrator.Event]{
			Position: p, AggregateID: fmt.Sprint("a", p%50),
			Event: orchestrator.Event{GlobalPosition: p, Payload: make([]byte, s.size)},
		})
	}
	if len(page) > 0 {
		s.reads.Add(1)
		s.read.Add(int64(len(page)))
	}
	return orchestrator.Page[orchestrator.Event]{Records: page}, nil
}

// counting counts the events that it handles.
type counting struct {
	named
	handled *atomic.Int64
}

func (c counting) Handle(context.Context, orchestrator.Event) error {
	c.handled.Add(1)
	return nil
}

// However many projections and replica sets there are, a process reads the
// stream once.
func TestTheStreamIsReadOnce(t *testing.T) {
	w := newWorld(t)
	events := &countedStore{n: 50_000}
	var handled atomic.Int64
	for s := range 2 {
		cfg := w.Config(w.DB, orchestrator.ReplicaSetName(fmt.Sprint("set", s)))
		cfg.EventStore, cfg.BatchSize = events, 500
		var projections []projection
		for i := range 3 {
			projections = append(projections, counting{named(fmt.Sprint("p", s, i)), &handled})
		}
		testworld.Run(t, cfg, projections...)
	}
	pgtest.Eventually(t, "all has been handled", func() bool { return handled.Load() == 6*events.n })
	// Those who begin later, or are left behind, read for themselves until they
	// have caught up.
	if n := events.read.Load(); n > 3*events.n {
		t.Errorf("%d events were read, in %d reads, for six projections of %d events", n, events.reads.Load(), events.n)
	}
}

// What is read ahead of a handler that stands still is bounded.
func TestReadAheadIsBounded(t *testing.T) {
	w := newWorld(t)
	events := &countedStore{n: 5000, size: 10_000}
	cfg := w.Config(w.DB, "set")
	cfg.EventStore, cfg.BatchSize, cfg.ReadAheadBytes = events, 10, 1_000_000
	var handled atomic.Int64
	gate := make(chan struct{})
	testworld.Run(t, cfg, gated{counting{named("p"), &handled}, gate})
	for _, some := range []int64{1, 100, 1000, 3000} {
		for handled.Load() < some {
			gate <- struct{}{}
		}
		if ahead := events.read.Load() - some; ahead > 200 { // the first page is read before any event's size is known
			t.Errorf("after %d events, %d of 10 kB are read ahead, and 1 MB may be", some, ahead)
		}
	}
	close(gate)
	pgtest.Eventually(t, "all has been handled", func() bool { return handled.Load() == events.n })
}

// gated waits for leave to handle an event.
type gated struct {
	counting
	gate chan struct{}
}

func (g gated) Handle(ctx context.Context, e orchestrator.Event) error {
	<-g.gate
	return g.counting.Handle(ctx, e)
}
