package protocol

import (
	"math"
	"slices"
	"time"
)

// A worker that crashes is waited for until its lease is over. It need not be:
// a session of its own at the database ends in the moment in which the process
// does, and with it the advisory lock that the session holds, which others can
// see.
//
// But a session also ends while its process lives on, by an administrator, a
// pooler, the network, and the process may not hear of it. So the lock proves
// nothing about the process. It is the process that must prove, again and again,
// that the session is there, and handles nothing without such a proof:
//
//		           proof, good for presenceOwn
//		           ├── handlers begin ──┼── handlers only go on ──┤ they are suspended
//		holder  ───┴────────────────────┴─────────────────────────┴──────────────────
//		others  ──────────┬────────────────────────────────────────────────┬─────────
//		                  │ the lock is gone                  presenceGrace │ removed
//
//	 1. a proof is the answer to a statement on that session. It counts from the
//	    moment before the statement was sent, at which the session was there;
//	 2. the lock was gone when others looked. Its number is never used again: a
//	    worker that takes another session takes another number, and publishes it
//	    in its row before it counts on it. That it is published, it takes from the
//	    answer to a request, which also shows under which generation: see publish;
//	 3. they remove the worker presenceGrace after that look, if its row still has
//	    the number. Then its last proof was sent before the look, and is no good
//	    any more.
//
// What is between presenceOwn and presenceGrace is for handlers to return, and
// for clocks that run at different rates. An idle worker needs no proof, and
// asks for one when there is something to handle. A worker that has no session,
// or whose machine is gone without a word to the server, has its lease.
//
// The tempting alternative, to count a worker as dead when the lock is gone,
// runs two owners whenever a connection is lost and nobody has died.
//
// # When the lease decides alone
//
// All this needs a database that answers well within presenceOwn. Where it does not
// (a distant region, a process that is throttled, a session that can't be had),
// handlers would be interrupted more than they work. So a Session measures, and gives
// its presence up for good where one of these is so:
//
//   - answers of its own session take longer than presenceSlow, most of the time;
//   - handlers were suspended suspensionsMax times, not counting one for each
//     suspensionsForget in between;
//   - a lane was interrupted vainMax times in a row, and has handled nothing;
//   - attachesMax times in a row, no session could be had, or it was gone before it
//     had looked for the others, and requests were answered in the meantime.
//
// A worker whose row has a number must not simply go on by its lease:
//
//  1. w finds its session too slow, and lets its handlers run by its lease;
//  2. it closes the session, or the network does;
//  3. others see that the lock is gone, and that the row has its number;
//  4. they remove w, and run its partitions beside it.
//
// Nor can it take the number out of its row: an earlier statement that has yet to
// arrive may put it back. So it stops what runs and comes back as a new incarnation,
// whose row never gets a number, and only then ends the session. This costs a
// re-partition, unless nothing was published yet: a session that is slow from the
// start is on trial first (presence.trial), and a worker far away from its database
// has a row without a number from the beginning. Simulation: the mutant "goes by its
// lease while its row has a session".
//
// It does not take a session again later: that would cost re-partitions whenever the
// network gets better and worse. A restarted worker tries anew.
const (
	// By a proof, handlers begin for presenceBegins, and go on for presenceOwn: what is
	// between them is how long the next proof may take before handlers are suspended.
	presenceBegins = 450 * time.Millisecond
	presenceOwn    = 650 * time.Millisecond
	presenceGrace  = 900 * time.Millisecond
	// presenceLook is how often to look for the locks of others, and whether there is a
	// new generation; it is also how an idle worker finds out that its own session is
	// gone. A crash is over after at most presenceLook, presenceGrace and a hand-over.
	presenceLook = 900 * time.Millisecond
	// presenceAlone is how often a worker does that has found no other one: nobody can be
	// missing, and an idle worker sends no more than two statements a second.
	presenceAlone = 1750 * time.Millisecond
	// presenceSettled is how long the session of one who looks must have been
	// there: when the server was restarted, everybody has to take a new one, and
	// is given the time.
	presenceSettled = 5 * time.Second
	// A lease that is not much longer than all that is detection enough.
	presenceLease = 4 * time.Second

	// presenceSlow is how long the answer to a proof may take.
	presenceSlow  = 100 * time.Millisecond
	renewalMargin = 10 * time.Millisecond // for the worker to turn
	// slownessMax: a slow answer adds two, any other takes one off.
	slownessMax = 8
	// See "When the lease decides alone".
	suspensionsMax    = 5
	suspensionsForget = 10 * time.Minute
	vainMax           = 4
	attachesMax       = 8
	attachesAnswers   = 2
	// numberStep is by how much a number grows at most. Steps are random, so that
	// nobody can hold the lock that comes next.
	numberStep = 1 << 16
)

// A Presence is a lock that shows that a worker is there.
type Presence struct {
	// Key says which backend of the database has to hold the lock, so that nobody
	// else can: see store.Attach. Number grows with each session of the worker; 0 is
	// none.
	Key, Number int32
}

// An Absence is a presence that a worker has published, and that was not there
// for others.
type Absence struct {
	Worker   WorkerID
	Presence Presence
}

// Published is what was found in the worker's row when the number of a session was
// put there: nothing, if there is no such row, or the generation that the worker
// runs, 0 if it runs none or a newer one is opened.
type Published struct {
	Row  bool
	Runs int64
}

// A Glimpse is what a look for the presences of others shows of the group beside them:
// whether there is something to see. Nothing depends on it, as on a hint. Without it,
// whoever missed the removal of a worker that has crashed would hear of it at its next
// heartbeat:
//
//  1. w crashes; a looks, finds that w's lock is gone, and removes w presenceGrace later:
//     a generation is opened;
//  2. b looks only then: w's row is gone as well, and nobody is missing;
//  3. b runs its partitions, for which everybody waits, until its next heartbeat.
type Glimpse struct {
	Others
	Generation int64
	// Holds is what Member.Holds is for the one who looks: a place may have been given to
	// it, without a new generation.
	Holds int64
	// StepIn is when a Step is due, from the moment of the look on; 0: none is, or it
	// is due by now.
	StepIn time.Duration
}

// Others are what can be seen of a group's other workers.
type Others struct {
	// Absent are the workers whose presences are published, and are not there; in the answer
	// to a heartbeat, its own worker as well.
	Absent []Absence
	// Alone: there is no other worker.
	Alone bool
}

// Inputs of a Session about its presence.
type (
	// Attached says that a session of one's own holds the lock.
	Attached struct {
		Number    int32
		Key       int32 // that of the lock
		Sent      time.Time
		RoundTrip time.Duration // how long its latest statement took
		Worker    WorkerID      // in whose row the number was to be published; "": in none
		Published Published
	}
	// Proven says that it still is there. Looked says that the group is as in Group.
	Proven struct {
		Number int32
		Sent   time.Time
		Looked bool
		Group  Glimpse
	}
	// Detached says that it is gone, or could not be had. Never says that there
	// is no sense in trying again: sessions can't be told apart here. Jitter is a
	// random number in [0,1).
	Detached struct {
		Number int32
		Never  bool
		Jitter float64
	}
	// Wanted says that there is something to handle, and no proof.
	Wanted struct{}
	// Thwarted says that a lane has called a handler that was suspended, or could
	// not call it for want of a proof, for so many times in a row without one that
	// succeeded.
	Thwarted struct{ Vain int }
)

func (Attached) input() {}
func (Proven) input()   {}
func (Detached) input() {}
func (Wanted) input()   {}

func (Thwarted) input() {}

// Actions of a Session about its presence.
type (
	// Attach: take a session of one's own, and the lock with this number, and then
	// publish it in the worker's row, if a worker is named and there is one, so that
	// nobody misses the one before; answer with Attached or Detached. A session that
	// was attached before is of no more use.
	Attach struct {
		Number int32
		Worker WorkerID
	}
	// Prove: ask the session whether it is there, and with Look also which
	// presences are not, and what the group is like; answer with Proven or Detached.
	Prove struct {
		Number int32
		Look   bool
	}
	// Suspend: cancel the handlers that run. They begin again when there is a
	// proof.
	Suspend struct{}
	// Forgo: the lease decides alone from now on. End the session, if there is one.
	Forgo struct{ Why Forgone }
)

// Forgone says why a worker goes by its lease alone.
type Forgone string

const (
	ForgoneToPooler    Forgone = "a pooler hands out sessions here, and one says nothing about a process"
	ForgoneSlow        Forgone = "the database is too far away for it: most answers take longer than 100ms"
	ForgoneSuspended   Forgone = "handlers were cancelled too often; the process or its connection to the database stands still again and again"
	ForgoneUnavailable Forgone = "the worker could not get a connection for it, or not keep it, though the database answers"
)

func (Attach) action()  {}
func (Prove) action()   {}
func (Suspend) action() {}
func (Forgo) action()   {}

// A presence is what a Session knows of its own, and of that of others.
type presence struct {
	// bound: handlers of this incarnation need a proof. It is false where leases
	// alone decide.
	bound  bool
	number int32 // of the newest session that was asked for
	jitter float64

	attached int32 // the number of the session that is there; 0: none
	key      int32 // and its key
	since    time.Time
	looked   bool      // for the others, at least once
	fresh    time.Time // when that session was there for certain
	known    int32     // the newest number that the group knows of this incarnation for certain
	// proven is when a session was there for certain that the group knew.
	proven time.Time
	wanted bool // a proof: there is something to handle

	handling  bool      // handlers run, or have begun lately, or are about to
	busy      time.Time // when they last did
	suspended bool      // handlers were, since the proof has run out

	inFlight bool
	next     time.Time // when to look, or to try again
	failures int       // sessions in a row that could not be had, or never looked
	answers  int       // requests that were answered meanwhile

	// shown: the row of this incarnation may have, or get, a number.
	shown       bool
	slowness    int
	roundTrip   time.Duration // about how long an answer takes, presenceSlow at most
	suspensions []time.Time   // the latest, as far as they count
	why         Forgone       // it is given up, or about to be; "": it is not
	said        bool          // the Forgo that follows

	absent []sighting
	// watching: somebody is missing, and others, whose sessions have been there for longer,
	// will be the first to remove him.
	watching bool
}

// A sighting is an absence, when it was first seen, and whether a request was
// sent to remove the worker.
type sighting struct {
	Absence
	at   time.Time
	sent bool
}

// sure returns until when handlers may begin, and until when they may go on. That
// binds a worker from the start, and not only when it knows that it is published:
//
//  1. a new worker asks for a session and sends its join, at the same time;
//  2. the join takes effect, and is answered: handlers begin;
//  3. the session's number is published in the row that is there by now, and the
//     answer is lost, and the session as well;
//  4. others remove the worker, whose handlers run on its lease.
func (p *presence) sure() (begin, end time.Time, bound bool) {
	return p.proven.Add(presenceBegins), p.proven.Add(presenceOwn), p.bound
}

// prove takes in when a session was there.
func (p *presence) prove(number int32, sent time.Time) {
	p.fresh = sent
	if p.known >= number {
		p.proven, p.suspended = sent, false
	}
}

// publish takes in what the group knows now, by the answer to a request that said
// so, and that shows the newest generation as well. That the number stands in a
// row with the worker's name is not enough:
//
//  1. w sends a join and gives it up, sends another, and runs generation 1;
//  2. its session ends, and it does not hear of that. Others miss it, remove it,
//     and activate generation 2 without it;
//  3. the first join arrives: there is a row of w again;
//  4. w takes another session, whose number comes to stand in that row, and
//     handlers of generation 1 begin, until its next heartbeat.
//
// So it takes the answer to a request, and that must not tell that the group has gone
// on without this worker; or a row that shows the very generation that runs here, which
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

// answered takes in an answer about the newest session, and reports whether it
// is one.
func (p *presence) answered(number int32) bool {
	if number != p.number {
		return false
	}
	p.inFlight = false
	return true
}

// forgo gives the presence up. Handlers go by the lease at once if no row of this
// incarnation can have a number. Else the incarnation has to end first.
func (p *presence) forgo(why Forgone) {
	if p.why != "" || !p.bound {
		return
	}
	p.why = why
	p.bound = p.shown
}

// over reports whether the incarnation has to end for it.
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

// trial reports whether the session that is there is to be measured before anybody
// hears of it.
func (p *presence) trial() bool { return p.slowness > 0 && !p.shown }

// unsaid reports whether there is a session to be published.
func (p *presence) unsaid() bool {
	return p.attached != 0 && p.known < p.attached && p.why == "" && !p.trial()
}

func (p *presence) attach(now time.Time, in Attached) {
	if !p.answered(in.Number) {
		return
	}
	p.attached, p.key, p.since, p.looked = in.Number, in.Key, now, false
	p.next = now.Add(presenceLook)
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
	if in.Looked {
		p.looked, p.failures = true, 0
		p.observe(now, in.Group.Others)
	}
}

// changed says that the group has another generation: who was alone may not be any more.
func (p *presence) changed(now time.Time) {
	if soon := now.Add(presenceLook); p.next.After(soon) {
		p.next = soon
	}
}

// observe takes in what was seen of others.
func (p *presence) observe(now time.Time, o Others) {
	p.next = now.Add(presenceLook)
	if o.Alone {
		p.next = now.Add(presenceAlone)
	}
	p.see(now, o.Absent)
}

// looks reports whether a heartbeat may look for others, which saves a look: whether this
// worker's own session has, and the group knows it.
func (p *presence) looks() bool {
	return p.attached != 0 && p.known >= p.attached && p.looked && p.why == ""
}

// beat takes in what a heartbeat has shown of others. It comes by another connection, and
// after a restart of the server nobody's session is there: so it counts only if this
// worker's own was.
func (p *presence) beat(now time.Time, own WorkerID, o Others) {
	if !p.looks() {
		return
	}
	if slices.ContainsFunc(o.Absent, func(a Absence) bool { return a.Worker == own }) {
		p.next = now // ask it
		return
	}
	p.observe(now, o)
}

// see takes in which presences are not there. One that was not there never is again; that it
// is not among them now may mean that its worker was removed, or has come back under another
// number, but also that somebody else has its lock at that moment, or that the answer is an
// older one. So it is kept until a request was sent to remove the worker: that asks whether
// it still has that presence.
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

// gone returns which sightings call for a request now, and when the next will.
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

// remove returns what a request that is sent now is to say of them.
func (p *presence) remove(now time.Time) (absent []Absence) {
	gone, _ := p.gone(now)
	for _, s := range gone {
		s.sent = true
		absent = append(absent, s.Absence)
	}
	return absent
}

// failed says that it may not have been heard.
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

// interrupted takes in that a lane gets nowhere.
func (p *presence) interrupted(in Thwarted) {
	if in.Vain >= vainMax {
		p.forgo(ForgoneSuspended)
	}
}

// attend returns what to ask of the worker's own session now.
func (p *presence) attend(now time.Time, worker WorkerID) []Action {
	due := !now.Before(p.next)
	switch {
	case !p.bound || p.inFlight || p.why != "":
		return nil
	case p.attached == 0 && due:
		p.number += 1 + int32(p.jitter*numberStep)
		p.inFlight = true
		if !p.shown { // nobody can miss one before it; and it is measured first
			worker = ""
		}
		return []Action{Attach{p.number, worker}}
	case p.attached != 0 && (due || p.trial() || p.wanted && p.known >= p.attached && !now.Before(p.renewal())):
		p.inFlight = true
		// A proof that is asked for anyway is a look if that would be due before the next one.
		return []Action{Prove{p.attached, due || now.Add(presenceBegins).After(p.next)}}
	}
	return nil
}

// renewal returns when to ask for a proof that is wanted: so early that the answer
// comes before handlers could begin no more.
func (p *presence) renewal() time.Time {
	return p.proven.Add(presenceBegins - min(2*p.roundTrip+renewalMargin, presenceBegins))
}

// watch keeps the proof fresh while there is something to handle, also between two
// handlers, and suspends them when they may not go on by the latest.
func (p *presence) watch(now time.Time) []Action {
	if p.handling {
		p.busy = now
	}
	_, end, bound := p.sure()
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

// done returns the word that the presence is given up, once nothing that runs here
// goes by it, and nothing is asked of its session.
func (p *presence) done() []Action {
	if p.why == "" || p.bound || p.inFlight || p.said {
		return nil
	}
	p.said = true
	p.attached, p.absent, p.watching = 0, nil, false
	return []Action{Forgo{p.why}}
}
