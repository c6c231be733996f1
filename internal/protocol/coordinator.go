package protocol

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The coordinator: Apply carries out what one worker or operator asks for, and Step draws the
// consequences for the whole group.
//
// Step promises that generations only grow (S5), that no generation is active while a member
// holds an older one (S1), that all members see the same total (S6), and that nothing changes
// without a change of the membership, the settings or the orders (L2). It must never trust
// one reading of the database's clock (Member.Expired), and never take a worker's partitions
// away because another one wants them: both run two owners.

// WorkerID names one incarnation of a worker. A worker that comes back, after
// a restart or after its lease ended, gets a new one, so nothing that concerns the old
// incarnation can be mistaken for the new.
type WorkerID string

// again returns the id of the worker's n-th incarnation.
func (id WorkerID) again(n int) WorkerID { return WorkerID(fmt.Sprintf("%s~%d", id, n)) }

// incarnation returns the worker's name and the number of its incarnation: the reverse of again.
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

// Phase is how far the newest generation is.
type Phase string

const (
	// Draining means that the generation is opened, and workers stop older ones.
	Draining Phase = "draining"
	// Active means that the generation's partitions may run.
	Active Phase = "active"
)

// A Group is the state of one replica set (a consumer group): its newest generation, its
// members, and the orders that are in effect.
type Group struct {
	// Generation is the number of the newest assignment of partitions; 0 is none yet.
	// Invariant: it only grows (S5).
	Generation int64
	Phase      Phase
	// Total is the number of partitions in Generation.
	Total int
	// Reason is why Generation was opened, for people.
	Reason string

	// MaxPartitions is the limit of Total; 0 is no limit but Slots. It is the group's,
	// as the newest joiner set it, and not each worker's own: two programs that disagree
	// during a roll-out would otherwise open generations against each other without
	// end (L2).
	MaxPartitions int
	// JoinWindow is how long a join waits for further joins.
	JoinWindow time.Duration
	// Floor is the highest generation of the group's checkpoints. It exceeds Generation
	// when a projection came from another group; the next generation exceeds it, so that
	// outside systems which fence by generation still accept what the projection sends.
	Floor int64
	// Uncovered is true if a projection of the group has no checkpoints of Generation: it
	// was added, or came from another group, after the activation.
	Uncovered bool
	// Paused are the projections that Generation does not run, sorted; All stands for
	// every one. A change of Paused opens a generation.
	Paused []string
	// Holds are those of Paused whose pause ends by itself, sorted by projection.
	Holds []Hold
	// Rewinds are carried out with the next activation; sorted by projection.
	Rewinds []Rewind

	// Stream names the event stream that the group reads, as its first member named
	// it; "" is not known. A worker that reads another one is refused: the same position
	// would mean different events to the two.
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
	// Wants is the most partitions that the member takes; 0 is one.
	Wants int
	// Drained members get no partitions, by order.
	Drained bool
	// Partitions are the member's in the group's Generation, ascending. It has none if it
	// has just joined, or is a standby.
	Partitions []int
	// Presence is what the member has published last.
	Presence Presence
	// Vacant is true if the worker has left, and its place is kept for a replacement until
	// LeaseEnd, in the group's Generation. See vacancy.go.
	Vacant bool
	// Holds is the activated generation that assigned a partition to the
	// member and that the member has not reported as stopped; 0 is none.
	// Invariant: no generation above Holds is active while it is set. Activation sets it,
	// and not a report of the member that it has started: an answer that lets it start may
	// be on its way.
	Holds int64
}

// A Decision is what one Step did, for logs, transcripts and the caller that
// must carry out the hand-over.
type Decision struct {
	Expired   []WorkerID // removed: their leases were over, or their presences were gone
	Lapsed    []WorkerID // removed: their places were vacant, and are kept no longer
	Taken     []Takeover // vacant places that a worker has taken
	Opened    bool       // Group.Generation is new, Group.Reason says why
	Activated bool       // the checkpoints are to be handed over, in the transaction that saves the group
	WaitsFor  []WorkerID // members that still hold an older generation
	Rewinds   []Rewind   // to be carried out in the hand-over
	// StepAt is when Step has to run again even if nothing happens until then:
	// a join window closes, a hold ends, or a vacant place is kept no longer. Zero is
	// never. Leases are not in it: they are renewed without Step's knowledge.
	StepAt time.Time
}

// Step is the coordinator: it maps a group and the database's time to the next group, and
// returns what it did. Any worker may run it. The result may be saved only if the group is
// still the one that was given; there is no leader. watch is what the caller knows of the
// database's clock.
//
// One call goes as far as possible. In particular, a change of membership that
// arrives when all members have stopped opens a generation and activates it at
// once: however often workers join, they never postpone an activation.
func Step(g Group, now time.Time, watch Watch) (Group, Decision) {
	var d Decision
	g.Members = slices.Clone(g.Members)

	d.Lapsed = g.removeLapsed(now)
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
	d.Taken = g.fillVacancies()
	reason, at := g.due(now)
	if reason == "" && len(d.Taken) > 0 && g.Phase == Active && g.Uncovered {
		reason = "projections added" // whose lanes would find no checkpoints
	}
	if reason != "" {
		d.Lapsed = append(d.Lapsed, g.makeRoom()...)
		g.open(reason)
		d.Opened = true
		d.Lapsed = append(d.Lapsed, g.removeLapsed(now)...) // there is no place left for them
	} else if d.StepAt = at; g.Phase == Active {
		g.letRun(d.Taken)
	}
	if !held.IsZero() && (d.StepAt.IsZero() || held.Before(d.StepAt)) {
		d.StepAt = held
	}
	d.StepAt = g.nextLapse(d.StepAt)

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

// A Watch is what one worker knows of the database's clock from comparing it with
// its own monotonic one. Seen is a recent reading. For the time For before Seen, all
// readings advanced as the worker's own clock did, except for steps too small to be seen.
// That time is cut into spans, none shorter than Span except the latest. No reading was
// off by more than an error from the first one of its span: Errors[0] in the latest span,
// Errors[1] in the one before, and the last of Errors in all older ones.
type Watch struct {
	Seen   time.Time
	For    time.Duration
	Span   time.Duration
	Errors [watchSpans]time.Duration
	// Absent are presences that have been gone for presenceGrace, as this worker saw.
	Absent []Absence
}

// watchSpans is how many spans a Watch tells apart: enough for leases of six times
// the worker's own. For longer ones an old slow answer is never forgotten, so such a lease
// ends later.
const watchSpans = 8

// missed returns how far the clock may have been stepped unseen in the latest d.
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

// Expired reports whether the member's lease is certainly over, or its presence is gone.
//
// The database's clock alone can't tell: stepped forward, by NTP or a
// failover, it ends every lease at once while every holder still runs (S1).
//  1. w1 and w2 run, their leases end at 12:00:30;
//  2. the clock steps from 12:00:05 to 13:00:00;
//  3. w3 joins, locks the group, reads 13:00:00 and removes both.
//
// So the lease must have been over at a reading from before this transaction, and the
// caller must have seen an even clock for the length of that lease before that reading.
// Then either the last renewal came before that time, and the holder has been silent for
// a whole lease; or it came within that time, and the clock is right about it. And
// the clock must not have stepped back since: a lease renewed after that would
// seem to have ended before Seen. Steps that the watch may have missed are covered
// by the part of the lease that its holder leaves unused, of which half is
// counted on here; for the rest the lease is extended.
//
// The price: a worker that has just joined removes no member before it has
// watched for the length of a lease. Scenario: clock_step.txt.
//
// A worker that has published a presence is also removed when that is gone: it can't have
// proven it lately. See presence.go.
func (m Member) Expired(now time.Time, watch Watch) bool {
	if m.Presence.Number != 0 && slices.Contains(watch.Absent, Absence{m.ID, m.Presence}) {
		return true
	}
	over := m.LeaseEnd.Add(max(0, watch.missed(m.Lease)-m.Lease/10))
	return !watch.Seen.Before(over) && watch.For >= m.Lease && !now.Before(watch.Seen)
}

// tooLong reports whether the lease ends later than one renewed right now would. Then the
// database's clock was stepped back, and a dead worker would be waited for by as much
// longer.
func (m Member) tooLong(now time.Time) bool { return m.LeaseEnd.After(now.Add(m.Lease)) }

// shares returns how many partitions each member should have: in join order up to
// Wants each, within MaxPartitions, and none if it is drained. So standbys, which
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

// due compares the partitions that members have with those that they should have, and returns
// the reason for a new generation. While joins are being gathered, the reason is empty, and
// at is when to run Step again.
func (g Group) due(now time.Time) (reason string, at time.Time) {
	if !g.staffed() {
		return "", time.Time{} // no worker could run anything; the next join opens a generation
	}
	if g.ordered != "" {
		return g.ordered, time.Time{}
	}
	if g.Phase == Draining && g.Floor >= g.Generation {
		// A projection came from another group, with a worker that is a standby and so
		// opens no generation. The one that is open would be activated for the projection
		// under a number that does not grow (S5).
		return "projections from another replica set", time.Time{}
	}
	var (
		joining []Member
		gone    = g.Total // partitions without a member
		surplus int       // partitions of members that should have fewer: MaxPartitions was lowered
		short   int       // partitions that members could have in addition: there is room
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
		// Counted from the first, the window closes however many follow. If the
		// clock reads earlier than the join, it was stepped back: don't wait
		// for it to catch up.
		first := joining[0].Joined
		if elapsed := now.Sub(first); elapsed >= 0 && elapsed < g.JoinWindow {
			return "", first.Add(g.JoinWindow)
		}
	}
	return changeReason(len(joining), gone, surplus, short), time.Time{}
}

// staffed reports whether there is a member that can have partitions. Without one, a
// generation would have no partitions to hand the checkpoints over to.
func (g Group) staffed() bool {
	return slices.ContainsFunc(g.Members, func(m Member) bool { return !m.Drained })
}

// changeReason returns what has changed, for people: how many workers have joined, how many
// partitions have lost their worker, how many there are beyond MaxPartitions, and how many
// more its limit allows.
func changeReason(joined, gone, surplus, short int) string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{joined, "joined"}, {gone, "gone"}, {surplus, "above MaxPartitions"}, {short, "below MaxPartitions"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return strings.Join(parts, ", ")
}

// open starts the next generation, draining, with partitions for exactly the
// members that should run. Members keep their numbers where the new total has
// them; the others take the free numbers in join order, so a worker that replaces
// another takes over its numbers.
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

// A Request is what a worker tells the group about itself, or an operator's order.
type Request struct {
	Worker WorkerID
	// Lease is the worker's StaleWorkerTimeout. Each request that is not ReadOnly renews it.
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
	// stopped, and reads the View: it needs neither the group's lock nor Step.
	Heartbeat bool
	// ReadOnly marks a heartbeat that writes nothing, and so does not renew the lease.
	ReadOnly bool
	// Load asks a ReadOnly heartbeat for the checkpoints that the worker's lanes start from.
	Load bool
	// Others asks a heartbeat for View.Others.
	Others bool
	// Report marks a request for a Step that reports for the first time that a generation
	// has stopped. The report is written even if nothing else changes, so that every
	// later report sees it.
	Report bool
	// Yield marks a request for a Step that another worker's request can replace: if
	// another one has locked the group, the request is carried out as a heartbeat.
	Yield bool
	// Watch is what the worker knows of the database's clock, and which presences are
	// gone.
	Watch Watch
	// Presence is published with the request, if its Number is not 0.
	Presence Presence
	// Vacate, of a Leave, is how long the worker's place is kept for a replacement; 0 is
	// not at all. With it, nothing that the worker has sent can take effect any more.
	Vacate time.Duration
	// Order is an operator's. It comes without a Worker.
	Order *Order

	// Wants is the most partitions that the worker takes, from its Join on.
	Wants int
	// The group's settings, adopted with Join.
	MaxPartitions int
	JoinWindow    time.Duration
	// Stream names the event stream that a joining worker reads; "" is not known.
	Stream string
}

// Yields reports whether the request leaves its Step to the request that has locked the
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

// Spares reports whether a request that yields or reports has changed nothing, from g to
// after, but its worker's lease. Then nothing is written, and the answer to one that yields
// is View.ReadOnly; the report of one that reports is written before.
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

// Apply returns the group after the request has changed its own worker's member, or after
// an order. Step then draws the consequences for the group. Applying a request twice does
// no harm.
func Apply(g Group, r Request, now time.Time) Group {
	if r.ReadOnly {
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
	// A request that was sent earlier and arrives later must not bring back the number of
	// a session that is gone.
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
// an earlier one that arrives then would add a member that no process acts for.
func (g Group) succeeded(id WorkerID) bool {
	return slices.ContainsFunc(g.Members, func(m Member) bool { return m.ID.Succeeds(id) })
}

// succeed removes the worker's earlier incarnations, and reports whether one of them
// was drained. There may be several: the reply to a join was lost, the worker does not know
// whether it took effect, and came back once more.
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
	// would start a worker on another worker's partition.
	Generation int64
	Total      int
	Partitions []int
	Paused     []string // as Group.Paused
	// Holds equals Generation when that is active for this worker, so it may
	// run its partitions.
	Holds int64

	// StepAt is the earliest time at which Step may have something to do: a
	// join window closes, or a lease ends or has to be cut; or now, if
	// no member holds back a draining generation. It may be a moment older than
	// the rest; nothing that is started depends on it.
	StepAt time.Time
	// ReadOnly is true if a request that yields has written nothing, and so has not renewed
	// the lease: there was nothing to do, or the group was locked.
	ReadOnly bool
	// Busy is true if a request that yields has found the group locked. StepAt is due then,
	// and may still be due after the other request.
	Busy bool
	// Others are shown to a heartbeat that asks for them.
	Others Others
}

// Assigned reports whether the worker has partitions in the newest generation.
func (v View) Assigned() bool { return len(v.Partitions) > 0 }

// May reports whether the view allows its worker to run its partitions.
func (v View) May() bool { return v.Member && v.Assigned() && v.Holds == v.Generation }

// View returns the group as the worker sees it at now, after the decision d.
func (g Group) View(id WorkerID, now time.Time, d Decision) View {
	v := View{Now: now, Generation: g.Generation, Total: g.Total, StepAt: d.StepAt}
	for _, m := range g.Members {
		if m.ID == id && m.Vacant { // the worker has left, and must not come back to it
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

// FormatPartitions returns partitions as "3", "0-3,7", or "-" for none.
func FormatPartitions(partitions []int) string {
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

// String returns the group in one line: generation 3 active {a:0/2 b:1/2 c:-},
// with * on members that still hold an older generation, and the orders in effect.
func (g Group) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "generation %d %s {", g.Generation, g.Phase)
	for i, m := range g.Members {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s:%s", m.ID, FormatPartitions(m.Partitions))
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

// String returns the decision in one line, empty for one that changed nothing.
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
