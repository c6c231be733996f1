package protocol

import (
	"testing"
	"time"
)

// How old something is that nobody has handled is known from when the stream was
// first seen to reach beyond it.
func TestHeads(t *testing.T) {
	start := time.Unix(1000, 0)
	var h heads
	if _, ok := h.beyond(0); ok || h.last() != 0 {
		t.Error("nothing was seen, and something is beyond 0")
	}
	for i := range 5000 { // more than are kept
		h.note(start.Add(time.Duration(i)*time.Second), int64(10*i+10))
	}
	h.note(start.Add(5000*time.Second), 3) // seen late
	if h.last() != 50000 {
		t.Errorf("the stream reaches to %d, want 50000", h.last())
	}
	if len(h) > headsMax {
		t.Errorf("%d are kept", len(h))
	}
	if at, ok := h.beyond(0); !ok || !at.Equal(start) {
		t.Errorf("beyond 0 since %v, want the first of all", at)
	}
	if at, ok := h.beyond(49990); !ok || !at.Equal(start.Add(4999*time.Second)) {
		t.Errorf("beyond 49990 since %v, want the last", at)
	}
	if _, ok := h.beyond(50000); ok {
		t.Error("there is something beyond the end")
	}
	// Never longer than it was, but for headStep.
	for position := int64(0); position < 50000; position += 7 {
		at, ok := h.beyond(position)
		if was := start.Add(time.Duration(position/10) * time.Second); !ok || at.Before(was) {
			t.Fatalf("beyond %d since %v, and it was not there before %v", position, at, was)
		}
	}
}

// Of positions that are seen at almost the same time the time of the first is kept.
func TestHeadsAtOnce(t *testing.T) {
	start := time.Unix(1000, 0)
	var h heads
	for i := range 1000 {
		h.note(start.Add(time.Duration(i)*time.Millisecond), int64(i+1))
	}
	if len(h) != 10 {
		t.Errorf("%d are kept of a second, want one for each %s", len(h), headStep)
	}
	if at, _ := h.beyond(555); at != start.Add(500*time.Millisecond) {
		t.Errorf("beyond 555 since %v", at)
	}
}

func TestReach(t *testing.T) {
	now := time.Unix(1000, 0)
	var h heads
	h.note(now.Add(-time.Minute), 100)
	h.note(now.Add(-time.Second), 120)
	r := Reach{heads: h, known: now, end: -1}
	for _, test := range []struct {
		why      string
		position int64
		oldest   time.Time
		behind   int64
		lag      time.Duration
	}{
		{"at the end", 120, time.Time{}, 0, 0},
		{"beyond it: a look is older than what was handled since", 130, time.Time{}, 0, 0},
		{"since it was seen that there is more", 110, time.Time{}, 10, time.Second},
		{"since the first was seen", 99, time.Time{}, 21, time.Minute},
		{"by the event's own time", 99, now.Add(-time.Hour), 21, time.Hour},
		{"of an event from the future", 99, now.Add(time.Hour), 21, 0},
		{"an event that is handled has no age", 120, now.Add(-time.Hour), 0, 0},
	} {
		if got := r.Behind(test.position); got != test.behind {
			t.Errorf("%s: %d behind, want %d", test.why, got, test.behind)
		}
		if got := r.Lag(now, test.position, test.oldest); got != test.lag {
			t.Errorf("%s: for %s, want %s", test.why, got, test.lag)
		}
	}
	r.known = time.Time{}
	if got := r.Behind(50); got != -1 {
		t.Errorf("%d behind an end that nobody knows, want -1", got)
	}
}

// What reads say of the end of a stream.
func TestReachSees(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		why   string
		reads []Seen
		tells bool
		head  int64 // 0: the end is not known
		ask   bool
		lost  int64 // a position that is beyond the end; 0: none is known to be
	}{
		{"the end", []Seen{{After: 0, Head: 9, End: -1}}, true, 9, false, 0},
		{"a backlog", []Seen{{After: 0, Head: 9, End: -1, More: true}}, true, 0, true, 0},
		{"nothing, and it can be asked", []Seen{{After: 5, End: -1}}, true, 0, true, 0},
		{"nothing, and it can't be: where one stands", []Seen{{After: 5, End: -1}}, false, 5, false, 0},
		{"a gap", []Seen{{After: 0, Head: 9, End: -1, Gap: true}}, true, 0, true, 0},
		{"the end was known, and there is a backlog again", []Seen{{Head: 9, End: -1}, {After: 9, Head: 20, End: -1, More: true}}, true, 20, false, 0},
		{"it was emptied", []Seen{{Head: 9, End: 9}, {After: 9, End: 3}}, true, 0, false, 9},
		{"one stands beyond it", []Seen{{Head: 9, End: 9}, {After: 50, End: 9}}, true, 9, false, 50},
	} {
		r := NewReach()
		ask := false
		for _, s := range c.reads {
			ask = r.See(now, s, c.tells)
		}
		if r.Head() != c.head || ask != c.ask {
			t.Errorf("%s: the head is %d, ask %t; want %d, %t", c.why, r.Head(), ask, c.head, c.ask)
		}
		if got := r.Lost(max(1, c.lost)); got != (c.lost > 0) {
			t.Errorf("%s: lost %t", c.why, got)
		}
	}
}

// A lane has stalled when it has had something to do, and has not moved, for long
// enough.
func TestStall(t *testing.T) {
	start := time.Unix(1000, 0)
	type look struct {
		at                 int // seconds
		position           int64
		idle               bool
		stalled, unstalled bool
	}
	for _, test := range []struct {
		why   string
		looks []look
	}{
		{"it moves", []look{{at: 0, position: 1}, {at: 50, position: 2}, {at: 100, position: 3}, {at: 159, position: 3}}},
		{"it has nothing to do", []look{{at: 0, idle: true}, {at: 100, idle: true}, {at: 200, idle: true}}},
		{"what there is to do has just come", []look{{at: 0, idle: true}, {at: 100, idle: true}, {at: 159}, {at: 160, stalled: true}}},
		{"it is said once", []look{{at: 0}, {at: 60, stalled: true}, {at: 120}, {at: 180}}},
		{"and again after it has moved", []look{{at: 0}, {at: 60, stalled: true}, {at: 70, position: 1, unstalled: true}, {at: 129, position: 1}, {at: 130, position: 1, stalled: true}}},
		{"it has moved, and has nothing more to do", []look{{at: 0}, {at: 60, stalled: true}, {at: 70, position: 1, idle: true, unstalled: true}}},
		{"back is a move as well", []look{{at: 0, position: 9}, {at: 59, position: 3}, {at: 118, position: 3}, {at: 119, position: 3, stalled: true}}},
	} {
		var w Stall
		for _, l := range test.looks {
			stalled, unstalled := w.See(start.Add(time.Duration(l.at)*time.Second), l.position, l.idle, 0, time.Minute)
			if stalled != l.stalled || unstalled != l.unstalled {
				t.Errorf("%s: after %ds stalled %t, unstalled %t, want %t, %t", test.why, l.at, stalled, unstalled, l.stalled, l.unstalled)
			}
		}
	}
}

// A pace is how far the lane has gone in the time of which lately consists; before, since
// the first look.
func TestPace(t *testing.T) {
	start := time.Unix(1000, 0)
	type look struct {
		at       int // seconds
		position int64
		pace     float64
	}
	for _, test := range []struct {
		why   string
		looks []look
	}{
		{"it is not known at first", []look{{0, 500, 0}}},
		{"a first step tells it", []look{{0, 500, 0}, {5, 600, 20}}},
		{"the first steps count alike", []look{{0, 500, 0}, {5, 600, 20}, {10, 600, 10}, {20, 700, 10}}},
		{"what is long ago counts less", []look{{0, 0, 0}, {30, 3000, 100}, {60, 3000, 0}, {75, 3000, 0}, {90, 4500, 50}}},
		{"going back is standing still", []look{{0, 500, 0}, {5, 0, 0}, {10, 100, 10}}},
		{"two looks at once are one", []look{{0, 500, 0}, {0, 900, 0}, {5, 900, 80}}},
	} {
		var p Pace
		for _, l := range test.looks {
			if p.See(start.Add(time.Duration(l.at)*time.Second), l.position); p.PerSecond() != l.pace {
				t.Errorf("%s: %v after %ds, want %v", test.why, p.PerSecond(), l.at, l.pace)
			}
		}
	}
}
