package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// step measures a decision: one of 10,000 workers leaves, and the next generation is opened and
// activated. The decision is made while the set's row is locked.
func step(context.Context, *bench) ([]row, error) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	g := protocol.Group{}
	for i := range 10_000 {
		g.Members = append(g.Members, protocol.Member{
			ID: protocol.WorkerID(fmt.Sprintf("w%d", i)), Joined: now, Lease: time.Minute, LeaseEnd: now.Add(time.Minute),
		})
	}
	g, _ = protocol.Step(g, now, protocol.Watch{})
	for i := range g.Members {
		g.Members[i].Holds = 0 // all have stopped
	}
	leaves := protocol.Request{Worker: g.Members[17].ID, Leave: true}
	var decision protocol.Decision
	measured := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			_, decision = protocol.Step(protocol.Apply(g, leaves, now), now, protocol.Watch{})
		}
	})
	if !decision.Opened || !decision.Activated {
		return nil, fmt.Errorf("step decided %q, which is not what is measured here", decision)
	}
	took := float64(measured.NsPerOp()) / 1e6
	garbage := float64(measured.AllocedBytesPerOp()) / (1 << 20)
	return []row{
		newRow("step/time", milliseconds, []float64{took}).goal("< 50", took < 50),
		newRow("step/garbage", "MB", []float64{garbage}).goal("< 10", garbage < 10),
	}, nil
}
