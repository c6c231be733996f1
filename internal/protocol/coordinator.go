package protocol

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// WorkerID names one incarnation of a worker. A worker that comes back, after
// a restart or after its lease ended, comes back under a new one, so nothing
// that was said of the old incarnation can be mistaken for the new.
type WorkerID string

// again returns the name of the worker's n-th incarnation.
func (id WorkerID) again(n int) WorkerID { return WorkerID(fmt.Sprintf("%s~%d", id, n)) }

// incarnation is the reverse of again.
func (id WorkerID) incarnation() (name string, n int) {
	name, number, ok := strings.Cut(string(id), "~")
	if n, err := strconv.Atoi(number); ok && err == nil {
		return name, n
	}
	return string(id), 1
}

// Succeeds reports whether the worker is a later incarnation of the other one.
func (id WorkerID) Succeeds(other WorkerID) bool {
	name, n := id.incarnation()
	earlier, m := other.incarnation()
	return name == earlier && n > m
}

// Phase says how far a generation is.
type Phase string

const (
	// Draining: the generation is opened, older ones are being stopped.
	Draining Phase = "draining"
	// Active: the generation's partitions may run.
	Active Phase = "active"
)

// A Group is all that is decided about one replica set: its newest generation
// and its members.
type Group struct {
	// Generation numbers the newest partition layout; 0 is none yet.
	// Invariant: it only grows (S5).
	Generation int64
	Phase      Phase
	// Total is the number of partitions in Generation.
	Total int
	// Reason says in words why Generation was opened.
	Reason string

	// MaxPartitions caps Total; 0 is no cap but Slots. It lives in the group,
	// as the newest joiner set it, and not in each worker's settings: two
	// programs that disagree during a roll-out would otherwise open
	// generations against each other for ever (L2).
	MaxPartitions int
	// JoinWindow is how long a join waits for further joins.
	JoinWindow time.Duration
	// Floor is the highest generation under which a checkpoint of the group
	// stands. It exceeds Generation when a projection came from another group;
	// the next generation exceeds it, so that outside systems which fence by
	// generation go on accepting what the projection sends.
	Floor int64
	// Uncovered: a projection of the group has no checkpoints of Generation. It was
	// added, or came from another group, since that was activated.
	Uncovered bool
	// Paused are the projections that Generation does not run, sorted; All is
	// every one. A change of it opens a generation.
	Paused []string
	// Holds are those of Paused that are paused for a while only, sorted by projection.
	Holds []Hold
	// Rewinds are due with the next activation, sorted by projection.
	Rewinds []Rewind

	// Stream names the event stream that the group reads, as its first member knew
	// it; "": none did. Whoever reads another one is refused: a position would mean
	// one event to him, and another to who has the partition next.
	Stream string

	// Members in the order in which they joined.
	Members []Member

	// ordered is why an order that was just applied needs a new generation.
	ordered string
}

// A Member is one worker as the group knows it.
type Member struct {
	ID       WorkerID
	Joined   time.Time
	Lease    time.Duration
	LeaseEnd time.Time
	// Wants is how many partitions the member takes at most; 0 is one.
	Wants int
	// Drained members get no partitions, by order.
	Drained bool
	// Partitions in the group's Generation, ascending. None: it has just joined,
	// or it is a standby.
	Partitions []int
	// Presence is what the member has published last.
	Presence Presence
	// Vacant: the worker has left, and its place is kept for a replacement until
	// LeaseEnd, in the group's Generation. See vacancy.go.
	Vacant bool
	// Holds is the activated generation that assigned a partition to the
	// member and that the member has not reported as stopped; 0 is none.
	// Invariant: no generation above Holds is active while it is set. It is
	// set by activation and not by the member's own word that it started: the
	// member may have been told to start and be about to.
	Holds int64
}

// A Decision is what one Step did, for logs, transcripts and the caller that
// must carry out the hand-over.
type Decision struct {
	Expired   []WorkerID // removed: their leases were over
	Lapsed    []WorkerID // removed: their places were vacant, and are not kept any longer
	Taken     []Takeover // vacant places that somebody has taken
	Opened    bool       // Group.Generation is new, Group.Reason says why
	Activated bool       // the hand-over is due, together with what else is saved
	WaitsFor  []WorkerID // who still holds an older generation
	Rewinds   []Rewind   // to be carried out in the hand-over
	// StepAt is when Step has to run again though nothing happens in between:
	// a join window closes then, a hold ends, or a vacant place is kept no longer. Zero is
	// never. Leases are not in it: they are renewed without Step's knowledge.
	StepAt time.Time
}

// Step is the coordinator: it maps a group and the database's time to the
// next group and says what it did. Any worker may run it, on a group that nobody changes
// until the result is saved, or it is not saved; there is no leader. watch is what the
// caller knows of the database's clock.
//
// One call goes as far as it can. In particular, a change of membership that
// arrives when everybody has stopped opens a generation and activates it at
// once: however often workers join, they never postpone an activation.
func Step(g Group, now time.Time, watch Watch) (Group, Decision) {
	var d Decision
	g.Members = slices.Clone(g.Members)

	d.Lapsed = g.giveUp(now)
	g.Members = slices.DeleteFunc(g.Members, func(m Member) bool {
		gone := m.Expired(now, watch)
		if gone {
			d.Expired = append(d.Expired, m.ID)
		}
		return gone
	})
	for i := range g.Members {
		if m := &g.Members[i]; m.tooLong(now) {
			m.LeaseEnd = now.Add(m.Lease)
		}
	}

	held := g.lapse(now)
	d.Taken = g.take()
	reason, at := g.due(now)
	if reason == "" && len(d.Taken) > 0 && g.Phase == Active && g.Uncovered {
		reason = "projections added" // whose lanes would find no checkpoints
	}
	if reason != "" {
		d.Lapsed = append(d.Lapsed, g.yield()...)
		g.open(reason)
		d.Opened = true
		d.Lapsed = append(d.Lapsed, g.giveUp(now)...) // there is no place left for them
	} else if d.StepAt = at; g.Phase == Active {
		g.allow(d.Taken)
	}
	if !held.IsZero() && (d.StepAt.IsZero() || held.Before(d.StepAt)) {
		d.StepAt = held
	}
	d.StepAt = g.keeps(d.StepAt)

	if g.Phase == Draining {
		if d.WaitsFor = g.holders(); len(d.WaitsFor) == 0 {
			g.activate()
			d.Activated = true
			d.Rewinds, g.Rewinds = g.Rewinds, nil
		}
	}
	g.ordered = ""
	return g, d
}

// A Watch is what one worker knows of the database's clock from watching it
// beside its own monotonic one: Seen is a recent reading, and for the time For
// before it all readings advanced as its own clock did, but for steps that may
// have gone unseen. That time is cut into spans, none shorter than Span but for the
// latest. No reading was off by more than an error from the one with which its span
// began: Errors[0] in the latest span, Errors[1] in the one before, and the last of
// them in all that are older.
type Watch struct {
	Seen   time.Time
	For    time.Duration
	Span   time.Duration
	Errors [watchSpans]time.Duration
	// Absent are presences that the worker has seen to be gone for long enough.
	Absent []Absence
}

// watchSpans is how many spans a Watch tells apart: enough for leases of six times
// one's own. For longer ones an old slow answer is never forgotten, which costs
// patience.
const watchSpans = 8

// missed returns how far the clock may have been stepped in the latest d, unseen.
func (w Watch) missed(d time.Duration) time.Duration {
	if w.Span <= 0 {
		return 0
	}
	// Of the spans that d touches, the oldest counts twice: it may have been off
	// by its error in one direction when d began, and in the other at its end.
	touched := 1 + int((d+w.Span-1)/w.Span)
	var sum time.Duration
	for i := range min(touched, watchSpans) {
		sum += w.Errors[i]
	}
	sum += w.Errors[watchSpans-1] * time.Duration(max(0, touched-watchSpans))
	return sum + w.Errors[min(touched, watchSpans)-1]
}

// Expired reports whether the member's lease is over beyond doubt.
//
// The database's clock alone can't say so: stepped forward, by NTP or a
// failover, it ends every lease at once while every holder works on (S1).
//  1. w1 and w2 run, their leases end at 12:00:30;
//  2. the clock steps from 12:00:05 to 13:00:00;
//  3. w3 joins, locks the group, reads 13:00:00 and removes both.
//
// So the lease must have been over at a reading from before this transaction
// that fits what the caller saw for as long as the lease is. Then either the
// last renewal came before that time, and the holder has not been heard of
// for a whole lease; or it came within, and the clock is right about it. And
// the clock must not have stepped back since: a lease renewed after that would
// seem to have ended before Seen. What the watch may have missed is made up
// for by the part of the lease that its holder leaves unused, of which half is
// counted on here, and by patience for the rest.
//
// The price: a worker that has just joined expires nobody before it has
// watched for the length of a lease. Scenario: clock_step.txt.
//
// Besides, a worker that has published a presence may be removed for the lack of
// it: it can't have proven it lately. See Presence.
func (m Member) Expired(now time.Time, watch Watch) bool {
	if m.Presence.Number != 0 && slices.Contains(watch.Absent, Absence{m.ID, m.Presence}) {
		return true
	}
	over := m.LeaseEnd.Add(max(0, watch.missed(m.Lease)-m.Lease/10))
	return !watch.Seen.Before(over) && watch.For >= m.Lease && !now.Before(watch.Seen)
}

// tooLong reports whether the lease ends later than one renewed right now:
// the database's clock was stepped back since, and a dead worker would be
// waited for as long as the step was wide.
func (m Member) tooLong(now time.Time) bool { return m.LeaseEnd.After(now.Add(m.Lease)) }

// shares returns how many partitions each member should have: in join order as
// many as it wants, up to the limit, and none if it is drained. So standbys, which
// come last, never displace a running worker.
func (g Group) shares() []int {
	left := Slots
	if g.MaxPartitions > 0 {
		left = min(left, g.MaxPartitions)
	}
	shares := make([]int, len(g.Members))
	for i, m := range g.Members {
		if m.Drained {
			continue
		}
		shares[i] = min(max(m.Wants, 1), left)
		left -= shares[i]
	}
	return shares
}

// due compares the membership that runs with the one that should, and returns
// the reason for a new generation; or, where joins are still being gathered,
// an empty reason and the time at which to look again.
func (g Group) due(now time.Time) (reason string, at time.Time) {
	if !g.staffed() {
		return "", time.Time{} // nobody to run anything; the next join will see to it
	}
	if g.ordered != "" {
		return g.ordered, time.Time{}
	}
	if g.Phase == Draining && g.Floor >= g.Generation {
		// A projection came from another group, with a worker for which no
		// generation has to be opened: it stands by. The one that is open would be
		// activated for it under a number that does not grow (S5).
		return "projections from elsewhere", time.Time{}
	}
	var (
		joining []Member
		gone    = g.Total // partitions of members that are no more
		surplus int       // partitions of members that should have fewer: the cap was lowered
		short   int       // partitions that members could have: another has made room
	)
	for i, share := range g.shares() {
		m := g.Members[i]
		have := len(m.Partitions)
		gone -= have
		switch {
		case have == 0 && share > 0:
			joining = append(joining, m)
		case have < share:
			short += share - have
		case have > share:
			surplus += have - share
		}
	}

	switch {
	case g.Generation == 0:
		return "first worker", time.Time{}
	case len(joining) == 0 && surplus == 0 && short == 0 && gone == 0:
		return "", time.Time{}
	case len(joining) > 0 && surplus == 0 && short == 0 && gone == 0 && g.Phase == Active:
		// Only joins: gather those that come within the window of the first.
		// Counted from the first, the window closes however many follow. A
		// clock that reads earlier than the join was stepped back: don't wait
		// for it to catch up.
		first := joining[0].Joined
		if elapsed := now.Sub(first); elapsed >= 0 && elapsed < g.JoinWindow {
			return "", first.Add(g.JoinWindow)
		}
	}
	return changeReason(len(joining), gone, surplus, short), time.Time{}
}

// staffed reports whether there is a member that can have partitions. A layout
// without any would have nowhere to hand the checkpoints over to.
func (g Group) staffed() bool {
	return slices.ContainsFunc(g.Members, func(m Member) bool { return !m.Drained })
}

// changeReason says in words what has changed: workers that have joined, and
// partitions of which the owner is gone, or has too many, or could have more.
func changeReason(joined, gone, surplus, short int) string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{joined, "joined"}, {gone, "gone"}, {surplus, "above the limit"}, {short, "below the limit"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// open starts the next generation, draining, with partitions for exactly the
// members that should run. Members keep their numbers where the new total has
// them; the others take the free numbers in join order, so whoever replaces a
// member takes over its numbers.
func (g *Group) open(reason string) {
	shares, total := g.shares(), 0
	for _, share := range shares {
		total += share
	}
	taken := make([]bool, total)
	for i := range g.Members {
		m := &g.Members[i]
		kept := make([]int, 0, shares[i])
		for _, k := range m.Partitions {
			if k < total && len(kept) < shares[i] {
				kept, taken[k] = append(kept, k), true
			}
		}
		m.Partitions = kept
	}
	free := 0
	for i := range g.Members {
		m := &g.Members[i]
		had := len(m.Partitions)
		for ; len(m.Partitions) < shares[i]; free++ {
			if !taken[free] {
				m.Partitions = append(m.Partitions, free)
			}
		}
		if had > 0 {
			slices.Sort(m.Partitions)
		}
	}
	g.Generation = max(g.Generation, g.Floor) + 1
	g.Phase, g.Total, g.Reason = Draining, total, reason
}

// holders returns the members that may still run an older generation.
func (g Group) holders() []WorkerID {
	var ids []WorkerID
	for _, m := range g.Members {
		if m.Holds != 0 && !m.Vacant {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// activate makes the open generation the one that may run.
func (g *Group) activate() {
	g.Phase = Active
	for i := range g.Members {
		if m := &g.Members[i]; len(m.Partitions) > 0 && !m.Vacant {
			m.Holds = g.Generation
		}
	}
}

// A Request is what a worker tells the group about itself.
type Request struct {
	Worker WorkerID
	// Lease is the worker's StaleWorkerTimeout; each request that is no look renews it.
	Lease time.Duration
	// Join makes the worker a member if it isn't one, and removes its earlier
	// incarnations. All of their handlers have returned.
	Join bool
	// Leave removes the worker and its earlier incarnations. All of their handlers
	// have returned.
	Leave bool
	// Stopped is the newest generation of which all the worker's handlers
	// have returned.
	Stopped int64
	// Heartbeat marks a request that only renews the lease, reports what has
	// stopped, and looks: it needs neither the group's lock nor Step.
	Heartbeat bool
	// Look marks a heartbeat that changes nothing, and does not even renew the
	// lease: it only looks.
	Look bool
	// Load asks a look for the checkpoints that the worker's lanes are to start from.
	Load bool
	// Others asks a heartbeat for View.Others.
	Others bool
	// Report marks a request for a Step that says of a generation for the first time that
	// it has stopped: that is written down though nothing else changes, and whoever
	// reports later, at the same moment or not, sees it.
	Report bool
	// Yield marks a request for a Step of which somebody else's does as well: if
	// the group is locked by one, the request is carried out as a look, or as a heartbeat.
	Yield bool
	// Watch is what the worker knows of the database's clock, and of whom it has
	// missed.
	Watch Watch
	// Presence is published with the request, if its Number is not 0.
	Presence Presence
	// Vacate, of a Leave, is how long the worker's place is kept for a replacement; 0:
	// not at all. None of what the worker has sent can take effect any more.
	Vacate time.Duration
	// Order is an operator's. It comes without a Worker.
	Order *Order

	// Wants is how many partitions the worker takes at most, from its Join on.
	Wants int
	// The group's settings, adopted with Join.
	MaxPartitions int
	JoinWindow    time.Duration
	// Stream names the event stream that a worker which joins reads; "": it can't.
	Stream string
}

// Yields reports whether the request leaves a Step to the request that has locked the
// group. A request that removes a worker does not: no other worker may have noticed that
// it is gone.
func (r Request) Yields() bool { return r.Yield || r.Report && len(r.Watch.Absent) == 0 }

// MayForesee reports whether a join may be decided on a reading of that age. The lease
// counts from the reading, and so does the join window, of which most is to be left.
func (r Request) MayForesee(age time.Duration) bool {
	return age <= r.Lease/10 && (r.JoinWindow == 0 || age <= r.JoinWindow/2)
}

// Refuses reports whether a request comes from a worker that reads another event
// stream than the group. It must not be applied.
//  1. w1 and w2 share the events of one table; w3's connections lead to another one
//     of that name;
//  2. w3 joins, and is given a partition that stands at 100;
//  3. it handles what it finds above 100 there, and moves the checkpoint; the events of
//     the group's own table up to that position are lost.
func (g Group) Refuses(r Request) bool {
	return r.Join && r.Stream != "" && g.Stream != "" && r.Stream != g.Stream
}

// Spares reports whether all that a request has changed, from g to after, is its worker's
// lease. Then nothing is written for one that yields, and it was a look (View.OnlySeen);
// nor, beyond the report, for one that reports.
func (g Group) Spares(r Request, after Group) bool {
	if !r.Yield && !r.Report {
		return false
	}
	g.Members = slices.Clone(g.Members)
	if i, j := g.index(r.Worker), after.index(r.Worker); i >= 0 && j >= 0 {
		g.Members[i].Lease, g.Members[i].LeaseEnd = after.Members[j].Lease, after.Members[j].LeaseEnd
	}
	return g.same(after)
}

// same reports whether two groups are the same.
func (g Group) same(o Group) bool {
	return g.Generation == o.Generation && g.Phase == o.Phase && g.Total == o.Total && g.Reason == o.Reason &&
		g.MaxPartitions == o.MaxPartitions && g.JoinWindow == o.JoinWindow && g.Stream == o.Stream &&
		slices.Equal(g.Paused, o.Paused) && slices.Equal(g.Rewinds, o.Rewinds) &&
		slices.EqualFunc(g.Holds, o.Holds, func(h, k Hold) bool { return h.Projection == k.Projection && h.Until.Equal(k.Until) }) &&
		slices.EqualFunc(g.Members, o.Members, func(m, n Member) bool {
			return m.ID == n.ID && m.Joined.Equal(n.Joined) && m.Lease == n.Lease && m.LeaseEnd.Equal(n.LeaseEnd) && m.Wants == n.Wants &&
				m.Drained == n.Drained && m.Vacant == n.Vacant && m.Holds == n.Holds && m.Presence == n.Presence && slices.Equal(m.Partitions, n.Partitions)
		})
}

// Apply carries out what the request says of its own worker; Step then draws
// the consequences for the group.
func Apply(g Group, r Request, now time.Time) Group {
	if r.Look {
		return g
	}
	g.Members = slices.Clone(g.Members)
	if r.Order != nil {
		return g.obey(*r.Order, now)
	}
	drained := false
	if r.Join || r.Leave {
		drained = g.succeed(r.Worker)
	}
	i := g.index(r.Worker)
	switch {
	case r.Leave && r.Vacate > 0 && i >= 0 && g.Members[i].vacate(now, r.Vacate):
		return g
	case r.Leave:
		g.remove(r.Worker)
		return g
	case i >= 0 && g.Members[i].Vacant: // it was sent before the worker left
		return g
	}
	if i < 0 {
		if !r.Join || g.succeeded(r.Worker) {
			return g
		}
		g.MaxPartitions, g.JoinWindow = r.MaxPartitions, r.JoinWindow
		if g.Stream == "" {
			g.Stream = r.Stream
		}
		g.Members = append(g.Members, Member{ID: r.Worker, Joined: now, Wants: r.Wants, Drained: drained})
		i = len(g.Members) - 1
	}
	m := &g.Members[i]
	m.Lease, m.LeaseEnd = r.Lease, now.Add(r.Lease)
	// A request that was sent earlier and arrives later must not bring back a
	// session that is gone.
	if r.Presence.Number > m.Presence.Number {
		m.Presence = r.Presence
	}
	// A report about an older generation, delivered twice, must not end the
	// hold of the generation that has been activated since.
	if m.Holds <= r.Stopped {
		m.Holds = 0
	}
	return g
}

func (g Group) index(id WorkerID) int {
	return slices.IndexFunc(g.Members, func(m Member) bool { return m.ID == id })
}

// succeeded reports whether there is a later incarnation of the worker. A join of
// an earlier one that arrives then would add a member that nobody is.
func (g Group) succeeded(id WorkerID) bool {
	return slices.ContainsFunc(g.Members, func(m Member) bool { return m.ID.Succeeds(id) })
}

// succeed removes the worker's earlier incarnations, and reports whether one of them
// was drained. There may be several: the reply to a join was lost, nobody knows
// whether it took effect, and then the session that it named was given up.
func (g *Group) succeed(id WorkerID) (drained bool) {
	g.Members = slices.DeleteFunc(g.Members, func(m Member) bool {
		earlier := id.Succeeds(m.ID)
		drained = drained || earlier && m.Drained
		return earlier
	})
	return drained
}

func (g *Group) remove(id WorkerID) {
	g.Members = slices.DeleteFunc(g.Members, func(m Member) bool { return m.ID == id })
}

// A View is the group as one worker sees it.
type View struct {
	Now    time.Time // the database's clock
	Member bool      // false: the worker was removed, or never joined

	// The worker's own assignment. It is read in one piece from the worker's
	// own row: a generation from one moment with a partition from another
	// would start a worker on somebody else's partition.
	Generation int64
	Total      int
	Partitions []int
	Paused     []string // as Group.Paused
	// Holds equals Generation when that is active for this worker, so it may
	// run its partitions.
	Holds int64

	// StepAt is the earliest time at which Step may have something to do: a
	// join window closes, a lease ends, or one has to be cut; or now, where
	// nobody holds back a draining generation. It may be a moment older than
	// the rest; nothing that is started depends on it.
	StepAt time.Time
	// OnlySeen says that a request that yields was a look, and has not renewed the lease: it
	// has found nothing to do, or the group locked.
	OnlySeen bool
	// Busy says that a request that yields has found the group locked: StepAt is due, and
	// may still be when whoever has locked it has ended.
	Busy bool
	// Others are shown to a heartbeat that asks for them.
	Others Others
}

// Assigned reports whether the worker has partitions in the newest generation.
func (v View) Assigned() bool { return len(v.Partitions) > 0 }

// May reports whether the view allows its worker to run its partitions.
func (v View) May() bool { return v.Member && v.Assigned() && v.Holds == v.Generation }

// View returns the group as worker id sees it at now, after the decision d.
func (g Group) View(id WorkerID, now time.Time, d Decision) View {
	v := View{Now: now, Generation: g.Generation, Total: g.Total, StepAt: d.StepAt}
	for _, m := range g.Members {
		if m.ID == id && m.Vacant { // nothing may come back to it
			continue
		}
		if m.ID == id {
			v.Member, v.Partitions, v.Paused, v.Holds = true, m.Partitions, g.Paused, m.Holds
			continue
		}
		at := m.LeaseEnd
		if m.tooLong(now) {
			at = now
		}
		if v.StepAt.IsZero() || at.Before(v.StepAt) {
			v.StepAt = at
		}
	}
	if g.Phase == Draining && len(g.holders()) == 0 {
		v.StepAt = now
	}
	return v
}

// Numbers shows partitions as "3", "0-3,7", or "-" for none.
func Numbers(partitions []int) string {
	if len(partitions) == 0 {
		return "-"
	}
	var b strings.Builder
	for i := 0; i < len(partitions); {
		j := i
		for j+1 < len(partitions) && partitions[j+1] == partitions[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, partitions[i])
		if j > i {
			fmt.Fprintf(&b, "-%d", partitions[j])
		}
		i = j + 1
	}
	return b.String()
}

// String shows the group in one line: generation 3 active {a:0/2 b:1/2 c:-},
// with * on members that still hold an older generation; and what is ordered.
func (g Group) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "generation %d %s {", g.Generation, g.Phase)
	for i, m := range g.Members {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s:%s", m.ID, Numbers(m.Partitions))
		if len(m.Partitions) > 0 {
			fmt.Fprintf(&b, "/%d", g.Total)
		}
		if m.Drained {
			b.WriteString("(drained)")
		}
		if m.Vacant {
			b.WriteString("(vacant)")
		}
		if m.Holds != 0 && m.Holds != g.Generation {
			b.WriteByte('*')
		}
	}
	b.WriteByte('}')
	if slices.Contains(g.Paused, All) {
		b.WriteString(" all paused")
	} else if len(g.Paused) > 0 {
		fmt.Fprintf(&b, " paused %v", g.Paused)
	}
	for _, h := range g.Holds {
		fmt.Fprintf(&b, " hold %s", h.Projection)
	}
	for _, r := range g.Rewinds {
		fmt.Fprintf(&b, " rewind %s to %d", r.Projection, r.Position)
	}
	return b.String()
}

// String shows the decision in one line, empty for one that changed nothing.
func (d Decision) String() string {
	var parts []string
	if len(d.Expired) > 0 {
		parts = append(parts, fmt.Sprintf("expired %v", d.Expired))
	}
	if len(d.Lapsed) > 0 {
		parts = append(parts, fmt.Sprintf("lapsed %v", d.Lapsed))
	}
	for _, t := range d.Taken {
		parts = append(parts, fmt.Sprintf("%s takes the place of %s", t.By, t.From))
	}
	if d.Opened {
		parts = append(parts, "opened")
	}
	if d.Activated {
		parts = append(parts, "activated")
	}
	if len(d.WaitsFor) > 0 {
		parts = append(parts, fmt.Sprintf("waits for %v", d.WaitsFor))
	}
	return strings.Join(parts, ", ")
}
