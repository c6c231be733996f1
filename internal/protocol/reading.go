package protocol

import "time"

// A ReadDo is what a Reading wants done next.
type ReadDo int

const (
	ReadStart   ReadDo = iota // not an action: nothing was asked for yet
	ReadHolders               // list who holds the lock that inserts take; answer Holders
	ReadPage                  // read the events; answer Positions
	ReadHigh                  // find the highest visible position; answer High
	ReadDone                  // hand out the first Take events of the latest page
)

// A ReadAction is one thing to do, and then to answer.
type ReadAction struct {
	Do ReadDo
	// Turn says that the reader must have its turn at the Horizon, from before
	// this action until the next one that does not say so: no other reader's
	// list of holders may come between this list and its answer.
	Turn bool
	Take int
}

// A ReadAnswer brings what the latest action found. An action that failed is
// not answered: the Reading is given up, and its turn with it.
type ReadAnswer struct {
	Holders   []Holder
	Positions []int64
	High      int64
}

// A Reading reads one page of an events table without passing a position that
// may still be filled. Its order of steps is the proof; see Horizon.
//
//	holders ──▶ page ──▶ done              (holders: only while somebody waits)
//	   ▲          └─ gap ─▶ high ─▶ holders ─▶ done, or page again
//	   └── turn ──┘          └──── turn ───┘
type Reading struct {
	horizon *Horizon
	after   int64

	doing     ReadDo
	beginning bool // the holders are asked for to begin a wait
	final     int64
	take      int
	missing   int64
	high      int64
}

// NewReading returns the reading of the events above after.
func NewReading(h *Horizon, after int64) Reading { return Reading{horizon: h, after: after} }

// Next takes the answer to the latest action and returns what to do now. The
// first call answers nothing. Calls for readings that share a Horizon must not
// overlap.
func (r *Reading) Next(now time.Time, a ReadAnswer) ReadAction {
	action := r.advance(now, a)
	r.doing = action.Do
	return action
}

func (r *Reading) advance(now time.Time, a ReadAnswer) ReadAction {
	switch r.doing {
	case ReadStart:
		return r.look()
	case ReadHolders:
		if !r.beginning {
			r.horizon.Observe(a.Holders)
			return r.page()
		}
		r.beginning = false
		if r.horizon.Begin(r.missing, r.high, a.Holders, now) && r.take == 0 {
			return r.look() // nobody fills the gap: what follows it is final
		}
		return ReadAction{Do: ReadDone, Take: r.take}
	case ReadPage:
		r.take, r.missing = Admit(r.after, r.final, a.Positions)
		if r.missing == 0 {
			return ReadAction{Do: ReadDone, Take: r.take}
		}
		return ReadAction{Do: ReadHigh, Turn: true}
	case ReadHigh:
		r.high, r.beginning = a.High, true
		return ReadAction{Do: ReadHolders, Turn: true}
	}
	return ReadAction{Do: ReadDone, Take: r.take}
}

// look begins a round: with a wait under way, by asking for its holders.
func (r *Reading) look() ReadAction {
	if _, waiting := r.horizon.Waiting(); waiting {
		return ReadAction{Do: ReadHolders, Turn: true}
	}
	return r.page()
}

// page reads, after the horizon is known.
func (r *Reading) page() ReadAction {
	r.final = r.horizon.Final()
	return ReadAction{Do: ReadPage}
}
