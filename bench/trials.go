package main

import (
	"context"
	"time"
)

// A trial measures one row, or several that are measured in turn.
type trial struct {
	name  string
	about string // what is compared with what
	quick bool   // part of -quick
	run   func(context.Context, *bench) ([]row, error)
}

// trials returns all trials, in the order of the result.
func trials() []trial {
	all := []trial{
		{"throughput", "reading, with a handler that only checks: the library, a bare loop (floor), a hand-written processor", true, throughput},
		{"pooler", "the same with binary_parameters=yes, which lib/pq needs behind a transaction pooler, on both sides", false, pooler},
		{"scoped", "a projection whose scope is 1 % of the events: the library, a bare loop with the same WHERE", true, scoped},
		{"transactional", "one INSERT of 1000 rows per batch, with the checkpoint in the same transaction: the library, a bare loop without a checkpoint, a hand-written processor", true, transactional},
		{"waiting", "a handler that waits for 1 ms: four workers, one worker, four workers on an advisory lock", false, waiting},
		{"split", "four workers share a backlog: each reads its own part (own), each reads everything (whole)", false, split},
	}
	for _, r := range []rebalance{
		{workers: 2}, {workers: 10, quick: true}, {workers: 50, locks: true},
		{workers: 10, load: true}, {workers: 10, load: true, handler: 20 * time.Millisecond},
		{workers: 10, processes: true, quick: true},
	} {
		all = append(all, trial{r.name(), r.about(), r.quick, r.run})
	}
	return append(all,
		trial{"roundtrips", "a join and a leave among ten workers, 0 to 10 ms away from the database; ratio: in bare round trips over the same network", true, roundtrips},
		trial{"unhinted", "a join and a leave among ten workers with the defaults, without notifications, until every partition is handled again", false, unhinted},
		trial{"together", "ten workers start together: generations after the first, and the time", false, together},
		trial{"rolling", "each second, one of ten workers leaves and a new one joins: generations", false, rolling},
		trial{"replaced", "ten workers are replaced one by one, each two seconds after the old one has left: without a ReplacementWindow, and with one of 10s", false, replaced},
		trial{"failover", "from SIGKILL of one of 2, 5 and 10 worker processes until the others handle its partition", false, failover},
		trial{"failover-by-lock", "four processes compete for an advisory lock: from SIGKILL of its owner until another one handles an event", false, leaderFailover},
		trial{"distance", "a transactional projection, 10 and 200 ms away from the database: the defaults, LeaseOnly", false, distance},
		trial{"latency", "from the commit of an event to its handler, worker idle", true, latency},
		trial{"idle", "statements per second and connections per worker, for 1, 10 and 50 idle workers", true, idle},
		trial{"busy", "statements per second and worker, for 4 and 10 busy workers, in addition to reading and committing events", true, busy},
		trial{"step", "one decision with 10,000 workers: time and allocations", true, step},
	)
}
