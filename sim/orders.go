package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// An order is an operator's order at a time: about the n-th projection of all versions, or
// about the n-th worker that is alive then.
type order struct {
	at   time.Duration
	kind protocol.OrderKind
	set  int
	n    int
	// all: of every projection of the set. part is the target of a rewind, in thousandths
	// of the positions that there are.
	all  bool
	part int
}

// drawOrders draws what operators do while faults go on; nothing in most plans.
func (p *plan) drawOrders(r *rand.Rand) {
	if !chance(r, 300) {
		return
	}
	kinds := []protocol.OrderKind{protocol.OrderPause, protocol.OrderPause, protocol.OrderResume, protocol.OrderDrain, protocol.OrderUndrain}
	if p.sets == 1 { // otherwise a projection may belong to another set at the activation
		kinds = append(kinds, protocol.OrderRewind, protocol.OrderRewind, protocol.OrderRewind)
	}
	for range 1 + r.IntN(4) {
		p.orders = append(p.orders, order{
			at: between(r, 0, p.length), kind: pick(r, kinds...), set: r.IntN(p.sets), n: r.IntN(1000), all: chance(r, 200), part: r.IntN(1100),
		})
	}
}

// give gives an order, as an operator's program does.
func (w *world) give(o order) {
	order := protocol.Order{Kind: o.kind}
	switch o.kind {
	case protocol.OrderDrain, protocol.OrderUndrain:
		alive := w.alive()
		if len(alive) == 0 {
			return
		}
		p := alive[o.n%len(alive)]
		o.set, order.Worker = p.set, p.session.ID()
	case protocol.OrderRewind:
		order.Position = int64(w.appended() * o.part / 1000)
		fallthrough
	default:
		var names []string
		for _, v := range w.plan.programs {
			for _, q := range v.of(o.set) {
				names = append(names, q.name)
			}
		}
		if len(names) == 0 {
			return
		}
		if !o.all || o.kind == protocol.OrderRewind {
			order.Projection = names[o.n%len(names)]
		}
	}
	w.command(o.set, order, false, nil)
}

// appended returns about how many positions there are.
func (w *world) appended() int {
	n := 0
	for _, f := range w.history.facts {
		if f.kind == appended {
			n += len(f.events)
		}
	}
	return n
}

// orderAgain is how long an operator waits before an order without an answer, or without
// its locks, is given again.
func (w *world) orderAgain() time.Duration { return w.plan.timing.Heartbeat }

// command carries out an order over a connection of its own, and then calls then, if it is
// not nil. After the faults, only orders that lift others are tried again.
func (w *world) command(set int, o protocol.Order, lifts bool, then func()) {
	again := func() {
		w.after(w.orderAgain(), func() {
			if lifts || !w.healed {
				w.command(set, o, lifts, then)
			}
		})
	}
	if w.down {
		again()
		return
	}
	conn := w.db.as(setName(set), store.BoundsOf(w.plan.timing.Lease)).connect()
	answered := false
	giveUp := w.after(w.plan.timing.Lease, func() { // the database went down meanwhile
		if !answered {
			conn.close()
			again()
		}
	})
	r := protocol.Request{Order: &o}
	conn.sync(r, nil, nil, nil, false, func(result store.Result, err error) {
		answered = true
		giveUp()
		conn.close()
		switch {
		case err == nil:
			w.record(fact{kind: ordered, set: set, order: o})
			w.regrouped(fact{set: set}, r, result, w.at)
			if then != nil {
				then()
			}
		case !errors.Is(err, store.ErrRejected):
			again()
		}
	})
}

// lift takes back what was ordered, after the last order under way has ended.
func (w *world) lift() {
	if len(w.plan.orders) == 0 {
		return
	}
	w.after(w.plan.timing.Lease, w.liftAll)
	w.after(2*w.plan.timing.Lease, w.liftAll) // for workers that were not there, or were about to rejoin
}

func (w *world) liftAll() {
	for set := range w.plan.sets {
		w.resumeAll(set)
	}
	for _, p := range w.alive() {
		w.command(p.set, protocol.Order{Kind: protocol.OrderUndrain, Worker: p.session.ID()}, true, nil)
	}
}

func (w *world) resumeAll(set int) {
	w.command(set, protocol.Order{Kind: protocol.OrderResume, Projection: protocol.All}, true, nil)
}

func (o order) String() string { return fmt.Sprintf("%s at %s", o.kind, o.at) }
