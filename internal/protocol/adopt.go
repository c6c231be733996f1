package protocol

import (
	"slices"
	"time"
)

// Adopt turns positions from elsewhere, those of partitions with hash mod
// len(positions) = k, into a layout from which Handoff can go on. Where the
// total divides Slots, that is the layout itself, and nothing is repeated.
//
// Elsewhere a slot's aggregates are spread over several of the old partitions:
// those k with k mod g = slot mod g, where g is the greatest common divisor of
// the total and Slots. The lowest of them is how far the slot is handled
// beyond doubt. So there are g partitions, and what the others are ahead is
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
	// Blocked: it waits for whoever looks, who holds the checkpoints' rows.
	Blocked bool
}

// An Idleness is the result of one check.
type Idleness int

const (
	// Unclear: look again.
	Unclear Idleness = iota
	// Still: no processor has moved, and none is about to.
	Still
	// Moving: a processor wants to move.
	Moving
	// Open: a transaction that may be a processor's does not end.
	Open
)

// IdleCheck decides whether the processors of old checkpoints have stopped, from
// looks at who uses the checkpoints' table. All the while the rows are locked,
// so whoever wants to move one is seen to wait.
//
// Watching for a time is not enough:
//  1. a processor reads its checkpoint, without a lock, and begins a batch that
//     takes longer than the watch;
//  2. the rows are locked, watched, taken over, and unlocked;
//  3. the processor ends its batch, whose events others have handled as well.
//
// But a transaction that has read its checkpoint keeps a lock on the table. So
// whoever uses the table when the watch is over is waited for: it ends, or it
// waits for the row. That takes the length of the watch once more at most.
type IdleCheck struct {
	Watch time.Duration

	began time.Time
	over  bool
	open  []Holder // once the watch is over: who used the table then and still does
}

// Observe checks once, and names the transactions that speak against stillness.
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
