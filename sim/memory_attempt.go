package sim

import (
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// An attempt is a request that was decided on what one statement has read, and is carried
// out by another one if nothing of that has changed: see store.attempt. A version of a row
// is which one it was.
type attempt struct {
	coordination
	group    protocol.Group
	decision protocol.Decision

	version     *groupRow
	workers     []*memberRow
	projections []*string
	checkpoints []*checkpointRow
}

// attempt decides on a request; nil: only a transaction does.
func (c *memoryConnection) attempt(set *replicaSet, r protocol.Request, projections []string) *attempt {
	g := set.committed
	if g == nil || r.Order != nil {
		return nil
	}
	a := &attempt{version: g}
	a.set, a.request, a.coordination.projections, a.now = set, r, projections, c.now()
	before, others := g.Group, false
	for _, w := range versionsOf(set.workers) {
		a.workers = append(a.workers, w)
		before.Members = append(before.Members, w.Member)
		others = others || w.Holds != 0 && w.ID != r.Worker
	}
	var own []string
	for _, p := range c.memory.projections {
		if p.committed == nil || *p.committed != set.name {
			continue
		}
		own, a.projections = append(own, p.name), append(a.projections, p.committed)
		for _, v := range versionsOf(p.checkpoints) {
			if v.set == set.name {
				a.checkpoints = append(a.checkpoints, v)
				before.Floor = max(before.Floor, v.generation, -v.generation)
			}
		}
	}
	if before.Refuses(r) || r.Join && slices.ContainsFunc(projections, func(p string) bool { return !slices.Contains(own, p) }) {
		return nil
	}
	a.group, a.decision = c.rules.step(protocol.Apply(before, r, a.now), a.now, r.Watch)
	if a.decision.Activated && others || len(a.decision.Rewinds) > 0 {
		return nil
	}
	a.result = store.Result{View: a.group.View(r.Worker, a.now, a.decision), Group: a.group, Decision: a.decision}
	a.result.View.OnlySeen = before.Spares(r, a.group) && g.stepAt.Equal(a.decision.StepAt.Round(time.Microsecond))
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

// carry carries it out in one statement, and says whether it has.
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
	if a.request.Yield && a.set.lock.owner != nil {
		ended(false)
		return
	}
	// The rows that the statement sees from its beginning.
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
				if !same(slices.Equal(versionsOf(projections), a.projections)) {
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

// attempts has a request decided on, and carried out if nothing changes meanwhile, for so
// many times; then a transaction does it.
func (c *memoryConnection) attempts(set *replicaSet, r protocol.Request, projections []string, n int, begin func() *transaction, transact func(), done func(store.Result, error)) {
	a := c.attempt(set, r, projections)
	switch {
	case a == nil || n == 0:
		transact()
		return
	case a.result.View.OnlySeen:
		done(a.result, nil)
		return
	}
	c.then(func() {
		if err := c.free("sync"); err != nil {
			done(store.Result{}, err)
			return
		}
		t := begin()
		t.lockMax = c.bounds.Lock
		a.carry(t, func(carried bool) {
			t.end(carried)
			if carried {
				done(a.result, nil)
				return
			}
			c.then(func() {
				if err := c.free("sync"); err != nil {
					done(store.Result{}, err)
					return
				}
				c.attempts(set, r, projections, n-1, begin, transact, done)
			})
		})
	})
}

// then does something when the next statement arrives.
func (c *memoryConnection) then(next func()) {
	if c.rules.between == nil {
		next()
	} else {
		c.memory.clock.after(c.rules.between(), next)
	}
}

// between is how long it takes from the answer to one statement until the next one
// arrives.
func (w *world) between() time.Duration {
	round := 2 * w.plan.network.latency
	if chance(w.rand, 100) {
		return between(w.rand, round, 20*round)
	}
	return round
}
