//go:build !race

package protocol

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A gapWorld is a few writers that insert into an events table, and readers of
// one process that share a Horizon. What decides is the real Reading.
//
// Each statement sees the table at one moment of its own. Between that and the
// reader's next step, and between any two steps, everybody else may act. Left
// out is what a reader can't tell apart: a transaction has one event at most,
// and who is which makes no difference. Time
// plays no part.
type gapWorld struct {
	*gapPlan
	sequence int64
	epoch    int8 // grows when the server is another one, or the table's stream begins anew
	cached   bool // the sequence hands out two numbers at a time: sessions keep one
	writers  [3]tableWriter
	begun    int // transactions since the server has started: it counts them anew
	visible  []int64
	horizon  Horizon
	readers  [2]tableReader
	left     gapBudget
	err      error
}

type gapPlan struct {
	limit int // of a page
	bugs  gapBugs

	scratch [3][]byte // for key
}

// A gapBudget is what may still happen. Readers fail by losing a statement's
// answer.
type gapBudget struct {
	transactions, prepare, restart, fail int8

	first     int8 // of the transactions: they take a number before they lock the table
	savepoint int8 // a transaction goes back to before it took its position
	astray    int8 // a statement is carried out by a standby
	promote   int8 // a standby takes over
	truncate  int8 // with RESTART IDENTITY, and the readers begin anew
	cache     int8 // ALTER SEQUENCE … CACHE 2
}

// gapBugs are mutants: what TestExploreNotices breaks.
type gapBugs struct {
	noTurns, passesGaps, oldPage, oldHigh              bool
	forgetsHolders, forgetsPrepared, overlooksPrepared bool
	passesAhead                                        bool
	tableAlone, epochIgnored, horizonKept, askedOnce   bool
}

type tableWriter struct {
	state    writerState
	position int64 // 0: none yet
	kept     int64 // by the session, for its next transaction
	holder   Holder
	xid      int8
}

type writerState uint8

const (
	writerIdle     writerState = iota
	writerFirst                // holds the sequence's lock, and a position, and not yet the table's
	writerOpen                 // holds the lock, and maybe a position
	writerPrepared             // likewise
)

type tableReader struct {
	scoped   bool  // it is not to see odd positions
	after    int64 // everything up to here was handed out
	reading  Reading
	action   ReadAction // ReadStart: there is no reading
	answered bool       // the action's answer is there
	turn     bool
	answer   ReadAnswer
	page     []int64
}

func newGapWorld(limit int, budget gapBudget, bugs gapBugs) *gapWorld {
	w := &gapWorld{gapPlan: &gapPlan{limit: limit, bugs: bugs}, left: budget}
	w.horizon.confirm(w.where(), 0, testStart)
	return w
}

// withScope returns the world with one of its readers scoped.
func (w *gapWorld) withScope() *gapWorld {
	w.readers[0].scoped = true
	return w
}

const (
	toCommit = iota
	toQuery  // a reader's statement
	toNext   // a reader's step
	toRead   // a reading begins
	toRollback
	toOpen  // a transaction locks the table
	toPlace // it takes a position
	toPrepare
	toRestartServer
	toFail
	toLock // a transaction that has its position locks the table
	toSavepoint
	toTruncate
	toCache
	toMend
)

func (w *gapWorld) where() Epoch { return Epoch(fmt.Sprint("run ", w.epoch)) }

func (w *gapWorld) moves(all []move) (_ []move, fair bool) {
	add := func(what uint8, who, which int) { all = append(all, move{what, int8(who), int8(which)}) }
	for i, t := range w.writers {
		switch {
		case t.state == writerFirst:
			add(toLock, i, 0)
		case t.locks():
			add(toCommit, i, 0)
		}
	}
	if w.cached {
		add(toMend, 0, 0)
	}
	_, waiting := w.horizon.Waiting()
	for i := range w.readers {
		switch r := &w.readers[i]; {
		case r.action.Do == ReadStart:
			if waiting || r.after < w.high() {
				add(toRead, i, 0)
			}
		case r.answered:
			add(toNext, i, 0)
		case !r.action.Turn || r.turn || w.bugs.noTurns || !w.readers[1-i].turn:
			add(toQuery, i, 0)
			if w.left.astray > 0 {
				add(toQuery, i, 1)
			}
		}
	}
	fair = len(all) > 0
	if next := slices.IndexFunc(w.writers[:], func(t tableWriter) bool { return t.state == writerIdle }); next >= 0 && w.left.transactions > 0 {
		add(toOpen, next, 0)
		if w.left.first > 0 {
			add(toOpen, next, 1)
		}
	}
	for i, t := range w.writers {
		if t.state == writerOpen && t.position == 0 {
			add(toPlace, i, 0)
		}
		if t.locks() && t.position > 0 {
			add(toRollback, i, 0)
		}
		if t.state == writerOpen && t.position > 0 && w.left.savepoint > 0 {
			add(toSavepoint, i, 0)
		}
		if t.state == writerOpen && w.left.prepare > 0 {
			add(toPrepare, i, 0)
			add(toPrepare, i, 1)
		}
	}
	for i := range w.readers {
		if r := &w.readers[i]; r.action.Do != ReadStart && !r.answered && w.left.fail > 0 {
			add(toFail, i, 0)
		}
	}
	if w.left.restart > 0 {
		add(toRestartServer, 0, 0)
	}
	if w.left.promote > 0 {
		add(toRestartServer, 0, 1)
	}
	if w.left.truncate > 0 && !slices.ContainsFunc(w.writers[:], tableWriter.locks) {
		add(toTruncate, 0, 0)
	}
	if w.left.cache > 0 {
		add(toCache, 0, 0)
	}
	return all, fair
}

func (t tableWriter) locks() bool { return t.state != writerIdle }

func (w *gapWorld) after(m move) *gapWorld {
	n := *w
	for i := range n.readers {
		n.readers[i].reading.horizon = &n.horizon
	}
	n.make(m)
	return &n
}

func (w *gapWorld) make(m move) {
	t, r := &w.writers[0], &w.readers[0]
	switch m.what {
	case toCommit, toRollback, toOpen, toPlace, toPrepare, toLock, toSavepoint:
		t = &w.writers[m.who]
	case toRead, toQuery, toNext, toFail:
		r = &w.readers[m.who]
	}
	switch m.what {
	case toOpen:
		w.left.transactions--
		w.begun++
		*t = tableWriter{state: writerOpen, kept: t.kept, holder: Holder{Transaction: fmt.Sprint("3/", w.begun), Backend: 100 + w.begun}, xid: w.left.transactions}
		if m.which == 1 {
			w.left.first--
			t.state = writerFirst
			w.place(t)
		}
	case toLock:
		t.state = writerOpen
	case toPlace:
		w.place(t)
	case toSavepoint:
		w.left.savepoint--
		t.position = 0
	case toPrepare:
		w.left.prepare--
		t.state, t.holder.Backend = writerPrepared, 0
		if m.which == 1 { // servers name it in one way or the other
			t.holder = recovered(t.xid)
		}
	case toCommit:
		if t.position > 0 {
			w.show(t.position)
		}
		*t = tableWriter{kept: t.kept}
	case toRollback:
		*t = tableWriter{kept: t.kept}
	case toTruncate:
		w.left.truncate--
		w.epoch++
		w.visible, w.sequence = nil, 0
		for i := range w.readers {
			w.readers[i] = tableReader{scoped: w.readers[i].scoped}
		}
	case toCache:
		w.left.cache--
		w.cached = true
	case toMend: // and the writers reconnect
		w.cached = false
		for i := range w.writers {
			w.writers[i].kept = 0
		}
	case toRestartServer:
		if m.which == 1 {
			w.left.promote--
			w.epoch++
		} else {
			w.left.restart--
		}
		w.begun = 0
		for i := range w.writers {
			w.writers[i].kept = 0
			switch w.writers[i].state {
			case writerOpen, writerFirst:
				w.writers[i] = tableWriter{}
			case writerPrepared:
				w.writers[i].holder = recovered(w.writers[i].xid)
			}
		}
	case toRead:
		r.reading = NewReading(&w.horizon, r.after, w.limit)
		if r.scoped {
			r.reading = r.reading.Scoped()
		}
		r.answer, r.page = ReadAnswer{}, nil
		w.next(r)
	case toQuery:
		w.left.astray -= m.which
		w.look(r, m.which == 1)
	case toNext:
		w.next(r)
	case toFail:
		w.left.fail--
		r.reading.Fail()
		*r = tableReader{scoped: r.scoped, after: r.after}
	}
}

func recovered(xid int8) Holder { return Holder{Transaction: fmt.Sprint("-1/", 740-int(xid))} }

// place gives a transaction a position.
func (w *gapWorld) place(t *tableWriter) {
	switch {
	case t.kept > 0:
		t.position, t.kept = t.kept, 0
	case w.cached:
		t.position, t.kept = w.sequence+1, w.sequence+2
		w.sequence += 2
	default:
		w.sequence++
		t.position = w.sequence
	}
}

// show makes a committed event visible.
func (w *gapWorld) show(position int64) {
	for i, r := range w.readers {
		if position <= r.after {
			w.fail("S2: reader %d is at %d, and now there is event %d", i+1, r.after, position)
		}
	}
	w.visible = append(slices.Clone(w.visible), position)
	slices.Sort(w.visible)
}

func (w *gapWorld) high() int64 {
	if len(w.visible) == 0 {
		return 0
	}
	return w.visible[len(w.visible)-1]
}

func (w *gapWorld) above(position int64) []int64 {
	i, _ := slices.BinarySearch(w.visible, position+1)
	return w.visible[i:]
}

// sees returns what the reader is to see above a position.
func (w *gapWorld) sees(r *tableReader, position int64) []int64 {
	above := w.above(position)
	if r.scoped {
		above = slices.DeleteFunc(slices.Clone(above), func(p int64) bool { return p%2 == 1 })
	}
	return above
}

// look carries out a reader's statement.
//
// A standby, astray, shows what is committed, and nobody who writes.
func (w *gapWorld) look(r *tableReader, astray bool) {
	r.answered, r.turn, r.answer = true, r.action.Turn, ReadAnswer{}
	switch asks := r.action.Do == ReadAsk || r.action.Do == ReadHolders; {
	case asks && !w.bugs.epochIgnored:
		r.answer.Epoch, r.answer.High = w.where(), w.high()
		if astray {
			r.answer.Broken = "the server is a standby"
		} else if w.cached && !(w.bugs.askedOnce && r.action.Do == ReadHolders) {
			r.answer.Broken = "the sequence caches"
		}
	case asks: // it is taken for where the reading began
		r.answer.Epoch, r.answer.High = r.reading.epoch, w.high()
	case !w.bugs.epochIgnored && (astray || r.action.Epoch != w.where() || r.action.Reaches > w.high()):
		r.answer.Stale = true
		return
	}
	switch r.action.Do {
	case ReadHolders:
		for _, t := range w.writers {
			if t.locks() && !astray && !(w.bugs.overlooksPrepared && t.state == writerPrepared) && !(w.bugs.tableAlone && t.state == writerFirst) {
				r.answer.Holders = append(r.answer.Holders, t.holder)
			}
		}
	case ReadPage:
		above := w.sees(r, r.action.After)
		if w.bugs.oldPage && len(r.page) > 0 {
			above = r.page
		}
		if through := r.action.Through; through != 0 {
			above = slices.DeleteFunc(slices.Clone(above), func(p int64) bool { return p > through })
		}
		r.page = above[:min(w.limit, len(above))]
		r.answer.Positions = r.page
	case ReadAhead:
		last := r.action.After
		for _, p := range w.above(last) {
			if r.answer.Missing == 0 && p > last+1 && !w.bugs.passesAhead {
				r.answer.Missing = last + 1
			}
			last = p
		}
		r.answer.Last = last
	case ReadHigh:
		r.answer.High = w.high()
	}
}

// next takes a reader's next step.
func (w *gapWorld) next(r *tableReader) {
	r.reading.horizon = &w.horizon
	waiting := w.horizon.waiting
	before := w.horizon.wait.Holders
	if w.bugs.oldHigh && r.reading.doing == ReadHolders && r.reading.beginning {
		r.reading.high = w.high() // seen after the list
	}
	if known := w.horizon; w.bugs.horizonKept && r.answer.Epoch != "" && known.epoch != r.answer.Epoch {
		w.horizon.epoch = r.answer.Epoch
	}
	r.action, r.answered = r.reading.Next(testStart, r.answer), false
	r.turn = r.turn && r.action.Turn
	if r.action.Do == ReadRefuse {
		*r = tableReader{scoped: r.scoped, after: r.after}
		return
	}
	after := &w.horizon.wait.Holders
	switch {
	case w.bugs.forgetsHolders && len(*after) > 1:
		*after = (*after)[:1]
	case w.bugs.forgetsPrepared && waiting && w.horizon.waiting:
		*after = slices.DeleteFunc(slices.Clone(*after), func(h Holder) bool { return !slices.ContainsFunc(before, h.same) })
		if len(*after) == 0 {
			w.horizon.Observe(nil)
		}
	}
	if w.bugs.passesGaps && r.action.Do == ReadHigh {
		r.action = ReadAction{Do: ReadDone, Take: len(r.page)}
	}
	if r.action.Do != ReadDone {
		return
	}
	take, passed := r.page[:r.action.Take], r.action.Passed
	if w.bugs.passesGaps && len(take) > 0 {
		passed = take[len(take)-1]
	}
	want := slices.DeleteFunc(slices.Clone(w.sees(r, r.after)), func(p int64) bool { return p > passed })
	if !slices.Equal(take, want) {
		w.fail("S2: between %d and %d there is %v, and %v is handed out", r.after, passed, want, take)
	}
	*r = tableReader{scoped: r.scoped, after: passed}
}

func (w *gapWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *gapWorld) broken() error        { return w.err }
func (w *gapWorld) clock() time.Duration { return 0 }
func (w *gapWorld) forget()              {}

// settled is 1 if no transaction is open and every reader has handed out all.
func (w *gapWorld) settled() int64 {
	for _, t := range w.writers {
		if t.locks() {
			return 0
		}
	}
	for _, r := range w.readers {
		if r.after < w.high() || r.action.Do != ReadStart {
			return 0
		}
	}
	return 1
}

func (w *gapWorld) key(b []byte) []byte {
	k := &keyWriter{b, testStart}
	k.number(w.sequence, int64(w.begun), int64(len(w.visible)))
	k.number(w.visible...)
	k.number(int64(w.left.transactions), int64(w.left.prepare), int64(w.left.restart), int64(w.left.fail))
	k.number(int64(w.left.first), int64(w.left.savepoint), int64(w.left.astray), int64(w.left.promote), int64(w.left.truncate), int64(w.left.cache))
	k.number(int64(w.epoch))
	k.flags(w.cached)
	var parts [3][]byte
	for i, t := range w.writers {
		part := &keyWriter{w.scratch[i][:0], testStart}
		part.number(int64(t.state), t.position, t.kept)
		if t.locks() {
			holderKey(part, t.holder)
			part.number(int64(t.xid))
		}
		w.scratch[i], parts[i] = part.b, part.b
	}
	k.sorted(parts[:])
	h := w.horizon
	k.number(h.final)
	k.text(string(h.epoch))
	k.flags(h.waiting, h.asked.IsZero())
	if h.waiting {
		k.number(h.high)
		holdersKey(k, h.wait.Holders)
	}
	for i, r := range w.readers {
		part := &keyWriter{w.scratch[i][:0], testStart}
		w.readerKey(part, r)
		w.scratch[i], parts[i] = part.b, part.b
	}
	k.sorted(parts[:len(w.readers)])
	return k.b
}

// sorted writes the keys of those that are all alike: who is which makes no
// difference.
func (k *keyWriter) sorted(parts [][]byte) {
	slices.SortFunc(parts, bytes.Compare)
	for _, p := range parts {
		k.b = append(append(k.b, byte(len(p))), p...)
	}
}

// readerKey writes what a reader will still look at.
func (w *gapWorld) readerKey(k *keyWriter, r tableReader) {
	k.flags(r.scoped)
	k.number(r.after, int64(r.action.Do), r.action.Through)
	if r.action.Do == ReadStart {
		return
	}
	g := r.reading
	k.number(int64(g.begun), r.action.Reaches)
	k.text(string(g.epoch))
	k.flags(r.answered, r.turn, g.beginning, r.answer.Stale, r.answer.Broken != "")
	var page []int64
	switch {
	case g.doing == ReadPage:
		k.number(g.final)
		if r.answered {
			page = r.page
		}
	case g.doing == ReadHigh:
		k.number(int64(g.take), g.passed, g.final, g.missing)
		page = r.page[:g.take]
	case g.beginning:
		k.number(int64(g.take), g.passed, g.final, g.missing, g.high)
		page = r.page[:g.take]
	}
	if w.bugs != (gapBugs{}) {
		page = r.page
	}
	k.number(int64(len(page)))
	k.number(page...)
	if r.answered {
		k.number(r.answer.High, r.answer.Last, r.answer.Missing)
		k.text(string(r.answer.Epoch))
		holdersKey(k, r.answer.Holders)
	}
}

// holdersKey writes a list of which the order means nothing.
func holdersKey(k *keyWriter, list []Holder) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Holder) int { return strings.Compare(a.Transaction, b.Transaction) })
	k.number(int64(len(list)))
	for _, h := range list {
		holderKey(k, h)
	}
}

func holderKey(k *keyWriter, h Holder) {
	k.text(h.Transaction)
	k.number(int64(h.Backend))
}

func (w *gapWorld) tell(m move) string {
	t := "transaction " + w.writers[m.who].holder.Transaction
	position := w.writers[m.who].position
	var r string
	if int(m.who) < len(w.readers) {
		reader := &w.readers[m.who]
		r = fmt.Sprintf("reader %d ", m.who+1)
		switch m.what {
		case toRead:
			return r + fmt.Sprintf("begins to read after %d", reader.after)
		case toQuery:
			r += map[ReadDo]string{ReadAsk: "asks where it is", ReadHolders: "lists the holders", ReadPage: "reads a page", ReadAhead: "looks ahead for a gap", ReadHigh: "looks for the highest position"}[reader.action.Do]
			if m.which == 1 {
				r += ", at a standby"
			}
			return r
		case toNext:
			a := reader.answer
			switch {
			case a.Broken != "":
				return r + "is refused: " + a.Broken
			case a.Stale:
				return r + "is elsewhere"
			}
			return r + map[ReadDo]string{ReadAsk: fmt.Sprint("is in ", a.Epoch), ReadHolders: fmt.Sprint("has found the holders ", a.Holders),
				ReadPage:  fmt.Sprint("has read ", a.Positions),
				ReadAhead: fmt.Sprintf("has looked ahead to %d, missing %d", a.Last, a.Missing), ReadHigh: fmt.Sprint("has found position ", a.High)}[reader.action.Do]
		case toFail:
			return r + "loses its connection"
		}
	}
	switch m.what {
	case toCommit:
		return fmt.Sprintf("%s commits position %d", t, position)
	case toRollback:
		return fmt.Sprintf("%s is rolled back", t)
	case toOpen:
		return [...]string{"a transaction begins to insert", fmt.Sprintf("a transaction takes number %d", w.sequence+1)}[m.which]
	case toPlace:
		return fmt.Sprintf("%s takes position %d", t, w.sequence+1)
	case toPrepare:
		return t + " is prepared"
	case toRestartServer:
		return [...]string{"the server restarts", "a standby takes over"}[m.which]
	case toLock:
		return t + " locks the table"
	case toSavepoint:
		return t + " goes back to its savepoint"
	case toTruncate:
		return "the table is emptied, its sequence begins anew, and so do the readers"
	case toCache:
		return "the sequence caches from now on"
	case toMend:
		return "the sequence caches no more, and the writers reconnect"
	}
	return "?"
}

func (w *gapWorld) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "visible %v", w.visible)
	for _, t := range w.writers {
		if t.locks() {
			fmt.Fprintf(&b, " | %s", t.holder.Transaction)
			if t.position > 0 {
				fmt.Fprintf(&b, " has %d", t.position)
			}
		}
	}
	fmt.Fprintf(&b, " | final %d", w.horizon.final)
	if w.horizon.waiting {
		fmt.Fprintf(&b, ", waits for %v", w.horizon.wait.Holders)
	}
	for i, r := range w.readers {
		fmt.Fprintf(&b, " | reader %d at %d", i+1, r.after)
	}
	return b.String()
}

// waiting returns the world after 2 is committed, and 1 is not, and a reader
// has begun to wait for that.
func (w *gapWorld) waiting() *gapWorld {
	for _, m := range []move{{toOpen, 0, 0}, {toPlace, 0, 0}, {toOpen, 1, 0}, {toPlace, 1, 0}, {toCommit, 1, 0}, {toRead, 0, 0},
		{toQuery, 0, 0}, {toNext, 0, 0}, {toQuery, 0, 0}, {toNext, 0, 0}, {toQuery, 0, 0}, {toNext, 0, 0}} {
		w = w.after(m)
	}
	return w
}

func TestExploreGap(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		limit  int
		budget gapBudget
		scoped bool // one of the readers
		large  bool
	}{
		{"three transactions, a read fails", 2, gapBudget{transactions: 3, fail: 1}, false, false},
		{"three transactions, pages of one event", 1, gapBudget{transactions: 3}, false, false},
		{"three transactions, one prepared, the server restarts", 2, gapBudget{transactions: 3, prepare: 1, restart: 1}, false, false},

		{"three transactions, a scoped reader", 2, gapBudget{transactions: 3}, true, false},
		{"two transactions, one prepared, a scoped reader, the server restarts and a read fails", 1, gapBudget{transactions: 2, prepare: 1, restart: 1, fail: 1}, true, false},

		{"three transactions that take their positions first", 2, gapBudget{transactions: 3, first: 3}, false, false},
		{"three transactions, one goes back to a savepoint, a scoped reader", 2, gapBudget{transactions: 3, first: 1, savepoint: 1}, true, false},
		{"three transactions, two statements at a standby", 2, gapBudget{transactions: 3, astray: 2}, false, false},
		{"two transactions, a statement at a standby, which takes over", 2, gapBudget{transactions: 2, prepare: 1, astray: 1, promote: 1}, true, false},
		{"three transactions, the stream begins anew", 2, gapBudget{transactions: 3, truncate: 1}, false, false},
		{"three transactions, the sequence comes to cache", 2, gapBudget{transactions: 3, cache: 1}, false, false},

		{"four transactions", 2, gapBudget{transactions: 4}, false, true},
		{"four transactions, the stream begins anew", 2, gapBudget{transactions: 4, truncate: 1}, false, true},
		{"three transactions, all prepared, the server restarts", 2, gapBudget{transactions: 3, prepare: 3, restart: 1}, false, true},
		{"three transactions, one prepared, the server restarts and a read fails", 2, gapBudget{transactions: 3, prepare: 1, restart: 1, fail: 1}, false, true},
		{"four transactions, a scoped reader", 2, gapBudget{transactions: 4}, true, true},
	} {
		if tt.large && !*exploreAll {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			w := newGapWorld(tt.limit, tt.budget, gapBugs{})
			if tt.scoped {
				w.withScope()
			}
			logged(t, func() outcome { return explore(w, exploreMax) })
		})
	}
}
