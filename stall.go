package orchestrator

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

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
