package sim

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A worker is a virtual process: the production session and lanes, with what coordinator.go
// and runner.go are in a real process. It decides nothing of the protocol.
type worker struct {
	w       *world
	name    string
	set     int
	version int
	timing  protocol.Timing
	db      database
	rand    *rand.Rand
	drift   float64 // the relative error of its clock

	session *protocol.Session
	run     *run
	feed    *feed
	horizon protocol.Horizon
	// misrouted: its new connections lead to a standby. stream names what it reads.
	misrouted bool
	stream    string
	turns     []*reading // that wait for their turn; the first one has it
	wakes     int        // only the latest Wake counts

	links, pool []*link
	own         *link // its liveness connection

	// known is the last known end of the stream, and prepared when it was found. Everything
	// up to proven and floor was final then.
	known         protocol.End
	prepared      time.Duration
	proven, floor int64

	foresaw time.Duration // when it asked for the reading on which its join is decided
	// shown are the checkpoints in the latest answer.
	shown map[store.Lane]protocol.Found

	running int  // handlers that run or are about to
	began   bool // a handler has begun since the last question
	// Until blocked, it can open no liveness connection.
	blocked time.Duration
	alone   bool           // a mutant relies on its lease without giving up its number
	terms   protocol.Terms // the terms of the lanes at the latest notice of a proof

	frozen  bool
	thaws   int      // only the latest thaw counts
	backlog []func() // what happened to it while it was frozen
	cut     bool     // from the database
	mends   int
	lost    bool // stays frozen, or cut off, for good
	dead    bool
	leaving bool
	// returned: Run has given up its handlers and returned, and they go on.
	returned bool
	exited   func() // called at the end, for the caller of leave
	cause    string // why it exits, if it was not asked to
	// These are how long to freeze at the next reply to a checkpoint write, and in the next
	// handler.
	freezeAtCommit, freezeInHandler time.Duration
	congested                       time.Duration // by how much replies are late
	// Of the next park: how long to freeze before it is sent, or how late it arrives.
	freezeAtPark, delayPark time.Duration
}

func newWorker(w *world, n, version, set int) *worker {
	p := &worker{
		w: w, name: fmt.Sprint("w", n), set: set, version: version, timing: w.plan.programs[version].timing, stream: "events",
		rand: rand.New(rand.NewPCG(w.plan.seed, uint64(100+n))),
	}
	p.db = w.db.as(setName(set), store.BoundsOf(p.timing.Lease))
	if d := w.plan.drift; d > 0 {
		p.drift = float64(p.rand.IntN(2*d+1)-d) / 1e6
	}
	p.feed = newFeed(p)
	timing := p.timing
	if w.rules.timing != nil {
		timing = w.rules.timing(timing)
	}
	p.session = protocol.NewSession(protocol.WorkerID(p.name), timing,
		protocol.Request{Wants: w.plan.wantsOf(n), MaxPartitions: w.plan.maxPartitions, JoinWindow: w.plan.joinWindow, Vacate: w.plan.programs[version].vacate})
	if !w.plan.programs[version].leaseOnly {
		p.session.Present()
	}
	return p
}

// record records a fact of the worker.
func (p *worker) record(f fact) {
	f.worker, f.set = p.name, p.set
	p.w.record(f)
}

// now returns the time of the worker's own monotonic clock.
func (p *worker) now() time.Time {
	return epoch.Add(p.w.at + time.Duration(float64(p.w.at)*p.drift))
}

// after plans f for when the worker's own clock has advanced by d. A frozen worker does it
// when it wakes, a dead one never.
func (p *worker) after(d time.Duration, f func()) (stop func()) {
	d = time.Duration(float64(max(0, d)) / (1 + p.drift))
	return p.w.after(d+time.Microsecond, func() { p.do(f) })
}

// post is after without a delay.
func (p *worker) post(f func()) { p.w.after(0, func() { p.do(f) }) }

func (p *worker) do(f func()) {
	switch {
	case p.dead:
	case p.frozen:
		p.backlog = append(p.backlog, f)
	default:
		f()
	}
}

func (p *worker) chance(perMille int) bool { return !p.w.healed && chance(p.rand, perMille) }

func (p *worker) between(from, to time.Duration) time.Duration { return between(p.rand, from, to) }

// input gives the session an input and carries out its actions.
func (p *worker) input(in protocol.Input) {
	if s, ok := in.(protocol.Synced); ok && p.w.rules.leaseFromReply {
		s.Sent = p.now()
		in = s
	}
	if bend := p.w.rules.input; bend != nil {
		if in = bend(p, in); in == nil {
			return
		}
	}
	now := p.now()
	p.session.Handling(p.handles())
	actions := p.session.Next(now, in)
	p.heard()
	for _, action := range actions {
		if bend := p.w.rules.action; bend != nil {
			action = bend(p, action)
		}
		switch a := action.(type) {
		case protocol.Sync:
			p.sync(a.Request)
		case protocol.Start:
			p.start(a.Share)
		case protocol.Drain:
			p.record(fact{kind: runDrains, generation: a.Generation})
			p.run.drain()
		case protocol.Cancel:
			p.cancel(a)
		case protocol.Suspend:
			p.run.suspend()
		case protocol.Attach:
			p.attach(a)
		case protocol.Forgo:
			p.forgo(a)
		case protocol.Prove:
			p.prove(a)
		case protocol.Wake:
			p.wakes++
			n := p.wakes
			p.after(a.At.Sub(now), func() {
				if n == p.wakes {
					p.input(protocol.Tick{})
				}
			})
		case protocol.GiveUp:
			p.cause = cmp.Or(p.cause, string(a.Why))
		case protocol.LaneMissing:
			p.record(fact{kind: laneMissed, generation: a.Generation})
		case protocol.Exit:
			p.exit(a)
			return
		}
	}
}

// sync carries a request to the database, and the answer back.
func (p *worker) sync(r protocol.Request) {
	switch {
	case !r.Join:
		p.send(r, nil)
	case p.chance(300):
		p.prepare(r, func() { p.foresee(r) })
	default:
		p.prepare(r, func() { p.send(r, nil) })
	}
}

// foresee has the database read the set some time before the worker joins.
func (p *worker) foresee(r protocol.Request) {
	l := p.borrow()
	p.foresaw = p.w.at
	sent := p.now()
	var foreseen any
	p.ask(l, "foresee", p.timing.Patience(), func(c connection, done func(error)) {
		c.foresee(r.Worker, sent, func(f any, err error) {
			foreseen = f
			done(err)
		})
	}, func(error) {
		l.giveBack()
		long := p.timing.Patience() / 2
		if p.w.rules.leaseFromJoin {
			long = p.timing.Lease
		}
		p.after(p.between(0, long), func() {
			if !p.w.rules.leaseFromJoin && !r.MayForesee(p.now().Sub(sent)) {
				foreseen = nil
			}
			p.send(r, foreseen)
		})
	})
}

func (p *worker) send(r protocol.Request, foreseen any) {
	w := p.w
	sent, sentAt, l := p.now(), w.at, p.borrow()
	patience := p.timing.Patience()
	hold := w.plan.hold && !r.Heartbeat && p.chance(w.plan.network.holdCommit)
	var result store.Result
	var granted, read time.Duration // when the database granted the lease and read its clock
	var began []fact
	answer := func(err error) {
		l.giveBack()
		if err == nil {
			if !w.rules.startsFromAnyLook || len(result.Checkpoints) > 0 {
				p.shown = result.Checkpoints
			}
			if since := result.Since; !since.IsZero() && !w.rules.leaseFromJoin {
				sent = since
			}
			p.input(protocol.Synced{Request: r, Sent: sent, View: result.View})
			return
		}
		failed := protocol.SyncFailed{Request: r, Sent: sent, Jitter: p.rand.Float64(), Facts: store.FactsOf(err)}
		if taken := (*store.TakenError)(nil); errors.As(err, &taken) {
			failed.Database = taken.Now
			p.record(fact{kind: sessionTaken, projection: taken.Projection, text: forTheMoment(taken.Over)})
		}
		p.input(failed)
	}
	what := describe(r)
	p.ask(l, what, patience, func(c connection, done func(error)) {
		asked := r
		asked.Stream = p.stream
		if w.rules.sameIdentity {
			asked = disguise(r)
		}
		arrived := w.at
		began = nil
		c.sync(asked, p.projections(), p.starter(func(facts []fact) { began = facts }), foreseen, hold, func(res store.Result, err error) {
			if r.Yield && (res.Group.Generation == 0 || res.View.ReadOnly) {
				hold = false // a heartbeat has no COMMIT to hold
			}
			if !res.Since.IsZero() {
				sentAt, arrived = p.foresaw, p.foresaw
			}
			// The request may have waited for the checkpoints since, and the clock may have
			// stepped back.
			if result, read = res, arrived; !w.now().Before(res.View.Now) {
				read = min(max(arrived, w.at-w.now().Sub(res.View.Now)), w.at)
			}
			if granted = read; r.Report { // the report is written first
				granted = arrived
			}
			if err == nil && !hold {
				p.begins(began)
				p.synced(r, result, sentAt, granted, read)
			}
			done(err)
		})
	}, func(err error) {
		if err != nil || !hold {
			answer(err)
			return
		}
		p.ask(l, "commit of "+what, patience-p.now().Sub(sent), func(c connection, done func(error)) {
			c.commit(func(err error) {
				if err == nil {
					p.begins(began)
					p.synced(r, result, sentAt, granted, read)
				}
				done(err)
			})
		}, answer)
	})
}

// begins records where projections start, at the moment of the commit.
func (p *worker) begins(began []fact) {
	if !p.w.plan.starting {
		return
	}
	for _, f := range began {
		p.record(f)
	}
}

// forTheMoment returns the text of a sessionTaken.
func forTheMoment(over bool) string {
	if over {
		return "for the moment"
	}
	return ""
}

// disguise makes a request look like that of a worker that keeps its first name.
func disguise(r protocol.Request) protocol.Request {
	name, _, _ := strings.Cut(string(r.Worker), "~")
	r.Worker = protocol.WorkerID(name)
	return r
}

func describe(r protocol.Request) string {
	switch {
	case r.ReadOnly:
		return "look"
	case r.Heartbeat:
		return "heartbeat"
	case r.Join:
		return "join"
	case r.Leave:
		return "leave"
	case r.Stopped > 0:
		return "stop report"
	}
	return "request"
}

// synced records what a request has changed, at the moment of the change. Its lease was
// granted a little earlier. A look changes nothing and grants no lease.
func (p *worker) synced(r protocol.Request, result store.Result, sent, granted, read time.Duration) {
	if r.ReadOnly || result.View.ReadOnly {
		return
	}
	w := p.w
	if result.View.Member || r.Leave {
		p.record(fact{kind: sessionAsks, length: r.Lease - (w.at - granted), generation: result.View.Generation,
			sent: sent, read: granted, to: r.Stopped,
			text: w.text("%s as %s: generation %d %s/%d, holds %d", describe(r), r.Worker,
				result.View.Generation, protocol.FormatPartitions(result.View.Partitions), result.View.Total, result.View.Holds)})
	}
	if r.Leave && !p.vacates(r, result, read) {
		p.memberLeaves(r.Worker)
	}
	if r.Join || r.Leave {
		for _, id := range slices.Sorted(maps.Keys(w.members)) {
			if r.Worker.Succeeds(id) {
				p.memberLeaves(id)
			}
		}
	}
	switch {
	case r.Join && !result.View.Member:
		p.record(fact{kind: joinRefused, text: string(r.Worker)})
	case r.Join && !w.members[r.Worker]:
		w.members[r.Worker] = true
		p.record(fact{kind: memberJoins, from: int64(r.Wants), to: int64(r.MaxPartitions), length: r.JoinWindow, read: read, text: string(r.Worker)})
	}
	if result.View.Member {
		p.publishes(r.Worker, r.Presence.Number)
	}
	w.regrouped(fact{worker: p.name, set: p.set}, r, result, read)
}

// regrouped records what a request has made of a set.
func (w *world) regrouped(by fact, r protocol.Request, result store.Result, granted time.Duration) {
	d, g := result.Decision, result.Group
	if g.Generation != 0 {
		w.lapses(by.set, r.Order, g.Holds)
	}
	for _, id := range d.Expired {
		delete(w.members, id)
		f := fact{kind: workerExpired, worker: nameOf(id), set: by.set, text: string(id)}
		if i := slices.IndexFunc(r.Watch.Absent, func(a protocol.Absence) bool { return a.Worker == id }); i >= 0 {
			f.from = int64(r.Watch.Absent[i].Presence.Number)
		}
		w.record(f)
	}
	for _, id := range d.Lapsed {
		w.forget(id)
		w.record(fact{kind: placeLapsed, worker: nameOf(id), set: by.set, read: granted, text: string(id)})
	}
	for _, t := range d.Taken {
		w.forget(t.From)
		f := fact{kind: placeTaken, worker: nameOf(t.By), set: by.set, read: granted, layout: []string{string(t.From), string(t.By)}}
		if !d.Opened {
			f.generation = g.Generation
		}
		w.record(f)
	}
	if d.Opened {
		w.record(fact{kind: groupOpened, worker: by.worker, set: by.set, generation: g.Generation, total: g.Total, read: granted, layout: layout(g), text: w.text("%s; %s", g.Reason, g)})
	}
	if d.Activated {
		w.record(fact{kind: groupActivated, worker: by.worker, set: by.set, generation: g.Generation, total: g.Total, text: w.text("%s", g)})
	}
	if d.Opened || d.Activated || len(d.Taken) > 0 {
		w.hint(by.set)
	}
}

// vacates records that a worker has left its place vacant, and reports whether it has. It
// may have reported that before, or another worker may have taken the place at once.
func (p *worker) vacates(r protocol.Request, result store.Result, read time.Duration) bool {
	w := p.w
	_, vacant := result.Group.Vacancy(r.Worker)
	over := slices.Contains(result.Decision.Lapsed, r.Worker) ||
		slices.ContainsFunc(result.Decision.Taken, func(t protocol.Takeover) bool { return t.From == r.Worker })
	if r.Vacate == 0 || !vacant && !over {
		return false
	}
	if w.members[r.Worker] && !w.vacant[r.Worker] {
		w.vacant[r.Worker] = true
		p.record(fact{kind: placeVacated, length: r.Vacate, read: read, text: string(r.Worker)})
	}
	return true
}

// forget records that a vacant place is no longer kept.
func (w *world) forget(id protocol.WorkerID) {
	delete(w.members, id)
	delete(w.vacant, id)
}

// nameOf returns the worker of an incarnation.
func nameOf(id protocol.WorkerID) string {
	name, _, _ := strings.Cut(string(id), "~")
	return name
}

// hint notifies the workers of a set. A notification may get lost.
func (w *world) hint(set int) {
	for _, q := range w.alive() {
		if q.set == set && chance(q.rand, w.plan.network.hints) {
			q.w.after(q.latency(), func() {
				if !q.cut {
					q.do(func() { q.input(protocol.Hinted{}) })
				}
			})
		}
	}
}

// memberLeaves records that an incarnation has left.
func (p *worker) memberLeaves(id protocol.WorkerID) {
	if p.w.members[id] {
		delete(p.w.members, id)
		p.record(fact{kind: memberLeaves, text: string(id)})
	}
}

// layout returns the owner of each partition.
func layout(g protocol.Group) []string {
	who := make([]string, g.Total)
	for _, m := range g.Members {
		for _, k := range m.Partitions {
			who[k] = string(m.ID)
		}
	}
	return who
}

func (p *worker) projections() []string {
	var names []string
	for _, q := range p.w.plan.programs[p.version].of(p.set) {
		names = append(names, q.name)
	}
	return names
}

// cancel cancels the handlers of what runs.
func (p *worker) cancel(a protocol.Cancel) {
	if a.Lost && p.w.rules.leaseUnenforced {
		return
	}
	text := ""
	if a.Lost {
		text = "lost"
	}
	p.record(fact{kind: runCancels, generation: a.Generation, text: text})
	p.run.cancel()
}

// exit ends the process, or leaves it with the handlers that have not returned.
func (p *worker) exit(a protocol.Exit) {
	w := p.w
	if a.Cause == protocol.DrainTimeout && p.chance(w.plan.handlers.outlive) {
		p.returned = true
		p.record(fact{kind: workerReturns})
		p.run.cancel()
		p.after(a.Keep, p.dropOwn)
	} else {
		p.end(cmp.Or(p.cause, string(a.Cause)))
	}
	switch {
	case p.exited != nil:
		p.exited()
	case p.stream == strangeTable: // its operator has noticed the mistake
	default: // it gave up: its supervisor starts it again
		w.restart(p.set, w.plan.timing.Lease/4)
	}
}

// end ends the process.
func (p *worker) end(why string) {
	for len(p.links) > 0 {
		p.links[0].drop(false)
	}
	p.w.gone(p, why)
}

// These are the reasons why a worker ends by itself.
const (
	isBroken   = "a lane is broken"
	isFaulty   = "a handler is at fault"
	isDenied   = string(protocol.SyncDenied)
	isStranger = string(protocol.SyncStranger)
)

// fail stops the worker, as an error does that ends Run.
func (p *worker) fail(cause string) {
	p.cause = cmp.Or(p.cause, cause)
	p.input(protocol.Shutdown{})
}

// leave asks the worker to stop and leave, as SIGTERM does.
func (p *worker) leave(exited func()) {
	p.record(fact{kind: faultLeave})
	p.leaving, p.exited = true, exited
	p.post(func() { p.input(protocol.Shutdown{Replaced: true}) })
}

// A run is the lanes of one share.
type run struct {
	p           *worker
	generation  int64
	lanes       []*lane
	left        int // lanes that have not ended
	settled     int // lanes that have ended settled (LaneAction.Settled)
	draining    bool
	canceled    bool
	suspensions int // the number of suspensions
	follows     map[string]followedAt
}

func (p *worker) start(s protocol.Share) {
	p.run = &run{p: p, generation: s.Generation}
	for _, a := range s.Assignments() {
		p.record(fact{kind: runStarts, generation: a.Generation, partition: a.Partition, total: a.Total})
		for _, q := range p.w.plan.programs[p.version].of(p.set) {
			if !s.Runs(q.name) && !p.w.rules.runsPaused {
				continue
			}
			l := newLane(p, p.run, q, a)
			l.shown = p.shown[l.id]
			if p.w.rules.startsFromAnyLook {
				l.shown = anyOf(p.shown, l.id)
			}
			p.run.lanes = append(p.run.lanes, l)
		}
	}
	p.run.left = max(len(p.run.lanes), 1) // one that does nothing, if all projections are paused
	for _, l := range p.run.lanes {
		p.post(func() { l.next(protocol.LaneAnswer{}) })
	}
}

// observe tells the session once a heartbeat whether a lane is missing.
func (p *worker) observe() {
	if p.returned {
		return
	}
	p.after(p.timing.Heartbeat, p.observe)
	if r := p.run; r != nil && r.left > 0 {
		p.input(protocol.Lanes{Generation: r.generation, Missing: r.left < len(r.lanes)})
	}
}

// drain asks the lanes to end.
func (r *run) drain() {
	if r.draining {
		return
	}
	r.draining = true
	for _, l := range r.lanes {
		l.subscription.stop()
		l.wake()
	}
	if len(r.lanes) == 0 {
		r.ended()
	}
	if r.p.w.rules.stopsTooEarly || r.p.w.rules.vacatesAtOnce && r.p.leaving {
		r.p.post(func() { r.p.input(protocol.Stopped{Generation: r.generation, Settled: true}) })
	}
}

// cancel cancels the lanes' context.
func (r *run) cancel() {
	r.canceled = true
	r.drain()
	for _, l := range r.lanes {
		l.cancel()
	}
}

// ended takes in that a lane has ended. After the last one, the session gets Stopped.
func (r *run) ended() {
	r.left--
	if r.left > 0 {
		return
	}
	p := r.p
	p.record(fact{kind: runStopped, generation: r.generation})
	if p.returned {
		p.end("its handlers have returned")
		return
	}
	if !p.w.rules.stopsTooEarly && !p.w.rules.vacatesAtOnce || !r.draining {
		settled := r.settled == len(r.lanes) || p.w.rules.alwaysSettled
		p.post(func() { p.input(protocol.Stopped{Generation: r.generation, Settled: settled}) })
	}
}
