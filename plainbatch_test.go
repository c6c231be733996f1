package orchestrator_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A plain batch projection is handed up to BatchSize events at once, in order. Where one
// of them can't be handled, that one alone is parked; all others are handled.
func TestPlainBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const batch = 20
	w.Append(250)
	bad := w.Number(`SELECT min(global_position) + 42 FROM events`)
	var mu sync.Mutex
	var sizes []int
	handled := map[string][]int64{} // by aggregate
	cfg := w.Config(w.DB, "set")
	cfg.BatchSize = batch
	cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 2}}
	r := testworld.Run(t, cfg, orchestrator.PlainBatch("p", func(_ context.Context, events []orchestrator.Event) error {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, len(events))
		if slices.ContainsFunc(events, func(e orchestrator.Event) bool { return e.GlobalPosition == bad }) {
			return errors.New("can't be handled")
		}
		for _, e := range events {
			handled[e.AggregateID] = append(handled[e.AggregateID], e.GlobalPosition)
		}
		return nil
	}))
	pgtest.Eventually(t, "the stream is passed", func() bool { return w.Reached() == w.Number(`SELECT max(global_position) FROM events`) })
	r.Stop()
	parked, rows := w.Parked("p")
	if len(parked) == 0 || parked[0] != bad || rows[0].Attempts != 2 || len(rows) > 1 && rows[1].Attempts != 0 {
		t.Errorf("parked are %v", rows)
	}
	n := len(parked)
	for aggregate, positions := range handled {
		n += len(positions)
		if !slices.IsSorted(positions) || len(slices.Compact(slices.Clone(positions))) != len(positions) {
			t.Errorf("the events of %s are handled as %v", aggregate, positions)
		}
	}
	if n != 250 {
		t.Errorf("%d events are handled or parked", n)
	}
	if most := slices.Max(sizes); most != batch {
		t.Errorf("at most %d events were handed over at once, want %d", most, batch)
	}
}
