package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// The end of the stream, how far lanes are behind it, and why a lane does not move.

// A reach is what a feed knows of the end of its stream.
type reach struct {
	protocol.Reach
	gap *Gap // that reads wait at
}

// noteRead notes what a read has seen, and the gap that reads wait at. f.mu is locked.
func (f *feed[E]) noteRead(seen protocol.Seen, gap *Gap) {
	f.noteGap(gap)
	seen.Gap = gap != nil
	if f.end.See(time.Now(), seen, f.tellsHead()) {
		f.askHead()
	}
}

// waiting returns the gap that the reads wait at. It calls the event store, which may be the
// program's own code, so f.mu is not locked.
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

// noteGap notes the gap that the reads wait at, and reports a change. f.mu is locked.
func (f *feed[E]) noteGap(gap *Gap) {
	before := f.gap
	f.gap = gap
	if before != nil && gap != nil && before.Position == gap.Position {
		return
	}
	for report := range f.watchers {
		if before != nil {
			(*report)(*before, true)
		}
		if gap != nil {
			(*report)(*gap, false)
		}
	}
}

// watch calls a function with gaps, when reads start to wait at one and when they continue,
// until leave is called.
func (f *feed[E]) watch(report func(g Gap, resolved bool)) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[&report] = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, &report)
	}
}

// refresh asks for the head of the stream if reads have not shown it for too long. While a
// lane polls at the end of the stream, they do.
func (f *feed[E]) refresh(now time.Time, after time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.end.Known()) > after && (f.gap != nil || !f.core.AtEnd()) {
		f.askHead()
	}
}

// tellsHead reports whether the event store can be asked for the head.
func (f *feed[E]) tellsHead() bool {
	_, ok := f.events.(HeadStore)
	return ok
}

// askHead asks the event store for the head, in the background. f.mu is locked.
func (f *feed[E]) askHead() {
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
			f.end.Told(time.Now(), head)
		}
	})
}

// reach returns what is known of the end of the stream.
func (f *feed[E]) reach() reach {
	f.mu.Lock()
	defer f.mu.Unlock()
	return reach{f.end.Clone(), f.gap}
}

// A catchUp is a worker's way to the end of the stream as it was when its first partitions
// started. "caught up" is logged once in a Run, and not after each re-partition.
type catchUp struct {
	done   atomic.Bool
	began  atomic.Pointer[time.Time] // nil: it has had no partitions
	target atomic.Int64              // that end; 0: not known yet
	events atomic.Int64              // that were handled and committed since
}

// begin is called when so many lanes start. A standby has none, and waits for the first.
func (c *catchUp) begin(lanes int) {
	if now := time.Now(); lanes > 0 {
		c.began.CompareAndSwap(nil, &now)
	}
}

// caughtUp notes what the lane does next, and logs that the worker has caught up if the lane
// is the last one to do so. A lane has caught up when there is nothing for it to do, or when
// it has committed up to the target: while events are appended all the time, there may always
// be something to do.
func (l *lane[E]) caughtUp(a protocol.LaneAction) {
	c := &l.worker.catchUp
	began := c.began.Load()
	if began == nil || c.done.Load() {
		return
	}
	events, committed := l.core.Committed()
	if committed {
		c.events.Add(int64(events))
	}
	rests := a.Do == protocol.LanePause && (a.Why == protocol.NothingNew || a.Why == protocol.AtLive)
	if l.there || !committed && !rests {
		return
	}
	head, gap := l.worker.feed.headSince(*began)
	c.target.CompareAndSwap(0, head)
	if rests && (a.Why == protocol.AtLive || !gap) {
		l.there = true
	} else if position, _ := l.core.Position(); c.target.Load() > 0 && position >= c.target.Load() {
		l.there = true
	}
	if l.there && l.run.behind.Add(-1) == 0 && !c.done.Swap(true) {
		l.worker.log.Info("caught up", "events", c.events.Load(), "in", time.Since(*began))
	}
}

// headSince returns the highest position of the stream, if that was last known after a
// time, else 0; and whether reads wait at a gap.
func (f *feed[E]) headSince(t time.Time) (head int64, gap bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.end.Known().Before(t) {
		head = f.end.Head()
	}
	return head, f.gap != nil
}

// stallReason returns why a lane does not move, in words.
func stallReason(w *protocol.Stall, now time.Time, l LaneReport, gap *GapReport) string {
	switch {
	case l.State == LaneRetrying && l.Interruption != "":
		return "handler interrupted: " + l.Interruption
	case l.State == LaneRetrying:
		return fmt.Sprintf("handler fails: %s, attempt %d", l.Error, l.Attempts)
	case l.State == LaneFull:
		return "too many events are parked"
	case l.State == LaneRefused:
		return l.Error
	case l.State == LaneBeyond:
		return fmt.Sprintf("stands at position %d, beyond the end of the event stream", l.Position)
	case l.State == LaneDatabase:
		return "database: " + l.Error
	case l.Handling != 0:
		return fmt.Sprintf("handler has run for %s at position %d", now.Sub(w.Began).Round(time.Second), l.Handling)
	case l.State == LaneReading && l.Error != "": // and that will fail as the read before
		return l.Error
	case l.State == LaneSuspended:
		return "suspended until the database answers"
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
