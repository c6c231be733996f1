package protocol

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// A lane: one projection on one partition under one generation. This file has what it reads,
// handles and commits; lane_parked.go has parked events, lane_ordered.go orders to park one.
//
// A Lane promises that an event counts as handled only once the store has its checkpoint,
// that no event is handled again because of a lost answer (S3), that a handler's error ends in
// the configured policy and never in a loop without a pause, and that the lane ends soon after
// it was asked to. It must never start an event without checking its signals, never send
// COMMIT after a write whose answer came too late, and never leave a transaction open while it
// pauses.

// A LaneKind is how a lane calls its projection.
type LaneKind int

const (
	// Plain calls it with one event at a time; the checkpoint is committed afterwards.
	Plain LaneKind = iota
	// Transactional calls it with one event at a time, for several in one transaction that
	// also moves the checkpoint.
	Transactional
	// Batched calls it with several events at once, in such a transaction.
	Batched
	// PlainBatched calls it with several events at once; the checkpoint is committed afterwards.
	PlainBatched
)

// InTransaction reports whether the projection writes in a transaction that also moves
// the checkpoint.
func (k LaneKind) InTransaction() bool { return k == Transactional || k == Batched }

// many reports whether it takes several events at once.
func (k LaneKind) many() bool { return k == Batched || k == PlainBatched }

// LaneConfig is what a lane needs to know beside its assignment.
type LaneConfig struct {
	Kind      LaneKind
	Batch     int           // the most events to read at once, and to handle between two commits
	Poll      time.Duration // the longest pause when there is nothing to read
	Lease     time.Duration // of the worker
	Retry     Backoff       // of events whose handler failed
	OnFailure FailurePolicy // after Attempts
	Attempts  int           // at least one
	MaxParked int
	LoadAll   int // up to how many parked events are loaded as a whole each time; 0: loadAllMax
}

// cut is how long a Transactional batch may go on: the server ends a
// transaction that is idle for a lease, and handlers may leave it idle.
func (c LaneConfig) cut() time.Duration { return c.Lease / 4 }

// A LaneDo is what a lane's driver is to do next.
type LaneDo int

const (
	LaneStart  LaneDo = iota // not an action: Next was not called yet
	LaneLoad                 // read the checkpoint that activation left for the lane; answer Found
	LaneFind                 // read the checkpoint once every transaction that has written it has ended; answer Found
	LaneRead                 // read events above After, at most Limit; answer Page
	LaneOpen                 // begin a transaction for handlers
	LaneProve                // wait until the worker has a proof, see presence.go
	LaneHandle               // hand Count of the pending events, from First on, to the projection
	LaneWrite                // move the checkpoint From … To in the open transaction
	LaneCommit               // COMMIT
	LaneSave                 // move the checkpoint From … To, in a statement of its own that commits
	LanePause                // wait For, or until asked to stop; with NothingNew, or until there are new events
	LaneFollow               // read how far the live version of the projection is; answer Followed
	LaneEnd                  // the lane is over

	// About parked events; see advanceParked.
	LaneLoadParked // read the lane's rows of parked events; answer Parked
	LanePark       // move the checkpoint From … To and write rows for the first Count pending events (Parking), in a statement of its own that commits
	LaneFetch      // read the event at Position; answer Page
	LaneUnpark     // delete the row at Position in the open transaction
	LaneDrop       // delete the row at Position in a statement of its own that commits; with Discard, the event was never handled
	LaneNote       // write Attempts and the error into the row, and remove its request, in a statement of its own that commits

	// About orders to park an event; see applyOrders.
	LaneLocate // write the Slot of its event into Order, in a statement of its own that commits
	LaneLapse  // end Order, which is about the event at Position, with Err as the reason, in a statement of its own that commits
)

func (d LaneDo) String() string {
	return [...]string{"start", "load", "find", "read", "open", "prove", "handle", "write", "commit", "save", "pause", "follow", "end",
		"load parked", "park", "fetch", "unpark", "drop", "note", "locate", "lapse"}[d]
}

// A LaneAction is one thing to do, and then to answer. The constants of LaneDo name the fields
// that go with each. (It is one struct, and not a type for each action as a Session's, since
// there is one for each event: an interface would put each on the heap.)
type LaneAction struct {
	Do LaneDo
	// Rollback means to roll the open transaction back first: it is not needed any more,
	// and it may hold locks that a pause must not keep.
	Rollback bool

	After        int64
	Limit        int
	First, Count int
	From, To     Checkpoint

	For      time.Duration
	Retry    time.Duration // the time until the event at fault is tried again, which may take several pauses
	Why      LanePauseWhy
	Position int64 // of the event at fault, or of a parked one
	// Attempts is how often the event at fault has failed; of LaneHandle, how often the
	// first of the events has failed before this attempt.
	Attempts int

	Parked  bool // of LaneHandle: the event is not a pending one, but the one that LaneFetch has read
	Replay  bool // of LaneHandle: the live version of the projection has handled the events
	Fresh   bool // of LaneFollow: read it now, and don't reuse what another lane has read
	Discard bool // of LaneDrop: the event was never handled
	Ordered bool // of LanePark: an operator has ordered it

	Order int64
	Slot  int

	Requests bool // of LaneLoadParked: load only rows with a request

	// Thwarted, if it is not 0, is to be passed to the session as Thwarted: how often in a
	// row the lane was interrupted.
	Thwarted int

	End LaneEndWhy
	// Settled, of a LaneEnd, is true if nothing that the lane has sent can take effect any
	// more: the outcome of each of its commits is known.
	Settled bool
	Err     error // what is wrong with a page, or with an event beside the handler's error
}

// String returns the action in a few words: "read 100 after 120".
func (a LaneAction) String() string {
	text := a.Do.String()
	switch a.Do {
	case LaneRead:
		text = fmt.Sprintf("read %d after %d", a.Limit, a.After)
	case LaneHandle:
		text = fmt.Sprintf("handle %d+%d", a.First, a.Count)
		if a.Parked {
			text = fmt.Sprintf("handle parked %d", a.Position)
		}
	case LanePark:
		text = fmt.Sprintf("park %d, %s to %s", a.Count, a.From, a.To)
	case LaneLoadParked:
		if a.Requests {
			text = "load requests"
		}
	case LaneFetch, LaneUnpark, LaneDrop:
		text = fmt.Sprintf("%s %d", a.Do, a.Position)
	case LaneNote:
		text = fmt.Sprintf("note %d, attempt %d", a.Position, a.Attempts)
	case LaneWrite, LaneSave:
		text = fmt.Sprintf("%s %s to %s", a.Do, a.From, a.To)
	case LaneLocate:
		text = fmt.Sprintf("locate %d, slot %d", a.Position, a.Slot)
	case LaneLapse:
		text = fmt.Sprintf("lapse %d: %v", a.Position, a.Err)
	case LanePause:
		text = fmt.Sprintf("pause %s: %s", max(a.For, a.Retry), a.Why)
	case LaneEnd:
		text = fmt.Sprintf("end: %s", a.End)
	}
	if a.Ordered {
		text += " by order"
	}
	if a.Do == LanePause && a.Why == HandlerWaits {
		return text
	}
	if a.Do == LanePause && a.Why == HandlerCut {
		text += fmt.Sprintf(" at %d", a.Position)
	} else if a.Do == LanePause && a.Why >= HandlerFailed || a.Do == LanePark && a.Attempts > 0 || a.End == EndHandlerFailed {
		text += fmt.Sprintf(" at %d, attempt %d", a.Position, a.Attempts)
	}
	if a.Rollback {
		text = "rollback, " + text
	}
	return text
}

// LanePauseWhy is why a lane pauses.
type LanePauseWhy int

const (
	NothingNew LanePauseWhy = iota
	// AtLive means that a follower has reached the live version of its projection.
	AtLive
	DatabaseFailed
	HandlerFailed
	// ParkedFull means that the event at Position is to be parked, and there is no room.
	ParkedFull
	// Suspended means that the library has cancelled the handler.
	Suspended
	// HandlerCut means that the handler has lost its database connection, which is not a
	// failure of the handler.
	HandlerCut
	// HandlerWaits means that the pause after a failure continues.
	HandlerWaits
)

func (w LanePauseWhy) String() string {
	return [...]string{"nothing new", "the live version is no further", "the database failed", "the handler failed", "too many parked", "suspended", "the handler's connection was lost", "until the next attempt"}[w]
}

// LaneEndWhy is why a lane ends.
type LaneEndWhy int

const (
	// EndRequested means that the lane was drained or cancelled.
	EndRequested LaneEndWhy = iota
	// EndFenced means that the lane ends without a request: its commit was refused, or the
	// lease was over, which may have been renewed at the same moment. The session has to
	// learn of it, or it keeps a partition for which this lane is missing.
	EndFenced
	// EndPermanent means that trying again can't help.
	EndPermanent
	// EndHandlerFailed means that a handler failed, and that ends the worker.
	EndHandlerFailed
)

// Tells returns the session's input for a lane of the generation that has ended; nil for one
// that was drained or cancelled.
func (w LaneEndWhy) Tells(generation int64) Input {
	switch w {
	case EndRequested:
		return nil
	case EndFenced:
		return Refused{generation}
	}
	return Shutdown{}
}

func (w LaneEndWhy) String() string {
	return [...]string{"requested", "fenced", "permanent failure", "handler failed"}[w]
}

// A Failure is what is known of a call that did not succeed.
type Failure int

const (
	NoFailure Failure = iota
	// Passing means that the connection was lost, or the server chose this transaction to
	// end a deadlock or conflict, or there was no answer in time. Whether the call has had
	// its effect is open. Of a handler: there was a deadlock or conflict, so trying again
	// should succeed; if it does not for long enough, it counts as Fault.
	Passing
	// Fenced means that the fence matched no row: the call has had no effect.
	Fenced
	// Fault means that the handler failed, or what it wrote was refused, at COMMIT or
	// by the transaction in which a statement of its had failed.
	Fault
	// Permanent means that it will never work, by the server or by the handler.
	Permanent
	// NotBegun means that a handler was not called, since by then the proof had run out.
	NotBegun
	// Interrupted means that the library has cancelled the handler. Nothing is known of the
	// handler itself.
	Interrupted
	// Cut means that the handler has lost its database connection, or could get none.
	// That is not a failure of the handler; but if it happens at the same event for long
	// enough, it counts as Fault.
	Cut
)

// Signals is what a lane checks before each action.
type Signals struct {
	Asked     bool // drain; set with Canceled as well
	Canceled  bool // commit nothing more
	LeaseOver bool // start no event
	Unproven  bool // start no event until there is a proof
}

func (s Signals) stopping() bool { return s.Asked || s.Canceled || s.LeaseOver }

// Terms are until when a worker's handlers may run. They come from Session.Terms.
type Terms struct {
	End time.Time // of the part of the lease that its holder uses
	// Bound is true if handlers also need a proof that the worker is there. By the latest
	// proof they may begin until Begin, and go on until GoOn.
	Bound       bool
	Begin, GoOn time.Time
}

// Over reports whether the lease is over.
func (t Terms) Over(now time.Time) bool { return !now.Before(t.End) }

// Unproven reports whether no handler may begin, since there is no recent proof.
func (t Terms) Unproven(now time.Time) bool { return t.Bound && !now.Before(t.Begin) }

// Ended reports whether a handler that runs is cancelled by now, or about to be: a
// process that was frozen may get here before it has done that.
func (t Terms) Ended(now time.Time) bool { return t.Over(now) || t.Bound && !now.Before(t.GoOn) }

// A LaneAnswer is the outcome of the latest action.
type LaneAnswer struct {
	Failure Failure
	Jitter  float64 // a random number in [0,1)
	Found   Found
	Page    []Key
	Parked  []Parked
	Followed
	// More is true if there is more to read at once.
	More bool
	// Passed is the position up to which everything was read, if that is beyond the page:
	// events out of the projection's scope are in no page.
	Passed int64
}

// A Lane runs one projection on one partition under one generation. It returns one action
// at a time, and takes the outcome:
//
//	load ─▶ load parked ─▶ read ─▶ open ─▶ handle … ─▶ write ─▶ commit ─▶ read …
//	                         ▲     (or: handle … ─▶ save)        │ unclear
//	                         └─ applied, not applied ◀── find ──▶ superseded: end
//
// It saves if the projection does not write in a transaction of the lane's.
//
// An answer may be stale when it arrives: the process may have
// been frozen in between. So a lane checks its signals after each answer, and
// COMMIT is an action of its own: a write whose answer came too late for the
// caller counts as failed, and is never committed.
//
// If nothing commits with the checkpoint, it moves in one statement. That
// may take effect late, when its sender has given up:
//  1. w1 saves 10 to 20, and gets no answer;
//  2. it finds the row at 10;
//  3. the statement arrives, and the row is at 20.
//
// Even then the row is right: the events to 20 were handled before it was
// sent, under the generation that it names. So w1 saves the same again until it
// knows the outcome; and once another generation is active, or the row was moved in any other
// way, the statement matches nothing.
type Lane struct {
	config     LaneConfig
	assignment Assignment
	track      *Track // nil until the checkpoint was found

	doing   LaneDo
	called  time.Time                                  // when the handler was called last
	vain    int                                        // how often in a row it was interrupted, or not called
	resume  func(*Lane, time.Time, Signals) LaneAction // what to do after a pause
	kept    []int                                      // of the latest page
	settled int                                        // how many events the commit held that was just answered; -1: there was none

	follows bool // another version of the projection is the live one
	sure    bool // that was checked after parked events were loaded

	fresh bool // the latest action was Fresh

	more bool // there is more to read at once
	open bool // there is, or may be, a transaction

	// The batch under way.
	size, done int
	began      time.Time
	failed     *LaneAnswer // of a Plain handler, until what precedes it is committed
	next       Checkpoint  // of the commit
	resolving  bool        // the outcome of the commit is open
	unclear    bool        // a statement that commits may take effect late
	refused    bool        // the fence has refused the commit

	parkedSet    ParkedSet     // what is parked
	loadedAt     time.Time     // when rows of parked events were loaded last
	loadedAllAt  time.Time     // when all of them were
	loadBegan    time.Time     // when the latest load began
	requests     bool          // it was of rows with a request only
	allTook      time.Duration // how long the latest load of all rows took
	requestsTook time.Duration // how long the latest load of rows with a request took
	turn         time.Time     // since when parked events are handled; zero: it is the turn of new ones
	crowded      bool          // that was for long enough, and more are due
	parking      []Parked      // what the commit under way parks; nil: nothing
	hand         *Parked       // the parked event that is in hand; see advanceParked
	last         LaneAction    // the one to repeat if its answer is lost

	orders []Parked      // orders to park an event that are still open
	wait   time.Duration // the time that is left until the event at fault is tried again

	// Failures that should pass by themselves: of the first pending event, and of
	// the parked one that was in hand last.
	passes, handPasses passes

	// Failures of the database in a row, until something could be read, and
	// until something was committed.
	readFailures, failures int
}

// NewLane returns the lane of an assignment.
func NewLane(a Assignment, c LaneConfig) *Lane { return &Lane{assignment: a, config: c} }

// Kept returns the indexes of the events of the page that was just answered that are pending
// now, behind the earlier ones. The driver keeps these events, and forgets those at the
// front that are not Pending any more.
func (l *Lane) Kept() []int { return l.kept }

// Pending returns the number of events that are read and not yet committed.
func (l *Lane) Pending() int {
	if l.track == nil {
		return 0
	}
	return l.track.Pending()
}

// Next takes the answer to the latest action and returns the next one. The
// answer of the first call is ignored.
func (l *Lane) Next(now time.Time, s Signals, a LaneAnswer) LaneAction {
	s.Asked = s.Asked || s.Canceled
	l.kept, l.settled = nil, -1
	switch l.doing {
	case LaneCommit, LaneSave, LanePark, LaneDrop, LaneLocate, LaneLapse:
		l.unclear = l.unclear || a.Failure != NoFailure
	}
	thwarted := l.thwarted(a)
	action := l.advance(now, s, a)
	action.Thwarted = thwarted
	if action.Do == LaneHandle {
		l.called, action.Replay = now, l.follows
	}
	switch action.Do {
	case LaneHandle, LaneWrite, LaneUnpark, LaneCommit:
	default:
		action.Rollback, l.open = l.open, false
	}
	action.Settled = action.Do == LaneEnd && action.End == EndRequested && !l.unclear
	l.doing, l.requests, l.fresh = action.Do, action.Requests, action.Fresh
	return action
}

// thwarted counts how often in a row the handler was interrupted, or not called. It
// returns 0 if the latest answer was about something else.
func (l *Lane) thwarted(a LaneAnswer) int {
	switch {
	case l.doing != LaneHandle:
	case a.Failure == NoFailure:
		l.vain = 0
	case a.Failure == Interrupted, a.Failure == NotBegun:
		l.vain++
		return l.vain
	}
	return 0
}

// Judge returns what an error of the latest action means; see Classify. cancelled is whether
// the library has cancelled the handler's context, and terms are the present ones. It also
// returns the facts, completed by what the lane knows.
//
// If the database driver does not report that the server has ended an idle transaction, all
// that can be seen is a connection that was lost, at least a lease after the handler was
// called. Were that to pass, a handler that always takes so long would be called without
// end.
func (l *Lane) Judge(now time.Time, f Facts, cancelled bool, terms Terms) (Facts, Failure) {
	switch l.doing {
	case LaneHandle, LaneWrite, LaneUnpark:
		lost := (f.Lost || f.Network) && now.Sub(l.called) >= l.config.Lease
		f.Idled = f.Idled || l.config.Kind.InTransaction() && f.Failed && (f.State == "25P03" || lost)
	}
	return f, Classify(f, l.config.Kind, l.doing, cancelled || terms.Ended(now))
}

func (l *Lane) advance(now time.Time, s Signals, a LaneAnswer) LaneAction {
	if l.hand != nil {
		return l.advanceParked(now, s, a)
	}
	ok := a.Failure == NoFailure
	if (l.doing == LaneCommit || l.doing == LaneSave || l.doing == LanePark) && ok { // has happened, whatever else has
		l.open = false
		return l.committed(now, s)
	}
	// Before anything ends the lane: it must not leave a transaction behind.
	l.open = l.open || l.doing == LaneOpen && ok
	if s.Canceled {
		return end(s)
	}
	switch l.doing {
	case LaneStart:
		return load(l, now, s)
	case LaneLoad:
		if !ok {
			return l.databaseFailed(&l.failures, a, load)
		}
		return l.loaded(now, s, a.Found)
	case LaneFind:
		switch {
		case !ok:
			return l.databaseFailed(&l.failures, a, find)
		case l.resolving:
			return l.resolve(now, s, a)
		}
		return l.loaded(now, s, a.Found)
	case LaneLoadParked:
		return l.checkParked(now, s, a)
	case LaneFetch:
		return l.located(now, s, a)
	case LaneLocate, LaneLapse:
		return l.answered(now, s, a)
	case LaneRead:
		return l.page(now, s, a)
	case LaneFollow:
		return l.followed(now, s, a)
	case LaneOpen:
		if !ok {
			return l.databaseFailed(&l.failures, a, (*Lane).top)
		}
		l.began = now
		return l.handle(now, s)
	case LaneProve:
		return l.begin(now, s)
	case LaneHandle:
		if a.Failure == NotBegun {
			return l.prove()
		}
		return l.handled(now, s, a)
	case LaneWrite:
		if !ok {
			return l.commitFailed(now, a)
		}
		return LaneAction{Do: LaneCommit}
	case LaneCommit, LaneSave, LanePark:
		return l.commitFailed(now, a)
	case LanePause:
		if s.Asked {
			return end(s)
		}
		return l.resume(l, now, s)
	}
	return end(s)
}

// end ends the lane because of its signals.
func end(s Signals) LaneAction {
	if s.Asked {
		return LaneAction{Do: LaneEnd, End: EndRequested}
	}
	return LaneAction{Do: LaneEnd, End: EndFenced}
}

// load reads a row that no other lane writes any more: the one that ran the partition before
// has been fenced by the activation, or has committed before it.
func load(*Lane, time.Time, Signals) LaneAction { return LaneAction{Do: LaneLoad} }

// find waits for the lane's own commit whose answer was lost.
func find(*Lane, time.Time, Signals) LaneAction { return LaneAction{Do: LaneFind} }

// databaseFailed pauses and then continues with resume, or ends the lane if that can't
// succeed.
func (l *Lane) databaseFailed(failures *int, a LaneAnswer, resume func(*Lane, time.Time, Signals) LaneAction) LaneAction {
	if a.Failure == Permanent {
		return LaneAction{Do: LaneEnd, End: EndPermanent}
	}
	*failures++
	l.resume = resume
	return LaneAction{Do: LanePause, For: RetryLane.Backoff().Delay(*failures, a.Jitter), Why: DatabaseFailed}
}

// loaded takes the checkpoint that activation left for this lane. If the lane has a track
// already, it has only waited for the row.
func (l *Lane) loaded(now time.Time, s Signals, found Found) LaneAction {
	if !found.Exists || found.Generation != l.assignment.Generation {
		return LaneAction{Do: LaneEnd, End: EndFenced}
	}
	if l.track == nil {
		l.failures = 0
		l.track = NewTrack(l.assignment.Partition, l.assignment.Total, found.Checkpoint, now)
		l.follows = found.Follows
	}
	if found.NoneParked {
		return l.checkParked(now, s, LaneAnswer{})
	}
	return l.checkAll(now)
}

// top begins another round.
func (l *Lane) top(now time.Time, s Signals) LaneAction {
	if s.stopping() {
		return end(s)
	}
	if l.parkedSet.Len() > 0 {
		if action, due := l.nextParked(now); due {
			return action
		}
	}
	l.turn = time.Time{}
	return l.fill(now, s)
}

// fill reads until there is a batch of the lane's own events, or nothing more to read for
// now.
func (l *Lane) fill(now time.Time, s Signals) LaneAction {
	if l.track.Pending() >= l.config.Batch {
		l.more = true
		return l.batch(now, s)
	}
	if l.follows && (l.track.ceiling == nil || l.track.AtCeiling()) {
		if l.track.Pending() > 0 {
			l.more = true
			return l.batch(now, s)
		}
		return LaneAction{Do: LaneFollow}
	}
	return LaneAction{Do: LaneRead, After: l.track.Cursor(), Limit: l.config.Batch}
}

// followed continues up to where the live version is by now.
func (l *Lane) followed(now time.Time, s Signals, a LaneAnswer) LaneAction {
	if a.Failure != NoFailure {
		l.more = true
		return l.databaseFailed(&l.readFailures, a, (*Lane).batch)
	}
	l.readFailures, l.follows = 0, !a.Live
	l.track.Follow(a.ceiling(l.assignment.Partition, l.assignment.Total))
	if !l.sure && l.fresh {
		l.sure = true
		return l.top(now, s)
	}
	if l.more = false; !s.stopping() && !l.track.AtCeiling() {
		return l.fill(now, s)
	}
	return l.batch(now, s)
}

func (l *Lane) page(now time.Time, s Signals, a LaneAnswer) LaneAction {
	l.more = true
	if a.Failure != NoFailure {
		return l.databaseFailed(&l.readFailures, a, (*Lane).batch)
	}
	l.readFailures = 0
	before := l.track.Cursor()
	var err error
	if l.kept, err = l.track.Accept(a.Page, a.Passed); err != nil {
		return LaneAction{Do: LaneEnd, End: EndPermanent, Err: fmt.Errorf("read after position %d, limit %d: %w", before, l.config.Batch, err)}
	}
	// A page in which all events are other lanes' is not the end of the stream: only an
	// empty one is. A lane that paused here for Poll would not be there to make the feed
	// read on:
	//  1. partitions 0 and 1 are in two processes; an event of 1 is appended;
	//  2. the lane of 0 skips it, and pauses; in its process no lane is at the
	//     end, so the feed does not poll;
	//  3. an event of 0 is appended, and waits until the pause is over.
	l.more = a.More || l.track.Pending() == 0 && l.track.Cursor() > before
	if l.more && !s.stopping() && (l.track.Pending() > 0 || !l.track.SkipDue(now)) {
		return l.fill(now, s)
	}
	return l.batch(now, s)
}

// batch begins to handle what was read, or commits what was skipped.
func (l *Lane) batch(now time.Time, s Signals) LaneAction {
	if s.stopping() {
		return end(s)
	}
	l.size, l.done, l.failed = l.track.Batch(l.config.Batch), 0, nil
	if len(l.orders) > 0 {
		if action, due := l.applyOrders(); due {
			return action
		}
	}
	if l.parkedSet.Len() > 0 {
		n, behind := l.track.Split(l.size, &l.parkedSet)
		if behind {
			return l.park(n, 0, LaneAnswer{})
		}
		l.size = n
	}
	switch {
	case l.size == 0 && l.track.SkipDue(now):
		return l.write(0)
	case l.size == 0:
		return l.rest(now, s)
	case l.wait > 0:
		return l.waitOn()
	}
	return l.begin(now, s)
}

// begin opens a transaction if the projection needs one, and there is a proof.
func (l *Lane) begin(now time.Time, s Signals) LaneAction {
	if !l.config.Kind.InTransaction() || s.stopping() || s.Unproven {
		return l.handle(now, s)
	}
	return LaneAction{Do: LaneOpen}
}

// prove waits for a proof, without a transaction. A proof needs a connection
// that may have to come from the same pool:
//  1. as many lanes as the pool has connections have each begun a transaction;
//  2. the worker's own session is gone, and they wait for a proof;
//  3. the worker waits for a connection to open another session on.
func (l *Lane) prove() LaneAction {
	if l.open && l.done > 0 {
		return l.write(l.done)
	}
	return LaneAction{Do: LaneProve}
}

// rest pauses when there is nothing new.
func (l *Lane) rest(now time.Time, s Signals) LaneAction {
	if l.more || l.crowded {
		l.crowded = false
		return l.top(now, s)
	}
	l.resume = (*Lane).top
	pause := LaneAction{Do: LanePause, For: l.config.Poll, Why: NothingNew}
	if l.parkedSet.Len() > 0 {
		pause.For = l.checkEvery()
	}
	if l.follows && l.track.AtCeiling() {
		pause.For, pause.Why = min(pause.For, l.track.ceiling.rest()), AtLive
	}
	return pause
}

// handle continues with the batch, or commits what is done of it. The signals
// are checked before each event: a process that was frozen continues in the
// middle of a batch.
func (l *Lane) handle(now time.Time, s Signals) LaneAction {
	long := l.config.Kind == Transactional && l.done > 0 && now.Sub(l.began) > l.config.cut()
	switch {
	case l.done < l.size && !s.stopping() && !long && s.Unproven:
		return l.prove()
	case l.done < l.size && !s.stopping() && !long:
		n := 1
		if l.config.Kind.many() {
			n = l.size
		}
		return LaneAction{Do: LaneHandle, First: l.done, Count: n, Attempts: l.track.Attempts(l.done)}
	case l.done == 0:
		return end(s)
	}
	return l.write(l.done)
}

func (l *Lane) handled(now time.Time, s Signals, a LaneAnswer) LaneAction {
	switch {
	case a.Failure == NoFailure && l.config.Kind.many():
		l.done = l.size
	case a.Failure == NoFailure:
		l.done++
	case a.Failure == Interrupted && (l.config.Kind.InTransaction() || l.done == 0):
		return l.interrupted()
	case a.Failure == Interrupted:
		return l.write(l.done)
	case l.config.Kind.many():
		return l.faultWithin(now, l.size, a)
	case l.config.Kind == Transactional || l.done == 0:
		return l.faultAt(now, l.done, a)
	default: // commit what precedes the event
		failed := a // a copy: a itself would be on the heap for each event
		l.failed = &failed
		return l.write(l.done)
	}
	return l.handle(now, s)
}

// interrupted begins the batch again, in another transaction, once there is a proof.
// It does not count as a failure of the handler.
func (l *Lane) interrupted() LaneAction {
	l.done = 0
	return LaneAction{Do: LaneProve, Why: Suspended, Position: l.track.First()}
}

// write moves the checkpoint past the first n pending events.
func (l *Lane) write(n int) LaneAction {
	l.size, l.done, l.next, l.refused = n, n, l.track.After(n), false
	return l.rewrite()
}

func (l *Lane) rewrite() LaneAction {
	a := LaneAction{Do: LaneWrite, From: l.track.Checkpoint(), To: l.next}
	switch {
	case l.parking != nil:
		a.Do, a.Count, a.Position, a.Attempts = LanePark, len(l.parking), l.parking[0].Position, l.parking[0].Attempts
		a.Ordered = l.parking[0].Request == ToPark
	case l.saves():
		a.Do = LaneSave
	}
	return a
}

// saves reports whether nothing commits with the checkpoint but the rows of
// parked events: the effects of a Plain projection are there already, and skipped events have
// none.
func (l *Lane) saves() bool { return !l.config.Kind.InTransaction() || l.size == 0 || l.parking != nil }

// committed continues once the store has l.next.
func (l *Lane) committed(now time.Time, s Signals) LaneAction {
	l.track.Committed(l.next, l.size, now)
	l.settled, l.done = max(0, l.size-len(l.parking)), 0
	// Statements whose outcome was open start from where the checkpoint was before: they
	// match nothing now.
	l.unclear = false
	l.failures, l.resolving, l.refused, l.passes, l.wait = 0, false, false, passes{}, 0
	for i := range l.parking {
		l.obeyed(l.parking[i].Position)
		l.parking[i].Since, l.parking[i].Request = now, Unasked
	}
	if l.parking != nil {
		l.parkedSet.Add(l.parking...)
		l.parking = nil
	}
	failed := l.failed
	l.failed = nil
	switch {
	case s.Canceled:
		return end(s)
	case failed != nil: // it is the first pending now
		return l.faultAt(now, 0, *failed)
	case l.size == 0:
		return l.rest(now, s)
	}
	return l.top(now, s)
}

// commitFailed begins to find out whether the commit has happened. Events of a Plain lane
// are not handled again because of it: the commit is tried until it has
// happened or can't happen any more.
func (l *Lane) commitFailed(now time.Time, a LaneAnswer) LaneAction {
	switch inTransaction := !l.saves(); {
	case inTransaction && a.Failure == Fault:
		return l.faultWithin(now, l.size, a)
	case inTransaction && a.Failure == Interrupted:
		return l.interrupted()
	}
	l.resolving = true
	if l.refused = a.Failure == Fenced; l.refused {
		return LaneAction{Do: LaneFind}
	}
	return l.databaseFailed(&l.failures, a, find)
}

func (l *Lane) resolve(now time.Time, s Signals, a LaneAnswer) LaneAction {
	l.resolving = false
	switch l.track.Resolve(l.assignment.Generation, l.next, a.Found) {
	case Applied:
		return l.committed(now, s)
	case Superseded:
		return LaneAction{Do: LaneEnd, End: EndFenced}
	case MovedAway:
		l.track.Rewind(a.Found.Checkpoint, now)
		l.done = 0
		if l.parking = nil; !s.stopping() {
			return l.checkAll(now)
		}
	case NotApplied:
		if l.saves() {
			return l.rewrite()
		}
		return l.undone(now, s, a)
	}
	return l.top(now, s)
}

// ErrNotMoved is the error of a handler after which its own transaction can't move the
// checkpoint, although no other transaction has moved it. The handler must leave the
// library's tables alone.
var ErrNotMoved = errors.New("the checkpoint could not be moved after the handler, although no other transaction has moved it: " +
	"the handler has changed its row, or its transaction no longer sees that row; leave the library's tables alone in handlers")

// undone lets the events be handled again in another transaction: a shorter one, in case
// the length of the first one was the cause. An event whose transaction never commits, although
// it is alone in it, is at fault.
//
// If the fence refuses a commit although the checkpoint is where it was under the
// lane's own generation, the handler is the cause: it has moved the row in its own
// transaction, or does not see it any more. Were that not its fault, it would be
// called again at once, without end.
func (l *Lane) undone(now time.Time, s Signals, a LaneAnswer) LaneAction {
	if l.refused {
		a.Failure, l.refused = Fault, false
		fault := l.faultWithin(now, l.size, a)
		fault.Err = ErrNotMoved
		return fault
	}
	a.Failure = Cut
	switch {
	case l.size > 1:
		l.track.FailedWithin(l.size)
	case !l.counts(now, a):
		l.track.Suspect(0)
	default:
		position, attempts := l.track.Failed(0)
		if action, over := l.blame(position, attempts, a); over {
			return action
		}
	}
	return l.top(now, s)
}

// faultAt pauses before the i-th pending event, at which the handler failed,
// is handled again, or ends the lane. Only the first event of a batch has certainly
// failed: others are tried alone before a failure counts.
func (l *Lane) faultAt(now time.Time, i int, a LaneAnswer) LaneAction {
	counts := i == 0 && l.counts(now, a)
	if a.Failure == Cut && !counts {
		return l.cut(l.track.Suspect(i), a)
	}
	position, attempts := l.track.Failed(i)
	return l.fault(position, attempts, counts, a)
}

// faultWithin is faultAt for one of the first n pending events, if it is not known which.
func (l *Lane) faultWithin(now time.Time, n int, a LaneAnswer) LaneAction {
	if n == 1 {
		return l.faultAt(now, 0, a)
	}
	position, attempts := l.track.FailedWithin(n)
	if a.Failure == Cut {
		return l.cut(position, a)
	}
	return l.fault(position, attempts, false, a)
}

// cut pauses before events are handled again after their handler has lost its connection.
func (l *Lane) cut(position int64, a LaneAnswer) LaneAction {
	return l.retryIn(l.config.Retry.Delay(l.passes.n, a.Jitter), LaneAction{Do: LanePause, Why: HandlerCut, Position: position})
}

// counts reports whether a failure at the first pending event, alone in its batch, counts. One
// that should pass by itself counts once it has not passed for long enough.
func (l *Lane) counts(now time.Time, a LaneAnswer) bool {
	passing := a.Failure == Passing || a.Failure == Cut
	return !passing || l.passes.over(l.track.First(), now, l.config)
}

func (l *Lane) fault(position int64, attempts int, counts bool, a LaneAnswer) LaneAction {
	if counts {
		if action, over := l.blame(position, attempts, a); over {
			return action
		}
	}
	in := l.config.Retry.Delay(max(attempts, l.passes.n), a.Jitter)
	switch {
	case a.Failure == Permanent && counts: // the policy is to try again, and soon is of no use
		in = l.config.Retry.Delay(math.MaxInt, a.Jitter)
	case a.Failure == Permanent: // at once, to find out which event it is
		in = 0
	}
	return l.retryIn(in, LaneAction{Do: LanePause, Why: HandlerFailed, Position: position, Attempts: attempts})
}

// blame counts a failure, and returns what FailurePolicy demands if there were enough of
// them. A permanent one is always enough.
func (l *Lane) blame(position int64, attempts int, a LaneAnswer) (action LaneAction, over bool) {
	if l.track.Blame() < l.config.Attempts && a.Failure != Permanent {
		return LaneAction{}, false
	}
	switch l.config.OnFailure {
	case StopOnFailure:
		return LaneAction{Do: LaneEnd, End: EndHandlerFailed, Position: position, Attempts: attempts}, true
	case ParkEvents:
		return l.park(1, attempts, a), true
	}
	return LaneAction{}, false
}

// passes are failures in a row at one event, alone in its batch, each of which should pass by
// itself.
type passes struct {
	position int64
	n        int
	since    time.Time
}

// passesMax is how many times LaneConfig.Attempts failures that should pass by themselves may
// come at the same event before they count as failures of the handler.
const passesMax = 3

// over adds one more, and reports whether they count by now: there were more than
// passesMax times Attempts, over more than a lease. An event that crashes the server,
// or always ends its own connection, looks like a network problem; but a network problem
// ends, or costs the worker its lease.
func (p *passes) over(position int64, now time.Time, c LaneConfig) bool {
	if p.position != position || p.n == 0 {
		*p = passes{position: position, since: now}
	}
	p.n++
	return p.counts(position, now, c)
}

// counts reports whether the failures at the event count.
func (p *passes) counts(position int64, now time.Time, c LaneConfig) bool {
	return p.position == position && p.n > passesMax*c.Attempts && now.Sub(p.since) > c.Lease
}
