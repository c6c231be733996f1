package storetest

import (
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

const window = 10 * time.Second

func (s *set) vacate(id protocol.WorkerID) protocol.Group {
	s.t.Helper()
	return s.sync(protocol.Request{Worker: id, Leave: true, Vacate: window}).Group
}

// A worker that comes while a place is vacant takes it: same generation, same checkpoints, and
// the other workers have nothing to do.
func testVacancy(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	s.commit(lane("p", 2, 0, 2), start, at(40))
	before := s.beat("b")
	for range 2 { // the answer to the first one was lost
		expectGroup(t, s.vacate("a"), "generation 2 active {a:0/2(vacant) b:1/2}")
	}
	if v := s.beat("b"); v.Generation != before.Generation || !v.May() {
		t.Errorf("b sees %+v", v)
	}
	w.Advance(window - time.Millisecond)
	expectGroup(t, s.look("b").Group, "generation 2 active {a:0/2(vacant) b:1/2}")
	r := s.join("c")
	expectGroup(t, r.Group, "generation 2 active {b:1/2 c:0/2}")
	if !r.View.May() || len(r.Decision.Taken) != 1 || r.Decision.Opened || r.Decision.Activated {
		t.Errorf("the join of c: %+v, %s", r.View, r.Decision)
	}
	if v := s.beat("c"); !v.May() || v.Generation != 2 || v.Total != 2 {
		t.Errorf("c sees %+v", v)
	}
	s.commit(lane("p", 2, 0, 2), at(40), at(50))
	w.Advance(2 * window)
	expectGroup(t, s.look("b").Group, "generation 2 active {b:1/2 c:0/2}")
	if again := s.join("c"); again.Decision.String() != "" || !again.View.May() {
		t.Errorf("the join of c, once more: %s", again.Decision)
	}
}

// A vacancy ends by the database's clock, and others see when.
func testVacancyEnds(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	s.vacate("a")
	for _, v := range []protocol.View{s.beat("b"), s.look("b").View} {
		if in := v.StepAt.Sub(v.Now); in <= window-5*time.Second || in > window {
			t.Errorf("b is to take a step in %v", in)
		}
	}
	w.Advance(window)
	if v := s.beat("b"); v.StepAt.After(v.Now) {
		t.Errorf("the window is over, and b is to take a step in %v", v.StepAt.Sub(v.Now))
	}
	r := s.look("b")
	expectGroup(t, r.Group, "generation 3 draining {b:0/1*}")
	if len(r.Decision.Lapsed) != 1 || r.Group.Reason != "1 gone" {
		t.Errorf("%s (%s)", r.Decision, r.Group.Reason)
	}
	s.settle("b")
	expectGroup(t, s.join("c").Group, "generation 4 draining {b:0/2* c:1/2}")
}

// A request that a worker sent before it left may arrive when its place is vacant.
func testVacancyLate(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	shown := protocol.Presence{Key: 7, Number: 3}
	s.sync(protocol.Request{Worker: "a", Join: true, Presence: shown})
	s.join("b")
	s.settle("a")
	s.vacate("a")
	w.Advance(time.Second)
	for _, r := range []protocol.Request{
		{Worker: "a", Heartbeat: true, Presence: shown, Stopped: 2}, {Worker: "a", Heartbeat: true, ReadOnly: true},
		{Worker: "a", Heartbeat: true, ReadOnly: true, Load: true},
		{Worker: "a", Stopped: 2, Report: true, Presence: shown}, {Worker: "a", Presence: shown}, {Worker: "a", Join: true, Presence: shown},
	} {
		if v := s.sync(r).View; v.Member || v.May() {
			t.Errorf("%+v shows %+v", r, v)
		}
	}
	r := s.look("b")
	expectGroup(t, r.Group, "generation 2 active {a:0/2(vacant) b:1/2}")
	for _, m := range r.Group.Members {
		if m.ID == "a" && (m.Presence != protocol.Presence{} || m.Lease != window || m.Holds != 0) {
			t.Errorf("the vacant member is %+v", m)
		}
	}
	w.Advance(window - time.Second)
	expectGroup(t, s.look("b").Group, "generation 3 draining {b:0/1*}")
}

// A generation that is opened meanwhile keeps the place too, and waits for no worker there.
func testVacancyInAChange(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	s.commit(lane("p", 2, 0, 2), start, at(40))
	s.vacate("a")
	s.order(protocol.Order{Kind: protocol.OrderPause, Projection: "p"})
	expectGroup(t, s.look("b").Group, "generation 3 draining {a:0/2(vacant) b:1/2*} paused [p]")
	r := s.stopped("b", 2)
	expectGroup(t, r.Group, "generation 3 active {a:0/2(vacant) b:1/2} paused [p]")
	s.expect(lane("p", 3, 0, 2), at(40))
	if v := s.join("c").View; !v.May() || v.Generation != 3 || len(v.Paused) != 1 {
		t.Errorf("c sees %+v", v)
	}
	s.commit(lane("p", 3, 0, 2), at(40), at(41))
}

// All workers have left for replacements: orders are still carried out, and new workers take the
// places.
func testAllVacant(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	s.commit(lane("p", 2, 1, 2), start, at(40))
	s.vacate("a")
	expectGroup(t, s.vacate("b"), "generation 2 active {a:0/2(vacant) b:1/2(vacant)}")
	s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "p", Position: 30})
	expectGroup(t, s.join("c").Group, "generation 3 active {b:1/2(vacant) c:0/2}")
	expectGroup(t, s.join("d").Group, "generation 3 active {c:0/2 d:1/2}")
	s.expect(lane("p", 3, 1, 2), at(30))
}

// A replacement that brings a projection takes the place, and a generation is opened for the
// projection: under the present one it has no checkpoints.
func testVacancyWithANewProjection(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	s.vacate("a")
	s.projections = []string{"p", "q"}
	r := s.join("c")
	expectGroup(t, r.Group, "generation 3 draining {b:1/2* c:0/2}")
	if r.View.May() || len(r.Decision.Taken) != 1 {
		t.Errorf("the join of c: %+v, %s", r.View, r.Decision)
	}
	s.settle("c")
	s.expect(lane("q", 3, 1, 2), start)
	s.vacate("b")
	expectGroup(t, s.join("d").Group, "generation 3 active {c:0/2 d:1/2}") // by now c has the projection
}

// A standby takes the place at once, in the leave itself.
func testVacancyForAStandby(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.limit = 2
	s.join("a")
	s.join("b")
	s.settle("a")
	s.join("c")
	expectGroup(t, s.vacate("a"), "generation 2 active {b:1/2 c:0/2}")
	if v := s.beat("c"); !v.May() {
		t.Errorf("c sees %+v", v)
	}
}

// If a projection's only place is vacant, no worker runs it: another set may take it.
func testVacancyHoldsNoProjection(t *testing.T, w World) {
	s, other := newSet(t, w, "set", "p"), newSet(t, w, "other", "p")
	s.join("a")
	s.commit(lane("p", 1, 0, 1), start, at(7))
	s.vacate("a")
	if v := other.join("x").View; !v.May() || v.Generation != 2 {
		t.Errorf("x sees %+v", v)
	}
	other.expect(lane("p", 2, 0, 1), at(7))
}
