package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// An appender appends events. It knows the version of each aggregate.
type appender struct {
	d        *database
	mu       sync.Mutex
	versions map[int]int64
	total    int64
}

// append appends one event to each of the aggregates, in one transaction.
func (a *appender) append(ctx context.Context, aggregates []int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids, versions := make([]string, len(aggregates)), make([]int64, len(aggregates))
	for i, n := range aggregates {
		a.versions[n]++
		ids[i], versions[i] = "a"+strconv.Itoa(n), a.versions[n]
	}
	a.total += int64(len(aggregates))
	_, err := a.d.db.ExecContext(ctx, `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'bench', 'thing', id, version, gen_random_uuid(), 'happened', 'x' FROM unnest($1::text[], $2::bigint[]) AS e (id, version)`,
		pq.Array(ids), pq.Array(versions))
	if err != nil {
		return fmt.Errorf("append events: %w", err)
	}
	return nil
}

func (a *appender) appended() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total
}

// marks returns one aggregate for each of the partitions.
func marks(partitions int) []int {
	chosen := make([]int, partitions)
	for n, left := 1, partitions; left > 0; n++ {
		k := int(protocol.SlotOf("a"+strconv.Itoa(n))) % partitions
		if chosen[k] == 0 {
			chosen[k] = n
			left--
		}
	}
	return chosen
}

// load appends a number of events per second, to many aggregates in turn, until ctx ends.
func (a *appender) load(ctx context.Context, perSecond int) error {
	const firstAggregate, aggregates = 10_000, 1000
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		batch := make([]int, perSecond/50)
		for i := range batch {
			batch[i] = firstAggregate + n%aggregates
			n++
		}
		if err := a.append(context.WithoutCancel(ctx), batch); err != nil {
			return err
		}
	}
}
