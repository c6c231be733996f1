package protocol

import (
	"fmt"
	"slices"
	"time"
)

// How far a lane is. A Track promises that a checkpoint never claims more than what was
// handled, parked or skipped (S2), that each event is handed out once and in order (S4), and that an unclear
// commit is settled by what the store has (S3). It must never decide by time or by a lost
// answer what has become of a commit.

// A Key is what a lane must know of an event.
type Key struct {
	Position  int64
	Slot      int
	Skip      bool // it is out of the projection's scope
	Aggregate string
}

// A Track is how far a lane is: which events to handle, in which order, and
// the checkpoint to commit.
//
//	handled, committed      handled or skipped      read, pending     unread
//	──────────────────▶|────────────────────────▶|───────────────▶|─────────
//	             checkpoint                  first pending      cursor
type Track struct {
	partition, total int

	checkpoint Checkpoint // as the store has it
	committed  time.Time  // when that was, by the worker's clock
	frontier   []int64    // per slot, while checkpoint has marks
	pending    []int64    // positions to handle, ascending
	cursor     int64      // every final position up to here was read
	ceiling    *Ceiling   // of a follower; nil: there is none

	// The aggregates of pending events, if keeps is set: without parked events they are
	// not needed.
	keeps      bool
	aggregates []string

	// The event at fault, after a handler failed.
	fault    int64
	attempts int
	blamed   int // the attempts that failed with this event alone in the batch
	// allowed limits the batches up to the position until, so that what
	// precedes the event at fault is committed and that event is tried alone;
	// 0 is no limit.
	allowed int
	until   int64
}

// NewTrack returns the track of a partition that is at the checkpoint.
func NewTrack(partition, total int, c Checkpoint, now time.Time) *Track {
	t := &Track{partition: partition, total: total}
	t.Rewind(c, now)
	return t
}

// Rewind sets the track back to a checkpoint that the store has.
func (t *Track) Rewind(c Checkpoint, now time.Time) {
	t.checkpoint, t.committed, t.cursor = c, now, c.Position
	t.pending, t.aggregates, t.frontier = nil, nil, nil
	if len(c.Ahead) > 0 {
		t.frontier = make([]int64, Slots)
		for _, m := range c.Ahead {
			t.frontier[m.Slot] = m.Position
		}
	}
}

// Cursor returns the position after which to read.
func (t *Track) Cursor() int64 { return t.cursor }

// Checkpoint returns the checkpoint that the store has, as far as is known.
func (t *Track) Checkpoint() Checkpoint { return t.checkpoint }

// Pending returns the number of events that are read and not yet committed.
func (t *Track) Pending() int { return len(t.pending) }

// Accept takes a page that was read after the cursor, and the position up to which it was
// read if that is beyond its events. It returns the indexes of the events
// to keep for handling. The others are out of scope, belong to other partitions, or
// were handled in an earlier generation. A page that is not strictly ascending from the cursor
// is refused and changes nothing.
func (t *Track) Accept(page []Key, passed int64) (keep []int, err error) {
	last := t.cursor
	for i, k := range page {
		if k.Position <= last {
			return nil, orderError(t.cursor, last, k.Position, i)
		}
		last = k.Position
	}
	for i, k := range page {
		if !k.Skip && k.Slot%t.total == t.partition && (t.frontier == nil || k.Position > t.frontier[k.Slot]) &&
			(t.ceiling == nil || k.Position <= t.ceiling.Frontier(k.Slot)) {
			if keep == nil {
				keep, t.pending = make([]int, 0, len(page)-i), slices.Grow(t.pending, len(page)-i)
			}
			keep = append(keep, i)
			t.pending = append(t.pending, k.Position)
			if t.keeps {
				t.aggregates = append(t.aggregates, k.Aggregate)
			}
		}
	}
	last = max(last, passed)
	if t.ceiling != nil {
		last = min(last, max(t.ceiling.high(), t.cursor))
	}
	t.cursor = last
	return keep, nil
}

func orderError(cursor, last, position int64, i int) error {
	switch {
	case i == 0 || position <= cursor:
		return fmt.Errorf("event %d of a page has position %d, but only positions above %d were requested", i+1, position, cursor)
	case position == last:
		return fmt.Errorf("event %d of a page repeats position %d", i+1, position)
	default:
		return fmt.Errorf("event %d of a page has position %d and comes after position %d: positions must ascend", i+1, position, last)
	}
}

// Batch returns how many pending events to handle next, up to limit.
func (t *Track) Batch(limit int) int {
	n := min(limit, len(t.pending))
	if t.allowed > 0 {
		n = min(n, t.allowed)
	}
	return n
}

// Keep makes the track keep the aggregates of pending events. If there are pending events,
// they are read again.
func (t *Track) Keep() {
	if !t.keeps {
		t.keeps = true
		t.Rewind(t.checkpoint, t.committed)
	}
}

// First returns the position of the first pending event.
func (t *Track) First() int64 { return t.pending[0] }

// Find returns the index of the pending event at a position.
func (t *Track) Find(position int64) (i int, pending bool) {
	return slices.BinarySearch(t.pending, position)
}

// Stands reports whether the lane is at the i-th pending event, if the next batch
// has n events: the event is in that batch, or in one that has failed and was not tried again
// as a whole. After a failure of the first event alone, the lane is at that one only.
func (t *Track) Stands(i, n int) bool {
	if t.fault != 0 && t.pending[0] == t.fault && t.attempts > 0 {
		return i == 0
	}
	return i < n || t.pending[i] <= t.until
}

// Split returns how many of the first n pending events come before one whose
// aggregate has parked events. If the first event is such a one, behind is true, and Split
// returns how many of them follow one another.
func (t *Track) Split(n int, parkedSet *ParkedSet) (first int, behind bool) {
	if n == 0 {
		return 0, false
	}
	behind = parkedSet.Has(t.aggregates[0])
	for first = 1; first < n && parkedSet.Has(t.aggregates[first]) == behind; first++ {
	}
	return first, behind
}

// Parks returns the rows that park the first n pending events.
func (t *Track) Parks(n int) []Parked {
	rows := make([]Parked, n)
	for i := range rows {
		id := t.aggregates[i]
		rows[i] = Parked{Position: t.pending[i], Slot: SlotOf(id), Aggregate: Storable(id)}
	}
	return rows
}

// After returns the checkpoint to commit once the first n pending events are
// handled: everything before the next pending event is done.
func (t *Track) After(n int) Checkpoint {
	through := t.through(n)
	if t.ceiling != nil && through > t.ceiling.Position {
		return t.ceiling.advance(t.checkpoint, t.partition, t.total, through)
	}
	return t.checkpoint.Advance(through)
}

// through is the position up to which everything is handled once the first n pending events
// are.
func (t *Track) through(n int) int64 {
	if n < len(t.pending) {
		return t.pending[n] - 1
	}
	return t.cursor
}

// Committed takes in that the store has c, with which the first n pending events are handled.
func (t *Track) Committed(c Checkpoint, n int, now time.Time) {
	through := t.through(n)
	t.checkpoint, t.committed = c, now
	t.pending = t.pending[n:]
	if t.keeps {
		t.aggregates = t.aggregates[n:]
	}
	if len(c.Ahead) == 0 {
		t.frontier = nil
	}
	if through >= t.until || t.fault != 0 && through >= t.fault {
		t.fault, t.attempts, t.blamed, t.allowed, t.until = 0, 0, 0, 0, 0
	} else if t.fault != 0 {
		t.allowed = 1 // what preceded the event at fault is done; now that one alone
	}
}

// Failed takes in that the handler failed at the i-th event of a batch, and
// returns how often that event has failed. The next batch ends before it, or
// is that event alone.
func (t *Track) Failed(i int) (position int64, attempts int) {
	t.Suspect(i)
	t.attempts++
	return t.fault, t.attempts
}

// Suspect is Failed for what does not count as a failure of the handler yet, and may turn out
// to be one.
func (t *Track) Suspect(i int) (position int64) {
	if t.pending[i] != t.fault {
		t.fault, t.attempts, t.blamed = t.pending[i], 0, 0
	}
	t.allowed, t.until = max(i, 1), max(t.until, t.fault)
	return t.fault
}

// Attempts returns how often the i-th pending event has failed.
func (t *Track) Attempts(i int) int {
	if t.fault != 0 && t.pending[i] == t.fault {
		return t.attempts
	}
	return 0
}

// Blame counts the latest failure as one of the event at fault alone, and returns how many
// of those there were.
func (t *Track) Blame() int {
	t.blamed++
	return t.blamed
}

// FailedWithin takes in that a handler that takes n events at once failed at one of them. The
// next batch is half as long, until the event at fault is alone; only then does it count as
// failed.
func (t *Track) FailedWithin(n int) (position int64, attempts int) {
	if n == 1 {
		return t.Failed(0)
	}
	t.allowed, t.until = n/2, max(t.until, t.pending[n-1])
	return t.pending[0], 0
}

// When to commit skipped events alone. Without that commit, the same positions are read again
// after a restart, and nothing else.
const (
	skipPositions = 10_000
	skipTime      = time.Second
)

// SkipDue reports whether to commit although no event was handled: the lane
// has skipped many positions, or some for a while.
func (t *Track) SkipDue(now time.Time) bool {
	if t.ceiling != nil && t.ceiling.Final {
		return t.AtCeiling() && !t.After(0).Equal(t.checkpoint)
	}
	skipped := t.through(0) - t.checkpoint.Position
	return skipped >= skipPositions || skipped > 0 && now.Sub(t.committed) >= skipTime
}

// An Outcome is what has become of a commit whose answer was lost.
type Outcome string

const (
	// Applied means that the commit has happened.
	Applied Outcome = "applied"
	// NotApplied means that it has not happened, and can't any more.
	NotApplied Outcome = "not applied"
	// Superseded means that the generation is over.
	Superseded Outcome = "superseded"
	// MovedAway means that the checkpoint is neither the old nor the new one. No commit of
	// this lane can have moved it, since the outcome of each was found out before the next;
	// but an operator may have, by hand, or a failover that lost commits. The lane continues
	// from there.
	MovedAway Outcome = "moved away"
)

// A Found is a checkpoint row as the store has it, read after any transaction
// that has locked it has ended.
type Found struct {
	Generation int64
	Checkpoint Checkpoint
	Exists     bool
	// NoneParked is true if there is no parked event for the lane to load, and no order
	// to park one.
	NoneParked bool
	// Follows is true if another version of the projection is the live one; see follow.go.
	Follows bool
}

// Resolve returns what has become of the commit from the lane's checkpoint to
// next under the generation, from the row as it was found.
//
// A lost answer tells nothing. Taken for a failure, the events are handled twice if the commit
// has happened; taken for a success, they are lost if it has not. The row tells: a commit
// always moves the position or a mark, and COMMIT is only sent after the row was
// written, so while the outcome is open the row is locked and can't be read.
func (t *Track) Resolve(generation int64, next Checkpoint, found Found) Outcome {
	switch {
	case !found.Exists || found.Generation != generation:
		return Superseded
	case found.Checkpoint.Equal(next):
		return Applied
	case found.Checkpoint.Equal(t.checkpoint):
		return NotApplied
	default:
		return MovedAway
	}
}
