package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

func (s *set) orderPark(projection string, position int64) int64 {
	s.t.Helper()
	number, err := s.store.OrderPark(s.t.Context(), projection, position, "somebody")
	if err != nil {
		s.t.Fatalf("order to park %d of %s: %v", position, projection, err)
	}
	return number
}

// outcome fails the test if the outcome of an order is not want. "" means that it waits.
func (s *set) outcome(number int64, want string) {
	s.t.Helper()
	if got, err := s.store.Outcome(s.t.Context(), number); err != nil || got != want {
		s.t.Errorf("of order %d there has come %q, %v, want %q", number, got, err, want)
	}
}

// ordered fails the test if a lane finds other orders than these, by position. Each is of the
// given slot, or of an unknown slot (-1).
func (s *set) ordered(l store.Lane, slot int, want ...int64) {
	s.t.Helper()
	rows, err := s.store.Parked(s.t.Context(), l)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for _, r := range rows {
		if r.Request != protocol.ToPark {
			continue
		}
		if n >= len(want) || r.Position != want[n] || r.Slot != slot || r.Order == 0 {
			s.t.Errorf("%s finds %+v, want orders for %v of slot %d", l, r, want, slot)
		}
		n++
	}
	if n != len(want) {
		s.t.Errorf("%s finds %d orders, want %v", l, n, want)
	}
	found, err := s.store.Load(s.t.Context(), l)
	if none := len(rows) == 0; err != nil || len(want) > 0 && found.NoneParked || found.NoneParked && !none {
		s.t.Errorf("%s finds %+v, and Load says that there are none: %t, %v", l, rows, found.NoneParked, err)
	}
}

// Every lane of the projection finds an order until one lane has recorded the event's slot. Then
// only the lane of that slot finds it. The order ends when the event is parked, in any
// partition.
func testOrderPark(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	s.join("b")
	g := s.settle("a").Generation
	slot := protocol.SlotOf("x")
	mine, other := lane("p", g, slot%2, 2), lane("p", g, 1-slot%2, 2)
	s.commit(mine, start, at(10))
	number := s.orderPark("p", 11)
	if again := s.orderPark("p", 11); again != number {
		t.Errorf("the same order has the numbers %d and %d", number, again)
	}
	s.ordered(mine, protocol.NoSlot, 11)
	s.ordered(other, protocol.NoSlot, 11)
	s.ordered(lane("q", g, 0, 2), 0)
	s.outcome(number, "")
	for range 2 {
		if err := s.store.Locate(t.Context(), other, number, slot); err != nil {
			t.Fatal(err)
		}
	}
	s.ordered(mine, slot, 11)
	s.ordered(other, slot)
	row := parkable(11, "x", 0)
	row.Request = protocol.ToPark
	s.park(mine, at(10), at(11), row)
	s.outcome(number, "parked")
	s.parked(mine, "11 x 0")
	s.ordered(mine, slot)
	// Its outcome does not change any more.
	if err := s.store.Lapse(t.Context(), mine, number, "no"); err != nil {
		t.Fatal(err)
	}
	s.outcome(number, "parked")

	// A park that the fence refuses ends no order.
	number = s.orderPark("p", 20)
	row = parkable(20, "x", 0)
	if err := s.store.Park(t.Context(), lane("p", g-1, slot%2, 2), at(11), at(20), []protocol.Parked{row}, "no"); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("an older generation parks: %v", err)
	}
	s.outcome(number, "")
	s.park(mine, at(11), at(20), parkable(20, "x", 3)) // parked by its failure policy meanwhile
	s.outcome(number, "parked")
}

// An order ends when its lane says so, under the lane's current generation; or when the
// checkpoint of the event's partition has passed the event (of all partitions if the slot is
// unknown); or after a day.
func testOrderParkLapses(t *testing.T, w World) {
	s := newSet(t, w, "set", "p")
	s.join("a")
	s.join("b")
	g := s.settle("a").Generation
	slot := protocol.SlotOf("x")
	mine, other := lane("p", g, slot%2, 2), lane("p", g, 1-slot%2, 2)
	number := s.orderPark("p", 11)
	old := lane("p", g-1, slot%2, 2)
	if err := s.store.Lapse(t.Context(), old, number, "no"); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("an older generation ends an order: %v", err)
	}
	if err := s.store.Locate(t.Context(), old, number, slot); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("an older generation locates an order: %v", err)
	}
	s.outcome(number, "")
	for _, why := range []string{"it does not stand there", "another reason"} {
		if err := s.store.Lapse(t.Context(), mine, number, why); err != nil {
			t.Fatal(err)
		}
		s.outcome(number, "it does not stand there")
	}
	s.ordered(mine, protocol.NoSlot)

	number = s.orderPark("p", 11) // another one
	s.commit(mine, start, at(11))
	s.outcome(number, "")
	if err := s.store.Locate(t.Context(), other, number, slot); err != nil {
		t.Fatal(err)
	}
	s.outcome(number, protocol.Past)
	nobody := s.orderPark("p", 12)
	s.commit(other, start, at(100))
	s.outcome(nobody, "")
	s.commit(mine, at(11), at(12))
	s.outcome(nobody, protocol.Past)
	// The next order records that. A checkpoint that is set back by hand does not revive the
	// orders.
	forgotten := s.orderPark("p", 99)
	s.ordered(mine, protocol.NoSlot, 99)
	w.Advance(25 * time.Hour)
	s.outcome(forgotten, "no worker has carried the order out for a day")
	s.ordered(mine, protocol.NoSlot)
	if again := s.orderPark("p", 99); again == forgotten {
		t.Error("an order that is over is given again, and has the same number")
	}
}

// An order that is impossible from the start is refused.
func testOrderParkRefused(t *testing.T, w World) {
	s, other := newSet(t, w, "set", "p"), newSet(t, w, "other", "q")
	refused := func(why, projection string, position int64) {
		t.Helper()
		if n, err := s.store.OrderPark(t.Context(), projection, position, "somebody"); !errors.Is(err, store.ErrRejected) {
			t.Errorf("%s: %d, %v, want ErrRejected", why, n, err)
		}
	}
	refused("no set", "p", 1)
	s.join("a")
	other.join("b")
	refused("no projection", "nobody", 1)
	refused("another set's", "q", 1)
	l := lane("p", 1, 0, 1)
	s.commit(l, start, at(10))
	s.park(l, at(10), at(12), parkable(12, "x", 1))
	refused("it is parked", "p", 12)
	refused("the projection is past it", "p", 11)
	s.orderPark("p", 13)
}

// A rewind ends the orders of its projection: they were about its position before.
func testOrderParkRewind(t *testing.T, w World) {
	s := newSet(t, w, "set", "p", "q")
	s.join("a")
	s.commit(lane("p", 1, 0, 1), start, at(10))
	p, q := s.orderPark("p", 11), s.orderPark("q", 11)
	s.order(protocol.Order{Kind: protocol.OrderRewind, Projection: "p", Position: 5})
	s.outcome(p, "")
	g := s.settle("a").Generation
	s.outcome(p, protocol.Past)
	s.outcome(q, "")
	s.ordered(lane("p", g, 0, 1), protocol.NoSlot)
	s.ordered(lane("q", g, 0, 1), protocol.NoSlot, 11)
}
