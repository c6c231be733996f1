package orchestrator_test

import (
	"context"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A worker of several partitions handles them side by side; others take theirs
// from it, however many each wants.
func TestWorkersOfSeveralPartitions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := &history{}
	cfg := w.config(w.db, "set")
	cfg.Partitions = 4
	w.append(300)
	first := run(t, cfg, w.all(w.db, h)...)
	w.active("set", 4)
	w.append(300)
	w.caughtUp(names...)
	cfg.Partitions, cfg.MaxPartitions = 3, 6
	second := run(t, cfg, w.all(w.db, h)...)
	w.active("set", 6) // the second has two: the limit
	w.append(300)
	w.caughtUp(names...)
	first.stop()
	w.active("set", 3)
	w.append(300)
	w.caughtUp(names...)
	second.stop()
	w.checkEffects(exact...)
	h.check(t)
}

// The partitions of one worker are handled side by side: each waits here until
// all of them are in a handler.
func TestPartitionsAreHandledSideBySide(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(100) // of 50 aggregates, so that each partition has some
	cfg := w.config(w.db, "set")
	cfg.Partitions = 5
	in, out := make(chan int), make(chan struct{})
	run(t, cfg, transactional{effects{name: "transactional", hook: func(ctx context.Context, _ orchestrator.Event) error {
		a, _ := orchestrator.AssignmentFrom(ctx)
		select {
		case in <- a.Partition:
			<-out
		case <-out:
		}
		return nil
	}}})
	seen := map[int]bool{}
	for len(seen) < 5 {
		select {
		case k := <-in:
			if seen[k] {
				t.Fatalf("partition %d is in two handlers", k)
			}
			seen[k] = true
		case <-time.After(limit):
			t.Fatalf("only partitions %v are in a handler", seen)
		}
	}
	close(out)
	w.caughtUp("transactional")
	w.checkEffects("transactional")
}
