package protocol

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What a session does with one answer, where the random worlds would forgive a
// wrong one: they only get slower by it.

// running returns a session that runs generation 1, and the time of its next
// heartbeat, with the heartbeat that it sends then.
func running(t *testing.T) (s *Session, now time.Time, heartbeat Request) {
	t.Helper()
	s, now = NewSession("w", testTiming, Request{}), testStart
	r := syncOf(t, s.Next(now, Tick{}))
	_, v := carryOut(Group{}, r, now)
	actions := s.Next(now, Synced{Request: r, Sent: now, View: v})
	if diff := cmp.Diff(Action(Start{Share{Generation: 1, Partitions: []int{0}, Total: 1}}), actions[0]); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
	now = actions[len(actions)-1].(Wake).At
	heartbeat = syncOf(t, s.Next(now, Tick{}))
	if !heartbeat.Heartbeat || heartbeat.Join {
		t.Fatalf("a steady worker sends %+v", heartbeat)
	}
	return s, now, heartbeat
}

func TestSessionRemovedByOthersStopsAtOnce(t *testing.T) {
	s, now, heartbeat := running(t)
	actions := s.Next(now, Synced{Request: heartbeat, Sent: now, View: View{Now: now}})
	if diff := cmp.Diff(Action(Cancel{Generation: 1, Lost: true}), actions[0]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !s.LeaseEnd().IsZero() {
		t.Error("its lanes may go on")
	}
	// When all have returned it comes back, and takes its old row away.
	r := syncOf(t, s.Next(now, Stopped{Generation: 1}))
	if !r.Join || r.Worker != "w~2" || r.Stopped != 1 {
		t.Errorf("it comes back with %+v", r)
	}
}

// A failover that loses commits brings back an earlier generation, or another one
// of the same number. What runs has no partition in it.
func TestSessionStopsWhenTheDatabaseWentBack(t *testing.T) {
	for what, v := range map[string]View{
		"an earlier generation": {Generation: 0, Total: 1, Partitions: []int{0}},
		"another total":         {Generation: 1, Total: 2, Partitions: []int{0}, Holds: 1},
		"another partition":     {Generation: 1, Total: 1, Holds: 1},
		"another pause":         {Generation: 1, Total: 1, Partitions: []int{0}, Paused: []string{"p"}, Holds: 1},
	} {
		s, now, heartbeat := running(t)
		v.Now, v.Member = now, true
		actions := s.Next(now, Synced{Request: heartbeat, Sent: now, View: v})
		if diff := cmp.Diff(Action(Cancel{Generation: 1, Lost: true}), actions[0]); diff != "" {
			t.Errorf("%s: -want +got:\n%s", what, diff)
		}
	}
}

func TestSessionRenewsAfterAFailedStep(t *testing.T) {
	s, now, heartbeat := running(t)
	due := View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1, StepAt: now}
	step := syncOf(t, s.Next(now, Synced{Request: heartbeat, Sent: now, View: due}))
	if step.Heartbeat {
		t.Fatal("a Step is due, and it sends a heartbeat")
	}
	// A Step may fail because somebody else's frozen transaction is in the
	// way. Tried on and on, it would cost the lease.
	actions := s.Next(now, SyncFailed{Request: step, Sent: now})
	now = actions[len(actions)-1].(Wake).At
	if r := syncOf(t, s.Next(now, Tick{})); !r.Heartbeat || r.ReadOnly {
		t.Errorf("after a failed Step it sends %+v", r)
	}
}

func TestSessionStartsNothingLate(t *testing.T) {
	for _, tt := range []struct {
		why  string
		late time.Duration
		want bool
	}{
		{"at the last moment", testTiming.ownLease() - 1, true},
		{"what the answer allows may be somebody else's by now", testTiming.ownLease(), false},
	} {
		s, now := NewSession("w", testTiming, Request{}), testStart
		r := syncOf(t, s.Next(now, Tick{}))
		_, v := carryOut(Group{}, r, now)
		_, started := s.Next(now.Add(tt.late), Synced{Request: r, Sent: now, View: v})[0].(Start)
		if started != tt.want {
			t.Errorf("%s: an answer after %v starts it: %t", tt.why, tt.late, started)
		}
	}
}

// A lease that ran out is gone, though its row is still there and an answer
// that was on its way says that it may run.
func TestSessionIgnoresAnswersToItsFormerSelf(t *testing.T) {
	s, sent, heartbeat := running(t)
	now := testStart.Add(testTiming.ownLease())
	s.Next(now, Tick{}) // cancels
	s.Next(now, Stopped{Generation: 1})
	may := View{Now: now, Member: true, Partitions: []int{0}, Generation: 2, Total: 1, Holds: 2}
	for _, a := range s.Next(now, Synced{Request: heartbeat, Sent: sent, View: may}) {
		if start, ok := a.(Start); ok {
			t.Errorf("starts %s, which another incarnation was given", start.Share)
		}
	}
}

// A lease that is over stays over, though the answer that renews it was there
// before the session looked: a lane may have looked before, and ended.
func TestSessionRenewsNoLeaseThatIsOver(t *testing.T) {
	s, sent, heartbeat := running(t)
	may := View{Now: sent, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1}
	for _, a := range s.Next(s.LeaseEnd(), Synced{Request: heartbeat, Sent: sent, View: may}) {
		if _, ok := a.(Cancel); ok {
			return
		}
	}
	t.Error("goes on with a lease that was over")
}

// Who has stopped says so in a request that is a Step as well. Where that has failed, the
// next one is a heartbeat, and of two of these at once, each may be shown the other as it
// was before: so a Step follows.
func TestSessionLooksAfterItsReport(t *testing.T) {
	s, now, heartbeat := running(t)
	later := View{Now: now, Member: true, Partitions: []int{0}, Generation: 2, Total: 2, Holds: 1, StepAt: now.Add(time.Minute)}
	s.Next(now, Synced{Request: heartbeat, Sent: now, View: later}) // drains
	report := syncOf(t, s.Next(now, Stopped{Generation: 1}))
	if !report.Report || report.Heartbeat || report.Yield || report.Stopped != 1 {
		t.Fatalf("reports with %+v", report)
	}
	later.Holds = 0
	heard := *s
	for _, a := range heard.Next(now, Synced{Request: report, Sent: now, View: later}) {
		if wake, ok := a.(Wake); !ok || !wake.At.Equal(now.Add(pollMin)) {
			t.Errorf("after its report it does %#v", a)
		}
	}

	if removes := (Request{Report: true, Watch: Watch{Absent: []Absence{{}}}}); !report.Yields() || removes.Yields() {
		t.Error("a report yields, unless it removes somebody")
	}

	s.Next(now, SyncFailed{Request: report, Sent: now})
	now = now.Add(time.Second)
	again := syncOf(t, s.Next(now, Tick{}))
	if !again.Heartbeat || again.ReadOnly || again.Report || again.Stopped != 1 {
		t.Fatalf("reports again with %+v", again)
	}
	s.Next(now, Synced{Request: again, Sent: now, View: later})
	now = now.Add(time.Second)
	step := syncOf(t, s.Next(now, Tick{}))
	if step.Heartbeat || step.Report || !step.Yield {
		t.Errorf("after a report with others to come it sends %+v", step)
	}
	end := s.LeaseEnd()
	later.ReadOnly = true
	wait := s.Next(now.Add(time.Second), Synced{Request: step, Sent: now.Add(time.Second), View: later})
	if diff := cmp.Diff([]Action{Wake{now.Add(time.Second + 2*pollMin)}}, wait); diff != "" || s.LeaseEnd() != end {
		t.Errorf("after a Step that had nothing to do its lease ends at %s, before that at %s, -want +got:\n%s", s.LeaseEnd(), end, diff)
	}
}

// A look renews no lease, so however many there are, and whenever they come, the
// heartbeats come when they would have come without.
func TestSessionRenewsWhateverItLooks(t *testing.T) {
	s, now, heartbeat := running(t)
	view := func() View {
		return View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1}
	}
	s.Next(now, Synced{Request: heartbeat, Sent: now, View: view()})
	end, renewal := s.LeaseEnd(), now.Add(testTiming.Heartbeat)
	for now = now.Add(time.Second); now.Before(renewal); now = now.Add(time.Second) {
		r := syncOf(t, s.Next(now, Hinted{}))
		s.Next(now, Synced{Request: r, Sent: now, View: view()})
		if !r.ReadOnly || !s.LeaseEnd().Equal(end) {
			t.Errorf("%s before the renewal it sends %+v, and believes in its lease until %s, want %s", renewal.Sub(now), r, s.LeaseEnd(), end)
		}
	}
	now = renewal
	r := syncOf(t, s.Next(now, Tick{}))
	if s.Next(now, Synced{Request: r, Sent: now, View: view()}); r.ReadOnly || !s.LeaseEnd().After(end) {
		t.Errorf("when the lease is to be renewed it sends %+v", r)
	}

	// Whether a look that failed was heard does not matter, but time has passed.
	now = now.Add(time.Second)
	s.Next(now, SyncFailed{Request: syncOf(t, s.Next(now, Hinted{})), Sent: now})
	now = now.Add(retryMax)
	if r := syncOf(t, s.Next(now, Tick{})); !r.Heartbeat || r.ReadOnly {
		t.Errorf("after a look that failed it sends %+v", r)
	}
}

// A hint makes a session look at once; but not on and on, if there is nothing
// to see.
func TestSessionHints(t *testing.T) {
	s, now, heartbeat := running(t)
	same := func() View {
		return View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1}
	}
	s.Next(now, Synced{Request: heartbeat, Sent: now, View: same()})
	look := func() Request {
		t.Helper()
		r := syncOf(t, s.Next(now, Hinted{}))
		if !r.Heartbeat {
			t.Fatalf("a hint makes it send %+v", r)
		}
		return r
	}
	answer := func(r Request, v View) []Action { return s.Next(now, Synced{Request: r, Sent: now, View: v}) }

	// What is under way may be older than the hint.
	r := look()
	if actions := s.Next(now, Hinted{}); len(actions) != 1 {
		t.Errorf("with a request under way a hint makes it do %v", actions)
	}
	answer(syncOf(t, answer(r, same())), same())

	// A hint every millisecond.
	looks, end := 0, now.Add(10*time.Second)
	for ; now.Before(end); now = now.Add(time.Millisecond) {
		for _, a := range s.Next(now, Hinted{}) {
			if sync, ok := a.(Sync); ok {
				looks++
				answer(sync.Request, same())
			}
		}
	}
	if most := int(10*time.Second/pollMax) + 10; looks > most {
		t.Errorf("10000 hints in 10s make it look %d times, more than %d", looks, most)
	}

	// After something new, it is all ears again.
	now = now.Add(pollMax)
	news := same()
	news.Generation = 2
	answer(look(), news)
	answer(look(), news)

	// A database that does not answer is left alone, whatever it hints.
	failed := s.Next(now, SyncFailed{Request: look(), Sent: now})
	if diff := cmp.Diff(failed, s.Next(now, Hinted{})); diff != "" {
		t.Errorf("a hint after a failure, -before +after:\n%s", diff)
	}
}

// A commit was refused, and what the group says since then is that the worker
// still runs the partition: rows are missing. Without a word of its lanes it
// would hold on to a partition of which one is gone.
func TestSessionComesBackAfterARefusal(t *testing.T) {
	s, now, heartbeat := running(t)
	may := View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1}
	s.Next(now.Add(time.Millisecond), Refused{Generation: 1})
	// The answer to what was sent before the refusal says nothing about it.
	later := now.Add(2 * time.Millisecond)
	again := syncOf(t, s.Next(later, Synced{Request: heartbeat, Sent: now, View: may}))
	actions := s.Next(later, Synced{Request: again, Sent: later, View: may})
	if diff := cmp.Diff(Action(Cancel{Generation: 1, Lost: true}), actions[0]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Of the clock, a worker knows what it has seen itself.
func TestClockWatch(t *testing.T) {
	const lease = 50 * time.Second // so the tolerance is a second
	type seen struct{ sent, received, database int }
	second := func(s int) time.Time { return testStart.Add(time.Duration(s) * time.Second) }
	for _, tt := range []struct {
		why  string
		seen []seen
		want int // seconds
	}{
		{"one reading proves nothing", []seen{{0, 0, 100}}, 0},
		{"an even clock; what its zero is does not matter", []seen{{0, 0, 100}, {5, 5, 105}, {12, 12, 112}}, 12},
		{"counted from when the first was received to when the last was sent", []seen{{0, 1, 100}, {10, 11, 110}}, 9},
		{"a step forward: from there", []seen{{0, 0, 100}, {5, 5, 107}, {9, 9, 111}}, 4},
		{"a step back: from there", []seen{{0, 0, 100}, {5, 5, 103}, {9, 9, 107}}, 4},
		{"as wide as the tolerance, and no wider", []seen{{0, 0, 100}, {5, 5, 106}, {9, 9, 108}}, 9},
		{"small steps add up", []seen{{0, 0, 100}, {5, 5, 106}, {9, 9, 111}, {10, 10, 112}}, 1},
		{"longer than a lease, by way of several anchors", []seen{{0, 0, 100}, {20, 20, 120}, {40, 40, 140}, {60, 60, 160}, {80, 80, 180}}, 80},
		{"a pause in which it may have stepped and stepped back: from there", []seen{{0, 0, 100}, {5, 5, 105}, {31, 31, 131}, {33, 33, 133}}, 2},
		{"a slow reading breaks nothing", []seen{{0, 0, 100}, {3, 5, 104}, {9, 9, 109}}, 9},
	} {
		var c clockWatch
		for _, s := range tt.seen {
			c.observe(second(s.sent), second(s.received), second(s.database), lease)
		}
		last := tt.seen[len(tt.seen)-1]
		if w := c.watch(); w.For != time.Duration(tt.want)*time.Second || !w.Seen.Equal(second(last.database)) {
			t.Errorf("%s: watched for %v, want %ds", tt.why, w.For, tt.want)
		}
	}
}

// A request that fails for good ends the worker: what runs is asked to stop, and then it
// leaves. One that may pass does not.
// A worker that was alone looks soon for others when there is a new generation.
func TestSessionLooksForANewcomer(t *testing.T) {
	s, now, heartbeat := running(t)
	s.presence.next = now.Add(presenceAlone)
	same := View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1}
	s.Next(now, Synced{Request: heartbeat, Sent: now, View: same})
	if !s.presence.next.Equal(now.Add(presenceAlone)) {
		t.Errorf("in the same generation it looks in %s", s.presence.next.Sub(now))
	}
	other := same
	other.Generation, other.Total = 2, 2
	s.Next(now, Synced{Request: heartbeat, Sent: now, View: other})
	if !s.presence.next.Equal(now.Add(presenceGlimpse)) {
		t.Errorf("in another generation it looks in %s", s.presence.next.Sub(now))
	}
}

// Who finds the group locked tries again, and renews its lease in time. Who waits for a
// partition looks instead.
func TestSessionTriesAgainWhereTheGroupIsLocked(t *testing.T) {
	s, now, heartbeat := running(t)
	closes := View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1, StepAt: now.Add(time.Second)}
	s.Next(now, Synced{Request: heartbeat, Sent: now, View: closes})
	renewal := now.Add(testTiming.Heartbeat)
	tries, beats := 0, 0
	for now.Before(renewal.Add(time.Second)) {
		var wake time.Time
		for in := Input(Tick{}); in != nil; {
			actions := s.Next(now, in)
			in = nil
			for _, a := range actions {
				switch a := a.(type) {
				case Wake:
					wake = a.At
				case Sync:
					v := closes
					v.Now, v.StepAt = now, now
					if a.Request.Heartbeat {
						beats++
					} else {
						tries++
						v.ReadOnly, v.Busy = true, true
					}
					in = Synced{Request: a.Request, Sent: now, View: v}
				}
			}
		}
		now = wake
	}
	if tries < 20 || tries > 100 || beats != 1 {
		t.Errorf("in %s it has tried %d times, and sent %d heartbeats", testTiming.Heartbeat, tries, beats)
	}
}

func TestSessionGivesUp(t *testing.T) {
	s, now, heartbeat := running(t)
	for _, a := range s.Next(now, SyncFailed{Request: heartbeat, Sent: now, Facts: Facts{Failed: true, Lost: true}}) {
		switch a.(type) {
		case GiveUp, Drain:
			t.Errorf("a lost connection makes it do %+v", a)
		}
	}
	actions := s.Next(now, SyncFailed{Request: heartbeat, Sent: now, Facts: Facts{Failed: true, State: "42501"}})
	if diff := cmp.Diff([]Action{GiveUp{SyncDenied}, Drain{1}}, actions[:2]); diff != "" {
		t.Fatalf("-want +got:\n%s", diff)
	}
	if r := syncOf(t, s.Next(now.Add(time.Second), Stopped{Generation: 1})); !r.Leave {
		t.Errorf("when all handlers have returned it sends %+v", r)
	}
}

// A lane that is missing at two looks in a row makes the worker join again, as a new
// member. At one look it may be about to say so; and what was asked to stop may be gone.
func TestSessionMissesALane(t *testing.T) {
	missing, whole := Lanes{Generation: 1, Missing: true}, Lanes{Generation: 1}
	looks := func(looks ...Input) (again bool) {
		s, now, heartbeat := running(t)
		s.Next(now, SyncFailed{Request: heartbeat, Sent: now})
		said := 0
		for _, in := range looks {
			now = now.Add(time.Second)
			for _, a := range s.Next(now, in) {
				switch a := a.(type) {
				case LaneMissing:
					said++
				case Sync:
					heartbeat = a.Request
				}
			}
		}
		view := View{Now: now, Member: true, Partitions: []int{0}, Generation: 1, Total: 1, Holds: 1}
		now = now.Add(time.Second)
		s.Next(now, Synced{Request: heartbeat, Sent: now, View: view})
		s.Next(now, Stopped{Generation: 1})
		again = s.ID() != "w"
		if want := map[bool]int{true: 1}[again]; said != want {
			t.Errorf("%v: it says %d times that a lane is missing, want %d", looks, said, want)
		}
		return again
	}
	for _, c := range []struct {
		why   string
		looks []Input
		want  bool
	}{
		{"all run", []Input{whole, whole, whole}, false},
		{"once", []Input{missing}, false},
		{"not in a row", []Input{missing, whole, missing}, false},
		{"of another generation", []Input{Lanes{Generation: 7, Missing: true}, Lanes{Generation: 7, Missing: true}}, false},
		{"twice", []Input{missing, missing}, true},
		{"three times", []Input{missing, missing, missing}, true},
	} {
		if got := looks(c.looks...); got != c.want {
			t.Errorf("missing %s: it comes back as somebody new: %t", c.why, got)
		}
	}
}

// A worker that gives its handlers up keeps its own session at the database for as long
// as its lease can last; one that leaves does not.
func TestSessionSaysHowLongToKeepItsPresence(t *testing.T) {
	exit := func(stop bool) (e Exit) {
		s, now, _ := running(t)
		s.Next(now, Shutdown{})
		if stop {
			s.Next(now, Stopped{Generation: 1})
		}
		for range 1000 {
			now = now.Add(time.Second)
			for _, a := range s.Next(now, Tick{}) {
				if e, ok := a.(Exit); ok {
					return e
				}
			}
		}
		t.Fatal("it does not exit")
		return e
	}
	if e := exit(true); e != (Exit{Cause: Left}) {
		t.Errorf("when all have stopped: %+v", e)
	}
	if e := exit(false); e != (Exit{Cause: DrainTimeout, Keep: 2 * testTiming.Lease}) {
		t.Errorf("when a handler does not return: %+v", e)
	}
}
