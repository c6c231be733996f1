package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A membership is the members of a group, according to the requests that took effect.
type membership struct {
	members []*member // in the order in which they joined
	limit   int       // the newest joiner's MaxPartitions
	window  time.Duration
	layout  []string          // of the newest generation: the owner of each partition
	owed    fact              // what demands a generation at once; unset: nothing
	taken   fact              // the latest placeTaken
	left    map[ownerKey]fact // the placeVacated of each place
}

// A member is one incarnation of a worker.
type member struct {
	id     string
	worker *checkedWorker
	joined fact
	holds  fact // the activation that gave it partitions, until it has reported a stop
	freed  fact // when it reported the stop
	// drained: an operator has taken its partitions away.
	drained bool
	vacated fact // when it left its place vacant; unset: it has not
}

func (m *membership) find(id string) *member {
	if i := slices.IndexFunc(m.members, func(o *member) bool { return o.id == id }); i >= 0 {
		return m.members[i]
	}
	return nil
}

// shares returns how many partitions each member must have: as many as it wants, in the
// order in which they joined, up to the limit, and none if it is drained.
func (m *membership) shares() []int {
	left := protocol.Slots
	if m.limit > 0 {
		left = min(left, m.limit)
	}
	shares := make([]int, len(m.members))
	for i, o := range m.members {
		if o.drained {
			continue
		}
		shares[i] = min(max(1, int(o.joined.from)), left)
		left -= shares[i]
	}
	return shares
}

// membersChange takes in joins and departures. A departure must be followed by a generation
// at once, and so must the first join.
func (c *checker) membersChange(f fact) {
	switch f.kind {
	case memberJoins:
		c.limit, c.window = int(f.to), f.length
		c.members = append(c.members, &member{id: f.text, worker: c.worker(f.worker), joined: f, drained: c.drained[f.worker]})
	case memberLeaves, workerExpired, placeLapsed:
		m := c.find(f.text)
		if m != nil { // the new incarnation stays drained
			c.drained[f.worker] = m.drained && f.kind == memberLeaves
		}
		c.members = slices.DeleteFunc(c.members, func(o *member) bool { return o == m })
	}
	gone := func(id string) bool { return c.find(id) == nil }
	if c.staffed() && (c.opened.generation == 0 || slices.ContainsFunc(c.layout, gone)) {
		c.owed = f
	} else {
		c.owed = fact{}
	}
}

// owes checks that what demands a generation at once gets one.
func (c *checker) owes(f fact) *violation {
	if c.owed.unset() || f.at <= c.owed.at {
		return nil
	}
	return broken(agreement, []fact{c.opened, c.owed, f}, "no generation was opened after this: %s", strings.TrimSpace(c.owed.worker+" "+c.owed.String()))
}

// laidOut checks who has which partition of a generation (S6). Each member has its share,
// so a standby does not displace a running worker. Survivors keep their numbers, so a
// replacement takes over the numbers of the member that it replaces.
func (c *checker) laidOut(before, f fact) *violation {
	old := c.layout
	c.layout, c.owed = f.layout, fact{}
	if f.layout == nil || len(c.members) == 0 {
		return nil
	}
	byOrder := c.owedTo
	c.owedTo = false
	shares, had, has := c.shares(), numbers(old), numbers(f.layout)
	given := 0
	for _, m := range c.members {
		given += len(has[m.id])
	}
	if given < f.total {
		k := slices.IndexFunc(f.layout, func(id string) bool { return c.find(id) == nil })
		return broken(agreement, []fact{before, f}, "generation %d gave partition %d to %q, which is no member", f.generation, k, f.layout[k])
	}
	for i, m := range c.members {
		if n := len(has[m.id]); n != shares[i] {
			return broken(agreement, []fact{before, m.joined, f}, "generation %d gave %s %s instead of %d, with %d members and a limit of %d partitions (0: none)",
				f.generation, m.id, plural(n, "partition"), shares[i], len(c.members), c.limit)
		}
		keeps := 0
		for _, k := range had[m.id] {
			if k < f.total && keeps < shares[i] {
				keeps++
			}
		}
		for _, k := range has[m.id] {
			if slices.Contains(had[m.id], k) {
				keeps--
			}
		}
		if keeps > 0 {
			return broken(agreement, []fact{before, m.joined, f}, "generation %d gave partitions %s to %s, which had %s and must keep its numbers",
				f.generation, protocol.FormatPartitions(has[m.id]), m.id, protocol.FormatPartitions(had[m.id]))
		}
	}
	if c.activated.generation < before.generation || before.generation == 0 || byOrder {
		return nil
	}
	return c.windowed(before, f, shares, had)
}

// numbers returns the partitions of each incarnation, in ascending order.
func numbers(layout []string) map[string][]int {
	has := map[string][]int{}
	for k, id := range layout {
		has[id] = append(has[id], k)
	}
	return has
}

// windowed checks that a generation that is opened only for joins, while another one is
// active, comes no sooner than a window after the first join.
func (c *checker) windowed(before, f fact, shares []int, had map[string][]int) *violation {
	var first *member // of those that have joined
	stay := 0
	for i, m := range c.members { // in the order in which they joined
		switch n := len(had[m.id]); {
		case n == 0 && shares[i] > 0 && first == nil:
			first = m
		case n > 0 && n != shares[i]:
			return nil
		case n > 0:
			stay++
		}
	}
	if first == nil || stay < len(had) {
		return nil
	}
	if !c.taken.unset() && c.taken.at == f.at { // the replacement brought a projection without checkpoints
		return nil
	}
	stepped := !c.stepped.unset() && c.stepped.at >= first.joined.read
	if waited := f.read - first.joined.read; !stepped && waited < c.window {
		return broken(staysStill, []fact{before, first.joined, f}, "generation %d was opened %s after %s had joined, before the join window of %s was over",
			f.generation, waited, first.id, c.window)
	}
	return nil
}

// holdings takes in who holds an activated generation.
func (c *checker) holdings(f fact) {
	for _, id := range c.layout {
		if m := c.find(id); m != nil && m.vacated.unset() {
			m.holds = f
		}
	}
}

// reports takes in the stops that a request reports.
func (c *checker) reports(f fact) {
	for _, m := range c.members {
		if m.worker.name == f.worker && !m.holds.unset() && m.holds.generation <= f.to {
			m.holds, m.freed = fact{}, f
		}
	}
}
