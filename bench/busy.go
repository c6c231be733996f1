package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// busy: what coordination asks of the database while workers have no time for anything else.
// Four workers and ten, at the defaults and without hints, each at a site of its own, have
// handlers that run all the time. Their statements are counted as they pass the wires,
// whatever the driver makes of them: one that is prepared and executed counts once. Those
// that read events or move checkpoints are the handlers' own and counted apart; all others
// are what being a member costs.
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
	// A worker misses nobody before it has watched for a while, and looks less often then.
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

// busyHandler is what a handler waits: long enough for the stream to last.
const busyHandler = 5 * time.Millisecond

// A busyCount is a set of busy workers, and what they say.
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

// The classes of statements, by what is in their text; the first that fits counts.
var busyClasses = []struct {
	name string
	is   func(text string) bool
}{
	{"stream", containing("WITH RECURSIVE root", "WITH RECURSIVE kind")}, // whether the events table is what it was
	{"looks", containing("pg_locks")},                                    // for who is there
	{"proofs", containing("pg_advisory")},                                // that oneself is
	{"heartbeats", containing("orchestrator_workers SET")},
	{"commits", containing("orchestrator_checkpoints SET")},
	{"reads", containing(`"events"`)},
	{"others", containing("")},
}

func containing(words ...string) func(string) bool {
	return func(text string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
}

// A busyTally says how many statements there were.
type busyTally struct {
	of    map[string]int // each class
	scans int            // that read all locks of the server, and are not the handlers' own
}

func tally(trips []trip) busyTally {
	t := busyTally{of: map[string]int{}}
	for _, trip := range trips {
		if trip.how == "prepare" {
			continue
		}
		i := slices.IndexFunc(busyClasses, func(c struct {
			name string
			is   func(string) bool
		}) bool {
			return c.is(trip.text)
		})
		t.of[busyClasses[i].name]++
		if strings.Contains(trip.text, "pg_locks") {
			t.scans++
		}
	}
	return t
}

func busyRows(workers int, t busyTally, seconds float64) []row {
	perSecond := func(n int) float64 { return float64(n) / seconds / float64(workers) }
	own, all := 0, 0
	var each []string
	for _, c := range busyClasses {
		n := t.of[c.name]
		if c.name == "commits" || c.name == "reads" {
			own += n
			continue
		}
		all += n
		each = append(each, fmt.Sprintf("%s %.2f", c.name, perSecond(n)))
	}
	const unit = "1/s per worker"
	name := fmt.Sprintf("busy/%d-workers-", workers)
	return []row{
		newRow(name+"own", unit, []float64{perSecond(own)}).noted("reads and commits"),
		newRow(name+"statements", unit, []float64{perSecond(all)}).goal("≤ 3", perSecond(all) <= 3).noted(strings.Join(each, ", ")),
		newRow(name+"lock-scans", unit, []float64{perSecond(t.scans)}).goal("0", t.scans == 0).noted("of these, read pg_locks"),
	}
}
