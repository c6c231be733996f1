package orchestrator

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// What a lane looks at before each action is of the moment that it is asked about: a
// process that was frozen finds out there that its lease, or its proof, is over.
func TestSignals(t *testing.T) {
	begin := time.Unix(1000, 0)
	end := begin.Add(time.Second)
	for _, test := range []struct {
		name     string
		now      time.Time
		bound    bool
		drain    bool
		canceled bool
		want     protocol.Signals
	}{
		{"all is well", begin.Add(-1), true, false, false, protocol.Signals{}},
		{"the proof is over", begin, true, false, false, protocol.Signals{Unproven: true}},
		{"there is none to go by", begin, false, false, false, protocol.Signals{}},
		{"the lease is over", end, false, false, false, protocol.Signals{LeaseOver: true}},
		{"both are", end, true, false, false, protocol.Signals{LeaseOver: true, Unproven: true}},
		{"to drain", begin.Add(-1), true, true, false, protocol.Signals{Asked: true}},
		{"cancelled", begin.Add(-1), true, false, true, protocol.Signals{Canceled: true}},
	} {
		w := &worker[Event]{leases: newLease()}
		w.leases.at.Store(&terms{Terms: protocol.Terms{Begin: begin, End: end, Bound: test.bound}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := &lane[Event]{ctx: ctx, worker: w, run: &run[Event]{draining: make(chan struct{})}}
		if test.drain {
			l.run.drain()
		}
		if test.canceled {
			cancel()
		}
		if diff := cmp.Diff(test.want, l.signals(test.now)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
}
