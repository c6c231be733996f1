package sim

import (
	"maps"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// operate makes an operator look at the parked events now and then, and request some: all
// of one projection, or one event. After the faults, it requests all that have no request.
func (w *world) operate() {
	if w.over {
		return
	}
	w.after(between(w.operator, 0, 2*w.plan.operate), w.operate)
	if w.down {
		return
	}
	for _, name := range w.parking() {
		rows := w.parkedEvents(name)
		if !w.healed && len(rows) > 0 {
			if w.operator.IntN(2) == 0 {
				continue
			}
			if w.operator.IntN(2) == 0 {
				i := w.operator.IntN(len(rows))
				rows = rows[i : i+1]
			}
		}
		for _, r := range rows {
			if r.Request == protocol.Unasked {
				w.request(name, r.Position, pick(w.operator, protocol.Retry, protocol.Retry, protocol.Retry, protocol.Discard))
			}
		}
	}
}

// parking returns the projections that park, by name.
func (w *world) parking() (names []string) {
	for _, v := range w.plan.programs {
		for _, q := range v.projections {
			if (q.parks > 0 || w.plan.orderParks > 0) && !slices.Contains(names, q.name) {
				names = append(names, q.name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// parkedEvents returns all parked events of a projection.
func (w *world) parkedEvents(projection string) (rows []protocol.Parked) {
	c := w.db.connect()
	defer c.close()
	all := store.Lane{Projection: projection, Assignment: protocol.Assignment{Total: 1}}
	c.parked(all, func(r []protocol.Parked, err error) { rows = r })
	return slices.DeleteFunc(rows, func(p protocol.Parked) bool { return p.Request == protocol.ToPark })
}

// request requests one parked event.
func (w *world) request(projection string, position int64, r protocol.ParkRequest) {
	c := w.db.connect()
	c.request(projection, position, r, func(n int, err error) {
		if err == nil && n == 1 {
			w.record(fact{kind: parkRequested, projection: projection, from: position, text: string(r)})
		}
		c.close()
	})
}

// orderPark makes an operator order the event parked at which a lane fails, or one near it:
// the operator has read the status a while ago.
func (w *world) orderPark() {
	if w.over || w.healed {
		return
	}
	w.after(between(w.ordering, 0, 2*w.plan.orderParks), w.orderPark)
	var stand []*lane
	for _, p := range w.alive() {
		if p.run == nil {
			continue
		}
		for _, l := range p.run.lanes {
			if len(l.events) > 0 && (l.retries || w.ordering.IntN(20) == 0) {
				stand = append(stand, l)
			}
		}
	}
	if w.down || len(stand) == 0 {
		return
	}
	l := pick(w.ordering, stand...)
	projection, set := l.id.Projection, l.p.set
	position := l.events[w.ordering.IntN(min(len(l.events), 3))].position
	if w.ordering.IntN(2) == 0 {
		position = l.events[0].position
	} else if w.ordering.IntN(10) == 0 {
		position += 1 + w.ordering.Int64N(100)
	}
	w.after(pick(w.ordering, 0, w.plan.timing.Heartbeat/10, w.plan.timing.Heartbeat), func() {
		if w.down || w.over || w.healed {
			return
		}
		c := w.db.as(setName(set), store.BoundsOf(w.plan.timing.Lease)).connect()
		c.orderPark(projection, position, func(number int64, err error) {
			if err == nil {
				w.record(fact{kind: parkOrdered, set: set, projection: projection, from: position})
				w.numbers = append(w.numbers, parkNumber{projection, position, number})
			}
			c.close()
		})
	})
}

// A parkNumber is a given order to park an event.
type parkNumber struct {
	projection       string
	position, number int64
}

// recordOrdersLeft records how many orders to park existing events are open at the end.
func (w *world) recordOrdersLeft() {
	left, highest := map[string]int64{}, int64(0)
	for _, f := range w.history.facts {
		for _, e := range f.events {
			if f.kind == appended {
				highest = max(highest, e.position)
			}
		}
	}
	c := w.db.connect()
	defer c.close()
	for _, o := range w.numbers {
		if outcome, err := c.outcome(o.number); err == nil && outcome == "" && o.position <= highest {
			left[o.projection]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		w.record(fact{kind: ordersLeft, projection: name, from: left[name]})
	}
}

// recordParkedLeft records what is parked at the end.
func (w *world) recordParkedLeft() {
	for _, name := range w.parking() {
		f := fact{kind: parkedLeft, projection: name}
		for _, r := range w.parkedEvents(name) {
			f.events = append(f.events, event{position: r.Position, aggregate: r.Aggregate, slot: r.Slot})
		}
		w.record(f)
	}
}
