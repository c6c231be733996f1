package orchestrator

import (
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A lane has stalled when it has had something to do, and has not moved, for long
// enough.
func TestLaneWatch(t *testing.T) {
	start := time.Unix(1000, 0)
	type look struct {
		at                 int // seconds
		position           int64
		idle               bool
		stalled, unstalled bool
	}
	for _, test := range []struct {
		why   string
		looks []look
	}{
		{"it moves", []look{{at: 0, position: 1}, {at: 50, position: 2}, {at: 100, position: 3}, {at: 159, position: 3}}},
		{"it has nothing to do", []look{{at: 0, idle: true}, {at: 100, idle: true}, {at: 200, idle: true}}},
		{"what there is to do has just come", []look{{at: 0, idle: true}, {at: 100, idle: true}, {at: 159}, {at: 160, stalled: true}}},
		{"it is said once", []look{{at: 0}, {at: 60, stalled: true}, {at: 120}, {at: 180}}},
		{"and again after it has moved", []look{{at: 0}, {at: 60, stalled: true}, {at: 70, position: 1, unstalled: true}, {at: 129, position: 1}, {at: 130, position: 1, stalled: true}}},
		{"it has moved, and has nothing more to do", []look{{at: 0}, {at: 60, stalled: true}, {at: 70, position: 1, idle: true, unstalled: true}}},
		{"back is a move as well", []look{{at: 0, position: 9}, {at: 59, position: 3}, {at: 118, position: 3}, {at: 119, position: 3, stalled: true}}},
	} {
		var w laneWatch
		for _, l := range test.looks {
			stalled, unstalled := w.see(start.Add(time.Duration(l.at)*time.Second), l.position, l.idle, 0, time.Minute)
			if stalled != l.stalled || unstalled != l.unstalled {
				t.Errorf("%s: after %ds stalled %t, unstalled %t, want %t, %t", test.why, l.at, stalled, unstalled, l.stalled, l.unstalled)
			}
		}
	}
}

func TestStallReasons(t *testing.T) {
	start := time.Unix(1000, 0)
	gap := func(backends ...int) *GapReport { return &GapReport{Position: 900, Backends: backends} }
	for _, test := range []struct {
		want string
		lane LaneReport
		gap  *GapReport
	}{
		{"handler fails: no such order, attempt 7", LaneReport{State: LaneRetrying, Attempts: 7, Error: "no such order"}, gap(1)},
		{"halted, since the handler fails: no such order, attempt 3", LaneReport{State: LaneHalted, Attempts: 3, Error: "no such order"}, nil},
		{"too many events are parked", LaneReport{State: LaneFull}, nil},
		{"database: connection refused", LaneReport{State: LaneDatabase, Error: "connection refused"}, gap(1)},
		{"handler has run for 2m0s at position 812", LaneReport{State: LaneHandling, Handling: 812}, nil},
		{"waits for a proof", LaneReport{State: LaneUnproven}, nil},
		{"waits for the transaction of backend 4711 at the gap at position 900", LaneReport{State: LaneIdle}, gap(4711)},
		{"waits for the transactions of the backends 12, 4711 at the gap at position 900", LaneReport{State: LaneIdle}, gap(4711, 12)},
		{"waits for a prepared transaction at the gap at position 900", LaneReport{State: LaneIdle}, gap(0)},
		{"waits for a prepared transaction and those of the backends 12 at the gap at position 900", LaneReport{State: LaneIdle}, gap(12, 0)},
		{"waits for the transaction of backend 1 at the gap at position 900", LaneReport{State: LaneReading, Position: 899}, gap(1)},
		{"reading", LaneReport{State: LaneReading, Position: 800}, gap(1)},
	} {
		var w laneWatch
		w.see(start, 811, false, test.lane.Handling, time.Hour)
		if got := w.reason(start.Add(2*time.Minute), test.lane, test.gap); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// A worker's look tells the session of a lane that has ended. What follows from that is
// protocol.Session's.
func TestALookFindsAMissingLane(t *testing.T) {
	l := &lane[Event]{id: store.Lane{Projection: "p"}}
	w := &worker[Event]{run: &run[Event]{lanes: []*lane[Event]{l}}}
	w.watch.generation = 1
	if in := w.lanesSeen(); in != (protocol.Lanes{Generation: 1}) {
		t.Errorf("all lanes run, and the session is told %+v", in)
	}
	l.ended.Store(true)
	if in := w.lanesSeen(); in != (protocol.Lanes{Generation: 1, Missing: true}) {
		t.Errorf("a lane has ended, and the session is told %+v", in)
	}
}
