package protocol

import (
	"cmp"
	"errors"
	"time"
)

// Parked events: a dead-letter queue for each projection.
//
// This file promises that an event is handled, or parked, or still before the lane, and never
// two of these (S2, S3); and that later events of a parked event's aggregate are parked behind
// it (S4). It must never change its mind about a park whose answer was lost.
//
// A park moves the checkpoint past events and writes their rows, in one
// statement that commits by itself, behind the same fence as any other commit. Like a save
// it may take effect late, when its sender has given up,
// and like a save it is sent again until it is known to have happened:
//  1. w1 parks 12, moving from 10 to 12, and gets no answer;
//  2. it finds the row at 10, and calls the handler again, which succeeds now;
//  3. the statement arrives: 12 is handled and parked.
//
// Step 2 does not come: the decision to park stays. And no other worker's handler is
// called with 12 before another generation is active, which fences the park.
//
// The row of a parked event names its slot, so rows need no hand-over.
// The lane loads them after it has found its checkpoint, under its own generation:
// what was parked under an older one was parked by then, or never will be. So a statement that
// sees that checkpoint sees those rows; if it sees none, there are none to load.
//
// Operators write requests into the rows, and the lane carries them out
// between two batches. The event that it is about to handle or delete is "in hand".
//
// Requests come before new events: those of the same aggregate would otherwise be parked
// behind an event that is about to be handled. If very many events are parked, new events
// make progress all the same:
//   - most loads are of rows with a request only: only the lane itself adds and removes rows
//     of its slots, others write nothing but requests;
//   - loads take at most about a tenth of the lane's time;
//   - parked events are handled for parkedTurn; then it is the turn of a batch of
//     new ones, if there are any.

// parkedTurn is for how long parked events are handled before new ones.
const parkedTurn = 100 * time.Millisecond

// loadAllMax is LaneConfig.LoadAll by default. If more are parked, all are loaded every
// loadAllEvery only: someone may have deleted rows by hand.
const (
	loadAllMax   = 1000
	loadAllEvery = time.Minute
)

// checkEvery is how often to check for requests while events are parked.
func (l *Lane) checkEvery() time.Duration { return min(l.config.Poll, time.Second) }

// checkDue reports whether it is time to check again.
func (l *Lane) checkDue(now time.Time) bool {
	return now.Sub(l.loadedAt) >= max(l.checkEvery(), 10*l.requestsTook)
}

// many reports whether so many events are parked that they must not hold up the rest.
func (l *Lane) many() bool { return l.parkedSet.Len() > cmp.Or(l.config.LoadAll, loadAllMax) }

// checkAll begins to load all rows.
func (l *Lane) checkAll(now time.Time) LaneAction {
	l.loadBegan = now
	return LaneAction{Do: LaneLoadParked}
}

// checkAgain begins to load all rows, or those with a request.
func (l *Lane) checkAgain(now time.Time) LaneAction {
	a := l.checkAll(now)
	a.Requests = l.many() && now.Sub(l.loadedAllAt) < max(loadAllEvery, 10*l.allTook)
	return a
}

// Parked returns how many events are parked, and since when the oldest is.
func (l *Lane) Parked() (n int, oldest time.Time) { return l.parkedSet.Len(), l.parkedSet.Oldest() }

// Parking returns the events that LanePark is to park.
func (l *Lane) Parking() []Parked { return l.parking }

// checkParked takes the rows that were loaded.
func (l *Lane) checkParked(now time.Time, s Signals, a LaneAnswer) LaneAction {
	if a.Failure != NoFailure {
		again := LaneAction{Do: LaneLoadParked, Requests: l.requests}
		return l.databaseFailed(&l.readFailures, a, func(l *Lane, now time.Time, _ Signals) LaneAction {
			l.loadBegan = now // a load that has failed does not show how long one takes
			return again
		})
	}
	l.loadedAt, l.sure = now, false
	a.Parked = l.takeOrders(a.Parked)
	if l.requests {
		l.parkedSet.Ask(a.Parked)
		l.requestsTook = now.Sub(l.loadBegan)
	} else {
		l.parkedSet = NewParkedSet(a.Parked)
		l.loadedAllAt, l.allTook = now, now.Sub(l.loadBegan)
		l.requestsTook = min(l.requestsTook, l.allTook) // they are some of all
	}
	if l.config.OnFailure == ParkEvents || l.parkedSet.Len() > 0 || len(l.orders) > 0 {
		l.track.Keep()
	}
	if l.wait > 0 && len(l.orders) == 0 && !s.stopping() {
		return l.waitOn()
	}
	return l.top(now, s)
}

// nextParked returns what is to be done about parked events now, if anything is.
func (l *Lane) nextParked(now time.Time) (_ LaneAction, due bool) {
	if l.checkDue(now) { // first of all: a request may have been withdrawn
		return l.checkAgain(now), true
	}
	row, due := l.parkedSet.Due()
	if !due {
		return LaneAction{}, false
	}
	if l.follows && !l.sure {
		// A request that came after the projection became the live one is not a replay.
		return LaneAction{Do: LaneFollow, Fresh: true}, true
	}
	if l.turn.IsZero() {
		l.turn = now
	}
	if l.crowded = l.many() && now.Sub(l.turn) >= parkedTurn; l.crowded {
		return LaneAction{}, false
	}
	l.hand = &row
	if row.Request == Discard {
		return l.drop(), true
	}
	return LaneAction{Do: LaneFetch, Position: row.Position}, true
}

// park parks the first n pending events. attempts is how often the first has failed; 0 if
// all of them are behind parked events.
func (l *Lane) park(n, attempts int, a LaneAnswer) LaneAction {
	room := l.config.MaxParked - l.parkedSet.Len()
	if room <= 0 {
		l.resume = (*Lane).top
		full := LaneAction{Do: LanePause, For: l.checkEvery(), Why: ParkedFull, Position: l.track.First()}
		if attempts > 0 {
			full.For, full.Attempts = l.config.Retry.Delay(attempts, a.Jitter), attempts
		}
		return full
	}
	n = min(n, room)
	l.parking = l.track.Parks(n)
	l.parking[0].Attempts = attempts
	l.size, l.done, l.next = n, n, l.track.After(n)
	return l.rewrite()
}

// advanceParked is advance while a parked event is in hand.
func (l *Lane) advanceParked(now time.Time, s Signals, a LaneAnswer) LaneAction {
	ok := a.Failure == NoFailure
	if (l.doing == LaneCommit || l.doing == LaneDrop) && ok { // has happened, whatever the signals say
		l.open, l.failures = false, 0
		l.parkedSet.Remove(l.hand.Position)
		l.handPasses = passes{}
		return l.leave(now, s)
	}
	l.open = l.open || l.doing == LaneOpen && ok
	if s.Canceled {
		return end(s)
	}
	switch l.doing {
	case LaneFetch:
		switch {
		case !ok:
			return l.databaseFailed(&l.readFailures, a, (*Lane).putOff)
		case len(a.Page) == 0 || a.Page[0].Position != l.hand.Position:
			return l.note(errors.New(noSuchEvent))
		case l.handPasses.counts(l.hand.Position, now, l.config): // its COMMIT fails again and again
			return l.note(nil)
		}
		return l.retry(s)
	case LaneProve:
		return l.retry(s)
	case LaneOpen:
		if !ok {
			return l.databaseFailed(&l.failures, a, (*Lane).putOff)
		}
		return l.retry(s)
	case LaneHandle:
		switch {
		case ok && !l.config.Kind.InTransaction():
			return l.drop()
		case ok:
			return LaneAction{Do: LaneUnpark, Position: l.hand.Position}
		case a.Failure == NotBegun:
			return LaneAction{Do: LaneProve}
		case a.Failure == Interrupted:
			return LaneAction{Do: LaneProve, Why: Suspended, Position: l.hand.Position}
		case (a.Failure == Passing || a.Failure == Cut) && !l.handPasses.over(l.hand.Position, now, l.config):
			l.resume = (*Lane).putOff
			pause := LaneAction{Do: LanePause, For: l.config.Retry.Delay(1, a.Jitter), Why: HandlerFailed, Position: l.hand.Position, Attempts: l.hand.Attempts}
			if a.Failure == Cut {
				pause.Why = HandlerCut
			}
			return pause
		}
		return l.note(nil)
	case LaneUnpark, LaneCommit:
		switch {
		case l.doing == LaneUnpark && ok:
			return LaneAction{Do: LaneCommit}
		case a.Failure == Fault:
			return l.note(nil)
		case a.Failure == Interrupted:
			return LaneAction{Do: LaneProve, Why: Suspended, Position: l.hand.Position}
		case l.handPasses.over(l.hand.Position, now, l.config) && l.doing == LaneUnpark:
			return l.note(nil)
		case a.Failure == Fenced && l.handPasses.n > 1: // the row was found again in between
			return l.note(ErrNotMoved)
		}
		// Whether the row is still there shows whether the transaction has committed. The
		// checkpoint, which the transaction has locked, is found once that has
		// ended; then the rows are loaded.
		l.hand = nil
		if a.Failure == Fenced {
			return LaneAction{Do: LaneFind}
		}
		return l.databaseFailed(&l.failures, a, find)
	case LaneDrop, LaneNote:
		// Both do no harm if they come late, or twice: within a generation no
		// row comes back that is gone, and a note applies only to the number of attempts
		// that it has seen. So they are sent until one is answered.
		switch {
		case ok:
			l.parkedSet.Noted(l.hand.Position, l.hand.Attempts+1)
			return l.leave(now, s)
		case a.Failure == Fenced:
			return LaneAction{Do: LaneEnd, End: EndFenced}
		}
		again := l.last
		return l.databaseFailed(&l.failures, a, func(*Lane, time.Time, Signals) LaneAction { return again })
	case LanePause:
		if s.Asked {
			return end(s)
		}
		return l.resume(l, now, s)
	}
	return end(s)
}

// leave ends the work on the event in hand.
func (l *Lane) leave(now time.Time, s Signals) LaneAction {
	l.hand = nil
	if s.Canceled {
		return end(s)
	}
	return l.top(now, s)
}

// putOff puts the event in hand aside until a batch of others has been handled, and
// then checks whether its request is still there: a failure that passes by itself for others
// may not pass for this one, and would hold them up for as long as the generation lasts.
func (l *Lane) putOff(now time.Time, s Signals) LaneAction {
	l.hand, l.loadedAt, l.requestsTook = nil, time.Time{}, 0
	l.parkedSet.PutOff()
	if s.stopping() {
		return end(s)
	}
	return l.fill(now, s)
}

// retry hands the event to the projection, in a transaction if the projection needs one.
func (l *Lane) retry(s Signals) LaneAction {
	switch {
	case s.stopping():
		return end(s)
	case s.Unproven:
		return LaneAction{Do: LaneProve}
	case l.config.Kind.InTransaction() && !l.open:
		return LaneAction{Do: LaneOpen}
	}
	return LaneAction{Do: LaneHandle, Count: 1, Parked: true, Position: l.hand.Position, Attempts: l.hand.Attempts}
}

// drop deletes the row.
func (l *Lane) drop() LaneAction {
	return l.again(LaneAction{Do: LaneDrop, Position: l.hand.Position, Discard: l.hand.Request == Discard})
}

// note writes into the row that a retry has failed.
func (l *Lane) note(err error) LaneAction {
	l.handPasses = passes{}
	return l.again(LaneAction{Do: LaneNote, Position: l.hand.Position, Attempts: l.hand.Attempts + 1, Err: err})
}

// again remembers an action that is to be repeated if its answer is lost.
func (l *Lane) again(a LaneAction) LaneAction {
	l.last = a
	return a
}

// noSuchEvent is why a parked event can't be retried, or ordered to be parked.
const noSuchEvent = "the event store has no event at this position, or the event is out of the projection's scope"
