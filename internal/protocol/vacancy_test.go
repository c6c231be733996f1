package protocol

import (
	"testing"
	"time"
)

// A lane has settled if it has heard what has become of all that it has sent. A replacement
// runs under the same fence, so nothing that comes late would be stopped by it.
func TestLaneSettles(t *testing.T) {
	var ok LaneAnswer
	asked, canceled := Signals{Asked: true}, Signals{Asked: true, Canceled: true}
	for _, tt := range []struct {
		why   string
		kind  LaneKind
		turns []turn
		want  bool
	}{
		{"nothing was read", Plain, []turn{{answer: found(5, 10)}, {answer: ok, signals: asked}}, true},
		{"what was handled is saved", Plain, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok}, {answer: ok, signals: asked}}, true},
		{"a save of which nothing is heard", Plain, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok},
			{answer: failing(Passing), signals: asked}, {answer: ok}}, false},
		{"it has not happened yet, but may", Plain, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok},
			{answer: failing(Passing)}, {answer: ok, later: time.Second}, {answer: found(5, 10), signals: canceled}}, false},
		{"it has happened", Plain, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok},
			{answer: failing(Passing)}, {answer: ok, later: time.Second}, {answer: found(5, 12), signals: asked}}, true},
		{"once more, and then it has", Plain, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok},
			{answer: failing(Passing)}, {answer: ok, later: time.Second}, {answer: found(5, 10)}, {answer: ok, signals: asked}}, true},
		{"a COMMIT of which nothing is heard", Transactional, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok}, {answer: ok},
			{answer: ok}, {answer: failing(Passing), signals: canceled}}, false},
		{"no COMMIT was sent", Transactional, []turn{{answer: found(5, 10)}, {answer: ok}, {answer: evens(12)}, {answer: ok},
			{answer: ok, signals: canceled}}, true},
		{"it has ended by itself: its commit was refused", Plain, []turn{{answer: found(6, 10)}}, false},
	} {
		l := NewLane(Assignment{Generation: 5, Total: 2}, LaneConfig{Kind: tt.kind, Batch: 4, Poll: time.Second, Lease: 30 * time.Second})
		now := testStart
		action := l.Next(now, Signals{}, LaneAnswer{})
		var s Signals
		for _, turn := range tt.turns {
			if turn.signals.Asked {
				s = turn.signals
			}
			now = now.Add(turn.later)
			action = l.Next(now, s, turn.answer)
		}
		if action.Do != LaneEnd || action.Settled != tt.want {
			t.Errorf("%s: %s, settled: %v, want %v", tt.why, action, action.Settled, tt.want)
		}
	}
}

// A worker leaves a vacancy if it is asked to stop from outside, and nothing of it can come
// late.
func TestSessionVacates(t *testing.T) {
	const window = 10 * time.Second
	for why, tt := range map[string]struct {
		inputs []Input
		window time.Duration
		want   time.Duration
	}{
		"it is asked to stop":                {[]Input{Shutdown{Replaced: true}, Stopped{1, true}}, window, window},
		"there is no window":                 {[]Input{Shutdown{Replaced: true}, Stopped{1, true}}, 0, 0},
		"a lane has not settled":             {[]Input{Shutdown{Replaced: true}, Stopped{1, false}}, window, 0},
		"something has failed":               {[]Input{Shutdown{}, Stopped{1, true}}, window, 0},
		"something has failed, and then so":  {[]Input{Shutdown{}, Shutdown{Replaced: true}, Stopped{1, true}}, window, 0},
		"something fails after it was asked": {[]Input{Shutdown{Replaced: true}, Shutdown{}, Stopped{1, true}}, window, 0},
	} {
		s, now, heartbeat := running(t)
		s.settings.Vacate = tt.window
		s.Next(now, Synced{Request: heartbeat, Sent: now, View: View{Now: now, Member: true, Generation: 1, Total: 1, Partitions: []int{0}, Holds: 1}})
		var r Request
		for _, in := range tt.inputs {
			for _, a := range s.Next(now, in) {
				if sync, ok := a.(Sync); ok {
					r = sync.Request
				}
			}
		}
		if !r.Leave || r.Vacate != tt.want {
			t.Errorf("%s: it sends %+v", why, r)
		}
	}
}

// A standby that is given a place hears of it by its own look for others, since there is no
// new generation to be seen.
func TestStandbySeesThatItWasGivenAPlace(t *testing.T) {
	s := NewSession("w", Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: time.Minute}, Request{})
	s.Present()
	now, place := testStart, View{Member: true, Generation: 3, Total: 2}
	var asked []Request
	started := false
	var feed func(Input)
	feed = func(in Input) {
		for _, a := range s.Next(now, in) {
			switch a := a.(type) {
			case Sync:
				asked = append(asked, a.Request)
				place.Now = now
				feed(Synced{Request: a.Request, Sent: now, View: place})
			case Attach:
				feed(Attached{Number: a.Number, Key: 7, Sent: now})
			case Start:
				started = true
			}
		}
	}
	looks := func(group Glimpse) (requests int) {
		now, asked = now.Add(presenceGlimpse), nil
		feed(Tick{})
		asked = nil
		feed(Proven{Number: s.presence.number, Sent: now, Glimpsed: true, Group: group})
		return len(asked)
	}
	feed(Tick{})
	if n := looks(Glimpse{Generation: 3}); n != 0 {
		t.Errorf("a look that has shown nothing new makes it send %+v", asked)
	}
	place.Partitions, place.Holds = []int{1}, 3
	if n := looks(Glimpse{Generation: 3, Holds: 3}); n != 1 || !started {
		t.Errorf("a look that has shown a place of its own makes it send %+v, and it starts: %v", asked, started)
	}
}
