package protocol

import (
	"fmt"
	"time"
)

// A Health is what is known of how one worker is, from the turns of its loop. It is for
// probes, and judged without a look at anything else.
type Health struct {
	timing Timing
	window time.Duration // JoinWindow

	turned time.Time // when the loop has last turned; zero: it has not begun
	// answers is since when the database has answered every request; zero: not
	// the latest one, or none yet.
	answers  time.Time
	member   time.Time // since when it is seen to be a member; zero: it is not
	assigned bool      // it has partitions in the newest generation that it has seen
	standby  bool      // it has none, and is to have none
	running  int64     // the generation that it runs; 0: none
	placed   time.Time // when it has last been running or a standby; zero: never yet
	leaving  bool
}

// NewHealth returns that of a worker whose loop has not begun. window is its JoinWindow.
func NewHealth(t Timing, window time.Duration) Health { return Health{timing: t, window: window} }

// Turned returns when the loop has last turned; zero: it has not begun.
func (h *Health) Turned() time.Time { return h.turned }

// Running returns the generation that the worker runs; 0: none.
func (h *Health) Running() int64 { return h.running }

// Turn takes in one turn of the loop.
func (h *Health) Turn(now time.Time, in Input, actions []Action) {
	h.turned = now
	switch in := in.(type) {
	case Synced:
		if h.answers.IsZero() {
			h.answers = now
		}
		if !in.View.Member {
			h.member = time.Time{}
		} else if h.member.IsZero() {
			h.member = now
		}
		h.assigned = in.View.Assigned()
		// Who waits for a JoinWindow to close has no partitions, either.
		h.standby = in.View.Member && !h.assigned && now.Sub(h.member) > h.window+h.timing.Heartbeat
	case SyncFailed:
		h.answers = time.Time{}
	case Stopped:
		if h.running == in.Generation {
			h.running = 0
		}
	case Shutdown:
		h.leaving = true
	}
	for _, action := range actions {
		switch action := action.(type) {
		case Start:
			h.running = action.Share.Generation
		case GiveUp:
			h.leaving = true
		}
	}
	if h.running != 0 || h.standby {
		h.placed = now
	}
}

// Judge says how a worker is that runs: live is false when only a restart of its process
// helps.
//
// Ready is sticky. A re-partition stops all workers at once, and a database that
// is away does, too: were they not ready then, none would be, a roll-out or a
// drain of nodes would wait without need, and a short pause would look like a dead
// set.
func (h *Health) Judge(now time.Time) (live, ready bool, detail string) {
	ready = !h.placed.IsZero() && !h.leaving
	idle := now.Sub(h.turned)
	alone := now.Sub(h.placed) // without a place, and with a database that answers
	if h.answers.After(h.placed) {
		alone = now.Sub(h.answers)
	}
	switch {
	case h.turned.IsZero():
		return true, false, "starts, and has not heard from the database yet"
	case idle > h.timing.Lease:
		return false, false, fmt.Sprintf("its loop has not turned for %s", idle.Round(time.Second))
	case h.leaving:
		return true, false, "was asked to stop"
	case h.answers.IsZero() && h.placed.IsZero():
		return true, false, "joins, and the database has not answered yet"
	case h.answers.IsZero():
		return true, ready, "the database does not answer"
	case h.running != 0:
		return true, ready, fmt.Sprintf("runs generation %d", h.running)
	case h.standby:
		return true, ready, "is a standby"
	case ready && alone > 2*(h.timing.Drain+h.timing.Lease):
		return true, false, fmt.Sprintf("has had no place for %s, though the database answers", alone.Round(time.Second))
	case h.assigned:
		return true, ready, "waits for other workers to stop"
	}
	return true, ready, "joins"
}
