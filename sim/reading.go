package sim

import (
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A reading carries protocol.Reading over the network, as Table.Read does with
// a database.
type reading struct {
	p       *worker
	lane    *lane
	machine protocol.Reading
	link    *link
	after   int64
	limit   int
	turn    bool                // it has its turn, or waits for it
	todo    protocol.ReadAction // then
	stop    func()              // the timer that gives it up
	ended   bool
	page    []event
	then    func(page []event, err error)
}

// lookMax bounds a look at the locks, as in Table.
const lookMax = 10 * time.Second

// read reads events for a lane. All of its steps together may take a lease.
func (p *worker) read(l *lane, after int64, limit int, then func(page []event, err error)) {
	r := &reading{p: p, lane: l, machine: protocol.NewReading(&p.horizon, after, limit), link: p.borrow(), after: after, limit: limit, then: then}
	r.stop = p.after(p.timing.Lease, func() {
		if r.link.answer == nil {
			p.record(fact{kind: turnMissed, projection: l.id.Projection})
		}
		r.giveUp(errNoAnswer)
	})
	l.abort = r.giveUp
	r.next(protocol.ReadAnswer{})
}

// giveUp ends the reading, whether it waits for an answer or for its turn.
func (r *reading) giveUp(err error) {
	switch answer := r.link.answer; {
	case r.ended:
	case answer != nil:
		answer(err)
	default:
		r.end(nil, err)
	}
}

// next brings the answer to the machine, waits for the reader's turn where that
// is asked for, and does what the machine says.
func (r *reading) next(a protocol.ReadAnswer) {
	p := r.p
	before, waited := p.horizon.Waiting()
	action := r.machine.Next(p.now(), a)
	if now, waits := p.horizon.Waiting(); waits && !waited {
		p.record(fact{kind: gapWaited, to: now.Position, text: p.w.text("%d transactions", len(now.Holders))})
	} else if waited && !waits {
		p.record(fact{kind: gapPassed, from: before.Position, to: p.horizon.Final()})
	}
	if p.w.rules.noTurns {
		action.Turn = false
	}
	switch {
	case action.Turn && !r.turn:
		r.turn, r.todo = true, action
		p.turns = append(p.turns, r)
		if p.turns[0] == r {
			r.do(action)
		}
		return
	case r.turn && !action.Turn:
		r.yield()
	}
	r.do(action)
}

// yield gives the turn to the next reading that waits for it, or leaves the
// line.
func (r *reading) yield() {
	p, had := r.p, r.p.turns[0] == r
	r.turn = false
	p.turns = slices.DeleteFunc(p.turns, func(o *reading) bool { return o == r })
	if had && len(p.turns) > 0 {
		next := p.turns[0]
		p.post(func() {
			if !next.ended {
				next.do(next.todo)
			}
		})
	}
}

func (r *reading) do(a protocol.ReadAction) {
	switch a.Do {
	case protocol.ReadHolders:
		r.ask("holders", lookMax, func(c connection) (answer protocol.ReadAnswer, err error) {
			answer.Holders, err = c.holders()
			return answer, err
		})
	case protocol.ReadHigh:
		r.ask("highest position", lookMax, func(c connection) (answer protocol.ReadAnswer, err error) {
			answer.High, err = c.high()
			return answer, err
		})
	case protocol.ReadPage:
		r.ask("page", r.p.timing.Lease, func(c connection) (answer protocol.ReadAnswer, err error) {
			r.page, err = c.page(r.after, r.limit)
			if s := r.lane.stale; r.p.w.rules.readsOnce && len(s) > 0 && s[0].position > r.after {
				r.page = s
			}
			for _, e := range r.page {
				answer.Positions = append(answer.Positions, e.position)
			}
			return answer, err
		})
	case protocol.ReadDone:
		take := a.Take
		if r.p.w.rules.passesGaps {
			take = len(r.page)
		}
		r.lane.stale = r.page[take:]
		r.end(r.page[:take], nil)
	}
}

// ask asks the database for something, or gives the reading up.
func (r *reading) ask(what string, patience time.Duration, get func(connection) (protocol.ReadAnswer, error)) {
	var answer protocol.ReadAnswer
	r.p.ask(r.link, what, patience, func(c connection, done func(error)) {
		var err error
		answer, err = get(c)
		done(err)
	}, func(err error) {
		if err != nil {
			r.end(nil, err)
			return
		}
		r.next(answer)
	})
}

func (r *reading) end(page []event, err error) {
	r.ended = true
	r.stop()
	if r.turn {
		r.yield()
	}
	r.link.giveBack()
	r.then(page, err)
}
