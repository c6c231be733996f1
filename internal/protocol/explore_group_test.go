//go:build !race

package protocol

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A groupWorld is a few workers, each with its session and one lane, around
// one group, the checkpoints of one projection, and a stream of three events
// in two slots. All that decides is the real thing: Session, Apply, Step, View,
// Handoff, Lane.
//
// What is left out, and why that keeps the interleavings that matter:
//
//   - What happens inside a process between two looks at the world is one move,
//     and so is a transaction of which nobody can see half. But the write of a
//     checkpoint and its COMMIT are two: in between, the row is locked.
//   - Time stands still while anybody has something to do, and then goes on to
//     the next moment at which somebody wakes. Whatever happens at one moment
//     happens in any order, so everything may be overtaken by everything else.
//     To be overtaken by time it must be slow, and there is a budget for that.
//   - Processes begin, crash, freeze, are cut off or asked to stop when time goes
//     on. What others do until then commutes with the steps that the process no
//     longer takes, or has yet to take.
//   - Events are appended when time goes on. A lane does not read when there is
//     nothing for it: it would find out that it has nothing to do. Gaps are the
//     business of gapWorld.
//   - A heartbeat that is due is sent at once, and one that changes nothing is
//     answered at once, unless answers may be slow: nobody could tell. (Freezing
//     just before such an answer would make a reading of the clock less exact.)
//   - Requests carry what their sender knows of the database's clock, but that
//     never steps: sessionWorld steps it.
//   - Handlers don't fail, and lanes don't commit mere skips: TestLane has these
//     turns, and the commit is the same. A lane's pauses take no time, and so
//     may end at any moment.
//   - A request that would activate a generation while a checkpoint is locked
//     fails at once, as it does in the end when its lock_timeout is over. To
//     succeed after a wait is the same as to come later.
//   - A cancelled handler returns before the next moment, within the fifth of
//     the lease that it has for that.
type groupWorld struct {
	*groupPlan
	at     time.Duration
	group  Group
	stepAt time.Time // the latest Step's; heartbeats tell it
	active layout    // of the newest generation that was activated
	rows   []checkpointRow
	txs    []lockingTx
	late   []lateRequest
	procs  [3]*groupProc
	// appended events can be read; committed has a bit for each.
	appended  int
	committed uint
	left      groupBudget
	owned     [3]bool // the procs that this state does not share
	err       error
}

// A groupPlan is what is the same in all states of a world.
type groupPlan struct {
	workers    int
	together   bool // all workers begin at once; or else the others any time after the first
	kind       LaneKind
	joinWindow time.Duration
	vacate     time.Duration // for how long a worker that leaves keeps its place
	earlier    bool          // the second worker is of an earlier program, which knows no vacancies
	// crossing: reports cross. What a heartbeat that brings one shows of others is
	// from before, and so not that the last of them has reported as well.
	crossing bool
	bugs     groupBugs

	handed map[string][]Checkpoint // what Handoff returned
	marks  [][]Mark                // each list that it ever did, once
	spare  []*groupProc            // to be used again
}

// A groupBudget is what may still go wrong: each at most so often, and all of
// it together at most faults times.
type groupBudget struct {
	faults int8

	lost        int8 // a request or its answer
	slow        int8 // a request, an answer, or a step of a lane: overtaken by time
	uncommitted int8 // a commit without an answer
	crash       int8
	freeze      int8 // for one of the times in freezes
	cut         int8 // off the database, for cutFor
	leave       int8 // asked to stop
	restart     int8 // of a process that is gone, under another name
}

// groupBugs are mutants: what TestExploreNotices breaks.
type groupBugs struct {
	stepIgnoresHolds, viewAlwaysMay, restless      bool
	stoppedAtOnce, leaseFromAnswer                 bool
	fenceWithoutGeneration, activationLocksNothing bool
	silenceIsFailure, lanesIgnoreLease             bool
	handoffTakesHighest, handoffTakesLowest        bool
	alwaysSettled, vacatesAtOnce, placeStays       bool
}

// Two aggregates, of which two partitions have one each.
var groupEvents = []Key{{Position: 1}, {Position: 2, Slot: 1}, {Position: 3}}

// Everything happens at multiples of four milliseconds, or nearly so: the fewer
// moments, the fewer states. A worker uses three heartbeats of its lease.
var groupTiming = Timing{Heartbeat: 4 * time.Millisecond, Lease: 15 * time.Millisecond, Drain: 8 * time.Millisecond}

const (
	groupPatience = 4 * time.Millisecond  // with an answer; Timing.Patience says 5
	groupIdle     = 4 * time.Millisecond  // after which the server ends a transaction with a written checkpoint
	groupLate     = 16 * time.Millisecond // within which a request is carried out that nobody waits for
	cutFor        = 24 * time.Millisecond // the lease ends
)

// freezes are how long processes freeze: nobody notices; the lease is over by
// its own count; it thaws at the moment at which the others may remove it; they
// have gone on without it. Longer changes nothing.
var freezes = [...]time.Duration{4 * time.Millisecond, 12 * time.Millisecond, 16 * time.Millisecond, 40 * time.Millisecond}

// groupSettle bounds how long it takes until all is well once nothing more
// goes wrong: who is frozen must thaw; a lease must end, and the watch be as
// long; a drain; and three heartbeats.
var groupSettle = freezes[len(freezes)-1] + 2*groupTiming.Lease + groupTiming.Drain + 3*groupTiming.Heartbeat

func newGroupWorld(plan groupPlan, budget groupBudget) *groupWorld {
	plan.handed, plan.marks = map[string][]Checkpoint{}, [][]Mark{nil}
	w := &groupWorld{groupPlan: &plan, left: budget, appended: 1}
	for i := range plan.workers {
		w.procs[i] = &groupProc{name: fmt.Sprint("w", i+1)}
		if i == 0 || plan.together {
			w.begin(i)
		}
	}
	return w
}

func (w *groupWorld) now() time.Time       { return testStart.Add(w.at) }
func (w *groupWorld) clock() time.Duration { return w.at }
func (w *groupWorld) broken() error        { return w.err }

func (w *groupWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

// all returns the processes.
func (w *groupWorld) all() []*groupProc { return w.procs[:w.workers] }

// What may happen. First, what does if nothing goes wrong.
const (
	toEndTx  = iota // the server ends a transaction, or a rollback reaches it
	toLand          // a COMMIT is carried out, though nobody waits for it
	toArrive        // likewise a request, or what a lane saves
	toStop          // a session hears that it is to
	toInput         // a session hears from its lane
	toAnswer        // a session hears what has become of its request
	toCarry         // a request is carried out
	toGiveUp        // a worker waits for an answer no longer
	toLane          // a lane's action is carried out
	toTick          // a session wakes
	toAppend        // time goes on, and there is another event
	toWait          // time goes on

	// What need not happen.
	toBegin // time goes on, and another worker begins

	// Faults. Those that come with time are last.
	toLoseRequest
	toLoseAnswer // the request is carried out
	toLoseWrite  // likewise
	toLoseCommit // likewise
	toDropCommit // COMMIT is lost, with its connection
	toFlyCommit  // COMMIT may still be carried out
	toLoseSave   // it is carried out
	toDropSave   // it is not
	toFlySave    // it may still be
	toRestart
	toSlow // what is under way is slow
	toLeave
	toFreeze
	toCut
	toCrash
)

func (w *groupWorld) moves(all []move) (_ []move, fair bool) {
	add := func(what uint8, who, which int) { all = append(all, move{what, int8(who), int8(which)}) }
	for i, tx := range w.txs {
		if tx.flying {
			add(toLand, 0, i)
		}
		if tx.owner == noOwner || w.idled(tx) {
			add(toEndTx, 0, i)
		}
	}
	for i := range w.late {
		add(toArrive, 0, i)
	}
	for i, p := range w.all() {
		if p.call.where == there {
			add(toCarry, i, 0)
		}
		if !w.awake(p) {
			continue
		}
		if p.asked {
			add(toStop, i, 0)
		}
		if len(p.inputs) > 0 {
			add(toInput, i, 0)
		}
		if p.call.where == back || p.call.where == failed {
			add(toAnswer, i, 0)
		}
		if w.timedOut(p) && p.call.where != failed {
			add(toGiveUp, i, 0)
		}
		if w.laneCan(p) {
			add(toLane, i, 0)
		}
		if !p.wake.After(w.now()) {
			add(toTick, i, 0)
		}
	}
	must, may := w.underWay(nobody)
	quiet := must+may == 0 && w.next() > w.at
	if quiet {
		if w.appended < len(groupEvents) {
			add(toAppend, 0, 0)
		}
		add(toWait, 0, 0)
	}
	fair = len(all) > 0

	for i, p := range w.all() {
		if quiet && p.life == unborn && w.procs[i-1].life != unborn {
			add(toBegin, i, 0)
		}
	}
	if w.left.faults == 0 {
		return all, fair
	}
	if n := min(w.left.slow, w.left.faults); must == 0 && may > 0 && may <= int(n) && w.next() > w.at {
		add(toSlow, 0, 0)
	}
	for i, p := range w.all() {
		w.faults(i, p, quiet, add)
	}
	return all, fair
}

// faults adds what may go wrong with a worker.
func (w *groupWorld) faults(i int, p *groupProc, quiet bool, add func(what uint8, who, which int)) {
	left := w.left
	if p.life == gone && left.restart > 0 {
		add(toRestart, i, 0)
	}
	if p.call.where == there && left.lost > 0 && !w.isCut(p) {
		add(toLoseRequest, i, 0)
		add(toLoseAnswer, i, 0)
	}
	if !w.awake(p) {
		return
	}
	if left.uncommitted > 0 && w.laneCan(p) && !w.isCut(p) {
		switch {
		case p.run.action.Do == LaneWrite:
			add(toLoseWrite, i, 0)
		case p.run.action.Do == LaneCommit && w.txOf(i) >= 0:
			add(toLoseCommit, i, 0)
			add(toDropCommit, i, 0)
			add(toFlyCommit, i, 0)
		case p.run.action.Do == LaneSave:
			add(toLoseSave, i, 0)
			add(toDropSave, i, 0)
			add(toFlySave, i, 0)
		}
	}
	if quiet && left.leave > 0 && !p.asked && !p.leaving {
		add(toLeave, i, 0)
	}
	if quiet && left.cut > 0 {
		add(toCut, i, 0)
	}
	if left.freeze == 0 && left.crash == 0 {
		return
	}
	if must, may := w.underWay(i); must+may > 0 {
		return
	}
	for n := range freezes {
		if left.freeze > 0 {
			add(toFreeze, i, n)
		}
	}
	if left.crash > 0 {
		add(toCrash, i, 0)
	}
}

func (w *groupWorld) awake(p *groupProc) bool { return p.life == alive && p.frozen <= w.at }
func (w *groupWorld) isCut(p *groupProc) bool { return p.cut > w.at }
func (w *groupWorld) idled(tx lockingTx) bool { return w.at >= tx.since+groupIdle }
func (w *groupWorld) timedOut(p *groupProc) bool {
	return p.call.where != nowhere && !w.now().Before(p.call.sent.Add(groupPatience))
}

const nobody = -1

// underWay counts what is to happen before time goes on, whatever one process
// does: what must, and what may be slow.
func (w *groupWorld) underWay(except int) (must, may int) {
	for _, tx := range w.txs {
		if w.idled(tx) {
			must++
		}
	}
	for _, r := range w.late {
		if w.at >= r.by {
			must++
		}
	}
	for i, p := range w.all() {
		if p.call.where == there && !p.call.slow {
			may++
		}
		if !w.awake(p) || i == except {
			continue
		}
		if (p.call.where == back || p.call.where == failed) && !p.call.slow {
			may++
		}
		if w.timedOut(p) || len(p.inputs) > 0 || p.asked || !p.wake.After(w.now()) {
			must++
		}
		if w.laneCan(p) && p.run.canceled {
			must++
		} else if w.laneCan(p) && !p.run.slow {
			may++
		}
	}
	return must, may
}

// next returns when something is due next, or 0.
func (w *groupWorld) next() (next time.Duration) {
	consider := func(t time.Duration) {
		if t > w.at && (next == 0 || t < next) {
			next = t
		}
	}
	for _, tx := range w.txs {
		consider(tx.since + groupIdle)
	}
	for _, r := range w.late {
		consider(r.by)
	}
	for _, p := range w.all() {
		switch {
		case p.life != alive:
		case !w.awake(p):
			consider(p.frozen)
		default:
			consider(p.wake.Sub(testStart))
			if p.call.where != nowhere {
				consider(p.call.sent.Add(groupPatience).Sub(testStart))
			}
		}
	}
	return next
}

func (w *groupWorld) after(m move) *groupWorld {
	n := *w
	n.owned = [3]bool{}
	switch {
	case m.what == toSlow:
		n.slow()
	case m.what >= toLoseRequest:
		n.goWrong(m.what, int(m.who), int(m.which))
	default:
		n.goOn(m.what, int(m.who), int(m.which))
	}
	if n.left.faults == 0 {
		n.left = groupBudget{} // what is left of the others makes no difference
	}
	n.check()
	return &n
}

func (w *groupWorld) goOn(what uint8, i, which int) {
	switch what {
	case toEndTx:
		w.endTx(which)
	case toLand:
		w.commit(which)
	case toArrive:
		r := w.late[which]
		w.late = slices.Delete(slices.Clone(w.late), which, which+1)
		if r.saves {
			w.save(r.saving)
		} else {
			w.carryOut(r.Request)
		}
	case toStop:
		p := w.own(i)
		p.asked, p.leaving = false, true
		w.input(i, Shutdown{Replaced: true})
	case toInput:
		p := w.own(i)
		in := p.inputs[0]
		p.inputs = p.inputs[1:]
		w.input(i, in)
	case toAnswer:
		w.answer(i)
	case toCarry:
		w.carry(i)
	case toGiveUp:
		w.abandon(w.own(i))
		w.answer(i)
	case toLane:
		w.own(i).run.slow = false
		w.lane(i, w.laneDoes(i))
	case toTick:
		w.input(i, Tick{})
	case toAppend:
		w.appended++
		w.wait()
	case toWait:
		w.wait()
	case toBegin:
		w.wait()
		w.begin(i)
	}
}

func (w *groupWorld) goWrong(what uint8, i, which int) {
	w.left.faults--
	p := w.own(i)
	switch what {
	case toLoseRequest:
		w.left.lost--
		p.call.where = failed
	case toLoseAnswer:
		w.left.lost--
		w.carryOut(p.call.request)
		p.call.where = failed
	case toLoseWrite:
		w.left.uncommitted--
		w.laneDoes(i)
		w.disown(i)
		w.lane(i, LaneAnswer{Failure: Passing})
	case toLoseCommit, toDropCommit, toFlyCommit:
		w.left.uncommitted--
		n := w.txOf(i)
		switch what {
		case toLoseCommit:
			w.commit(n)
		case toDropCommit:
			w.endTx(n)
		case toFlyCommit:
			w.disown(i)
			w.txs[n].flying = true
		}
		w.lane(i, LaneAnswer{Failure: Passing})
	case toLoseSave, toDropSave, toFlySave:
		w.left.uncommitted--
		switch what {
		case toLoseSave:
			w.save(w.saving(p))
		case toFlySave:
			w.late = append(slices.Clip(w.late), lateRequest{saves: true, saving: w.saving(p), by: w.at + groupLate})
		}
		w.lane(i, LaneAnswer{Failure: Passing})
	case toRestart:
		w.left.restart--
		p.name = "v" + p.name[1:] // it is another process
		w.begin(i)
	case toLeave:
		w.left.leave--
		p.asked = true
		w.wait()
	case toFreeze:
		w.left.freeze--
		p.frozen = w.at + freezes[which]
		p.delay()
		w.wait()
	case toCut:
		w.left.cut--
		p.cut = w.at + cutFor
		p.delay()
		w.wait()
	case toCrash:
		w.left.crash--
		w.end(i)
		w.wait()
	}
}

// wait lets time go on, if anything is due at all.
func (w *groupWorld) wait() {
	if next := w.next(); next > 0 {
		w.at = next
	}
	for i, p := range w.all() {
		if p.frozen >= w.at && p.run != nil && !p.run.excused && !w.now().Before(p.session.LeaseEnd()) {
			w.own(i).run.excused = true
		}
		if w.awake(p) && !p.wake.After(w.now()) && p.onlySends(w.now()) {
			w.input(i, Tick{})
		}
	}
}

// onlySends reports whether all that a session will do when it wakes is to send
// a request.
func (p *groupProc) onlySends(now time.Time) bool {
	s := &p.session
	return !s.lost && !s.leaving && (s.running == nil || s.stopping.IsZero()) && (!s.member || now.Before(s.leaseEnd))
}

// slow lets time go on though something is under way, which takes its time
// from here on.
func (w *groupWorld) slow() {
	spend := func() { w.left.slow--; w.left.faults-- }
	for i, p := range w.all() {
		if !p.call.slow && (p.call.where == there || w.awake(p) && p.call.where != nowhere) {
			w.own(i).call.slow = true
			spend()
		}
		if w.awake(p) && w.laneCan(p) && !p.run.slow {
			p := w.own(i)
			p.run.slow = true
			p.delay()
			spend()
		}
	}
	w.wait()
}

// check compares the checkpoints with what was committed.
func (w *groupWorld) check() {
	if len(w.rows) == 0 {
		return
	}
	for i, e := range groupEvents {
		passed := w.rows[e.Slot%len(w.rows)].checkpoint.Frontier(e.Slot) >= e.Position
		switch done := w.committed&(1<<i) != 0; {
		case passed && !done:
			w.fail("S2: the checkpoints pass event %d, which was not committed", e.Position)
		case !passed && done:
			w.fail("S3: event %d was committed, and the checkpoints say that it is still to be handled", e.Position)
		}
	}
}

// settled returns the generation if everybody who lives runs what the layout
// says, nobody else is in it, all events are committed, and nobody has yet to
// get over what went wrong; -1 if nobody lives.
func (w *groupWorld) settled() int64 {
	living := 0
	for _, p := range w.all() {
		if p.life != alive {
			continue
		}
		living++
		if !w.steady(p) {
			return 0
		}
	}
	switch {
	case living == 0:
		return -1
	case w.group.Phase != Active || w.group.Total != living || len(w.group.Members) != living || len(w.late) > 0 ||
		w.committed != 1<<len(groupEvents)-1:
		return 0
	}
	return w.group.Generation
}

// steady reports whether a worker runs its partition and all is well with it.
func (w *groupWorld) steady(p *groupProc) bool {
	if p.asked || p.leaving || !w.awake(p) || w.isCut(p) || p.run == nil || len(p.inputs) > 0 ||
		p.call.where == failed || p.call.slow || p.session.failures > 0 || p.session.wantsStep() {
		return false
	}
	r := p.run
	return r.action.Do == LanePause && r.action.Why == NothingNew && !w.signals(p).stopping() &&
		r.assignment.Generation == w.group.Generation && w.active.owners[r.assignment.Partition] == p.session.ID()
}

func TestExploreGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		plan   groupPlan
		budget groupBudget
		large  bool
	}{
		{"two workers, any one fault", groupPlan{workers: 2},
			groupBudget{faults: 1, lost: 1, uncommitted: 1, crash: 1, freeze: 1, cut: 1, leave: 1}, false},
		{"two workers, handlers' transactions, any one fault", groupPlan{workers: 2, kind: Transactional},
			groupBudget{faults: 1, lost: 1, uncommitted: 1, crash: 1, freeze: 1, cut: 1, leave: 1}, false},
		{"two workers, one thing slow", groupPlan{workers: 2}, groupBudget{faults: 1, slow: 1}, false},
		{"two workers at once, any two faults but freezing and cuts", groupPlan{workers: 2, together: true},
			groupBudget{faults: 2, lost: 1, uncommitted: 1, crash: 1, leave: 1, restart: 1}, false},
		{"three workers gathered by a join window", groupPlan{workers: 3, joinWindow: 3 * time.Millisecond}, groupBudget{}, false},
		{"three workers at once, one crashes", groupPlan{workers: 3, together: true}, groupBudget{faults: 1, crash: 1}, false},
		{"two workers, reports cross, any one fault", groupPlan{workers: 2, crossing: true},
			groupBudget{faults: 1, lost: 1, crash: 1, cut: 1, leave: 1}, false},
		{"three workers at once, reports cross, one leaves", groupPlan{workers: 3, together: true, crossing: true},
			groupBudget{faults: 1, leave: 1}, false},
		{"two workers, one is replaced", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 2, leave: 1, restart: 1}, false},
		{"two workers, handlers' transactions, one is replaced", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond, kind: Transactional},
			groupBudget{faults: 2, leave: 1, restart: 1}, false},
		{"two workers, one is replaced, and a commit is unclear", groupPlan{workers: 2, together: true, vacate: 40 * time.Millisecond},
			groupBudget{faults: 3, leave: 1, restart: 1, uncommitted: 1}, false},
		{"three workers at once, one is replaced", groupPlan{workers: 3, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 2, leave: 1, restart: 1}, true},
		{"two workers, one of an earlier program, and one is replaced", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond, earlier: true},
			groupBudget{faults: 3, leave: 2, restart: 2}, false},
		{"two workers, one of an earlier program, and any two faults", groupPlan{workers: 2, vacate: 40 * time.Millisecond, earlier: true},
			groupBudget{faults: 2, leave: 1, restart: 1, crash: 1}, false},
		{"two workers, both are replaced", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 4, leave: 2, restart: 2}, true},
		{"two workers, one is replaced, and another fault", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 3, leave: 1, restart: 1, lost: 1, crash: 1, uncommitted: 1}, true},
		{"two workers, one is replaced, and one is cut off", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 3, leave: 1, restart: 1, cut: 1}, true},
		{"two workers, one leaves to be replaced, and one is frozen", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 2, leave: 1, freeze: 1}, true},
		{"two workers, one is replaced, and something is slow", groupPlan{workers: 2, together: true, vacate: 12 * time.Millisecond},
			groupBudget{faults: 3, leave: 1, restart: 1, slow: 1}, true},

		{"two workers, any two faults but freezing", groupPlan{workers: 2},
			groupBudget{faults: 2, lost: 1, uncommitted: 1, crash: 1, cut: 1, leave: 1, restart: 1}, true},
		{"two workers at once, frozen and another fault", groupPlan{workers: 2, together: true},
			groupBudget{faults: 2, freeze: 1, uncommitted: 1, crash: 1, leave: 1, restart: 1}, true},
		{"two workers at once, frozen and a lost message", groupPlan{workers: 2, together: true},
			groupBudget{faults: 2, freeze: 1, lost: 1}, true},
		{"two workers at once, slow and another fault", groupPlan{workers: 2, together: true},
			groupBudget{faults: 2, slow: 1, uncommitted: 1, crash: 1, cut: 1, leave: 1}, true},
		{"two workers at once, slow and a lost message", groupPlan{workers: 2, together: true},
			groupBudget{faults: 2, slow: 1, lost: 1}, true},
		{"two workers, handlers' transactions, frozen", groupPlan{workers: 2, together: true, kind: Transactional},
			groupBudget{faults: 2, freeze: 1, uncommitted: 1}, true},
		{"three workers at once, any one fault", groupPlan{workers: 3, together: true},
			groupBudget{faults: 1, lost: 1, uncommitted: 1, crash: 1, cut: 1, leave: 1}, true},
		{"three workers, one crashes or leaves", groupPlan{workers: 3}, groupBudget{faults: 1, crash: 1, leave: 1}, true},
	} {
		if tt.large && !*exploreAll {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			o := logged(t, func() outcome { return explore(newGroupWorld(tt.plan, tt.budget), exploreMax) })
			if o.settle > groupSettle {
				t.Errorf("it takes up to %v until all is well, more than %v", o.settle, groupSettle)
			}
		})
	}
}
