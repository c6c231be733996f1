package protocol

import "time"

// How far machines are, for those who watch them. Nothing is decided by it.

// Position returns the position up to which everything is handled, or belongs to
// others. What a transaction has not committed is not handled: it may be undone,
// again and again. ok is false before the checkpoint was found.
func (l *Lane) Position() (position int64, ok bool) {
	if l.track == nil {
		return 0, false
	}
	return l.track.before(l.Handled()), true
}

// Handled returns how many of the pending events are handled, as Position has it.
func (l *Lane) Handled() int {
	if !l.config.Kind.InTransaction() {
		return l.done
	}
	return 0
}

// Committed returns how many events the commit held of which the latest answer
// told, 0 for one that only skipped; ok is false where it told of none.
func (l *Lane) Committed() (events int, ok bool) { return l.settled, l.settled >= 0 }

// before returns the position before the n-th pending event, or, if there are no
// more, up to where was read.
func (t *Track) before(n int) int64 {
	if n < len(t.pending) {
		return t.pending[n] - 1
	}
	return t.cursor
}

// AtEnd reports whether a lane waits at the end of the stream, where the looks for
// new events tell how far it reaches.
func (f *Feed) AtEnd() bool {
	for _, w := range f.windows {
		if _, foremost, any := f.span(w); any && foremost >= w.end() && (w.backoff > 0 || w.reading) && !w.more && w.failed == nil {
			return true
		}
	}
	return false
}

// A SessionState says in a word what a session is about.
type SessionState string

const (
	Joining  SessionState = "joining"
	Standby  SessionState = "standby"   // a member without partitions
	Waiting  SessionState = "waiting"   // for others to stop
	Running  SessionState = "running"   // its partitions
	Stopping SessionState = "draining"  // them
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
