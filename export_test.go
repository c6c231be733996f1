package orchestrator

import (
	"context"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Running returns the generation that an Orchestrator's worker runs, 0 for none.
func Running[E any](o *Orchestrator[E]) (generation int64) {
	for _, f := range o.runs.all() {
		generation = max(generation, f.Running())
	}
	return generation
}

// Turned returns when the loop of its newest worker has last turned.
func Turned[E any](o *Orchestrator[E]) (last time.Time) {
	for _, f := range o.runs.all() {
		last = f.Turned()
	}
	return last
}

// ReadOwn is readOwn, of the slots of a partition.
func (t *Table[E]) ReadOwn(ctx context.Context, partition, total int, after int64, limit, bytes int) (events []Record[E], passed int64, more bool, err error) {
	slots := protocol.SlotsOf(partition, total)
	p, err := t.readOwn(ctx, &slots, after, limit, bytes)
	return p.events, p.passed, p.more, err
}

// SizeOf is sizeOf.
func SizeOf[E any](v E) int { return sizeOf(v) }

// Waiting returns how many wait for a projection.
func Waiting(projection string) (n int) {
	waits.Lock()
	defer waits.Unlock()
	for _, g := range waits.of {
		for w := range g.of {
			if w.Projection == projection {
				n++
			}
		}
	}
	return n
}

// WaitedAt returns how far a projection was at the latest look of one who waits for a position.
func WaitedAt(projection string, position int64) int64 {
	waits.Lock()
	defer waits.Unlock()
	for _, g := range waits.of {
		for w := range g.of {
			if w.Projection == projection && w.Position == position {
				return w.at
			}
		}
	}
	return -1
}
