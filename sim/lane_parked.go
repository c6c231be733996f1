package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// doParked carries out the actions about parked events, as runner.go does.
func (l *lane) doParked(a protocol.LaneAction, patience time.Duration) {
	switch a.Do {
	case protocol.LaneLoadParked:
		var rows []protocol.Parked
		l.alone("parked", patience, func(c connection, done func(error)) {
			c.parked(l.id, func(r []protocol.Parked, err error) {
				if rows = r; a.Requests {
					rows = slices.DeleteFunc(r, func(p protocol.Parked) bool { return p.Request == protocol.Unasked })
				}
				done(err)
			})
		}, func() protocol.LaneAnswer { return protocol.LaneAnswer{Parked: rows} })
	case protocol.LanePark:
		l.park(a, patience)
	case protocol.LaneFetch:
		l.fetch(a.Position, patience)
	case protocol.LaneUnpark:
		l.unpark(a.Position, patience)
	case protocol.LaneDrop:
		kind := parkedRetried
		if a.Discard {
			kind = parkedDiscarded
		}
		l.note("drop", kind, a.Position, patience, func(c connection, done func(error)) { c.forget(l.id, a.Position, done) })
	case protocol.LaneNote:
		l.note("note", retryFailed, a.Position, patience, func(c connection, done func(error)) { c.note(l.id, a.Position, a.Attempts, done) })
	case protocol.LaneLocate:
		l.note("locate", orderLocated, a.Position, patience, func(c connection, done func(error)) { c.locate(l.id, a.Order, a.Slot, done) })
	case protocol.LaneLapse:
		l.noteWhy("lapse", orderLapsed, a.Position, a.Err.Error(), patience, func(c connection, done func(error)) { c.lapse(l.id, a.Order, a.Err.Error(), done) })
	}
}

// alone makes a call that is a transaction of its own.
func (l *lane) alone(what string, patience time.Duration, call func(c connection, done func(error)), answer func() protocol.LaneAnswer) {
	k := l.p.borrow()
	l.ask(k, what, patience, call, func(err error) {
		k.giveBack()
		l.answer(err, answer())
	})
}

// note is alone for a call that leaves a fact. A second arrival has no effect.
func (l *lane) note(what string, kind kind, position int64, patience time.Duration, call func(c connection, done func(error))) {
	l.noteWhy(what, kind, position, "", patience, call)
}

func (l *lane) noteWhy(what string, kind kind, position int64, why string, patience time.Duration, call func(c connection, done func(error))) {
	f := l.fact(kind, position, 0)
	f.text, f.replay = why, l.replay
	l.alone(what, patience, func(c connection, done func(error)) {
		call(c, func(err error) {
			if err == nil {
				l.p.record(f)
			} else if errors.Is(err, store.ErrSuperseded) {
				r := l.fact(refused, position, position)
				r.text = what
				l.p.record(r)
			}
			done(err)
		})
	}, func() protocol.LaneAnswer { return protocol.LaneAnswer{} })
}

// park parks the first pending events.
func (l *lane) park(a protocol.LaneAction, patience time.Duration) {
	p := l.p
	l.from, l.to, l.unknown = a.From, a.To, false
	rows := l.core.Parking()
	f := l.fact(eventsParked, a.From.Position, a.To.Position)
	f.ahead = changed(a.From, a.To)
	f.events = l.events[:a.Count:a.Count]
	switch {
	case a.Ordered:
		f.text = parkedByOrder
	case a.Attempts == 0:
		f.text = parkedBehind
	}
	if p.freezeAtPark > 0 {
		p.freeze(p.freezeAtPark, "before it parks events")
		p.freezeAtPark = 0
	}
	p.post(func() { l.sendPark(a, rows, f, patience) })
}

func (l *lane) sendPark(a protocol.LaneAction, rows []protocol.Parked, f fact, patience time.Duration) {
	p, k := l.p, l.p.borrow()
	l.ask(k, "park", patience, func(c connection, done func(error)) {
		c.park(l.id, a.From, a.To, rows, func(err error) {
			if err == nil {
				p.record(f)
			} else if errors.Is(err, store.ErrSuperseded) {
				r := l.fact(refused, a.From.Position, a.To.Position)
				r.text = "park"
				p.record(r)
			}
			done(err)
		})
	}, func(err error) {
		k.giveBack()
		l.unknown = err != nil
		l.answer(err, protocol.LaneAnswer{})
	})
}

// parkedBehind is the text of events that are parked behind an earlier one.
const parkedBehind = "behind another"

// parkedByOrder is the text of events that are parked by an operator's order.
const parkedByOrder = "by order"

// fetch reads a parked event again. A late answer is dropped.
func (l *lane) fetch(position int64, patience time.Duration) {
	var again []event
	l.alone("page", patience, func(c connection, done func(error)) {
		page, err := l.p.w.read(c.page(eventtable.At{}, l.subscription.scope, position-1, position, 1))
		if len(page) == 1 && page[0].position == position {
			again = page
		}
		done(err)
	}, func() (a protocol.LaneAnswer) {
		l.again = again
		for _, e := range again {
			a.Page = append(a.Page, protocol.Key{Position: e.position, Slot: e.slot, Aggregate: e.aggregate})
		}
		return a
	})
}

// unpark deletes the row in the open transaction.
func (l *lane) unpark(position int64, patience time.Duration) {
	p, k := l.p, l.link
	l.unparks = position
	if p.w.rules.unparksApart {
		l.alone("drop", patience, func(c connection, done func(error)) { c.forget(l.id, position, done) },
			func() protocol.LaneAnswer { return protocol.LaneAnswer{} })
		return
	}
	l.ask(k, "unpark", patience, func(c connection, done func(error)) {
		c.unpark(l.id, position, func(err error) {
			if errors.Is(err, store.ErrSuperseded) {
				r := l.fact(refused, position, position)
				r.text = "unpark"
				p.record(r)
			}
			if err == nil && p.freezeAtCommit > 0 && !p.frozen && !p.dead {
				p.freeze(p.freezeAtCommit, "between unpark and COMMIT")
				p.freezeAtCommit = 0
			}
			done(err)
		})
	}, func(err error) { l.answer(err, protocol.LaneAnswer{}) })
}

// poisoned reports whether the projection can't handle one of the events before the program
// is mended.
func (l *lane) poisoned(events []event) bool {
	w := l.p.w
	if l.parks == 0 && w.plan.orderParks == 0 || w.healed || w.at >= w.plan.mended {
		return false
	}
	for _, e := range events {
		if hashed(e) < w.plan.handlers.poison {
			return true
		}
	}
	return false
}

// hashed returns a number below 1000.
func hashed(e event) int { return int(uint32(uint64(e.position)*0x9E3779B97F4A7C15>>32) % 1000) }

// poison returns how the handler fails at poisoned events.
func (l *lane) poison(events []event) string {
	for _, e := range events {
		if n := hashed(e); n < l.p.w.plan.handlers.poison {
			return [...]string{"failed", timedOut, killed, forGood, timedOut, killed}[n%6]
		}
	}
	return "failed"
}
