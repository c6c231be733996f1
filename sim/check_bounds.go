package sim

import (
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// No worker may hang the others (L3). Each step from a fault to the next active generation
// has a bound, also while faults go on. ARCHITECTURE.md states the bounds for each cause.
// Together they bound the time until an opened generation is active: see activatedInTime.
//
// The checker demands nothing of a worker that is frozen, cut off or gone, nor while a
// recent fault of the worker, or of the locks of all, explains a delay (upset). It judges a
// worker by its own settings, and what others do for it by the slowest settings.

// notice is the time in which an able worker must see a change of the group and act: a
// heartbeat, packets, and a moment for each member of a crowd.
func (c *checker) notice(t protocol.Timing) time.Duration {
	packets := time.Duration(20+len(c.members)) * 3 * c.setup.latency
	return c.setup.slow(t.Heartbeat) + packets + 50*time.Millisecond
}

// upset takes in for how long a fact explains that workers are late, and that they do not
// know the database's clock.
func (c *checker) upset(f fact) {
	t, b := c.setup.timing, c.setup.bounds
	if t.Lease == 0 {
		return
	}
	retry := t.Patience() + min(time.Second, t.Heartbeat)
	locks := b.Idle + b.Lock + min(time.Second, t.Heartbeat)
	watch := c.setup.slow(t.Lease) + t.Heartbeat
	all := func(late time.Duration) { c.late = max(c.late, f.at+late) }
	one := func(late, blind time.Duration) {
		c.each(f.worker, func(w *checkedWorker) {
			w.late, w.blind = max(w.late, f.at+late), max(w.blind, f.at+late+blind)
		})
	}
	trouble := func() { c.each(f.worker, func(w *checkedWorker) { w.trouble = f }) }
	switch f.kind {
	case workerStarts:
		one(retry, watch)
	case workerGone, faultFreeze, faultCutOff: // it may have held locks
		all(locks)
		trouble()
	case faultThaw, faultMended:
		one(retry, watch)
		trouble()
		if f.kind == faultThaw { // it still does what it was about to do
			c.each(f.worker, func(w *checkedWorker) { w.troubled = max(w.troubled, f.at+waking) })
		}
	case faultLost:
		one(retry, watch)
		all(locks)
		trouble()
	case faultSlow: // one slow answer, or those of two heartbeats, which disturb the watch of the clock
		one(2*t.Heartbeat+retry, 3*watch)
		all(f.length + locks)
		trouble()
		if f.text == everyReply {
			c.worker(f.worker).troubled = f.at + 2*t.Heartbeat
		}
	case faultDatabaseDown:
		c.down, c.trouble = true, f
	case faultDatabaseUp:
		c.down, c.trouble = false, f
		all(retry)
		one(retry, watch)
	case faultClockStep:
		one(retry, 2*watch)
	case sessionTaken: // the worker tries again
		one(retry, 0)
	case runCancels, runSuspends, workerReturns, refused, workerExpired:
		trouble()
	case faultOther: // the worker that it hits ends, and another one starts
		if f.text == toStandby { // or its requests fail
			one(retry, watch)
		}
		all(f.length + retry + locks)
		c.trouble, c.troubled = f, f.at+f.length
	case healed:
		all(locks)
	}
}

// inTime checks all bounds, a few times per heartbeat.
func (c *checker) inTime(f fact) *violation {
	for set := range c.sets {
		c.turnTo(set)
		if v := c.owes(f); v != nil {
			return v
		}
	}
	if f.at < c.look || c.setup.timing.Lease == 0 {
		return nil
	}
	c.look = f.at + c.setup.timing.Heartbeat/4
	for _, w := range c.all {
		c.turnTo(w.set)
		if v := c.whole(w, f); v != nil {
			return v
		}
		if v := c.obeys(w, f); v != nil {
			return v
		}
	}
	if c.down || c.setup.contended && c.healed.unset() {
		return nil
	}
	for set := range c.sets {
		c.turnTo(set)
		if v := c.setInTime(f); v != nil {
			return v
		}
	}
	return nil
}

// setInTime checks the bounds of one replica set.
func (c *checker) setInTime(f fact) *violation {
	watching, able := c.watching(f.at)
	if !able {
		return nil
	}
	for _, m := range c.members {
		if !m.vacated.unset() {
			if v := c.lapses(m, f); v != nil {
				return v
			}
			continue
		}
		if v := c.removed(m, watching, f); v != nil {
			return v
		}
		if v := c.missed(m, f); v != nil {
			return v
		}
		if v := c.reacts(m, f); v != nil {
			return v
		}
	}
	if v := c.heldForLong(f); v != nil {
		return v
	}
	return c.activatedInTime(watching, f)
}

// watching returns since when an able member has watched the database's clock for long
// enough to judge other members.
func (c *checker) watching(now time.Duration) (since time.Duration, able bool) {
	for _, m := range c.members {
		if w := m.worker; w.able() && !w.leaving && !c.overBy(w, now) && (!able || max(w.blind, m.joined.at) < since) {
			since, able = max(w.blind, m.joined.at), true
		}
	}
	return since, able
}

// obeys checks that a worker that is asked to stop does so within Drain, or ends. A handler
// that obeys its context must return when it is cancelled, after half of Drain. A process
// that was frozen gets its time after it has woken.
func (c *checker) obeys(w *checkedWorker, f fact) *violation {
	if w.run.unset() || w.frozen() {
		return nil
	}
	awake := time.Duration(-1 << 60)
	if n := len(w.freezes); n > 0 {
		awake = w.freezes[n-1].to.at + wakeMax
	}
	const slack = 10 * time.Millisecond
	if over := w.sent.sent + c.setup.own(w.sent); f.at > max(over, awake)+slack && !w.sent.unset() {
		for _, call := range w.calls {
			if !call.begin.deaf && f.at > call.begin.at+slack {
				return broken(onLease, []fact{w.run, call.begin, w.sent, w.cancel, f}, "a handler of %s that obeys cancellation still ran %s after four fifths of its lease were over",
					owner(call.begin), f.at-over)
			}
		}
	}
	for _, call := range w.calls {
		if v := c.suspended(call, f); v != nil {
			return v
		}
	}
	drain, cancel := w.drain, w.cancel
	if drain.step < w.run.step {
		drain = fact{}
	}
	if cancel.step < w.run.step {
		cancel = fact{}
	}
	asked := drain
	if asked.unset() {
		asked = cancel
	}
	if asked.unset() {
		return nil
	}
	whole, half := c.setup.slow(w.timing.Drain), c.setup.slow(w.timing.Drain/2)
	if f.at > max(asked.at+whole, awake+half)+slack {
		return broken(bounded, []fact{w.run, drain, cancel, f}, "%s still ran generation %d %s after it was asked to stop, and must give up after %s",
			w.name, w.run.generation, f.at-asked.at, w.timing.Drain)
	}
	due := max(asked.at+half, awake)
	if !cancel.unset() {
		due = max(cancel.at, awake)
	}
	for _, call := range w.calls {
		if !call.begin.deaf && f.at > max(due, call.begin.at)+slack {
			return broken(bounded, []fact{w.run, call.begin, drain, cancel, f}, "a handler of %s that obeys cancellation still ran %s after it was asked to stop, and must be cancelled after half of %s",
				owner(call.begin), f.at-asked.at, w.timing.Drain)
		}
	}
	return nil
}

// cancelled checks that handlers are not cancelled before their grace is over, unless the
// lease is over.
func (c *checker) cancelled(f fact) *violation {
	w := c.worker(f.worker)
	grace := w.timing.Drain / 2
	if f.text == "lost" || w.drain.unset() || w.drain.generation != f.generation {
		return nil
	}
	if had := f.at - w.drain.at; had < time.Duration(float64(grace)*(1-2*c.setup.drift))-deciding {
		return broken(bounded, []fact{w.drain, f}, "%s cancelled its handlers %s after it was asked to stop instead of after %s", f.worker, had, grace)
	}
	return nil
}

// removed checks that a worker that is dead, frozen or cut off is removed when its lease is
// over, once another worker has watched the clock for a lease and had a heartbeat to see
// it.
func (c *checker) removed(m *member, watching time.Duration, f fact) *violation {
	end, granted := c.leaseEnd(m.worker)
	if !granted {
		return nil
	}
	t := c.setup.timing
	if c.stepped.step > m.worker.lease.step { // stepped back: the lease counts from the step
		end = max(end, c.stepped.at+t.Lease+t.Heartbeat)
	}
	patience := t.Lease/50 + 16*c.setup.latency
	if f.at <= max(end, watching, c.late)+c.notice(t)+patience {
		return nil
	}
	n := len(m.worker.freezes)
	var frozen fact
	if n > 0 {
		frozen = m.worker.freezes[n-1].from
	}
	return broken(bounded, []fact{m.joined, m.worker.lease, frozen, m.worker.cut, f}, "%s was still a member %s after its lease was over, although another worker had watched the clock for a lease",
		m.id, f.at-end)
}

// reacts checks that an able member runs what it is given, or reports a stop, or rejoins;
// and that it stops when there is a newer generation.
func (c *checker) reacts(m *member, f fact) *violation {
	w := m.worker
	if !w.able() {
		return nil
	}
	late := func(since time.Duration) bool { return f.at > max(since, w.late, c.late)+c.notice(w.timing) }
	switch {
	case !m.holds.unset() && w.run.unset():
		if late(max(m.holds.at, w.ran.at)) {
			return broken(bounded, []fact{m.joined, m.holds, w.ran, w.lease, f}, "%s held generation %d for %s without running it or reporting a stop",
				m.id, m.holds.generation, f.at-max(m.holds.at, w.ran.at))
		}
	case m.freed.step > c.activated.step && c.pause.unset() && slices.Contains(c.layout, m.id):
		if late(m.freed.at) {
			return broken(bounded, []fact{m.joined, c.activated, m.freed, f}, "%s stopped generation %d, which gives it a partition, and did not rejoin for %s",
				m.id, c.activated.generation, f.at-m.freed.at)
		}
	case !w.run.unset() && !c.pause.unset() && w.run.generation < c.pause.generation:
		asked := w.drain.step > w.run.step || w.cancel.step > w.run.step
		since := max(c.pause.at, w.run.at)
		if own := w.presence.attached; !asked && !own.unset() && f.at > max(since, own.at, w.late, c.late)+c.setup.slow(looksAgain)+c.packets() {
			return broken(bounded, []fact{w.run, own, c.pause, f}, "%s still ran generation %d %s after generation %d was opened, although it had a session on which to see that",
				w.name, w.run.generation, f.at-c.pause.at, c.pause.generation)
		}
		if !asked && late(since) {
			return broken(bounded, []fact{w.run, c.pause, w.lease, f}, "%s still ran generation %d %s after generation %d was opened",
				w.name, w.run.generation, f.at-c.pause.at, c.pause.generation)
		}
	}
	return nil
}

// activatedInTime checks that a generation is active as soon as its last older holder has
// stopped or is removed; that a held generation is active once the holder had time to give
// up and its lease to end; and that a joiner gets a partition after the join window.
func (c *checker) activatedInTime(watching time.Duration, f fact) *violation {
	late, t := c.late, c.setup.timing
	for _, m := range c.members {
		if m.worker.able() {
			late = max(late, m.worker.late)
		}
	}
	if !c.pause.unset() {
		since, held := c.pause.at, false
		for _, m := range c.members {
			since = max(since, m.freed.at)
			held = held || !m.holds.unset()
		}
		if !held && f.at > max(since, late)+c.notice(t) {
			return broken(bounded, []fact{c.activated, c.pause, c.opened, f}, "generation %d waited for no worker, and was not active after %s", c.opened.generation, f.at-since)
		}
		if longest := c.setup.slow(t.Drain + t.Lease); f.at > max(c.pause.at, watching, late)+longest+2*c.notice(t) {
			return broken(bounded, []fact{c.activated, c.pause, c.opened, f}, "no generation was active for %s", f.at-c.pause.at)
		}
		return nil
	}
	for i, share := range c.shares() { // in the order in which they joined
		if m := c.members[i]; share > 0 && !slices.Contains(c.layout, m.id) {
			due := m.joined.at + c.window
			if c.stepped.step > m.joined.step { // stepped back: a lease that ends wakes another worker
				due = max(due, c.stepped.at+t.Lease)
			}
			if f.at > max(due, late)+c.notice(t) {
				return broken(bounded, []fact{m.joined, c.activated, f}, "%s joined and had no partition after %s", m.id, f.at-m.joined.at)
			}
			break
		}
	}
	return nil
}
