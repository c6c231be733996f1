package orchestrator

import (
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// What comes while many calls wait is dropped, and that is told.
func TestObserverQueueDropsCallsBeyondItsLength(t *testing.T) {
	t.Parallel()
	begun, gate := make(chan struct{}), make(chan struct{})
	var dropped int
	var told []int64
	to := newObserverQueue(&Observer{
		GenerationSuperseded: func(e GenerationSuperseded) {
			if told = append(told, e.Generation); e.Generation == 0 {
				close(begun)
				<-gate
			}
		},
		Dropped: func(n int) { dropped += n },
	}, slog.New(slog.DiscardHandler))
	const more = 10
	say := func(n int64) { emit(to, to.GenerationSuperseded, GenerationSuperseded{Generation: n}) }
	say(0)
	<-begun
	for i := range int64(queueMax + more) {
		say(i + 1)
	}
	close(gate)
	to.close()
	if dropped != more || len(told) != 1+queueMax || !slices.IsSorted(told) {
		t.Errorf("of %d calls %d came, in order: %t, and %d were told to be dropped", 1+queueMax+more, len(told), slices.IsSorted(told), dropped)
	}
}

// Calls go on after one that panicked or ended its goroutine, which is said once.
func TestObserverQueueGoesOnAfterAPanic(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	var told []int64
	to := newObserverQueue(&Observer{GenerationSuperseded: func(e GenerationSuperseded) {
		told = append(told, e.Generation)
		if e.Generation%2 == 0 {
			runtime.Goexit()
		}
		panic("no")
	}}, slog.New(slog.NewTextHandler(&log, nil)))
	for i := range int64(4) {
		emit(to, to.GenerationSuperseded, GenerationSuperseded{Generation: i})
	}
	to.close()
	if !slices.Equal(told, []int64{0, 1, 2, 3}) {
		t.Errorf("told %v", told)
	}
	if n := strings.Count(log.String(), "observer panicked"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, log.String())
	}
}

// The end does not wait for an observer that blocks, and nothing is called after it.
func TestObserverQueueDoesNotWaitForABlockedObserver(t *testing.T) {
	t.Parallel()
	begun, gate := make(chan struct{}), make(chan struct{})
	calls := 0
	to := newObserverQueue(&Observer{GenerationSuperseded: func(GenerationSuperseded) {
		calls++
		close(begun) // a second call panics
		<-gate
	}}, slog.New(slog.DiscardHandler))
	for i := range int64(2) {
		emit(to, to.GenerationSuperseded, GenerationSuperseded{Generation: i})
	}
	<-begun
	to.close()
	close(gate)
	<-to.done
	if calls != 1 {
		t.Errorf("%d calls, want the one that was under way", calls)
	}
}

// A call costs one allocation, and none where nobody listens.
func TestObserverQueueAllocatesOncePerCall(t *testing.T) {
	lane := Lane{Projection: "p"}
	for _, test := range []struct {
		observer *Observer
		want     float64
	}{{nil, 0}, {&Observer{}, 0}, {&Observer{BatchCommitted: func(BatchCommitted) {}}, 1}} {
		to := newObserverQueue(test.observer, slog.New(slog.DiscardHandler))
		if n := testing.AllocsPerRun(1000, func() { emit(to, to.BatchCommitted, BatchCommitted{Lane: lane}) }); n > test.want {
			t.Errorf("%v allocations, want %v at most", n, test.want)
		}
		to.close()
	}
}
