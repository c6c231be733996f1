package protocol

import (
	"fmt"
	"slices"
	"time"
)

// A Key is what a lane must know of an event.
type Key struct {
	Position int64
	Slot     int
}

// A Lane is one projection on one partition: which events to handle, in which
// order, and what a commit says. The runner around it reads, calls handlers
// and writes.
//
//	handled, committed      handled or skipped      read, pending     unread
//	──────────────────▶|────────────────────────▶|───────────────▶|─────────
//	             checkpoint                  first pending      cursor
type Lane struct {
	partition, total int

	checkpoint Checkpoint // as the store has it
	committed  time.Time  // when that was, by the runner's clock
	frontier   []int64    // per slot, while checkpoint has marks
	pending    []int64    // positions to handle, ascending
	cursor     int64      // every final position up to here was read

	// The event at fault, after a handler failed.
	fault    int64
	attempts int
	// allowed bounds the batches up to the position until, so that what
	// precedes the event at fault is committed and that event is tried alone;
	// 0 is no bound.
	allowed int
	until   int64
}

// NewLane returns the lane of a partition that stands at the checkpoint.
func NewLane(partition, total int, c Checkpoint, now time.Time) *Lane {
	l := &Lane{partition: partition, total: total}
	l.Rewind(c, now)
	return l
}

// Rewind sets the lane back to what the store has.
func (l *Lane) Rewind(c Checkpoint, now time.Time) {
	l.checkpoint, l.committed, l.cursor = c, now, c.Position
	l.pending, l.frontier = nil, nil
	if len(c.Ahead) > 0 {
		l.frontier = make([]int64, Slots)
		for _, m := range c.Ahead {
			l.frontier[m.Slot] = m.Position
		}
	}
}

// Cursor returns the position after which to read.
func (l *Lane) Cursor() int64 { return l.cursor }

// Checkpoint returns the checkpoint that the store has, as far as is known.
func (l *Lane) Checkpoint() Checkpoint { return l.checkpoint }

// Pending returns the number of events that are read and not yet committed.
func (l *Lane) Pending() int { return len(l.pending) }

// Accept takes a page that was read after the cursor and returns the indexes
// of the events to keep for handling. Others belong to other partitions, or
// were handled in an earlier generation. A page that is not strictly ascending
// from the cursor is refused and changes nothing.
func (l *Lane) Accept(page []Key) (keep []int, err error) {
	last := l.cursor
	for i, k := range page {
		if k.Position <= last {
			return nil, orderError(l.cursor, last, k.Position, i)
		}
		last = k.Position
	}
	for i, k := range page {
		if k.Slot%l.total == l.partition && (l.frontier == nil || k.Position > l.frontier[k.Slot]) {
			keep = append(keep, i)
			l.pending = append(l.pending, k.Position)
		}
	}
	l.cursor = last
	return keep, nil
}

func orderError(cursor, last, position int64, i int) error {
	switch {
	case i == 0 || position <= cursor:
		return fmt.Errorf("event %d of a page has position %d, and only positions above %d were asked for", i+1, position, cursor)
	case position == last:
		return fmt.Errorf("event %d of a page repeats position %d", i+1, position)
	default:
		return fmt.Errorf("event %d of a page has position %d and comes after %d: positions must ascend", i+1, position, last)
	}
}

// Batch returns how many pending events to handle next, up to limit.
func (l *Lane) Batch(limit int) int {
	n := min(limit, len(l.pending))
	if l.allowed > 0 {
		n = min(n, l.allowed)
	}
	return n
}

// After returns what a commit says once the first n pending events are
// handled: everything before the next pending event is done.
func (l *Lane) After(n int) Checkpoint {
	if n < len(l.pending) {
		return l.checkpoint.Advance(l.pending[n] - 1)
	}
	return l.checkpoint.Advance(l.cursor)
}

// Committed notes that the store has c.
func (l *Lane) Committed(c Checkpoint, now time.Time) {
	l.checkpoint, l.committed = c, now
	n, _ := slices.BinarySearch(l.pending, c.Position+1)
	l.pending = l.pending[n:]
	if len(c.Ahead) == 0 {
		l.frontier = nil
	}
	if c.Position >= l.until || l.fault != 0 && c.Position >= l.fault {
		l.fault, l.attempts, l.allowed, l.until = 0, 0, 0, 0
	} else if l.fault != 0 {
		l.allowed = 1 // what preceded the event at fault is done; now that one alone
	}
}

// Failed notes that the handler failed at the i-th event of a batch, and
// returns how often that event has failed. The next batch ends before it, or
// is that event alone.
func (l *Lane) Failed(i int) (position int64, attempts int) {
	if l.pending[i] != l.fault {
		l.fault, l.attempts = l.pending[i], 0
	}
	l.attempts++
	l.allowed, l.until = max(i, 1), max(l.until, l.fault)
	return l.fault, l.attempts
}

// FailedWithin notes that a handler that takes n events at once failed,
// wherever among them. The next batch is half as long, until the event at
// fault is alone; only then does it count as having failed.
func (l *Lane) FailedWithin(n int) (position int64, attempts int) {
	if n == 1 {
		return l.Failed(0)
	}
	l.allowed, l.until = n/2, max(l.until, l.pending[n-1])
	return l.pending[0], 0
}

// Skips that are not committed cost only reading the same positions again.
const (
	skipPositions = 10_000
	skipTime      = time.Second
)

// SkipDue reports whether to commit although no event was handled: the lane
// has passed many positions, or some for a while, that belong to others.
func (l *Lane) SkipDue(now time.Time) bool {
	skipped := l.After(0).Position - l.checkpoint.Position
	return skipped >= skipPositions || skipped > 0 && now.Sub(l.committed) >= skipTime
}

// An Outcome says what has become of a commit whose reply was lost.
type Outcome string

const (
	// Done: the commit has happened.
	Done Outcome = "done"
	// Undone: it has not, and it can't any more.
	Undone Outcome = "undone"
	// Superseded: the generation is over.
	Superseded Outcome = "superseded"
	// Elsewhere: the checkpoint is neither the old nor the new one. Only an
	// earlier commit of this lane can have moved it; go on from there.
	Elsewhere Outcome = "elsewhere"
)

// A Found checkpoint is a row as the store has it, read after any transaction
// that held it has ended.
type Found struct {
	Generation int64
	Checkpoint Checkpoint
	Exists     bool
}

// Resolve says what has become of the commit from the lane's checkpoint to
// next under the generation, from the row as it was found.
//
// A lost reply says nothing. Taken as failure, the events are handled twice;
// taken as success, they are lost when it was one. The row knows: a commit
// always moves the position, and COMMIT is only ever sent after the row was
// written, so while the outcome is open the row is locked and can't be read.
func (l *Lane) Resolve(generation int64, next Checkpoint, found Found) Outcome {
	switch {
	case !found.Exists || found.Generation != generation:
		return Superseded
	case found.Checkpoint.Position == next.Position:
		return Done
	case found.Checkpoint.Position == l.checkpoint.Position:
		return Undone
	default:
		return Elsewhere
	}
}

// A Backoff is an exponential delay with jitter.
type Backoff struct{ Min, Max time.Duration }

// Delay returns the time to wait after the given number of failures, from 1:
// Min, doubled with each further failure up to Max, less up to half of it by
// jitter, a random number in [0,1).
func (b Backoff) Delay(failures int, jitter float64) time.Duration {
	d := b.Min
	for i := 1; i < failures && d < b.Max; i++ {
		d *= 2
	}
	d = min(d, b.Max)
	return d - time.Duration(jitter*float64(d)/2)
}
