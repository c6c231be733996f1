package sim

import "time"

// recovered checks that every partition has an owner, and that every event that was visible
// when the faults stopped is handled (L1). It demands nothing where no worker is able.
func (c *checker) recovered(f fact) *violation {
	if !c.anyAble() {
		return nil
	}
	if v := c.owned(f); v != nil {
		return v
	}
	return c.handled(f, c.healed)
}

// paused checks that a generation becomes active in time although members may still join
// after the faults have stopped and each may open a generation.
func (c *checker) paused(f fact) *violation {
	from := max(c.pause.at, c.healed.at)
	if c.pause.unset() || c.healed.unset() || f.at-from <= c.setup.settle || !c.anyAble() {
		return nil
	}
	return broken(recovers, []fact{c.healed, c.pause, c.opened, f}, "no generation was active for %s while workers joined", f.at-from)
}

func (c *checker) anyAble() bool {
	for _, w := range c.all {
		if w.set == c.number && w.able() {
			return true
		}
	}
	return false
}

// owned checks that the newest generation is active and that an able worker runs each of
// its partitions.
func (c *checker) owned(f fact) *violation {
	g := c.opened.generation
	switch {
	case g == 0 && c.activated.generation == 0:
		return broken(recovers, []fact{c.healed, f}, "there was no generation %s after the faults stopped", c.sinceHeal(f))
	case g > c.activated.generation:
		return broken(recovers, []fact{c.activated, c.healed, c.opened, f}, "generation %d was opened and was not active %s after the faults stopped", g, c.sinceHeal(f))
	}
	g = c.activated.generation
	runs := make([]*checkedWorker, c.activated.total)
	for _, w := range c.all {
		if w.set == c.number && w.run.generation == g {
			for _, r := range w.runs {
				runs[r.partition] = w
			}
		}
	}
	for k, w := range runs {
		switch {
		case w == nil:
			return broken(recovers, []fact{c.activated, c.owners[ownerKey{g, k}], c.healed, f},
				"no worker ran partition %d/%d of generation %d %s after the faults stopped", k, len(runs), g, c.sinceHeal(f))
		case w.frozen():
			return broken(recovers, []fact{c.activated, w.run, w.lease, w.freezes[len(w.freezes)-1].from, c.healed, f},
				"partition %d/%d of generation %d still belonged to %s, which is frozen, %s after the faults stopped", k, len(runs), g, w.name, c.sinceHeal(f))
		case !w.cut.unset():
			return broken(recovers, []fact{c.activated, w.run, w.lease, w.cut, c.healed, f},
				"partition %d/%d of generation %d still belonged to %s, which is cut off, %s after the faults stopped", k, len(runs), g, w.name, c.sinceHeal(f))
		}
	}
	return nil
}

// handled checks that every event that was visible by a time is committed or parked in each
// projection that runs in the end. The checker has reported events that a checkpoint has
// passed before (S2), so here no lane has reached the event yet.
func (c *checker) handled(f, by fact) *violation {
	for _, name := range c.setup.final {
		if c.setup.sets[name] != c.number || c.isPaused(name) {
			continue
		}
		p := c.projection(name)
		to, bounded := c.owesTo(p)
		for _, e := range p.unhandled {
			if c.appends[e.append].step > by.step || c.standsBefore(p, e.event) || bounded && e.position > to {
				continue
			}
			var owner fact
			if n := c.activated.total; n > 0 {
				owner = c.owners[ownerKey{c.activated.generation, e.slot % n}]
			}
			return broken(recovers, []fact{c.appends[e.append], p.latest(e.slot, len(p.commits)), c.activated, owner, c.healed, f},
				"event %d of projection %s was not handled %s after the faults stopped: no commit holds it, and no checkpoint has passed it",
				e.position, name, c.sinceHeal(f))
		}
	}
	return nil
}

// standsBefore reports whether the projection waits at an event that no worker can ever
// read: this one, or an earlier one of its partition. A projection that parks such events
// has no reason to wait.
func (c *checker) standsBefore(p *checkedProjection, e event) bool {
	if c.setup.unreadable == nil || c.setup.parks[p.name] {
		return false
	}
	for _, f := range c.appends {
		for _, bad := range f.events {
			if bad.position <= e.position && p.scope.includes(bad) && c.setup.unreadable(bad) &&
				bad.slot%max(1, c.activated.total) == e.slot%max(1, c.activated.total) {
				return true
			}
		}
	}
	return false
}

// tooSlow is how long a worker takes at most to rejoin without a liveness connection.
const tooSlow = 30 * time.Second

// still checks that nothing opens a generation after everything has settled (L2). A network
// that is about as slow as a proof of liveness allows may be found too slow at any time;
// then the worker rejoins and relies on its lease.
func (c *checker) still(before, f fact) *violation {
	if c.settled.unset() || c.forgone.step > c.settled.step && f.at <= c.forgone.at+c.window+tooSlow {
		return nil
	}
	return broken(staysStill, []fact{before, c.activated, c.settled, f},
		"generation %d was opened after everything had settled and nothing had happened since", f.generation)
}

// finished checks that the events that were visible when everything had settled are handled
// by the end.
func (c *checker) finished(f fact) *violation {
	if c.settled.unset() || !c.anyAble() {
		return nil
	}
	for _, name := range c.setup.final {
		if c.setup.sets[name] != c.number {
			continue
		}
		if c.isPaused(name) {
			continue
		}
		if v := c.askedFor(c.projection(name), f); v != nil {
			return v
		}
	}
	return c.handled(f, c.settled)
}
