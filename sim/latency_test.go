package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Without faults, and with events far more often than polls, many workers handle events as
// soon as one worker does.
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

// With a near or a distant database, with a process that is frozen for half of each second,
// and without a liveness connection, a worker handles as much as by its lease alone, and
// reports once that it relies on its lease.
func TestRateByPresence(t *testing.T) {
	for _, tt := range []struct {
		name    string
		network time.Duration // a packet
		handler time.Duration
		kind    protocol.LaneKind
		batch   int
		faults  []fault
		forgoes bool
	}{
		{"10 ms", 5 * time.Millisecond, time.Millisecond, protocol.Transactional, 1, nil, false},
		{"20 ms", 10 * time.Millisecond, time.Millisecond, protocol.Transactional, 1, nil, false},
		{"60 ms", 30 * time.Millisecond, time.Millisecond, protocol.Transactional, 1, nil, false},
		{"60 ms, plain", 30 * time.Millisecond, time.Millisecond, protocol.Plain, 1, nil, false},
		{"60 ms, long handlers", 30 * time.Millisecond, 300 * time.Millisecond, protocol.Transactional, 10, nil, false},
		{"120 ms", 60 * time.Millisecond, time.Millisecond, protocol.Transactional, 1, nil, true},
		{"210 ms", 105 * time.Millisecond, time.Millisecond, protocol.Batched, 10, nil, true},
		{"250 ms", 125 * time.Millisecond, time.Millisecond, protocol.Transactional, 1, nil, true},
		{"250 ms, plain", 125 * time.Millisecond, time.Millisecond, protocol.Plain, 1, nil, true},
		{"freezes", time.Millisecond, 10 * time.Millisecond, protocol.Transactional, 10, []fault{{kind: stutter, length: time.Hour}}, true},
		{"freezes, long handlers", time.Millisecond, 1200 * time.Millisecond, protocol.Transactional, 1, []fault{{kind: stutter, length: time.Hour}}, true},
		{"no session", time.Millisecond, 10 * time.Millisecond, protocol.Transactional, 10, []fault{{kind: blockSession, length: time.Hour}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timing := protocol.Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: 30 * time.Second}
			rate := func(leaseOnly bool) (handled, forgone int) {
				faults := slices.Clone(tt.faults)
				for i := range faults {
					faults[i].at = 5 * time.Second
				}
				o, err := play(plan{
					seed: 1, timing: timing, poll: time.Second, batch: tt.batch, joinWindow: time.Millisecond, feed: ordinaryFeed,
					programs: []program{{timing: timing, projections: []projection{{name: "p", kind: tt.kind}}, leaseOnly: leaseOnly}}, sets: 1,
					workers: make([]time.Duration, 1), length: 2 * time.Minute, network: network{latency: tt.network},
					handlers: handlers{typical: tt.handler}, retry: protocol.Backoff{Min: 100 * time.Millisecond, Max: 15 * time.Second},
					appends: appends{every: 20 * time.Millisecond, aggregates: 200}, faults: faults,
				}, rules{}, inMemory, false)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range o.history.facts {
					switch {
					case f.kind == committed && f.at < 2*time.Minute:
						handled += len(f.events)
					case f.kind == sessionForgone:
						forgone++
					}
				}
				return handled, forgone
			}
			byLease, _ := rate(true)
			handled, forgone := rate(false)
			t.Logf("handled %d, by the lease alone %d", handled, byLease)
			if 10*handled < 9*byLease {
				t.Errorf("it handled %d, and by its lease alone %d", handled, byLease)
			}
			if want := map[bool]int{true: 1}[tt.forgoes]; forgone != want {
				t.Errorf("it reported %d times that it relies on its lease alone, want %d", forgone, want)
			}
		})
	}
}
