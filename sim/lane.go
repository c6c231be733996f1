package sim

import (
	"database/sql/driver"
	"errors"
	"slices"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A lane carries out what protocol.Lane decides, as runner.go does.
type lane struct {
	p            *worker
	run          *run
	id           store.Lane
	kind         protocol.LaneKind
	core         *protocol.Lane
	subscription *subscription

	events []event // the core's pending events
	again  []event // the parked event under retry
	parks  int     // events after so many failures
	page   []event // that was read last
	replay bool    // the events in hand are replays
	link   *link   // of the open transaction

	doing protocol.LaneDo
	// handled are the events of the batch that the projection has handled.
	handled []event

	shown       protocol.Found // the checkpoint that came with the assignment, if it did
	call        *call          // the handler call that runs
	suspensions int            // of the run, when the latest action was decided
	abort       func(error)    // gives up the call to the database that is under way
	retries     bool           // the pause is before another attempt
	pausing     int            // the number of pauses; a timer ends only the latest one
	paused      bool
	resting     bool // it pauses until there is something new
	dies        bool // it ends unreported once nothing is in hand

	unparks  int64               // the parked event that the open transaction deletes; 0: none
	from, to protocol.Checkpoint // of the commit under way
	unknown  bool                // whether it has happened, after its reply was lost
}

func newLane(p *worker, r *run, q projection, a protocol.Assignment) *lane {
	w := p.w
	l := &lane{p: p, run: r, id: store.Lane{Projection: q.name, Assignment: a}, kind: q.kind}
	l.parks = q.parks
	l.subscription = p.feed.subscribe(l, q.scope)
	c := protocol.LaneConfig{
		Kind: q.kind, Batch: w.plan.batch, Poll: w.plan.poll, Lease: p.timing.Lease, Retry: w.plan.retry, Attempts: 1,
	}
	switch {
	case q.parks > 0:
		c.OnFailure, c.Attempts, c.MaxParked = protocol.ParkEvents, q.parks, w.plan.maxParked
		c.LoadAll = 2 // so that both kinds of looks happen
	case w.plan.stopOnFailure:
		c.OnFailure = protocol.StopOnFailure
	}
	if bend := w.rules.lane; bend != nil {
		c = bend(c)
	}
	l.core = protocol.NewLane(a, c)
	return l
}

func (l *lane) signals() protocol.Signals {
	s := protocol.Signals{
		Asked:     l.run.draining,
		Canceled:  l.run.canceled,
		LeaseOver: !l.p.w.rules.leaseUnenforced && l.p.session.Terms().Over(l.p.now()),
		Unproven:  l.p.unproven(),
	}
	if bend := l.p.w.rules.signals; bend != nil {
		s = bend(l, s)
	}
	return s
}

// next gives the answer to the core and carries out the next action.
func (l *lane) next(a protocol.LaneAnswer) {
	if l.dies && l.core.Pending() == 0 && !l.p.w.healed {
		l.die()
		return
	}
	action := l.core.Next(l.p.now(), l.signals(), a)
	for _, i := range l.core.Kept() {
		l.events = append(l.events, l.page[i])
	}
	l.events = l.events[len(l.events)-l.core.Pending():]
	if action.Rollback && l.link != nil && !(l.p.w.rules.keepsTransaction && action.Why == protocol.HandlerFailed) {
		l.link.drop(false)
		l.link = nil
	}
	if in := (protocol.Thwarted{Vain: action.Thwarted}); in.Vain > 0 {
		l.p.post(func() { l.p.input(in) })
	}
	l.doing = action.Do
	l.do(action)
}

// answer passes on how a call ended.
func (l *lane) answer(err error, a protocol.LaneAnswer) {
	facts, failure := l.core.Judge(l.p.now(), store.FactsOf(err), l.cancelled(), l.p.session.Terms())
	a.Failure, a.Jitter = failure, l.p.rand.Float64()
	if facts.Idled {
		l.p.record(l.fact(leftIdle, 0, 0))
	}
	if a.Failure == protocol.Fault && l.doing != protocol.LaneHandle {
		f := l.fact(undone, l.from.Position, l.to.Position)
		f.events, f.text = slices.Clone(l.handled), "at "+l.doing.String()
		if facts.Ended {
			f.text = transactionEnded
		}
		l.p.record(f)
	}
	if bend := l.p.w.rules.answer; bend != nil {
		a = bend(l, a)
	}
	l.next(a)
}

// transactionEnded is the text of an undone fact after the handler has ended its
// transaction.
const transactionEnded = "it had ended its transaction"

// cancelled reports whether the handler's context was cancelled since the call began.
func (l *lane) cancelled() bool { return l.suspensions != l.run.suspensions || l.run.canceled }

func (l *lane) do(a protocol.LaneAction) {
	patience := l.p.timing.Patience()
	switch a.Do {
	case protocol.LaneLoad:
		l.load(patience)
	case protocol.LaneFind:
		l.find(patience)
	case protocol.LaneRead:
		l.subscription.read(a.After, a.Limit)
	case protocol.LaneFollow:
		l.follow(a.Fresh, patience)
	case protocol.LaneOpen:
		if l.link != nil { // a mutant has kept it
			l.p.post(func() { l.answer(nil, protocol.LaneAnswer{}) })
			return
		}
		l.link, l.unparks = l.p.borrow(), 0
		l.p.began = true
		l.ask(l.link, "begin", patience, func(c connection, done func(error)) { c.begin(done) },
			func(err error) {
				l.p.began = true
				l.answer(err, protocol.LaneAnswer{})
			})
	case protocol.LaneHandle:
		// The process may freeze between the decision, the last check, and the call.
		l.p.after(l.p.between(0, 50*time.Microsecond), func() { l.begin(a) })
	case protocol.LaneProve:
		l.prove()
	case protocol.LaneWrite:
		l.write(a, patience)
	case protocol.LaneCommit:
		l.commit(patience)
	case protocol.LaneSave:
		l.save(a, patience)
	case protocol.LanePause:
		if a.Why == protocol.ParkedFull {
			l.p.record(l.fact(parkedFull, a.Position, 0))
		}
		l.pausing++
		n := l.pausing
		l.paused, l.resting, l.retries = true, a.Why == protocol.NothingNew, a.Why == protocol.HandlerFailed || a.Why == protocol.HandlerWaits
		if l.run.draining || l.resting && l.subscription.news != l.subscription.feed.news {
			l.wake()
			return
		}
		l.p.after(a.For, func() {
			if n == l.pausing {
				l.wake()
			}
		})
	case protocol.LaneEnd:
		l.end(a)
	default:
		l.doParked(a, patience)
	}
}

// ask asks the database, until the lane is cancelled.
func (l *lane) ask(k *link, what string, patience time.Duration, call func(c connection, done func(error)), then func(error)) {
	l.p.ask(k, what, patience, call, then)
	l.abort = k.answer
}

// wake ends a pause.
func (l *lane) wake() {
	if !l.paused {
		return
	}
	l.paused, l.resting = false, false
	l.pausing++
	l.p.post(l.readAgain)
}

// readAgain reads the first pending event again if it is unreadable and about to be tried
// again, as readAgain in runner.go does. Then the lane goes on.
func (l *lane) readAgain() {
	retries := l.retries
	l.retries = false
	i := slices.IndexFunc(l.events, func(e event) bool { return e.bad })
	if i < 0 || !retries || l.run.draining || l.p.w.rules.keepsUnreadable {
		l.next(protocol.LaneAnswer{})
		return
	}
	l.reread(l.events[i], func(again event) {
		l.events = slices.Clone(l.events) // the history keeps the old one
		l.events[i] = again
		l.next(protocol.LaneAnswer{})
	})
}

// reread reads one event.
func (l *lane) reread(e event, then func(event)) {
	k := l.p.borrow()
	again := e
	l.ask(k, "page", l.p.timing.Patience(), func(c connection, done func(error)) {
		page, err := l.p.w.read(c.page(eventtable.At{}, l.subscription.scope, e.position-1, e.position, 1))
		if len(page) == 1 && page[0].position == e.position {
			again = page[0]
		}
		done(err)
	}, func(err error) {
		k.giveBack()
		if err != nil {
			again = e
		}
		if !again.bad {
			l.p.record(l.fact(readAgain, e.position, 0))
		}
		then(again)
	})
}

func (l *lane) end(a protocol.LaneAction) {
	p := l.p
	l.subscription.close()
	switch in := a.End.Tells(l.id.Assignment.Generation).(type) {
	case nil:
	case protocol.Shutdown:
		why := isFaulty
		if a.End == protocol.EndPermanent {
			why = isBroken
		}
		p.post(func() { p.fail(why) })
	default:
		p.post(func() { p.input(in) })
	}
	if a.Settled {
		l.run.settled++
	}
	l.run.ended()
}

// load reads the checkpoint.
func (l *lane) load(patience time.Duration) {
	if found := l.shown; found.Exists {
		l.shown = protocol.Found{}
		l.p.record(l.fact(checkpointShown, found.Checkpoint.Position, 0))
		l.p.post(func() { l.answer(nil, protocol.LaneAnswer{Found: found}) })
		return
	}
	k := l.p.borrow()
	var found protocol.Found
	l.ask(k, "load", patience, func(c connection, done func(error)) {
		c.load(l.id, func(f protocol.Found, err error) {
			found = f
			done(err)
		})
	}, func(err error) {
		k.giveBack()
		l.answer(err, protocol.LaneAnswer{Found: found})
	})
}

// anyOf returns the checkpoint that was shown for a projection's partition in any
// generation.
func anyOf(shown map[store.Lane]protocol.Found, id store.Lane) (found protocol.Found) {
	for l, f := range shown {
		if l.Projection == id.Projection && l.Assignment.Partition == id.Assignment.Partition {
			found, found.Generation = f, id.Assignment.Generation
		}
	}
	return found
}

// find reads the checkpoint after everything that the lane has sent has ended.
func (l *lane) find(patience time.Duration) {
	rules := l.p.w.rules
	if l.unknown && (rules.unknownIsFailure || rules.unknownIsSuccess) {
		l.unknown = false
		c := l.from
		if rules.unknownIsSuccess {
			c = l.to
		}
		l.p.post(func() {
			l.answer(nil, protocol.LaneAnswer{Found: protocol.Found{Generation: l.id.Assignment.Generation, Checkpoint: c, Exists: true}})
		})
		return
	}
	if l.unknown && rules.retriesEmpty && l.kind.InTransaction() {
		l.retryEmpty(patience)
		return
	}
	k := l.p.borrow()
	var found protocol.Found
	l.ask(k, "find", patience, func(c connection, done func(error)) {
		c.find(l.id, func(f protocol.Found, err error) {
			found = f
			done(err)
		})
	}, func(err error) {
		k.giveBack()
		if p := found.Checkpoint.Position; found.Generation == l.id.Assignment.Generation && l.to.Position > 0 && p != l.from.Position && p != l.to.Position {
			l.p.record(l.fact(elsewhere, l.from.Position, l.to.Position))
		}
		l.answer(err, protocol.LaneAnswer{Found: found})
	})
}

// retryEmpty is a mutant's way to find out what has become of a commit.
func (l *lane) retryEmpty(patience time.Duration) {
	l.unknown = false
	l.link = l.p.borrow()
	from, to := l.from, l.to
	l.ask(l.link, "checkpoint", patience, func(c connection, done func(error)) { c.write(l.id, from, to, done) }, func(err error) {
		if err != nil {
			l.link.drop(false)
			l.link = nil
			l.doing = protocol.LaneFind
			l.find(patience)
			return
		}
		l.handled = nil
		l.commit(patience)
	})
}

// A call is a handler call that runs.
type call struct {
	id      int
	events  []event
	parked  bool // it is a retry of a parked event
	attempt int  // at the first event
	outcome string
	deaf    bool // it ignores its cancellation
	// spoils: it does not notice that a statement fails. violates: it breaks a constraint
	// that is checked at COMMIT.
	spoils, violates bool
	chains           bool // it ends its transaction and begins another one
}

// prove waits for a proof of liveness.
func (l *lane) prove() {
	l.pausing++
	l.paused = true
	if l.run.draining || !l.p.unproven() {
		l.wake()
		return
	}
	l.p.record(l.fact(proofAwaited, 0, 0))
	l.p.post(func() { l.p.input(protocol.ProofWanted{}) })
}

// begin checks the proof for the last time before a handler call. The handler counts as
// running by then.
func (l *lane) begin(a protocol.LaneAction) {
	p := l.p
	p.running++
	p.began = true
	l.suspensions = l.run.suspensions
	p.after(p.between(0, 20*time.Microsecond), func() {
		if p.unproven() {
			p.running--
			l.next(protocol.LaneAnswer{Failure: protocol.NotBegun})
			return
		}
		p.after(p.between(0, 20*time.Microsecond), func() { l.hand(a) })
	})
}

// hand calls the projection if all of its events could be read.
func (l *lane) hand(a protocol.LaneAction) {
	events, rules := l.given(a), l.p.w.rules
	i := slices.IndexFunc(events, func(e event) bool { return e.bad })
	if i < 0 || rules.handsBadOut {
		l.handle(a)
		return
	}
	l.p.running--
	l.p.record(l.fact(unreadable, events[i].position, 0))
	if rules.skipsBad {
		l.answer(nil, protocol.LaneAnswer{})
		return
	}
	if a.First == 0 {
		l.handled = nil
	}
	l.answer(errConversion, protocol.LaneAnswer{})
}

// given returns the events of an action.
func (l *lane) given(a protocol.LaneAction) []event {
	if a.Parked {
		return l.again
	}
	return l.events[a.First : a.First+a.Count : a.First+a.Count]
}

// handle calls the projection with pending events, or with a parked one.
func (l *lane) handle(a protocol.LaneAction) {
	p, h := l.p, l.p.w.plan.handlers
	w := p.w
	if a.First == 0 {
		l.handled = nil
	}
	w.calls++
	c := &call{id: w.calls, events: l.given(a), parked: a.Parked, attempt: a.Attempts + 1, deaf: p.chance(h.deaf)}
	l.call = c
	if l.replay = a.Replay; w.rules.replay != nil {
		l.replay = w.rules.replay(l, a.Replay)
	}
	f := l.fact(handlerBegins, 0, 0)
	f.events, f.call, f.deaf, f.replay = c.events, c.id, c.deaf, l.replay
	p.record(f)
	length := p.between(0, 2*h.typical) * time.Duration(a.Count)
	switch {
	case p.chance(h.slow):
		length += p.between(0, h.slowBy)
	case l.poisoned(c.events):
		c.outcome = l.poison(c.events)
	case p.chance(h.fail):
		c.outcome = [...]string{"failed", forGood}[hashed(c.events[0])%2]
	case p.chance(h.panics):
		c.outcome = "panicked"
	case p.chance(h.timeout):
		c.outcome = timedOut
	case p.chance(h.kill):
		c.outcome = killed
	case l.kind.InTransaction() && w.subject == nil:
		violate := h.violate
		if a.Parked { // its row is deleted by then
			violate = max(violate, 100)
		}
		c.spoils, c.violates, c.chains = p.chance(h.spoil), p.chance(violate), p.chance(h.chain)
	}
	if p.freezeInHandler > 0 {
		p.freeze(p.freezeInHandler, "in a handler")
		p.freezeInHandler = 0
	}
	p.after(length, func() { l.returns(c) })
	if l.run.canceled || l.suspensions != l.run.suspensions {
		l.cancelCall()
	}
}

// returns ends a call. What a handler writes in its transaction is written now.
func (l *lane) returns(c *call) {
	if l.call != c {
		return // it was cancelled and has returned before
	}
	l.call = nil
	l.p.running--
	var err error
	if c.outcome != "" {
		err = l.failure(c)
	} else if err = l.effects(c); err != nil {
		if c.outcome = "failed"; errors.Is(err, errReset) {
			c.outcome = disconnected
		}
	} else {
		if !c.parked {
			l.handled = append(l.handled, c.events...)
		}
		if c.violates {
			l.link.conn.violate()
		}
		if c.chains {
			l.link.conn.chain()
			l.link.wrote = nil
		}
		if c.spoils {
			l.link.conn.spoil()
		}
	}
	f := l.fact(handlerEnds, 0, 0)
	f.call, f.text, f.deaf = c.id, c.outcome, l.cancelled() || l.p.session.Terms().Ended(l.p.now())
	l.p.record(f)
	l.answer(err, protocol.LaneAnswer{})
}

// These are the ways in which a handler fails, beside an ordinary error.
const (
	timedOut     = "timed out"
	killed       = "killed its connection"
	disconnected = "lost its connection"
	forGood      = "failed for good" // it returns a permanent error
)

// failure returns the error of a call.
func (l *lane) failure(c *call) error {
	switch {
	case c.outcome == timedOut:
		return errTimedOut
	case c.outcome == forGood:
		return &store.PermanentError{Err: errors.New(forGood)}
	case c.outcome == killed:
		if l.kind.InTransaction() && l.link.conn != nil {
			l.link.conn.close()
		}
		return driver.ErrBadConn
	}
	return errors.New(c.outcome)
}

// errTimedOut is the error of a handler's statement that exceeds a time limit.
var errTimedOut = &pq.Error{Severity: "ERROR", Code: "57014", Message: "canceling statement due to statement timeout"}

// cancel makes a running handler that obeys its context return at once, ends a pause, and
// gives up a call to the database.
func (l *lane) cancel() {
	if abort := l.abort; abort != nil {
		l.p.after(l.p.between(0, 100*time.Millisecond), func() { abort(errNoAnswer) })
	}
	l.cancelCall()
	l.wake()
}

// cancelCall cancels the context of the handler that runs.
func (l *lane) cancelCall() {
	if c := l.call; c != nil && !c.deaf {
		l.p.after(l.p.between(0, time.Millisecond), func() {
			c.outcome = "canceled"
			l.returns(c)
		})
	}
}

// effects writes what a transactional projection does with the events of a call.
func (l *lane) effects(c *call) error {
	w := l.p.w
	if !l.kind.InTransaction() {
		if w.subject != nil {
			return w.subject.handle(l, w.index, c)
		}
		return nil
	}
	if l.link.broken || l.link.conn == nil || l.p.cut || w.down {
		return errReset
	}
	if w.subject != nil {
		if err := w.subject.handle(l, w.index, c); err != nil {
			return err
		}
		l.link.wrote = append(l.link.wrote, c.events...)
		return nil
	}
	for _, e := range c.events {
		if err := l.link.conn.effect(l.id.Projection, e); err != nil {
			return err
		}
		l.link.wrote = append(l.link.wrote, e)
	}
	return nil
}

// write moves the checkpoint in the open transaction.
func (l *lane) write(a protocol.LaneAction, patience time.Duration) {
	p := l.p
	l.from, l.to, l.unknown = a.From, a.To, false
	l.ask(l.link, "checkpoint", patience, func(c connection, done func(error)) {
		c.write(l.id, a.From, a.To, func(err error) {
			if errors.Is(err, store.ErrSuperseded) {
				p.record(l.fact(refused, a.From.Position, a.To.Position))
			}
			if err == nil && p.freezeAtCommit > 0 && !p.frozen && !p.dead {
				p.freeze(p.freezeAtCommit, "between checkpoint write and COMMIT")
				p.freezeAtCommit = 0
			}
			done(err)
		})
	}, func(err error) { l.answer(err, protocol.LaneAnswer{}) })
}

// save moves the checkpoint in a statement of its own. The events are those that were
// handled for it, whatever the lane does until the request arrives.
func (l *lane) save(a protocol.LaneAction, patience time.Duration) {
	p, k := l.p, l.p.borrow()
	l.from, l.to, l.unknown = a.From, a.To, false
	f := l.fact(committed, a.From.Position, a.To.Position)
	f.replay, f.ahead = l.replay, changed(a.From, a.To)
	for _, e := range l.handled {
		if !l.kind.InTransaction() && e.position > a.From.Frontier(e.slot) && e.position <= a.To.Frontier(e.slot) {
			f.events = append(f.events, e)
		}
	}
	l.ask(k, "commit", patience, func(c connection, done func(error)) {
		c.save(l.id, a.From, a.To, func(err error) {
			if err == nil {
				p.record(f)
			} else if errors.Is(err, store.ErrSuperseded) {
				p.record(l.fact(refused, a.From.Position, a.To.Position))
			}
			done(err)
		})
	}, func(err error) {
		k.giveBack()
		l.unknown = err != nil
		l.answer(err, protocol.LaneAnswer{})
	})
}

// changed returns the marks of the new checkpoint, if they change.
func changed(from, to protocol.Checkpoint) []protocol.Mark {
	if slices.Equal(from.Ahead, to.Ahead) {
		return nil
	}
	return to.Ahead
}

// A followedAt is what the lanes of a run know of the live version, and since when.
type followedAt struct {
	seen protocol.Followed
	at   time.Duration
}

// follow asks how far the live version is. The lanes of a run share answers for a while, as
// followers of the root package do.
func (l *lane) follow(fresh bool, patience time.Duration) {
	w := l.p.w
	if known, has := l.run.follows[l.id.Projection]; has && !fresh && w.at-known.at < 50*time.Millisecond {
		l.p.post(func() { l.answer(nil, protocol.LaneAnswer{Followed: known.seen}) })
		return
	}
	var f protocol.Followed
	k := l.p.borrow()
	l.ask(k, "followed", patience, func(c connection, done func(error)) {
		c.followed(l.id.Projection, func(followed protocol.Followed, err error) {
			f = followed
			done(err)
		})
	}, func(err error) {
		k.giveBack()
		if err == nil {
			if l.run.follows == nil {
				l.run.follows = map[string]followedAt{}
			}
			l.run.follows[l.id.Projection] = followedAt{f, w.at}
		}
		l.answer(err, protocol.LaneAnswer{Followed: f})
	})
}

// commit commits. The events are those whose effects the transaction holds.
func (l *lane) commit(patience time.Duration) {
	p := l.p
	f := l.fact(committed, l.from.Position, l.to.Position)
	f.ahead = changed(l.from, l.to)
	if l.unparks != 0 {
		f = l.fact(parkedRetried, l.unparks, 0)
	}
	f.replay = l.replay
	k := l.link
	l.ask(k, "commit", patience, func(c connection, done func(error)) {
		c.commit(func(err error) {
			if err == nil {
				f.events, k.wrote = k.wrote, nil
				p.record(f)
			}
			done(err)
		})
	}, func(err error) {
		if err == nil {
			l.link.giveBack()
			l.link = nil
		}
		l.unknown = err != nil
		if l.doing == protocol.LaneFind { // a mutant's commit
			l.answer(err, protocol.LaneAnswer{Found: protocol.Found{Generation: l.id.Assignment.Generation, Checkpoint: l.to, Exists: true}})
			return
		}
		l.answer(err, protocol.LaneAnswer{})
	})
}

func (l *lane) fact(k kind, from, to int64) fact {
	a := l.id.Assignment
	return fact{kind: k, projection: l.id.Projection, generation: a.Generation,
		partition: a.Partition, total: a.Total, from: from, to: to}
}
