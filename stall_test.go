package orchestrator

import (
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

func TestStallReasons(t *testing.T) {
	start := time.Unix(1000, 0)
	gap := func(backends ...int) *GapReport { return &GapReport{Position: 900, Backends: backends} }
	for _, test := range []struct {
		want string
		lane LaneReport
		gap  *GapReport
	}{
		{"handler fails: no such order, attempt 7", LaneReport{State: LaneRetrying, Attempts: 7, Error: "no such order"}, gap(1)},
		{"too many events are parked", LaneReport{State: LaneFull}, nil},
		{"database: connection refused", LaneReport{State: LaneDatabase, Error: "connection refused"}, gap(1)},
		{"handler has run for 2m0s at position 812", LaneReport{State: LaneHandling, Handling: 812}, nil},
		{"suspended until the database answers", LaneReport{State: LaneSuspended}, nil},
		{"waits for the transaction of backend 4711 at the gap at position 900", LaneReport{State: LaneIdle}, gap(4711)},
		{"waits for the transactions of the backends 12, 4711 at the gap at position 900", LaneReport{State: LaneIdle}, gap(4711, 12)},
		{"waits for a prepared transaction at the gap at position 900", LaneReport{State: LaneIdle}, gap(0)},
		{"waits for a prepared transaction and those of the backends 12 at the gap at position 900", LaneReport{State: LaneIdle}, gap(12, 0)},
		{"waits for the transaction of backend 1 at the gap at position 900", LaneReport{State: LaneReading, Position: 899}, gap(1)},
		{"reading", LaneReport{State: LaneReading, Position: 800}, gap(1)},
	} {
		var w protocol.Stall
		w.See(start, 811, false, test.lane.Handling, time.Hour)
		if got := stallReason(&w, start.Add(2*time.Minute), test.lane, test.gap); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// A worker's look tells the session of a lane that has ended. What follows from that is
// protocol.Session's.
func TestObserveFindsAMissingLane(t *testing.T) {
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
