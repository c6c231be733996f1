package sim

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A replicaSet is the set's row, and its workers in the order in which they joined.
type replicaSet struct {
	row[groupRow]
	name    string
	workers []*row[memberRow]
}

type groupRow struct {
	protocol.Group // without members and floor
	stepAt         time.Time
}

type memberRow struct {
	protocol.Member
	generation  int64
	total       int
	paused      []string
	projections []string
}

// A projectionRow is the row of a projection, which names its set, with its checkpoints by
// partition.
type projectionRow struct {
	row[string]
	name        string
	kin         row[kin]
	checkpoints []*row[checkpointRow]
	parked      []*parkedRow // by position
	orders      []*orderRow  // to park an event, by number
}

type checkpointRow struct {
	protocol.Checkpoint
	set        string
	generation int64
	total      int
}

// replicaSet returns the named set, whether it has a row or not.
func (m *memory) replicaSet(name string) *replicaSet {
	set := m.sets[name]
	if set == nil {
		set = &replicaSet{name: name}
		m.sets[name] = set
	}
	return set
}

// reads returns the stream that a set reads; "": none yet.
func (m *memory) reads(name string) string {
	if g := m.replicaSet(name).committed; g != nil {
		return g.Stream
	}
	return ""
}

// projection returns the named projection, whether it has a row or not.
func (m *memory) projection(name string) *projectionRow {
	i, ok := slices.BinarySearchFunc(m.projections, name, func(p *projectionRow, name string) int { return cmp.Compare(p.name, name) })
	if !ok {
		m.projections = slices.Insert(m.projections, i, &projectionRow{name: name})
	}
	return m.projections[i]
}

// those returns the wanted rows that a transaction sees; wanted nil: all.
func those[T any](t *transaction, rows []*row[T], wanted func(*T) bool) []*row[T] {
	out := make([]*row[T], 0, len(rows))
	for _, r := range rows {
		if v := r.as(t); v != nil && (wanted == nil || wanted(v)) {
			out = append(out, r)
		}
	}
	return out
}

// sync is Store.Sync.
func (c *memoryConnection) sync(r protocol.Request, projections []string, starts starter, foreseen any, hold bool, done func(store.Result, error)) {
	if err := c.free("sync"); err != nil {
		done(store.Result{}, err)
		return
	}
	set := c.replicaSet(c.set)
	begin := func() *transaction {
		t := c.enter()
		t.refused = func(err error) {
			t.end(false)
			done(store.Result{}, err)
		}
		return t
	}
	heartbeat := func() {
		t := begin()
		t.heartbeat(set, r, func(v protocol.View) {
			t.end(true)
			result := store.Result{View: v}
			if r.Load {
				result.Checkpoints = c.shown(set, v)
			}
			done(result, nil)
		})
	}
	transact := func() {
		if r.Yield && set.lock.owner != nil {
			heartbeat()
		} else {
			c.coordinate(begin(), set, r, projections, starts, hold, done)
		}
	}
	read, _ := foreseen.(*groupReading)
	switch {
	case r.Heartbeat:
		heartbeat()
	case hold:
		transact()
	default:
		q := &asking{memoryConnection: c, foreseen: read, set: set, request: r, projections: projections, begin: begin, transact: transact, done: done}
		q.attempt(3)
	}
}

// coordinate carries out a request in a transaction.
func (c *memoryConnection) coordinate(t *transaction, set *replicaSet, r protocol.Request, projections []string, starts starter, hold bool, done func(store.Result, error)) {
	t.idleMax, t.lockMax = c.bounds.Idle, c.bounds.Lock
	s := &coordination{transaction: t, set: set, request: r, projections: projections, starts: starts}
	s.done = func() {
		if hold {
			t.idle()
		} else {
			t.end(true)
		}
		done(s.result, nil)
	}
	s.lockGroup()
}

// heartbeat is one statement. A look is one too, and waits for nothing. What it shows of
// others is from the statement's snapshot; its own row and the time are from when it has
// locked that row.
func (t *transaction) heartbeat(set *replicaSet, r protocol.Request, done func(protocol.View)) {
	group, others := set.committed, make([]*memberRow, 0, len(set.workers))
	var own *row[memberRow]
	for _, w := range set.workers {
		switch v := w.committed; {
		case v == nil || v.ID == r.Worker && v.Vacant:
		case v.ID == r.Worker:
			own = w
		default:
			others = append(others, v)
		}
	}
	var seen protocol.Others
	if r.Others {
		seen = t.m.others(set, r.Worker)
	}
	beat := func() {
		now := t.m.now()
		v := protocol.View{Now: now, Others: seen}
		if own != nil && own.as(t) != nil && !own.as(t).Vacant {
			w := *own.as(t)
			if !r.ReadOnly {
				renew(&w, r, now)
				own.put(t, &w)
			}
			v.Member, v.Generation, v.Total, v.Partitions, v.Paused, v.Holds = true, w.generation, w.total, w.Partitions, w.paused, w.Holds
		}
		held := v.Holds != 0
		if group != nil {
			v.StepAt = group.stepAt
		}
		for _, w := range others {
			held = held || w.Holds != 0 && !w.Vacant
			at := w.LeaseEnd
			if at.After(now.Add(w.Lease)) {
				at = now
			}
			if v.StepAt.IsZero() || at.Before(v.StepAt) {
				v.StepAt = at
			}
		}
		if group != nil && group.Phase == protocol.Draining && !held {
			v.StepAt = now
		}
		done(v)
	}
	if own == nil || r.ReadOnly {
		beat()
	} else {
		t.acquire(&own.lock, false, beat)
	}
}

// renew does what a heartbeat does to its worker's row.
func renew(w *memberRow, r protocol.Request, now time.Time) {
	w.Lease = r.Lease.Truncate(time.Microsecond)
	w.LeaseEnd = now.Add(w.Lease)
	if w.Holds <= r.Stopped {
		w.Holds = 0
	}
	if r.Presence.Number > w.Presence.Number {
		w.Presence = r.Presence
	}
}

// A coordination is the transaction of Store.step. Each method is one of its statements, or
// a few that can't wait.
type coordination struct {
	*transaction
	set         *replicaSet
	request     protocol.Request
	projections []string
	starts      starter

	members []*row[memberRow]
	now     time.Time
	floor   int64
	took    []string // projections that it took from other sets
	result  store.Result
	done    func()
}

func (s *coordination) lockGroup() {
	t := s.transaction
	if s.set.as(t) == nil && !s.request.Join {
		s.lockMembers() // no worker has ever joined
		return
	}
	t.acquire(&s.set.lock, false, func() {
		if s.set.as(t) == nil {
			s.set.put(t, &groupRow{Group: protocol.Group{Phase: protocol.Active}})
		}
		s.lockMembers()
	})
}

func (s *coordination) lockMembers() {
	s.members = those(s.transaction, s.set.workers, nil)
	acquireAll(s.transaction, s.members, false, func() {
		s.now, s.floor = s.m.now(), s.readFloor()
		if s.request.Join {
			s.register(slices.Compact(slices.Sorted(slices.Values(s.projections))), 0)
		} else {
			s.step()
		}
	})
}

// register inserts the missing rows of projections, from names[i] on. It waits for a
// transaction that inserts the same row; but a row that this one has committed is not
// locked here.
func (s *coordination) register(names []string, i int) {
	t := s.transaction
	for ; i < len(names); i++ {
		p := s.m.projection(names[i])
		if p.as(t) != nil {
			continue
		}
		if !t.try(&p.lock, false) {
			t.await(&p.lock, false, func() {
				if p.as(t) != nil {
					t.yield(&p.lock)
				}
				s.register(names, i)
			})
			return
		}
		p.put(t, &s.set.name)
	}
	s.claim(names)
}

// claim locks the projections.
func (s *coordination) claim(names []string) {
	var rows []*row[string]
	for _, name := range names {
		rows = append(rows, &s.m.projection(name).row)
	}
	acquireAll(s.transaction, rows, false, func() {
		var foreign []*projectionRow
		for _, name := range names {
			if s.m.projection(name).kinOf(s.transaction).retired {
				s.refused(&store.RetiredError{Projection: name})
				return
			}
			if p := s.m.projection(name); *p.as(s.transaction) != s.set.name {
				foreign = append(foreign, p)
			}
		}
		if len(foreign) == 0 {
			s.step()
		} else {
			s.checkTaken(foreign)
		}
	})
}

// checkTaken locks the workers of other sets that run the projections, those with the
// longest leases first.
func (s *coordination) checkTaken(foreign []*projectionRow) {
	type runner struct {
		*row[memberRow]
		projection *projectionRow
	}
	t := s.transaction
	var runners []runner
	for _, p := range foreign {
		runs := func(w *memberRow) bool { return !w.Vacant && slices.Contains(w.projections, p.name) }
		for _, w := range those(t, s.m.replicaSet(*p.as(t)).workers, runs) {
			runners = append(runners, runner{w, p})
		}
	}
	slices.SortFunc(runners, func(a, b runner) int {
		v, w := a.as(t), b.as(t)
		return cmp.Or(w.LeaseEnd.Compare(v.LeaseEnd), cmp.Compare(a.projection.name, b.projection.name), cmp.Compare(v.ID, w.ID))
	})
	var rows []*row[memberRow]
	for _, r := range runners {
		rows = append(rows, r.row)
	}
	acquireAll(t, rows, false, func() {
		for _, r := range runners {
			w := r.as(t)
			if w == nil {
				continue
			}
			m := w.Member
			m.Presence = protocol.Presence{} // the request knows nothing of workers of another set
			if !m.Expired(s.now, s.request.Watch) && !s.m.rules.takesAny {
				t.refused(&store.TakenError{
					Projection: r.projection.name, ReplicaSet: *r.projection.as(t), Worker: w.ID,
					Now: s.now, Over: !s.now.Before(w.LeaseEnd),
				})
				return
			}
		}
		s.takeOver(foreign)
	})
}

func (s *coordination) takeOver(foreign []*projectionRow) {
	t := s.transaction
	var rows []*row[checkpointRow]
	for _, p := range foreign {
		s.took = append(s.took, p.name)
		p.put(t, &s.set.name)
		rows = append(rows, those(t, p.checkpoints, nil)...)
	}
	acquireAll(t, rows, false, func() {
		for _, r := range those(t, rows, nil) {
			c := *r.as(t)
			c.set, c.generation = s.set.name, -max(c.generation, -c.generation)
			r.put(t, &c)
		}
		s.floor = s.readFloor()
		s.step()
	})
}

// ours reports whether a checkpoint belongs to the set.
func (s *coordination) ours(c *checkpointRow) bool { return c.set == s.set.name }

func (s *coordination) readFloor() (floor int64) {
	for _, p := range s.m.projections {
		for _, r := range p.checkpoints {
			if c := r.as(s.transaction); c != nil && s.ours(c) {
				floor = max(floor, c.generation, -c.generation)
			}
		}
	}
	return floor
}

// uncovered is protocol.Group.Uncovered.
func (s *coordination) uncovered(generation int64) bool {
	t := s.transaction
	for _, p := range s.m.projections {
		if set := p.as(t); set != nil && *set == s.set.name && !p.kinOf(t).retired &&
			!slices.ContainsFunc(p.checkpoints, func(r *row[checkpointRow]) bool {
				c := r.as(t)
				return c != nil && s.ours(c) && c.generation == generation
			}) {
			return true
		}
	}
	return false
}

func (s *coordination) step() {
	t := s.transaction
	var before protocol.Group
	if g := s.set.as(t); g != nil {
		before = g.Group
	}
	before.Members = make([]protocol.Member, 0, len(s.members)+1)
	for _, w := range s.members {
		before.Members = append(before.Members, w.as(t).Member)
	}
	before.Floor, before.Uncovered = s.floor, s.uncovered(before.Generation)
	if len(s.took) > 0 {
		before = before.Take(s.took)
	}
	if before.Refuses(s.request) && !s.m.rules.anyStream {
		t.refused(&store.StreamError{ReplicaSet: s.set.name, Stream: before.Stream, Other: s.request.Stream})
		return
	}
	o := s.request.Order
	if o != nil {
		if err := s.check(*o, before); err != nil {
			t.refused(fmt.Errorf("%w: %w", store.ErrRejected, err))
			return
		}
	}
	switch {
	case s.request.Join:
		s.begin(func() { s.decide(before) })
	case o != nil && o.Kind == protocol.OrderRewind && s.m.projection(o.Projection).as(t) == nil:
		s.ordered(*o, func() { s.decide(before) })
	default:
		s.decide(before)
	}
}

// begin writes the first checkpoints of projections that have none: see store.Starts.
func (s *coordination) begin(then func()) {
	t := s.transaction
	var fresh []string
	for _, name := range slices.Compact(slices.Sorted(slices.Values(s.projections))) {
		rows := those(t, s.m.projection(name).checkpoints, nil)
		if len(rows) == 0 || s.m.rules.startsAgain && rows[0].as(t).generation == 0 && t.try(&rows[0].lock, false) {
			fresh = append(fresh, name)
		}
	}
	ordered := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(s.projections))), func(name string) bool {
		return !s.m.projection(name).kinOf(t).ordered
	})
	for _, name := range ordered {
		s.m.projection(name).setKin(t, kin{})
	}
	write := func(positions map[string]int64) {
		s.follows(append(ordered, fresh...), func() {
			for _, name := range fresh {
				s.writeFirst(name, positions[name])
			}
			then()
		})
	}
	if len(fresh) == 0 || s.starts == nil {
		write(nil)
		return
	}
	t.idle()
	s.starts(fresh, func(positions map[string]int64, err error) {
		switch {
		case t.ended:
		case err != nil:
			t.refused(&store.StartError{Projections: fresh, Err: err})
		default:
			t.stop()
			write(positions)
		}
	})
}

// follows makes rebuilds follow the live versions, one after the other.
func (s *coordination) follows(fresh []string, then func()) {
	for i, name := range fresh {
		if live := s.m.rebuilds[name]; live != "" {
			s.follow(name, live, func() { s.follows(fresh[i+1:], then) })
			return
		}
	}
	then()
}

func (s *coordination) writeFirst(name string, position int64) {
	t, p := s.transaction, s.m.projection(name)
	v := &checkpointRow{protocol.Checkpoint{Position: position}, s.set.name, 0, 1}
	if len(p.checkpoints) > 0 && p.checkpoints[0].as(t) != nil {
		p.checkpoints[0].put(t, v)
		return
	}
	p.checkpoints = append([]*row[checkpointRow]{insert(t, v)}, p.checkpoints[min(1, len(p.checkpoints)):]...)
}

// ordered makes a projection that no worker has joined with the set's own, with a
// checkpoint.
func (s *coordination) ordered(o protocol.Order, then func()) {
	t, p := s.transaction, s.m.projection(o.Projection)
	t.acquire(&p.lock, false, func() {
		switch set := p.as(t); {
		case set == nil:
			p.put(t, &s.set.name)
		case *set != s.set.name:
			t.refused(store.ErrRejected)
			return
		}
		if len(those(t, p.checkpoints, nil)) == 0 {
			p.setKin(t, kin{ordered: true})
			s.writeFirst(p.name, o.Position)
		}
		then()
	})
}

// decide has the protocol decide, and saves the decision.
func (s *coordination) decide(before protocol.Group) {
	group, decision := s.m.rules.step(protocol.Apply(before, s.request, s.now), s.now, s.request.Watch)

	s.result = store.Result{View: group.View(s.request.Worker, s.now, decision), Group: group, Decision: decision}
	s.saveGroup(group, decision)
	s.saveMembers(group)
	if decision.Activated {
		s.handOver(group, decision.Rewinds)
	} else {
		s.done()
	}
}

// check returns what keeps the set from carrying out an order.
func (s *coordination) check(o protocol.Order, g protocol.Group) error {
	if g.Generation == 0 {
		return fmt.Errorf("no worker of %s has ever run", s.set.name)
	}
	if o.Projection != protocol.All {
		of := s.m.projection(o.Projection).as(s.transaction)
		if of != nil && *of != s.set.name || of == nil && o.Kind == protocol.OrderResume && !slices.Contains(g.Paused, o.Projection) {
			return fmt.Errorf("projection %s is not of %s", o.Projection, s.set.name)
		}
	}
	return o.Check(g)
}

func (s *coordination) saveGroup(g protocol.Group, d protocol.Decision) {
	if s.set.as(s.transaction) == nil {
		return
	}
	g.Members, g.Floor, g.Uncovered = nil, 0, false
	g.JoinWindow = g.JoinWindow.Truncate(time.Microsecond)
	is := &groupRow{g, d.StepAt.Round(time.Microsecond)}
	if was := s.set.as(s.transaction); s.request.Join || !reflect.DeepEqual(was, is) { // transactions that have read it must notice a join
		s.set.put(s.transaction, is)
	}
}

// saveMembers writes the members that differ from before. Only the caller can be new, so a
// new row gets its projections.
func (s *coordination) saveMembers(g protocol.Group) {
	t, old, index := s.transaction, make([]bool, len(g.Members)), make(map[protocol.WorkerID]int, len(g.Members))
	for i, m := range g.Members {
		index[m.ID] = i
	}
	for _, r := range s.members {
		was := r.as(t)
		i, found := index[was.ID]
		if !found {
			r.put(t, nil)
			continue
		}
		old[i] = true
		paused := g.Paused // of the generation
		if was.generation == g.Generation {
			paused = was.paused
		}
		is := &memberRow{stored(g.Members[i]), g.Generation, g.Total, paused, was.projections}
		is.Joined, is.Wants = was.Joined, was.Wants
		if is.Lease != was.Lease || !is.LeaseEnd.Equal(was.LeaseEnd) || !slices.Equal(is.Partitions, was.Partitions) || is.Holds != was.Holds || is.Presence != was.Presence ||
			is.Drained != was.Drained || is.Vacant != was.Vacant || !slices.Equal(is.paused, was.paused) || is.generation != was.generation || is.total != was.total {
			r.put(t, is)
		}
	}
	for i, m := range g.Members {
		if !old[i] {
			gone := func(r *row[memberRow]) bool { return r.committed == nil && r.by == nil }
			s.set.workers = append(slices.DeleteFunc(s.set.workers, gone),
				insert(t, &memberRow{stored(m), g.Generation, g.Total, g.Paused, slices.Clone(s.projections)}))
		}
	}
}

// stored returns a member as a row has it.
func stored(m protocol.Member) protocol.Member {
	m.Joined, m.LeaseEnd = m.Joined.Round(time.Microsecond), m.LeaseEnd.Round(time.Microsecond)
	m.Lease = m.Lease.Truncate(time.Microsecond)
	return m
}

// insert adds a row.
func insert[T any](t *transaction, v *T) *row[T] {
	r := &row[T]{}
	t.take(&r.lock, false)
	r.put(t, v)
	return r
}

// handOver is Store.handOver: it takes shared locks on the set's projections, and then
// locks their checkpoints.
func (s *coordination) handOver(g protocol.Group, rewinds []protocol.Rewind) {
	t := s.transaction
	own := func() (own []*projectionRow) {
		for _, p := range s.m.projections {
			if set := p.as(t); set != nil && *set == s.set.name && !p.kinOf(t).retired {
				own = append(own, p)
			}
		}
		return own
	}
	var rows []*row[string]
	for _, p := range own() {
		rows = append(rows, &p.row)
	}
	acquireAll(t, rows, true, func() { s.lockCheckpoints(g, rewinds, own()) })
}

func (s *coordination) lockCheckpoints(g protocol.Group, rewinds []protocol.Rewind, own []*projectionRow) {
	t := s.transaction
	var rows []*row[checkpointRow]
	for _, p := range own {
		rows = append(rows, those(t, p.checkpoints, s.ours)...)
	}
	acquireAll(t, rows, false, func() {
		for _, p := range own {
			if err := s.rewrite(p, g, rewinds); err != nil {
				t.refused(err)
				return
			}
		}
		s.done()
	})
}

// rewrite hands over the checkpoints of one projection.
func (s *coordination) rewrite(p *projectionRow, g protocol.Group, rewinds []protocol.Rewind) error {
	t := s.transaction
	rows := those(t, p.checkpoints, s.ours)
	old, total := make([]protocol.Checkpoint, len(rows)), 0
	for k, r := range rows {
		if p.checkpoints[k] != r {
			return missing(p.name, k)
		}
		old[k], total = r.as(t).Checkpoint, r.as(t).total
	}
	if len(rows) != total {
		return missing(p.name, len(rows))
	}
	for _, r := range rows[min(g.Total, total):] {
		r.put(t, nil)
	}
	for _, r := range rewinds {
		if r.Projection == p.name {
			p.dropParkedAbove(t, r.Position)
		}
	}
	for k, c := range s.m.rules.handoff(protocol.Rewound(p.name, old, rewinds), g.Total) {
		v := &checkpointRow{c, s.set.name, g.Generation, g.Total}
		switch {
		case k < total:
			rows[k].put(t, v)
		case k < len(p.checkpoints):
			p.checkpoints[k] = insert(t, v) // there was one before
		default:
			p.checkpoints = append(p.checkpoints, insert(t, v))
		}
	}
	return nil
}

func missing(projection string, partition int) error {
	return fmt.Errorf("checkpoints of projection %s lack partition %d: rows were deleted by hand", projection, partition)
}
