package sim

import "time"

// These are the validity of a proof of liveness, the longest time in which a crash may go
// unnoticed, and the age that the connection of a worker must have to notice it: see
// protocol.Presence.
const (
	proofBegins = 450 * time.Millisecond
	proofEnds   = 650 * time.Millisecond
	noticedIn   = 2 * time.Second
	mustSettle  = 5 * time.Second
	looksAgain  = 1750 * time.Millisecond
	// newcomer is how much later a worker that was alone notices that another one has
	// joined.
	newcomer = 750 * time.Millisecond
)

// A checkedPresence is the state of a worker's liveness connection, according to the facts.
type checkedPresence struct {
	attached  fact // the sessionAttached of the current connection; unset: none
	latestOwn fact // the latest sessionAttached
	ended     fact // the latest sessionEnded
	published fact // the latest one of this incarnation
	latest    fact // the proof that was sent last
	known     fact // the latest proof of a connection whose number is published
	// missing is the removal of this incarnation because its lock was missing. proof is the
	// value of known at that time.
	joined, missing, proof fact
}

func (p *checkedPresence) observe(f fact) {
	switch f.kind {
	case sessionAttached:
		p.attached, p.latestOwn = f, f
		p.proven(f)
	case sessionProven:
		p.proven(f)
	case sessionEnded:
		p.ended = f
		if p.attached.from == f.from {
			p.attached = fact{}
		}
	case sessionForgone: // the connection may last as long as the network keeps it
		p.attached = fact{}
	case presencePublished:
		p.published = f
		p.proven(p.latest)
	case memberJoins:
		p.joined, p.published, p.known, p.missing = f, fact{}, fact{}, fact{}
	case workerExpired:
		if f.from > 0 {
			p.missing, p.proof = f, p.known
		}
	}
}

func (p *checkedPresence) proven(f fact) {
	if f.unset() {
		return
	}
	if f.sent >= p.latest.sent {
		p.latest = f
	}
	if f.from <= p.published.from && f.sent >= p.known.sent {
		p.known = f
	}
}

// good returns the time until which the latest proof of a worker with a published
// connection is valid, where validity is d by the worker's clock.
func (c *crew) good(p *checkedPresence, d time.Duration) time.Duration {
	if p.known.unset() {
		return p.published.at
	}
	return p.known.sent + slow(d, c.drift)
}

// missing reports whether a call may coincide with one at other because its worker had been
// removed for a missing lock by then: either the worker was frozen from the end of its last
// proof to the removal, or the handler was suspended or cancelled and ignores that.
func (c *crew) missing(w *checkedWorker, begin fact, other time.Duration) bool {
	p := &w.presence
	if p.missing.unset() || p.missing.at > other {
		return false
	}
	const slack = 10 * time.Millisecond
	end, over := p.missing.at, p.published.at
	if !p.proof.unset() {
		over = p.proof.sent + slow(proofEnds, c.drift)
	}
	if w.frozenFrom(min(over+slack, end), end, begin) {
		return true
	}
	stopped := func(f fact) bool {
		return !f.unset() && f.generation == begin.generation && f.at >= begin.at-deciding && f.at <= end
	}
	return stopped(w.suspend) || stopped(w.cancel)
}

// onProof checks that no handler begins without a valid proof of liveness once other
// workers may check for the lock (S1). The excuse is that of onLease.
func (c *checker) onProof(w *checkedWorker, f fact) *violation {
	p := &w.presence
	if p.published.unset() {
		return nil
	}
	over := c.good(p, proofBegins)
	if f.at <= over+deciding || w.frozenFrom(over+deciding, f.at-waking, f) {
		return nil
	}
	return broken(onLease, append(c.circumstances(w, f), p.published, p.known, p.ended, f),
		"%s began to handle %s, although its latest proof of liveness had run out %s before",
		owner(f), positions(f.events), f.at-over)
}

// suspended checks that a handler that obeys its context does not go on without a valid
// proof.
func (c *checker) suspended(call *openCall, f fact) *violation {
	w, p := call.worker, &call.worker.presence
	if p.published.unset() || call.begin.deaf || w.frozen() {
		return nil
	}
	over := max(c.good(p, proofEnds), call.begin.at)
	if n := len(w.freezes); n > 0 {
		over = max(over, w.freezes[n-1].to.at+wakeMax)
	}
	if f.at <= over+10*time.Millisecond {
		return nil
	}
	return broken(onLease, []fact{w.run, call.begin, p.published, p.known, w.suspend, f},
		"a handler of %s that obeys cancellation still ran %s after the proof of liveness had run out", owner(call.begin), f.at-over)
}

// evicted checks that a worker that has given up while its handlers go on is removed when
// its lease is over, not because it has ended its own connection (S1).
func (c *checker) evicted(f fact) *violation {
	w := c.worker(f.worker)
	p := &w.presence
	if f.kind != workerExpired || f.from == 0 || !w.returned || w.gone || c.overBy(w, f.at) ||
		p.ended.from != f.from || p.ended.step < w.gaveUp.step || p.ended.text != "" {
		return nil
	}
	return broken(oneOwner, []fact{w.run, w.cancel, w.lease, p.published, w.gaveUp, p.ended, f}, "%s gave up while its handlers went on, and was removed before its lease was over because it had ended its own session", w.name)
}

// packets is the time that a change takes beside waiting.
func (c *checker) packets() time.Duration {
	return time.Duration(20+len(c.members))*3*c.setup.latency + 50*time.Millisecond
}

// missed checks that a worker whose liveness connection has ended with its process is
// removed by workers whose connections are old enough (L3). If another program holds its
// lock too, its lease decides.
func (c *checker) missed(m *member, f fact) *violation {
	w := m.worker
	p := &w.presence
	if !w.gone || p.published.text != m.id || p.ended.from != p.published.from || p.ended.at < m.joined.at || !c.faked.unset() && min(p.published.at, p.latestOwn.sent) <= c.faked.at {
		return nil
	}
	var since time.Duration
	able := false
	for _, o := range c.members {
		a := o.worker.presence.attached
		if a.unset() || !o.worker.able() || o.worker.leaving || c.overBy(o.worker, f.at) {
			continue
		}
		settled := max(a.at+c.setup.slow(mustSettle), o.joined.at, o.worker.late)
		if !able || settled < since {
			since, able = settled, true
		}
	}
	if !able {
		return nil
	}
	due := max(p.ended.at, m.joined.at+newcomer, since, c.late) + c.setup.slow(noticedIn) + c.packets()
	if f.at <= due {
		return nil
	}
	return broken(bounded, []fact{m.joined, p.published, p.ended, f}, "%s was still a member %s after its session had ended with its process", m.id, f.at-p.ended.at)
}
