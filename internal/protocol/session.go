package protocol

import (
	"fmt"
	"slices"
	"time"
)

// A worker's side of the protocol: when it sends which request, what it starts and stops, and
// when it gives up.
//
// A Session promises that it runs a share only after a View has allowed it, and not beyond
// its lease; that every generation which was activated for it is reported as stopped; and
// that it ends in bounded time once it was asked to. It must never extend its lease by the
// arrival of an answer (it counts from before the request was sent), and never report a
// generation as stopped before its driver has said that all handlers have returned.

// Timing is what a Session needs to know of time. All are positive.
type Timing struct {
	Heartbeat time.Duration // between two renewals of the lease
	Lease     time.Duration // StaleWorkerTimeout: when others may count the worker as dead
	Drain     time.Duration // CoordinationTimeout: after which a handler that was asked to stop is given up
}

// ownLease is the part of its lease that a worker uses: four fifths. The last fifth is for
// handlers to return after their contexts were cancelled, and for clocks that run at
// different rates.
func (t Timing) ownLease() time.Duration { return t.Lease - t.Lease/5 }

// grace is how long after it was asked to stop a handler's context is cancelled.
func (t Timing) grace() time.Duration { return t.Drain / 2 }

// Patience is how long to wait for one answer of the database. Two attempts
// fit into ownLease, so one request that hangs does not cost the lease.
func (t Timing) Patience() time.Duration { return t.Lease / 3 }

const (
	// How often a worker that waits for an activation polls: first after pollMin, then
	// ever less often up to pollSoon, and after pollsSoon polls up to pollMax.
	pollMin  = 10 * time.Millisecond
	pollSoon = 100 * time.Millisecond
	pollMax  = 250 * time.Millisecond
	// pollsSoon polls take two seconds: as long as others need to hear of a crash.
	pollsSoon = 22
	// Every pollsPerStep-th poll of a draining group is a Step.
	pollsPerStep = 8
	// retryMax is the longest time between two attempts to reach the database.
	retryMax = time.Second
	// leavePatience is for how long at most a worker that stops tries to leave.
	leavePatience = 5 * time.Second
)

// A Share is what one worker runs in one generation.
type Share struct {
	Generation int64
	Partitions []int
	Total      int
	Paused     []string // projections that are not to run; see Runs
}

// String returns the share as "generation 3 partition 0/2", or with all of its
// numbers: "generation 3 partition 0-1,4/6".
func (s Share) String() string {
	return fmt.Sprintf("generation %d partition %s/%d", s.Generation, FormatPartitions(s.Partitions), s.Total)
}

// fits reports whether the view is of the share's generation, and has the same partitions.
func (s Share) fits(v View) bool {
	return v.Generation == s.Generation && v.Total == s.Total && slices.Equal(v.Partitions, s.Partitions) && slices.Equal(v.Paused, s.Paused)
}

// Assignments returns the share's partitions one by one.
func (s Share) Assignments() []Assignment {
	var out []Assignment
	for _, k := range s.Partitions {
		out = append(out, Assignment{s.Generation, k, s.Total})
	}
	return out
}

// An Assignment is a partition to run in one generation.
type Assignment struct {
	Generation int64
	Partition  int
	Total      int
}

// String returns the assignment as "generation 3 partition 0/2".
func (a Assignment) String() string {
	return fmt.Sprintf("generation %d partition %d/%d", a.Generation, a.Partition, a.Total)
}

// Inputs of a Session.
type (
	// Tick means that time has passed.
	Tick struct{}
	// Synced is the answer to a request that was sent at Sent. The group was read for it
	// at that time or later.
	Synced struct {
		Request Request
		Sent    time.Time
		View    View
	}
	// SyncFailed means that the request may or may not have been carried out.
	// Jitter is a random number in [0,1). Database is the database's time, if that has
	// answered; or zero. Facts are what is known of the error.
	SyncFailed struct {
		Request  Request
		Sent     time.Time
		Jitter   float64
		Database time.Time
		Facts    Facts
	}
	// Stopped means that all handlers of the generation have returned. Settled is true if
	// each of its lanes has ended with LaneAction.Settled.
	Stopped struct {
		Generation int64
		Settled    bool
	}
	// Refused means that the fence has refused a commit of the generation.
	Refused struct{ Generation int64 }
	// Lanes reports, about once a heartbeat, whether a lane of the generation has ended
	// while others run.
	Lanes struct {
		Generation int64
		Missing    bool
	}
	// Hinted means that a notification has come: the group may have changed. It only makes
	// the session ask sooner; nothing depends on it.
	Hinted struct{}
	// Shutdown asks the session to stop, leave and exit. Replaced is true if another
	// worker may be about to come in its place: the program was asked to stop, and nothing
	// has failed.
	Shutdown struct{ Replaced bool }
)

// Input is one of Tick, Synced, SyncFailed, Stopped, Refused, Lanes, Hinted and
// Shutdown.
type Input interface{ input() }

func (Tick) input()       {}
func (Synced) input()     {}
func (SyncFailed) input() {}
func (Stopped) input()    {}
func (Refused) input()    {}
func (Lanes) input()      {}
func (Hinted) input()     {}
func (Shutdown) input()   {}

// Actions of a Session, to be carried out in order.
type (
	// Sync asks to send the request. The answer is Synced or SyncFailed.
	Sync struct{ Request Request }
	// Start asks to run the lanes of the share's partitions, for the projections that it
	// Runs. The answer is Stopped when all have ended; if there are none, once the
	// generation is drained or cancelled.
	Start struct{ Share Share }
	// Drain asks to let the lanes finish the event in hand, commit and end.
	Drain struct{ Generation int64 }
	// Cancel asks to cancel the handlers' contexts, and to commit nothing more. Lost is
	// true if the lease is over, or the incarnation is; false if a handler has taken too
	// long to stop.
	Cancel struct {
		Generation int64
		Lost       bool
	}
	// GiveUp means that the latest request has failed for good. What runs is stopped next;
	// in the end, Run is to return the error of that request.
	GiveUp struct{ Why SyncFailure }
	// LaneMissing means that a lane of the generation has ended without a report, so the
	// worker joins again, as a new member. It is for the log.
	LaneMissing struct{ Generation int64 }
	// Exit means that the session is over. Keep is for how long to keep the worker's own
	// session at the database after that; 0 is not at all.
	Exit struct {
		Cause ExitCause
		Keep  time.Duration
	}
	// Wake asks for a Tick at this time, if nothing comes before.
	Wake struct{ At time.Time }
)

// Action is one of Sync, Start, Drain, Cancel, GiveUp, LaneMissing, Exit and Wake.
type Action interface{ action() }

func (Sync) action()        {}
func (Start) action()       {}
func (Drain) action()       {}
func (Cancel) action()      {}
func (GiveUp) action()      {}
func (LaneMissing) action() {}
func (Exit) action()        {}
func (Wake) action()        {}

// ExitCause is why a session is over.
type ExitCause string

const (
	// Left means that the worker was asked to stop and has given up its membership, or
	// could not reach the database to do so and lets its lease end.
	Left ExitCause = "left"
	// DrainTimeout means that a handler did not return within Timing.Drain after it was
	// asked to. The lease ends by itself, since the handler may still run.
	DrainTimeout ExitCause = "drain timeout"
)

// A Session is one worker's side of the protocol: it decides when to send which request, and
// starts and stops what runs here. It lives through any number of incarnations.
//
//	joining ── assigned, active ──▶ running ── newer generation ──▶ draining
//	   ▲                               │                               │
//	   │                          lease over                        stopped
//	   │                               ▼                               │
//	   └── stopped, new incarnation ── cancelled       waiting ◀───────┘
//
// Times are those of the worker's own monotonic clock; they are arguments. Package protocol's
// comment has the loop that drives a Session.
type Session struct {
	timing   Timing
	settings Request // the settings that the group adopts with Join; and Vacate

	name        WorkerID
	incarnation int
	id          WorkerID // of this incarnation

	member   bool // a view has shown this incarnation as a member
	assigned bool // and the latest view with partitions
	asked    bool // a request was ever sent, so some incarnation may be a member
	// leaseEnd is when this incarnation must have stopped. It counts from the
	// moment before the request was sent: the database grants the lease later
	// than that, so the worker always gives up first. Counted from the answer, a slow
	// answer would stretch it beyond what the others grant.
	leaseEnd time.Time
	lost     bool // the incarnation is over: its lease has ended, or others have removed it

	running  *Share
	stopping time.Time // when running was asked to stop; zero: it wasn't
	canceled time.Time // when its handlers' contexts were cancelled; zero: they weren't
	stopped  int64     // every generation up to this one has stopped here
	reported int64     // and the group knows that of those up to this one
	// A commit under the generation refused was refused at refusedAt.
	refused   int64
	refusedAt time.Time
	missing   int // checks in a row that found a lane of what runs missing
	// unsettled: of what has stopped last, a lane does not know the outcome of what it had
	// sent.
	unsettled bool

	clock    clockWatch
	presence presence

	inFlight bool
	next     time.Time // when to sync next
	step     bool      // the next sync must run Step
	stepAt   time.Time // when a Step is due, as far as is known; one is tried then
	early    bool      // the request under way is that try: its answer counts like a heartbeat's
	renew    bool      // the last Step failed: renew the lease before the next try
	failures int       // failed syncs in a row
	polls    int       // polls of a draining group in a row
	ask      bool      // the next poll is a Step

	hinted bool // since the latest request was sent
	// glimpsed is the newest generation that a Glimpse has shown, and given this worker's
	// Holds there.
	glimpsed int64
	given    int64
	hintSync time.Time // when a notification last made it send a request
	vain     int       // requests because of notifications that showed nothing new, in a row
	seen     [2]int64  // Generation and Holds of the latest view

	leaving  bool
	replaced bool      // another worker may be about to come
	giveUp   time.Time // until when a worker that stops tries to leave
	exited   bool
}

// NewSession returns the session of a worker with a name that no other worker
// uses. settings holds what a Join hands to the group.
func NewSession(name WorkerID, timing Timing, settings Request) *Session {
	return &Session{timing: timing, settings: settings, name: name, id: name, incarnation: 1}
}

// Present turns crash detection by a Presence on, unless the lease is too short for it. Call it
// before Next.
func (s *Session) Present() { s.presence.bound = s.timing.Lease >= presenceLease }

// ID returns the current incarnation.
func (s *Session) ID() WorkerID { return s.id }

// LeaseEnd returns when the worker must stop handling events unless the database answers
// before. A lane checks it before each event: a process that was frozen finds out there, and
// not at its next heartbeat. It is zero if the incarnation is over.
func (s *Session) LeaseEnd() time.Time {
	if s.lost {
		return time.Time{}
	}
	return s.leaseEnd
}

// Handling takes, before each Next, whether handlers run or are about to, or have
// begun since the last call. It matters only to a worker with a presence.
func (s *Session) Handling(handling bool) { s.presence.handling = handling }

// Terms returns until when lanes may call handlers.
func (s *Session) Terms() Terms {
	begin, end, bound := s.Proof()
	return Terms{End: s.LeaseEnd(), Bound: bound, Begin: begin, GoOn: end}
}

// Proof returns until when handlers may begin, and until when they may go on, by the latest
// proof. If bound is false, only LeaseEnd counts.
func (s *Session) Proof() (begin, end time.Time, bound bool) { return s.presence.proofEnds() }

// Next takes one input at the time now and returns what is to be done.
func (s *Session) Next(now time.Time, in Input) []Action {
	if s.exited {
		return nil
	}
	// First of all: a lease that is over stays over, even if the answer that
	// would have renewed it has just come. Lanes may have acted on its end.
	s.lost = s.lost || s.member && !now.Before(s.leaseEnd)
	var actions []Action
	switch in := in.(type) {
	case Tick:
	case Synced:
		s.inFlight = false
		if in.Request.Worker == s.id {
			actions = s.synced(now, in)
		}
	case SyncFailed:
		s.inFlight = false
		actions = s.syncFailed(now, in)
	case Stopped:
		if s.running != nil && s.running.Generation == in.Generation {
			s.running, s.stopped, s.unsettled, s.next = nil, in.Generation, !in.Settled, now
		}
	case Refused:
		s.refuse(now, in.Generation)
	case Lanes:
		actions = s.lanes(now, in)
	case Hinted:
		s.hinted = true
	case Shutdown:
		s.replaced = in.Replaced && !s.leaving
		s.leaving = true
	case Attached:
		s.presence.attach(now, in)
		if s.running != nil && in.Worker == s.id && in.Published.Runs == s.running.Generation {
			s.presence.publish(in.Number)
		}
		if s.member {
			s.next = now // the database answers: publish the number, whatever has failed before
		}
	case Proven:
		s.presence.proof(now, in)
		s.glimpse(now, in)
	case Detached:
		s.presence.detach(now, in)
		s.glimpsed, s.given = 0, 0
	case ProofWanted:
		s.presence.wanted = true
	case Thwarted:
		s.presence.interrupted(in)
	}
	return append(actions, s.advance(now)...)
}

// synced takes in a view of the group.
func (s *Session) synced(now time.Time, in Synced) []Action {
	v := in.View
	if in.Request.Leave {
		return s.exit(Left)
	}
	s.presence.answers++
	if in.Request.Heartbeat || now.Sub(in.Sent) <= s.timing.Lease/watchQuick {
		s.clock.observe(in.Sent, now, v.Now, s.timing.Lease)
	}
	if !v.Member {
		s.lost = s.lost || s.member
		return nil
	}
	s.member, s.assigned = true, v.Assigned()
	readOnly := in.Request.ReadOnly || v.ReadOnly
	switch {
	case readOnly:
	case s.running == nil || s.running.Generation == v.Holds:
		s.presence.publish(in.Request.Presence.Number)
	default:
		// The group does not wait for what runs here. It is about to be stopped, and must
		// not begin another event before.
		s.presence.known = max(s.presence.known, in.Request.Presence.Number)
	}
	if !readOnly {
		s.leaseEnd = in.Sent.Add(s.timing.ownLease())
		if in.Request.Others {
			s.presence.beat(now, s.id, v.Others)
		}
	}
	if s.running == nil && v.Holds < v.Generation {
		// A generation was activated for this worker and superseded before the
		// worker heard of it. The worker will never start it, and the group waits for
		// its report. Scenario: missed_generation.txt.
		s.stopped = max(s.stopped, v.Holds)
	}
	if seen := [2]int64{v.Generation, v.Holds}; seen != s.seen {
		if s.seen[0] != v.Generation { // there may be others now
			s.polls = 0
			s.presence.changed(now)
		}
		s.seen, s.vain = seen, 0
	}
	s.plan(now, in)

	switch {
	case s.lost || s.leaving || !now.Before(s.leaseEnd):
		// The answer took longer than the lease: what it allows may be
		// another worker's by now. advance draws the consequence.
	case s.running != nil && v.Generation > s.running.Generation:
		return s.stop(now)
	case s.running != nil && !s.running.fits(v):
		// The database has gone back: a failover has lost commits, and the activation of
		// this generation with them. Another generation may be opened under the same
		// number, in which this worker does not have these partitions.
		s.lost = true
	case s.running != nil && s.refused == s.running.Generation && !in.Sent.Before(s.refusedAt),
		s.running == nil && v.Assigned() && in.Request.Stopped >= v.Generation:
		// By the group, this worker runs its partitions; it can't, or doesn't. Come back
		// as a new incarnation: that opens a generation.
		s.lost = true
	case s.running == nil && v.May() && v.Generation > s.stopped:
		s.running = &Share{Generation: v.Generation, Partitions: v.Partitions, Total: v.Total, Paused: v.Paused}
		s.stopping, s.canceled, s.polls, s.missing = time.Time{}, time.Time{}, 0, 0
		s.presence.wanted = true // or the first event would wait for it
		return []Action{Start{*s.running}}
	}
	return nil
}

// plan sets the time and the kind of the next sync from what was just seen.
func (s *Session) plan(now time.Time, in Synced) {
	v := in.View
	s.next = s.renewal()
	report := !in.Request.ReadOnly && !v.ReadOnly && in.Request.Stopped > s.reported
	if report {
		s.reported = in.Request.Stopped
	}
	if !in.Request.Heartbeat {
		s.step = false
	}
	seen := in.Request.Heartbeat || s.early
	s.stepAt, s.early = time.Time{}, false
	if !v.StepAt.IsZero() {
		if wait := v.StepAt.Sub(v.Now); wait > 0 {
			s.stepAt = now.Add(wait + time.Millisecond) // the clocks differ a little
			s.sooner(s.stepAt)
		} else if seen {
			// Due, and seen to be due. (After a Step that could do nothing
			// about it, the next heartbeat is early enough.)
			s.step = true
		}
	}
	if s.running == nil && v.Assigned() && !v.May() {
		// Others still drain: poll soon, and ever less often. Every pollsPerStep-th time
		// run Step, which also tells for which workers the group waits.
		s.sooner(now.Add(s.poll()))
		s.ask = s.polls%pollsPerStep == 0
	}
	if v.Busy && (s.running != nil || !v.Assigned() || v.May()) {
		// A worker that waits for a partition polls anyway. Any other one tries again, and
		// renews its lease meanwhile.
		s.step, s.renew = true, !now.Before(s.renewal())
	}
	if report && in.Request.Heartbeat {
		// It was a heartbeat, after a Step that has failed.
		//  1. a and b report at the same moment, each in its own row;
		//  2. each answer shows the other's row as it was before: it holds.
		// Both would wait for the other's Step. So try one, which begins with a read of the
		// group: of two reads, each after its own report was committed, the one after the
		// later commit sees both. Should its worker die before it runs Step,
		// those that wait for their partitions poll as well.
		s.step = true
	}
	if s.presence.watching { // the next glimpse of the others may come too late
		s.sooner(now.Add(pollSoon))
	}
	if s.running != nil && s.refused == s.running.Generation && in.Sent.Before(s.refusedAt) {
		s.next = now // what was seen may be older than the refusal
	}
	switch {
	case !s.wantsStep() && s.stopped <= s.reported:
		s.failures = 0
	case s.failures > 0:
		s.sooner(now.Add(s.backoff(0)))
	case v.Busy: // the request that has locked the group may take the Step
		s.sooner(now.Add(s.poll()))
	default:
		s.next = now
	}
}

// poll returns how long to wait until the next poll of a group that drains, or is locked.
func (s *Session) poll() time.Duration {
	most := pollSoon
	if s.polls >= pollsSoon {
		most = pollMax
	}
	s.polls++
	return min(pollMin<<min(s.polls-1, 5), most)
}

func (s *Session) sooner(at time.Time) {
	if at.Before(s.next) {
		s.next = at
	}
}

// wantsStep reports whether the worker has to do something that a heartbeat can't: join,
// leave, or run Step.
func (s *Session) wantsStep() bool {
	return !s.member || s.leaving && s.running == nil || s.step
}

// refuse takes in that a lane of the generation can't continue.
func (s *Session) refuse(now time.Time, generation int64) {
	if s.running != nil && s.running.Generation == generation && s.refused < generation {
		s.refused, s.refusedAt, s.next = generation, now, now
	}
}

// glimpse takes in what a Glimpse has shown of the group: a new generation is a reason to
// send a request, and so is the end of a join window.
func (s *Session) glimpse(now time.Time, in Proven) {
	if in.Glimpsed && s.member {
		s.glimpsed, s.given = in.Group.Generation, in.Group.Holds
		if in.Group.StepIn > 0 {
			s.sooner(now.Add(in.Group.StepIn + pollMin))
		}
	}
	if s.presence.watching {
		s.sooner(now.Add(pollSoon))
	}
}

// lanes takes in a check of the lanes of what runs. A lane that ends by itself is reported to
// the session; but should that fail, no other worker can see it:
//  1. a lane ends without a report;
//  2. the worker's other lanes go on, so Stopped does not come;
//  3. the partition is assigned, its worker sends heartbeats, and its events wait.
//
// Two checks in a row must find it missing, for the report of a lane that has just ended may
// be on its way. Then the worker joins again, as a new member. Simulation: the mutant
// "does not look for lanes that are missing".
func (s *Session) lanes(now time.Time, in Lanes) []Action {
	if !in.Missing || s.running == nil || s.running.Generation != in.Generation || !s.stopping.IsZero() {
		s.missing = 0
		return nil
	}
	if s.missing++; s.missing != 2 {
		return nil
	}
	s.refuse(now, in.Generation)
	return []Action{LaneMissing{in.Generation}}
}

func (s *Session) syncFailed(now time.Time, in SyncFailed) []Action {
	if !in.Database.IsZero() {
		s.clock.observe(in.Sent, now, in.Database, s.timing.Lease)
	}
	s.failures++
	s.presence.failed()
	s.renew = s.member && !in.Request.Heartbeat
	s.next = now.Add(s.backoff(in.Jitter))
	if why := in.Facts.Coordination(); why != SyncPasses {
		s.leaving = true
		return []Action{GiveUp{why}}
	}
	return nil
}

// backoff returns how long to wait after the latest failure: exponential, up
// to retryMax or a heartbeat, with up to half of it taken off by jitter.
func (s *Session) backoff(jitter float64) time.Duration {
	b := RetryRequest.Backoff()
	b.Max = min(b.Max, s.timing.Heartbeat)
	return b.Delay(s.failures, jitter)
}

// stop drains what runs.
func (s *Session) stop(now time.Time) []Action {
	if !s.stopping.IsZero() {
		return nil
	}
	s.stopping = now
	return []Action{Drain{s.running.Generation}}
}

// cancel cancels what runs.
func (s *Session) cancel(now time.Time) []Action {
	if !s.canceled.IsZero() {
		return nil
	}
	s.canceled = now
	if s.stopping.IsZero() {
		s.stopping = now
	}
	return []Action{Cancel{s.running.Generation, s.lost}}
}

func (s *Session) exit(cause ExitCause) []Action {
	s.exited = true
	exit := Exit{Cause: cause}
	if cause == DrainTimeout {
		// Its handlers may still run, and others must wait for its lease to end. That can
		// be more than a lease from now: the latest request may still be under way, and
		// renew the lease later, if at all within another one.
		exit.Keep = 2 * s.timing.Lease
	}
	return []Action{exit}
}

// advance returns what time and state demand, whatever the input was.
func (s *Session) advance(now time.Time) []Action {
	if s.exited {
		return nil
	}
	var actions []Action
	if s.running != nil {
		actions = append(actions, s.presence.watch(now)...)
	}
	// Others may rely on the number of a presence that is given up (see presence.forgo).
	s.lost = s.lost || s.member && !now.Before(s.leaseEnd) || s.presence.over()
	if s.running != nil {
		if s.lost {
			actions = append(actions, s.cancel(now)...)
		} else if s.leaving {
			actions = append(actions, s.stop(now)...)
		}
		if !s.stopping.IsZero() && !now.Before(s.stopping.Add(s.timing.grace())) {
			actions = append(actions, s.cancel(now)...)
		}
		if !s.canceled.IsZero() && !now.Before(s.giveUpAt()) {
			return append(actions, s.exit(DrainTimeout)...)
		}
	} else if s.leaving {
		if s.giveUp.IsZero() {
			s.giveUp = now.Add(min(leavePatience, s.timing.Lease))
			s.next = now
		}
		if !s.asked || !now.Before(s.giveUp) {
			return append(actions, s.exit(Left)...)
		}
	} else if s.lost {
		s.reincarnate(now)
	}
	actions = append(actions, s.presence.nextStatement(now, s.id)...)
	actions = append(actions, s.presence.done()...)
	if s.member && s.presence.unsaid() && s.failures == 0 {
		s.next = now // to publish it
	}
	if gone, _ := s.presence.gone(now); len(gone) > 0 && s.member {
		if s.step = true; s.failures == 0 {
			s.next = now
		}
	}
	if s.hears() && !s.inFlight && s.failures == 0 {
		s.sooner(s.hintSync.Add(s.hintGap()))
	}
	if !s.inFlight && !now.Before(s.next) && !(s.lost && s.running != nil) {
		actions = append(actions, Sync{s.request(now)})
		if s.hears() {
			s.hinted, s.hintSync = false, now
			s.vain++
		}
		s.inFlight, s.asked = true, true
		s.next = now.Add(s.timing.Heartbeat) // until the answer says otherwise
	}
	return append(actions, Wake{s.wakeAt(now)})
}

// hears reports whether there may be something new in the group, by a notification or a
// glimpse. (What was glimpsed while a request was under way is not new if the answer shows it.)
func (s *Session) hears() bool {
	return s.hinted || s.glimpsed > s.seen[0] || s.running == nil && s.given > max(s.seen[1], s.stopped)
}

// hintGap is how long after a request because of a notification the next one may be sent:
// at once after two in vain (a worker's own notification comes back), and then after ever
// longer, until an answer shows something new. A storm of notifications costs one statement
// in pollMax.
func (s *Session) hintGap() time.Duration {
	if s.vain <= 2 {
		return 0
	}
	return min(pollMin<<min(s.vain-3, 5), pollMax)
}

// giveUpAt returns when handlers that were cancelled are given up. A process
// that was frozen meanwhile gives them as much time after it has woken.
func (s *Session) giveUpAt() time.Time {
	at := s.stopping.Add(s.timing.Drain)
	if patience := s.canceled.Add(s.timing.Drain - s.timing.grace()); patience.After(at) {
		return patience
	}
	return at
}

// reincarnate begins a new incarnation, after everything that the old one ran has stopped.
// The old one's row may still be there; the join removes it, so that no other worker has to
// wait for its lease to end.
func (s *Session) reincarnate(now time.Time) {
	s.incarnation++
	s.id = s.name.again(s.incarnation)
	s.member, s.lost, s.leaseEnd = false, false, time.Time{}
	s.reported, s.step, s.renew, s.polls, s.glimpsed, s.given = s.stopped, false, false, 0, 0, 0
	p := &s.presence
	p.known, p.wanted, p.shown = 0, false, false
	p.bound = p.bound && p.why == ""
	s.next = now
}

// mayOnlyRead reports whether there is nothing to write: nothing to report or publish, and no
// lease to renew. A ReadOnly heartbeat is a third of the work of another one, for the worker
// and for the server. With it all workers find out at once that a generation was opened, or
// activated.
func (s *Session) mayOnlyRead(now time.Time) bool {
	return s.failures == 0 && s.stopped <= s.reported && !s.presence.unsaid() &&
		now.Before(s.renewal())
}

// renewal returns when the lease is to be renewed: a heartbeat after the latest renewal.
func (s *Session) renewal() time.Time {
	return s.leaseEnd.Add(s.timing.Heartbeat - s.timing.ownLease())
}

// request returns what to send now.
func (s *Session) request(now time.Time) Request {
	r := Request{Worker: s.id, Lease: s.timing.Lease, Stopped: s.stopped}
	if s.clock.fresh(now) {
		r.Watch = s.clock.watch()
	}
	due := false
	switch {
	case s.leaving && s.running == nil:
		r.Leave = true
		if s.replaced && !s.unsettled {
			r.Vacate = s.settings.Vacate
		}
	case !s.member:
		r.Join = true
		r.Wants, r.MaxPartitions, r.JoinWindow = s.settings.Wants, s.settings.MaxPartitions, s.settings.JoinWindow
	case s.stopped > s.reported && !s.renew:
		r.Report = true
	case s.ask:
		s.ask = false
	case !s.renew && !s.wantsStep() && !s.stepAt.IsZero() && !now.Before(s.stepAt):
		due, s.early = true, true
	case s.renew || !s.wantsStep():
		r.Heartbeat, r.ReadOnly, s.renew = true, s.mayOnlyRead(now), false
		r.Load = r.ReadOnly && s.running == nil
		r.Others = !r.ReadOnly && s.failures == 0 && s.presence.mayAskForOthers() // or it might fail for that
	default:
		due = true
	}
	if !r.Heartbeat {
		r.Watch.Absent = s.presence.remove(now)
		// Many workers find out at the same moment that a Step is due. Queued behind the
		// first, none could start before all earlier ones have read the
		// group once more. Should the one that has the lock never end, workers
		// that wait for a partition poll.
		r.Yield = due && len(r.Watch.Absent) == 0
	}
	if p := &s.presence; p.attached != 0 && p.why == "" && !p.trial() && !r.Leave && !r.ReadOnly {
		r.Presence, p.shown = Presence{p.key, p.attached}, true
	}
	return r
}

// wakeAt returns the next time at which advance would do something.
func (s *Session) wakeAt(now time.Time) time.Time {
	var at time.Time
	consider := func(t time.Time) {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if !s.inFlight {
		consider(s.next)
	}
	if p := &s.presence; p.bound {
		if !p.inFlight && p.why == "" {
			consider(p.next)
		}
		if begin, end, _ := p.proofEnds(); s.running != nil {
			consider(p.renewal())
			consider(begin)
			consider(end)
		}
		if _, next := p.gone(now); !next.IsZero() {
			consider(next)
		}
	}
	consider(s.giveUp)
	if s.member && !s.lost {
		consider(s.leaseEnd)
	}
	if s.running != nil && !s.stopping.IsZero() {
		consider(s.stopping.Add(s.timing.grace()))
		if !s.canceled.IsZero() {
			consider(s.giveUpAt())
		}
	}
	if at.IsZero() { // an answer is under way; nothing else can happen before it
		at = now.Add(s.timing.Heartbeat)
	}
	return at
}

// A clockWatch compares the database's clock with the worker's own.
type clockWatch struct {
	anchor reading   // what newer readings are compared with
	since  time.Time // own clock: readings have been even from here …
	until  time.Time // … to here
	seen   time.Time // the newest reading
	lease  time.Duration
	// How long the widest reading took: since the anchor, itself included; between
	// it and the one before; and so on. The last is for all before that.
	widest [watchSpans]time.Duration
}

// A reading of the database's clock was taken between sent and received.
type reading struct{ sent, received, database time.Time }

const (
	// A reading that is off by more than a lease/watchTolerance shows a step.
	watchTolerance = 50
	// Within a pause of more than a lease/watchPause the clock could step,
	// and step back. A reading that takes longer shows nothing.
	watchPause = 2
	// A request of several statements counts as a reading if it takes no more than a
	// lease/watchQuick: a slow answer makes the watch less certain, and these are slow by
	// themselves. There are heartbeats in between.
	watchQuick = 100
)

// observe adds a reading. It is compared with the anchor, which moves forward once per lease.
func (c *clockWatch) observe(sent, received, database time.Time, lease time.Duration) {
	r := reading{sent, received, database}
	a, tolerance := c.anchor, lease/watchTolerance
	advanced, width := database.Sub(a.database), received.Sub(sent)
	if width > lease/watchPause {
		*c = clockWatch{}
		return
	}
	tooFast := advanced-received.Sub(a.sent) > tolerance
	tooSlow := sent.Sub(a.received)-advanced > tolerance
	if a.database.IsZero() || tooFast || tooSlow || !c.fresh(sent) {
		*c = clockWatch{anchor: r, since: received, lease: lease}
		c.widest[0] = width
	} else {
		c.widest[0] = max(c.widest[0], width)
		if sent.Sub(a.sent) >= lease {
			c.widest[watchSpans-1] = max(c.widest[watchSpans-1], c.widest[watchSpans-2])
			copy(c.widest[1:watchSpans-1], c.widest[:])
			c.anchor, c.widest[0] = r, width
		}
	}
	c.seen, c.until = database, sent
}

// fresh reports whether the newest reading is recent enough at now to rely on.
func (c *clockWatch) fresh(now time.Time) bool { return now.Sub(c.until) <= c.lease/watchPause }

// watch returns the Watch. A step can hide in the tolerance and in the widths
// of the two readings that are compared.
func (c *clockWatch) watch() Watch {
	w := Watch{Seen: c.seen, For: max(0, c.until.Sub(c.since)), Span: c.lease}
	for i, widest := range c.widest {
		w.Errors[i] = c.lease/watchTolerance + 2*widest
	}
	return w
}
