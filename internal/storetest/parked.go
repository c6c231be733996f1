package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// parkable returns a row of an aggregate. The aggregate determines its slot.
func parkable(position int64, aggregate string, attempts int) protocol.Parked {
	return protocol.Parked{Position: position, Slot: protocol.SlotOf(aggregate), Aggregate: aggregate, Attempts: attempts}
}

// ofSlot returns the n-th aggregate whose slot has this remainder.
func ofSlot(n, remainder, total int) string {
	for i := 0; ; i++ {
		if a := fmt.Sprint("a", i); protocol.SlotOf(a)%total == remainder {
			if n--; n < 0 {
				return a
			}
		}
	}
}

func (s *set) park(l store.Lane, from, to protocol.Checkpoint, rows ...protocol.Parked) {
	s.t.Helper()
	if err := s.store.Park(s.t.Context(), l, from, to, rows, "no"); err != nil {
		s.t.Fatalf("park %+v of %s: %v", rows, l, err)
	}
}

// parked fails the test if a lane finds other rows than these. "5 a 3 retry" is position,
// aggregate, attempts and request.
func (s *set) parked(l store.Lane, want ...string) {
	s.t.Helper()
	rows, err := s.store.Parked(s.t.Context(), l)
	if err != nil {
		s.t.Fatalf("read what %s has parked: %v", l, err)
	}
	var got []string
	for _, r := range rows {
		if r.Slot != protocol.SlotOf(r.Aggregate) || r.Since.IsZero() {
			s.t.Errorf("a row is wrong: %+v", r)
		}
		text := fmt.Sprint(r.Position, " ", r.Aggregate, " ", r.Attempts)
		if r.Request != "" {
			text += " " + string(r.Request)
		}
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("%s has parked %q, want %q", l, got, want)
	}
	found, err := s.store.Load(s.t.Context(), l)
	if err != nil {
		s.t.Fatalf("load %s: %v", l, err)
	}
	if none := found.Exists && len(want) == 0; found.NoneParked != none {
		s.t.Errorf("%s has parked %q, and Load says that none are: %t", l, want, found.NoneParked)
	}
}

// A park moves the checkpoint and writes the rows, or does neither.
func testPark(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	l := lane("p", 1, 0, 1)
	s.commit(l, start, at(10))
	s.park(l, at(10), at(12), parkable(11, "x", 3), parkable(12, "x", 0))
	s.expect(l, at(12))
	s.parked(l, "11 x 3", "12 x 0")
	s.parked(lane("q", 1, 0, 1))
	// Parking again what is parked already works: the checkpoint may have been set back by hand.
	s.park(l, at(12), at(13), parkable(11, "x", 9), parkable(13, "it's \\x 100%d\u00e9", 1))
	s.parked(l, "11 x 3", "12 x 0", "13 it's \\x 100%d\u00e9 1")
	// A row that was removed can be parked again.
	if err := s.store.Drop(t.Context(), l, 11); err != nil {
		t.Fatal(err)
	}
	s.park(l, at(13), at(14), parkable(11, "x", 1))
	s.parked(l, "11 x 1", "12 x 0", "13 it's \\x 100%d\u00e9 1")

	// Marks are kept, and dropped when the position has passed them.
	s.join("b")
	g := s.settle("a")
	s.commit(lane("p", g.Generation, 0, 2), at(14), at(100))
	s.leave("b")
	g = s.settle("a")
	l = lane("p", g.Generation, 0, 1)
	c := s.find(l).Checkpoint
	s.park(l, c, c.Advance(50), parkable(50, "y", 1))
	s.expect(l, c.Advance(50))
	s.park(l, c.Advance(50), at(100), parkable(99, "y", 0))
	s.expect(l, at(100))
}

// A refused park leaves nothing behind.
func testParkFence(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	old := lane("p", 1, 0, 1)
	s.commit(old, start, at(10))
	refused := func(why string, call func(context.Context) error) {
		t.Helper()
		if err := call(t.Context()); !errors.Is(err, store.ErrSuperseded) {
			t.Errorf("%s: %v, want ErrSuperseded", why, err)
		}
	}
	park := func(l store.Lane, from, to protocol.Checkpoint) func(context.Context) error {
		return func(ctx context.Context) error {
			return s.store.Park(ctx, l, from, to, []protocol.Parked{parkable(to.Position, "x", 1)}, "no")
		}
	}
	refused("from a position that was left", park(old, start, at(11)))
	refused("a later generation than there is", park(lane("p", 2, 0, 1), at(10), at(11)))
	refused("no such partition", park(lane("p", 1, 1, 1), at(10), at(11)))
	s.parked(old)
	s.park(old, at(10), at(11), parkable(11, "x", 3))
	refused("the same again", park(old, at(10), at(11)))

	s.join("b")
	s.stopped("a", 1)
	refused("an older generation parks", park(old, at(11), at(12)))
	take := func(ctx context.Context) error {
		tx, err := s.store.Take(ctx, old, 11)
		if err == nil {
			err = tx.Commit()
		}
		return err
	}
	refused("it unparks", take)
	refused("it drops", func(ctx context.Context) error { return s.store.Drop(ctx, old, 11) })
	refused("it notes", func(ctx context.Context) error { return s.store.Note(ctx, old, 11, 4, "no") })
	s.parked(lane("p", 2, protocol.SlotOf("x")%2, 2), "11 x 3")
	s.parked(lane("p", 2, 1-protocol.SlotOf("x")%2, 2))
}

// A park during an activation waits for it and is refused then. See testCommitWaits.
func testParkWaits(t *testing.T, w World) {
	moveDuringActivation(t, w, func(s *set, l store.Lane, from, to protocol.Checkpoint) (Tx, error) {
		return nil, s.store.Park(t.Context(), l, from, to, []protocol.Parked{parkable(to.Position, "x", 1)}, "no")
	})
	s := w.Open("set", lease)
	found, err := s.Find(t.Context(), lane("p", 2, 0, 2))
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	if found.Checkpoint.Position == 10 { // it was first
		want = 1
	}
	rows, err := s.Parked(t.Context(), lane("p", 2, protocol.SlotOf("x")%2, 2))
	if err != nil || len(rows) != want {
		t.Errorf("at %s there are parked %+v, %v, want %d", found.Checkpoint, rows, err, want)
	}
}

// With any number of partitions, each finds the rows of its own slots.
func testParkedHandOver(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	l := lane("p", 1, 0, 1)
	var want [3][]string
	var rows []protocol.Parked
	for i := range int64(9) {
		k := int(i) % 3
		rows = append(rows, parkable(i+1, ofSlot(int(i)/3, k, 3), 1))
		want[k] = append(want[k], fmt.Sprint(i+1, " ", rows[i].Aggregate, " 1"))
	}
	s.park(l, start, at(9), rows...)
	s.join("b")
	s.join("c")
	g := s.settle("a")
	for k, rows := range want {
		s.parked(lane("p", g.Generation, k, 3), rows...)
	}
	s.leave("c")
	s.leave("b")
	g = s.settle("a")
	if rows, err := s.store.Parked(t.Context(), lane("p", g.Generation, 0, 1)); err != nil || len(rows) != 9 {
		t.Errorf("after the last hand-over there are %d rows, %v", len(rows), err)
	}
}

func (s *set) take(l store.Lane, position int64) Tx {
	s.t.Helper()
	tx, err := s.store.Take(s.t.Context(), l, position)
	if err != nil {
		s.t.Fatalf("unpark %d of %s: %v", position, l, err)
	}
	return tx
}

// A row is removed with the transaction that takes it, and can be taken once.
func testUnpark(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	l := lane("p", 1, 0, 1)
	s.park(l, start, at(5), parkable(5, "x", 3))
	if err := s.take(l, 5).Rollback(); err != nil {
		t.Fatal(err)
	}
	s.parked(l, "5 x 3")
	if err := s.take(l, 5).Commit(); err != nil {
		t.Fatal(err)
	}
	s.parked(l)
	s.expect(l, at(5))
	if _, err := s.store.Take(t.Context(), l, 5); !errors.Is(err, store.ErrNotParked) {
		t.Errorf("unpark what is gone: %v, want ErrNotParked", err)
	}
	if err := s.store.Drop(t.Context(), l, 5); err != nil {
		t.Errorf("drop what is gone: %v", err)
	}
	// An event whose COMMIT got no answer is taken again. A request that waits for the first
	// transaction then finds no row.
	s.park(l, at(5), at(6), parkable(6, "x", 3))
	first := s.take(l, 6)
	second := begin(t, func() (Tx, error) {
		tx, err := s.store.Take(t.Context(), l, 6)
		if errors.Is(err, store.ErrNotParked) {
			return nil, nil
		}
		return tx, err
	})
	second.waiting(w, 1)
	if err := first.Commit(); err != nil {
		t.Fatal(err)
	}
	if tx := second.wait(); tx != nil {
		t.Error("a row was taken twice")
	}
}

// An activation waits for a transaction that has taken a row.
func testUnparkWaits(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	l := lane("p", 1, 0, 1)
	s.park(l, start, at(5), parkable(5, "x", 3))
	s.join("b")
	tx := s.take(l, 5)
	stopped := begin(t, func() (store.Result, error) {
		return s.store.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Stopped: 1}, s.projections)
	})
	stopped.waiting(w, 1)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	expectGroup(t, stopped.wait().Group, "generation 2 active {a:0/2 b:1/2}")
	for k := range 2 {
		s.parked(lane("p", 2, k, 2))
	}
}

func (s *set) request(position int64, r protocol.ParkRequest) int {
	s.t.Helper()
	n, err := s.store.Request(s.t.Context(), "p", position, r)
	if err != nil {
		s.t.Fatalf("request to %s %d: %v", r, position, err)
	}
	return n
}

// A request stays in its row until a note clears it or the row is removed. A late note clears
// nothing.
func testRequests(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	l := lane("p", 1, 0, 1)
	s.park(l, start, at(6), parkable(5, "x", 3), parkable(6, "y", 0))
	if n := s.request(7, protocol.Retry); n != 0 {
		t.Errorf("%d events at a position where none is", n)
	}
	if n := s.request(5, protocol.Retry); n != 1 {
		t.Errorf("%d events at a position", n)
	}
	s.request(6, protocol.Discard)
	s.parked(l, "5 x 3 retry", "6 y 0 discard")
	for range 2 {
		if err := s.store.Note(t.Context(), l, 5, 4, "no"); err != nil {
			t.Fatal(err)
		}
		s.parked(l, "5 x 4", "6 y 0 discard")
	}
	s.request(5, protocol.Retry)
	if err := s.store.Note(t.Context(), l, 5, 4, "no"); err != nil {
		t.Fatal(err)
	}
	s.parked(l, "5 x 4 retry", "6 y 0 discard")
	if err := s.store.Drop(t.Context(), l, 6); err != nil {
		t.Fatal(err)
	}
	s.parked(l, "5 x 4 retry")
	// A failed retry does not clear a request that was made during it.
	s.request(5, protocol.Discard)
	if err := s.store.Note(t.Context(), l, 5, 5, "no"); err != nil {
		t.Fatal(err)
	}
	s.parked(l, "5 x 5 discard")
}

// A request for a row that is being taken waits, and finds no row.
func testRequestWaits(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	l := lane("p", 1, 0, 1)
	s.park(l, start, at(5), parkable(5, "x", 3))
	tx := s.take(l, 5)
	asked := begin(t, func() (int, error) { return s.store.Request(t.Context(), "p", 5, protocol.Discard) })
	asked.waiting(w, 1)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := asked.wait(); n != 0 {
		t.Errorf("a request was written into %d rows, and there is none", n)
	}
}
