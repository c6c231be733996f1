package orchestrator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// How far the stream reaches, how far a lane is behind it, and what keeps a lane that
// does not move.

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

// How far a feed's stream reaches, and what its reads wait at: for those who watch.

// see takes in what a read above a position has seen: that the stream reaches to head
// (0: there was nothing), where it ends (-1: not known), that there was more, and the
// gap that the reads wait at. f.mu is locked.
func (f *feed[E]) see(after, head, end int64, more bool, gap *Gap) {
	now := time.Now()
	if f.end = end; end >= 0 && end < f.heads.last() {
		f.heads = nil // it was emptied, restored or replaced
	}
	if head == 0 && !f.tellsHead() {
		head = after // as good a guess as there is
	}
	f.heads.note(now, head)
	f.meet(gap)
	switch {
	case after > f.heads.last() && !more:
		// The position is the end, as after a start, or beyond it: a projection can
		// be set there (Rewind), and the others are not behind for that.
		if f.known.IsZero() {
			f.ask()
		}
	case !more && f.gap == nil:
		f.known = now
	case f.known.IsZero():
		f.ask() // a backlog: how long it is can't be told from its beginning
	}
}

// waiting returns the gap that the reads wait at. It calls the event store, which may
// be the program's: f.mu is not locked.
func (f *feed[E]) waiting() *Gap {
	s, ok := f.events.(GapWaiter)
	if !ok {
		return nil
	}
	gap, err := apart("the event store", func() (*Gap, error) {
		if gap, waits := s.Waiting(); waits {
			return &gap, nil
		}
		return nil, nil
	})
	if err != nil {
		return nil
	}
	return gap
}

// meet takes in the gap that the reads wait at, and tells of a change. f.mu is locked.
func (f *feed[E]) meet(gap *Gap) {
	before := f.gap
	f.gap = gap
	if before != nil && gap != nil && before.Position == gap.Position {
		return
	}
	for told := range f.watchers {
		if before != nil {
			(*told)(*before, true)
		}
		if gap != nil {
			(*told)(*gap, false)
		}
	}
}

// watch has a function told of gaps, until leave is called.
func (f *feed[E]) watch(told func(g Gap, resolved bool)) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[&told] = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, &told)
	}
}

// refresh asks how far the stream reaches, where the reads have not told that for
// too long: a lane that rests at the end has them tell it, as often as it looks.
func (f *feed[E]) refresh(now time.Time, after time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.known) > after && (f.gap != nil || !f.core.AtEnd()) {
		f.ask()
	}
}

// tellsHead reports whether it can be asked how far the stream reaches.
func (f *feed[E]) tellsHead() bool {
	_, ok := f.events.(HeadStore)
	return ok
}

// ask asks for it. f.mu is locked.
func (f *feed[E]) ask() {
	s, ok := f.events.(HeadStore)
	if !ok || f.asking || f.ctx.Err() != nil {
		return
	}
	f.asking = true
	patience := f.bound
	f.busy.Go(func() {
		head, err := bounded(f.ctx, patience, func(ctx context.Context) (int64, error) { return s.Head(ctx) }, nil)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.asking = false; err == nil {
			f.known = time.Now()
			f.heads.note(f.known, head)
		}
	})
}

// reach returns what is known.
func (f *feed[E]) reach() reach {
	f.mu.Lock()
	defer f.mu.Unlock()
	return reach{heads: slices.Clone(f.heads), known: !f.known.IsZero(), ends: f.end >= 0, end: f.end, gap: f.gap}
}

// A laneWatch notices that a lane does not move, from looks at it.
type laneWatch struct {
	position int64
	since    time.Time // when it was last seen to have moved, or to have nothing to do
	handling int64     // the position in hand of its handler; 0: none
	began    time.Time // when that was first seen
	stalled  bool
}

// see takes in a look. It reports whether the lane has stalled since the last one,
// or has not any more.
func (w *laneWatch) see(now time.Time, position int64, idle bool, handling int64, after time.Duration) (stalled, unstalled bool) {
	if handling != w.handling {
		w.handling, w.began = handling, now
	}
	if w.since.IsZero() || position != w.position || idle {
		w.position, w.since = position, now
		return false, w.end()
	}
	if w.stalled || now.Sub(w.since) < after {
		return false, false
	}
	w.stalled = true
	return true, false
}

// end ends a stall, and reports whether there was one.
func (w *laneWatch) end() (unstalled bool) {
	unstalled, w.stalled = w.stalled, false
	return unstalled
}

// reason says in words why a lane does not move.
func (w *laneWatch) reason(now time.Time, l LaneReport, gap *GapReport) string {
	switch {
	case l.State == LaneRetrying:
		return fmt.Sprintf("handler fails: %s, attempt %d", l.Error, l.Attempts)
	case l.State == LaneHalted:
		return fmt.Sprintf("halted, since the handler fails: %s, attempt %d", l.Error, l.Attempts)
	case l.State == LaneFull:
		return "too many events are parked"
	case l.State == LaneRefused:
		return l.Error
	case l.State == LaneBeyond:
		return fmt.Sprintf("stands at position %d, beyond the end of the event stream", l.Position)
	case l.State == LaneDatabase:
		return "database: " + l.Error
	case l.Handling != 0:
		return fmt.Sprintf("handler has run for %s at position %d", now.Sub(w.began).Round(time.Second), l.Handling)
	case l.State == LaneReading && l.Error != "": // and that will fail as the read before
		return l.Error
	case l.State == LaneUnproven:
		return "waits for a proof"
	case gap != nil && (l.State == LaneIdle || l.State == LaneReading && l.Position+1 == gap.Position):
		return fmt.Sprintf("waits for %s at the gap at position %d", gap.holders(), gap.Position)
	}
	return string(l.State)
}

// holders names the transactions that hold the gap open.
func (g *GapReport) holders() string {
	var pids []string
	for _, pid := range slices.Sorted(slices.Values(g.Backends)) {
		if pid != 0 {
			pids = append(pids, fmt.Sprint(pid))
		}
	}
	switch prepared := len(g.Backends) - len(pids); {
	case len(pids) == 0:
		return "a prepared transaction"
	case prepared > 0:
		return "a prepared transaction and those of the backends " + strings.Join(pids, ", ")
	case len(pids) > 1:
		return "the transactions of the backends " + strings.Join(pids, ", ")
	default:
		return "the transaction of backend " + pids[0]
	}
}
