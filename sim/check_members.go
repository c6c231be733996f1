package sim

import (
	"slices"
	"time"
)

// A membership is who is in the group, as the requests tell that took effect.
type membership struct {
	members []*member // as they joined
	limit   int       // the newest joiner's MaxPartitions
	window  time.Duration
	layout  []string // of the newest generation: who has which partition
	owed    fact     // what demands a generation at once; unset: nothing
}

// A member is one incarnation of a worker.
type member struct {
	id     string
	worker *checkedWorker
	joined fact
	holds  fact // the activation that gave it a partition, until it has said that it stopped
	freed  fact // when it said so
}

func (m *membership) find(id string) *member {
	if i := slices.IndexFunc(m.members, func(o *member) bool { return o.id == id }); i >= 0 {
		return m.members[i]
	}
	return nil
}

// runners is how many members should have a partition.
func (m *membership) runners() int {
	if m.limit > 0 {
		return min(m.limit, len(m.members))
	}
	return len(m.members)
}

// membersChange takes in who comes and goes. Leaves and deaths are followed by a
// generation at once, and so is the very first join.
func (c *checker) membersChange(f fact) {
	switch f.kind {
	case memberJoins:
		c.limit, c.window = int(f.to), f.length
		c.members = append(c.members, &member{id: f.text, worker: c.worker(f.worker), joined: f})
	case memberLeaves, workerExpired:
		c.members = slices.DeleteFunc(c.members, func(m *member) bool { return m.id == f.text })
	}
	gone := func(id string) bool { return c.find(id) == nil }
	if len(c.members) > 0 && (c.opened.generation == 0 || slices.ContainsFunc(c.layout, gone)) {
		c.owed = f
	} else {
		c.owed = fact{}
	}
}

// owes: what demands a generation at once has got none by the time of f.
func (c *checker) owes(f fact) *violation {
	if c.owed.unset() || f.at <= c.owed.at {
		return nil
	}
	return broken(agreement, []fact{c.opened, c.owed, f}, "%s %s, and no generation was opened for that", c.owed.worker, c.owed)
}

// laidOut judges which members a generation has, and who has which partition
// (S6): as many as there are and the newest joiner allows; survivors keep their
// numbers, so that whoever replaces a member takes over its number; and whoever
// stands by does not displace one that runs.
func (c *checker) laidOut(before, f fact) *violation {
	old := c.layout
	c.layout, c.owed = f.layout, fact{}
	if f.layout == nil || len(c.members) == 0 {
		return nil
	}
	if n := c.runners(); f.total != n {
		return broken(agreement, []fact{before, c.members[len(c.members)-1].joined, f},
			"generation %d has %d partitions: there are %d members, and at most %d are to run (0: no limit)", f.generation, f.total, len(c.members), c.limit)
	}
	for k, id := range f.layout {
		m := c.find(id)
		switch {
		case m == nil:
			return broken(agreement, []fact{before, f}, "generation %d gives partition %d to %q, which is no member", f.generation, k, id)
		case slices.Index(f.layout, id) != k:
			return broken(agreement, []fact{before, m.joined, f}, "generation %d gives %s two partitions", f.generation, id)
		}
	}
	newcomer := slices.IndexFunc(f.layout, func(id string) bool { return !slices.Contains(old, id) })
	for k, id := range old {
		m := c.find(id)
		if m == nil {
			continue
		}
		now := slices.Index(f.layout, id)
		switch {
		case now < 0 && newcomer >= 0:
			return broken(agreement, []fact{before, m.joined, c.find(f.layout[newcomer]).joined, f},
				"generation %d gives partition %d to %s, while %s, which ran, has to stand by", f.generation, newcomer, f.layout[newcomer], id)
		case now >= 0 && k < f.total && now != k:
			return broken(agreement, []fact{before, m.joined, f}, "generation %d gives partition %d to %s, which had %d", f.generation, now, id, k)
		}
	}
	if newcomer < 0 || c.activated.generation < before.generation {
		return nil
	}
	return c.windowed(before, f, old)
}

// windowed: a generation that is opened for joins alone, while another is active,
// comes no sooner than a window after the first of them.
func (c *checker) windowed(before, f fact, old []string) *violation {
	if before.generation == 0 || len(old) > f.total || slices.ContainsFunc(old, func(id string) bool { return !slices.Contains(f.layout, id) }) {
		return nil
	}
	for _, m := range c.members { // as they joined
		if slices.Contains(old, m.id) || !slices.Contains(f.layout, m.id) {
			continue
		}
		stepped := !c.stepped.unset() && c.stepped.at >= m.joined.read
		if waited := f.read - m.joined.read; !stepped && waited < c.window {
			return broken(staysStill, []fact{before, m.joined, f}, "generation %d was opened %s after %s had joined, and joins have %s",
				f.generation, waited, m.id, c.window)
		}
		break
	}
	return nil
}

// holdings notes who holds what, once a generation is active.
func (c *checker) holdings(f fact) {
	for _, id := range c.layout {
		if m := c.find(id); m != nil {
			m.holds = f
		}
	}
}

// reports ends what a worker's request says has stopped.
func (c *checker) reports(f fact) {
	for _, m := range c.members {
		if m.worker.name == f.worker && !m.holds.unset() && m.holds.generation <= f.to {
			m.holds, m.freed = fact{}, f
		}
	}
}
