package orchestrator

import (
	"context"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// BenchmarkHandle is what the library adds to each call of a handler, without
// reading and committing: the lane's decision, a look at the signals and the
// clock, and the call itself.
func BenchmarkHandle(b *testing.B) {
	const batch = 1000
	w := &worker[Event]{leases: newLease(), to: newObserverQueue(nil, nil)}
	w.leases.at.Store(&terms{Terms: protocol.Terms{End: time.Now().Add(time.Hour)}})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	r := &run[Event]{ctx: ctx, draining: make(chan struct{})}
	r.begin()
	a := protocol.Assignment{Generation: 1, Total: 1}
	handled := 0
	l := &lane[Event]{
		id: store.Lane{Projection: "bench", Assignment: a}, ctx: ctx, run: r, worker: w,
		core:   protocol.NewLane(a, protocol.LaneConfig{Batch: batch, Lease: time.Hour}),
		handle: func(context.Context, []*Record[Event]) error { handled++; return nil },
	}
	page, keys := make([]Record[Event], batch), make([]protocol.Key, batch)
	position := int64(0)
	var answer protocol.LaneAnswer
	b.ReportAllocs()
	b.ResetTimer()
	for handled < b.N {
		now := time.Now()
		action := l.core.Next(now, l.signals(now), answer)
		l.keep()
		l.note(now, action)
		answer = protocol.LaneAnswer{}
		switch action.Do {
		case protocol.LaneLoad:
			answer.Found = protocol.Found{Generation: 1, Exists: true}
		case protocol.LaneRead:
			for i := range page {
				position++
				page[i].Position, keys[i].Position = position, position
			}
			l.page, answer.Page, answer.More = page, keys, true
		case protocol.LaneHandle:
			answer = l.do(action)
		case protocol.LaneSave, protocol.LaneLoadParked:
		default:
			b.Fatalf("the lane wants to %s", action)
		}
	}
}
