//go:build !race

package protocol

import (
	"slices"
	"time"
)

// A groupProc is a worker's process.
type groupProc struct {
	name    string
	life    life
	asked   bool          // to stop, and about to hear it
	leaving bool          // has heard it
	frozen  time.Duration // until then
	cut     time.Duration // off the database, until then
	session Session
	wake    time.Time
	inputs  []Input // that the lane has for the session
	call    call
	run     *groupRun
	spare   *groupRun // to be used again
}

type life uint8

const (
	unborn life = iota
	alive
	gone
)

// A call is the request that is under way.
type call struct {
	where   whereabouts
	slow    bool
	request Request
	sent    time.Time
	view    View
}

type whereabouts uint8

const (
	nowhere whereabouts = iota
	there               // on the way to the group
	back                // on the way from it
	failed              // the worker is about to hear that, and knows no more
)

// A groupRun is the lane that an assignment has started.
type groupRun struct {
	assignment Assignment
	lane       Lane
	track      Track
	action     LaneAction
	asked      bool
	canceled   bool
	slow       bool
	delayed    bool // it was frozen, slow or cut off: it may take longer than Timing.Drain to stop
	excused    bool // frozen past the lease: the one exception of S1
	handled    uint // events that were handled and not committed
}

// own returns a process that may be changed.
func (w *groupWorld) own(i int) *groupProc {
	if !w.owned[i] {
		w.owned[i] = true
		p := w.blank()
		run := p.run
		*p = *w.procs[i]
		p.inputs = slices.Clip(p.inputs)
		if p.run != nil {
			*run = *p.run
			run.track.pending = slices.Clip(run.track.pending)
			if run.lane.track != nil {
				run.lane.track = &run.track
			}
			p.run = run
		}
		p.spare = run
		w.procs[i] = p
	}
	return w.procs[i]
}

// blank returns a process to write over, with a run.
func (w *groupWorld) blank() *groupProc {
	if n := len(w.spare); n > 0 {
		p := w.spare[n-1]
		w.spare = w.spare[:n-1]
		p.run = p.spare
		return p
	}
	run := new(groupRun)
	return &groupProc{run: run, spare: run}
}

// forget says that the state is not needed any more, and nothing came after it.
func (w *groupWorld) forget() {
	for i, owned := range w.owned {
		if owned {
			w.groupPlan.spare = append(w.groupPlan.spare, w.procs[i])
		}
	}
}

func (w *groupWorld) begin(i int) {
	p := w.own(i)
	p.life = alive
	p.session = *NewSession(WorkerID(p.name), groupTiming, Request{JoinWindow: w.joinWindow, Vacate: w.vacate})
	if w.earlier && p.name[1:] == "2" {
		p.session.settings.Vacate = 0
	}
	w.input(i, Tick{})
}

// end ends a process. What it had under way goes on without it.
func (w *groupWorld) end(i int) {
	p := w.own(i)
	w.abandon(p)
	w.disown(i)
	*p = groupProc{name: p.name, life: gone, spare: p.spare}
}

// abandon has a process wait for its answer no longer.
func (w *groupWorld) abandon(p *groupProc) {
	if p.call.where == there {
		w.late = append(slices.Clip(w.late), lateRequest{Request: p.call.request, by: w.at + groupLate})
	}
	p.call.where = failed
}

// delay notes that what runs may be late.
func (p *groupProc) delay() {
	if p.run != nil {
		p.run.delayed = true
	}
}

// input hands an input to a session and does what it says.
func (w *groupWorld) input(i int, in Input) {
	p := w.own(i)
	now := w.now()
	for _, a := range p.session.Next(now, in) {
		switch a := a.(type) {
		case Sync:
			if p.call.where != nowhere {
				w.fail("%s has two requests under way", p.name)
			}
			p.call = call{where: there, request: a.Request, sent: now}
		case Start:
			w.start(i, a.Share.Assignments()[0])
		case Drain:
			if p.run != nil {
				p.run.asked = true
				if w.bugs.stoppedAtOnce || w.bugs.vacatesAtOnce && p.leaving {
					p.inputs = append(p.inputs, Stopped{a.Generation, true})
				}
			}
		case Cancel:
			if p.run != nil {
				p.run.asked, p.run.canceled, p.run.slow = true, true, false
			}
		case Exit:
			if p.run != nil && !p.run.delayed {
				w.fail("%s exits while its handlers run", p.name)
			}
			if !p.leaving && a.Cause != DrainTimeout {
				w.fail("%s exits and nobody asked it to", p.name)
			}
			w.end(i)
			return
		case Wake:
			p.wake = a.At
		}
	}
}

// answer tells a session what has become of its request.
func (w *groupWorld) answer(i int) {
	p := w.own(i)
	c := p.call
	p.call = call{}
	if c.where == failed {
		w.input(i, SyncFailed{Request: c.request, Sent: c.sent})
		return
	}
	if w.bugs.leaseFromAnswer {
		c.sent = w.now()
	}
	w.input(i, Synced{Request: c.request, Sent: c.sent, View: c.view})
}

// carry carries out a request that is under way.
func (w *groupWorld) carry(i int) {
	p := w.own(i)
	if w.isCut(p) {
		p.call.where = failed
		return
	}
	view, ok := w.carryOut(p.call.request)
	p.call.where, p.call.view, p.call.slow = back, view, false
	switch {
	case !ok:
		p.call.where = failed
	case w.left.slow == 0 && w.awake(p) && p.nothingNew():
		w.answer(i)
	}
}

// nothingNew reports whether an answer brings a session nothing but a longer
// lease.
func (p *groupProc) nothingNew() bool {
	s, v := &p.session, p.call.view
	return p.call.request.Heartbeat && v.Member && s.running != nil && s.stopping.IsZero() && !s.lost &&
		!s.leaving && s.running.Generation == v.Generation && s.refused != v.Generation
}

// laneCan reports whether a lane's action can be carried out now.
func (w *groupWorld) laneCan(p *groupProc) bool {
	if p.run == nil {
		return false
	}
	a := p.run.action
	if w.isCut(p) && asksDatabase(a.Do) {
		return p.run.canceled // or else it waits for an answer
	}
	switch a.Do {
	case LanePause:
		return a.Why != NothingNew || w.signals(p).stopping() || w.unread(p.run)
	case LaneFind, LaneWrite, LaneSave: // all wait for who has locked the row
		return !slices.ContainsFunc(w.txs, func(tx lockingTx) bool { return int(tx.partition) == p.run.assignment.Partition })
	}
	return true
}

func asksDatabase(do LaneDo) bool {
	return do == LaneLoad || do == LaneFind || do == LaneWrite || do == LaneCommit || do == LaneSave
}

// unread reports whether there is something to read for a lane: not only
// events of others.
func (w *groupWorld) unread(r *groupRun) bool {
	return slices.ContainsFunc(groupEvents[:w.appended], func(e Key) bool {
		return e.Position > r.track.cursor && e.Slot%r.assignment.Total == r.assignment.Partition
	})
}

func (w *groupWorld) signals(p *groupProc) Signals {
	over := !w.now().Before(p.session.LeaseEnd()) && !w.bugs.lanesIgnoreLease
	return Signals{Asked: p.run.asked, Canceled: p.run.canceled, LeaseOver: over}
}

// start starts the lane of an assignment, and makes sure that it may.
func (w *groupWorld) start(i int, a Assignment) {
	p := w.own(i)
	if p.run != nil {
		w.fail("S1: %s starts %s and still runs %s", p.name, a, p.run.assignment)
	}
	if a.Generation != w.active.generation {
		w.fail("S5: %s starts %s, and generation %d is active", p.name, a, w.active.generation)
	} else if a.Total != len(w.active.owners) || w.active.owners[a.Partition] != p.session.ID() {
		w.fail("S6: %s starts %s, and the layout is %v", p.name, a, w.active.owners)
	}
	if o := w.rival(i, a); o != nil {
		w.fail("S1: %s starts %s and %s runs %s", p.name, a, o.name, o.run.assignment)
	}
	p.run = &groupRun{
		assignment: a,
		lane:       *NewLane(a, LaneConfig{Kind: w.kind, Batch: 2, Poll: 5 * time.Millisecond}),
	}
	w.lane(i, LaneAnswer{})
}

// rival returns another process that runs what the assignment says, and has no
// excuse.
func (w *groupWorld) rival(i int, a Assignment) *groupProc {
	for j, o := range w.all() {
		if j != i && o.run != nil && !o.run.excused && overlap(a, o.run.assignment) {
			return o
		}
	}
	return nil
}

// lane tells a lane how its action went. It reads, and begins transactions, at
// once: nobody sees that.
func (w *groupWorld) lane(i int, answer LaneAnswer) {
	p := w.own(i)
	r := p.run
	r.action = r.lane.Next(testStart, w.signals(p), answer)
	for r.action.Do == LaneRead || r.action.Do == LaneOpen {
		r.action = r.lane.Next(testStart, w.signals(p), w.laneDoes(i))
	}
	if r.lane.track != nil && r.lane.track != &r.track {
		r.track = *r.lane.track
		r.lane.track = &r.track
	}
	r.handled &= w.bits(r.track.pending)
	if r.action.Do == LaneHandle {
		if o := w.rival(i, r.assignment); o != nil { // the excuse is for the event in hand
			w.fail("S1: %s begins an event of %s and %s runs %s", p.name, r.assignment, o.name, o.run.assignment)
		}
	}
	if n := w.txOf(i); n >= 0 && r.action.Rollback {
		w.endTx(n)
	}
	if r.action.Do != LaneEnd {
		return
	}
	switch r.action.End {
	case EndFenced:
		p.inputs = append(p.inputs, Refused{r.assignment.Generation})
	case EndRequested:
	default:
		w.fail("the lane of %s gives up: %v", p.name, r.action)
	}
	if !w.bugs.stoppedAtOnce && (!w.bugs.vacatesAtOnce || !p.leaving) {
		p.inputs = append(p.inputs, Stopped{r.assignment.Generation, r.action.Settled || w.bugs.alwaysSettled})
	}
	p.run = nil
}

// laneDoes carries out a lane's action and returns the answer.
func (w *groupWorld) laneDoes(i int) (a LaneAnswer) {
	p := w.own(i)
	r := p.run
	k := r.assignment.Partition
	if w.isCut(p) && asksDatabase(r.action.Do) {
		w.disown(i)
		return LaneAnswer{Failure: Passing}
	}
	switch r.action.Do {
	case LaneLoad, LaneFind:
		if k < len(w.rows) {
			a.Found = Found{Generation: w.rows[k].generation, Checkpoint: w.rows[k].checkpoint, Exists: true}
		}
		if w.bugs.silenceIsFailure && r.action.Do == LaneFind {
			a.Found = Found{Generation: r.assignment.Generation, Checkpoint: r.track.checkpoint, Exists: true}
		}
	case LaneRead:
		for _, e := range groupEvents[:w.appended] {
			if e.Position > r.action.After && len(a.Page) < r.action.Limit {
				a.Page = append(a.Page, e)
			}
		}
	case LaneOpen:
		r.handled = 0 // what was not committed is rolled back
	case LaneHandle:
		r.handled |= w.bits(r.track.pending[r.action.First : r.action.First+r.action.Count])
	case LaneSave:
		if !w.save(w.saving(p)) {
			return LaneAnswer{Failure: Fenced}
		}
	case LaneWrite:
		if !w.fits(k, r.assignment.Generation, r.action.From) {
			return LaneAnswer{Failure: Fenced}
		}
		w.txs = append(slices.Clip(w.txs), lockingTx{
			owner: int8(i), partition: int8(k), generation: r.assignment.Generation,
			to: r.action.To, events: r.handled, since: w.at,
		})
	case LaneCommit:
		n := w.txOf(i)
		if n < 0 {
			return LaneAnswer{Failure: Passing} // the server has ended it
		}
		w.commit(n)
	}
	return a
}

// fits is the fence.
func (w *groupWorld) fits(partition int, generation int64, from Checkpoint) bool {
	return partition < len(w.rows) && w.rows[partition].checkpoint.Position == from.Position &&
		(w.rows[partition].generation == generation || w.bugs.fenceWithoutGeneration)
}

// A saving is a statement that moves a checkpoint and commits.
type saving struct {
	by         string // the process
	partition  int
	generation int64
	from, to   Checkpoint
	events     uint
}

// saving returns what a worker's lane is to save.
func (w *groupWorld) saving(p *groupProc) saving {
	r := p.run
	return saving{p.name, r.assignment.Partition, r.assignment.Generation, r.action.From, r.action.To, r.handled}
}

// save carries it out, if the fence lets it through.
func (w *groupWorld) save(s saving) bool {
	if !w.fits(s.partition, s.generation, s.from) {
		return false
	}
	for _, p := range w.all() {
		if r := p.run; r != nil && p.name != s.by && r.assignment.Generation == s.generation && r.handled&s.events != 0 {
			w.fail("S3: %s has handled once more what is committed for %s", p.name, s.by)
		}
	}
	w.txs = append(slices.Clip(w.txs), lockingTx{
		owner: noOwner, partition: int8(s.partition), generation: s.generation, to: s.to, events: s.events,
	})
	w.commit(len(w.txs) - 1)
	return true
}

// A layout is who has which partition of a generation.
type layout struct {
	generation int64
	owners     []WorkerID
}

type checkpointRow struct {
	generation int64
	checkpoint Checkpoint
}

// A lockingTx has written a checkpoint and not yet ended.
type lockingTx struct {
	owner      int8 // a process whose lane knows of it, or noOwner
	flying     bool // COMMIT is on its way, and nobody waits for the answer
	partition  int8
	generation int64
	to         Checkpoint
	events     uint // that it commits
	since      time.Duration
}

const noOwner = -1

// A lateRequest was given up by who sent it, and will be carried out: a request,
// or a lane's.
type lateRequest struct {
	Request
	saves bool
	saving
	by time.Duration
}

// shown returns the group as the answer to a request shows it.
func (w *groupWorld) shown(before Group, r Request) Group {
	g := w.group
	i, o := before.index(r.Worker), slices.IndexFunc(g.Members, func(m Member) bool { return m.ID != r.Worker })
	if w.crossing && r.Heartbeat && i >= 0 && o >= 0 && before.Members[i].Holds != 0 && before.Members[i].Holds <= r.Stopped {
		g.Members = slices.Clone(g.Members)
		g.Members[o].Holds = max(1, g.Members[o].Holds)
	}
	return g
}

// carryOut is what store.Sync does in its transaction.
func (w *groupWorld) carryOut(r Request) (_ View, ok bool) {
	now, d := w.now(), Decision{StepAt: w.stepAt}
	before := w.group
	if w.earlier && r.Worker[1:] == "2" {
		// It does not know the column, so it leaves that as it is.
		vacant := map[WorkerID]bool{}
		w.group.Members = slices.Clone(w.group.Members)
		for i := range w.group.Members {
			m := &w.group.Members[i]
			vacant[m.ID], m.Vacant = m.Vacant, false
		}
		defer func() {
			w.group.Members = slices.Clone(w.group.Members)
			for i := range w.group.Members {
				w.group.Members[i].Vacant = vacant[w.group.Members[i].ID]
			}
		}()
		before = w.group
	}
	g := Apply(before, r, now)
	if !r.Heartbeat {
		g.Floor = 0
		for _, row := range w.rows {
			g.Floor = max(g.Floor, row.generation)
		}
		if w.bugs.stepIgnoresHolds {
			for i := range g.Members {
				g.Members[i].Holds = 0
			}
		}
		g, d = Step(g, now, r.Watch)
		if d.Activated && len(w.txs) > 0 && !w.bugs.activationLocksNothing {
			return View{}, false
		}
		if before.Spares(r, g) {
			v := g.View(r.Worker, now, d)
			v.ReadOnly = true
			return v, true
		}
		w.stepAt = d.StepAt
		if w.bugs.placeStays {
			for _, t := range d.Taken {
				g.Members = append(slices.Clip(g.Members), before.Members[before.index(t.From)])
			}
		}
		w.takeOver(d)
		w.checkVacancies(g)
		if g.Generation < w.group.Generation {
			w.fail("S5: the generation fell from %d to %d", w.group.Generation, g.Generation)
		}
	}
	w.group = g
	if d.Activated {
		w.handOver()
	}
	v := w.shown(before, r).View(r.Worker, now, d)
	if w.bugs.restless && r.Heartbeat && g.Phase == Active && g.Generation < 4 {
		w.group.open("no reason")
	}
	if w.bugs.viewAlwaysMay {
		v.Holds = v.Generation
	}
	return v, true
}

// takeOver notes who has which place now.
func (w *groupWorld) takeOver(d Decision) {
	for _, t := range d.Taken {
		k := slices.Index(w.active.owners, t.From)
		if k >= 0 && !d.Opened {
			w.active.owners = slices.Clone(w.active.owners)
			w.active.owners[k] = t.By
		}
	}
}

// checkVacancies makes sure that nobody runs a vacant place.
func (w *groupWorld) checkVacancies(g Group) {
	for _, p := range w.all() {
		if _, vacant := g.Vacancy(p.session.ID()); vacant && p.life == alive && p.run != nil && !p.run.excused {
			w.fail("S1: %s leaves a vacancy, and runs %s", p.name, p.run.assignment)
		}
	}
}

func (w *groupWorld) handOver() {
	g := w.group
	w.active = layout{g.Generation, make([]WorkerID, g.Total)}
	for _, m := range g.Members {
		if len(m.Partitions) == 0 {
			continue
		}
		k := int(only(m.Partitions))
		if k >= g.Total || w.active.owners[k] != "" {
			w.fail("S6: %s", g)
			return
		}
		w.active.owners[k] = m.ID
	}
	if len(g.Members) > 0 && slices.Contains(w.active.owners, "") {
		w.fail("S6: a partition without an owner: %s", g)
	}
	old := make([]Checkpoint, len(w.rows))
	for k, row := range w.rows {
		old[k] = row.checkpoint
	}
	w.rows = nil
	for _, c := range w.handoff(old, g.Total) {
		w.rows = append(w.rows, checkpointRow{g.Generation, c})
	}
}

// handoff remembers what Handoff returned: it goes through all slots.
func (w *groupWorld) handoff(old []Checkpoint, total int) []Checkpoint {
	k := keyWriter{}
	k.number(int64(total))
	for _, c := range old {
		k.number(c.Position, int64(w.marksOf(c)))
	}
	if next, known := w.handed[string(k.b)]; known {
		return next
	}
	next := Handoff(old, total)
	for i := range next {
		if w.bugs.handoffTakesHighest && len(next[i].Ahead) > 0 {
			for _, m := range next[i].Ahead {
				next[i].Position = max(next[i].Position, m.Position)
			}
		}
		if w.bugs.handoffTakesHighest || w.bugs.handoffTakesLowest {
			next[i].Ahead = nil
		}
		n := slices.IndexFunc(w.marks, func(m []Mark) bool { return slices.Equal(m, next[i].Ahead) })
		if n < 0 {
			n = len(w.marks)
			w.marks = append(w.marks, next[i].Ahead)
		}
		next[i].Ahead = w.marks[n]
	}
	w.handed[string(k.b)] = next
	return next
}

// marksOf returns the number of a checkpoint's marks, which are always the
// very ones that handoff has returned.
func (w *groupWorld) marksOf(c Checkpoint) int {
	if len(c.Ahead) == 0 {
		return 0
	}
	return slices.IndexFunc(w.marks, func(m []Mark) bool { return len(m) > 0 && &m[0] == &c.Ahead[0] })
}

// bits returns the events at the positions.
func (w *groupWorld) bits(positions []int64) (bits uint) {
	for _, at := range positions {
		bits |= 1 << slices.IndexFunc(groupEvents, func(e Key) bool { return e.Position == at })
	}
	return bits
}

// txOf returns which transaction is a process's, or -1.
func (w *groupWorld) txOf(i int) int {
	return slices.IndexFunc(w.txs, func(tx lockingTx) bool { return int(tx.owner) == i })
}

// disown has a process forget its transaction, which then ends by itself.
func (w *groupWorld) disown(i int) {
	if n := w.txOf(i); n >= 0 {
		w.txs = slices.Clone(w.txs)
		w.txs[n].owner = noOwner
	}
}

func (w *groupWorld) endTx(n int) {
	w.txs = slices.Delete(slices.Clone(w.txs), n, n+1)
}

func (w *groupWorld) commit(n int) {
	tx := w.txs[n]
	w.endTx(n)
	if tx.generation < w.active.generation {
		w.fail("S5: a commit of generation %d, and generation %d is active", tx.generation, w.active.generation)
	}
	if int(tx.partition) < len(w.rows) {
		w.rows = slices.Clone(w.rows)
		w.rows[tx.partition].checkpoint = tx.to
	}
	for i, e := range groupEvents {
		if tx.events&(1<<i) == 0 {
			continue
		}
		if w.committed&(1<<i) != 0 {
			w.fail("S3: event %d is committed twice", e.Position)
		}
		for j, later := range groupEvents[i+1:] {
			if later.Slot == e.Slot && w.committed&(1<<(i+1+j)) != 0 {
				w.fail("S4: event %d is committed after event %d of its aggregate", e.Position, later.Position)
			}
		}
		w.committed |= 1 << i
	}
}
