package orchestrator

import (
	"context"
	"slices"
	"time"
)

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
