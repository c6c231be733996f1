package testworld

import (
	"context"
	"fmt"
	"sync"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A History records when handlers were open. It uses a counter instead of a clock.
type History struct {
	mu      sync.Mutex
	counter int
	opened  []interval
}

type interval struct {
	projection string
	aggregate  string
	position   int64
	assignment orchestrator.Assignment
	start, end int // end is 0 while the handler is open
}

// Open records the start of a handler, and returns a function that records its end. A nil
// History records nothing.
func (h *History) Open(ctx context.Context, projection string, e orchestrator.Event) (closed func()) {
	if h == nil {
		return func() {}
	}
	d, _ := orchestrator.DeliveryFrom(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counter++
	i := len(h.opened)
	h.opened = append(h.opened, interval{projection: projection, aggregate: e.AggregateID, position: e.GlobalPosition, assignment: d.Assignment, start: h.counter})
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.counter++
		h.opened[i].end = h.counter
	}
}

// Check checks the promises S1, S4 and S6 as far as handlers show them.
func (h *History) Check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	type key struct{ projection, aggregate string }
	last := map[key]interval{}
	totals := map[int64]int{}
	owners := map[string]orchestrator.Assignment{}
	for _, i := range h.opened { // in the order of their starts
		k := key{i.projection, i.aggregate}
		if before, ok := last[k]; ok && (before.end == 0 || before.end > i.start) {
			t.Errorf("S1: two handlers of %s are open for aggregate %s: %+v and %+v", i.projection, i.aggregate, before, i)
		}
		last[k] = i
		if total, ok := totals[i.assignment.Generation]; ok && total != i.assignment.TotalPartitions {
			t.Errorf("S6: generation %d has both %d and %d partitions", i.assignment.Generation, total, i.assignment.TotalPartitions)
		}
		totals[i.assignment.Generation] = i.assignment.TotalPartitions
		// An aggregate is in one partition of a generation.
		o := fmt.Sprint(i.assignment.Generation, i.aggregate)
		if a, ok := owners[o]; ok && a != i.assignment {
			t.Errorf("S6: aggregate %s is in %+v and in %+v", i.aggregate, a, i.assignment)
		}
		owners[o] = i.assignment
	}
}

// Calls returns the number of handler calls.
func (h *History) Calls() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.opened)
}
