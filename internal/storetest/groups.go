package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// The first worker has everything at once: a generation, its partition, and the checkpoints of
// its projections.
func testFirstWorker(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	r := s.join("a")
	expectGroup(t, r.Group, "generation 1 active {a:0/1}")
	if !r.View.May() || !r.Decision.Opened || !r.Decision.Activated || r.Group.Reason != "first worker" {
		t.Errorf("the first join: %+v", r)
	}
	for _, p := range []string{"p", "q"} {
		s.expect(lane(p, 1, 0, 1), start)
	}
	s.absent(lane("other", 1, 0, 1))
	s.absent(lane("p", 1, 1, 1))
}

// A join whose reply was lost is sent again, at once or after the group has changed. Neither
// adds a second member, opens a generation, or changes the order of joins.
func testJoinRepeated(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	first := s.join("a")
	again := s.join("a")
	if !sameView(again.View, first.View) || again.Decision.String() != "" {
		t.Errorf("a join repeated: %+v %s, want %+v", again.View, again.Decision, first.View)
	}
	w.Advance(time.Second)
	s.join("b")
	w.Advance(time.Second)
	r := s.join("a")
	expectGroup(t, r.Group, "generation 2 draining {a:0/2* b:1/2}")
	if !r.Group.Members[0].Joined.Equal(first.Group.Members[0].Joined) {
		t.Errorf("a repeated join changed the time of the join from %s to %s", first.Group.Members[0].Joined, r.Group.Members[0].Joined)
	}
	s.settle("a")
	// Even with an old report in it.
	r = s.sync(protocol.Request{Worker: "a", Join: true, Stopped: 1})
	expectGroup(t, r.Group, "generation 2 active {a:0/2 b:1/2}")
	if !r.View.May() {
		t.Errorf("a join repeated after the activation took the partition away: %+v", r.View)
	}
	s.commit(lane("p", 2, 0, 2), start, at(5)) // nor were the checkpoints touched
	s.join("a")
	s.expect(lane("p", 2, 0, 2), at(5))
}

// A report that is repeated, late, or sent in two ways ends only the hold that it is about.
func testStopRepeated(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	if r := s.look("b"); !slices.Equal(r.Decision.WaitsFor, []protocol.WorkerID{"a"}) || r.View.May() {
		t.Errorf("before a has stopped: %+v %s", r.View, r.Decision)
	}
	s.stopped("a", 0)
	expectGroup(t, s.look("b").Group, "generation 2 draining {a:0/2* b:1/2}")
	r := s.stopped("a", 1)
	expectGroup(t, r.Group, "generation 2 active {a:0/2 b:1/2}")
	for range 2 {
		r = s.stopped("a", 1)
		if !r.View.May() || r.Decision.String() != "" {
			t.Errorf("an old report, repeated: %+v %s", r.View, r.Decision)
		}
		if v := s.sync(protocol.Request{Worker: "a", Stopped: 1, Heartbeat: true}).View; !v.May() {
			t.Errorf("an old report with a heartbeat: %+v", v)
		}
	}

	// A heartbeat can carry the report as well. It does not activate the generation; the next
	// request does.
	s.join("c")
	for range 2 {
		if v := s.sync(protocol.Request{Worker: "a", Stopped: 2, Heartbeat: true}).View; v.Holds != 0 || v.Generation != 3 || v.May() {
			t.Errorf("a report with a heartbeat: %+v", v)
		}
	}
	if r := s.look("c"); !slices.Equal(r.Decision.WaitsFor, []protocol.WorkerID{"b"}) {
		t.Errorf("after the report of a: %s %s", r.Group, r.Decision)
	}
	s.sync(protocol.Request{Worker: "b", Stopped: 2, Heartbeat: true})
	if v := s.beat("b"); v.May() {
		t.Errorf("a heartbeat activated: %+v", v)
	}
	expectGroup(t, s.look("b").Group, "generation 3 active {a:0/3 b:1/3 c:2/3}")
}

// The worker whose report by heartbeat is the last one sees that a Step is due, and so do all
// that poll. If two report at once, neither may see the other's report, but one of them does at
// its next poll.
func testReportsByHeartbeat(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	due := func(v protocol.View) bool { return !v.StepAt.After(v.Now) }
	for _, id := range []protocol.WorkerID{"a", "b", "c"} {
		s.join(id)
		s.settle(id)
	}
	report := func(id protocol.WorkerID, generation int64) protocol.View {
		t.Helper()
		return s.sync(protocol.Request{Worker: id, Stopped: generation, Heartbeat: true}).View
	}
	s.leave("c")
	if v := report("a", 3); due(v) || v.Holds != 0 {
		t.Errorf("b has not reported, and a sees %+v", v)
	}
	for what, v := range map[string]protocol.View{
		"a report that comes again": report("a", 3), "b, which has not reported": s.beat("b"), "a stranger": s.beat("x"),
	} {
		if due(v) {
			t.Errorf("b has not reported, and %s sees %+v", what, v)
		}
	}
	for what, v := range map[string]protocol.View{
		"the last report": report("b", 3), "a look": s.beat("a"), "a report that comes again": report("b", 3), "a stranger": s.beat("x"),
	} {
		if !due(v) || v.May() {
			t.Errorf("all have reported, and %s sees %+v", what, v)
		}
	}
	g := s.look("b").Group
	expectGroup(t, g, "generation 4 active {a:0/2 b:1/2}")
	if v := s.beat("a"); due(v) || !v.May() {
		t.Errorf("after the activation a sees %+v", v)
	}

	for range 20 {
		s.sync(protocol.Request{Worker: "c", Join: true})
		s.leave("c")
		g = s.look("a").Group
		views := make(chan bool)
		for _, id := range []protocol.WorkerID{"a", "b"} {
			go func() {
				seen := false
				for range 2 { // the report, and the look after it
					r, err := s.try(protocol.Request{Worker: id, Stopped: g.Generation - 1, Heartbeat: true})
					if err != nil {
						t.Errorf("heartbeat: %v", err)
					}
					seen = seen || due(r.View)
				}
				views <- seen
			}()
		}
		if first, second := <-views, <-views; !first && !second {
			t.Fatalf("both have reported and looked, and neither sees it: %s", s.look("a").Group)
		}
		g = s.look("a").Group
		if g.Phase != protocol.Active {
			t.Fatalf("both have reported: %s", g)
		}
	}
}

// A leave takes effect at once. A repeated leave does nothing.
func testLeaveRepeated(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	r := s.leave("b")
	expectGroup(t, r.Group, "generation 3 draining {a:0/1*}")
	if r.View.Member {
		t.Errorf("after leaving: %+v", r.View)
	}
	expectGroup(t, s.leave("b").Group, "generation 3 draining {a:0/1*}")
	expectGroup(t, s.stopped("a", 2).Group, "generation 3 active {a:0/1}")
	expectGroup(t, s.leave("b").Group, "generation 3 active {a:0/1}")

	// When the last one leaves, the number of the generation stays.
	expectGroup(t, s.leave("a").Group, "generation 3 active {}")
	expectGroup(t, s.leave("a").Group, "generation 3 active {}")
	expectGroup(t, s.join("c").Group, "generation 4 active {c:0/1}")
}

// A new incarnation takes the old one's place in one step, also if the request is repeated, and
// also if the old one is gone already.
func testReplaced(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	for range 2 {
		r := s.sync(protocol.Request{Worker: "a~2", Join: true, Stopped: 2})
		expectGroup(t, r.Group, "generation 3 draining {b:1/2* a~2:0/2}")
	}
	s.stopped("b", 2)
	for range 2 {
		r := s.sync(protocol.Request{Worker: "a~3", Leave: true})
		expectGroup(t, r.Group, "generation 4 draining {b:0/1*}")
	}
}

// A request of a worker that is not a member and does not join changes nothing, and tells the
// worker that it is not a member.
func testStranger(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	for _, r := range []protocol.Request{
		{Worker: "x"}, {Worker: "x", Heartbeat: true}, {Worker: "x", Stopped: 7}, {Worker: "x", Leave: true},
		{Worker: "x~2", Leave: true},
	} {
		if got := s.sync(r); got.View.Member || got.View.May() || got.View.Generation != 0 {
			t.Errorf("%+v in an empty world: %+v", r, got.View)
		}
	}
	expectGroup(t, s.join("a").Group, "generation 1 active {a:0/1}")
	for _, r := range []protocol.Request{
		{Worker: "x"}, {Worker: "x", Heartbeat: true}, {Worker: "x", Stopped: 7}, {Worker: "x", Leave: true},
	} {
		got := s.sync(r)
		if got.View.Member || got.View.May() || got.View.Assigned() {
			t.Errorf("%+v of a stranger: %+v", r, got.View)
		}
		expectGroup(t, s.look("a").Group, "generation 1 active {a:0/1}")
	}
}

// A heartbeat takes no lock on the group and decides nothing. It shows what a full request would
// show.
func testHeartbeat(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.limit, s.window = 2, time.Second
	compare := func(when string) {
		t.Helper()
		for _, id := range []protocol.WorkerID{"a", "b", "c", "stranger"} {
			beat := s.beat(id)
			request := s.look(id)
			full := request.View
			if looks := s.sync(protocol.Request{Worker: id, Heartbeat: true, Others: true}).View; looks.Member != beat.Member {
				t.Errorf("%s: %s: %+v by heartbeat, %+v by one that looks", when, id, beat, looks)
			} else if others := slices.ContainsFunc(request.Group.Members, func(m protocol.Member) bool { return m.ID != id }); looks.Others.Alone == others {
				t.Errorf("%s: %s: it is alone: %t; the group is %s", when, id, looks.Others.Alone, request.Group)
			}
			if !full.Member { // there is no assignment to show
				full.Generation, full.Total, beat.Generation, beat.Total = 0, 0, 0, 0
			}
			if !beat.Now.Equal(full.Now) || !beat.StepAt.Equal(full.StepAt) {
				t.Errorf("%s: %s: times %s and %s by heartbeat, %s and %s by request", when, id, beat.Now, beat.StepAt, full.Now, full.StepAt)
			}
			beat.Now, beat.StepAt = full.Now, full.StepAt
			if !sameView(beat, full) {
				t.Errorf("%s: %s: %+v by heartbeat, %+v by request", when, id, beat, full)
			}
		}
		w.Advance(time.Millisecond)
	}
	compare("empty world")
	s.join("a")
	compare("one worker")
	s.join("b")
	if v := s.beat("a"); !v.StepAt.Equal(v.Now.Add(s.window)) {
		t.Errorf("a join window that opened at %s closes at %s, want %s later", v.Now, v.StepAt, s.window)
	}
	compare("a join window is open")
	w.Advance(s.window)
	s.look("a")
	compare("draining")
	s.stopped("a", 1)
	compare("two workers")
	s.join("c")
	compare("a standby")
	s.leave("a")
	compare("a gone, b draining")
	s.stopped("b", 2)
	compare("the standby has moved up")
	s.leave("b")
	s.leave("c")
	compare("everybody gone")
}

// A look shows what a heartbeat shows. The rest of its request is ignored: the lease is not
// renewed, holds stay, and no presence is published.
func testLook(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	look := func(id protocol.WorkerID) protocol.View {
		t.Helper()
		return s.sync(protocol.Request{
			Worker: id, Heartbeat: true, ReadOnly: true, Stopped: 99, Presence: protocol.Presence{Key: 7, Number: 1},
		}).View
	}
	s.join("a")
	s.join("b")
	before := s.look("b").Group
	w.Advance(time.Second)
	for _, id := range []protocol.WorkerID{"a", "b", "stranger"} {
		// The look comes first, since the heartbeat renews what others see.
		if looked, beat := look(id), s.beat(id); !sameView(looked, beat) || !looked.StepAt.Equal(beat.StepAt) {
			t.Errorf("%s: %+v by look, %+v by heartbeat", id, looked, beat)
		}
	}
	renewed := s.look("b").Group
	w.Advance(time.Second)
	look("a")
	if diff := cmp.Diff(renewed.Members[0], s.look("b").Group.Members[0]); diff != "" {
		t.Errorf("after a look, -before +after:\n%s", diff)
	}
	if before.Members[0].LeaseEnd.Equal(renewed.Members[0].LeaseEnd) {
		t.Error("a heartbeat has not renewed the lease either")
	}
}

// A report is a Step: it is recorded whatever else there is to do. The worker that reports last
// activates.
func testReport(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.stopped("a", 1)
	s.join("c") // opens generation 3, which waits for a and b
	report := func(id protocol.WorkerID) store.Result {
		return s.sync(protocol.Request{Worker: id, Report: true, Stopped: 2, Presence: protocol.Presence{Key: 7, Number: 1}})
	}
	if r := report("a"); r.View.Holds != 0 || r.View.ReadOnly || r.Decision.Activated {
		t.Errorf("b still holds, and a's report is answered with %+v", r)
	}
	if m := s.look("c").Group.Members[0]; m.Holds != 0 || m.Presence.Number != 1 {
		t.Errorf("after its report, a is %+v", m)
	}
	if r := report("b"); !r.Decision.Activated || !r.View.May() {
		t.Errorf("no hold is left, and the answer to b's report is %+v", r)
	}
	if r := report("stranger"); r.View.Member {
		t.Errorf("a stranger is answered with %+v", r)
	}
}

// On request, a look shows the checkpoints that its worker's lanes start from, as Load does, and
// no others.
func testLookShowsCheckpoints(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	look := func(id protocol.WorkerID) store.Result {
		t.Helper()
		return s.sync(protocol.Request{Worker: id, Heartbeat: true, ReadOnly: true, Load: true})
	}
	expect := func(when string, id protocol.WorkerID, want ...store.Lane) {
		t.Helper()
		r := look(id)
		if len(r.Checkpoints) != len(want) {
			t.Errorf("%s, %s is shown %d checkpoints, want %d: %+v", when, id, len(r.Checkpoints), len(want), r.Checkpoints)
		}
		for _, l := range want {
			loaded, err := s.store.Load(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(loaded, r.Checkpoints[l]); diff != "" {
				t.Errorf("%s, %s is shown another checkpoint of %s, -loaded +shown:\n%s", when, id, l, diff)
			}
		}
	}
	expect("alone", "a", lane("p", 1, 0, 1), lane("q", 1, 0, 1))
	s.commit(lane("p", 1, 0, 1), start, at(7))
	s.park(lane("q", 1, 0, 1), start, at(5), protocol.Parked{Position: 5, Aggregate: "x", Slot: protocol.SlotOf("x"), Attempts: 1})
	expect("at work", "a", lane("p", 1, 0, 1), lane("q", 1, 0, 1))
	s.join("b")
	expect("draining", "a")
	expect("draining", "b")
	expect("draining", "stranger")
	s.stopped("a", 1)
	expect("of two", "a", lane("p", 2, 0, 2), lane("q", 2, 0, 2))
	expect("of two", "b", lane("p", 2, 1, 2), lane("q", 2, 1, 2))
	s.commit(lane("p", 2, 1, 2), at(7), at(9))
	s.leave("a")
	s.stopped("b", 2)
	expect("with marks", "b", lane("p", 3, 0, 1), lane("q", 3, 0, 1))
	if r := s.sync(protocol.Request{Worker: "b", Heartbeat: true, ReadOnly: true}); r.Checkpoints != nil {
		t.Errorf("a look that did not ask is shown %+v", r.Checkpoints)
	}
}

// A request that yields is a Step. But if another transaction has locked the set, it is a look,
// and does not wait.
//
//  1. a leaves: generation 3 is opened and activated in one transaction, which
//     waits for a commit to end;
//  2. b finds that a Step is due, and does not wait for its turn to take one;
//  3. all end: b has partition 0 of 1, and took no Step.
func testYield(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	if r := s.sync(protocol.Request{Worker: "b", Yield: true}); r.Group.Generation != 2 || !r.View.ReadOnly {
		t.Errorf("there is nothing to do, and it was no look: %+v", r)
	}
	published := protocol.Presence{Key: 7, Number: 1} // something to publish
	if r := s.sync(protocol.Request{Worker: "b", Yield: true, Presence: published}); r.Group.Generation != 2 || r.View.ReadOnly {
		t.Errorf("the set is not locked, and the request took no Step: %+v", r)
	}
	published.Number++
	commit := s.write(lane("p", 1, 0, 1), start, at(9))
	leave := begin(t, func() (store.Result, error) {
		return s.store.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Leave: true}, s.projections)
	})
	leave.waiting(w, 1)
	if w.Waiting() == 0 {
		return // a store that refuses instead of waiting holds no lock meanwhile
	}
	looked := s.sync(protocol.Request{Worker: "b", Yield: true, Presence: published})
	if looked.Group.Generation != 0 || !looked.View.ReadOnly || looked.View.Generation != 2 {
		t.Errorf("another transaction has locked the set: %+v", looked)
	}
	if err := commit.Commit(); err != nil {
		t.Fatal(err)
	}
	expectGroup(t, leave.wait().Group, "generation 3 active {b:0/1}")
	if v := s.beat("b"); !v.May() || v.Generation != 3 {
		t.Errorf("b sees %+v", v)
	}
}

// A heartbeat that waits while the generation changes must not mix two generations: that would
// start a worker on another worker's partition.
//
//  1. b is partition 1 of 2 in generation 2;
//  2. a leaves: generation 3 is opened and activated in one transaction, which
//     waits for a commit to end;
//  3. b sends a heartbeat, which waits for that transaction;
//  4. all end: the heartbeat shows partition 0 of 1 in generation 3.
func testOnePiece(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	commit := s.write(lane("p", 1, 0, 1), start, at(9))

	leave := begin(t, func() (store.Result, error) {
		return s.store.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Leave: true}, s.projections)
	})
	leave.waiting(w, 1)
	beats := make(chan protocol.View)
	go func() {
		for {
			r, err := s.store.Sync(t.Context(), protocol.Request{Worker: "b", Lease: lease, Heartbeat: true}, nil)
			if err != nil {
				t.Errorf("heartbeat: %v", err)
				close(beats)
				return
			}
			beats <- r.View
			if r.View.Generation >= 3 {
				close(beats)
				return
			}
		}
	}()
	// Those that get through early are from before the change.
	early := 0
	for waiting := false; !waiting; {
		select {
		case v, ok := <-beats:
			if !ok {
				t.Fatal("the heartbeats have ended")
			}
			expectPiece(t, v)
			early++
			waiting = early > 100 // a store that refuses instead of waiting
		default:
			waiting = w.Waiting() >= 2
		}
	}
	if err := commit.Commit(); err != nil {
		t.Fatal(err)
	}
	for v := range beats {
		expectPiece(t, v)
	}
	expectGroup(t, leave.wait().Group, "generation 3 active {b:0/1}")
	s.expect(lane("p", 3, 0, 1), at(9))
}

func expectPiece(t *testing.T, v protocol.View) {
	t.Helper()
	v2 := v.Generation == 2 && v.Total == 2 && slices.Equal(v.Partitions, []int{1}) && v.Holds == 0
	v3 := v.Generation == 3 && v.Total == 1 && slices.Equal(v.Partitions, []int{0}) && v.Holds == 3
	if !v.Member || !v2 && !v3 {
		t.Errorf("the heartbeat shows a layout that never was: %+v", v)
	}
}

// Any request can publish a presence. A presence never goes back to an earlier session. A worker
// whose published presence is missing is removed.
func testPresence(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.sync(protocol.Request{Worker: "a", Join: true, Presence: protocol.Presence{Key: 7, Number: 1}})
	s.join("b")
	s.settle("a")
	present := func(why string, want protocol.Presence) {
		t.Helper()
		for _, m := range s.look("b").Group.Members {
			if m.ID == "a" && m.Presence != want {
				t.Errorf("%s: the presence of a is %v, want %v", why, m.Presence, want)
			}
		}
	}
	present("joined with it", protocol.Presence{Key: 7, Number: 1})
	s.sync(protocol.Request{Worker: "a", Heartbeat: true, Presence: protocol.Presence{Key: 7, Number: 3}})
	present("by heartbeat", protocol.Presence{Key: 7, Number: 3})
	s.sync(protocol.Request{Worker: "a", Heartbeat: true, Presence: protocol.Presence{Key: 7, Number: 2}})
	s.sync(protocol.Request{Worker: "a", Presence: protocol.Presence{Key: 7, Number: 2}})
	s.beat("a")
	present("by a request from before", protocol.Presence{Key: 7, Number: 3})
	lacks := func(n int32) protocol.Request {
		return protocol.Request{Worker: "b", Watch: protocol.Watch{Absent: []protocol.Absence{{Worker: "a", Presence: protocol.Presence{Key: 7, Number: n}}}}}
	}
	if r := s.sync(lacks(2)); len(r.Decision.Expired) > 0 {
		t.Errorf("removed for the lack of an earlier session: %s", r.Group)
	}
	if r := s.sync(lacks(3)); len(r.Decision.Expired) != 1 {
		t.Errorf("not removed: %s", r.Group)
	}
	expectGroup(t, s.settle("b"), "generation 3 active {b:0/1}")
}

// sameView compares all fields except those that only a heartbeat shows.
func sameView(a, b protocol.View) bool {
	return cmp.Equal(a, b, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(protocol.View{}, "Others"))
}

// Members that request several partitions get them, by heartbeat and by request, up to the
// limit. Every partition has its checkpoint.
func testSeveralPartitions(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.limit = 7
	for _, id := range []protocol.WorkerID{"a", "b", "c"} {
		s.sync(protocol.Request{Worker: id, Join: true, Wants: 3})
	}
	g := s.settle("a")
	expectGroup(t, g, "generation 3 active {a:0-2/7 b:3-5/7 c:6/7}")
	for _, m := range g.Members {
		if v := s.beat(m.ID); !v.May() || !slices.Equal(v.Partitions, m.Partitions) {
			t.Errorf("%s sees %+v, want %v", m.ID, v, m.Partitions)
		}
	}
	for k := range 7 {
		s.commit(lane("p", g.Generation, k, 7), start, at(int64(10*k)))
	}
	s.leave("b")
	g = s.settle("a")
	expectGroup(t, g, "generation 4 active {a:0-2/6 c:3-5/6}")
	if r := s.look("c"); len(r.Group.Members) != 2 || r.Group.Members[1].Wants != 3 {
		t.Errorf("what c wants was forgotten: %+v", r.Group.Members)
	}
}

// Members beyond the limit have no partition. They move up in the order of joins.
func testStandby(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.limit = 1
	s.join("a")
	for _, id := range []protocol.WorkerID{"b", "c"} {
		if v := s.join(id).View; !v.Member || v.Assigned() || v.May() || v.Generation != 1 {
			t.Errorf("standby %s: %+v", id, v)
		}
	}
	expectGroup(t, s.look("a").Group, "generation 1 active {a:0/1 b:- c:-}")
	r := s.leave("a")
	expectGroup(t, r.Group, "generation 2 active {b:0/1 c:-}")
	if v := s.beat("b"); !v.May() {
		t.Errorf("b after it has moved up: %+v", v)
	}
}

// Joins within the window cost one generation, whichever worker asks when the window closes.
func testJoinWindow(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.window = 300 * time.Millisecond
	s.join("a") // the very first join does not wait
	s.join("b")
	w.Advance(200 * time.Millisecond)
	expectGroup(t, s.join("c").Group, "generation 1 active {a:0/1 b:- c:-}")
	w.Advance(99 * time.Millisecond)
	expectGroup(t, s.look("c").Group, "generation 1 active {a:0/1 b:- c:-}")
	w.Advance(time.Millisecond) // the window counts from the first join
	expectGroup(t, s.look("a").Group, "generation 2 draining {a:0/3* b:1/3 c:2/3}")
	if v := s.beat("a"); v.StepAt.Before(v.Now.Add(lease / 2)) {
		t.Errorf("a window that has closed is still due: %+v", v)
	}
}

// The lease counts from the database's time at which the request arrives. Others see when it
// ends.
func testLeases(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	end := func(id protocol.WorkerID) time.Duration {
		t.Helper()
		r := s.look("watcher")
		for _, m := range r.Group.Members {
			if m.ID == id {
				return m.LeaseEnd.Sub(r.View.Now)
			}
		}
		t.Fatalf("no member %s in %s", id, r.Group)
		return 0
	}
	s.join("a")
	s.join("watcher")
	if got := end("a"); got != lease {
		t.Errorf("after the join the lease is %s, want %s", got, lease)
	}
	w.Advance(7 * time.Second)
	if got, want := end("a"), lease-7*time.Second; got != want {
		t.Errorf("after 7s the lease is %s, want %s", got, want)
	}
	if v := s.beat("watcher"); !v.StepAt.Equal(v.Now.Add(lease - 7*time.Second)) {
		t.Errorf("the lease of a ends at %s, %s later, and the heartbeat of another says %s", v.Now.Add(lease-7*time.Second), lease, v.StepAt)
	}
	s.beat("a")
	if got := end("a"); got != lease {
		t.Errorf("a heartbeat made the lease %s, want %s", got, lease)
	}
	w.Advance(time.Second)
	s.look("a")
	if got := end("a"); got != lease {
		t.Errorf("a request made the lease %s, want %s", got, lease)
	}
	// A worker may send another lease. It applies to this worker only.
	s.lease = 2 * lease
	s.beat("a")
	s.lease = lease
	if got := end("a"); got != 2*lease {
		t.Errorf("a heartbeat with a lease of %s made it %s", 2*lease, got)
	}
}

// A lease does not end because the clock says so. It ends if the clock was watched for as long
// as the lease, and not by a heartbeat.
func testExpiry(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	w.Advance(lease + time.Second)
	now := s.beat("b").Now
	for why, watch := range map[string]protocol.Watch{
		"nothing was watched":    {},
		"watched too short":      {Seen: now, For: lease - time.Microsecond},
		"seen before the end":    {Seen: now.Add(-2 * time.Second), For: lease},
		"the clock stepped back": {Seen: now.Add(time.Hour), For: lease},
	} {
		r := s.sync(protocol.Request{Worker: "b", Watch: watch})
		if r.Decision.String() != "" {
			t.Errorf("%s: %s", why, r.Decision)
		}
	}
	watch := protocol.Watch{Seen: now, For: lease}
	if v := s.sync(protocol.Request{Worker: "b", Watch: watch, Heartbeat: true}).View; v.Generation != 2 {
		t.Errorf("a heartbeat changed the generation: %+v", v)
	}
	r := s.sync(protocol.Request{Worker: "b", Watch: watch})
	if !slices.Equal(r.Decision.Expired, []protocol.WorkerID{"a"}) {
		t.Errorf("expired: %s", r.Decision)
	}
	expectGroup(t, r.Group, "generation 3 draining {b:0/1*}")
	if v := s.beat("a"); v.Member || v.May() {
		t.Errorf("a after it was removed: %+v", v)
	}

	// A renewal saves a lease that had expired.
	s.stopped("b", 2)
	s.join("c")
	s.settle("c")
	w.Advance(lease + time.Second)
	now = s.beat("c").Now
	s.beat("b")
	r = s.sync(protocol.Request{Worker: "c", Watch: protocol.Watch{Seen: now, For: lease}})
	expectGroup(t, r.Group, "generation 4 active {b:0/2 c:1/2}")
}

// No view and no group ever shows a lower generation than before, and an activation has the
// total of its opening.
func testGenerationGrows(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	r := rand.New(rand.NewPCG(1, 2))
	ids := []protocol.WorkerID{"a", "b", "c", "d"}
	newest, opened := int64(0), 0
	totals := map[int64]int{}
	for range 120 {
		id := ids[r.IntN(len(ids))]
		request := protocol.Request{Worker: id}
		switch r.IntN(6) {
		case 0, 1:
			request.Join = true
		case 2:
			request.Leave = true
		case 3, 4:
			request.Stopped = newest - int64(r.IntN(2))
		}
		result := s.sync(request)
		if g := result.Group; g.Generation < newest || g.Generation > newest+1 || result.View.Generation != g.Generation {
			t.Fatalf("%+v: from generation %d to %s, and the view %+v", request, newest, g, result.View)
		} else if total, ok := totals[g.Generation]; ok && total != g.Total {
			t.Fatalf("%+v: generation %d had %d partitions and has %d", request, g.Generation, total, g.Total)
		} else {
			newest, totals[g.Generation] = g.Generation, g.Total
		}
		if result.Decision.Opened {
			opened++
		}
		if v := s.beat(id); v.Member && v.Generation != newest {
			t.Fatalf("a heartbeat after %+v shows generation %d, not %d", request, v.Generation, newest)
		}
		w.Advance(time.Millisecond)
	}
	if int64(opened) != newest || opened < 10 {
		t.Errorf("%d generations were opened, and the newest is %d", opened, newest)
	}
}

// Sets are independent.
func testSetsApart(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p"), newSet(t, w, "two", "q")
	two.limit, two.window = 3, time.Second
	one.join("a")
	one.join("b")
	two.join("a") // the same name
	expectGroup(t, one.settle("a"), "generation 2 active {a:0/2 b:1/2}")
	one.commit(lane("p", 2, 0, 2), start, at(10))
	expectGroup(t, two.look("a").Group, "generation 1 active {a:0/1}")
	two.commit(lane("q", 1, 0, 1), start, at(20))
	two.absent(lane("p", 2, 0, 2))
	one.absent(lane("q", 1, 0, 1))
	two.refused("another set's projection", lane("p", 2, 0, 2), at(10), at(11))

	before := two.look("a")
	one.leave("a")
	one.stopped("b", 2)
	one.expect(lane("p", 3, 0, 1), protocol.Handoff([]protocol.Checkpoint{at(10), start}, 1)[0])
	after := two.look("a")
	if !sameView(after.View, before.View) || after.Group.String() != before.Group.String() || after.Group.MaxPartitions != 3 || after.Group.JoinWindow != time.Second {
		t.Errorf("set two was %+v %+v and is %+v %+v", before.View, before.Group, after.View, after.Group)
	}
	two.expect(lane("q", 1, 0, 1), at(20))

	// The other set waits for no worker here.
	commit := one.write(lane("p", 3, 0, 1), one.find(lane("p", 3, 0, 1)).Checkpoint, at(30))
	two.leave("a")
	expectGroup(t, two.join("c").Group, "generation 2 active {c:0/1}")
	if err := commit.Commit(); err != nil {
		t.Fatal(err)
	}
	one.expect(lane("p", 3, 0, 1), at(30))
}

// Twenty workers join at once: one group results, in any order.
func testConcurrentJoins(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	const n = 20
	views := make([]protocol.View, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			id := protocol.WorkerID(fmt.Sprintf("w%02d", i))
			r, err := s.try(protocol.Request{Worker: id, Join: true})
			for err != nil && store.PassingState(err) {
				r, err = s.try(protocol.Request{Worker: id, Join: true})
			}
			if err != nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			views[i] = r.View
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	owners := map[string]int{}
	totals := map[int64]int{}
	for i, v := range views {
		place := fmt.Sprintf("generation %d partition %s", v.Generation, protocol.FormatPartitions(v.Partitions))
		if other, ok := owners[place]; ok {
			t.Errorf("%s was given to w%02d and to w%02d", place, other, i)
		}
		owners[place] = i
		if total, ok := totals[v.Generation]; ok && total != v.Total {
			t.Errorf("generation %d has %d and %d partitions", v.Generation, total, v.Total)
		}
		totals[v.Generation] = v.Total
	}
	g := s.settle("w00")
	if len(g.Members) != n || g.Total != n || g.Generation != n {
		t.Errorf("the group is %s", g)
	}
	taken := map[int]bool{}
	for _, m := range g.Members {
		if v := s.beat(m.ID); !v.May() || !slices.Equal(v.Partitions, m.Partitions) || v.Total != n || len(v.Partitions) != 1 || taken[v.Partitions[0]] {
			t.Errorf("%s sees %+v", m.ID, v)
		}
		taken[m.Partitions[0]] = true
	}
	for k := range n {
		s.expect(lane("p", g.Generation, k, n), start)
	}
}

// takenBy fails the test if err is not the expected TakenError.
func takenBy(t *testing.T, err error, projection, set string, worker protocol.WorkerID, over bool) {
	t.Helper()
	var taken *store.TakenError
	if !errors.As(err, &taken) {
		t.Errorf("%v, want a TakenError", err)
		return
	}
	if taken.Projection != projection || taken.ReplicaSet != set || taken.Worker != worker || taken.Over != over || taken.Now.IsZero() {
		t.Errorf("%+v, want projection %s, set %s, worker %s, over %t", taken, projection, set, worker, over)
	}
}
