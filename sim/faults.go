package sim

import (
	"errors"
	"time"
)

// This file has the faults of a worker: of its process, its lanes, its network and its
// liveness connection. The library does none of this.

// crash ends the process at once. If the machine is lost too, the server does not notice
// that its connections are gone.
func (p *worker) crash() {
	vanish := p.chance(p.w.plan.network.halfOpen)
	for len(p.links) > 0 {
		p.links[0].drop(vanish)
	}
	p.w.gone(p, "crashed")
	if p.exited != nil {
		p.exited()
	}
}

// freeze stops the process for a while, as SIGSTOP, a debugger or a closed laptop does.
func (p *worker) freeze(length time.Duration, where string) {
	p.frozen = true
	p.record(fact{kind: faultFreeze, length: length, text: where})
	p.thaws++
	n := p.thaws
	p.w.after(length, func() {
		if n == p.thaws && !p.lost {
			p.thaw()
		}
	})
}

// wakeMax is the longest time that a process takes to wake.
const wakeMax = 50 * time.Millisecond

// thaw wakes the process. Everything that has happened to it meanwhile happens at about the
// same time, in any order: a process that was swapped out comes back in pieces.
func (p *worker) thaw() {
	if !p.frozen || p.dead {
		return
	}
	p.frozen = false
	p.record(fact{kind: faultThaw})
	backlog := p.backlog
	p.backlog = nil
	spread := pick(p.rand, 200*time.Microsecond, wakeMax)
	p.rand.Shuffle(len(backlog), func(i, j int) { backlog[i], backlog[j] = backlog[j], backlog[i] })
	for _, f := range backlog {
		p.after(p.between(0, spread), f)
	}
}

// cutOff drops every packet between the worker and the database.
func (p *worker) cutOff(length time.Duration) {
	p.cut = true
	p.record(fact{kind: faultCutOff, length: length})
	p.mends++
	n := p.mends
	p.w.after(length, func() {
		if n == p.mends && !p.lost {
			p.mend()
		}
	})
}

// everyReply is the text of a faultSlow when all replies to a worker are late.
const everyReply = "every reply"

// congest makes replies late for two heartbeats, by up to the patience of a request, and
// then cuts the worker off.
func (p *worker) congest(length time.Duration) {
	t := p.timing
	p.congested = p.between(t.Lease/5, t.Patience())
	p.record(fact{kind: faultSlow, length: p.congested, text: everyReply})
	p.w.after(2*t.Heartbeat, func() {
		p.congested = 0
		if !p.dead && !p.w.healed {
			p.cutOff(length)
		}
	})
}

func (p *worker) mend() {
	if !p.cut || p.dead {
		return
	}
	p.cut = false
	p.record(fact{kind: faultMended})
}

// loseLane ends a lane unreported, which nothing in the library does.
func (p *worker) loseLane(n int) {
	if r := p.run; r != nil && r.left > 0 && len(r.lanes) > 0 {
		r.lanes[n%len(r.lanes)].dies = true
	}
}

// die ends the lane unreported.
func (l *lane) die() {
	if l.link != nil {
		l.link.drop(false)
		l.link = nil
	}
	l.p.record(l.fact(faultLane, 0, 0))
	l.subscription.close()
	l.run.ended()
}

// These are texts of a faultOther.
const (
	ownBlocked = "it can't open a liveness connection"
	locksFaked = "another program takes all liveness locks"
)

// errBlocked is the error of a worker that can't open a liveness connection.
var errBlocked = errors.New("a liveness connection can't be opened")

// block makes the worker lose its liveness connection and get no other one for a while.
func (p *worker) block(length time.Duration) {
	p.blocked = p.w.at + length
	p.record(fact{kind: faultOther, length: length, text: ownBlocked})
	p.loseOwn()
}

// stutter freezes the process for most of each second.
func (p *worker) stutter(length time.Duration) {
	if length <= 0 || p.dead || p.w.healed {
		return
	}
	if !p.frozen {
		p.freeze(750*time.Millisecond, stutters)
	}
	p.w.after(time.Second, func() { p.stutter(length - time.Second) })
}

// stutters is the text of a faultFreeze of a process that freezes again and again.
const stutters = "again and again"

// loseOwn ends the liveness connection at the server. The worker notices with its next
// statement.
func (p *worker) loseOwn() {
	if l := p.own; l != nil && !l.gone {
		l.lost = "ended by an administrator"
		l.end()
	}
}
