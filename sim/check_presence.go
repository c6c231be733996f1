package sim

import "time"

// What a proof is good for, how long a crash may go unnoticed, and how long the
// session of one who notices it must have been there: see protocol.Presence.
const (
	proofBegins = 450 * time.Millisecond
	proofEnds   = 650 * time.Millisecond
	noticedIn   = 2 * time.Second
	mustSettle  = 5 * time.Second
	looksAgain  = 1750 * time.Millisecond
	// A worker that was alone looks less often until it has seen that another one has
	// joined.
	newcomer = 750 * time.Millisecond
)

// A checkedPresence is what the facts say of the session that a worker has of its
// own.
type checkedPresence struct {
	attached  fact // the sessionAttached of the one that it has; unset: none
	latestOwn fact // and of the latest that it had
	ended     fact // the latest sessionEnded
	published fact // the latest of this incarnation
	latest    fact // the proof that was sent last
	known     fact // and that of a session whose number is published
	// missing is the removal of this incarnation for the lack of its presence, and
	// proof the known one by then.
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
	case sessionForgone: // it may be there for as long as the network keeps it
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

// good returns until when the latest proof of a worker that has published its
// presence is good for something that a clock has measured as d.
func (c *crew) good(p *checkedPresence, d time.Duration) time.Duration {
	if p.known.unset() {
		return p.published.at
	}
	return p.known.sent + slow(d, c.drift)
}

// missing reports whether a call may coincide with one at other, since its worker
// was removed for the lack of its presence by then: it was frozen from the end of
// its last proof to the removal, or the handler had been suspended or cancelled,
// and ignores that.
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

// onProof: no handler begins without a proof that its worker is there, once others
// may look for it (S1). The excuse is that of onLease.
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

// suspended: a handler that listens does not go on without one.
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

// evicted: a worker that has given up, and whose handlers go on, is removed when its
// lease is over, and not for the lack of a session that it has ended itself (S1).
func (c *checker) evicted(f fact) *violation {
	w := c.worker(f.worker)
	p := &w.presence
	if f.kind != workerExpired || f.from == 0 || !w.returned || w.gone || c.overBy(w, f.at) ||
		p.ended.from != f.from || p.ended.step < w.gaveUp.step || p.ended.text != "" {
		return nil
	}
	return broken(oneOwner, []fact{w.run, w.cancel, w.lease, p.published, w.gaveUp, p.ended, f}, "%s gave up while its handlers went on, and was removed before its lease was over because it had ended its own session", w.name)
}

// packets is for what a change takes beside waiting.
func (c *checker) packets() time.Duration {
	return time.Duration(20+len(c.members))*3*c.setup.latency + 50*time.Millisecond
}

// missed: a worker whose own session has ended with its process is removed by those
// whose sessions have been there for long enough (L3). Where somebody else has taken its
// lock as well, its lease decides.
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
