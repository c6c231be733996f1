package sim

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A reading carries out protocol.Reading over the network, as Table.read does with a
// database.
type reading struct {
	p       *worker
	scope   scope
	wants   scope // the scope of the lane, which the program's own event store may ignore
	fetch   protocol.Fetch
	machine protocol.Reading
	link    *link
	turn    bool                // it has its turn, or waits for it
	todo    protocol.ReadAction // the action for when it has its turn
	stop    func()              // stops the timer that gives it up
	ended   bool
	keys    []protocol.Key // of the page, if only the process's own slots are read
	page    []event
	then    func(page protocol.FeedPage, err error)
}

// lookMax bounds a look at the locks, as in Table.
const lookMax = 10 * time.Second

// read reads events. All of its steps together may take a lease.
func (p *worker) read(s scope, fetch protocol.Fetch, then func(page protocol.FeedPage, err error)) {
	limit := fetch.Limit
	if fetch.Slots != nil {
		limit = fetch.Slots.Span(limit)
	}
	wants := s
	if own := p.w.plan.store; own != nil && !own.scopes {
		s = ""
	}
	r := &reading{p: p, scope: s, wants: wants, fetch: fetch, machine: protocol.NewReading(&p.horizon, fetch.After, limit), link: p.borrow(), then: then}
	if s != "" {
		r.machine = r.machine.Scoped()
	}
	r.stop = p.after(p.timing.Lease, func() {
		if r.link.answer == nil {
			p.record(fact{kind: turnMissed})
		}
		r.giveUp(errNoAnswer)
	})
	if s != "" && p.w.rules.trustsScopedPages {
		r.do(protocol.ReadAction{Do: protocol.ReadPage, After: fetch.After, Through: math.MaxInt64})
		return
	}
	r.next(protocol.ReadAnswer{})
}

// giveUp ends the reading, whether it waits for an answer or for its turn.
func (r *reading) giveUp(err error) {
	switch answer := r.link.answer; {
	case r.ended:
	case answer != nil:
		answer(err)
	default:
		r.end(protocol.FeedPage{}, err)
	}
}

// next gives the answer to the core, waits for the reader's turn if it must, and carries
// out the next action.
func (r *reading) next(a protocol.ReadAnswer) {
	p := r.p
	before, waited := p.horizon.Waiting()
	action := r.machine.Next(p.now(), a)
	if now, waits := p.horizon.Waiting(); waits && !waited {
		p.record(fact{kind: gapWaited, to: now.Position, text: p.w.text("%d transactions", len(now.Holders))})
		if r.scope != "" {
			p.record(fact{kind: gapScoped, to: now.Position, text: string(r.scope)})
		}
	} else if waited && !waits {
		p.record(fact{kind: gapPassed, from: before.Position, to: p.horizon.Final()})
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

// yield gives the turn to the next reading that waits for it, or leaves the queue.
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
	rules, lease, at := r.p.w.rules, r.p.timing.Lease, eventtable.At{Epoch: a.Epoch, Reaches: a.Reaches}
	switch a.Do {
	case protocol.ReadAsk, protocol.ReadHolders:
		r.ask("holders", lookMax, func(c connection) (protocol.ReadAnswer, error) {
			answer, err := c.ask()
			if rules.asksOnce && a.Do == protocol.ReadHolders {
				answer.Broken = ""
			}
			return answer, err
		})
	case protocol.ReadHigh:
		r.ask("highest position", lookMax, func(c connection) (answer protocol.ReadAnswer, err error) {
			answer.High, err = c.high(at)
			return answer, err
		})
	case protocol.ReadAhead:
		r.ask("look ahead", lease, func(c connection) (answer protocol.ReadAnswer, err error) {
			answer.Last, answer.Missing, err = c.ahead(at, a.After)
			if rules.passesScopedGaps {
				answer.Missing = 0
			}
			return answer, err
		})
	case protocol.ReadPage:
		if r.fetch.Slots != nil {
			r.look(at)
			return
		}
		r.ask("page", lease, func(c connection) (answer protocol.ReadAnswer, err error) {
			r.page, err = r.p.w.read(c.page(at, r.scope, a.After, a.Through, r.fetch.Limit))
			if s := r.p.feed.stale[a.After]; rules.readsOnce && len(s) > 0 {
				r.page = s
			}
			answer.Cut = r.cut()
			for _, e := range r.page {
				answer.Positions = append(answer.Positions, e.position)
			}
			return answer, err
		})
	case protocol.ReadRefuse:
		r.p.dropStandbys()
		r.end(protocol.FeedPage{}, errors.New(a.Why))
	case protocol.ReadDone:
		if r.fetch.Slots != nil {
			r.own(a)
			return
		}
		if n := len(r.page); rules.passesGaps && a.Take < n {
			a.Take, a.Passed = n, r.page[n-1].position
		}
		if rules.readsOnce {
			r.p.feed.stale[a.Passed] = r.page[a.Take:]
		}
		r.page = r.page[:a.Take]
		if r.p.w.plan.store != nil {
			r.end(r.store(a), nil)
			return
		}
		r.end(r.read(a.Passed, a.More), nil)
	}
}

// look reads the keys of the next events.
func (r *reading) look(at eventtable.At) {
	r.ask("keys", r.p.timing.Lease, func(c connection) (answer protocol.ReadAnswer, err error) {
		r.keys, err = c.keys(at, r.fetch.After, r.fetch.Slots.Span(r.fetch.Limit))
		for _, k := range r.keys {
			answer.Positions = append(answer.Positions, k.Position)
		}
		return answer, err
	})
}

// own reads the events in the process's slots, as Table.readOwn does.
func (r *reading) own(a protocol.ReadAction) {
	slots := r.fetch.Slots
	if r.p.w.rules.dropsOwnSlot && len(r.keys) > 0 {
		fewer, k := *slots, r.keys[0]
		fewer[k.Slot/64] &^= 1 << (k.Slot % 64)
		slots = &fewer
	}
	if n := len(r.keys); r.p.w.rules.passesGaps && a.Take < n {
		a.Take, a.Passed = n, r.keys[n-1].Position
	}
	own, through := slots.Own(r.keys[:a.Take], r.fetch.Limit, a.Passed)
	cut := int64(0)
	end := func() {
		p := r.read(a.OwnPassed(through, cut))
		p.Events.(*stretch).own = true
		r.end(p, nil)
	}
	if len(own) == 0 {
		end()
		return
	}
	r.p.ask(r.link, "rows", r.p.timing.Lease, func(c connection, done func(error)) {
		var err error
		r.page, err = r.p.w.read(c.rows(eventtable.At{Epoch: a.Epoch}, own))
		done(err)
	}, func(err error) {
		switch {
		case err != nil:
			r.end(protocol.FeedPage{}, err)
			return
		case r.cut():
			cut = r.page[len(r.page)-1].position
		}
		end()
	})
}

// errConversion is the server's error for a row that it can't send.
var errConversion = errors.New("a value can't be converted")

// read marks the events of a page that could not be read.
func (w *world) read(page []event, err error) ([]event, error) {
	p := &w.plan
	if err != nil || p.unreadable == 0 || w.subject != nil || p.rewritten > 0 && (w.healed || w.at >= p.rewritten) {
		return page, err
	}
	for i, e := range page {
		if !p.unread(e) {
			continue
		}
		if w.rules.failsPages {
			return nil, errConversion
		}
		if !page[i].bad {
			page = slices.Clone(page) // the page is the table's own
		}
		page[i].bad = true
	}
	return page, nil
}

// cut ends the page where it becomes too large.
func (r *reading) cut() bool {
	bytes := 0
	for i, e := range r.page {
		if bytes += e.bytes(); protocol.PageFull(bytes, r.fetch.Bytes, i+1, r.fetch.Limit) {
			r.page = r.page[:i+1]
			return true
		}
	}
	return false
}

// dropStandbys is store.DropStandbys.
func (p *worker) dropStandbys() {
	for _, l := range slices.Clone(p.pool) {
		if m, ok := l.conn.(*memoryConnection); ok && m.standby {
			l.drop(false)
		}
	}
}

// read returns the page that was read. A stranger finds other events, some with the same
// positions.
func (r *reading) read(passed int64, more bool) protocol.FeedPage {
	if r.p.stream == strangeTable {
		r.page = slices.DeleteFunc(slices.Clone(r.page), func(e event) bool { return e.position%2 == 1 })
	}
	p := protocol.FeedPage{Keys: make([]protocol.Key, len(r.page)), Passed: passed, More: more, Events: &stretch{events: r.page}}
	for i, e := range r.page {
		p.Keys[i] = protocol.Key{Position: e.position, Slot: e.slot, Aggregate: e.aggregate}
		p.Bytes += e.bytes()
	}
	return p
}

// An ownStore is an event store of the program's own. It reads as Table does, but has its
// own page length, and may ignore the scope or not return how far it has read.
type ownStore struct {
	page            int
	scopes, through bool
}

// store answers as the program's own event store, and takes the answer as feed.go does.
func (r *reading) store(a protocol.ReadAction) protocol.FeedPage {
	s, records, more, through := r.p.w.plan.store, r.page, a.More, int64(0)
	if len(records) > s.page {
		records, more = records[:s.page], true
		r.p.record(fact{kind: served, text: pageShort})
	} else if s.through || len(records) == 0 { // otherwise it would make no progress
		through = a.Passed
	}
	var positions []int64
	for _, e := range records {
		if !r.p.w.rules.countsScopeAlone || r.wants.includes(e) {
			positions = append(positions, e.position)
		}
	}
	passed, again, _, _ := protocol.StorePage(r.fetch.After, r.fetch.Limit, positions, through, more)
	if r.p.w.rules.passesWholeLimit && again {
		passed = max(passed, r.fetch.After+int64(r.fetch.Limit))
	}
	r.page = slices.DeleteFunc(slices.Clone(records), func(e event) bool { return !r.wants.includes(e) })
	return r.read(passed, again)
}

// ask asks the database, or gives up the reading.
func (r *reading) ask(what string, patience time.Duration, get func(connection) (protocol.ReadAnswer, error)) {
	var answer protocol.ReadAnswer
	r.p.ask(r.link, what, patience, func(c connection, done func(error)) {
		var err error
		answer, err = get(c)
		if errors.Is(err, errElsewhere) {
			answer.Stale, err = true, nil
			r.p.dropStandbys()
		}
		done(err)
	}, func(err error) {
		switch n := len(r.page); {
		case err != nil:
			r.end(protocol.FeedPage{}, err)
		case r.scope == "" || !r.p.w.rules.trustsScopedPages:
			r.next(answer)
		case n > 0:
			r.end(r.read(r.page[n-1].position, true), nil)
		default:
			r.end(r.read(r.fetch.After, false), nil)
		}
	})
}

func (r *reading) end(page protocol.FeedPage, err error) {
	r.ended = true
	if err != nil {
		r.machine.Fail()
	}
	r.stop()
	if r.turn {
		r.yield()
	}
	r.link.giveBack()
	r.then(page, err)
}
