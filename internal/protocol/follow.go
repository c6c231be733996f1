package protocol

import "time"

// Following: a projection that is rebuilt beside the live one, to take its place.
//
// This file promises that on no slot a follower gets further than the live version. So each
// of its events was handled before, and is marked as a replay. When the live version
// has stopped, and the follower has reached it on each slot, the follower can take
// over: it handles what the live one has not handled, as new, and no other projection does.
//
// It must never run ahead. Then an event that the live version never handles would be marked
// as a replay, and the mail of that event would not be sent:
//  1. the live one has handled 90; the follower handles 100, as a replay;
//  2. the live one stops, and the follower takes its place: 91 to 100 were new to neither.

// Followed is what a follower knows of the live version.
type Followed struct {
	// Version is the name of the live version, for people; "" is none.
	Version string
	// Live is true if there is no other live version (any more): the follower is the live
	// one itself.
	Live bool
	// Checkpoints are those of the live version, by partition. They are read in one piece,
	// and they only grow, so an old reading allows less and never too much.
	Checkpoints []Checkpoint
	// Final is true if the live version is stopped at Checkpoints, so that the follower can
	// reach it exactly.
	Final bool
}

// followEvery is how often a follower that has reached the live version reads where that is by
// now; followFinal is how often if the live version is stopped, and new events wait.
const (
	followEvery = 500 * time.Millisecond
	followFinal = 100 * time.Millisecond
)

// A Ceiling is how far a follower may get on the slots of its partition: as far as the live
// version. While that runs, the ceiling is the lowest of its frontiers for all slots, since a
// checkpoint with a mark for each slot is long. When it is stopped, the ceiling is exact.
type Ceiling struct {
	Checkpoint
	Final bool
}

// ceiling returns how far the lane of a partition may get; nil is no limit.
func (f Followed) ceiling(partition, total int) *Ceiling {
	if f.Live {
		return nil
	}
	c := &Ceiling{Handoff(f.Checkpoints, total)[partition], f.Final}
	if !f.Final {
		c.Ahead = nil
	}
	return c
}

// same reports whether two ceilings are the same.
func (c *Ceiling) same(o *Ceiling) bool {
	return c != nil && o != nil && c.Final == o.Final && c.Checkpoint.Equal(o.Checkpoint)
}

// high is the highest position up to which any slot may be handled.
func (c *Ceiling) high() int64 {
	high := c.Position
	for _, m := range c.Ahead {
		high = max(high, m.Position)
	}
	return high
}

// advance returns the checkpoint of a partition once everything up to a position, and not above
// the ceiling, is handled.
func (c *Ceiling) advance(from Checkpoint, partition, total int, position int64) Checkpoint {
	frontier := make([]int64, Slots)
	for slot := partition; slot < Slots; slot += total {
		frontier[slot] = max(from.Frontier(slot), min(c.Frontier(slot), position))
	}
	return gather(frontier, partition, total)
}

// Follow sets how far the track may get; nil is no limit. No event may be pending.
func (t *Track) Follow(c *Ceiling) {
	if t.ceiling.same(c) {
		return
	}
	apart := t.ceiling != nil && len(t.ceiling.Ahead) > 0 // events between the slots' ceilings were passed
	if t.ceiling = c; apart {
		t.Rewind(t.checkpoint, t.committed)
	}
}

// rest returns how long to pause at the ceiling.
func (c *Ceiling) rest() time.Duration {
	if c.Final {
		return followFinal
	}
	return followEvery
}

// AtCeiling reports whether everything up to the ceiling was read.
func (t *Track) AtCeiling() bool { return t.ceiling != nil && t.cursor >= t.ceiling.high() }

// Lacks returns how many positions a projection is behind another one, on the slot on which
// it is the furthest behind; 0 if it has reached the other one on each slot.
func Lacks(behind, other []Checkpoint) (positions int64) {
	a, b := Handoff(behind, 1)[0], Handoff(other, 1)[0]
	for slot := range Slots {
		positions = max(positions, b.Frontier(slot)-a.Frontier(slot))
	}
	return positions
}
