package protocol

import "time"

// A projection that is built anew beside the live one, to take its place, follows that one:
// on no slot does it go further than the live one has. So what it handles was handled
// before, and it can be told that: each of its events is a replay. And when the live one
// has stopped, and the follower stands where that has, on each slot, the follower can take
// over: what the live one has not handled is then handled by the follower, as new, and by
// nobody else.
//
// Were the follower to run ahead, it would be told that an event is a replay which the live
// one never handles, and the mail of that event would not be sent:
//  1. the live one has handled 90; the follower handles 100, as a replay;
//  2. the live one stops, and the follower takes its place: 91 to 100 were new to nobody.

// Followed is what a follower knows of the live version.
type Followed struct {
	// Version is its name; "": there is none. It is for people.
	Version string
	// Live: there is none, or no more. The follower is the live one itself.
	Live bool
	// Checkpoints of the live one, by partition. They are read in one piece, and they only
	// grow, so a reading that is old allows less and never too much.
	Checkpoints []Checkpoint
	// Final: it is stopped where they are, for the follower to reach that.
	Final bool
}

// followEvery is how often a follower asks where the live version is, when it has come to
// that; and followFinal how often where that is stopped, and nobody handles what is new.
const (
	followEvery = 500 * time.Millisecond
	followFinal = 100 * time.Millisecond
)

// A Ceiling is how far a follower may go on the slots of its partition: as far as the live
// version is. While that moves, it is the lowest of them for all slots, since a checkpoint
// with a mark for each slot is long. In the end it has to be exact.
type Ceiling struct {
	Checkpoint
	Final bool
}

// ceiling returns how far the lane of a partition may go.
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

// advance returns the checkpoint of a partition once everything up to a position is handled
// that is not above the ceiling.
func (c *Ceiling) advance(from Checkpoint, partition, total int, position int64) Checkpoint {
	frontier := make([]int64, Slots)
	for slot := partition; slot < Slots; slot += total {
		frontier[slot] = max(from.Frontier(slot), min(c.Frontier(slot), position))
	}
	return gather(frontier, partition, total)
}

// Follow sets how far the track may go; nil: as far as the stream does. Nothing is pending.
func (t *Track) Follow(c *Ceiling) {
	if t.ceiling.same(c) {
		return
	}
	apart := t.ceiling != nil && len(t.ceiling.Ahead) > 0 // events between the slots' ceilings were passed
	if t.ceiling = c; apart {
		t.Rewind(t.checkpoint, t.committed)
	}
}

// rest returns how long to rest at the ceiling.
func (c *Ceiling) rest() time.Duration {
	if c.Final {
		return followFinal
	}
	return followEvery
}

// AtCeiling reports whether everything that the track may have was read.
func (t *Track) AtCeiling() bool { return t.ceiling != nil && t.cursor >= t.ceiling.high() }

// Lacks returns how many positions a projection is behind another one, on the slot on which
// it is the furthest behind; 0: it has reached it on each.
func Lacks(behind, other []Checkpoint) (positions int64) {
	a, b := Handoff(behind, 1)[0], Handoff(other, 1)[0]
	for slot := range Slots {
		positions = max(positions, b.Frontier(slot)-a.Frontier(slot))
	}
	return positions
}
