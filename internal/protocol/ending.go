package protocol

import "time"

// An End is a position of an events table up to which everything was proven to be final.
// In its epoch that stays so for ever, and so it is kept for the next Ending. Only one
// Ending may use it at a time.
type End struct {
	epoch    Epoch
	position int64
	proven   time.Time
}

// endMax is for how long an Ending that must not wait goes by an End: what became final
// since is not always known to be, and counts as if it had not. Whoever starts proves one
// just before.
const endMax = time.Minute

// An Ending finds the position up to which everything is final: where a projection starts
// that is to get what is new. It is never the highest position:
//  1. t takes position 5, and 6 is committed;
//  2. a projection starts above 6, the highest position;
//  3. t commits: nobody ever hands 5 to the projection.
//
// Nor is it where the first position is missing. Most tables have gaps, of transactions that
// were rolled back, from years ago; the projection would get all events since. Which gap
// somebody may still fill, no list of holders says: they have a position, and nobody sees
// which. So who holds the lock of writers, after the highest position was seen, is waited
// for, as by a Horizon: then everything up to that position is final.
//
//	ask ──▶ high ──▶ holders ──▶ done                   (nobody holds it)
//	                    ├──▶ ahead … ──▶ done           (a known End, and no patience)
//	                    └──▶ holders … ──▶ done         (those have ended)
//
// One that must not wait, since others wait for it, begins at an End that another one has
// just proven: the first position that is missing above that may be one that somebody fills,
// and everything below it is final. If it is not, since its transaction was rolled back in
// that short time, the answer is what was final a moment ago.
//
// So the position is never above what is final when the Ending is done, and never below
// what was final when it began, or the End was proven that it goes by.
type Ending struct {
	known   *End
	patient bool

	doing ReadDo
	epoch Epoch
	begun int
	high  int64
	wait  Horizon
}

// NewEnding returns an Ending. It is patient if it may wait for whoever writes; it waits as
// well where no End is known.
func NewEnding(known *End, patient bool) Ending { return Ending{known: known, patient: patient} }

// Next takes the answer to the latest action and returns what to do now, as a Reading does.
// A ReadHolders with Pause is to be asked a little later. The position is Passed of ReadDone.
func (e *Ending) Next(now time.Time, a ReadAnswer) ReadAction {
	action := e.advance(now, a)
	e.doing = action.Do
	return action
}

// Waiting returns whom the Ending waits for.
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

// again begins anew, since what was found does not belong together.
func (e *Ending) again() ReadAction {
	*e.known = End{}
	if e.begun == readBegins {
		return ReadAction{Do: ReadRefuse, Why: "the server, the events table or its sequence became another one while its end was looked for, several times in a row"}
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

// holders takes a list of those who may fill a gap below the highest position.
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

// recent reports whether there is an End to go by.
func (e *Ending) recent(now time.Time) bool {
	since := now.Sub(e.known.proven)
	return e.known.epoch != "" && since >= 0 && since <= endMax
}

// prove keeps the highest position as an End.
func (e *Ending) prove(now time.Time) ReadAction {
	*e.known = End{e.epoch, e.high, now}
	return e.done(e.high)
}

// check looks for the first position that is missing above one up to which everything is
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
