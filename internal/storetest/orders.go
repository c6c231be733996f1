package storetest

import (
	"errors"
	"slices"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

func (s *set) order(o protocol.Order) store.Result {
	s.t.Helper()
	return s.sync(protocol.Request{Order: &o})
}

// Assignments show what is paused, by heartbeat and by request. A pause stays through changes of
// members.
func testPause(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	g := s.order(protocol.Order{Kind: protocol.OrderPause, Projection: "q"}).Group
	expectGroup(t, g, "generation 2 draining {a:0/1*} paused [q]")
	if v := s.beat("a"); v.May() || v.Generation != 2 || !slices.Equal(v.Paused, []string{"q"}) {
		t.Errorf("a heartbeat after the order: %+v", v)
	}
	s.settle("a")
	if v := s.look("a").View; !v.May() || !slices.Equal(v.Paused, []string{"q"}) || !sameView(s.beat("a"), v) {
		t.Errorf("after the activation: %+v", v)
	}
	g = s.order(protocol.Order{Kind: protocol.OrderPause, Projection: "q"}).Group
	expectGroup(t, g, "generation 2 active {a:0/1} paused [q]")
	s.order(protocol.Order{Kind: protocol.OrderPause, Projection: protocol.All})
	s.join("b")
	expectGroup(t, s.settle("b"), "generation 4 active {a:0/2 b:1/2} all paused")
	if v := s.beat("b"); !slices.Equal(v.Paused, []string{protocol.All, "q"}) {
		t.Errorf("a joiner sees %q paused", v.Paused)
	}
	s.order(protocol.Order{Kind: protocol.OrderResume, Projection: protocol.All})
	expectGroup(t, s.settle("a"), "generation 5 active {a:0/2 b:1/2}")
	if v := s.beat("b"); len(v.Paused) != 0 || !v.May() {
		t.Errorf("after all was resumed: %+v", v)
	}
	s.order(protocol.Order{Kind: protocol.OrderPause, Projection: "p"})
	s.leave("a")
	s.leave("b")
	r := s.join("c")
	expectGroup(t, r.Group, "generation 8 active {c:0/1} paused [p]")
}

// The activation carries out a rewind, for its projection only, whatever the positions of the
// partitions were. Then the rewind is done.
func testRewind(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	s.join("b")
	g := s.settle("a").Generation
	for _, projection := range []string{"p", "q"} {
		s.commit(lane(projection, g, 0, 2), start, at(100))
		s.commit(lane(projection, g, 1, 2), start, at(70))
	}
	s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "p", Position: 9})
	r := s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "p", Position: 1 << 60})
	expectGroup(t, r.Group, "generation 4 draining {a:0/2* b:1/2*} rewind p to 1152921504606846976")
	s.expect(lane("p", g, 1, 2), at(70))
	s.commit(lane("p", g, 1, 2), at(70), at(80)) // commits in flight come first
	g = s.settle("b").Generation
	for k := range 2 {
		s.expect(lane("p", g, k, 2), at(1<<60))
	}
	s.expect(lane("q", g, 0, 2), at(100))
	s.expect(lane("q", g, 1, 2), at(70))
	s.refused("it ran before the rewind", lane("p", 2, 1, 2), at(80), at(90))
	s.order(protocol.Order{Kind: protocol.OrderPause, Projection: "q"})
	g = s.settle("a").Generation
	s.expect(lane("p", g, 0, 2), at(1<<60))
	s.commit(lane("p", g, 0, 2), at(1<<60), at(1<<60+1))
	s.order(protocol.Order{Kind: protocol.OrderResume, Projection: "q"})
	g = s.settle("a").Generation
	s.expect(lane("p", g, 0, 2), at(1<<60+1))

	// Without workers, the next one that joins carries it out.
	s.leave("a")
	s.leave("b")
	s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "p", Position: 5})
	g = s.join("c").Group.Generation
	s.expect(lane("p", g, 0, 1), at(5))
}

// A rewind lapses if its projection moves to another set before it was carried out, even if the
// projection comes back. Other rewinds stay.
func testRewindOfAMovedProjection(t *testing.T, w World) {
	s, other := newSet(t, w, "set", "p", "q"), newSet(t, w, "other", "p")
	s.join("a")
	s.commit(lane("p", 1, 0, 1), start, at(50))
	s.commit(lane("q", 1, 0, 1), start, at(50))
	s.leave("a")
	for _, projection := range []string{"p", "q"} {
		s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: projection, Position: 5})
	}
	g := other.join("b").Group.Generation
	other.commit(lane("p", g, 0, 1), at(50), at(100))
	other.leave("b")
	g = s.join("c").Group.Generation
	s.expect(lane("p", g, 0, 1), at(100))
	s.expect(lane("q", g, 0, 1), at(5))
}

// A drained worker stays drained, also as a new incarnation.
func testDrained(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	s.settle("a")
	s.order(protocol.Order{Kind: protocol.OrderDrain, Worker: "a"})
	expectGroup(t, s.settle("b"), "generation 3 active {a:-(drained) b:0/1}")
	if v := s.beat("a"); !v.Member || v.Assigned() || v.May() {
		t.Errorf("the drained worker sees %+v", v)
	}
	r := s.sync(protocol.Request{Worker: "a~2", Join: true})
	expectGroup(t, r.Group, "generation 3 active {b:0/1 a~2:-(drained)}")
	// No other worker can have the partition, so it is kept.
	s.commit(lane("p", 3, 0, 1), start, at(7))
	r = s.leave("b")
	expectGroup(t, r.Group, "generation 3 active {a~2:-(drained)}")
	s.expect(lane("p", 3, 0, 1), at(7))
	r = s.order(protocol.Order{Kind: protocol.OrderUndrain, Worker: "a~2"})
	expectGroup(t, r.Group, "generation 4 active {a~2:0/1}")
	s.expect(lane("p", 4, 0, 1), at(7))
}

// A projection that has never run can be paused and rewound: it starts at that position later. A
// projection of another set can't.
func testOrderAhead(t *testing.T, w World) {
	s, other := newSet(t, w, "set", "p"), newSet(t, w, "other", "q")
	s.join("a")
	other.join("b")
	s.order(protocol.Order{Kind: protocol.OrderPause, Projection: "new"})
	s.settle("a")
	r := s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "new", Position: 7})
	expectGroup(t, r.Group, "generation 3 draining {a:0/1*} paused [new] rewind new to 7")
	g := s.settle("a").Generation
	s.expect(lane("new", g, 0, 1), at(7))
	o := protocol.Order{Kind: protocol.OrderRewind, Projection: "new"}
	if _, err := other.try(protocol.Request{Order: &o}); !errors.Is(err, store.ErrRejected) {
		t.Errorf("an order by another set: %v, want ErrRejected", err)
	}
	// While a generation drains, an order waits too. It applies to a worker that brings the
	// projection, even if none has run it yet.
	s.order(protocol.Order{Kind: protocol.OrderResume, Projection: "new"})
	s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "newer", Position: 9})
	s.projections = append(s.projections, "new", "newer")
	s.join("c")
	g = s.settle("a").Generation
	for k := range 2 {
		s.expect(lane("new", g, k, 2), at(7))
		s.expect(lane("newer", g, k, 2), at(9))
	}
}

// An order that can't be carried out returns an error and changes nothing.
func testOrderRefused(t *testing.T, w World) {
	s, other := newSet(t, w, "set", "p"), newSet(t, w, "other", "q")
	refused := func(o protocol.Order) {
		t.Helper()
		if _, err := s.try(protocol.Request{Order: &o}); !errors.Is(err, store.ErrRejected) {
			t.Errorf("%s: %v, want ErrRejected", o, err)
		}
	}
	refused(protocol.Order{Kind: protocol.OrderPause, Projection: protocol.All}) // no such set
	s.join("a")
	other.join("b")
	refused(protocol.Order{Kind: protocol.OrderPause, Projection: "q"})
	refused(protocol.Order{Kind: protocol.OrderRewind, Projection: "q", Position: 1})
	refused(protocol.Order{Kind: protocol.OrderResume, Projection: "nobody"})
	refused(protocol.Order{Kind: protocol.OrderDrain, Worker: "b"})
	refused(protocol.Order{Kind: protocol.OrderDrain, Worker: "a"})
	expectGroup(t, s.look("a").Group, "generation 1 active {a:0/1}")
	if v := s.beat("a"); !v.May() {
		t.Errorf("after orders that were refused: %+v", v)
	}
}
