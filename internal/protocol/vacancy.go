package protocol

import (
	"slices"
	"time"
)

// Vacant places: a worker that is replaced in a roll-out costs no rebalance.
//
// A worker that leaves and is replaced would cost two generations: one for its leaving, and
// one for the join of its replacement. So it may leave its place behind instead: a vacancy.
// Its partitions stay assigned, in the generation that runs, and no worker runs them, for as
// long as the worker has asked for (Request.Vacate). A worker without partitions that comes in
// that time takes the place as it is, in the same generation. No other worker stops.
//
// This file promises that a place has one worker at a time (S1), and that it is kept no longer
// than its window. It must never make a place vacant because a lease is over, or because time
// has passed: only the word of its worker shows that its handlers have returned.
//
//	running ── asked to stop ──▶ stopped ── Leave, Vacate ──▶ vacant ── taken ──▶ running
//	                                                            │      by a worker that has
//	                                                            │      no partitions
//	                                                      window over: gone, and a
//	                                                      generation is opened
//
// Why that is safe:
//
//   - S1. The place is vacant by the word of its worker alone, given after its
//     handlers have returned; never by a lease. So the worker that takes it need not wait. A
//     worker that freezes before that word is waited for as any other; one that
//     freezes after it has nothing to run.
//   - S3, S5. Leaver and replacement have the same fencing token. It can't tell one's
//     commits from the other's, so none of the leaver's may come late:
//     1. w1 saves 10 to 20, and is asked to stop before it gets the answer;
//     2. its place becomes vacant, w2 takes it, finds the row at 10, and handles 11;
//     3. the statement arrives: the row is at 20, and what w2 has handled was handled
//     before, and after 20.
//     So only a worker whose lanes have all settled leaves a vacancy (LaneAction.Settled):
//     each knows the outcome of everything that it has sent. Any other one leaves as if
//     there were no window. Exploration: the mutant "a worker leaves a vacancy though a
//     commit may be late".
//   - S6. A place is taken as a whole. A generation has the same total and the same places
//     from its activation on, and each place has one worker at a time.
//   - A vacancy holds no generation, and nothing waits for it: a generation that is opened
//     meanwhile has the place as well, and is activated as if the place were empty.
//   - A request of the leaver that arrives late finds a vacancy under its name, or no
//     member, and does nothing; nor can it make the window longer.
//
// In the tables, a vacancy is a member whose lease is its window, and which has no
// presence. Earlier programs, which know no vacancies, see a worker that is alive, and
// remove it when that lease is over.
//
// The price is time: no worker handles the place's events until it is taken, and a
// worker that leaves for good is waited for.
//
// Rejected: a new generation for each takeover, of which only the two workers learn. Its
// number would fence the leaver, and no lane would have to settle; but the others' commits
// would name an older number than the newest, and every earlier program would stop because
// of that. Also rejected: to give a place only to a worker that names the one it
// replaces. Pods have random names, and any place is as good as any other.

// A Takeover is a vacant place that the worker By has taken from the worker From.
type Takeover struct{ From, By WorkerID }

// vacate makes the member's place vacant, and reports whether it has a place to be kept. A
// window that runs already is not made longer: the request may have come twice.
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

// removeLapsed removes the vacancies that are kept no longer: the window is over, an operator has
// drained them, or the generation has no partitions for them. No Watch is needed for
// that: whatever the clock says, no worker runs anything there.
func (g *Group) removeLapsed(now time.Time) (lapsed []WorkerID) {
	g.Members = slices.DeleteFunc(g.Members, func(m Member) bool {
		over := m.Vacant && (!now.Before(m.LeaseEnd) || m.Drained || len(m.Partitions) == 0)
		if over {
			lapsed = append(lapsed, m.ID)
		}
		return over
	})
	return lapsed
}

// fillVacancies gives vacant places to members without partitions, in the order in which they joined;
// first the place that would be given up first. It makes no difference whether such a member
// waits for a join window or is a standby. If it wants more partitions than the place
// has, or fewer, a generation is opened, as for any other reason.
func (g *Group) fillVacancies() (taken []Takeover) {
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

// makeRoom removes vacancies before a generation is opened in which workers would have no
// partitions because of them: MaxPartitions was lowered.
func (g *Group) makeRoom() (lapsed []WorkerID) {
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

// lapsesFirst returns the index of the vacancy that would be given up first; -1 if there is none.
func (g *Group) lapsesFirst() int {
	first := -1
	for i, m := range g.Members {
		if m.Vacant && (first < 0 || m.LeaseEnd.Before(g.Members[first].LeaseEnd)) {
			first = i
		}
	}
	return first
}

// letRun lets the workers that have taken a place in the active generation run it. If a
// generation drains, its activation does that.
func (g *Group) letRun(taken []Takeover) {
	for _, t := range taken {
		g.Members[g.index(t.By)].Holds = g.Generation
	}
}

// nextLapse returns the earlier of at, if it is not zero, and the end of the next window.
func (g Group) nextLapse(at time.Time) time.Time {
	for _, m := range g.Members {
		if m.Vacant && (at.IsZero() || m.LeaseEnd.Before(at)) {
			at = m.LeaseEnd
		}
	}
	return at
}

// Vacancy returns the place that the worker has left, if it is vacant.
func (g Group) Vacancy(id WorkerID) (place Member, vacant bool) {
	if i := g.index(id); i >= 0 && g.Members[i].Vacant {
		return g.Members[i], true
	}
	return Member{}, false
}
