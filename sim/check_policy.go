package sim

import "time"

// This file judges how often handlers fail, and what follows from it.

// failures are the failures of a handler at one event in one lane.
type failures struct {
	n      int           // all of them
	own    int           // those that are certainly the handler's
	cut    int           // those in which its connection was lost
	final  int           // those that it has called permanent
	alone  int           // permanent ones, after everything before the event was committed
	waited int           // earlier failures, while there was no room to park the event
	since  time.Duration // the time of the first one
	latest fact
	// ignored counts failures long after an order to park the event.
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

// fails checks that an event at which a handler keeps failing alone is parked in the end,
// where the projection parks events. A failure of a batch does not show the event at fault,
// and a cancelled call is not known to have failed.
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
	case f.text == killed && f.at-call.begin.at < c.setup.timing.Lease/2: // otherwise the server may have ended its idle transaction
		n.cut++
	case f.text == forGood && !f.deaf:
		n.final++
		// While the event is parked an operator may ask for a retry, and a worker that was
		// frozen meanwhile does what it decided before.
		if again = ahead == 0 && !c.isParked(f.projection, events[0].position) && !call.worker.frozenSince(call.begin.at); again {
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
	if _, done := p.holds[position]; attempts == 0 || parked || done { // another worker has retried it while this one was frozen
		return nil
	}
	if again && n.alone > 1 {
		return broken(underPolicy, []fact{call.begin, f}, "%s called its handler %d times with event %d, although the failure was permanent", owner(f), n.alone, position)
	}
	// Some failures may have come before the event was tried alone.
	if n.own > 2*attempts+6 || n.n > 5*attempts+8 && f.at-n.since > 4*c.setup.timing.Lease {
		return broken(underPolicy, []fact{call.begin, f}, "%s failed %d times at event %d, which must be parked after %d failures",
			owner(f), n.n, position, attempts)
	}
	return nil
}

// isParked reports whether an event is parked.
func (c *checker) isParked(projection string, position int64) bool {
	_, parked := c.projection(projection).parkedSet.rows[position]
	return parked
}

// failsAt counts a failure at these events and returns the failures at the last one.
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

// parksInTime checks that an event is parked only after as many failures of the handler as
// the policy demands.
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
	if n.n+n.waited-n.cut < attempts && f.at-n.since < c.setup.timing.Lease/4 { // a worker's own lease may be that short
		return broken(underPolicy, []fact{n.latest, f}, "%s parked event %d after %d failures instead of %d: the other %d times the handler's connection was lost, which does not count so soon",
			owner(f), first.position, n.n+n.waited-n.cut, attempts, n.cut)
	}
	return nil
}

// noRoom takes in that there is no room to park an event. The handler is called again until
// there is room, however often it fails.
func (c *checker) noRoom(f fact) {
	k := failureKey{laneOf(f), f.from}
	n := c.failures[k]
	c.failures[k] = failures{waited: n.n + n.waited, latest: n.latest}
}
