package orchestrator

import (
	"cmp"
	"slices"
	"time"
)

// heads remembers how far the stream was seen to reach, and since when, so that a
// lane can tell for how long there has been something beyond its position.
type heads []head

type head struct {
	position int64
	at       time.Time
}

const (
	// headStep is how exact the times are: less apart, two are one.
	headStep = 100 * time.Millisecond
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
	case n == headsMax: // what is long ago is remembered less and less exactly
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

// A reach is what a feed knows of the end of its stream.
type reach struct {
	heads heads
	known bool  // and not only that it reaches at least as far
	ends  bool  // it is known where it does:
	end   int64 // positions up to there were given out
	gap   *Gap  // that readers wait at
}

// lost reports whether a position is beyond the end of the stream: what comes next
// will have positions that count as handled.
func (r reach) lost(position int64) bool { return r.ends && position > r.end }

// behind returns how many positions there are beyond one; -1: nobody knows.
func (r reach) behind(position int64) int64 {
	if !r.known || r.lost(position) {
		return -1
	}
	return max(0, r.heads.last()-position)
}

// lag returns for how long something beyond a position has not been handled:
// since oldest, which is the time of the first such event where that is known, or
// else since it was seen that there is one.
func (r reach) lag(now time.Time, position int64, oldest time.Time) time.Duration {
	seen, ok := r.heads.beyond(position)
	switch {
	case !ok:
		return 0
	case !oldest.IsZero():
		seen = oldest
	}
	return max(0, now.Sub(seen))
}
