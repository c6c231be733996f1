package protocol

import (
	"fmt"
	"slices"
	"strings"
)

// Slots, checkpoints and marks, and how they are handed over from one number of partitions to
// another.
//
// Handoff promises that no event is lost and none is repeated, whatever the two totals are and
// however far apart the partitions are. It must never merge the frontiers of two slots upwards:
// that loses events.

// Slots is the number of hash buckets. It divides by every number to 10 and by
// 12, 14, 15, 16, 18, 20, 21, 24, …; for such a total, slot mod total is hash
// mod total, and the partitions are as even as the hash is.
const Slots = 5040

// SlotOf returns the slot of an aggregate: its 32-bit FNV-1a hash mod Slots.
// (Fowler, Noll, Vo; draft-eastlake-fnv.)
func SlotOf(aggregateID string) int {
	hash := uint32(2166136261)
	for i := 0; i < len(aggregateID); i++ {
		hash ^= uint32(aggregateID[i])
		hash *= 16777619
	}
	return int(hash % Slots)
}

// A Mark is a position up to which one slot is handled, ahead of its checkpoint.
type Mark struct {
	Slot     int
	Position int64
}

// A Checkpoint is how far a projection is on one partition: every event of the
// partition at or below Position is handled, and so is, for the slots in Ahead, every
// event at or below their own mark.
type Checkpoint struct {
	Position int64
	// Ahead is in slot order. Invariant: no mark is at or below Position when
	// Handoff writes it, and marks are dropped together once Position has
	// reached the highest.
	Ahead []Mark
}

// Frontier returns the position up to which the slot, one of the checkpoint's
// partition, is handled.
func (c Checkpoint) Frontier(slot int) int64 {
	i, found := slices.BinarySearchFunc(c.Ahead, slot, func(m Mark, slot int) int { return m.Slot - slot })
	if found {
		return max(c.Position, c.Ahead[i].Position)
	}
	return c.Position
}

// Advance returns the checkpoint moved forward to position.
func (c Checkpoint) Advance(position int64) Checkpoint {
	c.Position = position
	for _, m := range c.Ahead {
		if m.Position > position {
			return c
		}
	}
	c.Ahead = nil
	return c
}

// Equal reports whether two checkpoints say the same.
func (c Checkpoint) Equal(o Checkpoint) bool {
	return c.Position == o.Position && slices.Equal(c.Ahead, o.Ahead)
}

// Handoff turns the checkpoints of one partition layout, old[k] for partition
// k of len(old), into those of another with total partitions. Each slot's frontier is carried
// over. Without any old checkpoint, the projection starts from the beginning.
//
// The tempting alternatives: reusing checkpoints by partition number (1 → 2
// replays partition 1 from zero; 2 → 3 skips what a lagging partition had not
// read), taking the highest position (skips), taking the lowest without marks
// (repeats).
func Handoff(old []Checkpoint, total int) []Checkpoint {
	frontier := make([]int64, Slots)
	if len(old) > 0 {
		for slot := range frontier {
			frontier[slot] = old[slot%len(old)].Position
		}
		for k, c := range old {
			for _, m := range c.Ahead {
				if m.Slot%len(old) == k {
					frontier[m.Slot] = c.Frontier(m.Slot)
				}
			}
		}
	}
	next := make([]Checkpoint, total)
	for k := range next {
		next[k] = gather(frontier, k, total)
	}
	return next
}

// gather makes the checkpoint of partition k of total from the frontiers of
// its slots. A partition beyond the last slot owns none and is at 0.
func gather(frontier []int64, k, total int) Checkpoint {
	var c Checkpoint
	for slot := k; slot < Slots; slot += total {
		if slot == k || frontier[slot] < c.Position {
			c.Position = frontier[slot]
		}
	}
	for slot := k; slot < Slots; slot += total {
		if frontier[slot] > c.Position {
			c.Ahead = append(c.Ahead, Mark{Slot: slot, Position: frontier[slot]})
		}
	}
	return c
}

// String returns the checkpoint as 120, or as 120+3:150,7:150 with its marks;
// more than four marks are counted.
func (c Checkpoint) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", c.Position)
	if len(c.Ahead) > 4 {
		fmt.Fprintf(&b, "+%d marks", len(c.Ahead))
		return b.String()
	}
	for i, m := range c.Ahead {
		sep := ','
		if i == 0 {
			sep = '+'
		}
		fmt.Fprintf(&b, "%c%d:%d", sep, m.Slot, m.Position)
	}
	return b.String()
}
