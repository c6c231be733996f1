package protocol

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A sessionWorld is a few sessions around one group on a virtual clock. Until
// the dice are empty, requests and answers are slow or lost, handlers stop
// late or by themselves, workers freeze, crash, leave and come, and the
// database's clock is stepped. After that everything works.
type sessionWorld struct {
	*dice
	group   Group
	now     time.Time
	offset  time.Duration
	stepped time.Time
	procs   []*proc
	names   int
	pending []event
	order   int
	layouts map[int64]map[int]WorkerID // who started what, per generation
	totals  map[int64]int
	present bool // workers have presences
	idle    bool // there is nothing to handle
	tracing bool
	trace   []string
	err     error
}

// An event is something that happens later. Of two at one time, the one that
// was planned first comes first.
type event struct {
	at    time.Time
	order int
	to    *proc // nil: not to anybody who could be frozen
	do    func()
}

// A proc is a worker's process: a session and the handlers that it has started.
type proc struct {
	name     string
	session  *Session
	run      *handlers
	key      int32         // of its presence; 0: none
	forgone  Forgone       // why it goes by its lease alone
	farUntil time.Time     // until then its own session is slow to answer
	noneTill time.Time     // until then it can't have one
	lock     int32         // the number under which a session of its own is at the server; 0: none is
	asking   bool          // a request is under way
	wakes    int           // only the latest Wake counts
	frozen   time.Time     // until then
	cutOff   time.Time     // from the database, until then
	connects time.Duration // how long its next connection takes
	dead     bool          // crashed or exited
	leaving  bool
}

// handlers are those of one assignment.
type handlers struct {
	assignment Assignment
	end        time.Time // planned; zero: not asked to stop
	// Frozen past the lease, or while its session has ended: the one exception of
	// S1.
	excused bool
	frozen  bool // at any time
	// suspended: there is no proof, and no handler runs. Otherwise one always
	// does.
	suspended bool
}

var worldTiming = Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: 20 * time.Second}

// settleTime bounds how long after the last fault everybody has settled: a
// lease for the dead, one for the watch that has to be as long, a drain, and a
// few heartbeats.
const settleTime = 120 * time.Second

func (w *sessionWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("t=+%v: %s; the group is %s\n%s", w.now.Sub(testStart),
			fmt.Sprintf(format, args...), w.group, strings.Join(w.trace[max(0, len(w.trace)-60):], "\n"))
	}
}

func (w *sessionWorld) note(p *proc, format string, args ...any) {
	if !w.tracing {
		return
	}
	w.trace = append(w.trace, fmt.Sprintf("%10v %-4s %s", w.now.Sub(testStart), p.name, fmt.Sprintf(format, args...)))
}

func (w *sessionWorld) after(d time.Duration, to *proc, do func()) {
	w.order++
	e := event{w.now.Add(d), w.order, to, do}
	i, _ := slices.BinarySearchFunc(w.pending, e, func(a, b event) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return a.order - b.order
	})
	w.pending = slices.Insert(w.pending, i, e)
}

// runUntil lets everything happen that happens before the time.
func (w *sessionWorld) runUntil(end time.Time) {
	for w.err == nil && len(w.pending) > 0 && w.pending[0].at.Before(end) {
		e := w.pending[0]
		w.pending = w.pending[1:]
		w.now = e.at
		if p := e.to; p != nil {
			if p.dead {
				continue
			}
			if w.now.Before(p.frozen) {
				w.after(p.frozen.Sub(w.now), p, e.do)
				continue
			}
		}
		e.do()
	}
	w.now = end
}

func (w *sessionWorld) join() *proc {
	w.names++
	p := &proc{name: fmt.Sprint("w", w.names)}
	settings := Request{MaxPartitions: []int{0, 0, 2, 1}[w.below(4)], JoinWindow: []time.Duration{0, 2 * time.Second}[w.below(2)],
		Vacate: []time.Duration{0, 3 * time.Second, 0, 45 * time.Second}[w.below(4)]}
	p.session = NewSession(WorkerID(p.name), worldTiming, settings)
	if w.present {
		p.key = int32(w.names)
		p.session.Present()
	}
	w.procs = append(w.procs, p)
	w.after(0, p, func() { w.input(p, Tick{}) })
	return p
}

// input hands an input to a session and does what it says.
func (w *sessionWorld) input(p *proc, in Input) {
	p.session.Handling(p.run != nil && !p.run.suspended && !w.idle)
	actions := p.session.Next(w.now, in)
	woken := false
	for _, a := range actions {
		switch a := a.(type) {
		case Sync:
			if p.asking {
				w.fail("%s has two requests under way", p.name)
			}
			p.asking = true
			w.send(p, a.Request)
		case Start:
			w.start(p, a.Share.Assignments()[0])
		case Drain:
			w.note(p, "drains %d", a.Generation)
			late := []time.Duration{0, 10 * time.Millisecond, 3 * time.Second, time.Minute}[w.below(4)]
			w.stopIn(p, late)
		case Cancel:
			w.note(p, "cancels %d, lost %t", a.Generation, a.Lost)
			w.stopIn(p, worldTiming.Lease/5*time.Duration(w.below(5))/4)
		case Attach:
			w.attach(p, a)
		case Prove:
			w.prove(p, a)
		case Suspend:
			w.note(p, "suspends its handlers")
			w.suspend(p)
		case Forgo:
			w.note(p, "goes by its lease: %s", a.Why)
			p.lock, p.forgone = 0, a.Why
		case Exit:
			w.note(p, "exits: %s", a.Cause)
			switch {
			case a.Cause == DrainTimeout && p.run != nil && p.run.frozen: // it had no time to stop in
			case p.run != nil:
				w.fail("%s exits while its handlers run", p.name)
			case !p.leaving:
				w.fail("%s exits and nobody asked it to", p.name)
			}
			p.dead = true
			if a.Cause == Left {
				p.lock = 0
			}
			if a.Cause == DrainTimeout && !p.leaving {
				w.join() // whoever started the process starts it again
			}
		case Wake:
			woken = true
			if !a.At.After(w.now) {
				w.fail("%s wants to be woken %v ago", p.name, w.now.Sub(a.At))
			}
			p.wakes++
			n := p.wakes
			w.after(a.At.Sub(w.now), p, func() {
				if n == p.wakes {
					w.input(p, Tick{})
				}
			})
		}
	}
	if !woken && !p.dead {
		w.fail("%s will never wake", p.name)
	}
	w.goOn(p)
}

// send carries a request to the group and its answer back, or loses either.
func (w *sessionWorld) send(p *proc, r Request) {
	sent := w.now
	there, back, lost := w.delay(), w.delay(), 0
	if !w.empty() {
		lost = max(0, w.below(8)-5) // 1: the request, 2: the answer
	}
	failed := func(d time.Duration) {
		w.after(d, p, func() {
			p.asking = false
			w.input(p, SyncFailed{Request: r, Sent: sent})
		})
	}
	late := lost == 1 && !w.now.Before(p.cutOff) && w.below(2) == 0 // it arrives when its sender has given it up
	if lost == 1 || w.now.Before(p.cutOff) {
		failed(max(there, time.Second))
		if !late {
			return
		}
		there += worldTiming.Lease / 10 * time.Duration(w.below(10))
	}
	w.after(there, nil, func() {
		now := w.now.Add(w.offset)
		before := w.group
		var d Decision
		w.group = Apply(w.group, r, now)
		seen := false
		if !r.Heartbeat {
			if w.group, d = Step(w.group, now, r.Watch); before.Spares(r, w.group) {
				seen = true
			}
		}
		for _, t := range d.Taken { // who has started it there, may be succeeded
			for _, m := range before.Members {
				if m.ID == t.From && len(m.Partitions) > 0 {
					delete(w.layouts[w.group.Generation], m.Partitions[0])
				}
			}
		}
		if w.tracing && w.group.String() != before.String() {
			w.note(p, "%s (%s)", w.group, d)
		}
		if w.group.Generation < before.Generation {
			w.fail("S5: the generation fell from %d", before.Generation)
		}
		view := w.group.View(r.Worker, now, d)
		if seen {
			w.group, view.ReadOnly = before, true
		}
		if r.Others {
			view.Others = w.others(r.Worker)
		}
		if late {
			return
		}
		if lost == 2 || w.now.Before(p.cutOff) {
			failed(back)
			return
		}
		w.after(back, p, func() {
			p.asking = false
			w.input(p, Synced{Request: r, Sent: sent, View: view})
		})
	})
}

// delay is mostly short.
func (w *sessionWorld) delay() time.Duration {
	if w.empty() {
		return time.Millisecond
	}
	switch w.below(32) {
	case 28, 29:
		return time.Second
	case 30:
		return worldTiming.Lease / 6
	case 31: // longer than what its holder uses of a lease
		return worldTiming.Lease * 5 / 6
	default:
		return time.Millisecond
	}
}

func (w *sessionWorld) start(p *proc, a Assignment) {
	w.note(p, "starts %s", a)
	if p.run != nil {
		w.fail("S1: %s starts %s and still runs %s", p.name, a, p.run.assignment)
	}
	p.run = &handlers{assignment: a, suspended: true}
	w.goOn(p)
	if total, known := w.totals[a.Generation]; known && total != a.Total {
		w.fail("S6: %s starts %s, and others have a total of %d", p.name, a, total)
	}
	w.totals[a.Generation] = a.Total
	if w.layouts[a.Generation] == nil {
		w.layouts[a.Generation] = map[int]WorkerID{}
	}
	if owner, taken := w.layouts[a.Generation][a.Partition]; taken {
		w.fail("S6: %s starts %s, which %s has started", p.name, a, owner)
	}
	w.layouts[a.Generation][a.Partition] = p.session.ID()
}

// goOn has a handler begin, if there is to be one and a proof by which it may.
func (w *sessionWorld) goOn(p *proc) {
	begin, _, bound := p.session.Proof()
	if p.dead || p.run == nil || !p.run.suspended || !p.run.end.IsZero() || bound && !w.now.Before(begin) {
		return
	}
	if !w.now.Before(p.session.LeaseEnd()) {
		return
	}
	a := p.run.assignment
	p.run.suspended = false
	for _, other := range w.procs {
		if other == p || other.dead || other.run == nil || other.run.suspended || !overlap(a, other.run.assignment) {
			continue
		}
		if w.now.Before(other.frozen) && !w.now.Before(other.session.LeaseEnd()) {
			other.run.excused = true
		}
		if !other.run.excused && !p.run.excused {
			w.fail("S1: %s handles %s and %s handles %s", p.name, a, other.name, other.run.assignment)
		}
	}
}

// stopIn has the handlers return in d, unless they are to earlier.
func (w *sessionWorld) stopIn(p *proc, d time.Duration) {
	run := p.run
	at := w.now.Add(d)
	if !run.end.IsZero() && !at.Before(run.end) {
		return
	}
	run.end = at
	w.after(d, p, func() {
		if p.run == run && run.end.Equal(at) || p.run == run && w.now.After(run.end) {
			p.run = nil
			w.note(p, "has stopped %d", run.assignment.Generation)
			w.input(p, Stopped{Generation: run.assignment.Generation, Settled: w.below(4) > 0})
		}
	})
}

// fault does one thing to one worker, or to the clock.
func (w *sessionWorld) fault() {
	var alive []*proc
	for _, p := range w.procs {
		if !p.dead && !p.leaving {
			alive = append(alive, p)
		}
	}
	op := w.below(20)
	if len(alive) == 0 {
		op = 0
	}
	if op <= 2 {
		if len(alive) < 5 {
			w.join()
		}
		return
	}
	if len(alive) == 0 {
		return
	}
	p := alive[w.below(len(alive))]
	switch op {
	case 3: // asked to stop
		w.note(p, "is asked to stop")
		p.leaving = true
		w.after(0, p, func() { w.input(p, Shutdown{Replaced: true}) })
	case 4:
		w.note(p, "crashes")
		p.dead = true
		if w.below(2) == 0 { // or else the machine is gone as well, and the server does not hear of it
			p.lock = 0
		}
	case 5, 6: // frozen, for less or more than a lease
		d := time.Duration(1+w.below(50)) * time.Second
		w.note(p, "freezes for %v", d)
		p.frozen = w.now.Add(d)
		// What it runs goes on when it thaws, until its session has noticed.
		run, lease := p.run, p.session.LeaseEnd()
		if run == nil {
			break
		}
		run.frozen = true
		run.excused = run.excused || w.present && p.lock == 0
		if !p.frozen.Before(lease) {
			w.after(max(0, lease.Sub(w.now)), nil, func() { run.excused = true })
		}
	case 7: // lanes end by themselves: what they commit is refused
		if p.run != nil && p.run.end.IsZero() {
			generation := p.run.assignment.Generation
			if w.below(2) == 0 { // one of them, without a word
				w.note(p, "misses a lane of %d", generation)
				for look := range 2 {
					w.after(time.Duration(look)*worldTiming.Heartbeat, p, func() { w.input(p, Lanes{Generation: generation, Missing: true}) })
				}
				break
			}
			w.note(p, "is refused a commit of %d", generation)
			w.after(0, p, func() { w.input(p, Refused{Generation: generation}) })
			w.stopIn(p, time.Duration(w.below(3))*50*time.Millisecond)
		}
	case 8:
		if p.run != nil && p.run.end.IsZero() {
			w.note(p, "ends its lanes")
			w.stopIn(p, 0)
		}
	case 12, 13:
		w.note(p, "loses the session of its own")
		w.lose(p)
	case 14: // and can't take another
		d := time.Duration(1+w.below(40)) * 100 * time.Millisecond
		w.note(p, "loses the session of its own, and is cut off for %v", d)
		p.cutOff = w.now.Add(d)
		w.lose(p)
	case 15:
		w.note(p, "sees the server restarted")
		for _, o := range w.procs {
			if !o.dead {
				w.lose(o)
			}
		}
	case 16: // its handlers are interrupted, or suffer from it
		w.after(0, p, func() { w.input(p, Thwarted{Vain: 1 + w.below(2*vainMax)}) })
	case 17:
		d := time.Duration(1+w.below(10)) * time.Second
		w.note(p, "has slow answers of its own session for %v", d)
		p.farUntil = w.now.Add(d)
	case 18:
		d := time.Duration(1+w.below(20)) * time.Second
		w.note(p, "loses the session of its own, and can't have another for %v", d)
		p.noneTill = w.now.Add(d)
		w.lose(p)
	case 10, 11:
		d := time.Duration(5+w.below(50)) * time.Second
		w.note(p, "is cut off for %v", d)
		p.cutOff = w.now.Add(d)
	case 9:
		// Once in a while: see Expired. It is wider than what a worker that
		// has slow requests can't see.
		if w.now.Sub(w.stepped) > 3*worldTiming.Lease {
			w.stepped = w.now
			step := []time.Duration{time.Hour, 11 * time.Second, worldTiming.Lease, -12 * time.Second, -time.Hour}[w.below(5)]
			w.note(p, "sees the clock stepped by %v", step)
			w.offset += step
		}
	}
}

// run plays the dice, heals, and demands that all is well.
func (w *sessionWorld) run() error {
	w.layouts, w.totals = map[int64]map[int]WorkerID{}, map[int64]int{}
	w.join()
	for !w.empty() && w.err == nil {
		w.fault()
		pause := []time.Duration{0, 5 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second, 7 * time.Second, 40 * time.Second}[w.below(6)]
		w.runUntil(w.now.Add(pause))
	}
	for _, p := range w.procs {
		p.frozen, p.cutOff = time.Time{}, time.Time{}
	}
	if !slices.ContainsFunc(w.procs, func(p *proc) bool { return !p.dead && !p.leaving }) {
		w.join() // somebody has to be there, and nobody new otherwise: that would help
	}
	w.runUntil(w.now.Add(settleTime))
	w.settled()
	generation := w.group.Generation
	w.runUntil(w.now.Add(2 * worldTiming.Lease))
	w.settled()
	if w.group.Generation != generation {
		w.fail("L2: generation %d had settled", generation)
	}
	return w.err
}

// settled checks L1: everybody who lives is a member and runs what the layout
// says, nobody else is or does, and who was asked to leave has left.
func (w *sessionWorld) settled() {
	members, running := 0, 0
	for _, p := range w.procs {
		if p.dead {
			continue
		}
		if p.leaving {
			w.fail("L1: %s has not left", p.name)
		}
		i := w.group.index(p.session.ID())
		if i < 0 {
			w.fail("L1: %s is not a member", p.name)
			return
		}
		members++
		partition := int(only(w.group.Members[i].Partitions))
		switch {
		case partition < 0 && p.run != nil:
			w.fail("L1: %s runs %s and has no partition", p.name, p.run.assignment)
		case partition >= 0 && (p.run == nil || p.run.assignment != Assignment{w.group.Generation, partition, w.group.Total}):
			w.fail("L1: %s does not run partition %d", p.name, partition)
		case partition >= 0:
			running++
		}
	}
	if w.group.Phase != Active || running != w.group.Total || members != len(w.group.Members) {
		w.fail("L1: of %d partitions %d run, of %d members %d live", w.group.Total, running, len(w.group.Members), members)
	}
}

// only returns the one partition of those who take no more, or -1.
func only(partitions []int) int64 {
	switch len(partitions) {
	case 0:
		return -1
	case 1:
		return int64(partitions[0])
	}
	panic("a worker that wants one partition has several")
}

// playSessions plays a failure once more, to tell its story.
func playSessions(data []byte) error {
	for _, present := range []bool{false, true} {
		err := (&sessionWorld{dice: &dice{data}, now: testStart, present: present}).run()
		if err != nil {
			return (&sessionWorld{dice: &dice{data}, now: testStart, present: present, tracing: true}).run()
		}
	}
	return nil
}

func TestRandomSessions(t *testing.T) {
	t.Parallel()
	for seed := range int64(400) {
		if err := playSessions(randomBytes(seed, 150)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzSession(f *testing.F) {
	f.Add([]byte{})
	for seed := range int64(8) {
		f.Add(randomBytes(seed, 100))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = data[:min(len(data), 300)] // longer finds no more
		if err := playSessions(data); err != nil {
			t.Fatal(err)
		}
	})
}
