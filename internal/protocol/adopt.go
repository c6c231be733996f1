package protocol

import (
	"slices"
	"time"
)

// Import: checkpoints of processors that were run without this library.
//
// Adopt promises that no event is lost, IdleCheck that the old processors have stopped before
// their checkpoints are taken. Neither must ever trust time alone: a processor in the middle of
// a long batch does not move its checkpoint.

// Adopt turns positions of partitions with hash mod len(positions) = k into checkpoints
// from which Handoff can continue. If the total divides Slots, these are the same partitions,
// and nothing is repeated.
//
// If not, a slot's aggregates are spread over several of the old partitions:
// those k with k mod g = slot mod g, where g is the greatest common divisor of
// the total and Slots. The lowest of their positions is how far the slot is certainly
// handled. So there are g partitions, and what the others are ahead is
// repeated. (Taking the lowest of all would repeat more, and any higher one
// would lose events.)
func Adopt(positions []int64) []Checkpoint {
	next := make([]Checkpoint, gcd(len(positions), Slots))
	for k, p := range positions {
		c := &next[k%len(next)]
		if k < len(next) || p < c.Position {
			c.Position = p
		}
	}
	return next
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// A User is a transaction that uses the table of old checkpoints.
type User struct {
	Holder
	// Blocked is true if it waits for the import, which has locked the checkpoints' rows.
	Blocked bool
}

// An Idleness is the result of one check.
type Idleness int

const (
	// Unclear means to check again.
	Unclear Idleness = iota
	// Still means that no processor has moved its checkpoint, and none is about to.
	Still
	// Moving means that a processor is about to move its checkpoint.
	Moving
	// Open means that a transaction that may be a processor's does not end.
	Open
)

// IdleCheck decides whether the processors of old checkpoints have stopped, from
// lists of the transactions that use the checkpoints' table. All the while the rows are locked,
// so a transaction that tries to move one is seen to wait.
//
// Watching for a time is not enough:
//  1. a processor reads its checkpoint, without a lock, and begins a batch that
//     takes longer than the watch;
//  2. the rows are locked, watched, taken over, and unlocked;
//  3. the processor ends its batch, whose events others have handled as well.
//
// But a transaction that has read its checkpoint keeps a lock on the table. So
// each transaction that uses the table when the watch is over is waited for: it ends, or it
// waits for the row. That takes the length of the watch once more at most.
type IdleCheck struct {
	Watch time.Duration

	began time.Time
	over  bool
	open  []Holder // once the watch is over: transactions that used the table then and still do
}

// Observe takes in one list, and returns the transactions that stand against Still.
func (q *IdleCheck) Observe(now time.Time, users []User) (Idleness, []Holder) {
	var using, blocked []Holder
	for _, u := range users {
		using = append(using, u.Holder)
		if u.Blocked {
			blocked = append(blocked, u.Holder)
		}
	}
	if len(blocked) > 0 {
		return Moving, blocked
	}
	if q.began.IsZero() {
		q.began = now
	}
	if now.Sub(q.began) < q.Watch {
		return Unclear, nil
	}
	if !q.over {
		q.over, q.open = true, using
	} else {
		q.open = slices.DeleteFunc(q.open, func(h Holder) bool { return !slices.ContainsFunc(using, h.same) })
	}
	switch {
	case len(q.open) == 0:
		return Still, nil
	case now.Sub(q.began) >= 2*q.Watch:
		return Open, q.open
	}
	return Unclear, nil
}
