package protocol

import (
	"cmp"
	"slices"
	"time"
)

// Lag: where the event stream ends, how far a lane is behind that, how fast it is, and whether
// it is stalled. This is for people; no decision depends on it.

// heads remembers how far the stream was seen to reach, and since when. So a
// lane knows for how long there has been something beyond its position.
type heads []head

type head struct {
	position int64
	at       time.Time
}

const (
	// headStep is how exact the times are: two heads that are less apart become one.
	headStep = 100 * time.Millisecond
	// headsMax is how many heads are kept.
	headsMax = 600
)

// note takes in that the stream reaches at least to a position.
func (h *heads) note(now time.Time, position int64) {
	n := len(*h)
	switch {
	case position <= h.last():
		return
	case n > 0 && now.Sub((*h)[n-1].at) < headStep:
		(*h)[n-1].position = position
		return
	case n == headsMax: // older heads are kept less and less exactly
		kept := (*h)[:0]
		for i := 0; i < n; i += 2 {
			kept = append(kept, (*h)[i])
		}
		*h = kept
	}
	*h = append(*h, head{position, now})
}

// last returns the highest position that was seen; 0: none.
func (h heads) last() int64 {
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].position
}

// beyond returns when the stream was first seen to reach beyond a position.
func (h heads) beyond(position int64) (at time.Time, ok bool) {
	i, _ := slices.BinarySearchFunc(h, position+1, func(e head, p int64) int { return cmp.Compare(e.position, p) })
	if i == len(h) {
		return time.Time{}, false
	}
	return h[i].at, true
}

// A Reach is what a feed knows of the end of its stream, from what it has read.
type Reach struct {
	heads heads
	known time.Time // when the latest of heads was the end of the stream; zero: not known
	end   int64     // positions up to there were given out; -1: not known
}

// NewReach returns the Reach of a stream of which nothing was read.
func NewReach() Reach { return Reach{end: -1} }

// A Seen is what a read above After has seen: the stream reaches to Head (0 if nothing was
// there), and ends at End (-1 if not known); whether there was more, and whether reads wait at
// a gap.
type Seen struct {
	After, Head, End int64
	More, Gap        bool
}

// See takes in a read. tells is whether the event store can be asked how far the stream
// reaches. See reports whether to ask it.
func (r *Reach) See(now time.Time, s Seen, tells bool) (ask bool) {
	if r.end = s.End; s.End >= 0 && s.End < r.heads.last() {
		r.heads = nil // it was emptied, restored or replaced
	}
	if s.Head == 0 && !tells {
		s.Head = s.After // the best guess
	}
	r.heads.note(now, s.Head)
	switch {
	case s.After > r.heads.last() && !s.More:
		// The position is the end, as after a start, or beyond it: a projection can
		// be set there (Rewind), and the others are not behind for that.
	case !s.More && !s.Gap:
		r.known = now
	}
	return r.known.IsZero() // the beginning of a backlog does not show how long it is
}

// Told takes in the event store's answer.
func (r *Reach) Told(now time.Time, head int64) {
	r.known = now
	r.heads.note(now, head)
}

// Known returns when the end of the stream was last known; zero: never.
func (r *Reach) Known() time.Time { return r.known }

// Head returns the highest position that was seen, 0 if there is none or the end of the
// stream is not known.
func (r *Reach) Head() int64 {
	if r.known.IsZero() {
		return 0
	}
	return r.heads.last()
}

// Clone returns a copy that does not change.
func (r *Reach) Clone() Reach { return Reach{slices.Clone(r.heads), r.known, r.end} }

// Lost reports whether a position is beyond the end of the stream: the next events
// will have positions that count as handled already.
func (r *Reach) Lost(position int64) bool { return r.end >= 0 && position > r.end }

// Behind returns how many positions there are beyond one; -1 if that is not known.
func (r *Reach) Behind(position int64) int64 {
	if r.known.IsZero() || r.Lost(position) {
		return -1
	}
	return max(0, r.heads.last()-position)
}

// Lag returns for how long an event beyond a position has not been handled: since oldest,
// which is the time of the first such event if that is known, or else since the stream was
// first seen to have one.
func (r *Reach) Lag(now time.Time, position int64, oldest time.Time) time.Duration {
	seen, ok := r.heads.beyond(position)
	switch {
	case !ok:
		return 0
	case !oldest.IsZero():
		seen = oldest
	}
	return max(0, now.Sub(seen))
}

// A Pace is how fast a lane makes progress lately, from observations of it.
type Pace struct {
	began, at time.Time // of the first observation, and the latest
	position  int64
	rate      float64
}

// paceOver is about how long ago "lately" begins.
const paceOver = 30 * time.Second

// See takes in an observation.
func (p *Pace) See(now time.Time, position int64) {
	if p.began.IsZero() {
		p.began, p.at, p.position = now, now, position
		return
	}
	passed := now.Sub(p.at)
	if passed <= 0 {
		return
	}
	rate := float64(max(0, position-p.position)) / passed.Seconds()
	weight := min(1, passed.Seconds()/min(now.Sub(p.began), paceOver).Seconds())
	p.rate += weight * (rate - p.rate)
	p.at, p.position = now, position
}

// PerSecond returns the pace in positions per second.
func (p *Pace) PerSecond() float64 { return p.rate }

// A Stall detects that a lane makes no progress, from observations of it.
type Stall struct {
	position int64
	handling int64     // the position of the event that its handler has in hand; 0: none
	Since    time.Time // when it was last seen to have made progress, or to have nothing to do
	Began    time.Time // when its handler was first seen with that event in hand
	Stalled  bool
	Stood    time.Time // of the latest stall: since when there had been no progress
}

// See takes in an observation. It reports whether the lane has stalled since the last one,
// or is stalled no more.
func (w *Stall) See(now time.Time, position int64, idle bool, handling int64, after time.Duration) (stalled, unstalled bool) {
	if handling != w.handling {
		w.handling, w.Began = handling, now
	}
	if w.Since.IsZero() || position != w.position || idle {
		w.position, w.Since = position, now
		return false, w.End()
	}
	if w.Stalled || now.Sub(w.Since) < after {
		return false, false
	}
	w.Stalled, w.Stood = true, w.Since
	return true, false
}

// End ends a stall, and reports whether there was one.
func (w *Stall) End() (unstalled bool) {
	unstalled, w.Stalled = w.Stalled, false
	return unstalled
}
