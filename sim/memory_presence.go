package sim

import (
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// attach is store.Attach: the lock, which nobody waits for, and then the worker's
// row.
func (c *memoryConnection) attach(a protocol.Attach, done func(protocol.Published, error)) {
	if err := c.free("attach"); err != nil {
		done(protocol.Published{}, err)
		return
	}
	c.holds = a.Presence
	c.present = append(c.present, c)
	t := c.enter()
	t.refused = func(err error) {
		t.end(false)
		done(protocol.Published{}, err)
	}
	i := slices.IndexFunc(c.replicaSet(c.set).workers, func(w *row[memberRow]) bool { return w.committed != nil && w.committed.ID == a.Worker })
	if i < 0 {
		t.end(true)
		done(protocol.Published{}, nil)
		return
	}
	own := c.replicaSet(c.set).workers[i]
	t.acquire(&own.lock, false, func() {
		var p protocol.Published
		if w := own.as(t); w != nil {
			if p.Row = true; w.Holds == w.generation {
				p.Runs = w.Holds
			}
			if w.Presence.Number < a.Presence.Number {
				next := *w
				next.Presence = a.Presence
				own.put(t, &next)
			}
		}
		t.end(true)
		done(p, nil)
	})
}

func (c *memoryConnection) prove() error { return c.free("prove") }

func (c *memoryConnection) absent(worker protocol.WorkerID) ([]protocol.Absence, error) {
	if err := c.free("absent"); err != nil {
		return nil, err
	}
	var absent []protocol.Absence
	for _, r := range c.replicaSet(c.set).workers {
		w := r.committed
		if w == nil || w.ID == worker || w.Presence.Number == 0 {
			continue
		}
		if !slices.ContainsFunc(c.present, func(o *memoryConnection) bool { return o.holds == w.Presence }) {
			absent = append(absent, protocol.Absence{Worker: w.ID, Presence: w.Presence})
		}
	}
	return absent, nil
}
