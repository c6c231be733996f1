package sim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A kin is the part of a projection's row about its versions: which one is live, if not
// itself, and whether it was retired. A change of it requires the lock of the projection's
// row.
type kin struct {
	follows string
	retired bool
	ordered bool // an order named it, and no worker has joined with it
}

// kinOf returns the kin that a transaction sees.
func (p *projectionRow) kinOf(t *transaction) kin {
	if v := p.kin.as(t); v != nil {
		return *v
	}
	return kin{}
}

// setKin writes the kin, and with it another version of the projection's row.
func (p *projectionRow) setKin(t *transaction, k kin) {
	set := *p.as(t)
	p.put(t, &set)
	t.try(&p.kin.lock, false)
	p.kin.put(t, &k)
}

// follow is Store.follow.
func (s *coordination) follow(name, live string, then func()) {
	t, l := s.transaction, s.m.projection(live)
	refuse := func(why string) {
		t.refused(&store.FollowError{Projection: name, Live: live, Why: why})
	}
	if l.as(t) == nil {
		refuse("it has never run")
		return
	}
	look := func() {
		switch k := l.kinOf(t); {
		case k.retired:
			refuse("it was retired")
		case len(those(t, l.checkpoints, nil)) == 0:
			refuse("it has never run")
		case k.follows != "":
			refuse("it is not live")
		default:
			s.m.projection(name).setKin(t, kin{follows: live})
			then()
		}
	}
	if l.owner == t { // it belongs to the set and is locked
		look()
		return
	}
	t.acquire(&l.lock, true, look)
}

// followed is Store.Followed.
func (c *memoryConnection) followed(projection string, done func(protocol.Followed, error)) {
	if err := c.free("followed"); err != nil {
		done(protocol.Followed{}, err)
		return
	}
	live := c.projection(projection).kinOf(nil).follows
	if live == "" {
		done(protocol.Followed{Live: true}, nil)
		return
	}
	v := c.version(nil, live)
	done(protocol.Followed{Checkpoints: v.Checkpoints, Final: v.Stopped}, nil)
}

// version returns a projection as a transaction sees it.
func (m *memory) version(t *transaction, name string) *store.ProjectionVersion {
	p := m.projection(name)
	set := p.as(t)
	if set == nil {
		return nil
	}
	k := p.kinOf(t)
	v := &store.ProjectionVersion{Name: name, ReplicaSet: *set, Follows: k.follows, Retired: k.retired}
	for _, o := range m.projections {
		if k := o.kinOf(t); o.as(t) != nil && k.follows == name {
			v.Followed, v.Replaced = v.Followed || !k.retired, v.Replaced || k.retired
		}
	}
	for _, r := range those(t, p.checkpoints, nil) {
		v.Checkpoints = append(v.Checkpoints, r.as(t).Checkpoint)
	}
	s := m.replicaSet(*set)
	g := s.as(t)
	if g == nil {
		return v
	}
	paused := func(names []string) bool {
		return slices.Contains(names, name) || slices.Contains(names, protocol.All)
	}
	v.Paused, v.Held = paused(g.Paused), g.Held(name)
	v.Rewinding = slices.ContainsFunc(g.Rewinds, func(r protocol.Rewind) bool { return r.Projection == name })
	v.Stopped = v.Paused
	for _, r := range those(t, s.workers, nil) {
		w := r.as(t)
		if w.Holds != 0 && !(w.Holds == w.generation && paused(w.paused)) {
			v.Stopped = false
		}
		if !w.Vacant && slices.Contains(w.projections, name) {
			v.Workers = append(v.Workers, string(w.ID))
		}
	}
	return v
}

// versions is store.Versions.
func (c *memoryConnection) versions(names []string, done func(map[string]*store.ProjectionVersion, error)) {
	if err := c.free("versions"); err != nil {
		done(nil, err)
		return
	}
	all := map[string]*store.ProjectionVersion{}
	for _, name := range names {
		if v := c.version(nil, name); v != nil {
			all[name] = v
		}
	}
	done(all, nil)
}

// lockVersions is Store.lockVersions: sets, projections, checkpoints. then hears which sets
// were locked.
func (t *transaction) lockVersions(names []string, then func(sets map[string]*replicaSet)) {
	m, sets := t.m, map[string]*replicaSet{}
	for _, name := range names {
		if set := m.projection(name).as(t); set != nil && m.replicaSet(*set).as(t) != nil {
			sets[*set] = m.replicaSet(*set)
		}
	}
	var groups []*row[groupRow]
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		groups = append(groups, &sets[name].row)
	}
	var rows []*row[string]
	var checkpoints []*row[checkpointRow]
	acquireAll(t, groups, false, func() {
		for _, name := range slices.Sorted(slices.Values(names)) {
			if p := m.projection(name); p.as(t) != nil {
				rows = append(rows, &p.row)
			}
		}
		acquireAll(t, rows, false, func() {
			for _, name := range slices.Sorted(slices.Values(names)) {
				checkpoints = append(checkpoints, those(t, m.projection(name).checkpoints, nil)...)
			}
			acquireAll(t, checkpoints, false, func() { then(sets) })
		})
	})
}

// promote is Store.Promote. With hold, COMMIT is a call of its own.
func (c *memoryConnection) promote(projection, live string, hold bool, done func(int, error)) {
	if err := c.free("promote"); err != nil {
		done(0, err)
		return
	}
	t := c.enter()
	t.idleMax, t.lockMax = c.bounds.Idle, c.bounds.Lock
	t.refused = func(err error) {
		t.end(false)
		done(0, err)
	}
	t.lockVersions([]string{projection, live}, func(sets map[string]*replicaSet) {
		next, old := c.version(t, projection), c.version(t, live)
		switch {
		case next == nil || old == nil || next.Follows != live || old.Follows != "":
			t.refused(fmt.Errorf("%w: %s does not follow %s any more", store.ErrRejected, projection, live))
			return
		case sets[old.ReplicaSet] == nil || sets[next.ReplicaSet] == nil:
			t.refused(&store.NotYetError{Why: "another replica set has taken one of them over"})
			return
		}
		if err := c.rules.ready(next, old); err != nil {
			t.refused(err)
			return
		}
		parked := c.parkedOf(t, live)
		for position := range c.parkedOf(t, projection) {
			if !parked[position] {
				t.refused(fmt.Errorf("%w: event %d is parked", store.ErrRejected, position))
				return
			}
		}
		t.stayPaused(sets[old.ReplicaSet], live, true)
		c.swap(t, projection, live, func() {
			for _, r := range those(t, c.projection(live).checkpoints, nil) {
				v := *r.as(t)
				if v.generation = -max(v.generation, -v.generation); !c.rules.switchUnfenced {
					r.put(t, &v)
				}
			}
			if hold {
				t.idle()
			} else {
				t.end(true)
			}
			done(len(parked), nil)
		})
	})
}

// swap makes all versions follow the new live one.
func (c *memoryConnection) swap(t *transaction, projection, live string, then func()) {
	var kinship []*projectionRow
	var rows []*row[string]
	for _, p := range c.memory.projections {
		if p.as(t) != nil && (p.name == projection || p.name == live || p.kinOf(t).follows == live) {
			kinship, rows = append(kinship, p), append(rows, &p.row)
		}
	}
	acquireAll(t, rows, false, func() {
		for _, p := range kinship {
			k := p.kinOf(t)
			if k.follows = projection; p.name == projection {
				k.follows = ""
			}
			p.setKin(t, k)
		}
		then()
	})
}

// parkedOf returns the positions that a projection has parked.
func (m *memory) parkedOf(t *transaction, projection string) map[int64]bool {
	all := map[int64]bool{}
	for _, r := range m.projection(projection).parked {
		if r.as(t) != nil {
			all[r.position] = true
		}
	}
	return all
}

// stayPaused is Store.stayPaused, for a set that is locked.
func (t *transaction) stayPaused(s *replicaSet, projection string, paused bool) {
	g := *s.as(t)
	g.Paused = slices.DeleteFunc(slices.Clone(g.Paused), func(name string) bool { return name == projection })
	if paused {
		g.Paused = append(g.Paused, projection)
		slices.Sort(g.Paused)
	}
	if len(g.Paused) == 0 {
		g.Paused = nil
	}
	if g.Holds = slices.DeleteFunc(slices.Clone(g.Holds), func(h protocol.Hold) bool { return h.Projection == projection }); len(g.Holds) == 0 {
		g.Holds = nil
	}
	if g.Rewinds = slices.DeleteFunc(slices.Clone(g.Rewinds), func(r protocol.Rewind) bool { return r.Projection == projection }); len(g.Rewinds) == 0 {
		g.Rewinds = nil
	}
	s.put(t, &g)
}

// retire is Store.Retire.
func (c *memoryConnection) retire(projection string, done func(error)) {
	if err := c.free("retire"); err != nil {
		done(err)
		return
	}
	t := c.enter()
	t.idleMax, t.lockMax = c.bounds.Idle, c.bounds.Lock
	t.refused = func(err error) {
		t.end(false)
		done(err)
	}
	t.lockVersions([]string{projection}, func(sets map[string]*replicaSet) {
		switch v := c.version(t, projection); {
		case v == nil || v.Followed || len(v.Workers) > 0:
			t.refused(fmt.Errorf("%w: %s is not to be retired", store.ErrRejected, projection))
			return
		case v.Retired:
		default:
			p := c.projection(projection)
			if s := sets[v.ReplicaSet]; s != nil {
				t.stayPaused(s, projection, false)
			}
			p.dropParkedAbove(t, -1)
			for _, r := range those(t, p.checkpoints, nil) {
				r.put(t, nil)
			}
			p.setKin(t, kin{follows: v.Follows, retired: true})
		}
		t.end(true)
		done(nil)
	})
}
