package sim

import (
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
	turn    bool
	page    []event
	then    func(page []event, err error)
}

// read reads events for a lane.
func (p *worker) read(l *lane, after int64, limit int, then func(page []event, err error)) {
	r := &reading{p: p, lane: l, machine: protocol.NewReading(&p.horizon, after), link: p.borrow(), after: after, limit: limit, then: then}
	r.next(protocol.ReadAnswer{})
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
		r.turn = true
		do := func() { r.do(action) }
		p.turns = append(p.turns, do)
		if len(p.turns) == 1 {
			do()
		}
		return
	case r.turn && !action.Turn:
		r.yield()
	}
	r.do(action)
}

// yield gives the turn to the next reading that waits for it.
func (r *reading) yield() {
	r.turn = false
	r.p.turns = r.p.turns[1:]
	if len(r.p.turns) > 0 {
		r.p.post(r.p.turns[0])
	}
}

func (r *reading) do(a protocol.ReadAction) {
	switch a.Do {
	case protocol.ReadHolders:
		r.ask("holders", func(c connection) (answer protocol.ReadAnswer, err error) {
			answer.Holders, err = c.holders()
			return answer, err
		})
	case protocol.ReadHigh:
		r.ask("highest position", func(c connection) (answer protocol.ReadAnswer, err error) {
			answer.High, err = c.high()
			return answer, err
		})
	case protocol.ReadPage:
		r.ask("page", func(c connection) (answer protocol.ReadAnswer, err error) {
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
func (r *reading) ask(what string, get func(connection) (protocol.ReadAnswer, error)) {
	var answer protocol.ReadAnswer
	r.lane.ask(r.link, what, r.p.timing.Lease, func(c connection, done func(error)) {
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
	if r.turn {
		r.yield()
	}
	r.link.giveBack()
	r.then(page, err)
}
