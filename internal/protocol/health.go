package protocol

import (
	"fmt"
	"time"
)

// Whether a worker is alive and ready, for probes.
//
// A Health is judged by what the worker's loop has seen, and asks nothing: a probe must never
// wait for the database, and a database that is away must never restart all processes.

// A Health is what is known of one worker, from the turns of its loop.
type Health struct {
	timing Timing
	window time.Duration // JoinWindow

	turned time.Time // when the loop has last turned; zero: it has not begun
	// answers is since when the database has answered every request; zero if it has not
	// answered the latest one, or none yet.
	answers  time.Time
	member   time.Time // since when it is a member; zero: it is not
	assigned bool      // it has partitions in the newest generation that it has seen
	standby  bool      // it has none, and is to have none
	running  int64     // the generation that it runs; 0: none
	placed   time.Time // when it was last running or a standby; zero: never yet
	leaving  bool
}

// NewHealth returns the health of a worker whose loop has not begun. window is its JoinWindow.
func NewHealth(t Timing, window time.Duration) Health { return Health{timing: t, window: window} }

// Turned returns when the loop has last turned; zero if it has not begun.
func (h *Health) Turned() time.Time { return h.turned }

// Running returns the generation that the worker runs; 0 is none.
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
		// A worker that waits for a JoinWindow to close has no partitions, either.
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

// Judge returns whether the worker is live and ready, and why in words. live is false if only
// a restart of the process helps.
//
// Ready is sticky. A rebalance stops all workers at once, and so does a database that
// is away: if they were not ready then, none would be, a roll-out or a
// drain of nodes would wait without need, and a short pause would look like a dead
// replica set.
func (h *Health) Judge(now time.Time) (live, ready bool, detail string) {
	ready = !h.placed.IsZero() && !h.leaving
	idle := now.Sub(h.turned)
	alone := now.Sub(h.placed) // for how long without partitions, though the database answers
	if h.answers.After(h.placed) {
		alone = now.Sub(h.answers)
	}
	switch {
	case h.turned.IsZero():
		return true, false, "is starting; the database has not answered yet"
	case idle > h.timing.Lease:
		return false, false, fmt.Sprintf("is stuck: its coordination loop has not run for %s", idle.Round(time.Second))
	case h.leaving:
		return true, false, "was asked to stop"
	case h.answers.IsZero() && h.placed.IsZero():
		return true, false, "is joining; the database has not answered yet"
	case h.answers.IsZero():
		return true, ready, "the database does not answer"
	case h.running != 0:
		return true, ready, fmt.Sprintf("runs generation %d", h.running)
	case h.standby:
		return true, ready, "is a standby"
	case ready && alone > 2*(h.timing.Drain+h.timing.Lease):
		return true, false, fmt.Sprintf("has had no partitions for %s, although the database answers", alone.Round(time.Second))
	case h.assigned:
		return true, ready, "waits for other workers to stop"
	}
	return true, ready, "is joining"
}
