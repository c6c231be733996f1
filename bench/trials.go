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

// trials are all there are, in the order of the result.
func trials() []trial {
	all := []trial{
		{"throughput", "reading with a handler that only checks: the library, a bare loop (floor), and a processor written by hand", true, throughput},
		{"pooler", "the same with binary_parameters=yes, which lib/pq needs behind a transaction pooler, on both sides", false, pooler},
		{"scoped", "a projection that wants 1 % of the events: the library and a bare loop with the same WHERE", true, scoped},
		{"transactional", "one INSERT of 1000 rows per batch, with the checkpoint in the same transaction: the library, the bare loop without a checkpoint, by hand", true, transactional},
		{"waiting", "a handler that waits for 1 ms: four workers and one, and four on an advisory lock", false, waiting},
		{"split", "four workers that read for themselves share a backlog: own, each reads its part; whole, each reads all", false, split},
	}
	for _, r := range []rebalance{
		{workers: 2}, {workers: 10, quick: true}, {workers: 50, locks: true},
		{workers: 10, load: true}, {workers: 10, load: true, handler: 20 * time.Millisecond},
		{workers: 10, processes: true, quick: true},
	} {
		all = append(all, trial{r.name(), r.about(), r.quick, r.run})
	}
	return append(all,
		trial{"roundtrips", "a worker joins or leaves ten that are 0 to 10 ms away from the database: ratio, in bare round trips over the same network", true, roundtrips},
		trial{"unhinted", "a worker joins or leaves ten at the defaults, without hints, until every partition is handled again", false, unhinted},
		trial{"together", "ten workers that start together: generations after the first, and how long it takes", false, together},
		trial{"rolling", "ten workers of which one leaves and a new one joins each second: generations", false, rolling},
		trial{"replaced", "ten workers that are replaced one by one, each new one two seconds after an old one has left: without a ReplacementWindow and with one of 10s", false, replaced},
		trial{"failover", "SIGKILL of one of 2, 5 and 10 worker processes until the others handle its partition", false, failover},
		trial{"failover-by-lock", "SIGKILL of the one of four processes that has an advisory lock until another handles an event", false, leaderFailover},
		trial{"distance", "a transactional projection whose database is 10 and 200 ms away: the default beside LeaseOnly", false, distance},
		trial{"latency", "from the commit of an event to its handler, worker idle", true, latency},
		trial{"idle", "statements per second and connections of each of 1, 10 and 50 workers with nothing to do", true, idle},
		trial{"busy", "statements per second of each of 4 and of 10 workers that handle events all the time, beside reading and committing these", true, busy},
		trial{"step", "one decision over 10,000 workers: time and garbage", true, step},
	)
}
