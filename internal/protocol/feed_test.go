package protocol

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A feedWorld is a stream, the lanes of a process, and a feed in between. It
// reads, fails, and answers whenever the dice say so.
type feedWorld struct {
	*dice
	feed   *Feed
	now    time.Time
	stream []int64 // positions of committed events, all final
	lanes  []*laneAtFeed
	reads  []Fetch // under way
	most   int     // bytes that were kept at most, beyond one page for each window
	count  int     // reads there ever were
}

// A laneAtFeed is a lane. A scoped one is not to see odd positions.
type laneAtFeed struct {
	*FeedLane
	partition, total int
	began, after     int64
	seen             []int64
}

// slotAt is the slot of the event at a position.
func slotAt(position int64) int { return int(position * 31 % Slots) }

func (l *laneAtFeed) wants(position int64) bool {
	return slotAt(position)%l.total == l.partition && (l.scope == 0 || position%2 == 0)
}

const feedEventBytes = 10

func newFeedWorld(d *dice, c FeedConfig) *feedWorld {
	return &feedWorld{dice: d, feed: NewFeed(c), now: testStart}
}

func (w *feedWorld) append(n int) {
	last := int64(0)
	if k := len(w.stream); k > 0 {
		last = w.stream[k-1]
	}
	for range n {
		last += 1 + int64(w.below(3))
		w.stream = append(w.stream, last)
	}
}

func (w *feedWorld) enter(scope int, after int64) *laneAtFeed { return w.enterOn(scope, 0, 1, after) }

func (w *feedWorld) enterOn(scope, partition, total int, after int64) *laneAtFeed {
	l := &laneAtFeed{FeedLane: w.feed.Enter(scope, partition, total), partition: partition, total: total, began: after, after: after}
	w.lanes = append(w.lanes, l)
	return l
}

// ask has a lane ask once, and begins the reads that are due.
func (w *feedWorld) ask(l *laneAtFeed, limit int) (Serving, error) {
	s := w.feed.Ask(w.now, l.FeedLane, l.after, limit)
	if s.Count > limit {
		return s, fmt.Errorf("%d events for a lane that has asked for %d", s.Count, limit)
	}
	for _, k := range s.Page.Keys[s.First : s.First+s.Count] {
		if k.Position <= l.after {
			return s, fmt.Errorf("position %d for a lane that has asked for those above %d", k.Position, l.after)
		}
		if l.wants(k.Position) {
			l.seen = append(l.seen, k.Position)
		}
	}
	if s.Passed < l.after {
		return s, fmt.Errorf("a lane at %d is sent back to %d", l.after, s.Passed)
	}
	l.after = s.Passed
	return s, w.begin()
}

func (w *feedWorld) begin() error {
	for _, r := range w.feed.Fetches(w.now) {
		if slices.ContainsFunc(w.reads, func(o Fetch) bool { return o.Window == r.Window }) {
			return fmt.Errorf("window %d is read twice at once", r.Window)
		}
		if r.Limit < 1 {
			return errors.New("a read of nothing")
		}
		w.count++
		w.reads = append(w.reads, r)
	}
	kept := 0
	for _, win := range w.feed.windows {
		if len(win.pages) > 1 {
			kept += win.bytes()
		}
	}
	w.most = max(w.most, kept)
	return nil
}

// finish ends a read.
func (w *feedWorld) finish(i int, fails bool) error {
	r := w.reads[i]
	w.reads = slices.Delete(w.reads, i, i+1)
	if fails {
		w.feed.Failed(w.now, r.Window, errors.New("no"), w.below(2) == 0)
	} else {
		page := FeedPage{Passed: r.After}
		for _, p := range w.stream {
			switch {
			case p <= r.After:
				continue
			case r.Slots != nil && !r.Slots.Has(slotAt(p)):
				if !page.More {
					page.Passed = p
				}
			case len(page.Keys) == r.Limit:
				page.More = true
			case r.Scope == 0 || p%2 == 0:
				page.Keys, page.Passed = append(page.Keys, Key{Position: p, Slot: slotAt(p)}), p
				page.Bytes += feedEventBytes
			case !page.More:
				page.Passed = p
			}
		}
		w.feed.Fetched(w.now, r.Window, page)
	}
	return w.begin()
}

// check compares what the lanes have seen with the stream.
func (w *feedWorld) check() error {
	for i, l := range w.lanes {
		var want []int64
		for _, p := range w.stream {
			if p > l.began && p <= l.after && l.wants(p) {
				want = append(want, p)
			}
		}
		if !slices.Equal(l.seen, want) {
			return fmt.Errorf("lane %d went from %d to %d and saw %v, want %v", i, l.began, l.after, l.seen, want)
		}
	}
	return nil
}

// Lanes come and go, at different paces, from different positions; reads take
// their time or fail. Each lane sees every event once, and memory is bounded.
func playFeed(data []byte) error {
	d := &dice{data}
	w := newFeedWorld(d, FeedConfig{Bytes: 100 + 10*d.below(40), Page: 1 + d.below(12), Poll: time.Second, BySlot: d.below(2) == 0})
	w.append(d.below(60))
	for steps := 0; !d.empty() && steps < 600; steps++ {
		var err error
		switch op := d.below(12); {
		case op == 0:
			w.append(d.below(8))
		case op == 1 && len(w.lanes) < 8:
			total := []int{1, 2, 3, 8}[d.below(4)]
			w.enterOn(d.below(3), d.below(total), total, int64(d.below(40)))
		case op == 2 && len(w.lanes) > 0 && d.below(3) == 0:
			i := d.below(len(w.lanes))
			w.feed.Leave(w.lanes[i].FeedLane)
			w.lanes = slices.Delete(w.lanes, i, i+1)
		case op < 6 && len(w.reads) > 0:
			err = w.finish(d.below(len(w.reads)), d.below(6) == 0)
		case op == 6:
			w.now = w.now.Add(time.Duration(d.below(2000)) * time.Millisecond)
			err = w.begin()
		case op == 7 && d.below(4) == 0:
			w.feed.Hint()
			err = w.begin()
		case len(w.lanes) > 0:
			_, err = w.ask(w.lanes[d.below(len(w.lanes))], 1+d.below(15))
		}
		if err == nil {
			err = w.check()
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", steps, err)
		}
		// How large the pages to come are is only known from those that were.
		if page := w.feed.config.Page * feedEventBytes; w.most > w.feed.config.Bytes+aheadPages*page*max(1, len(w.feed.windows)) {
			return fmt.Errorf("step %d: %d bytes are kept, of %d that may be", steps, w.most, w.feed.config.Bytes)
		}
	}
	return w.drain()
}

// drain lets everybody read to the end, and demands that nobody is left
// waiting.
func (w *feedWorld) drain() error {
	end := int64(0)
	if n := len(w.stream); n > 0 {
		end = w.stream[n-1]
	}
	for range 20 * (len(w.stream) + 20) {
		left := 0
		for _, l := range w.lanes {
			if l.after < end {
				left++
			}
			if _, err := w.ask(l, 10); err != nil {
				return err
			}
		}
		for len(w.reads) > 0 {
			if err := w.finish(0, false); err != nil {
				return err
			}
		}
		if left == 0 {
			return w.check()
		}
		if at := w.feed.Next(); at.After(w.now) {
			w.now = at
		}
		if err := w.begin(); err != nil {
			return err
		}
	}
	return fmt.Errorf("the lanes don't get to the end of the stream, at %d", end)
}

func TestRandomFeeds(t *testing.T) {
	t.Parallel()
	for seed := range int64(1500) {
		if err := playFeed(randomBytes(seed, 900)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzFeed(f *testing.F) {
	for seed := range int64(6) {
		f.Add(randomBytes(seed, 900))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := playFeed(data); err != nil {
			t.Fatal(err)
		}
	})
}

// all has the lanes read the whole stream, in turns, and returns how many reads
// that took.
func (w *feedWorld) all(t *testing.T, limit int) int {
	t.Helper()
	before := w.count
	end := w.stream[len(w.stream)-1]
	for slices.ContainsFunc(w.lanes, func(l *laneAtFeed) bool { return l.after < end }) {
		for _, l := range w.lanes {
			if _, err := w.ask(l, limit); err != nil {
				t.Fatal(err)
			}
		}
		for len(w.reads) > 0 {
			if err := w.finish(0, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.check(); err != nil {
			t.Fatal(err)
		}
	}
	return w.count - before
}

func streamOf(n int, c FeedConfig) *feedWorld {
	w := newFeedWorld(&dice{}, c)
	for p := range int64(n) {
		w.stream = append(w.stream, p+1)
	}
	return w
}

// Lanes that stand near each other share their reads, of whatever scope; a
// laggard reads for itself until it has caught up.
func TestFeedReadsOnce(t *testing.T) {
	c := FeedConfig{Bytes: 1000 * feedEventBytes, Page: 100, Poll: time.Second}
	w := streamOf(10_000, c)
	for _, scope := range []int{0, 0, 0, 1, 2} {
		w.enter(scope, 0)
	}
	if n := w.all(t, 30); n < 100 || n > 105 {
		t.Errorf("five lanes near each other took %d reads of 100 for 10000 events", n)
	}
	w.enter(0, 5000)
	if n := w.all(t, 100); n < 50 || n > 55 {
		t.Errorf("a lane that is 5000 events behind took %d reads of 100", n)
	}
	if _, err := w.ask(w.lanes[5], 100); err != nil {
		t.Fatal(err)
	}
	if n := len(w.feed.windows); n != 1 {
		t.Errorf("everybody has caught up, and there are %d windows", n)
	}

	w = streamOf(10_000, c)
	w.enter(1, 0)
	w.enter(2, 0)
	if n := w.all(t, 100); n < 100 || n > 106 {
		t.Errorf("two scopes, half of the events each, and nobody for the rest: %d reads of 100", n)
	}
}

// A process that has a small part of the slots reads that of a backlog, once for
// all of its lanes; and at the end of the stream everything.
func TestFeedReadsBySlot(t *testing.T) {
	c := FeedConfig{Bytes: 1000 * feedEventBytes, Page: 100, Poll: time.Second, BySlot: true}
	for _, tt := range []struct {
		name       string
		partitions []int // of 8
		slots      int   // of each read of the backlog but the first; 0: all
	}{
		{"one partition", []int{3}, Slots / 8},
		{"several partitions, and two projections on one", []int{3, 3, 4}, Slots / 4},
		{"half of all", []int{0, 2, 4, 6}, Slots / 2},
		{"more than half", []int{0, 1, 2, 4, 6}, 0},
	} {
		w := streamOf(10_000, c)
		for _, k := range tt.partitions {
			w.enterOn(0, k, 8, 0)
		}
		for i := 0; w.lanes[0].after < w.stream[len(w.stream)-1]; i++ {
			for _, l := range w.lanes {
				if _, err := w.ask(l, 100); err != nil {
					t.Fatal(err)
				}
			}
			if len(w.reads) > 1 {
				t.Fatalf("%s: %d reads at once", tt.name, len(w.reads))
			}
			if len(w.reads) == 0 {
				continue
			}
			n := 0
			if r := w.reads[0]; r.Slots != nil {
				n = r.Slots.Len()
			}
			if want := tt.slots; n != want && w.count > 1 {
				t.Fatalf("%s: read %d is of %d slots, want %d", tt.name, w.count, n, want)
			}
			if err := w.finish(0, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.check(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		l := w.lanes[0]
		if _, err := w.ask(l, 100); err != nil {
			t.Fatal(err)
		}
		if len(w.reads) != 1 || w.reads[0].Slots != nil {
			t.Errorf("%s: at the end, the reads are %+v", tt.name, w.reads)
		}
	}
}

// Whoever comes with other slots is not served from pages that lack them, and
// those who were there go over to its window.
//  1. a lane of partition 0 of 8 reads its part;
//  2. one of partition 1 enters, at the same position.
func TestFeedWidens(t *testing.T) {
	w := streamOf(2000, FeedConfig{Bytes: 1000 * feedEventBytes, Page: 100, Poll: time.Second, BySlot: true})
	first := w.enterOn(0, 0, 8, 0)
	for first.after < 500 {
		if _, err := w.ask(first, 10); err != nil {
			t.Fatal(err)
		}
		for len(w.reads) > 0 {
			if err := w.finish(0, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.enterOn(0, 1, 8, first.after)
	w.all(t, 10)
	if n := len(w.feed.windows); n != 1 {
		t.Errorf("two lanes at the end have %d windows", n)
	}
}

func TestSlotSet(t *testing.T) {
	var s SlotSet
	for _, k := range []int{1, 4} {
		part := SlotsOf(k, 7)
		s.Add(&part)
	}
	for slot := range Slots {
		if want := slot%7 == 1 || slot%7 == 4; s.Has(slot) != want {
			t.Fatalf("slot %d: %t", slot, !want)
		}
	}
	one, other, all := SlotsOf(4, 7), SlotsOf(0, 2), SlotsOf(0, 1)
	if s.Len() != 2*Slots/7 || !s.Covers(&one) || s.Covers(&other) || !all.Covers(&s) {
		t.Errorf("%d slots, covers a part: %t, and another: %t, is covered: %t", s.Len(), s.Covers(&one), s.Covers(&other), all.Covers(&s))
	}
	if n, m := s.Span(100), s.Span(1_000_000); n != 350 || m != spanMax {
		t.Errorf("it looks at %d events for 100 of its own, and %d for a million", n, m)
	}
	keys := []Key{{Position: 5, Slot: 1}, {Position: 6, Slot: 2}, {Position: 8, Slot: 4}, {Position: 9, Slot: 0}}
	for _, c := range []struct {
		limit   int
		own     []int64
		through int64
	}{{1, []int64{5}, 7}, {2, []int64{5, 8}, 9}, {3, []int64{5, 8}, 9}} {
		if own, through := s.Own(keys, c.limit, 9); !slices.Equal(own, c.own) || through != c.through {
			t.Errorf("of limit %d: %v through %d, want %v through %d", c.limit, own, through, c.own, c.through)
		}
	}
	shared := []Key{{Position: 5, Slot: 1}, {Position: 5, Slot: 4}, {Position: 8, Slot: 4}}
	if own, through := s.Own(shared, 1, 9); !slices.Equal(own, []int64{5, 5}) || through != 7 {
		t.Errorf("of two at one position: %v through %d", own, through)
	}
}

// What a feed says to a lane that stands at the end.
func TestFeedAtTheEnd(t *testing.T) {
	w := streamOf(2, FeedConfig{Bytes: 1000, Page: 10, Poll: 20 * time.Millisecond})
	l := w.enter(0, 0)
	var log strings.Builder
	ask := func() {
		t.Helper()
		s, err := w.ask(l, 10)
		if err != nil {
			t.Fatal(err)
		}
		word := "nothing"
		switch {
		case s.Wait:
			word = "wait"
		case s.Failed != nil:
			word = "failed"
		case s.Count > 0:
			word = fmt.Sprintf("%d to %d", s.Count, s.Passed)
		}
		next := "never"
		if at := w.feed.Next(); !at.IsZero() {
			next = at.Sub(w.now).String()
		}
		fmt.Fprintf(&log, "%s, %d reads under way, next in %s\n", word, len(w.reads), next)
	}
	finish := func(fails bool) {
		t.Helper()
		if err := w.finish(0, fails); err != nil {
			t.Fatal(err)
		}
	}
	later := func(d time.Duration) {
		t.Helper()
		w.now = w.now.Add(d)
		if err := w.begin(); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	ask()
	finish(false)
	ask()
	ask() // at the end: looks at once
	finish(false)
	ask() // nothing, and a look in 5ms
	later(5 * time.Millisecond)
	ask() // waits for it
	finish(false)
	ask() // ever later
	later(10 * time.Millisecond)
	finish(false)
	later(20 * time.Millisecond)
	finish(false)
	ask() // but not later than Poll
	w.feed.Hint()
	ask() // soon, as after an event
	later(5 * time.Millisecond)
	w.feed.Hint() // of what the read that is under way may not see
	finish(false)
	ask() // as soon again
	later(5 * time.Millisecond)
	finish(false)
	later(7 * time.Millisecond)
	w.feed.Hint()
	ask() // at once
	w.append(1)
	finish(true)
	w.feed.Hint() // knows nothing of why it failed
	ask()         // whoever asks hears of it, until the next try
	later(10 * time.Millisecond)
	finish(false)
	ask()
	want := `wait, 1 reads under way, next in never
wait, 1 reads under way, next in never
2 to 2, 0 reads under way, next in never
wait, 1 reads under way, next in never
nothing, 0 reads under way, next in 5ms
wait, 1 reads under way, next in never
nothing, 0 reads under way, next in 10ms
nothing, 0 reads under way, next in 20ms
nothing, 0 reads under way, next in 5ms
nothing, 0 reads under way, next in 5ms
wait, 1 reads under way, next in never
failed, 0 reads under way, next in 10ms
1 to 3, 0 reads under way, next in never
`
	if log.String() != want {
		t.Errorf("got\n%s\nwant\n%s", log.String(), want)
	}
}

// What breaks the contract of an event store reaches the lane as it is.
func TestFeedPassesOnWhatIsWrong(t *testing.T) {
	w := streamOf(1, FeedConfig{Bytes: 1000, Page: 10, Poll: time.Second})
	l := w.enter(0, 4)
	w.feed.Ask(w.now, l.FeedLane, 4, 10)
	r := w.feed.Fetches(w.now)
	bad := []Key{{Position: 6}, {Position: 5}}
	w.feed.Fetched(w.now, r[0].Window, FeedPage{Keys: bad, Passed: 5})
	for range 2 {
		if s := w.feed.Ask(w.now, l.FeedLane, 4, 1); s.Wait || s.Count != 2 || !slices.Equal(s.Page.Keys, bad) {
			t.Errorf("got %+v", s)
		}
	}
	if r := w.feed.Fetches(w.now.Add(time.Hour)); len(r) > 0 {
		t.Errorf("it reads on: %+v", r)
	}
}

// A reader takes another way where much is to come than where little is: after a read that
// its limits have cut short there is, and at first and at the end nobody knows of any.
func TestFetchSaysWhetherMuchIsToCome(t *testing.T) {
	now := time.Unix(0, 0)
	f := NewFeed(FeedConfig{Bytes: 1 << 20, Page: 10, Poll: time.Second})
	l := f.Enter(0, 0, 1)
	var got []bool
	for position, cut := range []bool{true, true, false, false} {
		f.Ask(now, l, int64(position), 10)
		for _, r := range f.Fetches(now) {
			got = append(got, r.More)
			p := int64(position + 1)
			f.Fetched(now, r.Window, FeedPage{Keys: []Key{{Position: p}}, Passed: p, More: cut, Bytes: 1})
		}
	}
	if want := []bool{false, true, true, false}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A page is as large as the last ones let expect, at once.
func TestFeedAdaptsToSizes(t *testing.T) {
	const page, bytes = 2000, 15_000_000 // of which a third is one page
	f := NewFeed(FeedConfig{Bytes: bytes, Page: page, Poll: time.Second})
	now := testStart
	l := f.Enter(0, 0, 1)
	after := int64(0)
	// read has the window read on, and answers with as many events of a size as were
	// asked for, cut where they exceed the bytes.
	read := func(size int) (limit, took int) {
		t.Helper()
		for s := f.Ask(now, l, after, page); ; s = f.Ask(now, l, after, page) {
			after = s.Passed
			fetches := f.Fetches(now)
			if len(fetches) == 0 {
				continue
			}
			r := fetches[0]
			p := FeedPage{Passed: r.After, More: true}
			for len(p.Keys) < r.Limit && p.Bytes <= r.Bytes {
				p.Passed++
				p.Bytes += size
				p.Keys = append(p.Keys, Key{Position: p.Passed})
			}
			f.Fetched(now, r.Window, p)
			return r.Limit, len(p.Keys)
		}
	}
	if limit, _ := read(100); limit != firstPage {
		t.Errorf("the first page is of %d events", limit)
	}
	for range 20 {
		read(100)
	}
	if limit, took := read(200_000); limit != page || took != 26 {
		t.Errorf("before anybody could know: %d of %d", took, limit)
	}
	for i := range 3 {
		if limit, took := read(200_000); limit > 25 || limit < 15 || took != limit {
			t.Errorf("page %d after the first large one: %d of %d", i+1, took, limit)
		}
	}
	small := 0
	for limit, _ := read(100); limit < page; limit, _ = read(100) {
		if small++; small > 6 {
			t.Fatalf("after %d small pages, %d are asked for", small, limit)
		}
	}
}

// A read that was too large is asked for smaller, until it succeeds; and only little by
// little for more again.
func TestFeedAsksForLessAfterAFailure(t *testing.T) {
	f := NewFeed(FeedConfig{Bytes: 1 << 30, Page: 2000, Poll: time.Second})
	now, after := testStart, int64(0)
	l := f.Enter(0, 0, 1)
	limits := func(most int) (out []int) { // those that were asked for until one was at most that
		for {
			now = now.Add(time.Minute)
			after = f.Ask(now, l, after, 2000).Passed
			for _, r := range f.Fetches(now) {
				if out = append(out, r.Limit); r.Limit > most {
					f.Failed(now, r.Window, errors.New("statement timeout"), true)
					continue
				}
				p := FeedPage{Passed: r.After + int64(r.Limit), More: true, Bytes: r.Limit}
				for i := range r.Limit {
					p.Keys = append(p.Keys, Key{Position: r.After + int64(i) + 1})
				}
				f.Fetched(now, r.Window, p)
				return out
			}
		}
	}
	limits(2000)
	if got := limits(2000); !slices.Equal(got, []int{2000}) {
		t.Errorf("when all is well: %v", got)
	}
	if got := limits(300); !slices.Equal(got, []int{2000, 1000, 500, 250}) {
		t.Errorf("asked for %v", got)
	}
	if got := limits(300); !slices.Equal(got, []int{281}) {
		t.Errorf("after one that has succeeded: %v", got)
	}
	if got := limits(1); got[len(got)-1] != 1 {
		t.Errorf("asked for %v", got)
	}
	n := 0
	for got := limits(2000); got[0] < 2000; got = limits(2000) {
		n++
	}
	if n < 10 || n > 100 {
		t.Errorf("%d pages until the full size again", n)
	}
}

// While hints of new events come, the feed looks less often by itself; before one has
// come, and once the connection is gone, as often as without.
//
//  1. hints come, and the next look is put off for hintedPolls times Poll;
//  2. the connection is gone, and an event is appended, of which nobody hears;
//  3. without a look at once, the event would wait for all that time.
func TestFeedTrustsHints(t *testing.T) {
	const poll = time.Second
	now := time.Unix(1000, 0)
	f := NewFeed(FeedConfig{Bytes: 1 << 20, Page: 100, Poll: poll})
	lane := f.Enter(0, 0, 1)
	// longest lets the feed find nothing until the time between two looks is the longest.
	longest := func() time.Duration {
		for range 20 {
			f.Ask(now, lane, 0, 100)
			for _, r := range f.Fetches(now) {
				f.Fetched(now, r.Window, FeedPage{})
			}
			at := f.Next()
			if at.Sub(now) >= hintedPolls*poll {
				return at.Sub(now)
			}
			now = at
		}
		f.Ask(now, lane, 0, 100)
		for _, r := range f.Fetches(now) {
			f.Fetched(now, r.Window, FeedPage{})
		}
		return f.Next().Sub(now)
	}
	expect := func(when string, want time.Duration) {
		t.Helper()
		if got := longest(); got != want {
			t.Errorf("%s: %s between two looks, want %s", when, got, want)
		}
	}
	soon := func(when string) {
		t.Helper()
		if wait := f.Next().Sub(now); wait > pollFirst {
			t.Errorf("%s: the next look is in %s", when, wait)
		}
	}
	a, b := f.Listen(), f.Listen()
	expect("nobody listens", poll)
	a.Hear(HintsUp)
	soon("the connection is there: what was said before was missed")
	expect("nothing has come", poll)
	a.Hear(HintHeard)
	soon("a hint")
	expect("hints come", hintedPolls*poll)
	b.Hear(HintHeard)
	expect("to both", hintedPolls*poll)
	a.Hear(HintsDown)
	soon("one is gone")
	expect("the other still hears", hintedPolls*poll)
	b.Hear(HintsUp)
	soon("another connection")
	expect("over which nothing has come", poll)
	b.Hear(HintHeard)
	expect("hints come", hintedPolls*poll)
	b.Hear(HintsDown)
	b.Hear(HintsDown)
	a.Hear(HintsDown)
	soon("all are gone")
	expect("all are gone", poll)
	a.Hear(HintHeard)
	expect("hints come again", hintedPolls*poll)
}

// How far a page of an event store that is the program's own reaches.
func TestStorePage(t *testing.T) {
	for _, c := range []struct {
		why       string
		positions []int64
		through   int64
		more      bool
		passed    int64
		again     bool
		ascending bool
	}{
		{"nothing", nil, 0, false, 10, false, true},
		{"nothing, and it says up to where", nil, 25, false, 25, false, true},
		{"nothing passed: it would be asked at once, for ever", nil, 0, true, 10, false, true},
		{"a position that was passed before", nil, 7, true, 10, false, true},
		{"less than it could be: the end", []int64{11, 12}, 0, false, 12, false, true},
		{"less than it could be, and there is more", []int64{11, 12}, 0, true, 12, true, true},
		{"as many as were asked for", []int64{11, 12, 15}, 0, false, 15, true, true},
		{"as many as were asked for, and it says that it has seen more", []int64{11, 12, 15}, 30, false, 15, true, true},
		{"it has seen more than it returns", []int64{11, 12}, 20, true, 20, true, true},
		{"it forgets its own records", []int64{11, 12}, 11, false, 12, false, true},
		{"at the position itself", []int64{10, 11}, 0, false, 11, false, false},
		{"twice", []int64{11, 11}, 0, false, 11, false, false},
		{"backwards", []int64{12, 11}, 0, false, 12, false, false},
	} {
		passed, again, ascending, err := StorePage(10, 3, c.positions, c.through, c.more)
		if stuck := c.more && len(c.positions) == 0 && c.through <= 10; (err != nil) != stuck {
			t.Errorf("%s: %v", c.why, err)
		}
		if passed != c.passed || again != c.again || ascending != c.ascending {
			t.Errorf("%s: passed %d, again %t, ascending %t; want %d, %t, %t", c.why, passed, again, ascending, c.passed, c.again, c.ascending)
		}
	}
}

func TestPageFull(t *testing.T) {
	for _, c := range []struct {
		why         string
		bytes, most int
		n, limit    int
		want        bool
	}{
		{"there is room", 100, 100, 1, 10, false},
		{"there is none", 101, 100, 1, 10, true},
		{"no bound", 1 << 30, 0, 1, 10, false},
		{"it ends anyway", 101, 100, 10, 10, false},
	} {
		if got := PageFull(c.bytes, c.most, c.n, c.limit); got != c.want {
			t.Errorf("%s: %t", c.why, got)
		}
	}
	a := ReadAction{Passed: 40}
	if passed, more := a.OwnPassed(40, 0); passed != 40 || more {
		t.Errorf("all of its own: %d, %t", passed, more)
	}
	if passed, more := a.OwnPassed(30, 0); passed != 30 || !more {
		t.Errorf("there were more of its own: %d, %t", passed, more)
	}
	if passed, more := a.OwnPassed(40, 20); passed != 20 || !more {
		t.Errorf("the rows were cut: %d, %t", passed, more)
	}
	if passed, more := (ReadAction{Passed: 40, More: true}).OwnPassed(40, 0); passed != 40 || !more {
		t.Errorf("there was more to look at: %d, %t", passed, more)
	}
}
