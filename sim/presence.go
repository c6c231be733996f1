package sim

import (
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// presencePatience is the constant of liveness.go in the root.
const presencePatience = time.Second

// attach opens a liveness connection.
func (p *worker) attach(a protocol.Attach) {
	p.dropOwn()
	sent, sentAt, l, n := p.now(), p.w.at, p.borrow(), a.Number
	var key int32
	var published protocol.Published
	p.ask(l, "attach", presencePatience, func(c connection, done func(error)) {
		if p.w.at < p.blocked {
			done(errBlocked)
			return
		}
		l.number = n
		c.attach(a, func(k int32, row protocol.Published, err error) {
			if key, published = k, row; err == nil && row.Row {
				p.publishes(a.Worker, n)
			}
			done(err)
		})
	}, func(err error) {
		if err != nil && p.returned {
			p.own = l
			return
		}
		if err != nil {
			l.drop(false)
			p.input(protocol.Detached{Number: n, Jitter: p.rand.Float64()})
			return
		}
		p.own = l
		p.record(fact{kind: sessionAttached, from: int64(n), sent: sentAt})
		p.input(protocol.Attached{Number: n, Key: key, Sent: sent, RoundTrip: p.now().Sub(sent), Worker: a.Worker, Published: published})
	})
}

// prove asks the liveness connection for a proof.
func (p *worker) prove(a protocol.Prove) {
	sent, sentAt, id := p.now(), p.w.at, p.session.ID()
	var group protocol.Glimpse
	p.ask(p.own, "proof", presencePatience, func(c connection, done func(error)) {
		var err error
		if a.Glimpse {
			group, err = c.glimpse(id)
		} else {
			err = c.prove()
		}
		done(err)
	}, func(err error) {
		if err != nil && p.returned {
			return
		}
		if err != nil {
			p.dropOwn()
			p.input(protocol.Detached{Number: a.Number, Jitter: p.rand.Float64()})
			return
		}
		p.record(fact{kind: sessionProven, from: int64(a.Number), sent: sentAt})
		if p.w.rules.looksAtNobody {
			group = protocol.Glimpse{Others: group.Others}
		}
		p.input(protocol.Proven{Number: a.Number, Sent: sent, Glimpsed: a.Glimpse, Group: group})
	})
}

// forgo makes the worker rely on its lease.
func (p *worker) forgo(a protocol.Forgo) {
	p.record(fact{kind: sessionForgone, text: string(a.Why)})
	p.dropOwn()
}

// dropOwn ends the liveness connection.
func (p *worker) dropOwn() {
	if p.own != nil {
		p.own.drop(false)
		p.own = nil
	}
}

// publishes records that an incarnation's row has a newer number.
func (p *worker) publishes(id protocol.WorkerID, number int32) {
	if published := p.w.published; number > published[id] {
		published[id] = number
		p.record(fact{kind: presencePublished, from: int64(number), text: string(id)})
	}
}

// unproven reports whether the worker has no proof by which a handler may begin.
func (p *worker) unproven() bool {
	return p.session.Terms().Unproven(p.now()) && !p.alone && !p.w.rules.unprovenBegins
}

// handles reports whether handlers run, or have begun since the last call.
func (p *worker) handles() bool {
	began := p.began
	p.began = false
	return began || p.running > 0
}

// heard lets waiting lanes go on if there is a new proof.
func (p *worker) heard() {
	terms := p.session.Terms()
	if terms.Begin.Equal(p.terms.Begin) && terms.Bound == p.terms.Bound {
		return
	}
	p.terms = terms
	if p.run == nil {
		return
	}
	for _, l := range p.run.lanes {
		if l.doing == protocol.LaneProve {
			l.wake()
		}
	}
}

// suspend cancels the handlers that run, but not the lanes.
func (r *run) suspend() {
	r.p.record(fact{kind: runSuspends, generation: r.generation})
	r.suspensions++
	for _, l := range r.lanes {
		l.cancelCall()
	}
}
