package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// busy measures the statements of coordination while workers are fully loaded. Sets of four and
// of ten workers have the defaults, no notifications, and handlers that always run. Each worker
// has its own network to the database. The statements are counted on that network, so the driver
// does not matter: a statement that is prepared and executed counts once. Statements that read
// events, check their table or move checkpoints count as the handlers' own. All others are the
// price of membership.
func busy(ctx context.Context, b *bench) (rows []row, err error) {
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	var counts []*busyCount
	defer func() {
		for _, c := range counts {
			err = errors.Join(err, c.close())
		}
	}()
	sizes, intervals := []int{4, 10}, 2
	if b.quick {
		sizes, intervals = []int{10}, 1
	}
	for _, workers := range sizes {
		c, err := newBusyCount(ctx, b, d, workers)
		if c != nil {
			counts = append(counts, c)
		}
		if err != nil {
			return nil, err
		}
	}
	// A worker needs to have been a member for a while before it detects crashes. It polls more
	// often until then.
	time.Sleep(watching + time.Second)
	for _, c := range counts {
		c.tape.take()
	}
	began := time.Now()
	time.Sleep(time.Duration(intervals) * defaultHeartbeatInterval)
	seconds := time.Since(began).Seconds()
	for _, c := range counts {
		trips, _, _ := c.tape.take()
		if c.fleet.ledger.count.Load() >= d.events {
			return nil, errors.New("there were too few events to be busy with")
		}
		rows = append(rows, busyRows(len(c.sites), tally(trips), seconds)...)
	}
	return rows, nil
}

// busyHandler is how long a handler waits. The stream must last long enough.
const busyHandler = 5 * time.Millisecond

// A busyCount is a set of busy workers and their statements.
type busyCount struct {
	tape  *tape
	sites []*site
	fleet *fleet
}

func newBusyCount(ctx context.Context, b *bench, d *database, workers int) (c *busyCount, err error) {
	c = &busyCount{tape: &tape{}, fleet: &fleet{
		d: d, set: b.fresh("set"), projection: b.fresh("p"), window: time.Millisecond, handler: busyHandler, apart: true,
		ledger: openLedger(), reports: make(chan report, 1000),
	}}
	if c.sites, err = sites(d, workers, 0, c.tape); err != nil {
		return c, err
	}
	for _, s := range c.sites {
		if err := c.fleet.joinAt(s.name, s.url, s.pool); err != nil {
			return c, err
		}
	}
	return c, c.fleet.together(ctx)
}

func (c *busyCount) close() error {
	err := c.fleet.stop()
	for _, s := range c.sites {
		err = errors.Join(err, s.close())
	}
	return err
}

// A busyClass is a class of statements, found by their text. The first class that fits counts.
type busyClass struct {
	name string
	own  bool // of the handlers, and not of coordination
	is   func(text string) bool
}

var busyClasses = []busyClass{
	{"questions", true, containing("WITH RECURSIVE root", "WITH RECURSIVE kind")}, // checks the events table and its writers
	{"heartbeats", false, containing("orchestrator_workers SET")},                 // may also poll and publish
	{"looks", false, containing("pg_locks", "pg_try_advisory_xact_lock")},         // check which workers are alive; may also publish
	{"proofs", false, containing("pg_advisory")},                                  // prove that this worker is alive
	{"commits", true, containing("orchestrator_checkpoints SET")},
	{"reads", true, containing(`"events"`)},
	{"others", false, containing("")},
}

func containing(words ...string) func(string) bool {
	return func(text string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
}

// A busyTally counts statements.
type busyTally struct {
	of    map[string]int // by class
	scans int            // statements of coordination that read all locks of the server
}

func tally(trips []trip) busyTally {
	t := busyTally{of: map[string]int{}}
	for _, trip := range trips {
		if trip.how == "prepare" {
			continue
		}
		c := busyClasses[slices.IndexFunc(busyClasses, func(c busyClass) bool { return c.is(trip.text) })]
		t.of[c.name]++
		if !c.own && strings.Contains(trip.text, "pg_locks") {
			t.scans++
		}
	}
	return t
}

func busyRows(workers int, t busyTally, seconds float64) []row {
	perSecond := func(n int) float64 { return float64(n) / seconds / float64(workers) }
	sum, each := map[bool]int{}, map[bool][]string{}
	for _, c := range busyClasses {
		n := t.of[c.name]
		sum[c.own] += n
		each[c.own] = append(each[c.own], fmt.Sprintf("%s %.2f", c.name, perSecond(n)))
	}
	const unit = "1/s per worker"
	name := fmt.Sprintf("busy/%d-workers-", workers)
	all := perSecond(sum[false])
	return []row{
		newRow(name+"own", unit, []float64{perSecond(sum[true])}).noted(strings.Join(each[true], ", ")),
		newRow(name+"statements", unit, []float64{all}).goal("≤ 3", all <= 3).noted(strings.Join(each[false], ", ")),
		newRow(name+"lock-scans", unit, []float64{perSecond(t.scans)}).goal("0", t.scans == 0).noted("of these, read pg_locks"),
	}
}
