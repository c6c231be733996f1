package protocol

import "time"

// How far the machines are, for people. No decision depends on it.

// Position returns the position up to which everything of the lane is handled. What a
// transaction has not committed is not handled: it may be rolled back. ok is false before the
// checkpoint was found.
func (l *Lane) Position() (position int64, ok bool) {
	if l.track == nil {
		return 0, false
	}
	return l.track.before(l.Handled()), true
}

// Handled returns how many of the pending events are handled, in the sense of Position.
func (l *Lane) Handled() int {
	if !l.config.Kind.InTransaction() {
		return l.done
	}
	return 0
}

// Rebuilds reports whether another version of the projection is the live one, as far as is
// known.
func (l *Lane) Rebuilds() bool { return l.follows }

// Committed returns how many events the commit held that was just answered, 0 for one that only
// skipped events; ok is false if the latest answer was not about a commit.
func (l *Lane) Committed() (events int, ok bool) { return l.settled, l.settled >= 0 }

// before returns the position before the n-th pending event, or the cursor if there are fewer.
func (t *Track) before(n int) int64 {
	if n < len(t.pending) {
		return t.pending[n] - 1
	}
	return t.cursor
}

// AtEnd reports whether a lane waits at the end of the stream. Then the polls for new events
// show how far it reaches.
func (f *Feed) AtEnd() bool {
	for _, w := range f.windows {
		if _, foremost, any := f.span(w); any && foremost >= w.end() && (w.backoff > 0 || w.reading) && !w.more && w.failed == nil {
			return true
		}
	}
	return false
}

// A SessionState is what a session does, in one word.
type SessionState string

const (
	Joining  SessionState = "joining"
	Standby  SessionState = "standby"   // a member without partitions
	Waiting  SessionState = "waiting"   // for other workers to stop
	Running  SessionState = "running"   // its partitions
	Stopping SessionState = "draining"  // its partitions
	Unproven SessionState = "suspended" // handlers wait for a proof
)

// State returns the state of the session.
func (s *Session) State(now time.Time) SessionState {
	begin, _, bound := s.Proof()
	switch {
	case s.running != nil && !s.stopping.IsZero():
		return Stopping
	case s.running != nil && bound && !now.Before(begin) && (s.presence.suspended || s.presence.wanted):
		return Unproven
	case s.running != nil:
		return Running
	case !s.member:
		return Joining
	case s.assigned:
		return Waiting
	}
	return Standby
}
