package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// This file models where new projections start. protocol.Ending and the store decide; a
// worker does here what start.go of the root package does.

// A start is where a program makes a projection start: at the beginning, now, or above a
// position.
type start struct {
	now   bool
	after int64
}

func (s start) String() string {
	switch {
	case s.now:
		return startsNow
	case s.after > 0:
		return fmt.Sprintf("above %d", s.after)
	}
	return "at the beginning"
}

// startsNow is the text of a projectionStarts.
const startsNow = "now"

// drawStarts draws where projections start, anew for each version of the program: two
// versions that disagree run side by side. If some start now, the events are there first.
func (p *plan) drawStarts(r *rand.Rand, o options) {
	if !chance(r, 250) {
		return
	}
	p.starting = true
	starts := []start{{}, {after: int64(1 + r.IntN(60))}}
	if !o.postgres {
		starts = append(starts, start{now: true}, start{now: true}, start{now: true})
	}
	for v := range p.programs {
		for i := range p.programs[v].projections {
			p.programs[v].projections[i].start = pick(r, starts...)
		}
	}
	if chance(r, 700) {
		late := p.length / 4
		for i := range p.workers {
			p.workers[i] = max(p.workers[i], late)
		}
	}
}

// startsNow reports whether a worker must find the end of the stream.
func (p *worker) startsNow() bool {
	for _, q := range p.program() {
		if q.start.now {
			return true
		}
	}
	return false
}

func (p *worker) program() []projection { return p.w.plan.programs[p.version].of(p.set) }

// endSoon is how long a prepared end is valid; see startSoon of the root package.
const endSoon = 30 * time.Second

// prepare finds the end of the stream before a join, however long it takes.
func (p *worker) prepare(r protocol.Request, then func()) {
	if !p.startsNow() || p.prepared != 0 && p.w.at-p.prepared < endSoon {
		then()
		return
	}
	sent := p.now()
	p.ending(true, p.timing.Patience(), func(_ int64, err error) {
		if err != nil {
			p.input(protocol.SyncFailed{Request: r, Sent: sent, Jitter: p.rand.Float64(), Facts: store.FactsOf(err)})
			return
		}
		p.prepared = max(p.w.at, 1)
		then()
	})
}

// starter returns the worker's store.Starts. found gets what only the world knows: the
// position up to which everything was final.
func (p *worker) starter(found func([]fact)) starter {
	return func(names []string, then func(map[string]int64, error)) {
		positions, now := map[string]int64{}, false
		var facts []fact
		end := func(final, floor int64) {
			for _, name := range names {
				for _, q := range p.program() {
					if q.name != name {
						continue
					}
					f := fact{kind: projectionStarts, projection: name, from: q.start.after, text: q.start.String()}
					if q.start.now {
						f.from, f.to = final, floor
					}
					positions[name] = f.from
					facts = append(facts, f)
				}
			}
			found(facts)
			then(positions, nil)
		}
		for _, q := range p.program() {
			for _, name := range names {
				now = now || q.name == name && q.start.now
			}
		}
		if !now {
			end(0, 0)
			return
		}
		p.after(p.latency(), func() {
			p.ending(false, store.BoundsOf(p.timing.Lease).Idle/2, func(final int64, err error) {
				if err != nil {
					p.w.after(p.latency(), func() { then(nil, err) })
					return
				}
				floor := p.floor
				p.w.after(p.latency(), func() { end(final, floor) })
			})
		})
	}
}

// ending carries out protocol.Ending over the network, as Table.ending does with a
// database. It is given up when patience is over.
func (p *worker) ending(patient bool, patience time.Duration, then func(position int64, err error)) {
	e := protocol.NewEnding(&p.known, patient)
	l, over, ahead := p.borrow(), false, false
	var floor, above int64 // what was final, and what of it is contiguous with the known end
	end := func(position int64, err error) {
		if !over {
			over = true
			l.giveBack()
			if err != nil {
				p.dropStandbys() // as store.DropStandbys does, once the connection is back in the pool
			}
			then(position, err)
		}
	}
	p.after(patience, func() {
		switch answer := l.answer; {
		case over:
		case answer != nil: // a call is under way, and its connection is lost
			answer(errNoAnswer)
		default:
			end(0, errNoAnswer)
		}
	})
	var next func(protocol.ReadAnswer)
	ask := func(what string, get func(connection) (protocol.ReadAnswer, error)) {
		var answer protocol.ReadAnswer
		p.ask(l, what, lookMax, func(c connection, done func(error)) {
			var err error
			answer, err = get(c)
			if err == errElsewhere {
				answer.Stale, err = true, nil
			}
			done(err)
		}, func(err error) {
			switch {
			case over:
			case err != nil:
				end(0, err)
			default:
				next(answer)
			}
		})
	}
	rules := p.w.rules
	next = func(a protocol.ReadAnswer) {
		action := e.Next(p.now(), a)
		at := eventtable.At{Epoch: action.Epoch, Reaches: action.Reaches}
		switch action.Do {
		case protocol.ReadAsk, protocol.ReadHolders:
			pause := time.Duration(0)
			if action.Pause {
				pause = p.timing.Heartbeat / 10
			}
			p.after(pause, func() {
				if over {
					return
				}
				ask("holders", func(c connection) (protocol.ReadAnswer, error) {
					answer, err := c.ask()
					if rules.startsAtHighest {
						answer.Holders = nil
					}
					return answer, err
				})
			})
		case protocol.ReadHigh:
			ask("highest position", func(c connection) (answer protocol.ReadAnswer, err error) {
				if m, ok := c.(*memoryConnection); ok {
					floor, above = m.final(), m.finalAbove(p.proven)
				}
				answer.High, err = c.high(at)
				return answer, err
			})
		case protocol.ReadAhead:
			ahead = true
			ask("look ahead", func(c connection) (answer protocol.ReadAnswer, err error) {
				answer.Last, answer.Missing, err = c.ahead(at, action.After)
				return answer, err
			})
		case protocol.ReadRefuse:
			end(0, errNoAnswer)
		case protocol.ReadDone:
			if p.floor = above; !ahead { // the end is proven
				p.floor, p.proven = floor, action.Passed
			} else if rules.startsEarly {
				action.Passed = p.proven
			}
			if rules.startsAtGap {
				ask("look ahead", func(c connection) (answer protocol.ReadAnswer, err error) {
					answer.Last, answer.Missing, err = c.ahead(eventtable.At{}, 0)
					if answer.Missing != 0 {
						answer.Last = answer.Missing - 1
					}
					end(answer.Last, err)
					return answer, err
				})
				return
			}
			end(action.Passed, nil)
		}
	}
	next(protocol.ReadAnswer{})
}

// finalAbove returns the position up to which everything is final and nothing is missing
// above a position.
func (m *memory) finalAbove(position int64) int64 {
	final := m.final()
	for _, e := range m.above(position) {
		if position >= final || e.position != position+1 {
			break
		}
		position++
	}
	return min(position, final)
}

// final returns the position up to which everything is final, which no process in the world
// knows.
func (m *memory) final() int64 {
	final := m.highest()
	for _, t := range m.transactions {
		for _, e := range t.events {
			final = min(final, e.position-1)
		}
	}
	return final
}
