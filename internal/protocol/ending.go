package protocol

import "time"

// The end of an events table, for a projection that starts with what is new.
//
// An Ending promises a position that is never above what is final when it is done, and never
// below what was final when it began (or when the End that it uses was proven). So such a
// projection misses no new event, and gets no old ones. It must never take the highest visible
// position.

// An End is a position of an events table up to which everything was proven to be final.
// In its epoch that never changes, and so it is kept for the next Ending. Only one
// Ending may use it at a time.
type End struct {
	epoch    Epoch
	position int64
	proven   time.Time
}

// endMax is for how long an Ending that must not wait uses an End: what became final
// since then may not be known to be, and counts as not final. A worker that starts proves an
// End just before.
const endMax = time.Minute

// An Ending finds the position up to which everything is final: where a projection starts
// that wants new events only. It is never the highest position:
//  1. t takes position 5, and 6 is committed;
//  2. a projection starts above 6, the highest position;
//  3. t commits: the projection never gets 5.
//
// Nor is it the first position that is missing. Most tables have gaps, of transactions that
// were rolled back years ago; the projection would get all events since. Which gap may
// still be filled, no list of holders shows: a holder has taken a position, but not which one
// is visible. So the transactions that hold the lock of writers, after the highest position was
// read, are waited for, as by a Horizon: then everything up to that position is final.
//
//	ask ──▶ high ──▶ holders ──▶ done                   (there are no holders)
//	                    ├──▶ ahead … ──▶ done           (it knows an End, and is not patient)
//	                    └──▶ holders … ──▶ done         (the holders have ended)
//
// One that must not wait, since others wait for it, begins at an End that another one has
// just proven: the first position that is missing above the End may still be filled,
// and everything below it is final. If it never is, since its transaction was rolled back in
// that short time, the answer is what was final a moment ago.
type Ending struct {
	known   *End
	patient bool

	doing ReadDo
	epoch Epoch
	begun int
	high  int64
	wait  Horizon
}

// NewEnding returns an Ending. A patient one waits for the transactions that write; any other
// one waits only if no End is known.
func NewEnding(known *End, patient bool) Ending { return Ending{known: known, patient: patient} }

// Next takes the answer to the latest action and returns the next one, as a Reading does.
// The position is Passed of ReadDone.
func (e *Ending) Next(now time.Time, a ReadAnswer) ReadAction {
	action := e.advance(now, a)
	e.doing = action.Do
	return action
}

// Waiting returns what the Ending waits for, and whether it does.
func (e *Ending) Waiting() (GapWait, bool) { return e.wait.Waiting() }

func (e *Ending) advance(now time.Time, a ReadAnswer) ReadAction {
	switch e.doing {
	case ReadStart:
		return e.begin()
	case ReadAsk, ReadHolders:
		switch {
		case a.Broken != "":
			return ReadAction{Do: ReadRefuse, Why: a.Broken}
		case e.doing == ReadAsk:
			return e.highest(a)
		case a.Epoch != e.epoch || a.High < e.high: // it no longer reaches what was seen
			return e.again()
		}
		return e.holders(now, a.Holders)
	}
	if a.Stale {
		return e.again()
	}
	if e.doing == ReadHigh {
		e.high = a.High
		return ReadAction{Do: ReadHolders}
	}
	return e.ahead(a)
}

func (e *Ending) begin() ReadAction {
	e.begun++
	e.wait = Horizon{}
	return ReadAction{Do: ReadAsk}
}

// again begins once more, since the answers are not of one epoch.
func (e *Ending) again() ReadAction {
	*e.known = End{}
	if e.begun == readBegins {
		return ReadAction{Do: ReadRefuse, Why: "the connections led to another server, or the events table or its sequence was replaced, several times in a row while its end was determined"}
	}
	return e.begin()
}

func (e *Ending) highest(a ReadAnswer) ReadAction {
	e.epoch = a.Epoch
	if e.known.epoch != a.Epoch || a.High < e.known.position {
		*e.known = End{}
	}
	return ReadAction{Do: ReadHigh, Epoch: e.epoch}
}

// holders takes a list of the transactions that may fill a gap below the highest position.
func (e *Ending) holders(now time.Time, holders []Holder) ReadAction {
	_, waiting := e.wait.Waiting()
	switch {
	case waiting:
		if !e.wait.Observe(holders) {
			return ReadAction{Do: ReadHolders, Pause: true}
		}
		return e.prove(now)
	case !e.patient && e.recent(now) && len(holders) > 0:
		return e.check(e.known.position)
	case e.wait.Begin(e.high, e.high, holders, now):
		return e.prove(now)
	}
	return ReadAction{Do: ReadHolders, Pause: true}
}

// recent reports whether there is an End that is recent enough to use.
func (e *Ending) recent(now time.Time) bool {
	since := now.Sub(e.known.proven)
	return e.known.epoch != "" && since >= 0 && since <= endMax
}

// prove keeps the highest position as an End.
func (e *Ending) prove(now time.Time) ReadAction {
	*e.known = End{e.epoch, e.high, now}
	return e.done(e.high)
}

// check searches for the first missing position above one up to which everything is
// final. What is visible up to there is final as well.
func (e *Ending) check(after int64) ReadAction {
	return ReadAction{Do: ReadAhead, Epoch: e.epoch, Reaches: after, After: after}
}

func (e *Ending) ahead(a ReadAnswer) ReadAction {
	switch {
	case a.Missing != 0:
		return e.done(a.Missing - 1)
	case a.Last < e.high:
		return e.check(a.Last)
	}
	return e.done(a.Last)
}

func (e *Ending) done(position int64) ReadAction {
	return ReadAction{Do: ReadDone, Epoch: e.epoch, Passed: position}
}
