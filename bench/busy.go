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
// that read events, ask about their table or move checkpoints are the handlers' own and
// counted apart; all others are what being a member costs.
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

// A busyClass is told by what is in a statement's text; the first that fits counts.
type busyClass struct {
	name string
	own  bool // is the handlers' own, and not coordination's
	is   func(text string) bool
}

var busyClasses = []busyClass{
	{"questions", true, containing("WITH RECURSIVE root", "WITH RECURSIVE kind")}, // whether the events table is what it was, and who writes to it
	{"heartbeats", false, containing("orchestrator_workers SET")},                 // may look and prove, too
	{"looks", false, containing("pg_locks", "pg_try_advisory_xact_lock")},         // for who is there; may prove, too
	{"proofs", false, containing("pg_advisory")},                                  // that oneself is
	{"commits", true, containing("orchestrator_checkpoints SET")},
	{"reads", true, containing(`"events"`)},
	{"others", false, containing("")},
}

func containing(words ...string) func(string) bool {
	return func(text string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
}

// A busyTally says how many statements there were.
type busyTally struct {
	of    map[string]int // each class
	scans int            // of coordination that read all locks of the server
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
