package sim

import (
	"slices"
	"time"
)

// onLease checks that no handler begins after its worker has used four fifths of its lease,
// counted from the sending of the latest request that renewed it (S1). The last fifth is
// for handlers to return.
//
// The excuse is a freeze between deciding to call and calling. It does not hold for a lane
// in which a handler has returned since: the lane had to check its clock then.
func (c *checker) onLease(w *checkedWorker, f fact) *violation {
	if w.sent.unset() || c.setup.timing.Lease == 0 {
		return nil
	}
	own := c.setup.own(w.sent)
	over := w.sent.sent + own
	if f.at <= over+deciding {
		return nil
	}
	since := f.at - waking
	for _, z := range slices.Backward(w.freezes) {
		if z.to.at < since || w.returns[laneKey{f.projection, f.partition}].step > z.from.step {
			break
		}
		if z.from.at <= over+deciding {
			return nil
		}
		since = z.from.at - waking // it froze again right after it woke
	}
	return broken(onLease, append(c.circumstances(w, f), w.sent, f),
		"%s began to handle %s, although its lease allows that only for %s after the latest renewal, which was sent %s before",
		owner(f), positions(f.events), own.Round(time.Millisecond), f.at-w.sent.sent)
}

// own returns how long a worker with a slow clock may begin to handle events after it has
// sent the request that renewed its lease.
func (s setup) own(lease fact) time.Duration {
	return s.slow((lease.at + lease.length - lease.read) * 4 / 5)
}

// slow returns how long d can last by a slow clock.
func (s setup) slow(d time.Duration) time.Duration { return slow(d, s.drift) }

func slow(d time.Duration, drift float64) time.Duration {
	return time.Duration(float64(d) / (1 - drift))
}
