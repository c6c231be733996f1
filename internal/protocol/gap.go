package protocol

import (
	"slices"
	"strings"
	"time"
)

// Gaps: which positions of an events table are final.
//
// A Horizon promises that a reader passes no position at which an event can still become
// visible (S2). It must never conclude that from time that has passed, nor from the table's
// locks alone.

// A Holder is a transaction that holds, or waits for, a lock which a writer of
// the events table takes: that of an insert, on the table or a part of it, or
// that of nextval, on the sequence of the positions. It is named by its virtual
// transaction id.
type Holder struct {
	Transaction string
	Backend     int // process id; 0 for a prepared transaction
}

func (h Holder) prepared() bool { return h.Backend == 0 }

// recovered reports whether the holder is a prepared transaction that has
// survived a restart of the server: that names it by its transaction id.
func (h Holder) recovered() bool { return strings.HasPrefix(h.Transaction, "-1/") }

func (h Holder) same(o Holder) bool { return h.Transaction == o.Transaction }

// A GapWait is what a reader waits for.
type GapWait struct {
	Position int64     // the first position that is missing
	Since    time.Time // by the reader's clock
	Holders  []Holder  // the transactions that may still fill it
}

// A Horizon knows which positions of an events table are final: visible by
// now, or never to be.
//
// Positions come from a sequence: they are taken in order and committed in
// any order. A reader that passes a missing position loses the event when its
// transaction commits. But nextval locks the sequence, to the end of the
// transaction, before it takes a number. So every transaction that could fill a gap below
// a position that is already visible holds that lock now, or has ended. Once all
// that held it have ended, nothing at or below that position will change any more.
//
// The lock on the table alone does not show them all:
//  1. t takes number 2 with SELECT nextval(…), and has not inserted anything yet;
//  2. 3 is committed; the reader finds no transaction that holds the table's lock;
//  3. the reader passes 2; t inserts its event and commits: it is lost.
//
// The table's lock shows writers that take their position in another way, in the
// insert itself. Only a transaction that took a position and was rolled back to a
// savepoint before it is waited for without need: the sequence stays locked.
//
// The order of the three steps is the proof, and each needs a snapshot of its
// own: read the highest position; list the holders; when these have ended,
// read the page. A page that was read before the horizon was known proves nothing.
//
// All three must run in one Epoch. A standby has no list of the primary's
// writers, and a table that was emptied with RESTART IDENTITY takes positions
// again that were final before.
//
// Readers may share a Horizon. A list of holders and the Begin or Observe that
// takes it belong together: in between, no other may be called.
type Horizon struct {
	epoch   Epoch     // where all of this holds
	asked   time.Time // when the epoch and the assumptions were read; zero: read them again
	final   int64
	high    int64 // becomes final once the wait is over
	wait    GapWait
	waiting bool
}

// An Epoch names what a Horizon is valid for: one run of one server that takes
// writes, and in it one table, with one file of its sequence. "" is none.
type Epoch string

// AskEvery is for how long the epoch, and what the reader assumes of the table, are
// valid once they were read. What lets a reader pass a gap is read at each gap.
const AskEvery = 30 * time.Second

// AskAgain makes the next reading ask for the epoch and the assumptions.
func (h *Horizon) AskAgain() { h.asked = time.Time{} }

// Believe takes in an answer that was read apart from all readings, and not after now. It
// reports whether it fits what is known; if not, a reading has to ask.
func (h *Horizon) Believe(e Epoch, high int64, now time.Time) bool {
	if h.epoch == "" {
		h.epoch = e
	}
	if !h.holds(e, high) {
		return false
	}
	h.asked = now
	return true
}

func (h *Horizon) due(now time.Time) bool {
	return h.asked.IsZero() || now.Sub(h.asked) >= AskEvery || now.Before(h.asked)
}

// holds reports whether what is known is of this epoch, and the stream still
// reaches as far.
func (h *Horizon) holds(e Epoch, high int64) bool { return h.epoch == e && high >= h.final }

// confirm takes in that an epoch was found, in which all assumptions hold and
// high is the highest visible position. What is known of another epoch is dropped:
//  1. positions up to 300 are final; TRUNCATE … RESTART IDENTITY;
//  2. t takes position 1, and 2 is committed;
//  3. the reader, from the beginning, passes 1, since it is below 300.
func (h *Horizon) confirm(e Epoch, high int64, now time.Time) {
	if !h.holds(e, high) {
		*h = Horizon{epoch: e}
	}
	h.asked = now
}

// Final returns the position up to which everything is final. Take it before
// reading, and give it to Admit with what was read.
func (h *Horizon) Final() int64 { return h.final }

// Waiting returns what the readers wait for, and whether they do.
func (h *Horizon) Waiting() (GapWait, bool) { return h.wait, h.waiting }

// Admit returns how many of the positions, read after the position after when
// the horizon was at final, may be handed out, and the first missing position
// if that is not all of them.
func Admit(after, final int64, positions []int64) (n int, missing int64) {
	last := after
	for i, p := range positions {
		if p > last+1 && p-1 > final {
			return i, max(last, final) + 1
		}
		last = p
	}
	return len(positions), 0
}

// Begin takes in a gap at position missing: high was the highest visible
// position, and holders were listed after that was read, in the same epoch. It reports whether
// there is nothing to wait for. A wait that is under way continues: the holders that
// could fill the new gap are listed after it.
func (h *Horizon) Begin(missing, high int64, holders []Holder, now time.Time) bool {
	if h.waiting {
		return false
	}
	h.high = high
	if len(holders) == 0 {
		h.final = max(h.final, high)
		return true
	}
	h.waiting = true
	h.wait = GapWait{Position: missing, Since: now, Holders: slices.Clone(holders)}
	return false
}

// Observe takes a later list of holders, and reports whether the wait is over.
//
// A holder whose name is gone has ended, or lives on under another name as a
// prepared transaction; COMMIT PREPARED still makes its event visible.
//  1. t takes position 5 and is prepared, 6 is committed, the reader lists
//     {4/11};
//  2. the server restarts, and t holds its lock as "-1/731";
//  3. the reader finds 4/11 gone, passes 5; the event is lost when t commits.
//
// So the wait continues for every transaction that t may have become: a prepared one
// only ever becomes a recovered one; for any other, nothing is assumed of the name that the
// server gives it once it is prepared. Neither wait is without end, since a
// recovered transaction keeps its name.
func (h *Horizon) Observe(now []Holder) bool {
	if !h.waiting {
		return false
	}
	var left []Holder
	var preparedGone, otherGone bool
	for _, holder := range h.wait.Holders {
		if i := slices.IndexFunc(now, holder.same); i >= 0 {
			left = append(left, now[i]) // its backend may have let go of it
		} else if !holder.recovered() {
			preparedGone = preparedGone || holder.prepared()
			otherGone = otherGone || !holder.prepared()
		}
	}
	for _, holder := range now {
		if (otherGone && holder.prepared() || preparedGone && holder.recovered()) && !slices.ContainsFunc(left, holder.same) {
			left = append(left, holder)
		}
	}
	h.wait.Holders = left
	if len(left) > 0 {
		return false
	}
	h.final, h.waiting, h.wait = max(h.final, h.high), false, GapWait{}
	return true
}
