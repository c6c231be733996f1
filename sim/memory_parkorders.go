package sim

import (
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A parkOrder is the row of an order to park an event.
type parkOrder struct {
	position int64
	slot     int
	since    time.Time
	ended    bool
	outcome  string
}

type orderRow struct {
	*row[parkOrder]
	number int64
}

// waiting returns the committed orders that have not ended.
func (p *projectionRow) waiting() (out []*orderRow) {
	for _, o := range p.orders {
		if o.committed != nil && !o.committed.ended {
			out = append(out, o)
		}
	}
	return out
}

// end ends an order unless it has ended. It waits for no transaction: those that change an
// order hold the checkpoint's lock.
func (o *orderRow) end(t *transaction, outcome string, slot int) {
	if v := *o.as(t); !v.ended && t.try(&o.lock, false) {
		v.ended, v.outcome, v.slot = true, outcome, slot
		o.put(t, &v)
	}
}

// orderLate is the constant of the store: an order that was not carried out for so long is
// over.
const orderLate = 24 * time.Hour

func (m *memory) late(o *parkOrder) bool { return o.since.Before(m.now().Add(-orderLate)) }

// past is pastText of the store.
func (p *projectionRow) past(o *parkOrder) bool {
	for k, r := range p.checkpoints {
		c := r.committed
		if c != nil && c.Position < o.position && (o.slot == protocol.NoSlot || o.slot%c.total == k) {
			return false
		}
	}
	return true
}

// became returns the outcome of an order; "": it is open.
func (m *memory) became(p *projectionRow, o *parkOrder) string {
	switch {
	case o.ended:
		return o.outcome
	case p.past(o):
		return protocol.Past
	case m.late(o):
		return "no worker has carried the order out for a day"
	}
	return ""
}

func (m *memory) ordered(projection string) bool { return len(m.projection(projection).waiting()) > 0 }

// ordersFor returns the orders that may concern a lane.
func (m *memory) ordersFor(l store.Lane) (out []protocol.Parked) {
	for _, o := range m.projection(l.Projection).waiting() {
		v := o.committed
		if (v.slot == protocol.NoSlot || v.slot%l.Assignment.Total == l.Assignment.Partition) && !m.late(v) {
			out = append(out, protocol.Parked{Position: v.position, Order: o.number, Slot: v.slot, Since: v.since, Request: protocol.ToPark})
		}
	}
	return out
}

// orderPark is Store.OrderPark.
func (c *memoryConnection) orderPark(projection string, position int64, done func(int64, error)) {
	t, _, err := c.statement("request", func(err error) { done(0, err) })
	if err != nil {
		done(0, err)
		return
	}
	number, problem := c.givePark(t, projection, position)
	if t.end(problem == ""); problem != "" {
		done(0, fmt.Errorf("%w: %s", store.ErrRejected, problem))
		return
	}
	done(number, nil)
}

func (c *memoryConnection) givePark(t *transaction, projection string, position int64) (number int64, problem string) {
	set := c.replicaSet(c.set)
	if r := set.committed; r == nil || r.Generation == 0 {
		return 0, "the set has never run"
	}
	p := c.projection(projection)
	switch {
	case p.committed == nil:
		return 0, "there is no such projection"
	case *p.committed != c.set:
		return 0, "it is another set's"
	}
	if i, found := p.parkedAt(position); found && p.parked[i].committed != nil {
		return 0, "it is parked"
	}
	first, any := int64(0), false
	for _, r := range p.checkpoints {
		if v := r.committed; v != nil && (!any || v.Position < first) {
			first, any = v.Position, true
		}
	}
	if !any || position <= first {
		return 0, "it is past that"
	}
	for _, q := range c.memory.projections {
		for _, o := range q.waiting() {
			if why := c.became(q, o.committed); why != "" {
				o.end(t, why, o.committed.slot)
			}
		}
	}
	for _, o := range p.waiting() {
		if o.as(t).position == position && !o.as(t).ended {
			return o.number, ""
		}
	}
	c.numbers++
	p.orders = append(p.orders, &orderRow{row: insert(t, &parkOrder{position: position, slot: protocol.NoSlot, since: c.now()}), number: c.numbers})
	return c.numbers, ""
}

// outcome is part of Store.ParkOrder.
func (c *memoryConnection) outcome(number int64) (string, error) {
	for _, p := range c.memory.projections {
		for _, o := range p.orders {
			if o.number == number && o.committed != nil {
				return c.became(p, o.committed), nil
			}
		}
	}
	return "", fmt.Errorf("there is no order %d", number)
}

// locate is Store.Locate.
func (c *memoryConnection) locate(l store.Lane, number int64, slot int, done func(error)) {
	c.answerOrder("locate", l, number, func(t *transaction, o *orderRow) {
		if t.try(&o.lock, false) {
			v := *o.as(t)
			v.slot = slot
			o.put(t, &v)
		}
	}, done)
}

// lapse is Store.Lapse.
func (c *memoryConnection) lapse(l store.Lane, number int64, why string, done func(error)) {
	c.answerOrder("lapse", l, number, func(t *transaction, o *orderRow) { o.end(t, why, o.as(t).slot) }, done)
}

// answerOrder changes an order behind the fence, in a statement of its own.
func (c *memoryConnection) answerOrder(call string, l store.Lane, number int64, change func(*transaction, *orderRow), done func(error)) {
	t, end, err := c.statement(call, done)
	if err != nil {
		done(err)
		return
	}
	c.fence(t, l, func(_, fits bool) {
		for _, o := range c.projection(l.Projection).orders {
			if fits && o.number == number && o.as(t) != nil {
				change(t, o)
			}
		}
		end(fits)
	})
}
