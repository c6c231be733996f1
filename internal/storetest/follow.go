package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Rebuilds are the rebuilds in every world: rebuild → live version.
var Rebuilds = map[string]string{"v2": "p"}

// pair returns the set of a live projection, p, and that of its rebuild, v2, in their first
// generations.
func pair(t *testing.T, w World) (live, next *set) {
	live, next = newSet(t, w, "live", "p"), newSet(t, w, "next", "v2")
	live.join("a")
	next.join("b")
	return live, next
}

func (s *set) followed(projection string) protocol.Followed {
	s.t.Helper()
	f, err := s.store.Followed(s.t.Context(), projection)
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// notYet fails the test if v2 can take the place of p now.
func (s *set) notYet(why string) {
	s.t.Helper()
	notYet := (*store.NotYetError)(nil)
	if _, err := s.store.Promote(s.t.Context(), "v2", "p", ""); !errors.As(err, &notYet) {
		s.t.Errorf("promoted though %s: %v", why, err)
	}
}

func (s *set) rejected(projection, live string) {
	s.t.Helper()
	if _, err := s.store.Promote(s.t.Context(), projection, live, ""); !errors.Is(err, store.ErrRejected) {
		s.t.Errorf("promote %s over %s: %v", projection, live, err)
	}
}

// A rebuild follows the live version from its first join on. It takes the place of the live
// version when that has stopped; then the old version follows.
func testPromote(t *testing.T, w World) {
	live, next := pair(t, w)
	if found, err := next.store.Load(t.Context(), lane("v2", 1, 0, 1)); err != nil || !found.Follows {
		t.Errorf("the rebuild: %+v, %v", found, err)
	}
	if found, err := live.store.Load(t.Context(), lane("p", 1, 0, 1)); err != nil || found.Follows {
		t.Errorf("the live one: %+v, %v", found, err)
	}
	live.commit(lane("p", 1, 0, 1), start, at(100))
	if f := next.followed("v2"); f.Live || f.Final || len(f.Checkpoints) != 1 || f.Checkpoints[0].Position != 100 {
		t.Errorf("the rebuild gets %+v", f)
	}
	if f := live.followed("p"); !f.Live {
		t.Errorf("the live version gets %+v", f)
	}
	next.notYet("the live one runs")
	live.order(protocol.Order{Kind: protocol.OrderHold, Projection: "p"})
	next.notYet("it has not stopped")
	live.settle("a")
	if f := next.followed("v2"); !f.Final {
		t.Errorf("when the live one is held: %+v", f)
	}
	next.notYet("it lacks events")
	next.commit(lane("v2", 1, 0, 1), start, at(60, protocol.Mark{Slot: 7, Position: 100}))
	next.notYet("it lacks events on some slots")
	next.commit(lane("v2", 1, 0, 1), at(60, protocol.Mark{Slot: 7, Position: 100}), at(100))
	next.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "v2", Position: 5})
	next.notYet("it is to be rewound")
	g := next.settle("b").Generation
	next.commit(lane("v2", g, 0, 1), at(5), at(100))
	live.order(protocol.Order{Kind: protocol.OrderHold, Projection: "p"})
	if _, err := next.store.Promote(t.Context(), "v2", "p", ""); err != nil {
		t.Fatal(err)
	}
	if f := next.followed("v2"); !f.Live {
		t.Errorf("the new live version gets %+v", f)
	}
	if f := live.followed("p"); f.Live || f.Final || f.Checkpoints[0].Position != 100 {
		t.Errorf("the replaced version gets %+v", f)
	}
	next.rejected("v2", "p")
	w.Advance(2 * protocol.HoldFor)
	expectGroup(t, live.look("a").Group, "generation 2 active {a:0/1} paused [p]")

	live.order(protocol.Order{Kind: protocol.OrderResume, Projection: "p"})
	g = live.settle("a").Generation
	if found, err := live.store.Load(t.Context(), lane("p", g, 0, 1)); err != nil || !found.Follows || found.Checkpoint.Position != 100 {
		t.Errorf("the one that was replaced, resumed: %+v, %v", found, err)
	}
}

// A replaced version can't commit, even before a new generation is activated.
func testPromoteFences(t *testing.T, w World) {
	live, next := pair(t, w)
	live.commit(lane("p", 1, 0, 1), start, at(100))
	next.commit(lane("v2", 1, 0, 1), start, at(100))
	live.order(protocol.Order{Kind: protocol.OrderHold, Projection: "p"})
	live.sync(protocol.Request{Worker: "a", Heartbeat: true, Stopped: 1}) // and a lane of a frozen worker goes on
	if _, err := next.store.Promote(t.Context(), "v2", "p", ""); err != nil {
		t.Fatal(err)
	}
	live.refused("it was replaced", lane("p", 1, 0, 1), at(100), at(120))
}

// A hold ends by itself, can be renewed, and can be released.
func testHold(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.order(protocol.Order{Kind: protocol.OrderHold, Projection: "p"})
	expectGroup(t, s.settle("a"), "generation 2 active {a:0/1} paused [p] hold p")
	if at := s.beat("a").StepAt; at.After(s.beat("a").Now.Add(protocol.HoldFor)) {
		t.Errorf("no worker polls before %s", at)
	}
	w.Advance(protocol.HoldFor - time.Second)
	s.order(protocol.Order{Kind: protocol.OrderHold, Projection: "p"})
	w.Advance(protocol.HoldFor - time.Second)
	expectGroup(t, s.look("a").Group, "generation 2 active {a:0/1} paused [p] hold p")
	w.Advance(time.Second)
	expectGroup(t, s.look("a").Group, "generation 3 draining {a:0/1*}")
	s.settle("a")
	s.order(protocol.Order{Kind: protocol.OrderHold, Projection: "p"})
	s.settle("a")
	s.order(protocol.Order{Kind: protocol.OrderRelease, Projection: "p"})
	expectGroup(t, s.settle("a"), "generation 5 active {a:0/1}")
}

// A retired projection is gone, and its name can't be used again.
func testRetire(t *testing.T, w World) {
	live, next := pair(t, w)
	refused := func(projection string) {
		t.Helper()
		if err := live.store.Retire(t.Context(), projection); !errors.Is(err, store.ErrRejected) {
			t.Errorf("%s is retired: %v", projection, err)
		}
	}
	refused("none")
	refused("p")
	refused("v2")
	next.leave("b")
	if err := next.store.Retire(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	next.absent(lane("v2", 1, 0, 1))
	gone := (*store.RetiredError)(nil)
	if _, err := next.try(protocol.Request{Worker: "c", Join: true}); !errors.As(err, &gone) {
		t.Errorf("a worker comes with it: %v", err)
	}
	live.leave("a")
	if err := live.store.Retire(t.Context(), "p"); err != nil {
		t.Error(err)
	}
}

// A rebuild of a projection that never ran, or that is not live, is refused. An order does not
// make it live.
func testRebuildRefused(t *testing.T, w World) {
	next := newSet(t, w, "next", "v2")
	var refused *store.FollowError
	if _, err := next.try(protocol.Request{Worker: "b", Join: true}); !errors.As(err, &refused) {
		t.Errorf("a rebuild of nothing: %v", err)
	}
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "v2", Position: 5})
	s.settle("a")
	s.projections = []string{"p", "v2"}
	s.join("c")
	g := s.settle("c").Generation
	if found, err := s.store.Load(t.Context(), lane("v2", g, 0, 2)); err != nil || !found.Follows || found.Checkpoint.Position != 5 {
		t.Errorf("a rebuild that was ordered before: %+v, %v", found, err)
	}
}
