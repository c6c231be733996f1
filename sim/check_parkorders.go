package sim

import (
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// This file judges orders to park an event.

// ignoredMax is how often a handler may fail at an event alone, in one lane, long after an
// order to park it. The lane checks for orders before an attempt that comes after a pause.
const ignoredMax = 5

func (c *checker) parkOrdered(f fact) {
	parkedSet := c.projection(f.projection).parkedSet
	if _, waits := parkedSet.ordered[f.from]; !waits {
		parkedSet.ordered[f.from] = f
	}
}

// parksByRight checks that an event is parked because of its projection's policy, behind
// another event, or because an order names it.
func (c *checker) parksByRight(f fact) *violation {
	parkedSet := c.projection(f.projection).parkedSet
	for _, e := range f.events {
		_, ordered := parkedSet.ordered[e.position]
		delete(parkedSet.ordered, e.position)
		switch {
		case f.text == parkedByOrder && !ordered:
			return broken(underPolicy, []fact{f}, "%s parked event %d by order, although no order names it", owner(f), e.position)
		case f.text == "" && c.setup.attempts[f.projection] == 0:
			return broken(underPolicy, []fact{f}, "%s parked event %d, although neither the projection's policy nor an order allows it", owner(f), e.position)
		}
	}
	return nil
}

// orderLapsed checks that a lane does not drop an order for the event at which it stands.
func (c *checker) orderLapsed(f fact) *violation {
	p := c.projection(f.projection)
	order, waits := p.parkedSet.ordered[f.from]
	if !waits {
		return nil
	}
	delete(p.parkedSet.ordered, f.from)
	first := slices.IndexFunc(p.unhandled, func(v visible) bool { return v.slot%f.total == f.partition })
	i, unhandled := p.find(f.from)
	switch {
	case unhandled && f.text == protocol.Past:
		return broken(obeys, []fact{order, c.activated, f}, "%s dropped the order to park event %d as past, although the event was not handled", owner(f), f.from)
	case unhandled && i == first:
		return broken(obeys, []fact{order, c.activated, f}, "%s dropped the order to park event %d, at which it stood", owner(f), f.from)
	}
	return nil
}

// ordersLeft checks that no order for a handled event is open at the end.
func (c *checker) ordersLeft(f fact) *violation {
	if !slices.Contains(c.setup.final, f.projection) || c.setup.unreadable != nil && c.standsSomewhere(f.projection) {
		return nil
	}
	if k := c.family; k != nil && f.projection != k.live && slices.Contains(k.members, f.projection) {
		return nil // it goes no further than the live version, which may stand anywhere
	}
	return broken(recovers, []fact{c.settled, f}, "%d orders to park events of projection %s were still open after all events were handled", f.from, f.projection)
}

// standsSomewhere reports whether a projection waits at an event that no worker can ever
// read.
func (c *checker) standsSomewhere(projection string) bool {
	p := c.projection(projection)
	return slices.ContainsFunc(p.unhandled, func(v visible) bool { return c.standsBefore(p, v.event) })
}
