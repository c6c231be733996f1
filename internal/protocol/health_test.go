package protocol

import (
	"strings"
	"testing"
	"time"
)

var (
	healthTiming = Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: time.Minute}
	healthBegin  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// What a worker lives through, turn by turn, and what probes are told at the end
// of it.
func TestHealthOfAWorker(t *testing.T) {
	var (
		tick     = Tick{}
		failed   = SyncFailed{}
		outside  = Synced{}
		none     = Synced{View: View{Member: true, Generation: 1}}
		assigned = Synced{View: View{Member: true, Generation: 2, Partitions: []int{0}, Total: 1}}
		stopped  = Stopped{Generation: 2}
	)
	type turn struct {
		after time.Duration
		in    Input
		start int64 // a generation that is started; below 0: the worker gives up
	}
	runs := []turn{{0, tick, 0}, {time.Second, assigned, 2}}
	for _, c := range []struct {
		name        string
		turns       []turn
		after       time.Duration // the last turn
		live, ready bool
		detail      string
	}{
		{"it has not reached the database: the loop has not begun", nil, time.Hour, true, false, "is starting"},
		{"its first request is under way", []turn{{0, tick, 0}}, time.Second, true, false, "not answered yet"},
		{"its first request has failed, and again", []turn{{0, failed, 0}, {time.Second, failed, 0}}, time.Second, true, false, "not answered yet"},
		{"it waits for a JoinWindow to close", []turn{{0, none, 0}, {5400 * time.Millisecond, none, 0}}, 0, true, false, "is joining"},
		{"others drain for it", []turn{{0, none, 0}, {time.Second, assigned, 0}}, 0, true, false, "waits for other workers"},
		{"others drain for it, for ever", []turn{{0, assigned, 0}, {time.Hour, assigned, 0}}, 0, true, false, "waits for other workers"},
		{"it runs", runs, 0, true, true, "runs generation 2"},
		{"it has had no partition for long enough", []turn{{0, none, 0}, {5600 * time.Millisecond, none, 0}}, 0, true, true, "standby"},
		// Time alone makes nobody a standby: what was seen is old.
		{"the database went away in the JoinWindow", []turn{{0, none, 0}, {time.Minute, failed, 0}}, 0, true, false, "not answered yet"},

		{"the database is away", append(runs, turn{time.Second, failed, 0}), 0, true, true, "does not answer"},
		{"the database is away, and the lease is over", append(runs, turn{time.Minute, failed, 0}, turn{0, stopped, 0}), 0, true, true, "does not answer"},
		{"the database is away for a day", append(runs, turn{0, stopped, 0}, turn{24 * time.Hour, failed, 0}), 0, true, true, "does not answer"},
		// All come back at the same moment, and none has its place yet.
		{"the database is back after a day", append(runs, turn{0, stopped, 0}, turn{0, failed, 0}, turn{24 * time.Hour, outside, 0}), 0, true, true, "is joining"},
		{"a standby's database is away", []turn{{0, none, 0}, {time.Minute, none, 0}, {time.Hour, failed, 0}}, 0, true, true, "does not answer"},

		{"others join: it drains", append(runs, turn{time.Second, tick, 0}), time.Second, true, true, "runs generation 2"},
		{"it has drained, and others have not", append(runs, turn{0, stopped, 0}, turn{170 * time.Second, assigned, 0}), 0, true, true, "waits for other workers"},
		{"it has no place for longer than a re-partition takes", append(runs, turn{0, stopped, 0}, turn{190 * time.Second, assigned, 0}), 0, true, false, "no partitions for 3m10s"},
		{"the same, since the database is back", append(runs, turn{0, stopped, 0}, turn{time.Hour, failed, 0}, turn{0, outside, 0}, turn{190 * time.Second, outside, 0}), 0, true, false, "no partitions for 3m10s"},
		{"and then it has one", append(runs, turn{0, stopped, 0}, turn{time.Hour, assigned, 3}), 0, true, true, "runs generation 3"},
		{"a late word of an older generation", append(runs, turn{0, assigned, 3}, turn{0, stopped, 0}), 0, true, true, "runs generation 3"},

		{"it was asked to stop", append(runs, turn{0, Shutdown{}, 0}), 0, true, false, "asked to stop"},
		{"it stops, and the database is away", append(runs, turn{0, Shutdown{}, 0}, turn{time.Minute, failed, 0}), 0, true, false, "asked to stop"},
		{"the loop is stuck, for a lease", runs, 30 * time.Second, true, true, "runs generation 2"},
		{"the loop is stuck, for longer", runs, 31 * time.Second, false, false, "not run for 31s"},
		{"a request has failed for good", append(runs, turn{time.Second, SyncFailed{}, -1}), 0, true, false, "was asked to stop"},
		{"the loop is stuck on the way out", append(runs, turn{0, Shutdown{}, 0}), 31 * time.Second, false, false, "not run for 31s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, now := NewHealth(healthTiming, 500*time.Millisecond), healthBegin
			for _, turn := range c.turns {
				now = now.Add(turn.after)
				var actions []Action
				switch {
				case turn.start < 0:
					actions = []Action{GiveUp{SyncDenied}}
				case turn.start > 0:
					actions = []Action{Start{Share: Share{Generation: turn.start}}}
				}
				h.Turn(now, turn.in, actions)
			}
			live, ready, detail := h.Judge(now.Add(c.after))
			if live != c.live || ready != c.ready || !strings.Contains(detail, c.detail) {
				t.Errorf("live %t, ready %t, %q; want %t, %t, …%s…", live, ready, detail, c.live, c.ready, c.detail)
			}
		})
	}
}
