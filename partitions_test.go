package orchestrator_test

import (
	"context"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A worker of several partitions handles them side by side; others take theirs
// from it, however many each wants.
func TestWorkersOfSeveralPartitions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := &testworld.History{}
	cfg := w.Config(w.DB, "set")
	cfg.Partitions = 4
	w.Append(300)
	first := testworld.Run(t, cfg, w.All(w.DB, h)...)
	w.Active("set", 4)
	w.Append(300)
	w.CaughtUp(testworld.Names...)
	cfg.Partitions, cfg.MaxPartitions = 3, 6
	second := testworld.Run(t, cfg, w.All(w.DB, h)...)
	w.Active("set", 6) // the second has two: the limit
	w.Append(300)
	w.CaughtUp(testworld.Names...)
	first.Stop()
	w.Active("set", 3)
	w.Append(300)
	w.CaughtUp(testworld.Names...)
	second.Stop()
	w.CheckEffects(testworld.Exact...)
	h.Check(t)
}

// The partitions of one worker are handled side by side: each waits here until
// all of them are in a handler.
func TestPartitionsAreHandledSideBySide(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100) // of 50 aggregates, so that each partition has some
	cfg := w.Config(w.DB, "set")
	cfg.Partitions = 5
	in, out := make(chan int), make(chan struct{})
	testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(ctx context.Context, _ orchestrator.Event) error {
		a, _ := orchestrator.DeliveryFrom(ctx)
		select {
		case in <- a.Partition:
			<-out
		case <-out:
		}
		return nil
	}}.Transactional())
	seen := map[int]bool{}
	for len(seen) < 5 {
		select {
		case k := <-in:
			if seen[k] {
				t.Fatalf("partition %d is in two handlers", k)
			}
			seen[k] = true
		case <-time.After(testworld.Limit):
			t.Fatalf("only partitions %v are in a handler", seen)
		}
	}
	close(out)
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}
