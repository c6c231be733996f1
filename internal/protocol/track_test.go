package protocol

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func keys(pairs ...int) []Key {
	var out []Key
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, Key{Position: int64(pairs[i]), Slot: pairs[i+1]})
	}
	return out
}

func TestTrackAccept(t *testing.T) {
	ahead := Checkpoint{Position: 10, Ahead: []Mark{{Slot: 2, Position: 12}}}
	tests := []struct {
		why    string
		page   []Key
		passed int64
		keep   []int
		cursor int64
		err    string
	}{
		{"nothing new", nil, 10, nil, 10, ""},
		{"nothing within the scope of the projection, but the reader has looked further", nil, 20, nil, 20, ""},
		{"the reader has looked further than the last event", keys(11, 0), 20, []int{0}, 20, ""},
		{"of two partitions only its own; the cursor passes the other's", keys(11, 0, 13, 1, 14, 3, 15, 4), 15, []int{0, 3}, 15, ""},
		{"at its slot's mark or below it is handled, beyond it is not", keys(11, 2, 12, 2, 13, 2), 0, []int{2}, 13, ""},
		{"what is out of scope is passed", []Key{{Position: 11, Skip: true}, {Position: 12}}, 0, []int{1}, 12, ""},
		{"a mark speaks for its slot only", keys(11, 4, 12, 0), 0, []int{0, 1}, 12, ""},
		{"gaps are not a lane's business", keys(500, 0), 0, []int{0}, 500, ""},
		{"the position at the cursor was handled", keys(10, 0), 0, nil, 10,
			"event 1 of a page has position 10, but only positions above 10 were requested"},
		{"an old page", keys(11, 0, 9, 0), 0, nil, 10,
			"event 2 of a page has position 9, but only positions above 10 were requested"},
		{"a repeated position would be handled twice", keys(11, 0, 11, 0), 0, nil, 10, "event 2 of a page repeats position 11"},
		{"out of order, the first would be skipped", keys(11, 0, 15, 0, 13, 0), 0, nil, 10,
			"event 3 of a page has position 13 and comes after position 15: positions must ascend"},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			l := NewTrack(0, 2, ahead, testStart)
			keep, err := l.Accept(tt.page, tt.passed)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.err, got); diff != "" {
				t.Errorf("error, -want +got:\n%s", diff)
			}
			if diff := cmp.Diff(tt.keep, keep); diff != "" {
				t.Errorf("kept, -want +got:\n%s", diff)
			}
			if l.Cursor() != tt.cursor || l.Pending() != len(tt.keep) {
				t.Errorf("cursor %d with %d pending, want %d with %d", l.Cursor(), l.Pending(), tt.cursor, len(tt.keep))
			}
		})
	}
}

// A lane with events 2, 4, 6, 8 of its own, and read up to 9.
func trackOfFour(t *testing.T) *Track {
	t.Helper()
	l := NewTrack(0, 2, Checkpoint{}, testStart)
	if _, err := l.Accept(keys(1, 1, 2, 0, 3, 1, 4, 0, 5, 1, 6, 0, 7, 1, 8, 0, 9, 1), 0); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTrackAfter(t *testing.T) {
	for n, want := range map[int]int64{
		0: 1, // nothing handled: up to the first that is not
		1: 3, // also what belongs to others in between
		3: 7,
		4: 9, // all: up to where it has read
	} {
		if got := trackOfFour(t).After(n).Position; got != want {
			t.Errorf("after %d events: %d, want %d", n, got, want)
		}
	}
}

// A failing event is tried alone, after what precedes it was committed, so
// that its failures roll back nobody else's work.
func TestTrackFailed(t *testing.T) {
	type step struct {
		why      string
		do       func(*Track) (position int64, attempts int)
		position int64
		attempts int
		batch    int // allowed after it
	}
	failed := func(i int) func(*Track) (int64, int) { return func(l *Track) (int64, int) { return l.Failed(i) } }
	within := func(n int) func(*Track) (int64, int) { return func(l *Track) (int64, int) { return l.FailedWithin(n) } }
	committed := func(n int) func(*Track) (int64, int) {
		return func(l *Track) (int64, int) { l.Committed(l.After(n), n, testStart); return 0, 0 }
	}
	for _, tt := range []struct {
		why   string
		steps []step
	}{
		{"known which one failed", []step{
			{"what precedes it is the next batch", failed(2), 6, 1, 2},
			{"then it alone", committed(2), 0, 0, 1},
			{"it fails again, and that counts", failed(0), 6, 2, 1},
			{"it succeeds: no bound any more", committed(1), 0, 0, 1},
		}},
		{"another one fails first the next time", []step{
			{"", failed(3), 8, 1, 3},
			{"the count is that event's own", failed(1), 4, 1, 1},
		}},
		{"not known which one", []step{
			{"half of them, and nobody is to blame yet", within(4), 2, 0, 2},
			{"half of that", within(2), 2, 0, 1},
			{"that one", within(1), 2, 1, 1},
			{"it was the first: no bound any more", committed(1), 0, 0, 3},
		}},
	} {
		t.Run(tt.why, func(t *testing.T) {
			l := trackOfFour(t)
			for i, s := range tt.steps {
				position, attempts := s.do(l)
				if position != s.position || attempts != s.attempts || l.Batch(100) != min(s.batch, l.Pending()) {
					t.Fatalf("step %d (%s): event %d failed %d times, batch %d; want event %d, %d times, batch %d",
						i+1, s.why, position, attempts, l.Batch(100), s.position, s.attempts, s.batch)
				}
			}
		})
	}
	if got := trackOfFour(t).Batch(3); got != 3 {
		t.Errorf("a batch of %d where 3 is the limit", got)
	}
}

func TestTrackSkipDue(t *testing.T) {
	for _, tt := range []struct {
		why   string
		page  []Key
		after time.Duration
		want  bool
	}{
		{"nothing was skipped, however long ago", nil, time.Hour, false},
		{"a little was, just now", keys(5, 1), skipTime - 1, false},
		{"a little was, and some time has passed", keys(5, 1), skipTime, true},
		{"much was", keys(skipPositions, 1), 0, true},
		{"almost as much", keys(skipPositions-1, 1), 0, false},
		{"an event of its own comes first: nothing before it to commit", keys(1, 0, 90_000, 1), time.Hour, false},
	} {
		l := NewTrack(0, 2, Checkpoint{}, testStart)
		if _, err := l.Accept(tt.page, 0); err != nil {
			t.Fatal(err)
		}
		if got := l.SkipDue(testStart.Add(tt.after)); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.why, got, tt.want)
		}
	}
}

func TestTrackResolve(t *testing.T) {
	l := trackOfFour(t)
	l.Committed(l.After(1), 1, testStart) // stands at 3
	next := l.After(2)                    // 7
	row := func(generation, position int64) Found {
		return Found{Generation: generation, Checkpoint: Checkpoint{Position: position}, Exists: true}
	}
	for _, tt := range []struct {
		why   string
		found Found
		want  Outcome
	}{
		{"the row has moved to where the commit moves it", row(5, 7), Applied},
		{"the row stands where it stood", row(5, 3), NotApplied},
		{"no row: the partition is gone", Found{}, Superseded},
		{"a newer generation, even where it stood", row(6, 3), Superseded},
		{"a newer generation, even where it was to go: by a hand-over", row(6, 7), Superseded},
		{"an older one: another replica set has taken the projection", row(0, 7), Superseded},
		{"somewhere else", row(5, 5), MovedAway},
	} {
		if got := l.Resolve(5, next, tt.found); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.why, got, tt.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: time.Second}
	for _, tt := range []struct {
		failures int
		jitter   float64
		want     time.Duration
	}{
		{1, 0, 100 * time.Millisecond},
		{2, 0, 200 * time.Millisecond},
		{4, 0, 800 * time.Millisecond},
		{5, 0, time.Second},             // capped
		{1_000_000, 0, time.Second},     // and nothing overflows
		{1, 0.5, 75 * time.Millisecond}, // jitter takes off up to half
		{0, 0, 100 * time.Millisecond},
	} {
		if got := b.Delay(tt.failures, tt.jitter); got != tt.want {
			t.Errorf("after %d failures with jitter %v: %v, want %v", tt.failures, tt.jitter, got, tt.want)
		}
	}
	if got := (Backoff{Min: time.Minute, Max: time.Second}).Delay(1, 0); got != time.Second {
		t.Errorf("Min above Max: %v, want Max", got)
	}
}

// A laneWorld is a lane, the row of its checkpoint, and a runner in between
// whose handlers fail, whose commits fail, and whose replies are lost.
type laneWorld struct {
	*dice
	lane   *Track
	row    Checkpoint
	slots  []int // of the event at each position; -1 is a gap
	effect []int // how often a committed batch held the event
}

// run plays the bytes for a transactional projection: its effects are
// committed with the row, or not at all.
func (w *laneWorld) run() error {
	const last = 120
	start := Checkpoint{Position: int64(w.below(5))}
	total := 1 + w.below(3)
	partition := w.below(total)
	w.slots, w.effect = make([]int, last+1), make([]int, last+1)
	for p := range w.slots {
		w.slots[p] = w.below(9) - 1
	}
	for slot := range 8 {
		if ahead := int64(w.below(40)); slot%total == partition && ahead > start.Position {
			start.Ahead = append(start.Ahead, Mark{slot, ahead})
		}
	}
	own := func(p int64) bool {
		slot := w.slots[p]
		return slot >= 0 && slot%total == partition && p > start.Frontier(slot)
	}
	scoped := w.below(2) == 1
	w.row, w.lane = start, NewTrack(partition, total, start, testStart)
	l := w.lane

	for rounds := 0; rounds < 400; rounds++ {
		var page []Key
		before, size := l.Cursor(), 1+w.below(10)
		for p := l.Cursor() + 1; p <= last && len(page) < size; p++ {
			if w.slots[p] >= 0 {
				page = append(page, Key{Position: p, Slot: w.slots[p]})
			}
		}
		passed := before
		if n := len(page); n > 0 {
			passed = page[n-1].Position
		}
		if scoped { // and the page may end before what the reader has looked at
			page = slices.DeleteFunc(page, func(k Key) bool { return !own(k.Position) })
		}
		keep, err := l.Accept(page, passed)
		if err != nil {
			return err
		}
		for i, k := range page {
			if slices.Contains(keep, i) != own(k.Position) {
				return fmt.Errorf("event %d is own: %t, and was not treated so", k.Position, own(k.Position))
			}
		}
		n := l.Batch(1 + w.below(6))
		if n == 0 && (w.empty() || !l.SkipDue(testStart.Add(time.Hour))) {
			if passed == before {
				break
			}
			continue
		}
		batch := slices.Clone(l.pending[:n])
		switch fault := w.below(6); {
		case n > 0 && fault == 1:
			i := w.below(n)
			if position, _ := l.Failed(i); position != batch[i] {
				return fmt.Errorf("the fault is at %d, want %d", position, batch[i])
			}
			if next := l.Batch(1000); next > max(i, 1) {
				return fmt.Errorf("event %d failed as the %d-th and the next batch has %d", batch[i], i+1, next)
			}
		case n > 0 && fault == 2:
			l.FailedWithin(n)
			if next := l.Batch(1000); next > max(n/2, 1) {
				return fmt.Errorf("a batch of %d failed and the next has %d", n, next)
			}
		default:
			if err := w.commit(batch, n, fault); err != nil {
				return err
			}
		}
		for p := int64(1); p <= last; p++ {
			if handled := w.effect[p]; handled > 1 || !own(p) && handled > 0 || own(p) && handled == 0 && p <= w.row.Position {
				return fmt.Errorf("event %d (own: %t) was handled %d times, and the checkpoint is %s", p, own(p), handled, w.row)
			}
		}
	}
	for p := int64(1); p <= last; p++ {
		if own(p) && w.effect[p] == 0 {
			return fmt.Errorf("event %d was never handled; the lane stands at %s, read up to %d", p, l.Checkpoint(), l.Cursor())
		}
	}
	return nil
}

// commit carries out a batch: it may be lost with or without having happened,
// and an earlier commit may turn up.
func (w *laneWorld) commit(batch []int64, n, fault int) error {
	l := w.lane
	next := l.After(n)
	if next.Position <= l.Checkpoint().Position {
		return fmt.Errorf("a commit of %d events does not move the position: %s", n, next)
	}
	happens := func(next Checkpoint, batch []int64) {
		w.row = next
		for _, p := range batch {
			w.effect[p]++
		}
	}
	var want Outcome
	switch fault {
	case 3:
		want = NotApplied
	case 4:
		happens(next, batch)
		want = Applied
	case 5:
		if n < 2 {
			return nil
		}
		// Only a part of it: an earlier attempt that was given up.
		happens(l.After(1), batch[:1])
		want = MovedAway
	default:
		happens(next, batch)
		l.Committed(next, n, testStart)
		return nil
	}
	got := l.Resolve(1, next, Found{Generation: 1, Checkpoint: w.row, Exists: true})
	if got != want {
		return fmt.Errorf("resolved as %s, want %s", got, want)
	}
	switch got {
	case Applied:
		l.Committed(next, n, testStart)
	case MovedAway:
		l.Rewind(w.row, testStart)
	}
	return nil
}

func playTrack(data []byte) error {
	w := &laneWorld{dice: &dice{data}}
	return w.run()
}

func TestRandomLanes(t *testing.T) {
	for seed := range int64(400) {
		if err := playTrack(randomBytes(seed, 600)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzTrack(f *testing.F) {
	for seed := range int64(6) {
		f.Add(randomBytes(seed, 600))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := playTrack(data); err != nil {
			t.Fatal(err)
		}
	})
}
