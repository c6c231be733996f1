package sim

import (
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// operate has somebody look at what is parked, now and then, and ask for some of
// it: for all that one projection has, or for one event. When the faults are
// over, that is for all that nobody has asked for.
func (w *world) operate() {
	if w.over {
		return
	}
	w.after(between(w.operator, 0, 2*w.plan.operate), w.operate)
	if w.down {
		return
	}
	for _, name := range w.parking() {
		rows := w.lotOf(name)
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

// parking are the projections that park, by name.
func (w *world) parking() (names []string) {
	for _, v := range w.plan.programs {
		for _, q := range v.projections {
			if q.parks > 0 && !slices.Contains(names, q.name) {
				names = append(names, q.name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// lotOf returns all that a projection has parked.
func (w *world) lotOf(projection string) (rows []protocol.Parked) {
	c := w.db.connect()
	defer c.close()
	all := store.Lane{Projection: projection, Assignment: protocol.Assignment{Total: 1}}
	c.parked(all, func(r []protocol.Parked, err error) { rows = r })
	return rows
}

// request asks for one event.
func (w *world) request(projection string, position int64, r protocol.ParkRequest) {
	c := w.db.connect()
	c.request(projection, position, r, func(n int, err error) {
		if err == nil && n == 1 {
			w.record(fact{kind: parkRequested, projection: projection, from: position, text: string(r)})
		}
		c.close()
	})
}

// countLots notes what is parked in the end.
func (w *world) countLots() {
	for _, name := range w.parking() {
		f := fact{kind: parkedLeft, projection: name}
		for _, r := range w.lotOf(name) {
			f.events = append(f.events, event{position: r.Position, aggregate: r.Aggregate, slot: r.Slot})
		}
		w.record(f)
	}
}
