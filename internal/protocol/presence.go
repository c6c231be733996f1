package protocol

import (
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
const (
	presenceOwn   = 400 * time.Millisecond
	presenceGrace = 650 * time.Millisecond
	// presenceLook is how often to look for the locks of others; it is also how
	// an idle worker finds out that its own session is gone.
	presenceLook = 1250 * time.Millisecond
	// presenceSettled is how long the session of one who looks must have been
	// there: when the server was restarted, everybody has to take a new one, and
	// is given the time.
	presenceSettled = 5 * time.Second
	// A lease that is not much longer than all that is detection enough.
	presenceLease = 4 * time.Second
)

// KeepPresence is how long a worker that has given its handlers up keeps its session,
// so that they are waited for until its lease is over. That can be more than a lease:
// the latest request may have been under way, and takes effect later, within another
// one or never.
func (t Timing) KeepPresence() time.Duration { return 2 * t.Lease }

// A Presence is a lock that shows that a worker is there.
type Presence struct {
	// Key is the worker's, and Number counts its sessions; 0 is none.
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

// Inputs of a Session about its presence.
type (
	// Attached says that a session of one's own holds the lock.
	Attached struct {
		Number    int32
		Sent      time.Time
		Worker    WorkerID // in whose row the number was to be published
		Published Published
	}
	// Proven says that it still is there. Looked says that Absent are the
	// presences that are not.
	Proven struct {
		Number int32
		Sent   time.Time
		Looked bool
		Absent []Absence
	}
	// Detached says that it is gone, or could not be had. Never says that there
	// is no sense in trying again: sessions can't be told apart here.
	Detached struct {
		Number int32
		Never  bool
	}
	// Wanted says that there is something to handle, and no proof.
	Wanted struct{}
)

func (Attached) input() {}
func (Proven) input()   {}
func (Detached) input() {}
func (Wanted) input()   {}

// Actions of a Session about its presence.
type (
	// Attach: take a session of one's own, and the lock, and then publish the
	// number in the worker's row, if there is one, so that nobody misses the one
	// before; answer with Attached or Detached. A session that was attached before
	// is of no more use.
	Attach struct {
		Presence Presence
		Worker   WorkerID
	}
	// Prove: ask the session whether it is there, and with Look also which
	// presences are not; answer with Proven or Detached.
	Prove struct {
		Number int32
		Look   bool
	}
	// Suspend: cancel the handlers that run. They begin again when there is a
	// proof.
	Suspend struct{}
)

func (Attach) action()  {}
func (Prove) action()   {}
func (Suspend) action() {}

// A presence is what a Session knows of its own, and of that of others.
type presence struct {
	key    int32 // 0: it has none, and leases alone decide
	number int32 // of the newest session that was asked for

	attached int32 // the number of the session that is there; 0: none
	since    time.Time
	fresh    time.Time // when that session was there for certain
	known    int32     // the newest number that the group knows of this incarnation for certain
	// proven is when a session was there for certain that the group knew.
	proven time.Time
	wanted bool // a proof: there is something to handle

	handling  bool // handlers run, or have begun lately
	suspended bool // handlers were, since the proof has run out

	inFlight bool
	next     time.Time // when to look, or to try again
	failures int

	absent []sighting
}

// A sighting is an absence, when it was first seen, and whether a request was
// sent to remove the worker.
type sighting struct {
	Absence
	at   time.Time
	sent bool
}

// on reports whether the worker is to have a presence.
func (p *presence) on() bool { return p.key != 0 }

// sure returns until when handlers may begin, and until when they may go on. That
// binds a worker from the start, and not only when it knows that it is published:
//
//  1. a new worker asks for a session and sends its join, at the same time;
//  2. the join takes effect, and is answered: handlers begin;
//  3. the session's number is published in the row that is there by now, and the
//     answer is lost, and the session as well;
//  4. others remove the worker, whose handlers run on its lease.
func (p *presence) sure() (begin, end time.Time, bound bool) {
	return p.proven.Add(presenceOwn / 2), p.proven.Add(presenceOwn), p.on()
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

func (p *presence) attach(now time.Time, in Attached) {
	if !p.answered(in.Number) {
		return
	}
	p.attached, p.since, p.failures = in.Number, now, 0
	p.next = now.Add(presenceLook)
	p.prove(in.Number, in.Sent)
}

func (p *presence) proof(now time.Time, in Proven) {
	if !p.answered(in.Number) {
		return
	}
	p.wanted = false
	p.prove(in.Number, in.Sent)
	if in.Looked {
		p.next = now.Add(presenceLook)
		p.see(now, in.Absent)
	}
}

// see takes in which presences are not there. What is no longer among them was
// removed, or has come back under another number.
func (p *presence) see(now time.Time, absent []Absence) {
	if now.Sub(p.since) < presenceSettled {
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
	p.attached, p.absent = 0, nil
	p.next = now.Add(Backoff{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond}.Delay(p.failures+1, 0))
	p.failures++
	if in.Never {
		p.key = 0
	}
}

// attend returns what to ask of the worker's own session now.
func (p *presence) attend(now time.Time, worker WorkerID) []Action {
	due := !now.Before(p.next)
	begin, _, _ := p.sure()
	switch {
	case !p.on() || p.inFlight:
		return nil
	case p.attached == 0 && due:
		p.number++
		p.inFlight = true
		return []Action{Attach{Presence{p.key, p.number}, worker}}
	case p.attached != 0 && (due || p.wanted && p.known >= p.attached && !now.Before(begin)):
		p.inFlight = true
		return []Action{Prove{p.attached, due}}
	}
	return nil
}

// watch has a proof asked for when handlers could begin no more by the latest,
// and run, and suspends them when they may not go on by it.
func (p *presence) watch(now time.Time) []Action {
	begin, end, bound := p.sure()
	if !bound || !p.handling || now.Before(begin) {
		return nil
	}
	p.wanted = true
	if p.suspended || now.Before(end) {
		return nil
	}
	p.suspended = true
	return []Action{Suspend{}}
}
