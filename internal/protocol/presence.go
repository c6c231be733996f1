package protocol

import (
	"math"
	"slices"
	"time"
)

// Crash detection by an advisory lock: a Presence.
//
// Without it, a worker that has crashed is waited for until its lease is over. With it, each
// worker has a database session (a connection) of its own, which holds an advisory lock. The
// session ends at the moment at which the process does, and the lock with it; others can see
// that.
//
// It promises that no handler runs when others remove its worker for a missing lock (S1). It
// must never let a handler begin because of a session that the group does not know, and never
// treat a missing lock as a dead process: a session also ends while its process lives on, by
// an administrator, a pooler or the network, and the process may not notice. So it is the
// process that must prove, again and again, that its session is there, and it handles nothing
// without such a proof:
//
//		           proof, good for presenceOwn
//		           ├── handlers begin ──┼── handlers only go on ──┤ they are suspended
//		holder  ───┴────────────────────┴─────────────────────────┴──────────────────
//		others  ──────────┬────────────────────────────────────────────────┬─────────
//		                  │ the lock is gone                  presenceGrace │ removed
//
//	 1. a proof is the answer to a statement on that session. It counts from the
//	    moment before the statement was sent, at which the session was there;
//	 2. the lock was gone when others checked. Its number is never used again: a
//	    worker that takes another session takes another number, and publishes it
//	    in its row before it relies on it. That it is published, it learns from the
//	    answer to a request, which also shows under which generation: see publish;
//	 3. they remove the worker presenceGrace after that check, if its row still has
//	    the number. Then its last proof was sent before the check, and has run out.
//
// The time between presenceOwn and presenceGrace is for handlers to return, and
// for clocks that run at different rates. An idle worker needs no proof, and
// asks for one when there is something to handle. For a worker that has no session,
// or whose machine is gone without closing its connection, the lease decides.
//
// The tempting alternative, to count a worker as dead when the lock is gone,
// runs two owners whenever a connection is lost and no process has died.
//
// # When the lease decides alone
//
// All this needs a database that answers well within presenceOwn. If it does not
// (a distant region, a process that is throttled, no session to be had),
// handlers would be interrupted more than they work. So a Session measures, and gives
// its presence up for good if one of these is so:
//
//   - answers of its own session take longer than presenceSlow, most of the time;
//   - handlers were suspended suspensionsMax times, not counting one for each
//     suspensionsForget in between;
//   - a lane was interrupted vainMax times in a row, and has handled nothing;
//   - attachesMax times in a row, no session could be had, or it was gone before its first
//     Glimpse, and requests were answered in the meantime.
//
// A worker whose row has a number must not simply continue by its lease:
//
//  1. w finds its session too slow, and lets its handlers run by its lease;
//  2. it closes the session, or the network does;
//  3. others see that the lock is gone, and that the row has its number;
//  4. they remove w, and run its partitions beside it.
//
// Nor can it take the number out of its row: an earlier statement that has yet to
// arrive may put it back. So it stops what runs and comes back as a new incarnation,
// whose row never gets a number, and only then ends the session. This costs a
// generation, unless nothing was published yet: a session that is slow from the
// start is measured first (presence.trial), and a worker far away from its database
// has a row without a number from the beginning. Simulation: the mutant "goes by its
// lease while its row has a session".
//
// It does not take a session again later: that would cost a generation whenever the
// network gets better and worse. A restarted worker tries again.
const (
	// By a proof, handlers begin for presenceBegins, and go on for presenceOwn: the time
	// between them is how long the next proof may take before handlers are suspended.
	presenceBegins = 450 * time.Millisecond
	presenceOwn    = 650 * time.Millisecond
	presenceGrace  = 900 * time.Millisecond
	// presenceGlimpse is how often a worker checks the locks of others, and whether there is
	// a new generation; an idle worker also finds out by it that its own session is
	// gone. A crash is over after at most presenceGlimpse, presenceGrace and a hand-over.
	presenceGlimpse = 900 * time.Millisecond
	// presenceAlone is how often a worker does that has found no other one: no worker can
	// be missing, and an idle worker sends no more than two statements a second.
	presenceAlone = 1750 * time.Millisecond
	// presenceSettled is for how long the session of the worker that checks must have been
	// there: when the server was restarted, all workers have to take new sessions, and
	// get this time to do it.
	presenceSettled = 5 * time.Second
	// presenceLease is the shortest lease with which a presence is of use.
	presenceLease = 4 * time.Second

	// presenceSlow is how long the answer to a proof may take.
	presenceSlow  = 100 * time.Millisecond
	renewalMargin = 10 * time.Millisecond // for the worker's loop to turn
	// slownessMax is the slowness at which the presence is given up: a slow answer adds
	// two, any other takes one off.
	slownessMax = 8
	// See "When the lease decides alone".
	suspensionsMax    = 5
	suspensionsForget = 10 * time.Minute
	vainMax           = 4
	attachesMax       = 8
	attachesAnswers   = 2
	// numberStep is by how much a number grows at most. Steps are random, so that
	// no other program can hold the lock that comes next.
	numberStep = 1 << 16
)

// A Presence is an advisory lock that shows that a worker is there. The zero value is none.
type Presence struct {
	// Key names the backend of the database that has to hold the lock, so that no
	// other one can: see store.Attach. Number grows with each session of the worker; 0 is
	// none.
	Key, Number int32
}

// An Absence is a presence that a worker has published, and whose lock others have found
// free.
type Absence struct {
	Worker   WorkerID
	Presence Presence
}

// Published is what was found in the worker's row when the number of a session was
// put there.
type Published struct {
	Row  bool  // there is such a row
	Runs int64 // the generation that the worker runs; 0 if it runs none or a newer one is opened
}

// A Glimpse is what the check of the others' presences shows: who is absent, and whether
// something in the group is new. Like a notification, it only makes a worker ask sooner.
// Without it, a worker that missed the removal of one that has crashed would learn of it at its
// next heartbeat:
//
//  1. w crashes; a checks, finds that w's lock is gone, and removes w presenceGrace later:
//     a generation is opened;
//  2. b checks only then: w's row is gone as well, and no worker is missing;
//  3. b runs its partitions, for which all others wait, until its next heartbeat.
type Glimpse struct {
	Others
	Generation int64
	// Holds is Member.Holds of the worker that checks: a vacant place may have been given to
	// it, without a new generation.
	Holds int64
	// StepIn is the time from the check until a Step is due; 0 if none is, or if it
	// is due by now.
	StepIn time.Duration
}

// Others are what can be seen of a group's other workers.
type Others struct {
	// Absent are the workers whose presences are published, and whose locks are free; in
	// the answer to a heartbeat, its own worker as well.
	Absent []Absence
	// Alone is true if there is no other worker.
	Alone bool
}

// Inputs of a Session about its presence.
type (
	// Attached means that a session of the worker's own holds the lock.
	Attached struct {
		Number    int32
		Key       int32 // of the lock
		Sent      time.Time
		RoundTrip time.Duration // of its latest statement
		Worker    WorkerID      // in whose row the number was to be published; "" is in none
		Published Published
	}
	// Proven means that the session was there after Sent. Group is valid if Glimpsed is true.
	Proven struct {
		Number   int32
		Sent     time.Time
		Glimpsed bool
		Group    Glimpse
	}
	// Detached means that the session is gone, or could not be had. With Never it is
	// useless to try again: a pooler shares sessions between processes. Jitter is a
	// random number in [0,1).
	Detached struct {
		Number int32
		Never  bool
		Jitter float64
	}
	// ProofWanted means that there is something to handle, and no proof.
	ProofWanted struct{}
	// Thwarted means that a lane has tried Vain times in a row to handle something: each time
	// the handler was suspended, or could not be called without a proof.
	Thwarted struct{ Vain int }
)

func (Attached) input()    {}
func (Proven) input()      {}
func (Detached) input()    {}
func (ProofWanted) input() {}
func (Thwarted) input()    {}

// Actions of a Session about its presence.
type (
	// Attach asks to open a session, to take the lock with this number in it, and then to
	// publish the number in the worker's row, if a worker is named and has a row, so that
	// no other worker misses the session before. The answer is Attached or Detached. A
	// session that was attached before is of no more use.
	Attach struct {
		Number int32
		Worker WorkerID
	}
	// Prove asks the session whether it is there, and with Glimpse also for a Glimpse.
	// The answer is Proven or Detached.
	Prove struct {
		Number  int32
		Glimpse bool
	}
	// Suspend asks to cancel the contexts of the handlers that run. They are called again
	// when there is a proof.
	Suspend struct{}
	// Forgo means that the lease decides alone from now on. It asks to end the session, if
	// there is one.
	Forgo struct{ Why Forgone }
)

// Forgone is why a worker's crash is detected by its lease alone, for people.
type Forgone string

const (
	ForgoneToPooler    Forgone = "a connection pooler shares database sessions between processes, so a session tells nothing about one of them"
	ForgoneSlow        Forgone = "the database is too far away: most answers take longer than 100ms"
	ForgoneSuspended   Forgone = "handlers were suspended too often: the process or its connection to the database stalls again and again"
	ForgoneUnavailable Forgone = "the worker could not get or keep a connection for it, although the database answers"
)

func (Attach) action()  {}
func (Prove) action()   {}
func (Suspend) action() {}
func (Forgo) action()   {}

// A presence is what a Session knows of its own presence, and of those of others.
type presence struct {
	// bound is true if handlers of this incarnation need a proof, and false if the lease
	// decides alone.
	bound  bool
	number int32 // of the newest session that was asked for
	jitter float64

	attached int32 // the number of the session that is there; 0: none
	key      int32 // and its key
	since    time.Time
	glimpsed bool      // that session has had a Glimpse
	fresh    time.Time // when that session was there for certain
	known    int32     // the newest number that the group certainly has for this incarnation
	// proven is when a session was there for certain that the group knew.
	proven time.Time
	wanted bool // a proof is: there is something to handle

	handling  bool      // handlers run, or have begun lately, or are about to
	busy      time.Time // when they last did
	suspended bool      // handlers were, since the proof has run out

	inFlight bool
	next     time.Time // when the next Glimpse, or the next try, is due
	failures int       // sessions in a row that could not be had, or had no Glimpse
	answers  int       // requests that were answered meanwhile

	// shown is true if the row of this incarnation may have, or get, a number.
	shown       bool
	slowness    int
	roundTrip   time.Duration // about how long an answer takes, presenceSlow at most
	suspensions []time.Time   // the latest ones, as far as they count
	why         Forgone       // the presence is given up, or about to be; "": it is not
	said        bool          // Forgo was returned

	absent []sighting
	// watching is true if a worker is missing that others, whose sessions have been there
	// for longer, will remove first.
	watching bool
}

// A sighting is an absence, the time at which it was first seen, and whether a request was
// sent to remove the worker.
type sighting struct {
	Absence
	at   time.Time
	sent bool
}

// proofEnds returns until when handlers may begin, and until when they may go on. A worker is
// bound by that from the start, and not only when it knows that its number is published:
//
//  1. a new worker asks for a session and sends its join, at the same time;
//  2. the join takes effect, and is answered: handlers begin;
//  3. the session's number is published in the row that is there by now, and the
//     answer is lost, and the session as well;
//  4. others remove the worker, whose handlers run on its lease.
func (p *presence) proofEnds() (begin, end time.Time, bound bool) {
	return p.proven.Add(presenceBegins), p.proven.Add(presenceOwn), p.bound
}

// prove takes in that a session was there at sent.
func (p *presence) prove(number int32, sent time.Time) {
	p.fresh = sent
	if p.known >= number {
		p.proven, p.suspended = sent, false
	}
}

// publish takes in that the group has the number, by the answer to a request that carried
// it, and that shows the newest generation as well. It is not enough that the number is in a
// row with the worker's name:
//
//  1. w sends a join and gives it up, sends another, and runs generation 1;
//  2. its session ends, and it does not notice. Others miss it, remove it,
//     and activate generation 2 without it;
//  3. the first join arrives: there is a row of w again;
//  4. w takes another session, whose number is published in that row, and
//     handlers of generation 1 begin, until its next heartbeat.
//
// So it takes the answer to a request, which must not show that the group has continued
// without this worker; or a row that shows the very generation that runs here, which
// no activation can have given to the row of a late join. Tests:
// TestLateJoinBringsNoProof, TestAnswerOfAnotherGenerationBringsNoProof.
func (p *presence) publish(number int32) {
	if number > p.known {
		p.known = number
	}
	if p.attached != 0 && p.known >= p.attached && p.fresh.After(p.proven) {
		p.proven, p.suspended = p.fresh, false
	}
}

// answered reports whether an answer is about the newest session, and if so takes it in.
func (p *presence) answered(number int32) bool {
	if number != p.number {
		return false
	}
	p.inFlight = false
	return true
}

// forgo gives the presence up. The lease decides alone at once if no row of this
// incarnation can have a number. Otherwise the incarnation has to end first.
func (p *presence) forgo(why Forgone) {
	if p.why != "" || !p.bound {
		return
	}
	p.why = why
	p.bound = p.shown
}

// over reports whether the incarnation has to end since the presence is given up.
func (p *presence) over() bool { return p.why != "" && p.bound }

// took takes in how long an answer took.
func (p *presence) took(d time.Duration) {
	p.roundTrip = min(max(d, p.roundTrip*7/8), presenceSlow)
	if d > presenceSlow {
		p.slowness += 2
	} else if p.slowness > 0 {
		p.slowness--
	}
	if p.slowness >= slownessMax {
		p.forgo(ForgoneSlow)
	}
}

// trial reports whether the session that is there has to be measured before it is
// published.
func (p *presence) trial() bool { return p.slowness > 0 && !p.shown }

// unsaid reports whether there is a session that is still to be published.
func (p *presence) unsaid() bool {
	return p.attached != 0 && p.known < p.attached && p.why == "" && !p.trial()
}

func (p *presence) attach(now time.Time, in Attached) {
	if !p.answered(in.Number) {
		return
	}
	p.attached, p.key, p.since, p.glimpsed = in.Number, in.Key, now, false
	p.next = now.Add(presenceGlimpse)
	p.prove(in.Number, in.Sent)
	p.took(in.RoundTrip)
}

func (p *presence) proof(now time.Time, in Proven) {
	if !p.answered(in.Number) {
		return
	}
	p.wanted = false
	p.prove(in.Number, in.Sent)
	p.took(now.Sub(in.Sent))
	if in.Glimpsed {
		p.glimpsed, p.failures = true, 0
		p.observe(now, in.Group.Others)
	}
}

// changed takes in that the group has another generation: a worker that was alone may not
// be alone any more.
func (p *presence) changed(now time.Time) {
	if soon := now.Add(presenceGlimpse); p.next.After(soon) {
		p.next = soon
	}
}

// observe takes in what a Glimpse, or a heartbeat, has shown of others.
func (p *presence) observe(now time.Time, o Others) {
	p.next = now.Add(presenceGlimpse)
	if o.Alone {
		p.next = now.Add(presenceAlone)
	}
	p.see(now, o.Absent)
}

// mayAskForOthers reports whether a heartbeat may ask for the others, which saves a Glimpse:
// this worker's own session has had one, and the group knows the session.
func (p *presence) mayAskForOthers() bool {
	return p.attached != 0 && p.known >= p.attached && p.glimpsed && p.why == ""
}

// beat takes in what a heartbeat has shown of others. It came by another connection, and
// after a restart of the server no session is there: so it counts only if this worker's own
// session was there.
func (p *presence) beat(now time.Time, own WorkerID, o Others) {
	if !p.mayAskForOthers() {
		return
	}
	if slices.ContainsFunc(o.Absent, func(a Absence) bool { return a.Worker == own }) {
		p.next = now // ask the session itself
		return
	}
	p.observe(now, o)
}

// see takes in which presences are gone. One that is gone never comes back. That it
// is not among them now may mean that its worker was removed, or has come back under another
// number, but also that another session has taken the lock at that moment, or that the answer
// is an older one. So it is kept until a request was sent to remove the worker: the request
// checks whether the worker still has that presence.
func (p *presence) see(now time.Time, absent []Absence) {
	settled := now.Sub(p.since) >= presenceSettled
	p.watching = len(absent) > 0 && (!settled || p.watching)
	if !settled {
		absent = nil
	}
	var seen []sighting
	for _, a := range absent {
		i := slices.IndexFunc(p.absent, func(s sighting) bool { return s.Absence == a })
		if i < 0 {
			seen = append(seen, sighting{Absence: a, at: now})
		} else {
			seen = append(seen, p.absent[i])
		}
	}
	for _, s := range p.absent {
		known := slices.ContainsFunc(seen, func(o sighting) bool { return o.Absence == s.Absence })
		if settled && !s.sent && !known {
			seen = append(seen, s)
		}
	}
	p.absent = seen
}

// gone returns the sightings that are presenceGrace old, for which a request is due, and when
// the next one will be.
func (p *presence) gone(now time.Time) (gone []*sighting, next time.Time) {
	for i := range p.absent {
		s := &p.absent[i]
		due := s.at.Add(presenceGrace)
		switch {
		case s.sent:
		case !now.Before(due):
			gone = append(gone, s)
		case next.IsZero() || due.Before(next):
			next = due
		}
	}
	return gone, next
}

// remove returns the absences that a request which is sent now carries.
func (p *presence) remove(now time.Time) (absent []Absence) {
	gone, _ := p.gone(now)
	for _, s := range gone {
		s.sent = true
		absent = append(absent, s.Absence)
	}
	return absent
}

// failed takes in that a request may not have been carried out.
func (p *presence) failed() {
	for i := range p.absent {
		p.absent[i].sent = false
	}
}

func (p *presence) detach(now time.Time, in Detached) {
	if !p.answered(in.Number) {
		return
	}
	p.attached, p.absent, p.watching, p.jitter = 0, nil, false, in.Jitter
	p.next = now.Add(RetryPresence.Backoff().Delay(p.failures+1, 0))
	if p.failures == 0 {
		p.answers = 0
	}
	p.failures++
	switch {
	case in.Never:
		p.forgo(ForgoneToPooler)
	case p.failures >= attachesMax && p.answers >= attachesAnswers, p.number > math.MaxInt32-2*numberStep:
		p.forgo(ForgoneUnavailable)
	}
}

// interrupted takes in that a lane is interrupted again and again.
func (p *presence) interrupted(in Thwarted) {
	if in.Vain >= vainMax {
		p.forgo(ForgoneSuspended)
	}
}

// nextStatement returns what to ask of the worker's own session now.
func (p *presence) nextStatement(now time.Time, worker WorkerID) []Action {
	due := !now.Before(p.next)
	switch {
	case !p.bound || p.inFlight || p.why != "":
		return nil
	case p.attached == 0 && due:
		p.number += 1 + int32(p.jitter*numberStep)
		p.inFlight = true
		if !p.shown { // there is none before it to be missed; and it is measured first
			worker = ""
		}
		return []Action{Attach{p.number, worker}}
	case p.attached != 0 && (due || p.trial() || p.wanted && p.known >= p.attached && !now.Before(p.renewal())):
		p.inFlight = true
		// A proof that is asked for anyway is a Glimpse if that would be due before the
		// next proof.
		return []Action{Prove{p.attached, due || now.Add(presenceBegins).After(p.next)}}
	}
	return nil
}

// renewal returns when to ask for a proof that is wanted: so early that the answer
// comes while handlers may still begin.
func (p *presence) renewal() time.Time {
	return p.proven.Add(presenceBegins - min(2*p.roundTrip+renewalMargin, presenceBegins))
}

// watch keeps the proof fresh while there is something to handle, also between two
// handlers, and suspends handlers when the latest proof has run out.
func (p *presence) watch(now time.Time) []Action {
	if p.handling {
		p.busy = now
	}
	_, end, bound := p.proofEnds()
	if !bound || now.Sub(p.busy) >= presenceOwn || now.Before(p.renewal()) {
		return nil
	}
	p.wanted = true
	if !p.handling || p.suspended || now.Before(end) {
		return nil
	}
	p.suspended = true
	p.suspensions = slices.DeleteFunc(append(p.suspensions, now), func(t time.Time) bool { return now.Sub(t) >= suspensionsForget })
	if len(p.suspensions) >= suspensionsMax {
		p.forgo(ForgoneSuspended)
	}
	return []Action{Suspend{}}
}

// done returns Forgo once the presence is given up, nothing that runs here depends on it,
// and no statement is under way on its session.
func (p *presence) done() []Action {
	if p.why == "" || p.bound || p.inFlight || p.said {
		return nil
	}
	p.said = true
	p.attached, p.absent, p.watching = 0, nil, false
	return []Action{Forgo{p.why}}
}
