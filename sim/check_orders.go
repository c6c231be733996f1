package sim

import (
	"maps"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// orders are what operators have ordered of one replica set.
type orders struct {
	pausedNow []string           // protocol.All: every projection
	holds     map[string]fact    // the latest hold of each projection that is held
	pauses    map[int64][]string // the paused projections of each generation
	rewinds   map[string]int64   // due with the next activation
	drained   map[string]bool    // workers whose latest incarnation was drained
	last      fact
	owedTo    bool // an order demands the generation that is owed
}

// isOrdered takes in an order. An order that changes something must be followed by a
// generation at once.
func (c *checker) isOrdered(f fact) {
	o, changes := f.order, false
	c.last = f
	_, held := c.holds[o.Projection]
	switch o.Kind {
	case protocol.OrderHold:
		if changes = !held; changes {
			c.pausedNow = append(slices.Clone(c.pausedNow), o.Projection)
		}
		c.holds[o.Projection] = f
	case protocol.OrderRelease:
		if changes = held; changes {
			c.pausedNow = slices.DeleteFunc(slices.Clone(c.pausedNow), func(name string) bool { return name == o.Projection })
			delete(c.holds, o.Projection)
		}
	case protocol.OrderPause:
		delete(c.holds, o.Projection)
		if changes = !slices.Contains(c.pausedNow, o.Projection); changes {
			c.pausedNow = append(slices.Clone(c.pausedNow), o.Projection)
		}
	case protocol.OrderResume:
		before := len(c.pausedNow)
		c.pausedNow = slices.DeleteFunc(slices.Clone(c.pausedNow), func(name string) bool { return name == o.Projection || o.Projection == protocol.All })
		changes = len(c.pausedNow) < before
		if delete(c.holds, o.Projection); o.Projection == protocol.All {
			clear(c.holds)
		}
	case protocol.OrderRewind:
		c.rewinds[o.Projection], changes = o.Position, true
		if p := c.projection(o.Projection); p.started.unset() {
			p.started = f
		}
	case protocol.OrderDrain, protocol.OrderUndrain:
		if m := c.find(string(o.Worker)); m != nil && m.drained != (o.Kind == protocol.OrderDrain) {
			m.drained, changes = !m.drained, true
		}
	}
	if changes && c.staffed() {
		c.owed, c.owedTo = f, true
	}
}

// staffed reports whether a member can have partitions.
func (m *membership) staffed() bool {
	return slices.ContainsFunc(m.members, func(o *member) bool { return !o.drained })
}

// ordersOpen records which projections a generation does not run.
func (c *checker) ordersOpen(f fact) { c.pauses[f.generation] = c.pausedNow }

func (c *checker) isPaused(projection string) bool {
	return slices.Contains(c.pausedNow, protocol.All) || slices.Contains(c.pausedNow, projection)
}

// obeyed checks that no handler of a projection begins under a generation that was opened
// while the projection was paused.
func (c *checker) obeyed(f fact) *violation {
	paused := c.pauses[f.generation]
	if !slices.Contains(paused, protocol.All) && !slices.Contains(paused, f.projection) {
		return nil
	}
	return broken(obeys, []fact{c.last, c.activations[f.generation], f}, "%s handled events of projection %s, which is paused in generation %d",
		f.worker, f.projection, f.generation)
}

// rewind carries out the rewinds that are due with an activation. Events up to the position
// count as handled; events above it must be handled again.
func (c *checker) rewind(f fact) {
	for name, position := range c.rewinds {
		p := c.projection(name)
		p.above = min(p.above, position)
		c.moved(p, position, func() { c.setTo(p, position) })
	}
	clear(c.rewinds)
}

// setTo sets a projection to a position.
func (c *checker) setTo(p *checkedProjection, position int64) {
	p.skipped = position
	p.passed = passed{slots: slices.Repeat([]int64{position}, protocol.Slots)}
	p.highest = map[string]int64{}
	for at, n := range p.holds {
		if at > position {
			delete(p.holds, at)
			continue
		}
		for _, e := range p.commits[n].events {
			if e.position == at {
				p.highest[e.aggregate] = max(p.highest[e.aggregate], at)
			}
		}
	}
	p.parkedSet.dropAbove(position)
	clear(p.parkedSet.ordered) // they named events at its former position
	p.unhandled = nil
	for i, a := range c.appends {
		for _, e := range a.events {
			p.sees(visible{event: e, append: i})
		}
	}
}

// dropAbove forgets the events that are parked above a position: they come again.
func (l *checkedParked) dropAbove(position int64) {
	for at := range l.rows {
		if at > position {
			l.remove(at)
		}
	}
	above := func(at int64, _ fact) bool { return at > position }
	maps.DeleteFunc(l.ever, above)
	maps.DeleteFunc(l.discarded, above)
}
