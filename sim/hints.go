package sim

import (
	"math/rand/v2"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// This file models notifications of new events. Nothing depends on them, so they also go
// wrong after all other faults have stopped.

// A listening is the part of a plan about notifications.
type listening struct {
	// breaks is about how long a connection lasts, silence the longest time in which its
	// end goes unnoticed, and away the longest time until there is a new one.
	breaks, silence, away time.Duration
	madeUp                time.Duration // the mean time between notifications without an event; 0: none
	// late are the times at which events are appended after everything has settled. Until
	// then the stream is at rest, and workers poll as rarely as they may.
	late []time.Duration
}

// drawListening draws whether appends send notifications, and late events that must be
// noticed in time, with or without notifications.
func (p *plan) drawListening(r *rand.Rand) {
	if !chance(r, 120) || len(p.workers) > 8 {
		return
	}
	p.unreadable = 0 // nothing else may delay an event
	for _, v := range p.programs {
		for i := range v.projections {
			v.projections[i].parks = 0
		}
	}
	heartbeat := p.timing.Heartbeat
	l := &listening{
		breaks: pick(r, 2*heartbeat, 5*heartbeat, 100*heartbeat), silence: pick(r, 1, heartbeat/2, 3*heartbeat),
		away: pick(r, heartbeat, 20*heartbeat), madeUp: pick(r, 0, 0, 3*heartbeat),
	}
	for at := between(r, 0, 8*heartbeat); at < lateFor*heartbeat; at += between(r, heartbeat, 8*heartbeat) {
		l.late = append(l.late, at)
	}
	p.listening = l
}

// lateFor is the number of heartbeats in which late events come.
const lateFor = 60

// A listener is a worker's connection for notifications.
type listener struct {
	core   *protocol.Ear
	up     bool // the worker believes that it works
	silent bool // it is gone
	heard  bool // a notification has come over it
	number int  // the number of connections so far
}

// listen connects.
func (p *worker) listen() {
	l := p.w.plan.listening
	if l == nil || p.dead || p.returned {
		return
	}
	if p.cut || p.w.down {
		p.after(p.between(0, l.away), p.listen)
		return
	}
	e := &p.feed.listener
	e.up, e.silent, e.heard = true, false, false
	e.number++
	p.hear(protocol.HintsUp)
	p.w.after(between(p.rand, 0, 2*l.breaks), func() {
		e.silent = true
		p.after(p.between(0, l.silence), func() {
			e.up = false
			if e.heard {
				p.record(fact{kind: hintsGone})
			}
			p.hear(protocol.HintsDown)
			p.after(p.between(0, l.away), p.listen)
		})
	})
	if l.madeUp > 0 {
		p.makeUp(e.number)
	}
}

// makeUp sends notifications without an event over a connection.
func (p *worker) makeUp(connection int) {
	p.w.after(between(p.rand, 0, 2*p.w.plan.listening.madeUp), func() {
		if !p.dead && p.feed.listener.number == connection {
			p.notify()
			p.makeUp(connection)
		}
	})
}

// notify sends a notification, which may get lost.
func (p *worker) notify() {
	e := &p.feed.listener
	connection := e.number
	if !e.up || e.silent || p.cut || !chance(p.rand, p.w.plan.network.hints) {
		return
	}
	p.w.after(p.latency(), func() {
		p.do(func() {
			if !e.up || e.number != connection || p.returned {
				return
			}
			if !e.heard {
				e.heard = true
				p.record(fact{kind: hintsCome})
			}
			p.hear(protocol.HintHeard)
		})
	})
}

// hear gives the feed a change of the connection, or a notification.
func (p *worker) hear(h protocol.Hearing) {
	if bend := p.w.rules.hears; bend != nil {
		bend(p.feed, h)
	} else {
		p.feed.listener.core.Hear(h)
	}
	p.feed.begin()
}

// notify notifies all listening workers of an append.
func (w *world) notify() {
	if w.plan.listening == nil {
		return
	}
	for _, p := range w.alive() {
		p.notify()
	}
}

// appendLate appends an event after everything has settled.
func (w *world) appendLate() {
	t := &writer{conn: w.db.connect(), commit: true}
	t.end = t.conn.commit
	if w.insert(t) {
		w.endWriter(t)
	}
}

// noticed checks that an event that is appended after everything has settled is handled as
// soon as the poll interval allows, which is longer only for a worker that receives
// notifications. late is the handling of the event, or the end.
func (c *checker) noticed(p *checkedProjection, e event, appended, late fact, worker string) *violation {
	if c.settled.unset() || appended.step < c.settled.step || c.kin(p.name) != nil {
		return nil
	}
	s, poll, since := c.setup, c.setup.poll, appended.at
	w := c.worker(worker)
	if w.hears.step > w.deaf.step {
		poll *= 5
	} else {
		since = max(since, w.deaf.at) // until then the loss was unnoticed
	}
	if took := late.at - since; took > s.slow(poll)+60*s.latency+s.typical+100*time.Millisecond {
		return broken(bounded, []fact{appended, w.hears, w.deaf, late}, "event %d of projection %s was visible for %s before it was handled, although %s polls every %s",
			e.position, p.name, took, worker, poll)
	}
	return nil
}

// allNoticed checks the events that are not handled at the end.
func (c *checker) allNoticed(f fact) *violation {
	n := c.activated.total
	if c.settled.unset() || n == 0 || !c.anyAble() {
		return nil
	}
	for _, name := range c.setup.final {
		if c.setup.sets[name] != c.number || c.isPaused(name) {
			continue
		}
		p := c.projection(name)
		for _, e := range p.unhandled {
			owner := c.owners[ownerKey{c.activated.generation, e.slot % n}]
			if v := c.noticed(p, e.event, c.appends[e.append], f, owner.worker); v != nil {
				return v
			}
		}
	}
	return nil
}
