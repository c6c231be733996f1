package sim

import "time"

// What the facts say of how often handlers have failed, and of what came of it.

// failures are those of a handler at one event, in one lane.
type failures struct {
	n      int           // all
	own    int           // those that are the handler's for certain
	cut    int           // those for which its connection was lost
	final  int           // those that it has called permanent
	alone  int           // of these, with all that precedes the event committed
	waited int           // more, until there was no room to park the event
	since  time.Duration // the first
	latest fact
	// after an order to park the event had waited for long
	ignored int
}

type laneName struct {
	worker, projection string
	generation         int64
	partition          int
}

type failureKey struct {
	lane     laneName
	position int64
}

func laneOf(f fact) laneName { return laneName{f.worker, f.projection, f.generation, f.partition} }

// fails: a handler that fails at an event again and again, alone, has it parked in the
// end, where the projection parks events. When a batch fails nobody knows at which
// event, and of one that was cancelled nobody knows whether it has failed.
func (c *checker) fails(call *openCall, f fact) *violation {
	events := call.begin.events
	f.projection, f.generation, f.partition = call.begin.projection, call.begin.generation, call.begin.partition
	ahead := c.ahead[laneOf(f)]
	if c.ahead[laneOf(f)] = 0; f.text == "" {
		c.ahead[laneOf(f)] = ahead + len(events)
	}
	if len(events) != 1 || f.text == "" || f.text == "canceled" {
		return nil
	}
	n, again := c.failsAt(f, events), false
	switch {
	case f.text == killed && f.at-call.begin.at < c.setup.timing.Lease/2: // else it may have left its transaction idle
		n.cut++
	case f.text == forGood && !f.deaf:
		n.final++
		// While it is parked somebody asks for another call, and what a worker does that was
		// frozen meanwhile is of before.
		if again = ahead == 0 && !c.lies(f.projection, events[0].position) && !call.worker.frozenSince(call.begin.at); again {
			n.alone++
		}
	}
	order, ordered := c.projection(f.projection).parkedSet.ordered[events[0].position]
	if ordered && f.at-order.at > 2*c.setup.timing.Lease {
		n.ignored++
	}
	c.failures[failureKey{laneOf(f), events[0].position}] = n
	if n.ignored > ignoredMax {
		return broken(obeys, []fact{order, call.begin, f}, "%s kept failing at event %d, which it had been ordered to park", owner(f), events[0].position)
	}
	attempts := c.setup.attempts[f.projection]
	p, position := c.projection(f.projection), events[0].position
	_, parked := p.parkedSet.rows[position]
	if _, done := p.holds[position]; attempts == 0 || parked || done { // a worker was frozen while another one has retried it
		return nil
	}
	if again && n.alone > 1 {
		return broken(underPolicy, []fact{call.begin, f}, "%s called its handler %d times with event %d, although the failure was permanent", owner(f), n.alone, position)
	}
	// Some may have come before the event was alone.
	if n.own > 2*attempts+6 || n.n > 5*attempts+8 && f.at-n.since > 4*c.setup.timing.Lease {
		return broken(underPolicy, []fact{call.begin, f}, "%s failed %d times at event %d, which must be parked after %d failures",
			owner(f), n.n, position, attempts)
	}
	return nil
}

// lies reports whether an event is parked.
func (c *checker) lies(projection string, position int64) bool {
	_, parked := c.projection(projection).parkedSet.rows[position]
	return parked
}

// failsAt counts a failure at the last of some events: those before it are done.
func (c *checker) failsAt(f fact, events []event) failures {
	if len(events) == 0 {
		return failures{}
	}
	var n failures
	for _, e := range events {
		k := failureKey{laneOf(f), e.position}
		n = c.failures[k]
		if n.n == 0 {
			n.since = f.at
		}
		n.n, n.latest = n.n+1, f
		if f.text != killed && f.text != disconnected && !f.deaf && f.kind == handlerEnds {
			n.own++
		}
		c.failures[k] = n
	}
	return n
}

// parksInTime: no event is parked for less than what the policy says. What was not the
// handler's failure is none.
func (c *checker) parksInTime(f fact) *violation {
	attempts := c.setup.attempts[f.projection]
	if f.text != "" || attempts == 0 || len(f.events) == 0 {
		return nil
	}
	first := f.events[0]
	n := c.failures[failureKey{laneOf(f), first.position}]
	if n.final > 0 {
		return nil
	}
	if n.n+n.waited < attempts {
		return broken(underPolicy, []fact{n.latest, f}, "%s parked event %d after %d failures instead of %d",
			owner(f), first.position, n.n+n.waited, attempts)
	}
	if n.n+n.waited-n.cut < attempts && f.at-n.since < c.setup.timing.Lease/4 { // a worker's own lease may be as short
		return broken(underPolicy, []fact{n.latest, f}, "%s parked event %d after %d failures instead of %d: the other %d times the handler's connection was lost, which does not count so soon",
			owner(f), first.position, n.n+n.waited-n.cut, attempts, n.cut)
	}
	return nil
}

// noRoom: an event is handled again for as long as there is no room to park it, however
// often it fails.
func (c *checker) noRoom(f fact) {
	k := failureKey{laneOf(f), f.from}
	n := c.failures[k]
	c.failures[k] = failures{waited: n.n + n.waited, latest: n.latest}
}
