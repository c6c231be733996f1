package protocol

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAdmit(t *testing.T) {
	for _, tt := range []struct {
		why          string
		after, final int64
		positions    []int64
		n            int
		missing      int64
	}{
		{"nothing was read", 5, 5, nil, 0, 0},
		{"contiguous: nothing to ask", 5, 0, []int64{6, 7, 8}, 3, 0},
		{"only what precedes the gap", 5, 0, []int64{6, 8, 9}, 1, 7},
		{"a gap right at the start", 5, 0, []int64{7}, 0, 6},
		{"a gap below the horizon was rolled back", 5, 7, []int64{6, 8, 9}, 3, 0},
		{"a gap that ends at the horizon as well", 5, 9, []int64{10}, 1, 0},
		{"a gap that reaches beyond the horizon: what is missing is beyond it", 5, 8, []int64{11}, 0, 9},
		{"an old gap and a new one", 0, 5, []int64{3, 5, 6, 8}, 3, 7},
	} {
		n, missing := Admit(tt.after, tt.final, tt.positions)
		if n != tt.n || missing != tt.missing {
			t.Errorf("%s: %d admitted and %d missing, want %d and %d", tt.why, n, missing, tt.n, tt.missing)
		}
	}
}

var (
	writer    = Holder{Transaction: "3/17", Backend: 100}
	bystander = Holder{Transaction: "4/2", Backend: 101}
	prepared  = Holder{Transaction: "-1/731"}
)

// What a reader does when t, which took position 5, is still open and 6 is
// committed. Each row is one way in which t may end.
func TestHorizonRounds(t *testing.T) {
	type round struct {
		holders []Holder
		over    bool
	}
	for _, tt := range []struct {
		why    string
		begin  []Holder
		rounds []round
	}{
		{"nobody holds the lock: rolled back before it was looked for", nil, nil},
		{"t ends", []Holder{writer}, []round{{[]Holder{writer}, false}, {nil, true}}},
		{"whoever comes later can't fill an old gap", []Holder{writer}, []round{{[]Holder{bystander}, true}}},
		{"all must have ended, in any order", []Holder{writer, bystander},
			[]round{{[]Holder{writer}, false}, {[]Holder{bystander}, true}}},
		{"t is prepared: its locks have a new name, and 5 may still be committed", []Holder{writer},
			[]round{{[]Holder{prepared}, false}, {[]Holder{prepared}, false}, {nil, true}}},
		{"t is prepared in a later round, another holds on", []Holder{writer, bystander},
			[]round{{[]Holder{prepared, bystander}, false}, {[]Holder{bystander}, false}, {nil, true}}},
		{"t was prepared from the start", []Holder{prepared}, []round{{[]Holder{prepared}, false}, {nil, true}}},
		{"a prepared one that ends is not prepared again: others' need not be waited for", []Holder{prepared},
			[]round{{[]Holder{{Transaction: "-1/800"}}, true}}},
		{"a stranger prepared before t ends is none of ours while t holds on", []Holder{writer},
			[]round{{[]Holder{writer, prepared}, false}, {[]Holder{}, true}}},
	} {
		t.Run(tt.why, func(t *testing.T) {
			var h Horizon
			if over := h.Begin(5, 6, tt.begin, testStart); over != (tt.rounds == nil) {
				t.Fatalf("begin: nothing to wait for is %t", over)
			}
			for i, r := range tt.rounds {
				if h.Final() != 0 {
					t.Fatalf("before round %d: final up to %d", i+1, h.Final())
				}
				if over := h.Observe(r.holders); over != r.over {
					t.Fatalf("round %d: over is %t", i+1, over)
				}
			}
			if h.Final() != 6 {
				t.Errorf("in the end: final up to %d, want 6", h.Final())
			}
			if wait, waiting := h.Waiting(); waiting {
				t.Errorf("in the end it waits: %v", wait)
			}
		})
	}
}

func TestHorizonWait(t *testing.T) {
	var h Horizon
	if h.Observe(nil) || h.Final() != 0 {
		t.Fatal("nothing to wait for, and it is over")
	}
	holders := []Holder{writer}
	h.Begin(5, 6, holders, testStart)
	holders[0] = bystander // the caller's to use again
	// A second gap is met meanwhile. Its writer was not listed, so a wait for
	// the first must not count for it.
	if h.Begin(8, 9, nil, testStart) {
		t.Error("a wait is over because another was begun with nobody to wait for")
	}
	wait, waiting := h.Waiting()
	if diff := cmp.Diff(GapWait{Position: 5, Since: testStart, Holders: []Holder{writer}}, wait); diff != "" || !waiting {
		t.Errorf("waiting is %t, -want +got:\n%s", waiting, diff)
	}
	if !h.Observe(nil) || h.Final() != 6 {
		t.Errorf("final up to %d, want 6 and not the second gap's 9", h.Final())
	}
	h.Begin(3, 4, nil, testStart)
	h.Begin(3, 4, []Holder{writer}, testStart)
	h.Observe(nil)
	if h.Final() != 6 {
		t.Errorf("a reader far behind has pulled the horizon back to %d", h.Final())
	}
}

// What was asked beside all readings saves the next one the question, unless it does not fit
// what they know.
func TestHorizonBelieves(t *testing.T) {
	var h Horizon
	if !h.Believe("a", 7, testStart) || h.due(testStart.Add(time.Second)) {
		t.Error("nothing was known, and the first answer is not believed")
	}
	h.Begin(5, 6, nil, testStart) // final up to 6
	for _, a := range []struct {
		epoch Epoch
		high  int64
	}{{"b", 7}, {"a", 5}} {
		if h.Believe(a.epoch, a.high, testStart.Add(time.Minute)) || !h.due(testStart.Add(time.Minute)) || h.Final() != 6 {
			t.Errorf("%+v is believed of %+v", a, h)
		}
	}
	if !h.Believe("a", 6, testStart.Add(time.Minute)) || h.due(testStart.Add(time.Minute+AskEvery-1)) || !h.due(testStart.Add(time.Minute+AskEvery)) {
		t.Errorf("the answer does not count from when it was asked for: %+v", h)
	}
}

// A page that was read before the horizon was known proves nothing:
//  1. t takes position 1, 2 is committed; the reader reads {2};
//  2. t commits, and nobody holds the lock any more;
//  3. the horizon is 2, and the page looks as if 1 had been rolled back.
func TestLatePageProvesNothing(t *testing.T) {
	var h Horizon
	final := h.Final() // taken before the read
	page := []int64{2}
	h.Begin(1, 2, nil, testStart)
	if n, missing := Admit(0, final, page); n != 0 || missing != 1 {
		t.Errorf("%d of the old page admitted, %d missing: event 1 is lost", n, missing)
	}
	if n, missing := Admit(0, h.Final(), []int64{1, 2}); n != 2 || missing != 0 {
		t.Errorf("%d of the new page admitted, %d missing", n, missing)
	}
}

// An eventsTable is PostgreSQL as far as positions, locks and visibility go.
type eventsTable struct {
	sequence int64
	open     []*writing
	visible  []int64
	names    int
}

// A writing transaction holds the lock from before its first position until
// it has ended, under a new name once it is prepared.
type writing struct {
	holder    Holder
	positions []int64
}

func (e *eventsTable) begin() {
	e.names++
	e.open = append(e.open, &writing{holder: Holder{Transaction: fmt.Sprintf("%d/%d", 3+e.names%2, e.names), Backend: 100 + e.names}})
}

func (e *eventsTable) insert(t *writing) {
	e.sequence++
	t.positions = append(t.positions, e.sequence)
}

func (e *eventsTable) prepare(t *writing) {
	e.names++
	t.holder = Holder{Transaction: fmt.Sprintf("-1/%d", 700+e.names)}
}

func (e *eventsTable) end(t *writing, commit bool) {
	if commit {
		e.visible = append(e.visible, t.positions...)
		slices.Sort(e.visible)
	}
	e.open = slices.DeleteFunc(e.open, func(o *writing) bool { return o == t })
}

func (e *eventsTable) holders() []Holder {
	var out []Holder
	for _, t := range e.open {
		out = append(out, t.holder)
	}
	return out
}

func (e *eventsTable) after(position int64, limit int) []int64 {
	i, _ := slices.BinarySearch(e.visible, position+1)
	return slices.Clone(e.visible[i:min(i+limit, len(e.visible))])
}

func (e *eventsTable) high() int64 {
	if len(e.visible) == 0 {
		return 0
	}
	return e.visible[len(e.visible)-1]
}

// first returns the first position above one that is not there, and the last
// that is, among the next limit.
func (e *eventsTable) first(above int64, limit int) (missing, last int64) {
	for _, p := range e.after(above, limit) {
		if missing == 0 && p > max(above, last)+1 {
			missing = max(above, last) + 1
		}
		last = p
	}
	return missing, last
}

// A gapReader reads the table in steps, between which anything may happen.
// Each statement has a snapshot of its own. A scoped one is not to see odd
// positions.
type gapReader struct {
	cursor int64
	seen   []int64
	scoped bool

	reading Reading
	action  ReadAction // ReadStart: there is no reading
	looked  bool       // its answer is there
	answer  ReadAnswer
	page    []int64

	table   *eventsTable
	horizon *Horizon // shared with other readers
	limit   int
}

func (r *gapReader) step() {
	switch {
	case r.action.Do == ReadStart:
		r.reading, r.page, r.answer = NewReading(r.horizon, r.cursor, r.limit), nil, ReadAnswer{}
		if r.scoped {
			r.reading = r.reading.Scoped()
		}
		r.next()
	case r.looked:
		r.next()
	default:
		r.look()
	}
}

func (r *gapReader) look() {
	r.looked, r.answer = true, ReadAnswer{}
	switch a := r.action; a.Do {
	case ReadAsk:
		r.answer.High = r.table.high()
	case ReadHolders:
		r.answer.Holders, r.answer.High = r.table.holders(), r.table.high()
	case ReadHigh:
		r.answer.High = r.table.high()
	case ReadAhead:
		r.answer.Missing, r.answer.Last = r.table.first(a.After, 2*r.limit)
	case ReadPage:
		r.page = slices.DeleteFunc(r.table.after(a.After, 1000), func(p int64) bool {
			return r.scoped && p%2 == 1 || a.Through != 0 && p > a.Through
		})
		r.page = r.page[:min(r.limit, len(r.page))]
		r.answer.Positions = r.page
	}
}

func (r *gapReader) next() {
	r.action, r.looked = r.reading.Next(testStart, r.answer), false
	if r.action.Do == ReadDone {
		r.seen, r.cursor = append(r.seen, r.page[:r.action.Take]...), r.action.Passed
		r.action = ReadAction{}
	}
}

// playHorizon has writers and one or two readers act in any order. In the
// end all transactions end, and everybody must have seen every committed
// event once, in order.
//
// Two readers share a horizon, and hold a lock from their look at the table to
// telling the horizon what they saw: a list from before the other one's Begin
// would answer for writers that it does not hold.
func playHorizon(data []byte) error {
	d := &dice{data}
	table, horizon := &eventsTable{}, &Horizon{}
	readers := make([]*gapReader, 1+d.below(2))
	for i := range readers {
		readers[i] = &gapReader{table: table, horizon: horizon, limit: 1 + d.below(5), scoped: d.below(3) == 0}
	}
	advance := func(r *gapReader) {
		r.step()
		for len(readers) > 1 && r.action.Turn {
			r.step()
		}
	}
	for steps := 0; !d.empty() && steps < 500; steps++ {
		op := d.below(10)
		if op < 4 {
			advance(readers[d.below(len(readers))])
			continue
		}
		if len(table.open) == 0 || op == 4 {
			table.begin()
			continue
		}
		t := table.open[d.below(len(table.open))]
		switch isPrepared := t.holder.Backend == 0; op {
		case 5, 6:
			if !isPrepared {
				table.insert(t)
			}
		case 7:
			if !isPrepared {
				table.prepare(t)
			}
		case 8:
			table.end(t, true)
		case 9:
			table.end(t, false)
		}
	}
	for len(table.open) > 0 {
		table.end(table.open[0], d.below(2) == 0)
	}
	for range 20 * (len(table.visible) + 10) {
		for _, r := range readers {
			advance(r)
		}
	}
	for i, r := range readers {
		want := slices.DeleteFunc(slices.Clone(table.visible), func(p int64) bool { return r.scoped && p%2 == 1 })
		if !slices.Equal(r.seen, want) {
			return fmt.Errorf("reader %d has seen %v, and %v are committed", i, r.seen, want)
		}
	}
	return nil
}

func TestRandomHorizons(t *testing.T) {
	for seed := range int64(2000) {
		if err := playHorizon(randomBytes(seed, 250)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzHorizon(f *testing.F) {
	// t takes 1, u takes 2 and commits; the reader lists t; t is prepared, the
	// reader looks, t is committed.
	f.Add([]byte{0, 4, 4, 4, 5, 0, 5, 1, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0})
	for seed := range int64(6) {
		f.Add(randomBytes(seed, 250))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := playHorizon(data); err != nil {
			t.Fatal(err)
		}
	})
}
