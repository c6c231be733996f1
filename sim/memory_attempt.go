package sim

import (
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// An attempt is a request that was decided on what one statement has read, and that another
// statement carries out if none of it has changed: see store.attempt. The version of a row
// is the pointer to it.
type attempt struct {
	coordination
	group    protocol.Group
	decision protocol.Decision
	spared   bool         // there is nothing to carry out
	yielded  store.Result // the answer to a request that yields, if another one has locked the set

	groupReading
}

// A groupReading is a set as one statement has seen it.
type groupReading struct {
	at          time.Time // by the database's clock
	version     *groupRow
	workers     []*memberRow
	own         []string  // projections
	begun       []string  // of these, those that have a checkpoint
	owners      []*string // the rows of the projections, which name their sets
	checkpoints []*checkpointRow
	floor       int64
	uncovered   bool      // protocol.Group.Uncovered
	sent        time.Time // when Foresee was called, by its worker's clock
}

// readGroup reads a set; nil: it has no row.
func (c *memoryConnection) readGroup(set *replicaSet) *groupReading {
	if set.committed == nil {
		return nil
	}
	r := &groupReading{at: c.now(), version: set.committed, workers: versionsOf(set.workers)}
	for _, p := range c.memory.projections {
		if p.committed == nil || *p.committed != set.name {
			continue
		}
		r.owners = append(r.owners, p.committed)
		k := p.kinOf(nil)
		if k.retired {
			continue
		}
		r.own = append(r.own, p.name)
		if len(versionsOf(p.checkpoints)) > 0 && !k.ordered && (k.follows != "" || c.rebuilds[p.name] == "") {
			r.begun = append(r.begun, p.name)
		}
		covered := false
		for _, v := range versionsOf(p.checkpoints) {
			if v.set == set.name {
				r.checkpoints = append(r.checkpoints, v)
				r.floor = max(r.floor, v.generation, -v.generation)
				covered = covered || v.generation == r.version.Generation
			}
		}
		r.uncovered = r.uncovered || !covered
	}
	return r
}

// foresee is Store.Foresee.
func (c *memoryConnection) foresee(_ protocol.WorkerID, now time.Time, done func(any, error)) {
	err := c.free("foresee")
	read := c.readGroup(c.replicaSet(c.set))
	if err != nil || read == nil {
		done(nil, err)
		return
	}
	read.sent = now
	done(read, nil)
}

// decide decides a request; nil: only a transaction can.
func (c *memoryConnection) decide(set *replicaSet, r protocol.Request, projections []string, read *groupReading) *attempt {
	if r.Order != nil {
		return nil
	}
	if read == nil {
		read = c.readGroup(set)
	}
	if read == nil {
		return nil
	}
	a := &attempt{groupReading: *read}
	a.set, a.request, a.projections, a.now = set, r, projections, read.at
	g := read.version
	before, others := g.Group, false
	before.Floor, before.Uncovered = read.floor, read.uncovered
	for _, w := range read.workers {
		before.Members = append(before.Members, w.Member)
		others = others || w.Holds != 0 && !w.Vacant && w.ID != r.Worker
	}
	if before.Refuses(r) || r.Join && slices.ContainsFunc(projections, func(p string) bool { return !slices.Contains(read.begun, p) }) {
		return nil
	}
	applied := protocol.Apply(before, r, a.now)
	a.group, a.decision = c.rules.step(applied, a.now, r.Watch)
	if a.decision.Activated && others || len(a.decision.Rewinds) > 0 {
		return nil
	}
	a.result = store.Result{View: a.group.View(r.Worker, a.now, a.decision), Group: a.group, Decision: a.decision, Since: read.sent}
	a.spared = before.Spares(r, a.group) && g.stepAt.Equal(a.decision.StepAt.Round(time.Microsecond))
	a.result.View.ReadOnly = a.spared && !r.Report
	a.yielded = store.Result{View: applied.View(r.Worker, a.now, protocol.Decision{StepAt: a.now})}
	a.yielded.View.ReadOnly, a.yielded.View.Busy = !r.Report, true
	return a
}

func versionsOf[T any](rows []*row[T]) (versions []*T) {
	for _, r := range rows {
		if r.committed != nil {
			versions = append(versions, r.committed)
		}
	}
	return versions
}

// carry carries out the decision in one statement, and reports whether it has.
func (a *attempt) carry(t *transaction, ended func(carried bool)) {
	a.transaction = t
	a.done = func() { ended(true) }
	same := func(is bool) bool {
		if !is && !t.m.rules.blindAttempt {
			ended(false)
			return false
		}
		return true
	}
	if a.request.Yields() && a.set.lock.owner != nil {
		a.result = a.yielded
		ended(true)
		return
	}
	// These are the rows that the statement sees when it begins.
	members := those(t, a.set.workers, nil)
	var projections []*row[string]
	var checkpoints []*row[checkpointRow]
	for _, p := range t.m.projections {
		if set := p.as(t); set != nil && *set == a.set.name {
			projections = append(projections, &p.row)
			checkpoints = append(checkpoints, those(t, p.checkpoints, a.ours)...)
		}
	}
	t.acquire(&a.set.lock, false, func() {
		if !same(a.set.as(t) == a.version) {
			return
		}
		acquireAll(t, members, false, func() {
			if !same(slices.Equal(versionsOf(members), a.workers)) {
				return
			}
			if !a.decision.Activated && !a.request.Join {
				a.save(members)
				return
			}
			acquireAll(t, projections, true, func() {
				if !same(slices.Equal(versionsOf(projections), a.owners)) {
					return
				}
				if !a.decision.Activated {
					a.save(members)
					return
				}
				acquireAll(t, checkpoints, false, func() {
					if same(slices.Equal(versionsOf(checkpoints), a.checkpoints)) {
						a.save(members)
					}
				})
			})
		})
	})
}

func (a *attempt) save(members []*row[memberRow]) {
	a.members = slices.DeleteFunc(members, func(r *row[memberRow]) bool { return r.as(a.transaction) == nil })
	a.saveGroup(a.group, a.decision)
	a.saveMembers(a.group)
	if a.decision.Activated {
		a.handOver(a.group, nil)
	} else {
		a.done()
	}
}

// asking is a request during its attempts.
type asking struct {
	*memoryConnection
	set         *replicaSet
	request     protocol.Request
	projections []string
	begin       func() *transaction
	transact    func()
	done        func(store.Result, error)

	foreseen *groupReading
	reported bool
}

// attempt has a request decided, and carried out if nothing changes meanwhile, up to so
// many times. Then a transaction does it.
func (q *asking) attempt(times int) {
	if times == 0 {
		q.transact()
		return
	}
	then := func() {
		switch a := q.decide(q.set, q.request, q.projections, q.foreseen); {
		case a == nil:
			q.transact()
		case a.spared:
			q.done(a.result, nil)
		default:
			q.next(func() { q.carry(a, times) })
		}
	}
	if q.request.Report && !q.reported {
		q.report(then)
	} else {
		then()
	}
}

// report saves a report. It is committed before anything is read.
func (q *asking) report(then func()) {
	q.reported = true
	t := q.begin()
	t.heartbeat(q.set, q.request, func(protocol.View) {
		t.end(true)
		q.next(then)
	})
}

func (q *asking) carry(a *attempt, times int) {
	t := q.begin()
	t.lockMax = q.bounds.Lock
	a.carry(t, func(carried bool) {
		t.end(carried)
		if carried {
			q.done(a.result, nil)
		} else {
			q.foreseen = nil
			q.next(func() { q.attempt(times - 1) })
		}
	})
}

// next calls what when the next statement arrives, unless the connection is closed.
func (q *asking) next(what func()) {
	q.then(func() {
		if err := q.free("sync"); err != nil {
			q.done(store.Result{}, err)
			return
		}
		what()
	})
}

// then calls next when the next statement arrives.
func (c *memoryConnection) then(next func()) {
	if c.rules.between == nil {
		next()
	} else {
		c.memory.clock.after(c.rules.between(), next)
	}
}

// between returns how long it takes from the answer to one statement until the next one
// arrives.
func (w *world) between() time.Duration {
	round := 2 * w.plan.network.latency
	if chance(w.rand, 100) {
		return between(w.rand, round, 20*round)
	}
	return round
}
