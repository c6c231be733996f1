package sim

import (
	"maps"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A family is a live projection with its rebuilds and the versions that were replaced.
type family struct {
	live    string
	members []string
	// reached is how far former live versions came on each slot. The current live version
	// counts from its own checkpoints.
	reached []int64
	// news are the events that were handled as new, with their commits. Up to excused, an
	// operator has moved a checkpoint. spared are events that a replaced version had parked
	// or discarded.
	news    map[int64]fact
	excused int64
	spared  map[int64]bool

	replaced map[string]fact // the latest time at which each version was replaced
	asked    fact            // the promotion that has not ended
	over     fact            // the latest promotion that has ended
}

func (c *checker) newFamily() {
	for next, live := range c.setup.rebuilds {
		c.family = &family{
			live: live, members: []string{live, next}, reached: make([]int64, protocol.Slots),
			news: map[int64]fact{}, spared: map[int64]bool{}, replaced: map[string]fact{},
		}
	}
}

// unborn reports whether there is a rebuild of a projection that never ran. Workers with
// both versions are then refused until another worker has run the first one.
func (c *checker) unborn() bool {
	return c.family != nil && len(c.projection(c.family.live).commits) == 0
}

// kin returns the family of a projection, or nil.
func (c *checker) kin(projection string) *family {
	if c.family == nil || !slices.Contains(c.family.members, projection) {
		return nil
	}
	return c.family
}

// keep carries over how far the live version has come.
func (k *family) keep(p *checkedProjection) {
	for s := range k.reached {
		k.reached[s] = max(k.reached[s], p.passed.slot(s))
	}
}

// moved applies set, by which an operator, or a start, sets a projection to a position.
func (c *checker) moved(p *checkedProjection, position int64, set func()) {
	k := c.kin(p.name)
	if k != nil && p.name == k.live {
		k.keep(p)
	}
	set()
	if k == nil {
		return
	}
	if p.name == k.live {
		k.keep(p)
	}
	if k.excused = max(k.excused, position); p.started.kind != projectionStarts || len(p.commits) > 0 {
		for _, f := range c.appends {
			for _, e := range f.events {
				k.excused = max(k.excused, e.position)
			}
		}
	}
	if p.name == k.live {
		maps.DeleteFunc(k.news, func(at int64, _ fact) bool { return at > position })
	}
}

// asReplay checks that a rebuild handles only what the live version has passed on that
// slot, as a replay; and that the live version handles events as new, except for those that
// a former live version has passed.
func (c *checker) asReplay(p *checkedProjection, f fact) *violation {
	k := c.kin(p.name)
	if k == nil {
		return nil
	}
	if since := k.replaced[p.name]; !f.replay && p.name != k.live && !(!since.unset() && c.excused(c.worker(f.worker), f, since.at)) {
		return broken(follows, []fact{since, c.activated, f}, "%s handled events of projection %s as new while %s was live", owner(f), p.name, k.live)
	}
	if !f.replay {
		return nil
	}
	for _, e := range f.events {
		if v := c.within(p, f, e); v != nil {
			return v
		}
	}
	return nil
}

// within checks that the live version has passed an event on its slot.
func (c *checker) within(p *checkedProjection, f fact, e event) *violation {
	k := c.kin(p.name)
	reached := k.reached[e.slot]
	if live := c.projection(k.live); live != p {
		reached = max(reached, live.passed.slot(e.slot))
	}
	if e.position <= reached {
		return nil
	}
	return broken(follows, []fact{k.replaced[k.live], c.activated, f}, "%[1]s handled event %[2]d of projection %[3]s as a replay while the live projection was at %[5]d on slot %[4]d",
		owner(f), e.position, p.name, e.slot, reached)
}

// handledBy checks that a version that is not live commits only replays, behind the live
// one, and that only one version commits an event as new.
func (c *checker) handledBy(p *checkedProjection, f fact, events []event) *violation {
	k := c.kin(p.name)
	if k == nil {
		return nil
	}
	if v := c.replacedBefore(p, f); v != nil {
		return v
	}
	for _, e := range events {
		if f.replay || f.kind == eventsParked && p.name != k.live {
			if v := c.within(p, f, e); v != nil {
				return v
			}
			continue
		}
		if f.kind == eventsParked {
			continue
		}
		if before, again := k.news[e.position]; again {
			return broken(nothingTwice, []fact{before, k.replaced[before.projection], c.activated, f}, "event %d was handled as new by projection %s and by projection %s",
				e.position, before.projection, p.name)
		}
		k.news[e.position] = f
	}
	return nil
}

// replacedBefore checks that a replaced version commits nothing until it runs again.
func (c *checker) replacedBefore(p *checkedProjection, f fact) *violation {
	since := c.kin(p.name).replaced[p.name]
	if since.unset() || p.name == c.family.live || c.activated.step > since.step {
		return nil
	}
	return broken(onlyGrow, []fact{c.activated, since, f}, "%s committed for projection %s after another one had taken its place", owner(f), p.name)
}

// promoted checks that the new live version has handled at least what the old one has, on
// each slot; that no handler of the old one runs; and that each event was new to one of the
// two.
func (c *checker) promoted(f fact) *violation {
	k, next, old := c.kin(f.projection), c.projection(f.projection), c.projection(f.text)
	for slot := range k.reached {
		if was, is := old.passed.slot(slot), next.passed.slot(slot); is < was {
			return broken(follows, []fact{old.latest(slot, len(old.commits)), next.latest(slot, len(next.commits)), f},
				"%s took the place of %s at position %d on slot %d, where the latter was at %d", next.name, old.name, is, slot, was)
		}
	}
	for _, calls := range old.open {
		for _, call := range calls {
			if !c.excused(call.worker, call.begin, f.at) {
				return broken(oneOwner, []fact{call.begin, c.activated, f}, "%s took the place of %s while a handler of the latter still ran: %s", next.name, old.name, owner(call.begin))
			}
		}
	}
	for _, p := range []*checkedProjection{old, next} {
		for position := range p.parkedSet.rows {
			k.spared[position] = true
		}
		for position := range p.parkedSet.discarded {
			k.spared[position] = true
		}
	}
	for _, a := range c.appends {
		for _, e := range a.events {
			_, is := k.news[e.position]
			if is || k.spared[e.position] || e.position <= k.excused || e.position > next.passed.slot(e.slot) || !old.scope.includes(e) || !next.scope.includes(e) {
				continue
			}
			return broken(nothingLost, []fact{a, next.latest(e.slot, len(next.commits)), f}, "event %d was new neither to %s, which handled it, nor to %s, whose place it took", e.position, next.name, old.name)
		}
	}
	k.keep(old)
	k.live, k.replaced[old.name] = next.name, f
	if !slices.Contains(c.pausedNow, old.name) {
		c.pausedNow = append(slices.Clone(c.pausedNow), old.name)
	}
	delete(c.holds, old.name)
	delete(c.rewinds, old.name)
	return nil
}

// retired forgets a projection.
func (c *checker) retired(f fact) {
	p := c.projection(f.projection)
	for position := range p.parkedSet.rows {
		c.family.spared[position] = true
	}
	p.parkedSet, p.unhandled = newCheckedParked(), nil
	for _, s := range c.sets {
		s.pausedNow = slices.DeleteFunc(slices.Clone(s.pausedNow), func(name string) bool { return name == p.name })
		delete(s.rewinds, p.name)
	}
}

// holdEnds checks that a hold lasts for its time.
func (c *checker) holdEnds(f fact) *violation {
	h := c.holds[f.projection]
	delete(c.holds, f.projection)
	c.pausedNow = slices.DeleteFunc(slices.Clone(c.pausedNow), func(name string) bool { return name == f.projection })
	if c.last = f; c.staffed() {
		c.owed, c.owedTo = f, true
	}
	if c.stepped.step < h.step && f.at < h.at+protocol.HoldFor-c.setup.bounds.Idle-c.setup.bounds.Lock {
		return broken(obeys, []fact{h, f}, "the hold of projection %s ended after only %s", f.projection, f.at-h.at)
	}
	return nil
}

// heldForLong checks that a hold that is not renewed ends (L1).
func (c *checker) heldForLong(f fact) *violation {
	for _, name := range slices.Sorted(maps.Keys(c.holds)) {
		h, late := c.holds[name], c.late
		since := h.at
		if c.stepped.step > h.step {
			since = max(since, c.stepped.at)
		}
		for _, m := range c.members {
			if m.worker.able() {
				late = max(late, m.worker.late, m.joined.at)
			}
		}
		if f.at > max(since+protocol.HoldFor, late)+2*c.notice(c.setup.timing) {
			return broken(recovers, []fact{h, c.activated, f}, "projection %s was still held %s after the order", name, f.at-h.at)
		}
	}
	return nil
}

// promotionOver checks that a promotion that begins after the faults ends, unless an
// operator has set one of the two versions to a position that the other does not reach.
func (c *checker) promotionOver(f fact) *violation {
	k := c.family
	if k == nil || k.asked.unset() || k.asked.step < c.healed.step {
		return nil
	}
	for _, a := range c.appends {
		if c.setup.unreadable != nil && slices.ContainsFunc(a.events, c.setup.unreadable) { // a follower may wait at it without end
			return nil
		}
	}
	if k.excused > 0 { // a version was rewound to where the other may never come
		return nil
	}
	return broken(recovers, []fact{c.healed, k.asked, f}, "the promotion of projection %s had not ended after %s", k.asked.projection, f.at-k.asked.at)
}

// owesTo returns the position up to which a projection must handle events. A follower owes
// no more than the lowest position of the live version.
func (c *checker) owesTo(p *checkedProjection) (position int64, bounded bool) {
	k := c.kin(p.name)
	if k == nil || p.name == k.live {
		return 0, false
	}
	live := c.projection(k.live)
	position = live.passed.slot(0)
	for s := range protocol.Slots {
		position = min(position, live.passed.slot(s))
	}
	return position, true
}
