package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A world is one run of a plan: workers, writers of events, a database, a network and
// faults. It has one thread, one queue of tasks, and a clock that jumps from each task to
// the next.
type world struct {
	plan  plan
	rules rules
	db    database

	at     time.Duration // true time since the start
	offset time.Duration // of the database's clock from the true time
	queue  tasks
	order  int
	rand   *rand.Rand // of the environment
	// operator is the source of chance of the operator who handles parked events.
	operator *rand.Rand
	// ordering is the source of chance of the operator who orders events parked. numbers
	// are those orders.
	ordering *rand.Rand
	numbers  []parkNumber
	workers  []*worker
	started  int // the number of workers so far
	members  map[protocol.WorkerID]bool
	vacant   map[protocol.WorkerID]bool // incarnations that have left their places vacant
	// published are the numbers of liveness connections in the rows of workers.
	published map[protocol.WorkerID]int32
	holds     map[int][]string // held projections, by replica set
	version   int              // of the deployed program
	slots     map[string]int
	calls     int // the number of handler calls
	down      bool
	denied    []string // calls whose privilege is missing
	healed    bool
	over      bool
	writers   []*writer // with open transactions

	// subject is the user's projection; judge checks its read model.
	subject interface {
		// aggregate returns the aggregate of the n-th event, and whether there is one.
		aggregate(n int) (string, bool)
		handle(l *lane, index map[int64]int, c *call) error
	}
	judge func() *violation
	index map[int64]int // position → index of the user's event

	// tracing: facts have texts.
	tracing bool
	history history
	checker *checker
	found   *violation
}

// rules are what mutants change: each field is a bug around the production code. The zero
// value is the correct code.
type rules struct {
	memory memoryRules

	// A join is decided by an old reading, and the lease counts from the join.
	leaseFromJoin    bool
	leaseFromReply   bool // the lease counts from the reply, not from the request
	leaseUnenforced  bool // the worker does not check its own lease
	stopsTooEarly    bool // a stop is reported before the handlers have returned
	vacatesAtOnce    bool // a leaver reports its place vacant as soon as it is asked to stop
	alwaysSettled    bool // a worker leaves its place vacant although a commit may be late
	sameIdentity     bool // a new incarnation keeps the old name
	unknownIsFailure bool // a lost reply to COMMIT counts as a failure
	unknownIsSuccess bool // a lost reply to COMMIT counts as a success
	asksOnce         bool // assumptions are not checked at a gap
	passesGaps       bool // the reader returns whatever it sees
	readsOnce        bool // after the wait, the reader returns what it had read before
	retriesEmpty     bool // an undone commit is tried again in a new transaction without the handlers' writes
	lane             func(protocol.LaneConfig) protocol.LaneConfig
	unparksApart     bool                          // a row is deleted before the transaction of its retry has committed
	keepsTransaction bool                          // writes of a failed handler are not rolled back before the next call
	hears            func(*feed, protocol.Hearing) // replaces the feed's reaction to notifications
	unprovenBegins   bool                          // handlers begin without a proof of liveness
	// A lane starts from a checkpoint that was read for an earlier generation.
	startsFromAnyLook bool
	looksAtNobody     bool // a check of liveness locks does not show the group
	runsPaused        bool // lanes of paused projections are started

	wrongWindow       bool // a lane gets the page that was read last, even if it is of another window
	skipsDropped      bool // a lane whose page is gone goes on where the others are
	countsScopeAlone  bool // a page of the program's own event store reaches as far as its events within the scope
	passesWholeLimit  bool // such a page reaches as far as a full page could
	trustsScopedPages bool // the reader of a scope treats its page as complete
	startsAtHighest   bool // a projection that starts now starts above the highest position
	startsEarly       bool // a projection that starts now starts where the stream ended before its worker joined
	startsAtGap       bool // a projection that starts now starts at the first gap
	passesScopedGaps  bool // a reader of a scope finds gaps and passes them
	forgetsScope      bool // events from a read of the whole stream are not filtered by scope
	mixesEventTypes   bool // scopes that differ only in event types are read as one

	failsPages      bool // a page with an unreadable event fails as a whole
	handsBadOut     bool // the handler gets an unreadable event
	skipsBad        bool // an unreadable event counts as handled
	keepsUnreadable bool // an unreadable event is not read again before another attempt

	dropsOwnSlot       bool // one of a process's slots is not read
	countsOnePartition bool // a process reads only the slots of its first partition

	// These replace a session's timing, its inputs (nil: dropped) and its actions, and what
	// a lane sees and is answered. nil changes nothing.
	timing  func(protocol.Timing) protocol.Timing
	input   func(*worker, protocol.Input) protocol.Input
	action  func(*worker, protocol.Action) protocol.Action
	signals func(*lane, protocol.Signals) protocol.Signals
	replay  func(l *lane, is bool) bool // replaces what a handler is told
	// standing changes what a promoter sees of the two versions.
	standing func(*protocol.PromotionAnswer)
	answer   func(*lane, protocol.LaneAnswer) protocol.LaneAnswer
}

// epoch is the time at which every world begins.
var epoch = time.Date(2001, 2, 3, 4, 5, 6, 789_012_000, time.UTC)

// A task happens later. Of two tasks at one time, the one that was planned first comes
// first.
type task struct {
	at    time.Duration
	order int
	f     func()
}

// before orders tasks.
func (t *task) before(o *task) bool { return t.at < o.at || t.at == o.at && t.order < o.order }

// tasks is a heap. A world spends most of its time on it.
type tasks []*task

func (q *tasks) push(t *task) {
	*q = append(*q, t)
	h := *q
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !t.before(h[parent]) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = t
}

func (q *tasks) pop() *task {
	h := *q
	first, last := h[0], h[len(h)-1]
	h[len(h)-1] = nil
	h = h[:len(h)-1]
	*q = h
	i := 0
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(last) {
			break
		}
		h[i] = h[child]
		i = child
	}
	if len(h) > 0 {
		h[i] = last
	}
	return first
}

// newWorld makes the world of a plan. open makes its database, which uses the world's
// clock.
func newWorld(p plan, r rules, open func(w *world) (database, error)) (*world, error) {
	w := &world{plan: p, rules: r, rand: rand.New(rand.NewPCG(p.seed, 1)), operator: rand.New(rand.NewPCG(p.seed, 5)), ordering: rand.New(rand.NewPCG(p.seed, 15)), slots: map[string]int{}, index: map[int64]int{}, members: map[protocol.WorkerID]bool{}, vacant: map[protocol.WorkerID]bool{}, holds: map[int][]string{}, published: map[protocol.WorkerID]int32{}}
	slowest := p.slowest()
	w.history.setup = setup{
		seed: p.seed, transactional: map[string]bool{}, scopes: map[string]scope{}, settle: p.settle(),
		timing: slowest, bounds: store.BoundsOf(slowest.Lease), drift: float64(p.drift) / 1e6,
		attempts: map[string]int{}, latency: p.network.latency, poll: p.poll, typical: 10 * p.handlers.typical, contended: p.hold && p.network.holdCommit > 0 || p.starting, starting: p.starting,
		unreadable: func(e event) bool { return p.rewritten == 0 && p.unread(e) }, parks: map[string]bool{},
	}
	for _, program := range p.programs {
		w.history.setup.final, w.history.setup.sets = nil, map[string]int{}
		for _, q := range program.projections {
			w.history.setup.transactional[q.name] = q.kind.InTransaction()
			w.history.setup.scopes[q.name] = q.scope
			w.history.setup.parks[q.name] = q.parks > 0 && p.maxParked >= 1000
			w.history.setup.attempts[q.name] = q.parks
			w.history.setup.final = append(w.history.setup.final, q.name)
			w.history.setup.sets[q.name] = q.set
		}
	}
	var err error
	w.history.setup.rebuilds = p.rebuilds()
	if w.db, err = open(w); err != nil {
		return nil, err
	}
	w.checker = newChecker(w.history.setup)
	return w, nil
}

// tasksMax is more than any world needs. A world that makes no progress ends here.
const tasksMax = 50_000_000

// run plays the world to its end or to the first violation.
func (w *world) run() error {
	for i, at := range w.plan.workers {
		w.after(at, func() { w.start(i % w.plan.sets) })
	}
	for _, f := range w.plan.faults {
		w.after(f.at, func() { w.strike(f) })
	}
	for _, o := range w.plan.orders {
		w.after(o.at, func() { w.give(o) })
	}
	if b := w.plan.rebuild; b != nil {
		for _, a := range b.asks {
			w.after(a.at, func() { w.promote(a, false) })
		}
		if b.retire > 0 {
			w.after(b.retire, w.retire)
		}
	}
	w.after(0, w.append)
	if len(w.parking()) > 0 {
		w.after(w.plan.operate, w.operate)
	}
	if w.plan.orderParks > 0 {
		w.after(w.plan.orderParks, w.orderPark)
	}
	heal := w.plan.length
	t := w.plan.slowest()
	quiet := max(5*t.Heartbeat, t.Lease)
	w.after(heal, w.heal)
	for range w.plan.crowd {
		heal += w.plan.crowdEvery
		w.after(heal, func() { w.start(0) })
	}
	w.after(heal+w.plan.settle(), func() { w.record(fact{kind: settled}) })
	if l := w.plan.listening; l != nil && w.subject == nil {
		quiet = max(quiet, (lateFor+10)*t.Heartbeat)
		for _, late := range l.late {
			w.after(heal+w.plan.settle()+late, w.appendLate)
		}
	}
	w.after(heal+w.plan.settle()+quiet, w.end)
	for w.found == nil && !w.over {
		t := w.queue.pop()
		w.at = t.at
		if t.f != nil {
			t.f()
		}
		if w.order > tasksMax {
			return fmt.Errorf("seed %d: the world makes no progress: it is at %s after %d tasks", w.plan.seed, w.at, w.order)
		}
	}
	return nil
}

func (w *world) end() {
	w.recordParkedLeft()
	w.recordOrdersLeft()
	w.record(fact{kind: ended})
	if w.found == nil && w.judge != nil {
		w.found = w.judge()
	}
	w.over = true
}

// now returns the time of the database's clock.
func (w *world) now() time.Time { return epoch.Add(w.at + w.offset) }

// after plans f for later. stop cancels it.
func (w *world) after(d time.Duration, f func()) (stop func()) {
	w.order++
	t := &task{at: w.at + max(0, d).Truncate(time.Microsecond), order: w.order, f: f}
	w.queue.push(t)
	return func() { t.f = nil }
}

// record records a fact and has it judged.
func (w *world) record(f fact) {
	f.step, f.at = len(w.history.facts), w.at
	w.history.facts = append(w.history.facts, f)
	if w.found == nil {
		w.found = w.checker.observe(f)
	}
}

// text formats a text, but only if texts are wanted.
func (w *world) text(format string, args ...any) string {
	if !w.tracing {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// start starts a worker process of a replica set with the deployed program.
func (w *world) start(set int) *worker {
	w.started++
	p := newWorker(w, w.started, w.version, set)
	w.workers = append(w.workers, p)
	p.record(fact{kind: workerStarts, timing: p.timing, text: w.text("version %d", p.version)})
	p.post(func() { p.input(protocol.Tick{}) })
	p.after(p.timing.Heartbeat, p.observe)
	if w.plan.listening != nil {
		p.post(p.listen)
	}
	return p
}

// restart starts a worker after a while, as a process supervisor does.
func (w *world) restart(set int, after time.Duration) {
	w.after(after, func() { w.start(set) })
}

// alive returns the running workers, in the order in which they were started.
func (w *world) alive() []*worker {
	return slices.DeleteFunc(slices.Clone(w.workers), func(p *worker) bool { return p.dead || p.returned })
}

// gone removes a process.
func (w *world) gone(p *worker, why string) {
	p.dead = true
	w.workers = slices.DeleteFunc(w.workers, func(q *worker) bool { return q == p })
	p.record(fact{kind: workerGone, text: why})
}

// strike carries out a fault.
func (w *world) strike(f fault) {
	switch f.kind {
	case join:
		w.start(f.worker % w.plan.sets)
		return
	case stranger:
		set := f.worker % w.plan.sets
		if m, ok := w.db.(*memoryDatabase); ok && m.reads(setName(set)) != "" {
			w.start(set).stream = strangeTable
		}
		return
	case cacheNumbers:
		w.cacheNumbers(f.length)
		return
	case databaseDown:
		w.databaseDown(f.length)
		return
	case clockStep:
		w.offset += f.length
		w.record(fact{kind: faultClockStep, length: f.length})
		return
	case deploy:
		w.deploy(f.length)
		return
	case revoke:
		w.revoke(denials[f.worker%len(denials)], f.length)
		return
	}
	alive := w.alive()
	if len(alive) == 0 {
		return
	}
	p := alive[f.worker%len(alive)]
	switch f.kind {
	case crash:
		p.record(fact{kind: faultCrash})
		p.crash()
		w.restart(p.set, f.length)
	case leave:
		p.leave(func() { w.restart(p.set, f.length) })
	case freeze:
		p.freeze(f.length, "")
	case freezeAtCommit:
		p.freezeAtCommit = f.length
	case freezeInHandler:
		p.freezeInHandler = f.length
	case freezeAtPark:
		p.freezeAtPark = f.length
	case delayPark:
		p.delayPark = p.timing.Patience() + f.length
	case misroute:
		p.misrouted = true
		for len(p.pool) > 0 { // it will open new ones
			p.pool[0].drop(false)
		}
		w.after(f.length, func() { p.misrouted = false })
	case congestion:
		p.congest(f.length)
	case cutOff:
		p.cutOff(f.length)
	case endSession:
		p.loseOwn()
	case blockSession:
		p.block(f.length)
	case fakeLocks:
		if m, ok := p.db.(*memoryDatabase); ok {
			w.record(fact{kind: faultOther, text: locksFaked})
			m.fake()
		}
	case stutter:
		p.stutter(f.length)
	case endLane:
		p.loseLane(f.worker)
	case endSessionCutOff:
		p.loseOwn()
		p.cutOff(f.length)
	}
}

// deploy replaces each worker by one of the next version, one after another at intervals of
// every; 0: at any time.
func (w *world) deploy(every time.Duration) {
	if w.version+1 >= len(w.plan.programs) {
		return
	}
	w.version++
	w.record(fact{kind: faultDeploy, text: w.text("version %d", w.version)})
	if every == 0 {
		every = between(w.rand, 0, w.plan.timing.Lease)
	}
	for i, p := range w.alive() {
		w.after(time.Duration(i)*every, func() {
			if !p.dead {
				p.leave(func() { w.restart(p.set, 0) })
			}
		})
	}
}

// revoke takes a privilege away for a while.
func (w *world) revoke(calls []string, length time.Duration) {
	if w.denied != nil {
		return
	}
	w.denied = calls
	w.record(fact{kind: faultOther, length: length, text: "no privilege for " + strings.Join(calls, ", ")})
	w.after(length, func() { w.denied = nil })
}

// cacheNumbers makes the sequence cache numbers for a while, unless a user's events must
// stay in order.
func (w *world) cacheNumbers(length time.Duration) {
	m, ok := w.db.(*memoryDatabase)
	if !ok || w.subject != nil {
		return
	}
	m.cache(true)
	w.record(fact{kind: faultOther, length: length, text: numbersCached})
	w.after(length, func() { m.cache(false) })
}

const (
	numbersCached = "the sequence caches numbers"
	strangeTable  = "another table"
)

// databaseDown restarts the database: its connections are gone, and new ones fail for a
// while.
func (w *world) databaseDown(length time.Duration) {
	if w.down {
		return
	}
	if w.subject != nil { // a user's events must stay in order
		for _, t := range slices.Clone(w.writers) {
			w.endWriter(t)
		}
	}
	w.down = true
	w.record(fact{kind: faultDatabaseDown, length: length})
	w.db.restart()
	for _, p := range w.workers {
		p.disconnect()
	}
	w.after(length, func() {
		w.down = false
		w.record(fact{kind: faultDatabaseUp})
	})
}

// heal ends the faults. Some workers that are frozen or cut off stay so: no worker may hang
// the others (L3).
func (w *world) heal() {
	if w.subject != nil {
		w.down = false
		w.appendRest()
	}
	w.healed, w.denied = true, nil
	if m, ok := w.db.(*memoryDatabase); ok {
		m.cache(false)
	}
	w.record(fact{kind: healed})
	for w.version+1 < len(w.plan.programs) {
		w.version++ // a deploy that had not begun
	}
	healthy := make([]int, w.plan.sets)
	for _, p := range w.alive() {
		p.freezeAtCommit, p.freezeInHandler, p.freezeAtPark, p.delayPark = 0, 0, 0, 0
		switch {
		case (p.frozen || p.cut) && p.chance(500):
			p.lost = true
		case p.version != w.version && !p.leaving:
			p.thaw()
			p.mend()
			p.leave(func() { w.restart(p.set, 0) })
		default:
			p.misrouted = false
			p.thaw()
			p.mend()
			if !p.leaving {
				healthy[p.set]++
			}
		}
	}
	for set, n := range healthy {
		if n == 0 {
			w.start(set)
		}
	}
	w.lift()
	if b := w.plan.rebuild; b != nil {
		w.after(w.plan.askedLast(), func() { w.promote(ask{at: w.at, back: len(b.asks)%2 == 0 && w.plan.runsLast(b.live)}, true) })
	}
}

// A writer is a transaction that appends events.
type writer struct {
	conn   connection
	events []event
	commit bool // commit at the end, not roll back
	ended  bool
	first  bool // it took its positions first
	end    func(done func(error))
}

// append begins a transaction that appends a few events, and plans the next one.
func (w *world) append() {
	if w.healed {
		return
	}
	a := w.plan.appends
	w.after(between(w.rand, 0, 2*a.every), w.append)
	if w.down {
		return
	}
	t := &writer{conn: w.db.connect(), commit: !chance(w.rand, a.lose)}
	for range 1 + w.rand.IntN(4) {
		if !w.insert(t) {
			break
		}
	}
	if m, ok := t.conn.(*memoryConnection); ok && w.subject == nil {
		if t.first = chance(w.rand, a.first); t.first {
			m.first()
		}
		if chance(w.rand, a.savepoint) && len(t.events) > 0 {
			m.undo()
			w.record(fact{kind: rolledBack, events: t.events, text: toSavepoint})
			t.events = nil
		}
	}
	hold := time.Duration(0)
	switch {
	case chance(w.rand, a.long):
		hold = between(w.rand, 0, 2*w.plan.timing.Lease)
	case chance(w.rand, a.late):
		hold = between(w.rand, 0, w.plan.timing.Heartbeat)
	}
	t.end = t.conn.commit
	if !t.commit {
		t.end = func(done func(error)) { done(errReset) }
	} else if chance(w.rand, a.prepare) {
		if finish, err := t.conn.prepare(); err == nil {
			t.commit = w.rand.IntN(2) == 0
			t.end = func(done func(error)) { done(finish(t.commit)) }
		}
	}
	w.writers = append(w.writers, t)
	w.after(min(hold, w.plan.length-w.at), func() { w.endWriter(t) })
}

// These are texts of facts about appends.
const (
	positionsFirst = "took its positions first"
	toSavepoint    = "went back to a savepoint"
)

// insert adds an event to a transaction: the user's next one, or one of any aggregate.
// Events of the user are never rolled back.
func (w *world) insert(t *writer) bool {
	aggregate, n := "", len(w.index)
	if w.subject == nil || !t.commit {
		aggregate = fmt.Sprint("a", w.rand.IntN(max(1, w.plan.appends.aggregates)))
	} else {
		var more bool
		if aggregate, more = w.subject.aggregate(n); !more {
			return false
		}
	}
	position, err := t.conn.insert(aggregate)
	if err != nil {
		return false
	}
	t.events = append(t.events, event{position: position, aggregate: aggregate, slot: w.slot(aggregate)})
	if w.subject != nil && t.commit {
		w.index[position] = n
	}
	return true
}

func (w *world) endWriter(t *writer) {
	if t.ended {
		return
	}
	t.ended = true
	w.writers = slices.DeleteFunc(w.writers, func(o *writer) bool { return o == t })
	t.end(func(err error) {
		kind := appended
		if err != nil || !t.commit {
			kind = rolledBack
		}
		if len(t.events) > 0 {
			f := fact{kind: kind, events: t.events}
			if t.first {
				f.text = positionsFirst
			}
			w.record(f)
		}
		if kind == appended {
			w.notify()
		}
		t.conn.close()
	})
}

// appendRest commits the rest of the user's events.
func (w *world) appendRest() {
	for _, t := range slices.Clone(w.writers) {
		w.endWriter(t)
	}
	t := &writer{conn: w.db.connect(), commit: true}
	t.end = t.conn.commit
	for w.insert(t) {
	}
	w.endWriter(t)
}

// slot returns the slot of an aggregate. It is cached.
func (w *world) slot(aggregate string) int {
	s, ok := w.slots[aggregate]
	if !ok {
		s = protocol.SlotOf(aggregate)
		w.slots[aggregate] = s
	}
	return s
}
