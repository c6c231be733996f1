package sim

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lib/pq"
)

// These are the errors of a driver that does not know whether a call has taken effect.
var (
	errReset    = driver.ErrBadConn // the connection was lost
	errNoAnswer = fmt.Errorf("no answer from the database: %w", context.DeadlineExceeded)
)

// errDenied is the server's error for a table whose privilege is missing. denials are the
// calls that need a privilege, by table.
var (
	errDenied = &pq.Error{Severity: "ERROR", Code: "42501", Message: "permission denied"}
	denials   = [][]string{
		{"heartbeat", "look", "join", "leave", "stop report", "request"},
		{"load", "find", "checkpoint", "followed"},
		{"parked", "park", "unpark", "drop", "note"},
		{"page", "look ahead", "highest position"},
	}
)

// toStandby is the text of a faultOther about a connection to a standby.
const toStandby = "a connection leads to a standby"

// A link is a worker's end of a connection.
type link struct {
	p    *worker
	conn connection // nil until something has arrived at the server
	// broken: nothing more can be sent. The server may not have noticed.
	broken  bool
	gone    bool          // the server has noticed, or has ended it
	number  int32         // of the liveness lock that it holds; 0: none
	lost    string        // why the server has ended it, if it did so by itself
	arrives time.Duration // when the latest request arrives
	answer  func(error)   // ends the call under way
	// wrote are the events whose effects the open transaction holds.
	wrote []event
}

// borrow takes an idle link from the worker's pool, or a new one.
func (p *worker) borrow() *link {
	if n := len(p.pool); n > 0 {
		l := p.pool[n-1]
		p.pool = p.pool[:n-1]
		return l
	}
	l := &link{p: p}
	p.links = append(p.links, l)
	return l
}

// giveBack returns a link to the pool, unless it is broken.
func (l *link) giveBack() {
	if !l.broken {
		l.p.pool = append(l.p.pool, l)
	}
}

// drop breaks the link, as closing or losing it does. The server notices after what was
// sent before; or never, if the machine is gone or the network swallows it. Then only its
// bounds end a transaction.
func (l *link) drop(vanish bool) {
	if l.broken {
		return
	}
	l.broken = true
	p := l.p
	p.links = slices.DeleteFunc(p.links, func(k *link) bool { return k == l })
	p.pool = slices.DeleteFunc(p.pool, func(k *link) bool { return k == l })
	if p.cut || vanish {
		return
	}
	p.w.after(max(p.latency(), l.arrives-p.w.at), l.end)
}

// end ends the connection at the server.
func (l *link) end() {
	if l.gone {
		return
	}
	l.gone = true
	if l.conn != nil {
		l.conn.close()
	}
	if l.number != 0 {
		l.p.record(fact{kind: sessionEnded, from: int64(l.number), text: l.lost})
	}
}

// disconnect loses all links because the server is gone.
func (p *worker) disconnect() {
	for _, l := range slices.Clone(p.links) {
		answer := l.answer
		l.broken, l.lost = true, "the server is gone"
		l.end()
		if answer != nil {
			p.after(p.latency(), func() { answer(errReset) })
		}
	}
	p.links, p.pool = nil, nil
}

// ask sends a call over the link and brings its end back. The worker gives it up when
// patience is over, whatever becomes of it then.
//
//	worker ── there ──▶ server: call, done ── back ──▶ worker: then
//
// The request can get lost, or seem lost and arrive after it was given up. The reply can
// get lost although the call has had its effect.
func (p *worker) ask(l *link, what string, patience time.Duration, call func(c connection, done func(error)), then func(error)) {
	w := p.w
	answered := false
	var giveUp func()
	answer := func(err error) {
		if answered {
			return
		}
		answered, l.answer = true, nil
		giveUp()
		switch {
		case errors.Is(err, errReset):
			l.lost = "the connection was lost"
			l.drop(false)
		case errors.Is(err, errReadOnly): // as store.DropStandbys does
			l.lost = "it led to a standby"
			l.drop(false)
		case errors.Is(err, errNoAnswer) && !(p.returned && l.number != 0):
			l.drop(false)
		}
		then(err)
	}
	l.answer = answer
	giveUp = p.after(patience, func() { answer(errNoAnswer) })
	if l.broken {
		p.post(func() { answer(errReset) })
		return
	}
	there, back := p.latency(), p.latency()+p.congested
	if what == "park" {
		there, p.delayPark = there+p.delayPark, 0
	}
	lostRequest, lostReply := p.chance(w.plan.network.lostRequest), p.chance(w.plan.network.lostReply)
	if p.chance(w.plan.network.slow) {
		d := p.between(0, w.plan.network.slowBy)
		p.record(fact{kind: faultSlow, length: d, text: what})
		if p.chance(500) {
			there += d
		} else {
			back += d
		}
	}
	if lostRequest {
		p.record(fact{kind: faultLost, text: "request: " + what})
		p.after(there, func() { answer(errReset) })
		if p.chance(500) {
			return
		}
		there += p.between(0, w.plan.timing.Lease/4)
	}
	l.arrives = max(l.arrives, w.at+there)
	w.after(there, func() {
		switch {
		case w.down:
			p.after(back, func() { answer(errReset) })
			return
		case p.cut || l.gone && l.broken:
			return
		case l.gone:
			p.after(back, func() { answer(errReset) })
			return
		case l.conn == nil:
			l.conn = p.db.connect()
			if m, ok := l.conn.(*memoryConnection); ok && p.misrouted {
				m.standby = true
				p.record(fact{kind: faultOther, text: toStandby})
			}
		}
		done := func(err error) {
			switch {
			case p.cut:
			case l.broken: // it was given up meanwhile, and the server can't answer
				if err == nil {
					p.record(fact{kind: faultLost, text: "sender gave up before it took effect: " + what})
				}
				w.after(back, l.end)
			case lostReply:
				p.record(fact{kind: faultLost, text: "reply: " + what})
				p.after(back, func() { answer(errReset) })
			default:
				p.after(back, func() { answer(err) })
			}
		}
		if slices.Contains(w.denied, what) {
			done(errDenied)
			return
		}
		call(l.conn, done)
	})
}

// latency draws how long a packet takes: the typical time, give or take half.
func (p *worker) latency() time.Duration {
	l := p.w.plan.network.latency
	return l/2 + time.Duration(p.rand.Int64N(int64(l)))
}
