package orchestrator

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
	r := reach{heads: h, known: true}
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
		if got := r.behind(test.position); got != test.behind {
			t.Errorf("%s: %d behind, want %d", test.why, got, test.behind)
		}
		if got := r.lag(now, test.position, test.oldest); got != test.lag {
			t.Errorf("%s: for %s, want %s", test.why, got, test.lag)
		}
	}
	r.known = false
	if got := r.behind(50); got != -1 {
		t.Errorf("%d behind an end that nobody knows, want -1", got)
	}
}
