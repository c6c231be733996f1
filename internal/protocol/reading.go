package protocol

import (
	"fmt"
	"time"
)

// Reading a page of an events table.
//
// A Reading promises that it passes no position at which an event can still become visible
// (S2). It must never hand out a page that was read in another epoch than its horizon, nor
// events beyond a gap that is not final.

// A ReadDo is what the driver of a Reading is to do next.
type ReadDo int

const (
	ReadStart   ReadDo = iota // not an action: Next was not called yet
	ReadAsk                   // read the epoch, and what is assumed of the table; answer Epoch, Broken, High
	ReadHolders               // the same, and list the transactions that hold the locks of writers; answer Holders as well
	ReadPage                  // read the events; answer Positions
	ReadAhead                 // find the first missing position above After, among all events; answer Last, Missing
	ReadHigh                  // read the highest visible position; answer High
	ReadDone                  // hand out the first Take events of the latest page
	ReadRefuse                // fail, since an assumption does not hold; Why names it
)

// A ReadAction is one thing to do, and then to answer.
type ReadAction struct {
	Do ReadDo
	// Turn means that the reader needs the Horizon for itself, from before
	// this action until the next one without Turn: no other reader's
	// list of holders may come between this list and its answer.
	Turn bool
	// Epoch is where ReadPage, ReadAhead and ReadHigh must run, and
	// Reaches a position that the stream must reach there, if it is not 0. If
	// that is not so, the only answer is Stale.
	Epoch   Epoch
	Reaches int64
	// After and Through are the bounds of a page: positions above the one, and,
	// if it is not 0, up to the other.
	After, Through int64
	Take           int
	// Passed, of a ReadDone, is the position up to which everything was read. More is true
	// if there may be more at once.
	Passed int64
	More   bool
	// Pause, of a ReadHolders, means to do it a little later.
	Pause bool
	// Why, of a ReadRefuse, is the assumption that does not hold.
	Why string
}

// A ReadAnswer is what the latest action has found. An action that failed is
// not answered: the Reading is given up (Fail), and its turn with it.
type ReadAnswer struct {
	Epoch  Epoch
	Broken string // the assumption that does not hold; "": all do
	Stale  bool   // it is not the action's epoch, or the stream ends before Reaches

	Holders   []Holder
	Positions []int64
	Cut       bool // the page was ended before its limit, and there is more
	High      int64
	// Last is the highest position that ReadAhead has read, and Missing the first
	// that was not there; 0 is none.
	Last, Missing int64
}

// A Reading reads one page of an events table without passing a position that
// may still be filled. Its order of steps is the proof; see Horizon.
//
//	ask ──▶ holders ──▶ page ──▶ done      (ask: when the last answer is old;
//	           ▲          │                 holders: only while a reader waits)
//	           │          └─ gap ─▶ high ─▶ holders ─▶ done, or page again
//	           └── turn ──┘           └──── turn ───┘
//
// A scoped reading leaves events out, so its page can't show gaps. It
// searches for gaps first, and then reads what is final:
//
//	ask ──▶ holders ──▶ ahead ──▶ page ──▶ done    (ahead: only at the end of what is final)
//	                      └─ gap ─▶ high ─▶ holders ─▶ page, or done
//
// Each step names the epoch in which it has to run. If it runs in another one, on another
// server or in another table, the reading begins again by asking; so does a
// reading after another one has moved the horizon to another epoch.
type Reading struct {
	horizon *Horizon
	epoch   Epoch // that it reads in
	begun   int   // how often it has begun
	after   int64
	limit   int
	scoped  bool

	doing     ReadDo
	beginning bool  // the holders are asked for to begin a wait
	final     int64 // up to where everything is final, for this reading
	take      int
	passed    int64
	more      bool
	missing   int64
	high      int64
}

// NewReading returns the reading of at most limit events above after.
func NewReading(h *Horizon, after int64, limit int) Reading {
	return Reading{horizon: h, after: after, limit: limit, passed: after}
}

// Scoped returns the reading of a part of the events.
func (r Reading) Scoped() Reading {
	r.scoped = true
	return r
}

// Next takes the answer to the latest action and returns the next one. The answer of the
// first call is ignored. Calls for readings that share a Horizon must not
// overlap.
func (r *Reading) Next(now time.Time, a ReadAnswer) ReadAction {
	action := r.advance(now, a)
	r.doing = action.Do
	return action
}

// Fail gives the reading up. The next one asks for the epoch, whatever the error was.
func (r *Reading) Fail() { r.horizon.AskAgain() }

// readBegins is how often a reading begins at most. If each statement leads to
// another server, it would never end.
const readBegins = 3

func (r *Reading) advance(now time.Time, a ReadAnswer) ReadAction {
	switch {
	case r.doing == ReadStart:
		return r.begin(now)
	case r.doing == ReadAsk || r.doing == ReadHolders:
		if a.Broken != "" {
			r.horizon.AskAgain()
			return ReadAction{Do: ReadRefuse, Why: a.Broken}
		}
		if elsewhere := r.doing == ReadHolders && (a.Epoch != r.epoch || !r.horizon.holds(r.epoch, a.High)); elsewhere {
			return r.again(now)
		}
		r.horizon.confirm(a.Epoch, a.High, now)
		r.epoch = a.Epoch
	case a.Stale || r.horizon.epoch != r.epoch:
		return r.again(now)
	}
	switch r.doing {
	case ReadAsk:
		return r.askHolders()
	case ReadHolders:
		if !r.beginning {
			r.horizon.Observe(a.Holders)
			return r.page()
		}
		r.beginning = false
		over := r.horizon.Begin(r.missing, r.high, a.Holders, now)
		if r.scoped {
			return r.within(max(r.final, r.horizon.Final()))
		}
		if over && r.take == 0 {
			return r.askHolders() // the gap stays: what follows it is final
		}
		return r.done()
	case ReadAhead:
		r.final = a.Last
		if r.missing = a.Missing; r.missing == 0 {
			return r.within(r.final)
		}
		r.final = r.missing - 1
		return r.highest()
	case ReadPage:
		return r.paged(a)
	case ReadHigh:
		r.high, r.beginning = a.High, true
		return ReadAction{Do: ReadHolders, Turn: true}
	}
	return r.done()
}

// begin begins the reading, by asking for the epoch if that is due.
func (r *Reading) begin(now time.Time) ReadAction {
	r.begun++
	r.beginning, r.take, r.passed, r.more = false, 0, r.after, false
	if r.horizon.due(now) {
		return ReadAction{Do: ReadAsk}
	}
	r.epoch = r.horizon.epoch
	return r.askHolders()
}

// again begins anew, since what was found does not belong together.
func (r *Reading) again(now time.Time) ReadAction {
	r.horizon.AskAgain()
	if r.begun == readBegins {
		return ReadAction{Do: ReadRefuse, Why: "the connections led to another server, or the events table or its sequence was replaced, several times in a row while it was read"}
	}
	return r.begin(now)
}

// askHolders begins a round: with a wait under way, by asking for its holders.
func (r *Reading) askHolders() ReadAction {
	if _, waiting := r.horizon.Waiting(); waiting {
		return ReadAction{Do: ReadHolders, Turn: true}
	}
	return r.page()
}

// page reads the page, after the horizon is known.
func (r *Reading) page() ReadAction {
	r.final = r.horizon.Final()
	switch {
	case !r.scoped:
		return ReadAction{Do: ReadPage, Epoch: r.epoch, Reaches: r.final, After: r.after}
	case r.after < r.final:
		return r.within(r.final)
	}
	return ReadAction{Do: ReadAhead, Epoch: r.epoch, Reaches: r.final, After: r.after}
}

// within reads the events of the scope up to final.
func (r *Reading) within(final int64) ReadAction {
	if r.final = final; final <= r.after {
		return r.done()
	}
	return ReadAction{Do: ReadPage, Epoch: r.epoch, Reaches: final, After: r.after, Through: final}
}

// paged takes a page.
func (r *Reading) paged(a ReadAnswer) ReadAction {
	r.take, r.missing = len(a.Positions), 0
	if !r.scoped {
		r.take, r.missing = Admit(r.after, r.final, a.Positions)
	}
	full := len(a.Positions) >= r.limit || a.Cut // above it, if the last position repeats
	switch {
	case r.scoped && !full:
		r.passed = r.final
	case r.take > 0:
		r.passed = a.Positions[r.take-1]
	}
	r.more = r.missing == 0 && (full || r.scoped && r.passed > r.after)
	if r.missing == 0 {
		return r.done()
	}
	return r.highest()
}

// PageFull reports whether a page ends with the latest of its n events, which together
// have so many bytes. A page has at most limit events, and ends with the event that takes it
// beyond most bytes, so that an event that alone is too large is still read; most 0 is no
// limit.
func PageFull(bytes, most, n, limit int) bool { return most > 0 && bytes > most && n < limit }

// OwnPassed returns the position up to which a page of a process's own slots reaches, and
// whether there is more. through is what SlotSet.Own has returned with the rows to read. cut is
// the position of the last row that was read if the rest was cut off, and 0 if not.
func (a ReadAction) OwnPassed(through, cut int64) (passed int64, more bool) {
	if cut != 0 {
		through = cut
	}
	return through, a.More || through < a.Passed
}

// StorePage returns the position up to which a page of the program's own event store reaches,
// and whether to read more at once, for a read of at most limit events above after. positions
// are those of all of its records, also of those out of the scope: a page of nothing else would
// otherwise be read again and again. through is Page.Through, and 0 if the store has not set
// it. It does not count for a full page: what is beyond the last event did not fit.
//
// ascending is false if the positions do not ascend from above after. The Feed refuses such a
// page, so the caller must not leave anything out of it before. A page that passes nothing,
// and says that there is more, is an error: it would be read again at once, without end.
func StorePage(after int64, limit int, positions []int64, through int64, more bool) (passed int64, again, ascending bool, err error) {
	if len(positions) >= limit {
		through, more = 0, true
	}
	passed, ascending = max(after, through), true
	last := after
	for _, p := range positions {
		ascending = ascending && p > last
		last, passed = p, max(passed, p)
	}
	if more && len(positions) == 0 && passed == after {
		return passed, false, true, fmt.Errorf("it returned no event above position %d, but says that there is more; set Page.Through to the position up to which it has read", after)
	}
	return passed, passed > after && more, ascending, nil
}

func (r *Reading) highest() ReadAction { return ReadAction{Do: ReadHigh, Turn: true, Epoch: r.epoch} }

func (r *Reading) done() ReadAction {
	return ReadAction{Do: ReadDone, Epoch: r.epoch, Take: r.take, Passed: r.passed, More: r.more}
}
