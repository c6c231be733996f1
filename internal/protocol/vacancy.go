package protocol

import (
	"slices"
	"time"
)

// A worker that leaves in order to be replaced, as each one does in a roll-out, would cost
// two changes: its leaving, and the join of its replacement. So it may leave its place
// behind instead: a vacancy. Its partitions stay assigned, under the generation that runs,
// and nobody runs them, for as long as the worker has asked for (Request.Vacate). Who comes
// in that time, and has no partitions, takes the place as it is, under the same generation.
// Nobody else sees anything of it, and nobody stops.
//
//	running ── asked to stop ──▶ stopped ── Leave, Vacate ──▶ vacant ── taken ──▶ running
//	                                                            │      by a worker that has
//	                                                            │      no partitions
//	                                                      window over: gone, and a
//	                                                      generation is opened
//
// Why that is safe:
//
//   - S1. The place is vacant by the word of its worker alone, which it says when its
//     handlers have returned; never by a lease. So who takes it finds it empty, without a
//     wait. A worker that freezes before that word is waited for as any other; one that
//     freezes after it has nothing to go on with.
//   - S3, S5. Leaver and replacement have the same fencing token. It can't tell one's
//     commits from the other's, so none of the leaver's may come late:
//     1. w1 saves 10 to 20, and is asked to stop before it hears of that;
//     2. its place becomes vacant, w2 takes it, finds the row at 10, and handles 11;
//     3. the statement arrives: the row is at 20, and what w2 has handled was handled
//     before, and after 20.
//     So only a worker whose lanes have all settled leaves a vacancy (LaneAction.Settled):
//     each has heard what has become of all that it had sent. Any other one leaves as if
//     there were no window. Exploration: the mutant "a worker leaves a vacancy though a
//     commit may be late".
//   - S6. A place is taken as a whole. A generation has the same total and the same places
//     from its activation on, and each place one worker at a time.
//   - A vacancy holds nothing, and nothing waits for it: a generation that is opened
//     meanwhile has the place as well, and is activated as if it were empty.
//   - A request of the leaver's that arrives late finds a vacancy under its name, or
//     nobody, and does nothing; nor can one make the window longer.
//
// In the tables, a vacancy is a member whose lease is its window, and who has no
// presence. Earlier programs, which know no vacancies, see a worker that is alive, and
// remove it when that lease is over.
//
// The price is paid in time: nobody handles the place's events until it is taken, and a
// worker that leaves for good is waited for.
//
// Decided against: a new generation for each takeover, of which only the two hear. Its
// number would fence the leaver, and no lane would have to settle; but the others' commits
// would name an older number than the newest, and every program of before would take that
// for a reason to stop. And to give a place only to a worker that names the one it
// replaces: pods have random names, and any place is as good as any other.

// A Takeover says who has taken whose place.
type Takeover struct{ From, By WorkerID }

// vacate leaves the place behind, and reports whether there is one to be kept. A window
// that runs already is not made longer: the request may have come twice.
func (m *Member) vacate(now time.Time, window time.Duration) bool {
	switch {
	case m.Vacant:
		return true
	case m.Drained || len(m.Partitions) == 0:
		return false
	}
	m.Vacant, m.Holds, m.Presence = true, 0, Presence{}
	m.Lease, m.LeaseEnd = window, now.Add(window)
	return true
}

// giveUp removes the vacancies that are not kept any longer: whose window is over, which an
// operator has drained, or for which a generation has no partitions. No watch is needed for
// that: whatever the clock says, nobody runs anything there.
func (g *Group) giveUp(now time.Time) (lapsed []WorkerID) {
	g.Members = slices.DeleteFunc(g.Members, func(m Member) bool {
		over := m.Vacant && (!now.Before(m.LeaseEnd) || m.Drained || len(m.Partitions) == 0)
		if over {
			lapsed = append(lapsed, m.ID)
		}
		return over
	})
	return lapsed
}

// take gives vacant places to members that have none, in the order in which they joined;
// first the place that would be given up first. Whether such a member waits for others to
// join, or stands by, makes no difference. Where it wants more partitions than the place
// has, or fewer, a generation is opened, as for any other reason.
func (g *Group) take() (taken []Takeover) {
	for {
		from := g.lapsesFirst()
		by := slices.IndexFunc(g.Members, func(m Member) bool { return !m.Vacant && !m.Drained && len(m.Partitions) == 0 })
		if from < 0 || by < 0 {
			return taken
		}
		taken = append(taken, Takeover{g.Members[from].ID, g.Members[by].ID})
		g.Members[by].Partitions = g.Members[from].Partitions
		g.Members = slices.Delete(g.Members, from, from+1)
	}
}

// yield gives up places of a generation that is about to be opened, where workers would have
// none for it: the limit was lowered.
func (g *Group) yield() (lapsed []WorkerID) {
	for {
		from, starves := g.lapsesFirst(), false
		for i, share := range g.shares() {
			starves = starves || share == 0 && !g.Members[i].Drained && !g.Members[i].Vacant
		}
		if from < 0 || !starves {
			return lapsed
		}
		lapsed = append(lapsed, g.Members[from].ID)
		g.Members = slices.Delete(g.Members, from, from+1)
	}
}

// lapsesFirst returns which of the vacancies would be given up first; -1: there is none.
func (g *Group) lapsesFirst() int {
	first := -1
	for i, m := range g.Members {
		if m.Vacant && (first < 0 || m.LeaseEnd.Before(g.Members[first].LeaseEnd)) {
			first = i
		}
	}
	return first
}

// allow has those who have taken a place in the active generation run it. Where that is
// not the whole of a change, its activation does.
func (g *Group) allow(taken []Takeover) {
	for _, t := range taken {
		g.Members[g.index(t.By)].Holds = g.Generation
	}
}

// keeps returns the earlier one of at, if it is not zero, and the time at which the next
// vacancy lapses.
func (g Group) keeps(at time.Time) time.Time {
	for _, m := range g.Members {
		if m.Vacant && (at.IsZero() || m.LeaseEnd.Before(at)) {
			at = m.LeaseEnd
		}
	}
	return at
}

// Vacancy returns the worker's place, if it is vacant.
func (g Group) Vacancy(id WorkerID) (place Member, vacant bool) {
	if i := g.index(id); i >= 0 && g.Members[i].Vacant {
		return g.Members[i], true
	}
	return Member{}, false
}
