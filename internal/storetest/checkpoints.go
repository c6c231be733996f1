package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A commit moves one checkpoint and no other. A rollback moves none.
func testCommit(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	p, q := lane("p", 1, 0, 1), lane("q", 1, 0, 1)
	s.commit(p, start, at(3))
	s.commit(p, at(3), at(1<<40))
	s.expect(p, at(1<<40))
	s.expect(q, start)
	if err := s.write(q, start, at(7)).Rollback(); err != nil {
		t.Fatal(err)
	}
	s.expect(q, start)
	s.commit(q, start, at(7)) // and it blocks nothing
}

// Marks stay until the position has reached the highest one.
func testMarks(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	g := s.settle("a")
	s.commit(lane("p", g.Generation, 0, 2), start, at(100))
	s.leave("b")
	g = s.settle("a")
	l := lane("p", g.Generation, 0, 1)
	c := s.find(l).Checkpoint
	if c.Position != 0 || len(c.Ahead) != protocol.Slots/2 || c.Ahead[1] != (protocol.Mark{Slot: 2, Position: 100}) {
		t.Fatalf("after the hand-over: %s", c)
	}
	for _, position := range []int64{1, 99} {
		next := c.Advance(position)
		s.commit(l, c, next)
		s.expect(l, next)
		c = next
	}
	s.commit(l, c, c.Advance(100))
	s.expect(l, at(100))
}

// Commits that must be refused, and one that must not. A refused commit leaves nothing behind.
func testFence(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	old := lane("p", 1, 0, 1)
	s.commit(old, start, at(10))
	s.refused("from a position that was left", old, start, at(11))
	s.refused("from a position not reached", old, at(11), at(12))
	s.refused("the same commit again", old, start, at(10))
	s.refused("a later generation than there is", lane("p", 2, 0, 1), at(10), at(11))
	s.refused("no such partition", lane("p", 1, 1, 1), at(10), at(11))
	s.refused("no such projection", lane("q", 1, 0, 1), start, at(11))
	s.expect(old, at(10))

	// An opened generation does not end the running one …
	s.join("b")
	s.commit(old, at(10), at(20))
	// … an activated one does, for workers that have left the generation and for those that are
	// in it.
	s.stopped("a", 1)
	s.refused("an older generation", old, at(20), at(21))
	s.expect(lane("p", 2, 0, 2), at(20))
	s.expect(lane("p", 2, 1, 2), at(20))
	s.commit(lane("p", 2, 1, 2), at(20), at(21))
	s.leave("b")
	s.stopped("a", 2)
	s.refused("a partition that is no more", lane("p", 2, 1, 2), at(21), at(22))
	s.absent(lane("p", 3, 1, 2))
	if found := s.find(lane("p", 1, 0, 1)); found.Generation != 3 {
		t.Errorf("find under generation 1: %+v, want to see generation 3", found)
	}
}

// Find waits while the outcome of a commit is open: its result is final. Load does not wait.
func testFindWaits(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	l := lane("p", 1, 0, 1)
	for _, c := range []struct {
		end  func(Tx) error
		from int64
		want int64
	}{{Tx.Rollback, 0, 0}, {Tx.Commit, 0, 5}, {Tx.Rollback, 5, 5}, {Tx.Commit, 5, 10}} {
		tx := s.write(l, at(c.from), at(c.from+5))
		found := begin(t, func() (protocol.Found, error) { return s.store.Find(t.Context(), l) })
		found.waiting(w, 1)
		if got, err := s.store.Load(t.Context(), l); err != nil || got.Checkpoint.Position != c.from {
			t.Errorf("during a commit from %d: loaded %+v, %v", c.from, got, err)
		}
		if err := c.end(tx); err != nil {
			t.Fatal(err)
		}
		if got := found.wait(); got.Checkpoint.Position != c.want || !got.Exists || got.Generation != 1 {
			t.Errorf("after the end of a commit from %d: found %+v, want position %d", c.from, got, c.want)
		}
	}
}

// The total grows and shrinks, with partitions and projections at different positions. Every
// slot goes on exactly where it was.
func testHandOver(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	frontiers := map[string][]int64{"p": make([]int64, protocol.Slots), "q": make([]int64, protocol.Slots)}
	position := int64(0)
	workers := 0
	resize := func(n int) protocol.Group {
		t.Helper()
		for ; workers < n; workers++ {
			s.join(protocol.WorkerID(fmt.Sprintf("w%d", workers)))
		}
		for ; workers > n; workers-- {
			s.leave(protocol.WorkerID(fmt.Sprintf("w%d", workers-1)))
		}
		return s.settle("w0")
	}
	for _, total := range []int{1, 2, 3, 2, 5, 4, 7, 1, 3} {
		g := resize(total)
		if g.Total != total {
			t.Fatalf("the group is %s, want a total of %d", g, total)
		}
		for p, frontier := range frontiers {
			for k := range total {
				l := lane(p, g.Generation, k, total)
				found := s.find(l)
				if !found.Exists || found.Generation != g.Generation {
					t.Fatalf("find %s: %+v", l, found)
				}
				for slot := k; slot < protocol.Slots; slot += total {
					if got := found.Checkpoint.Frontier(slot); got != frontier[slot] {
						t.Fatalf("%s: slot %d is handed over at %d, want %d", l, slot, got, frontier[slot])
					}
				}
				// Some go ahead, some stay; some pass all marks, some do not.
				if position += 7; (k+len(p)+total)%3 == 0 {
					continue
				}
				c := found.Checkpoint
				next := c.Advance(c.Position + (position-c.Position+1)/int64(1+k%2))
				s.commit(l, c, next)
				for slot := k; slot < protocol.Slots; slot += total {
					frontier[slot] = max(frontier[slot], next.Position)
				}
			}
			s.absent(lane(p, g.Generation, total, total))
		}
	}
}

// An activation waits for a transaction that has written a checkpoint and has not committed, and
// starts from what it commits.
func testActivationWaits(t *testing.T, w World) {
	for i, c := range []struct {
		end  func(Tx) error
		want int64
	}{{Tx.Commit, 15}, {Tx.Rollback, 10}} {
		s := newSet(t, w, fmt.Sprintf("set%d", i), fmt.Sprintf("p%d", i))
		p := s.projections[0]
		s.join("a")
		s.commit(lane(p, 1, 0, 1), start, at(10))
		s.join("b")
		tx := s.write(lane(p, 1, 0, 1), at(10), at(15))
		stopped := begin(t, func() (store.Result, error) {
			return s.store.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Stopped: 1}, s.projections)
		})
		stopped.waiting(w, 1)
		if err := c.end(tx); err != nil {
			t.Fatal(err)
		}
		expectGroup(t, stopped.wait().Group, "generation 2 active {a:0/2 b:1/2}")
		for k := range 2 {
			s.expect(lane(p, 2, k, 2), at(c.want))
		}
	}
}

// A worker that freezes between its write and its COMMIT delays an activation by a bounded time,
// and can't commit when it wakes up. Its row is not the first that the activation locks.
func testFrozen(t *testing.T, w World) {
	const lease = 400 * time.Millisecond
	s := newSet(t, w, "set", "p")
	s.lease, s.store = lease, w.Open("set", lease)
	s.join("a")
	s.join("b")
	s.settle("a")
	s.join("c")
	l := lane("p", 2, 1, 2)
	tx := s.write(l, start, at(10))
	// The worker freezes here.
	lock := store.BoundsOf(lease).Lock
	s.stopped("a", 2)
	pgtest.Eventually(t, "the activation has gone past the frozen worker", func() bool {
		r, err := s.store.Sync(t.Context(), protocol.Request{Worker: "b", Lease: lease, Stopped: 2}, s.projections)
		if store.LockTimeout(err) {
			w.Advance(lock)
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		return r.Group.Phase == protocol.Active
	})
	s.expect(lane("p", 3, 1, 3), start)
	if err := tx.Commit(); err == nil {
		t.Error("the frozen worker has committed")
	}
	for k := range 3 {
		s.expect(lane("p", 3, k, 3), start)
	}
}

// A commit during an activation waits for it and is refused then.
//
//  1. a writes the checkpoint of q, and does not commit yet;
//  2. the activation has locked that of p, and waits for q's;
//  3. a writes the checkpoint of p under the old generation;
//  4. a commits q.
func testCommitWaits(t *testing.T, w World) {
	moveDuringActivation(t, w, func(s *set, l store.Lane, from, to protocol.Checkpoint) (Tx, error) {
		return s.store.Write(t.Context(), l, from, to)
	})
}

// A commit without a transaction waits, too.
func testSaveWaits(t *testing.T, w World) {
	moveDuringActivation(t, w, func(s *set, l store.Lane, from, to protocol.Checkpoint) (Tx, error) {
		return nil, s.store.Save(t.Context(), l, from, to)
	})
}

func moveDuringActivation(t *testing.T, w World, move func(s *set, l store.Lane, from, to protocol.Checkpoint) (Tx, error)) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	s.join("b")
	q := s.write(lane("q", 1, 0, 1), start, at(10))
	stopped := begin(t, func() (store.Result, error) {
		return s.store.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Stopped: 1}, s.projections)
	})
	stopped.waiting(w, 1)
	p := begin(t, func() (Tx, error) { return move(s, lane("p", 1, 0, 1), start, at(10)) })
	pgtest.Eventually(t, "the commit of p waits", func() bool {
		select {
		case <-p.done: // between two attempts of the activation
			return true
		default:
			return w.Waiting() >= 2
		}
	})
	if err := q.Commit(); err != nil {
		t.Fatal(err)
	}
	want := at(0)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatal("the commit of p did not return")
	}
	switch {
	case p.err == nil: // it was first
		if p.result != nil {
			if err := p.result.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		want = at(10)
	case !errors.Is(p.err, store.ErrSuperseded):
		t.Errorf("the commit of p: %v, want ErrSuperseded", p.err)
	}
	expectGroup(t, stopped.wait().Group, "generation 2 active {a:0/2 b:1/2}")
	for k := range 2 {
		s.expect(lane("p", 2, k, 2), want)
		s.expect(lane("q", 2, k, 2), at(10))
	}
}

// If a row was deleted by hand, it is unknown how far its partition was. The store returns an
// error that says so, and changes nothing.
func testDeleted(t *testing.T, w World) {
	for missing := range 3 {
		t.Run(fmt.Sprintf("partition %d of 3", missing), func(t *testing.T) {
			p := fmt.Sprintf("p%d", missing)
			s := newSet(t, w, "set of "+p, p, p+"-other")
			s.join("a")
			s.join("b")
			s.join("c")
			s.settle("a")
			for k := range 3 {
				s.commit(lane(p, 3, k, 3), start, at(10))
			}
			w.Delete(p, missing)
			r := s.leave("c")
			s.stopped("a", 3)
			_, err := s.try(protocol.Request{Worker: "b", Stopped: 3})
			want := fmt.Sprintf("checkpoints of projection %s lack partition %d: rows were deleted by hand", p, missing)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("activation: %v, want: %s", err, want)
			}
			if v := s.beat("a"); v.Generation != r.Group.Generation || v.May() {
				t.Errorf("after the error: %+v", v)
			}
			for k := range 3 {
				if k != missing {
					s.expect(lane(p, 3, k, 3), at(10))
				}
			}

			// If all of them are gone, the projection starts from the beginning.
			for k := range 3 {
				if k != missing {
					w.Delete(p, k)
				}
			}
			s.stopped("b", 3)
			for k := range 2 {
				s.expect(lane(p, 4, k, 2), start)
			}
		})
	}
}

// The store does not give away a projection that a living worker of another set runs, and the
// attempt leaves nothing behind.
func testTaken(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "a", "p", "z"), newSet(t, w, "two", "b", "p")
	one.join("w1")
	one.commit(lane("p", 1, 0, 1), start, at(10))
	for range 2 {
		_, err := two.try(protocol.Request{Worker: "w2", Join: true})
		takenBy(t, err, "p", "one", "w1", false)
		if v := two.beat("w2"); v.Member || v.Generation != 0 {
			t.Errorf("after the refusal: %+v", v)
		}
		two.absent(lane("b", 1, 0, 1))
	}
	one.commit(lane("p", 1, 0, 1), at(10), at(20))

	// A member of the other set that does not run the projection is no obstacle. A standby that has
	// it is.
	two.projections = []string{"b"}
	expectGroup(t, two.join("w2").Group, "generation 1 active {w2:0/1}")
	one.limit = 1
	one.join("standby")
	one.leave("w1")
	two.projections = []string{"b", "p"}
	_, err := two.try(protocol.Request{Worker: "w3", Join: true})
	takenBy(t, err, "p", "one", "standby", false)
	expectGroup(t, two.look("w2").Group, "generation 1 active {w2:0/1}")
}

// When the last worker that runs a projection has left, the projection moves to the set that
// claims it, with its checkpoints, whatever the two totals are. Handlers that still run in the
// old set can't commit, under any generation.
func testTakeOver(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p", "q"), newSet(t, w, "two", "r")
	one.join("w1")
	one.join("w2")
	one.join("w3")
	one.settle("w1")
	old := []protocol.Checkpoint{at(30), at(10), at(20)}
	for k, c := range old {
		one.commit(lane("p", 3, k, 3), start, c)
		one.commit(lane("q", 3, k, 3), start, at(5))
	}
	two.join("v1")
	two.join("v2")
	two.settle("v1")

	one.leave("w1")
	one.leave("w2")
	one.projections = []string{"q"} // as a roll-out does
	one.sync(protocol.Request{Worker: "w3~2", Join: true})

	// The claim alone ends p in set one, before any activation.
	two.projections = []string{"r", "p"}
	two.limit = 2
	two.join("v3")
	one.refused("moved to another set", lane("p", 3, 0, 3), at(30), at(31))
	one.absent(lane("p", 3, 0, 3))
	two.refused("the new set, before it has activated", lane("p", 2, 0, 2), at(30), at(31))

	two.leave("v1")
	two.stopped("v2", 2)
	g := two.look("v3").Group
	if g.Phase != protocol.Active || g.Total != 2 {
		t.Fatalf("set two: %s", g)
	}
	for k, want := range protocol.Handoff(old, 2) {
		two.expect(lane("p", g.Generation, k, 2), want)
	}
	// q stays, and the activations there do not touch p.
	if g := one.settle("w3~2"); g.Total != 1 {
		t.Fatalf("set one: %s", g)
	} else {
		one.expect(lane("q", g.Generation, 0, 1), at(5))
	}
	for k, want := range protocol.Handoff(old, 2) {
		two.expect(lane("p", g.Generation, k, 2), want)
	}

	// And back, together with what was claimed there.
	two.leave("v2")
	two.leave("v3")
	one.projections = []string{"p", "q"}
	one.join("w5")
	g = one.settle("w5")
	for k, want := range protocol.Handoff(protocol.Handoff(old, 2), g.Total) {
		one.expect(lane("p", g.Generation, k, g.Total), want)
	}
}

// A dead worker keeps its projection until its lease has expired for certain. Before that, the
// error says that waiting helps.
func testTakeOverDead(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p"), newSet(t, w, "two", "p")
	one.join("w1")
	one.commit(lane("p", 1, 0, 1), start, at(10))
	w.Advance(lease - time.Microsecond)
	_, err := two.try(protocol.Request{Worker: "w2", Join: true})
	takenBy(t, err, "p", "one", "w1", false)
	w.Advance(time.Microsecond)
	_, err = two.try(protocol.Request{Worker: "w2", Join: true})
	takenBy(t, err, "p", "one", "w1", true)
	var taken *store.TakenError
	if !errors.As(err, &taken) {
		t.FailNow()
	}
	one.commit(lane("p", 1, 0, 1), at(10), at(11)) // it is not dead for certain yet

	watch := protocol.Watch{Seen: taken.Now, For: lease - time.Second}
	_, err = two.try(protocol.Request{Worker: "w2", Join: true, Watch: watch})
	takenBy(t, err, "p", "one", "w1", true)
	watch.For = lease
	g := two.sync(protocol.Request{Worker: "w2", Join: true, Watch: watch}).Group
	if g.Phase != protocol.Active || g.Total != 1 {
		t.Fatalf("set two: %s", g)
	}
	one.refused("moved to another set", lane("p", 1, 0, 1), at(11), at(12))
	one.refused("moved to another set, under its generation", lane("p", g.Generation, 0, 1), at(11), at(12))
	two.expect(lane("p", g.Generation, 0, 1), at(11))
	two.commit(lane("p", g.Generation, 0, 1), at(11), at(12))

	// The dead worker was only asleep, and comes back.
	_, err = one.try(protocol.Request{Worker: "w1~2", Join: true})
	takenBy(t, err, "p", "two", "w2", false)
	// Its old row blocks nothing and runs nothing.
	two.leave("w2")
	g = two.join("w3").Group
	two.expect(lane("p", g.Generation, 0, 1), at(12))
}

// Workers that were frozen past their leases may wake up in a set that has nothing left to run.
// They rebalance all the same, and learn it one by one.
func testTakeOverAll(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p"), newSet(t, w, "two", "p")
	one.join("w1")
	one.join("w2")
	one.settle("w1")
	w.Advance(lease)
	watch := protocol.Watch{Seen: one.look("w1").View.Now, For: lease}
	w.Advance(lease)
	watch.Seen = watch.Seen.Add(lease)
	two.sync(protocol.Request{Worker: "v", Join: true, Watch: watch})

	one.leave("w2")
	g := one.settle("w1")
	if g.Phase != protocol.Active || g.Total != 1 {
		t.Fatalf("set one: %s", g)
	}
	one.absent(lane("p", g.Generation, 0, 1))
	_, err := one.try(protocol.Request{Worker: "w1~2", Join: true})
	takenBy(t, err, "p", "two", "v", false)
}

// The generations of two sets are independent numbers, and may be equal. A projection that has
// moved does not run in its new set before that set has activated it, whatever the number of the
// running generation: its rows still have the layout of the old set.
func testSameNumber(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p"), newSet(t, w, "two", "r")
	one.join("w1")
	one.join("w2")
	one.settle("w1")
	one.commit(lane("p", 2, 0, 2), start, at(10))
	two.join("v1")
	two.join("v2")
	two.leave("v2")
	two.stopped("v1", 1)
	two.join("v2")
	two.settle("v1")
	if g := two.look("v1").Group; g.Generation != 4 || g.Total != 2 {
		t.Fatalf("set two: %s", g)
	}
	one.leave("w1")
	one.stopped("w2", 2)
	one.join("w3")
	if g := one.settle("w2"); g.Generation != 4 || g.Total != 2 {
		t.Fatalf("set one: %s", g)
	}
	old := []protocol.Checkpoint{one.find(lane("p", 4, 0, 2)).Checkpoint, one.find(lane("p", 4, 1, 2)).Checkpoint}
	one.sync(protocol.Request{Worker: "w3", Presence: protocol.Presence{Key: 7, Number: 1}})
	one.sync(protocol.Request{Worker: "w2", Leave: true, // both at once
		Watch: protocol.Watch{Absent: []protocol.Absence{{Worker: "w3", Presence: protocol.Presence{Key: 7, Number: 1}}}}})

	two.projections = []string{"r", "p"}
	two.join("v3") // v1 and v2 still run generation 4
	if v := two.beat("v1"); v.Holds != 4 {
		t.Fatalf("v1 of set two: %+v", v)
	}
	for k, c := range old {
		two.refused("not yet activated", lane("p", 4, k, 2), c, c.Advance(50))
	}
	g := two.settle("v3")
	for k, want := range protocol.Handoff(old, 3) {
		two.expect(lane("p", g.Generation, k, 3), want)
	}
	two.refused("the old set's number", lane("p", 4, 0, 2), old[0], at(50))
}

// However often a projection moves, the generation that it runs under grows: an outside system
// that uses it as a fencing token must not refuse the newest owner.
func testFenceOutside(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p"), newSet(t, w, "two", "p")
	newest := int64(0)
	run := func(s *set) {
		t.Helper()
		g := s.join("a").Group
		if g.Generation <= newest {
			t.Errorf("p ran under generation %d, and then under %d", newest, g.Generation)
		}
		for range 3 { // some generations more
			s.join("b")
			g = s.settle("a")
			s.leave("b")
			g = s.settle("a")
		}
		newest = g.Generation
		s.leave("a")
	}
	for range 2 {
		run(one)
		run(two)
	}
}

// A standby brings a projection while a generation drains. The projection must not be activated
// under a generation that is not higher than its last one.
func testStandbyTakesOver(t *testing.T, w World) {
	one, two := newSet(t, w, "one", "p"), newSet(t, w, "two", "q")
	one.join("a")
	one.join("b")
	newest := one.settle("a").Generation
	one.leave("a")
	one.leave("b")
	two.limit = 1
	two.join("c")
	two.projections = []string{"q", "p"}
	two.sync(protocol.Request{Worker: "d", Join: true}) // it is a standby, and has p
	two.sync(protocol.Request{Worker: "c~2", Join: true})
	if g := two.settle("d"); g.Generation <= newest {
		t.Errorf("p ran under generation %d, and then under %d", newest, g.Generation)
	}

	// The same, while a generation with that very number drains already.
	one, two = newSet(t, w, "three", "r"), newSet(t, w, "four", "s")
	one.join("a")
	one.join("b")
	newest = one.settle("a").Generation
	one.leave("a")
	one.leave("b")
	two.limit = 2
	two.join("c")
	g := two.join("d").Group
	expectGroup(t, g, "generation 2 draining {c:0/2* d:1/2}")
	two.projections = []string{"s", "r"}
	two.join("e")
	if g = two.settle("c"); g.Generation <= newest {
		t.Errorf("r ran under generation %d, and then under %d", newest, g.Generation)
	}
}

// Several sets claim the same projections at once, in any order of names. One set gets them, and
// the others get an error.
func testClaims(t *testing.T, w World) {
	const sets = 4
	for round := range 10 {
		p, q := fmt.Sprintf("p%d", round), fmt.Sprintf("q%d", round)
		errs := make([]error, sets)
		var all sync.WaitGroup
		for i := range sets {
			s := newSet(t, w, fmt.Sprintf("set %d of round %d", i, round), p, q)
			if i%2 == 1 {
				s.projections = []string{q, p}
			}
			all.Go(func() {
				for {
					_, errs[i] = s.try(protocol.Request{Worker: "w", Join: true})
					if errs[i] == nil || !store.PassingState(errs[i]) {
						return
					}
				}
			})
		}
		all.Wait()
		winners := 0
		for _, err := range errs {
			var taken *store.TakenError
			if err == nil {
				winners++
			} else if !errors.As(err, &taken) {
				t.Errorf("a claim: %v", err)
			}
		}
		if winners != 1 {
			t.Errorf("%d of %d sets have got the projections, want one: %v", winners, sets, errs)
		}
	}
}
