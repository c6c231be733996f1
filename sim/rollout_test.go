package sim

import (
	"flag"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

var rolloutWorkers = flag.Int("sim.rollout", 300, "how many workers to replace in TestRolloutOfMany")

// Hundreds of workers (a thousand with -sim.rollout=1000, which takes a minute) are
// replaced, fifty a second, and every promise holds. Many leaves and joins fold into one
// generation within a heartbeat.
func TestRolloutOfMany(t *testing.T) {
	workers := *rolloutWorkers
	if raced {
		workers = 100
	}
	timing := protocol.Timing{Heartbeat: 5 * time.Second, Lease: 15 * time.Second, Drain: 30 * time.Second}
	version := program{timing: timing, projections: []projection{{name: "tx", kind: protocol.Transactional}}, leaseOnly: true}
	deployed := fault{at: 10 * time.Second, kind: deploy, length: 20 * time.Millisecond}
	began := time.Now()
	o, err := play(plan{
		seed: 1, timing: timing, poll: 5 * time.Second, batch: 100, joinWindow: time.Second, feed: ordinaryFeed,
		programs: []program{version, version}, sets: 1, workers: make([]time.Duration, workers),
		length: deployed.at + time.Duration(workers)*deployed.length + 10*time.Second, faults: []fault{deployed},
		network: network{latency: time.Millisecond}, handlers: handlers{typical: time.Millisecond},
		appends: appends{every: time.Second, aggregates: 200},
	}, rules{}, inMemory, false)
	if err != nil {
		t.Fatal(err)
	}
	if v := o.violation; v != nil {
		t.Fatal(shown(v))
	}
	var started, left, generations, total, events int
	for _, f := range o.history.facts {
		switch f.kind {
		case workerStarts:
			started++
		case memberLeaves:
			left++
		case groupActivated:
			generations, total = generations+1, f.total
		case committed:
			events += len(f.events)
		}
	}
	t.Logf("%d generations, %d events, %s in %s", generations, events, o.simulated, time.Since(began).Round(time.Millisecond))
	if started != 2*workers || left != workers || total != workers || events == 0 {
		t.Errorf("%d workers started, %d left, the last generation has %d, and %d events were handled; want %d, %d, %[5]d and some",
			started, left, total, events, 2*workers, workers)
	}
}

// With a replacement window the same roll-out opens no generation: each new worker takes
// the place of one that has left, and no other worker stops.
func TestRolloutWithReplacements(t *testing.T) {
	const workers = 30
	timing := protocol.Timing{Heartbeat: 5 * time.Second, Lease: 15 * time.Second, Drain: 30 * time.Second}
	version := program{timing: timing, projections: []projection{{name: "tx", kind: protocol.Transactional}}, vacate: 20 * time.Second}
	deployed := fault{at: 10 * time.Second, kind: deploy, length: 200 * time.Millisecond}
	o, err := play(plan{
		seed: 1, timing: timing, poll: 5 * time.Second, batch: 100, joinWindow: time.Second, feed: ordinaryFeed,
		programs: []program{version, version}, sets: 1, workers: make([]time.Duration, workers),
		length: deployed.at + workers*deployed.length + 10*time.Second, faults: []fault{deployed},
		network: network{latency: time.Millisecond}, handlers: handlers{typical: time.Millisecond},
		appends: appends{every: time.Second, aggregates: 200},
	}, rules{}, inMemory, false)
	if err != nil {
		t.Fatal(err)
	}
	if v := o.violation; v != nil {
		t.Fatal(shown(v))
	}
	taken, opened := 0, 0
	deploying := false
	for _, f := range o.history.facts {
		switch f.kind {
		case faultDeploy:
			deploying = true
		case placeTaken:
			taken++
		case groupOpened:
			if deploying {
				opened++
			}
		}
	}
	if taken != workers || opened != 0 {
		t.Errorf("%d places were taken, and %d generations opened; want %d and none", taken, opened, workers)
	}
}
