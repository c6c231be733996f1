package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

// A site is where one worker runs, like a machine of its own: it has its own network to the
// database, its own pool, and its own connection for notifications.
type site struct {
	name string
	url  string     // of the database, over the site's network
	wire *wire.Wire // nil: direct connections
	pool *sql.DB
	last *member // the worker that ran there last
}

// sites returns n sites with a given round-trip time to the database. If it is zero and nothing
// is recorded, there is no wire: forwarding packets takes time too.
func sites(d *database, n int, roundTrip time.Duration, t *tape) (all []*site, err error) {
	for i := range n {
		s := &site{name: fmt.Sprintf("w%d", i+1), url: d.url}
		if roundTrip > 0 || t != nil {
			if s.wire, err = wire.Watched(d.url, roundTrip/2, t.watch(s.name)); err != nil {
				return all, err
			}
			s.url = s.wire.URL
		}
		all = append(all, s)
		if err := s.open(); err != nil {
			return all, err
		}
	}
	return all, nil
}

// open gives the site a pool without connections.
func (s *site) open() (err error) {
	if s.pool != nil {
		err = s.pool.Close()
	}
	if err == nil {
		s.pool, err = (&database{url: s.url}).pool("worker")
	}
	return err
}

func (s *site) close() error {
	var err error
	if s.pool != nil {
		err = s.pool.Close()
	}
	if s.wire != nil {
		s.wire.Close()
	}
	return err
}

// warmConnections is the number of connections of a worker with one projection.
const warmConnections = 4

// warm opens the connections that a worker needs.
func (s *site) warm(ctx context.Context) error {
	var open []*sql.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range warmConnections {
		c, err := s.pool.Conn(ctx)
		if err != nil {
			return err
		}
		open = append(open, c)
	}
	return nil
}

// roundTrip measures one bare statement from the site.
func (s *site) roundTrip(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	var one int
	err := s.pool.QueryRowContext(ctx, `SELECT 1`).Scan(&one)
	return time.Since(began), err
}

// A distant is ten workers, each at a site of its own, that listen for notifications, and a
// change of members among them. A change is measured as in rebalance: from the call of Run, or
// from the cancelling of its context, until every worker of the new generation handles an event,
// without JoinWindow. The program that appends these events is next to the database.
type distant struct {
	fleet *fleet
	tape  *tape
	idle  []*site // sites without a worker, the longest idle first
	all   []*site
	used  map[*member]*site
}

// distantWorkers is the number of workers before a join.
const distantWorkers = 10

func newDistant(ctx context.Context, b *bench, roundTrip time.Duration, t *tape) (_ *distant, err error) {
	f, err := newFleet(ctx, b, 1)
	if err != nil {
		return nil, err
	}
	f.hints, f.apart, f.tape, f.window = true, true, t, 50*time.Millisecond
	d := &distant{fleet: f, tape: t, used: map[*member]*site{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.end(ctx))
		}
	}()
	if _, err := f.d.db.ExecContext(ctx, notifying); err != nil {
		return nil, err
	}
	d.all, err = sites(f.d, distantWorkers+2, roundTrip, t)
	d.idle = append(d.idle, d.all...)
	if err != nil {
		return nil, err
	}
	for _, s := range d.all {
		if err := s.warm(ctx); err != nil {
			return nil, err
		}
	}
	for range distantWorkers {
		if _, err := d.join(ctx, false); err != nil {
			return nil, err
		}
	}
	_, _, err = f.settle(ctx, 0)
	return d, err
}

func (d *distant) end(ctx context.Context) error {
	err := d.fleet.end(ctx)
	for _, s := range d.all {
		err = errors.Join(err, s.close())
	}
	return err
}

// join starts a worker at the site that has been idle longest, and returns the moment. Unless
// cold is set, the site's pool has connections already.
func (d *distant) join(ctx context.Context, cold bool) (time.Time, error) {
	s := d.idle[0]
	d.idle = d.idle[1:]
	if s.last != nil {
		<-s.last.done
	}
	if cold {
		if err := s.open(); err != nil {
			return time.Time{}, err
		}
	} else if err := s.warm(ctx); err != nil {
		return time.Time{}, err
	}
	began := time.Now()
	d.tape.note(s.name, "calls Run")
	if err := d.fleet.joinAt(s.name, s.url, s.pool); err != nil {
		return time.Time{}, err
	}
	s.last = d.fleet.members[len(d.fleet.members)-1]
	d.used[s.last] = s
	return began, nil
}

// leave makes the oldest worker leave.
func (d *distant) leave() time.Time {
	s := d.used[d.fleet.members[0]]
	d.idle = append(d.idle, s)
	d.tape.note(s.name, "is told to leave")
	began := time.Now()
	d.fleet.leave()
	return began
}

// A change is a kind of change of members.
type change int

const (
	joining     change = iota
	joiningCold        // with a pool without connections
	leaving
)

func (c change) String() string { return [...]string{"join", "join-cold", "leave"}[c] }

// change makes a change, and returns its start and end.
func (d *distant) change(ctx context.Context, c change) (began, ended time.Time, err error) {
	before, _, err := d.fleet.generation(ctx)
	if err != nil {
		return began, ended, err
	}
	if c == leaving {
		began = d.leave()
	} else if began, err = d.join(ctx, c == joiningCold); err != nil {
		return began, ended, err
	}
	ended, _, err = d.fleet.settle(ctx, before)
	return began, ended, err
}

// roundtrips measures changes of ten workers at a distance from the database, and expresses them
// in bare round trips over the same network.
func roundtrips(ctx context.Context, b *bench) (rows []row, err error) {
	times := 10
	distances := []int{0, 1, 10}
	if b.quick {
		times, distances = 4, []int{10}
	}
	for _, ms := range distances {
		kinds := []change{joining, leaving}
		if ms == 10 {
			kinds = []change{joining, leaving, joiningCold, leaving}
		}
		r, err := roundtripsOf(ctx, b, ms, times, kinds)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

func roundtripsOf(ctx context.Context, b *bench, ms, times int, kinds []change) (rows []row, err error) {
	d, err := newDistant(ctx, b, time.Duration(ms)*time.Millisecond, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.end(ctx)) }()
	took, floors, all := map[change][]float64{}, map[change][]float64{}, []float64{}
	for range times {
		for _, c := range kinds {
			time.Sleep(rand.N(100 * time.Millisecond)) // at a random moment
			began, ended, err := d.change(ctx, c)
			if err != nil {
				return nil, err
			}
			pause := ended.Sub(began)
			if c != leaving {
				pause -= d.fleet.window
			}
			floor, err := d.floor(ctx)
			if err != nil {
				return nil, err
			}
			took[c], floors[c], all = append(took[c], millis(pause)), append(floors[c], floor), append(all, floor)
		}
	}
	name := fmt.Sprintf("roundtrips/%dms-", ms)
	rows = append(rows, newRow(name+"floor", milliseconds, all).noted("SELECT 1"))
	for _, c := range []change{joining, leaving, joiningCold} {
		if took[c] == nil {
			continue
		}
		r := newRow(name+c.String(), milliseconds, took[c]).to(newRow(name+"floor", milliseconds, floors[c]))
		if goal := map[change]float64{joining: 14, leaving: 9}[c]; ms == 10 && goal > 0 {
			r = r.goal(fmt.Sprintf("ratio ≤ %.0f", goal), r.Ratio.Median <= goal)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// floor returns the median of a few bare round trips, in milliseconds, from a site without a
// worker.
func (d *distant) floor(ctx context.Context) (float64, error) {
	s := d.idle[len(d.idle)-1]
	if s.last != nil {
		<-s.last.done
	}
	var took []float64
	for range 5 {
		t, err := s.roundTrip(ctx)
		if err != nil {
			return 0, err
		}
		took = append(took, millis(t))
	}
	return summarize(took).Median, nil
}
