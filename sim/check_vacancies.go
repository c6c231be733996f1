package sim

import (
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A vacant place (ReplacementWindow) is a member whose worker has left. No worker runs it,
// and nothing that the leaver has sent takes effect any more. It is kept for its window,
// and is taken once, as a whole, within its generation.

// placeVacated checks that the worker runs nothing any more and that its handlers have
// returned (S1).
func (c *checker) placeVacated(f fact) *violation {
	w := c.worker(f.worker)
	switch {
	case !w.run.unset():
		return broken(oneOwner, []fact{c.activated, w.run, f}, "%s left its place vacant while it ran partition %d/%d of generation %d", f.text, w.run.partition, w.run.total, w.run.generation)
	case len(w.calls) > 0:
		return broken(oneOwner, []fact{c.activated, w.calls[0].begin, f}, "%s left its place vacant before all of its handlers had returned", f.text)
	}
	m := c.find(f.text)
	if m == nil || !m.vacated.unset() {
		return broken(agreement, []fact{c.opened, f}, "%s left a place vacant that it did not have", f.text)
	}
	m.vacated, m.holds = f, fact{}
	for _, k := range c.placeOf(f.text) {
		if c.left == nil {
			c.left = map[ownerKey]fact{}
		}
		c.left[ownerKey{c.opened.generation, k}] = f
	}
	return nil
}

// placeOf returns the partitions of an incarnation in the newest generation.
func (c *checker) placeOf(id string) (partitions []int) {
	for k, owner := range c.layout {
		if owner == id {
			partitions = append(partitions, k)
		}
	}
	return partitions
}

// placeTaken checks that the place was vacant and within its window, and that the taker has
// no partitions.
func (c *checker) placeTaken(f fact) *violation {
	from, by := f.layout[0], f.layout[1]
	m, n, place := c.find(from), c.find(by), c.placeOf(from)
	switch {
	case m == nil || m.vacated.unset():
		return broken(agreement, []fact{c.opened, f}, "%s took the place of %s, which is not vacant", by, from)
	case n == nil || n.drained || !n.vacated.unset():
		return broken(agreement, []fact{c.opened, m.vacated, f}, "%s took the place of %s, although it may not have partitions", by, from)
	case len(c.placeOf(by)) > 0 || len(place) == 0:
		return broken(agreement, []fact{c.opened, m.vacated, f}, "%s took the place of %s with partitions %s, although it had partitions %s",
			by, from, protocol.FormatPartitions(place), protocol.FormatPartitions(c.placeOf(by)))
	case f.read >= m.vacated.read+m.vacated.length && c.stepped.step < m.vacated.step:
		return broken(agreement, []fact{m.vacated, f}, "%s took the place of %s, whose window had ended %s before", by, from, f.read-m.vacated.read-m.vacated.length)
	}
	c.layout = slices.Clone(c.layout)
	for _, k := range place {
		c.layout[k] = by
		delete(c.owners, ownerKey{c.opened.generation, k})
	}
	if active := c.activations[c.opened.generation]; active.layout != nil {
		active.layout = c.layout
		c.activations[c.opened.generation] = active
		if f.generation == c.activated.generation {
			n.holds = active
			n.holds.at, n.holds.step = f.at, f.step
		}
	}
	c.taken = f
	c.members = slices.DeleteFunc(c.members, func(o *member) bool { return o == m })
	return nil
}

// placeLapsed checks that a place lapses after its window, or earlier by order, or if
// workers would otherwise have no partition.
func (c *checker) placeLapsed(f fact) *violation {
	m := c.find(f.text)
	if m == nil || m.vacated.unset() {
		return broken(agreement, []fact{c.opened, f}, "the place of %s lapsed, although it was not vacant", f.text)
	}
	if kept := f.read - m.vacated.read; kept < m.vacated.length && !m.drained && c.limit == 0 && c.stepped.step < m.vacated.step {
		return broken(agreement, []fact{m.vacated, f}, "the place of %s lapsed after %s instead of %s", f.text, kept, m.vacated.length)
	}
	return nil
}

// lapses checks that a vacant place lapses in time, if a member is able.
func (c *checker) lapses(m *member, f fact) *violation {
	due := m.vacated.at + m.vacated.length
	if c.stepped.step > m.vacated.step { // stepped back: the window counts from the step
		due = max(due, c.stepped.at+m.vacated.length+c.setup.timing.Heartbeat)
	}
	late := c.late
	for _, o := range c.members {
		if o.worker.able() {
			late = max(late, o.worker.late, o.joined.at)
		}
	}
	if f.at <= max(due, late)+c.notice(c.setup.timing) {
		return nil
	}
	return broken(bounded, []fact{m.joined, m.vacated, c.opened, f}, "the place of %s was still kept %s after the end of its window", m.id, (f.at - due).Round(time.Millisecond))
}

// afterLeaving checks that a worker does not commit for a place that it has left vacant:
// the new owner would not know of that commit (S5).
func (c *checker) afterLeaving(f fact) *violation {
	left, ok := c.left[ownerKey{f.generation, f.partition}]
	if !ok || left.worker != f.worker {
		return nil
	}
	return broken(onlyGrow, []fact{c.activated, left, c.owners[ownerKey{f.generation, f.partition}], f}, "%s committed for partition %d/%d after it had left that place vacant",
		owner(f), f.partition, f.total)
}
