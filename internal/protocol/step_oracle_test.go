package protocol

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// naiveStep is Step once more, written to be obviously what the promises say
// and nothing else: it compares sets, copies, and looks everything up.
func naiveStep(g Group, now time.Time, watch Watch) (Group, Decision) {
	var next []Member
	var d Decision
	for _, m := range g.Members {
		if m.Vacant && (!m.LeaseEnd.After(now) || len(m.Partitions) == 0) {
			d.Lapsed = append(d.Lapsed, m.ID)
			continue
		}
		overWhenSeen := watch.Seen.Equal(m.LeaseEnd) || watch.Seen.After(m.LeaseEnd)
		watchedForALease := watch.For >= m.Lease
		steppedBack := now.Before(watch.Seen)
		if overWhenSeen && watchedForALease && !steppedBack {
			d.Expired = append(d.Expired, m.ID)
			continue
		}
		if m.LeaseEnd.Sub(now) > m.Lease {
			m.LeaseEnd = now.Add(m.Lease)
		}
		next = append(next, m)
	}

	// Each vacant place, the one that ends first before others, is for who joined first of
	// those who have none.
	var vacant []Member
	for _, m := range next {
		if m.Vacant {
			vacant = append(vacant, m)
		}
	}
	slices.SortStableFunc(vacant, func(a, b Member) int { return a.LeaseEnd.Compare(b.LeaseEnd) })
	for _, v := range vacant {
		if i := slices.IndexFunc(next, func(m Member) bool { return len(m.Partitions) == 0 }); i >= 0 {
			next[i].Partitions = v.Partitions
			d.Taken = append(d.Taken, Takeover{v.ID, next[i].ID})
			next = slices.DeleteFunc(next, func(m Member) bool { return m.ID == v.ID })
		}
	}

	limit := Slots
	if g.MaxPartitions > 0 && g.MaxPartitions < limit {
		limit = g.MaxPartitions
	}
	total := 0
	var share []int // how many partitions each should have
	shareOut := func() {
		share, total = make([]int, len(next)), 0
		for i, m := range next {
			for n := 0; (n < m.Wants || n == 0) && total < limit; n++ {
				share[i]++
				total++
			}
		}
	}
	shareOut()
	joined, surplus, short, owned := 0, 0, 0, 0
	firstJoin := time.Time{}
	for i, m := range next {
		has := len(m.Partitions)
		owned += has
		if has == 0 && share[i] > 0 {
			if joined == 0 {
				firstJoin = m.Joined
			}
			joined++
		}
		for n := has; n > share[i]; n-- {
			surplus++
		}
		for n := has; has > 0 && n < share[i]; n++ {
			short++
		}
	}
	gone := g.Total - owned
	onlyJoins := joined > 0 && surplus == 0 && short == 0 && gone == 0
	waited := now.Sub(firstJoin)

	switch {
	case len(next) == 0: // nobody to run anything
	case g.Phase == Draining && g.Floor >= g.Generation:
		d.Opened, g.Reason = true, "projections from another replica set"
	case g.Generation == 0:
		d.Opened, g.Reason = true, "first worker"
	case surplus+short+gone == 0 && len(d.Taken) > 0 && g.Phase == Active && g.Uncovered && (joined == 0 || waited >= 0 && waited < g.JoinWindow):
		d.Opened, g.Reason = true, "projections added"
	case joined+surplus+short+gone == 0:
	case onlyJoins && g.Phase == Active && waited >= 0 && waited < g.JoinWindow:
		d.StepAt = firstJoin.Add(g.JoinWindow)
	default:
		var why []string
		for _, part := range []struct {
			n    int
			what string
		}{{joined, "joined"}, {gone, "gone"}, {surplus, "above MaxPartitions"}, {short, "below MaxPartitions"}} {
			if part.n > 0 {
				why = append(why, fmt.Sprint(part.n, " ", part.what))
			}
		}
		d.Opened, g.Reason = true, strings.Join(why, ", ")
	}

	if d.Opened {
		for _, v := range vacant { // no place is kept at the expense of somebody who is there
			starved := slices.ContainsFunc(next, func(m Member) bool {
				return !m.Vacant && share[slices.IndexFunc(next, func(o Member) bool { return o.ID == m.ID })] == 0
			})
			if kept := slices.ContainsFunc(next, func(m Member) bool { return m.ID == v.ID }); kept && starved {
				d.Lapsed = append(d.Lapsed, v.ID)
				next = slices.DeleteFunc(next, func(m Member) bool { return m.ID == v.ID })
				shareOut()
			}
		}
		g.Generation++
		if g.Generation <= g.Floor {
			g.Generation = g.Floor + 1
		}
		g.Phase, g.Total = Draining, total
		owner := map[int]WorkerID{}
		for i, m := range next {
			n := 0
			for p := range total {
				if slices.Contains(m.Partitions, p) && n < share[i] {
					owner[p] = m.ID
					n++
				}
			}
		}
		for i := range next {
			count := func() (n int) {
				for _, id := range owner {
					if id == next[i].ID {
						n++
					}
				}
				return n
			}
			for p := 0; count() < share[i]; p++ {
				if owner[p] == "" {
					owner[p] = next[i].ID
				}
			}
			next[i].Partitions = nil
			for p := range total {
				if owner[p] == next[i].ID {
					next[i].Partitions = append(next[i].Partitions, p)
				}
			}
		}
	}

	var stay []Member
	for _, m := range next {
		if m.Vacant && len(m.Partitions) == 0 { // it was its last moment
			d.Lapsed = append(d.Lapsed, m.ID)
		} else {
			stay = append(stay, m)
		}
	}
	next = stay
	for i, m := range next {
		took := slices.ContainsFunc(d.Taken, func(t Takeover) bool { return t.By == m.ID })
		if took && !d.Opened && g.Phase == Active {
			next[i].Holds = g.Generation
		}
		if m.Vacant && (d.StepAt.IsZero() || m.LeaseEnd.Before(d.StepAt)) {
			d.StepAt = m.LeaseEnd
		}
	}

	if g.Phase == Draining {
		for _, m := range next {
			if m.Holds > 0 && !m.Vacant {
				d.WaitsFor = append(d.WaitsFor, m.ID)
			}
		}
		if d.WaitsFor == nil {
			d.Activated, g.Phase = true, Active
			for i := range next {
				if len(next[i].Partitions) > 0 && !next[i].Vacant {
					next[i].Holds = g.Generation
				}
			}
		}
	}
	g.Members = next
	return g, d
}

// What the enumerated states have in common.
const (
	enumGeneration = int64(5)
	enumWindow     = 2 * time.Second
	shortLease     = 30 * time.Second // the watch is exactly as long
	longLease      = shortLease + 1   // the watch is one nanosecond too short
)

var enumWatch = Watch{Seen: testStart.Add(-time.Second), For: shortLease}

// Every lease and every join stands at the edge of what it means.
var (
	liveUntil   = enumWatch.Seen.Add(1)         // a nanosecond more, and it was seen over
	overSince   = enumWatch.Seen                // just seen over
	tooLong     = testStart.Add(shortLease + 1) // the clock was stepped back since
	joinedOld   = testStart.Add(-enumWindow)
	joinedLate  = testStart.Add(-enumWindow + 1)
	joinedAhead = testStart.Add(1) // likewise

	vacantUntil  = testStart.Add(1)
	vacantLonger = testStart.Add(2)
)

// memberStates returns the states of one of n members apart from its identity
// and number; partition 0 stands for "has one".
//
// Left out, because nothing makes such a member: one without a partition that
// holds the current generation, one that holds the current generation while
// that is draining. Left out as indifferent: the time at which a member that
// has a partition joined; it is always the latest, so that a Step that looks
// at it is noticed.
//
// Of up to two members that leaves everything. Beyond, a state is left out
// that is seen, with fewer members, to come to the same as another.
func memberStates(phase Phase, n int) []Member {
	var out []Member
	add := func(m Member) {
		over, doubt := !m.LeaseEnd.After(enumWatch.Seen), m.Lease > enumWatch.For
		none := len(m.Partitions) == 0
		switch {
		case m.Holds == enumGeneration && (none || phase != Active): // nothing makes it
		case !none && m.Joined != joinedLate: // indifferent
		case n > 2 && m.LeaseEnd.Equal(tooLong): // as a live one
		case n > 2 && doubt && none && m.Joined != joinedOld: // as a live one
		case n > 2 && m.Joined == joinedAhead: // as an old one
		case n > 3 && doubt: // as a live one
		case n > 4 && over && none != (m.Holds == 0): // as another that is over
		default:
			out = append(out, m)
		}
	}
	for _, lease := range []struct {
		length time.Duration
		end    time.Time
	}{{shortLease, liveUntil}, {shortLease, overSince}, {longLease, overSince}, {shortLease, tooLong}} {
		for _, joined := range []time.Time{joinedOld, joinedLate, joinedAhead} {
			for _, partitions := range [][]int{nil, {0}} {
				for _, holds := range []int64{0, enumGeneration - 1, enumGeneration} {
					add(Member{Joined: joined, Lease: lease.length, LeaseEnd: lease.end, Partitions: partitions, Holds: holds})
				}
			}
		}
	}
	// Vacancies. An earlier program has one hold what it activates.
	for _, until := range []time.Time{vacantUntil, vacantLonger, testStart, tooLong} {
		for _, holds := range []int64{0, enumGeneration - 1} {
			if n < 3 || n < 5 && holds == 0 && !until.Equal(tooLong) && (n < 4 || until.Equal(vacantUntil)) {
				out = append(out, Member{Vacant: true, Joined: joinedLate, Lease: shortLease, LeaseEnd: until, Partitions: []int{0}, Holds: holds})
			}
		}
	}
	return out
}

// numberings returns the ways in which k members get numbers below total.
func numberings(k, total int, sparse bool) [][]int {
	if sparse { // the lowest in join order, the highest against it
		low, high := make([]int, k), make([]int, k)
		for i := range k {
			low[i], high[i] = i, total-1-i
		}
		if total == k {
			return [][]int{low}
		}
		return [][]int{high}
	}
	if k == 0 {
		return [][]int{{}}
	}
	var out [][]int
	for _, rest := range numberings(k-1, total, false) {
		for p := range total {
			if !slices.Contains(rest, p) {
				out = append(out, append(slices.Clone(rest), p))
			}
		}
	}
	return out
}

// groups calls f with every group of n members; up to three of them also with
// numbers in any order and with members without a partition before ones that
// have one, which no sequence of joins and leaves makes. Beyond, it is sparse:
//   - whoever has a partition joined before those who have none;
//   - numbers ascend and are all taken, or descend and one is free;
//   - the limit is none, or two below the number of members.
func groups(n int, f func(Group)) {
	sparse := n > 3
	limits, spare := []int{0, 1, 2, 3, n + 1}, 2 // spare: partitions whose members have left
	switch {
	case sparse:
		limits, spare = []int{0, n - 2}, 1
	case n == 3:
		limits, spare = []int{0, 2}, 1
	}
	emit := func(phase Phase, members []Member) {
		assigned := []int{}
		for i, m := range members {
			if len(m.Partitions) > 0 {
				assigned = append(assigned, i)
			}
		}
		for total := len(assigned); total <= len(assigned)+spare; total++ {
			for _, numbers := range numberings(len(assigned), total, sparse) {
				for _, limit := range limits {
					g := Group{
						Generation: enumGeneration, Phase: phase, Total: total, Reason: "before",
						MaxPartitions: limit, JoinWindow: enumWindow, Members: slices.Clone(members),
					}
					for i, p := range numbers {
						g.Members[assigned[i]].Partitions = []int{p}
					}
					f(g)
					if n < 4 {
						g.Uncovered = true
						f(g)
						g.Uncovered = false
					}
					if n < 2 { // one floor that is passed, one that is not
						g.Floor = enumGeneration - 1
						f(g)
						g.Floor = enumGeneration + 3
						f(g)
					}
				}
			}
		}
	}
	for _, phase := range []Phase{Draining, Active} {
		states := memberStates(phase, n)
		members := make([]Member, n)
		var choose func(i int)
		choose = func(i int) {
			if i == n {
				emit(phase, members)
				return
			}
			for _, m := range states {
				if sparse && i > 0 && len(m.Partitions) > 0 && len(members[i-1].Partitions) == 0 {
					continue
				}
				m.ID = WorkerID('a' + rune(i))
				members[i] = m
				choose(i + 1)
			}
		}
		choose(0)
	}
	// Nobody has run anything yet: only joiners, and no generation.
	fresh := Group{JoinWindow: enumWindow}
	for i := range n {
		fresh.Members = append(fresh.Members, Member{
			ID: WorkerID('a' + rune(i)), Joined: joinedLate, Lease: shortLease, LeaseEnd: liveUntil,
		})
	}
	f(fresh)
}

func TestEveryGroup(t *testing.T) {
	for n := range 6 {
		t.Run(fmt.Sprintf("%d members", n), func(t *testing.T) {
			t.Parallel()
			states, watches := 0, []Watch{enumWatch}
			if n < 3 { // the clock reads what was last seen, or was stepped back since
				watches = append(watches, Watch{Seen: testStart, For: shortLease}, Watch{Seen: testStart.Add(1), For: shortLease})
			}
			groups(n, func(g Group) {
				states++
				for _, watch := range watches {
					if t.Failed() {
						return // one is enough to read
					}
					got, decision := Step(g, testStart, watch)
					want, wantDecision := naiveStep(g, testStart, watch)
					if !sameGroup(got, want) || !sameDecision(decision, wantDecision) {
						t.Errorf("Step of\n%s\n(-want +got):\n%s%s", show(g), cmp.Diff(show(want), show(got)), cmp.Diff(wantDecision, decision))
					}
					if err := checkStep(g, got, decision, testStart, watch); err != nil {
						t.Errorf("Step of\n%s\n%v; got\n%s (%s)", show(g), err, show(got), decision)
					}
				}
			})
			t.Logf("%d groups", states)
		})
	}
}

// Members that want several partitions, in states that may or may not come about.
func TestRandomGroups(t *testing.T) {
	for seed := range int64(20_000) {
		d := &dice{randomBytes(seed, 200)}
		g := Group{
			Generation: enumGeneration, Phase: []Phase{Draining, Active}[d.below(2)], JoinWindow: enumWindow,
			MaxPartitions: []int{0, 0, 1, 3, 7, 12}[d.below(6)],
		}
		n := d.below(6)
		numbers := make([][]int, n+1) // of each, and of those who are gone
		g.Total = d.below(12)
		for k := range g.Total {
			i := d.below(n + 1)
			numbers[i] = append(numbers[i], k)
		}
		for i := range n {
			states := memberStates(g.Phase, 2)
			m := states[d.below(len(states))]
			m.ID, m.Wants, m.Partitions = WorkerID('a'+rune(i)), d.below(5), numbers[i]
			if len(m.Partitions) == 0 && m.Holds == enumGeneration {
				m.Holds = 0
			}
			m.Vacant = m.Vacant && len(m.Partitions) > 0
			g.Members = append(g.Members, m)
		}
		got, decision := Step(g, testStart, enumWatch)
		want, wantDecision := naiveStep(g, testStart, enumWatch)
		if !sameGroup(got, want) || !sameDecision(decision, wantDecision) {
			t.Fatalf("seed %d: Step of\n%s\n(-want +got):\n%s%s", seed, show(g), cmp.Diff(show(want), show(got)), cmp.Diff(wantDecision, decision))
		}
		if err := checkStep(g, got, decision, testStart, enumWatch); err != nil {
			t.Fatalf("seed %d: Step of\n%s\n%v; got\n%s (%s)", seed, show(g), err, show(got), decision)
		}
	}
}

// sameGroup and sameDecision are cmp.Equal for the millions of cases in which
// there is nothing to show.
func sameGroup(a, b Group) bool {
	return slices.EqualFunc(a.Members, b.Members, sameMember) &&
		a.Generation == b.Generation && a.Phase == b.Phase && a.Total == b.Total && a.Reason == b.Reason &&
		a.MaxPartitions == b.MaxPartitions && a.Floor == b.Floor && a.JoinWindow == b.JoinWindow
}

func sameMember(a, b Member) bool {
	return a.ID == b.ID && a.Joined.Equal(b.Joined) && a.Lease == b.Lease && a.LeaseEnd.Equal(b.LeaseEnd) &&
		a.Wants == b.Wants && slices.Equal(a.Partitions, b.Partitions) && a.Holds == b.Holds && a.Vacant == b.Vacant
}

func sameDecision(a, b Decision) bool {
	return slices.Equal(a.Expired, b.Expired) && slices.Equal(a.Lapsed, b.Lapsed) && slices.Equal(a.Taken, b.Taken) && slices.Equal(a.WaitsFor, b.WaitsFor) &&
		a.Opened == b.Opened && a.Activated == b.Activated && a.StepAt.Equal(b.StepAt)
}

// show is a group with all that Step looks at.
func show(g Group) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s total %d limit %d floor %d", g, g.Total, g.MaxPartitions, g.Floor)
	for _, m := range g.Members {
		fmt.Fprintf(&b, "\n  %s wants %d, partitions %s, holds %d, joined %v ago, lease %v ends in %v",
			m.ID, m.Wants, FormatPartitions(m.Partitions), m.Holds, testStart.Sub(m.Joined), m.Lease, m.LeaseEnd.Sub(testStart))
	}
	return b.String()
}

// placeOf returns the partitions of the place that a member has taken.
func (g Group) placeOf(d Decision, by WorkerID) []int {
	i := slices.IndexFunc(d.Taken, func(t Takeover) bool { return t.By == by })
	return g.Members[g.index(d.Taken[i].From)].Partitions
}

// checkStep returns which promise a Step from before to after breaks.
func checkStep(before, after Group, d Decision, now time.Time, watch Watch) error {
	switch {
	case d.Opened && after.Generation != max(before.Generation, before.Floor)+1:
		return fmt.Errorf("opened generation %d after %d, with a floor of %d", after.Generation, before.Generation, before.Floor)
	case !d.Opened && after.Generation != before.Generation:
		return fmt.Errorf("generation moved from %d to %d without being opened", before.Generation, after.Generation)
	}
	if again, d2 := Step(after, now, watch); !sameGroup(again, after) || d2.Opened || d2.Activated || len(d2.Expired)+len(d2.Taken)+len(d2.Lapsed) > 0 {
		return fmt.Errorf("it does not stay still (L2): a second Step did %q", d2)
	}

	for _, m := range before.Members {
		if m.Vacant {
			taken := slices.ContainsFunc(d.Taken, func(t Takeover) bool { return t.From == m.ID })
			lapsed := slices.Contains(d.Lapsed, m.ID)
			is := after.index(m.ID) >= 0
			if is == (taken || lapsed) || lapsed && now.Before(m.LeaseEnd) && !d.Opened {
				return fmt.Errorf("the place of %s: it is kept: %v, taken: %v, given up: %v", m.ID, is, taken, lapsed)
			}
			continue
		}
		if after.index(m.ID) < 0 && (m.LeaseEnd.After(watch.Seen) || m.Lease > watch.For) {
			return fmt.Errorf("%s was removed, and its lease may not be over", m.ID)
		}
	}

	// Who runs what: total and disjoint over exactly those who should run.
	// Until joins are gathered, and with nobody left, the layout stays.
	if d.Opened {
		limit := Slots
		if after.MaxPartitions > 0 {
			limit = min(limit, after.MaxPartitions)
		}
		owner, left := map[int]WorkerID{}, limit
		for i, m := range after.Members {
			if want := min(max(m.Wants, 1), left); len(m.Partitions) != want {
				return fmt.Errorf("%s, number %d in the order of joins, wants %d of %d that are left, and has partitions %v", m.ID, i, m.Wants, left, m.Partitions)
			}
			left -= len(m.Partitions)
			if !slices.IsSorted(m.Partitions) {
				return fmt.Errorf("%s has partitions %v, which do not ascend", m.ID, m.Partitions)
			}
			for _, k := range m.Partitions {
				if k < 0 || k >= after.Total || owner[k] != "" {
					return fmt.Errorf("%s has partition %d of %d, which is not free; owners %q", m.ID, k, after.Total, owner)
				}
				owner[k] = m.ID
			}
		}
		if after.Total != limit-left {
			return fmt.Errorf("%d partitions for %d that members have", after.Total, limit-left)
		}
	}
	for _, m := range before.Members {
		i := after.index(m.ID)
		if i < 0 {
			continue
		}
		now := after.Members[i]
		lost := 0 // partitions that it had, and that still are
		for _, k := range m.Partitions {
			if k < after.Total && !slices.Contains(now.Partitions, k) {
				lost++
			}
		}
		took := slices.ContainsFunc(d.Taken, func(t Takeover) bool { return t.By == m.ID })
		if took && !d.Opened && !slices.Equal(now.Partitions, before.placeOf(d, m.ID)) {
			return fmt.Errorf("%s has partitions %v, and has taken a place with %v", m.ID, now.Partitions, before.placeOf(d, m.ID))
		}
		switch {
		case took:
		case !d.Opened && !slices.Equal(now.Partitions, m.Partitions):
			return fmt.Errorf("%s moved from partitions %v to %v within a generation", m.ID, m.Partitions, now.Partitions)
		case d.Opened && lost > 0 && len(now.Partitions) >= len(m.Partitions):
			return fmt.Errorf("%s moved from partitions %v to %v and need not", m.ID, m.Partitions, now.Partitions)
		case m.Holds != 0 && now.Holds != m.Holds:
			return fmt.Errorf("%s held generation %d and Step changed that to %d", m.ID, m.Holds, now.Holds)
		}
	}

	if d.Activated {
		for _, m := range after.Members {
			if m.Holds != 0 && m.Holds != after.Generation && !m.Vacant {
				return fmt.Errorf("generation %d was activated while %s held %d", after.Generation, m.ID, m.Holds)
			}
		}
	}
	for _, m := range after.Members {
		if after.View(m.ID, now, d).May() && (after.Phase != Active || m.Holds != after.Generation) {
			return fmt.Errorf("%s may run, and generation %d is %s", m.ID, after.Generation, after.Phase)
		}
	}
	if may := after.View("nobody", now, d); may.Member || may.May() {
		return fmt.Errorf("a stranger may run")
	}
	return nil
}
