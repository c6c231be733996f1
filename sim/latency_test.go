package sim

import (
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Where nothing goes wrong, and events come far more often than anybody polls,
// many workers handle them as soon as one does.
func TestLatency(t *testing.T) {
	one, many := latency(t, 1), latency(t, 4)
	t.Logf("from append to commit: %s with one worker, %s with four", one, many)
	if many > 2*one {
		t.Errorf("from append to commit it takes %s with one worker, and %s with four", one, many)
	}
}

// latency returns how long after its append an event is committed on average.
func latency(t *testing.T, workers int) time.Duration {
	t.Helper()
	timing := protocol.Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: 30 * time.Second}
	settled := 10 * time.Second
	o, err := play(plan{
		seed: 1, timing: timing, poll: time.Second, batch: 100, joinWindow: time.Second, feed: ordinaryFeed,
		programs: []program{{timing: timing, projections: []projection{{name: "plain"}}}}, sets: 1, workers: make([]time.Duration, workers),
		length: time.Minute, network: network{latency: time.Millisecond}, handlers: handlers{typical: time.Millisecond},
		appends: appends{every: 100 * time.Millisecond, aggregates: 200},
	}, rules{}, inMemory, false)
	if err != nil {
		t.Fatal(err)
	}
	if v := o.violation; v != nil {
		t.Fatal(shown(v))
	}
	var sum, n time.Duration
	visible := map[int64]time.Duration{}
	for _, f := range o.history.facts {
		for _, e := range f.events {
			switch {
			case f.kind == appended:
				visible[e.position] = f.at
			case f.kind == committed && visible[e.position] > settled:
				sum, n = sum+f.at-visible[e.position], n+1
			}
		}
	}
	return sum / n
}
