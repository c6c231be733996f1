package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A checker judges a history by its facts alone, one after the other. It does not know what
// the protocol believes. It stops at the first fact that contradicts a promise.
//
// A world has ten thousand facts and must take a few milliseconds. So the checker formats
// and searches nothing unless a promise is broken.
type checker struct {
	setup setup
	crew
	look time.Duration // when to check the bounds next

	projections map[string]*checkedProjection
	inOrder     []*checkedProjection // in the order in which they appeared
	calls       map[callKey]*openCall
	failures    map[failureKey]failures
	ahead       map[laneName]int // events that a lane has handled since its latest commit or failure
	appends     []fact
	gaps        []fact // that readers waited for or passed

	family *family // nil: no projection is rebuilt

	sets        []*checkedSet
	*checkedSet // the set of the current fact

	healed, settled fact
}

// A checkedSet is the state of one replica set according to the facts.
type checkedSet struct {
	number            int
	opened, activated fact           // the newest generation in each phase; generation 0: none
	activations       map[int64]fact // by generation
	owners            map[ownerKey]fact
	// pause is the fact that opened a generation since which none is active; unset: one is
	// active.
	pause fact
	membership
	orders
}

// A checkedProjection is the state of one projection according to the facts.
type checkedProjection struct {
	name          string
	transactional bool
	scope         scope

	open      map[int][]*openCall // by slot
	commits   []fact
	holds     map[int64]int    // the index in commits of the commit that holds a position
	highest   map[string]int64 // the highest committed position of each aggregate
	passed    passed
	unhandled []visible // neither committed nor parked, by position
	skipped   int64     // an operator, or the start, makes events up to here count as handled
	started   fact      // the fact that set the start: the first join or an order
	above     int64     // events up to here are before the start
	parkedSet checkedParked
}

// An openCall is a handler that was called and has not returned.
type openCall struct {
	begin  fact
	worker *checkedWorker
	failed bool // it has returned without success
}

type callKey struct {
	worker string
	call   int
}

type laneKey struct {
	projection string
	partition  int
}

type ownerKey struct {
	generation int64
	partition  int
}

// A visible event can be read since checker.appends[append].
type visible struct {
	event
	append int
	had    *openCall // the latest call with it, of a plain projection
}

func newChecker(s setup) *checker {
	c := &checker{
		setup: s, crew: newCrew(s.drift),
		projections: map[string]*checkedProjection{},
		calls:       map[callKey]*openCall{}, failures: map[failureKey]failures{}, ahead: map[laneName]int{},
	}
	for _, name := range s.final {
		c.projection(name)
	}
	c.newFamily()
	return c
}

// check judges a whole history.
func check(h history) *violation {
	c := newChecker(h.setup)
	for _, f := range h.facts {
		if v := c.observe(f); v != nil {
			return v
		}
	}
	return nil
}

// observe takes the next fact and returns the promise that it breaks, if any. The checker
// must not be used after a violation.
func (c *checker) observe(f fact) *violation {
	if v := c.inTime(f); v != nil {
		return v
	}
	c.crew.observe(f)
	c.upset(f)
	c.turnTo(f.set)
	switch f.kind {
	case sessionAsks:
		c.reports(f)
	case memberJoins, memberLeaves, workerExpired:
		c.membersChange(f)
		return c.evicted(f)
	case placeVacated:
		return c.placeVacated(f)
	case placeTaken:
		return c.placeTaken(f)
	case placeLapsed:
		v := c.placeLapsed(f)
		c.membersChange(f)
		return v
	case ordered:
		c.isOrdered(f)
	case holdOver:
		return c.holdEnds(f)
	case promotionAsked:
		c.family.asked = f
	case promotionEnded:
		c.family.asked, c.family.over = fact{}, f
	case promoted:
		return c.promoted(f)
	case retired:
		c.retired(f)
	case projectionStarts:
		return c.starts(f)
	case runCancels:
		return c.cancelled(f)
	case workerGone:
		for _, call := range c.worker(f.worker).calls {
			c.forget(call)
		}
		c.worker(f.worker).calls = nil
	case runStarts:
		return c.runStarts(f)
	case groupOpened:
		return c.groupOpened(f)
	case groupActivated:
		return c.groupActivated(f)
	case handlerBegins:
		return c.handlerBegins(f)
	case handlerEnds:
		if call := c.calls[callKey{f.worker, f.call}]; call != nil {
			if v := c.suspended(call, f); v != nil {
				return v
			}
			if v := c.fails(call, f); v != nil {
				return v
			}
			call.failed = f.text != ""
			c.forget(call)
			call.worker.calls = without(call.worker.calls, call)
		}
	case undone:
		c.failsAt(f, f.events)
	case unreadable:
		c.failsAt(f, []event{{position: f.from}})
	case parkedFull:
		c.noRoom(f)
	case committed:
		c.ahead[laneOf(f)] = 0
		return c.committed(f)
	case eventsParked:
		if v := c.parksInTime(f); v != nil {
			return v
		}
		if v := c.parksByRight(f); v != nil {
			return v
		}
		return c.eventsParked(f)
	case parkedRetried:
		return c.parkedRetried(f)
	case parkedDiscarded:
		return c.parkedDiscarded(f)
	case retryFailed:
		delete(c.projection(f.projection).parkedSet.asked, f.from)
	case parkRequested:
		c.parkRequested(f)
	case parkedLeft:
		return c.parkedLeft(f)
	case parkOrdered:
		c.parkOrdered(f)
	case orderLapsed:
		return c.orderLapsed(f)
	case ordersLeft:
		return c.ordersLeft(f)
	case appended:
		return c.appended(f)
	case gapWaited, gapPassed:
		c.gaps = append(c.gaps, f)
	case healed:
		c.healed = f
	case settled:
		c.settled = f
		if c.unborn() {
			return nil
		}
		for set := range c.sets {
			c.turnTo(set)
			if v := c.recovered(f); v != nil {
				return v
			}
			if v := c.paused(f); v != nil {
				return v
			}
		}
		return c.promotionOver(f)
	case ended:
		if c.unborn() {
			return nil
		}
		for set := range c.sets {
			c.turnTo(set)
			if v := c.finished(f); v != nil {
				return v
			}
			if v := c.allNoticed(f); v != nil {
				return v
			}
		}
	}
	return nil
}

// turnTo selects the replica set to judge.
func (c *checker) turnTo(set int) {
	for set >= len(c.sets) {
		c.sets = append(c.sets, &checkedSet{
			number: len(c.sets), activations: map[int64]fact{}, owners: map[ownerKey]fact{},
			orders: orders{pauses: map[int64][]string{}, holds: map[string]fact{}, rewinds: map[string]int64{}, drained: map[string]bool{}},
		})
	}
	c.checkedSet = c.sets[set]
}

// projection returns the state of a projection. A new one has all events to handle.
func (c *checker) projection(name string) *checkedProjection {
	p := c.projections[name]
	if p == nil {
		p = &checkedProjection{
			name: name, transactional: c.setup.transactional[name], scope: c.setup.scopes[name],
			open: map[int][]*openCall{}, holds: map[int64]int{}, highest: map[string]int64{}, parkedSet: newCheckedParked(),
		}
		for i, f := range c.appends {
			for _, e := range f.events {
				p.sees(visible{event: e, append: i})
			}
		}
		c.projections[name] = p
		c.inOrder = append(c.inOrder, p)
	}
	return p
}

// sees adds an event to handle, unless it is out of scope or counts as handled.
func (p *checkedProjection) sees(e visible) {
	if !p.scope.includes(e.event) || e.position <= p.skipped {
		return
	}
	i := len(p.unhandled)
	if i > 0 && p.unhandled[i-1].position > e.position { // it became visible late
		i, _ = p.find(e.position)
	}
	p.unhandled = slices.Insert(p.unhandled, i, e)
}

// find returns the index of an unhandled event, or where it belongs.
func (p *checkedProjection) find(position int64) (int, bool) {
	return slices.BinarySearchFunc(p.unhandled, position, func(e visible, position int64) int {
		return cmp.Compare(e.position, position)
	})
}

// forget removes a call that is over.
func (c *checker) forget(call *openCall) {
	delete(c.calls, callKey{call.begin.worker, call.begin.call})
	open := c.projection(call.begin.projection).open
	for _, e := range call.begin.events {
		if rest := without(open[e.slot], call); len(rest) > 0 {
			open[e.slot] = rest
		} else {
			delete(open, e.slot)
		}
	}
}

func without(calls []*openCall, call *openCall) []*openCall {
	return slices.DeleteFunc(calls, func(c *openCall) bool { return c == call })
}

// broken returns a violation with these facts, in any order. It leaves out facts that are
// unset.
func broken(p promise, facts []fact, format string, args ...any) *violation {
	facts = slices.DeleteFunc(facts, func(f fact) bool { return f.unset() })
	slices.SortFunc(facts, func(a, b fact) int { return cmp.Compare(a.step, b.step) })
	facts = slices.CompactFunc(facts, func(a, b fact) bool { return a.step == b.step })
	return &violation{promise: p, what: fmt.Sprintf(format, args...), facts: facts}
}

// unset reports whether f is the zero fact: the start of a worker without a name.
func (f fact) unset() bool { return f.kind == workerStarts && f.worker == "" }

// owner returns the worker of a fact and its generation.
func owner(f fact) string { return fmt.Sprintf("%s (generation %d)", f.worker, f.generation) }

// passed is the position up to which checkpoints have passed each slot of a projection,
// according to the commits. No lane reads again what a checkpoint has passed.
type passed struct {
	slots     []int64 // in earlier layouts
	positions []int64 // of the checkpoints in the latest one, by partition
}

// commit takes in a move of a checkpoint.
func (p *passed) commit(f fact) {
	if len(p.positions) != f.total {
		p.fold()
		p.positions = make([]int64, f.total)
	}
	p.positions[f.partition] = max(p.positions[f.partition], f.to)
	if len(f.ahead) > 0 && p.slots == nil {
		p.slots = make([]int64, protocol.Slots)
	}
	for _, m := range f.ahead {
		p.slots[m.Slot] = max(p.slots[m.Slot], m.Position)
	}
}

// fold carries the checkpoints over to their slots.
func (p *passed) fold() {
	if len(p.positions) == 0 {
		return
	}
	if p.slots == nil {
		p.slots = make([]int64, protocol.Slots)
	}
	for s := range p.slots {
		p.slots[s] = max(p.slots[s], p.positions[s%len(p.positions)])
	}
	p.positions = nil
}

// slot returns the position up to which one slot is passed.
func (p *passed) slot(s int) int64 {
	var position int64
	if p.slots != nil {
		position = p.slots[s]
	}
	if n := len(p.positions); n > 0 {
		position = max(position, p.positions[s%n])
	}
	return position
}

// commitOf returns the commit of the projection that holds the position, if there is one.
func (p *checkedProjection) commitOf(position int64) (commit fact, ok bool) {
	i, ok := p.holds[position]
	if ok {
		commit = p.commits[i]
	}
	return commit, ok
}

// latest returns the latest commit for the slot before commits[n].
func (p *checkedProjection) latest(slot, n int) fact {
	for _, f := range slices.Backward(p.commits[:n]) {
		if slot%f.total == f.partition {
			return f
		}
	}
	return fact{}
}

// sinceHeal returns the time from the end of the faults to f.
func (c *checker) sinceHeal(f fact) time.Duration {
	return (f.at - c.healed.at).Round(100 * time.Millisecond)
}
