package sim

import (
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// attach is store.Attach: it takes the lock, for which no session waits, and then writes
// the worker's row.
func (c *memoryConnection) attach(a protocol.Attach, done func(int32, protocol.Published, error)) {
	if err := c.free("attach"); err != nil {
		done(0, protocol.Published{}, err)
		return
	}
	c.holds = protocol.Presence{Key: -int32(c.process), Number: a.Number}
	c.present = append(c.present, c)
	if a.Worker == "" {
		done(c.holds.Key, protocol.Published{}, nil)
		return
	}
	t := c.enter()
	t.refused = func(err error) {
		t.end(false)
		done(0, protocol.Published{}, err)
	}
	i := slices.IndexFunc(c.replicaSet(c.set).workers, func(w *row[memberRow]) bool {
		return w.committed != nil && w.committed.ID == a.Worker && !w.committed.Vacant
	})
	if i < 0 {
		t.end(true)
		done(c.holds.Key, protocol.Published{}, nil)
		return
	}
	own := c.replicaSet(c.set).workers[i]
	t.acquire(&own.lock, false, func() {
		var p protocol.Published
		if w := own.as(t); w != nil && !w.Vacant {
			if p.Row = true; w.Holds == w.generation {
				p.Runs = w.Holds
			}
			if w.Presence.Number < a.Number {
				next := *w
				next.Presence = c.holds
				own.put(t, &next)
			}
		}
		t.end(true)
		done(c.holds.Key, p, nil)
	})
}

func (c *memoryConnection) prove() error { return c.free("prove") }

func (c *memoryConnection) glimpse(worker protocol.WorkerID) (protocol.Glimpse, error) {
	var group protocol.Glimpse
	if err := c.free("glimpse"); err != nil {
		return group, err
	}
	set := c.replicaSet(c.set)
	if g := set.committed; g != nil {
		group.Generation = g.Generation
		if !g.stepAt.IsZero() {
			group.StepIn = max(0, g.stepAt.Sub(c.now()))
		}
	}
	for _, r := range set.workers {
		if w := r.committed; w != nil && w.ID == worker {
			group.Holds = w.Holds
		}
	}
	group.Others = c.others(set, worker)
	group.Absent = slices.DeleteFunc(group.Absent, func(a protocol.Absence) bool { return a.Worker == worker })
	return group, nil
}

// others returns the other workers whose liveness locks are missing, and whether there are
// other workers.
func (m *memory) others(set *replicaSet, worker protocol.WorkerID) protocol.Others {
	o := protocol.Others{Alone: true}
	for _, r := range set.workers {
		w := r.committed
		if w == nil {
			continue
		}
		o.Alone = o.Alone && w.ID == worker
		there := slices.Contains(m.faked, w.Presence) || slices.ContainsFunc(m.present, func(c *memoryConnection) bool { return c.holds == w.Presence })
		if w.Presence.Number != 0 && !there {
			o.Absent = append(o.Absent, protocol.Absence{Worker: w.ID, Presence: w.Presence})
		}
	}
	return o
}

// fake makes another program take the locks of all liveness connections, as any role that
// can connect may, and keep them.
func (m *memory) fake() {
	for _, c := range m.present {
		m.faked = append(m.faked, c.holds)
	}
}
