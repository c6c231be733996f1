package sim

import (
	"slices"
	"time"
)

// onLease: no handler begins once its worker has used four fifths of its lease,
// counted from when the latest request that renewed it was sent (S1). The last
// fifth is for handlers to return in.
//
// The excuse is a freeze between deciding to call and calling. It is none for a
// lane that has had a handler return since: it was to look at its clock then.
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
		since = z.from.at - waking // frozen again right after it woke
	}
	return broken(onLease, append(c.circumstances(w, f), w.sent, f),
		"%s began to handle %s, although its lease allows that only for %s after the latest renewal, which was sent %s before",
		owner(f), positions(f.events), own.Round(time.Millisecond), f.at-w.sent.sent)
}

// own is how long a worker may begin to handle events after it has sent the
// request that renewed its lease, if its clock is slow.
func (s setup) own(lease fact) time.Duration {
	return s.slow((lease.at + lease.length - lease.read) * 4 / 5)
}

// slow is how long d can last by a slow clock.
func (s setup) slow(d time.Duration) time.Duration { return slow(d, s.drift) }

func slow(d time.Duration, drift float64) time.Duration {
	return time.Duration(float64(d) / (1 - drift))
}
