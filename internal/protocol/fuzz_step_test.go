package protocol

import (
	"fmt"
	"math/rand"
	"testing"
	"time"
)

// A dice turns a fuzzer's bytes into choices. Past the last byte every choice
// is the first one.
type dice struct{ data []byte }

func (d *dice) empty() bool { return len(d.data) == 0 }

// below returns a number in [0,n).
func (d *dice) below(n int) int {
	if d.empty() {
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return int(b) % n
}

// randomBytes are the fuzzer's bytes where there is no fuzzer.
func randomBytes(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

// A stepWorld is a group, a database clock that is stepped, and workers that
// are as simple as can be: each runs what it was last told it may, until it
// has reported that it stopped, or its lease is over in true time, which
// nobody in the protocol can see.
type stepWorld struct {
	*dice
	group   Group
	now     time.Time     // true
	offset  time.Duration // of the database's clock
	back    bool          // it is only ever stepped back, or only ever forward
	workers []*stepWorker
	names   int
}

type stepWorker struct {
	id      WorkerID
	lease   time.Duration
	clock   clockWatch
	runs    Assignment // Generation 0: nothing
	until   time.Time  // true end of what it runs, unless it hears more
	stopped int64
}

const stepLease = 30 * time.Second

func (w *stepWorld) database() time.Time { return w.now.Add(w.offset) }

// request carries out a request of a worker, which answers at once, and checks
// what came of it.
func (w *stepWorld) request(p *stepWorker, r Request) error {
	r.Worker, r.Lease, r.Stopped, r.Watch = p.id, p.lease, p.stopped, p.clock.watch()
	now := w.database()
	var d Decision
	before := Apply(w.group, r, now)
	after := before
	if !r.Heartbeat {
		after, d = Step(before, now, r.Watch)
		if err := checkStep(before, after, d, now, r.Watch); err != nil {
			return fmt.Errorf("%s: %s became %s (%s): %w", p.id, before, after, d, err)
		}
	}
	w.group = after
	p.clock.observe(w.now, w.now, now, p.lease)
	v := after.View(p.id, now, d)
	if v.Member {
		// A holder stops by a fifth of the lease before its end, and half of
		// that is for clocks that run away unseen.
		p.until = w.now.Add(p.lease - p.lease/10)
	}
	if v.May() && p.runs.Generation < v.Generation {
		p.runs = Assignment{Generation: v.Generation, Partition: int(only(v.Partitions)), Total: v.Total}
	}
	return w.oneOwner()
}

// oneOwner returns an error if two workers run the same slot, or run one
// generation in two layouts.
func (w *stepWorld) oneOwner() error {
	for i, a := range w.workers {
		for _, b := range w.workers[:i] {
			if w.running(a) && w.running(b) && (overlap(a.runs, b.runs) || a.runs.Generation == b.runs.Generation && a.runs.Total != b.runs.Total) {
				return fmt.Errorf("%s runs %s and %s runs %s; the group is %s", a.id, a.runs, b.id, b.runs, w.group)
			}
		}
	}
	return nil
}

func (w *stepWorld) running(p *stepWorker) bool {
	return p.runs.Generation > p.stopped && w.now.Before(p.until)
}

// overlap reports whether two assignments share a slot: one that is k mod the
// one total and l mod the other exists if their greatest common divisor
// divides k - l. (That has to divide Slots, as all of the totals here do.)
func overlap(a, b Assignment) bool {
	x, y := a.Total, b.Total
	for y != 0 {
		x, y = y, x%y
	}
	return (a.Partition-b.Partition)%x == 0
}

// run plays the bytes.
//
// The clock goes one way. Stepped back by a lease or more and forward again,
// all between two readings of one worker, it would fool that worker: leases
// that were renewed in between seem to have ended before its last reading.
func (w *stepWorld) run() error {
	w.back = w.below(2) == 1
	for !w.empty() {
		op := w.below(16)
		if len(w.workers) == 0 {
			op = 0
		}
		var err error
		var p *stepWorker
		if len(w.workers) > 0 {
			p = w.workers[w.below(len(w.workers))]
		}
		switch op {
		case 0, 1: // a join, of five at most
			if len(w.workers) == 5 {
				w.workers = w.workers[1:] // crashed, and not looked at any more
			}
			w.names++
			p = &stepWorker{id: WorkerID(fmt.Sprint("w", w.names)), lease: stepLease}
			w.workers = append(w.workers, p)
			err = w.request(p, Request{Join: true, MaxPartitions: []int{0, 0, 1, 2}[w.below(4)], JoinWindow: []time.Duration{0, 2 * time.Second}[w.below(2)]})
		case 2: // a leave
			p.stopped = p.runs.Generation
			err = w.request(p, Request{Leave: true, Vacate: []time.Duration{0, 20 * time.Second, stepLease, 2 * stepLease}[w.below(4)]})
			w.remove(p)
		case 3: // a new incarnation
			p.stopped = max(p.stopped, p.runs.Generation)
			name, n := p.id.incarnation()
			next := &stepWorker{id: WorkerID(name).again(n + 1), lease: stepLease, clock: p.clock, stopped: p.stopped}
			w.remove(p)
			w.workers = append(w.workers, next)
			err = w.request(next, Request{Join: true, MaxPartitions: w.group.MaxPartitions, JoinWindow: w.group.JoinWindow})
		case 4, 5, 6, 7: // stops what is superseded, and says so
			if p.runs.Generation < w.group.Generation {
				// Also what was activated for it and never started.
				p.stopped = max(p.stopped, w.group.Generation-1)
			}
			err = w.request(p, Request{})
		case 8, 9, 10:
			err = w.request(p, Request{Heartbeat: true})
		case 11: // some time, in which all but one go on
			for range 1 + w.below(12) {
				w.now = w.now.Add(5 * time.Second)
				for _, other := range w.workers {
					if err == nil && other != p {
						err = w.request(other, Request{Heartbeat: w.below(3) > 0})
					}
				}
			}
		case 12: // a long time
			w.now = w.now.Add(time.Duration(w.below(256)) * time.Second)
		case 13: // a clock that runs fast, by less than anybody can tell
			w.offset += stepLease / 20 * time.Duration(w.below(5)) / 4
		case 14: // a step
			step := []time.Duration{time.Hour, 20 * time.Second, stepLease, 10 * time.Second}[w.below(4)]
			if w.back {
				step = -step
			}
			w.offset += step
		case 15: // a moment; a projection comes from another group
			w.group.Floor = max(w.group.Floor, int64(w.below(16))-8+w.group.Generation)
			w.now = w.now.Add(time.Duration(w.below(8)) * time.Second / 2)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *stepWorld) remove(p *stepWorker) {
	var rest []*stepWorker
	for _, other := range w.workers {
		if other != p {
			rest = append(rest, other)
		}
	}
	w.workers = rest
}

func playSteps(data []byte) error {
	w := &stepWorld{dice: &dice{data}, now: testStart}
	return w.run()
}

func TestRandomSteps(t *testing.T) {
	for seed := range int64(600) {
		if err := playSteps(randomBytes(seed, 400)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzStep(f *testing.F) {
	// w1, w2 join; both heartbeat on; the clock steps by an hour; w3 joins.
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 11, 1, 11, 0, 1, 1, 1, 1, 14, 0, 0, 0, 0, 0, 4, 0, 4, 1, 4, 2})
	// A worker is silent while the others go on, and is expired.
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 4, 1, 11, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1})
	// Back by ten seconds, then silence.
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 14, 0, 3, 11, 1, 11, 12, 1, 100, 4, 0, 4, 0})
	for seed := range int64(4) {
		f.Add(randomBytes(seed, 300))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = data[:min(len(data), 1000)] // longer finds no more
		if err := playSteps(data); err != nil {
			t.Fatal(err)
		}
	})
}
