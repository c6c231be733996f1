package sim

import (
	"cmp"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// parkedAt returns the index of a position's row among a projection's rows, or where it
// belongs.
func (p *projectionRow) parkedAt(position int64) (i int, found bool) {
	return slices.BinarySearchFunc(p.parked, position, func(r *parkedRow, position int64) int { return cmp.Compare(r.position, position) })
}

// A parkedRow is the row of a parked event.
type parkedRow struct {
	row[protocol.Parked]
	position int64
}

// parked is Store.Parked.
func (c *memoryConnection) parked(l store.Lane, done func([]protocol.Parked, error)) {
	if err := c.free("parked"); err != nil {
		done(nil, err)
		return
	}
	rows := append(c.parkedRows(l), c.ordersFor(l)...)
	slices.SortStableFunc(rows, func(a, b protocol.Parked) int { return cmp.Compare(a.Position, b.Position) })
	done(rows, nil)
}

// parkedRows returns the committed rows of a lane's parked events.
func (m *memory) parkedRows(l store.Lane) (out []protocol.Parked) {
	for _, r := range m.projection(l.Projection).parked {
		if v := r.committed; v != nil && v.Slot%l.Assignment.Total == l.Assignment.Partition {
			out = append(out, *v)
		}
	}
	return out
}

// statement begins a transaction for one statement. done hears how it ended: with an error
// if its fence matched nothing.
func (c *memoryConnection) statement(call string, done func(error)) (t *transaction, end func(through bool), err error) {
	if err := c.free(call); err != nil {
		return nil, nil, err
	}
	t = c.enter()
	t.refused = func(err error) {
		t.end(false)
		done(err)
	}
	return t, func(through bool) {
		t.end(true)
		if !through {
			done(store.ErrSuperseded)
			return
		}
		done(nil)
	}, nil
}

// park is Store.Park.
func (c *memoryConnection) park(l store.Lane, from, to protocol.Checkpoint, parked []protocol.Parked, done func(error)) {
	t, end, err := c.statement("park", done)
	if err != nil {
		done(err)
		return
	}
	p := c.projection(l.Projection)
	waiting := p.waiting() // as the statement sees them, however long it waits
	add := func(_, moved bool) {
		if !moved && !c.rules.parkUnfenced {
			end(false)
			return
		}
		p.park(t, parked, func() {
			for _, e := range parked {
				for _, o := range waiting {
					if o.as(t).position == e.Position {
						o.end(t, "parked", e.Slot)
					}
				}
			}
			end(true)
		})
	}
	c.move(t, l, from, to, add)
}

// park adds rows unless they exist. It waits for transactions that add or delete one of
// them at that moment.
func (p *projectionRow) park(t *transaction, parked []protocol.Parked, then func()) {
	for k, v := range parked {
		i, found := p.parkedAt(v.Position)
		if !found {
			p.parked = slices.Insert(p.parked, i, &parkedRow{position: v.Position})
		}
		r := p.parked[i]
		if goes := r.by != nil && r.by != t && r.written == nil; r.as(t) != nil && !goes {
			continue
		}
		if !t.try(&r.lock, false) {
			t.await(&r.lock, false, func() { p.park(t, parked[k:], then) })
			return
		}
		if r.as(t) == nil {
			v.Since, v.Request = t.m.now(), protocol.Unasked
			r.put(t, &v)
		}
	}
	then()
}

// dropParkedAbove is store.DropParkedAbove. It waits for no transaction: those that change
// such rows hold the checkpoint's lock, or end at once.
func (p *projectionRow) dropParkedAbove(t *transaction, position int64) {
	for _, r := range p.parked {
		if r.position > position && r.as(t) != nil && t.try(&r.lock, false) {
			r.put(t, nil)
		}
	}
	for _, o := range p.waiting() {
		o.end(t, protocol.Past, o.as(t).slot)
	}
}

// fence locks the lane's checkpoint if it stands under the lane's generation. then hears
// whether it holds the lock and whether the row is still the right one.
func (c *memoryConnection) fence(t *transaction, l store.Lane, then func(locked, fits bool)) {
	r := c.checkpoint(t, l)
	fits := func() bool {
		v := r.as(t)
		return v != nil && v.set == c.set && v.generation == l.Assignment.Generation
	}
	if r == nil || !fits() {
		then(false, false)
		return
	}
	t.acquire(&r.lock, false, func() { then(true, fits()) })
}

// change locks a parked row and replaces its version at that time; nil deletes it. then
// hears whether there was a row to change.
func (c *memoryConnection) change(t *transaction, projection string, position int64, to func(protocol.Parked) (*protocol.Parked, bool), then func(changed bool)) {
	p := c.projection(projection)
	i, found := p.parkedAt(position)
	if !found || p.parked[i].as(t) == nil {
		then(false)
		return
	}
	r := p.parked[i]
	if _, wanted := to(*r.as(t)); !wanted {
		then(false)
		return
	}
	t.acquire(&r.lock, false, func() {
		v := r.as(t)
		if v == nil {
			then(false)
			return
		}
		next, wanted := to(*v)
		if wanted {
			r.put(t, next)
		}
		then(wanted)
	})
}

func gone(protocol.Parked) (*protocol.Parked, bool) { return nil, true }

// unpark is Store.Unpark, in the open transaction or in one of
// Store.BeginHandler.
func (c *memoryConnection) unpark(l store.Lane, position int64, done func(error)) {
	opens := c.open == nil
	if err := c.within(); err != nil {
		done(err)
		return
	}
	t := c.open
	t.stop()
	t.begun, t.idleMax = t.begun || opens, c.bounds.Idle
	t.refused = func(err error) {
		t.fail()
		done(err)
	}
	if !t.begun && !c.rules.unmarked {
		t.idle()
		done(store.ErrTransactionEnded)
		return
	}
	c.fence(t, l, func(_, fits bool) {
		if !fits {
			t.idle()
			done(store.ErrSuperseded)
			return
		}
		c.change(t, l.Projection, position, gone, func(changed bool) {
			t.idle()
			if !changed {
				done(store.ErrNotParked)
				return
			}
			done(nil)
		})
	})
}

// forget is Store.Drop.
func (c *memoryConnection) forget(l store.Lane, position int64, done func(error)) {
	c.alone("forget", l, position, gone, done)
}

// note is Store.Note.
func (c *memoryConnection) note(l store.Lane, position int64, attempts int, done func(error)) {
	c.alone("note", l, position, func(v protocol.Parked) (*protocol.Parked, bool) {
		wanted := v.Attempts == attempts-1
		if v.Attempts = attempts; v.Request == protocol.Retry {
			v.Request = protocol.Unasked
		}
		return &v, wanted
	}, done)
}

// alone changes a row behind the fence, in a statement of its own.
func (c *memoryConnection) alone(call string, l store.Lane, position int64, to func(protocol.Parked) (*protocol.Parked, bool), done func(error)) {
	t, end, err := c.statement(call, done)
	if err != nil {
		done(err)
		return
	}
	c.fence(t, l, func(_, fits bool) {
		if !fits {
			end(false)
			return
		}
		c.change(t, l.Projection, position, to, func(bool) { end(true) })
	})
}

// request is AskParked for one position.
func (c *memoryConnection) request(projection string, position int64, r protocol.ParkRequest, done func(n int, err error)) {
	t, _, err := c.statement("request", func(err error) { done(0, err) })
	if err != nil {
		done(0, err)
		return
	}
	c.change(t, projection, position, func(v protocol.Parked) (*protocol.Parked, bool) {
		v.Request = r
		return &v, true
	}, func(changed bool) {
		t.end(true)
		if changed {
			done(1, nil)
			return
		}
		done(0, nil)
	})
}
