package protocol

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Orders to park an event. An operator gives one if a handler always fails at an event,
// whatever the failure policy.
//
// This file promises that an order parks the event at its position while the lane is at that
// event, or ends with a reason. It must never park another event: an order may be late.
//
// The lane alone knows where it is, so it decides: it parks the event, or ends the order.
// Orders are loaded with the rows of parked events, at the lane's start and, while a handler
// fails, as often as requests are. A lane that makes progress loads none: an order for an
// event that it has handled is over for every reader once the checkpoint is past that event
// (store.parkOrderText).
//
//	 1. w1 fails at 12; an operator orders 12 to be parked;
//	 2. before w1 loads the order, the handler succeeds, and 12 is committed;
//	 3. w1 fails at 13, and loads the order.
//
// It parks nothing: 12 is not pending. Nor is an event both handled and parked, as a park
// moves the checkpoint from where it is, like any other commit.
//
// An order does not name the partition of its event: a lane that loads one without a slot, and
// does not have the event pending, reads the event and writes its slot into the order.
//
// An event that ends the process can be parked as well: its lane loads the order at its
// start, and parks the event without a call of the handler.

// takeOrders takes the orders out of the rows that were loaded, and returns the rest.
func (l *Lane) takeOrders(rows []Parked) (parked []Parked) {
	l.orders = nil
	if !slices.ContainsFunc(rows, ordered) {
		return rows
	}
	for _, r := range rows {
		switch {
		case !ordered(r):
			parked = append(parked, r)
		case r.Slot == NoSlot || l.owns(r.Slot):
			l.orders = append(l.orders, r)
		}
	}
	return parked
}

func ordered(p Parked) bool { return p.Request == ToPark }

func (l *Lane) owns(slot int) bool { return slot%l.assignment.Total == l.assignment.Partition }

// obeyed forgets the order to park an event, which was carried out or has ended.
func (l *Lane) obeyed(position int64) {
	l.orders = slices.DeleteFunc(l.orders, func(o Parked) bool { return o.Position == position })
}

// applyOrders returns what has to be done about orders before the batch, if anything. It shortens the
// batch to end before an event that is to be parked.
func (l *Lane) applyOrders() (_ LaneAction, due bool) {
	n := l.size
	for _, o := range l.orders {
		at, pending := l.track.Find(o.Position)
		switch {
		case pending && l.track.Stands(at, n) && at == 0:
			return l.parkOrdered(), true
		case pending && l.track.Stands(at, n):
			l.size = min(l.size, at)
		case pending:
			return l.lapse(o, l.elsewhere()), true
		case o.Slot == NoSlot:
			return l.again(LaneAction{Do: LaneFetch, Position: o.Position}), true
		case o.Position <= l.track.Cursor():
			return l.lapse(o, errors.New(Past)), true
		case l.track.Pending() > 0:
			return l.lapse(o, l.elsewhere()), true
		}
	}
	return LaneAction{}, false
}

// Past is the outcome of an order for an event that its lane has handled, or parked.
const Past = "the projection is past this event"

func (l *Lane) elsewhere() error {
	return fmt.Errorf("the projection is not at this event yet: it is at position %d", l.track.First())
}

// parkOrdered parks the first pending event. There is always room for it.
func (l *Lane) parkOrdered() LaneAction {
	l.parking = l.track.Parks(1)
	l.parking[0].Attempts, l.parking[0].Request = l.track.Attempts(0), ToPark
	l.size, l.done, l.next = 1, 1, l.track.After(1)
	return l.rewrite()
}

// lapse ends an order without effect. That does no harm if it comes late, or twice: no other
// order has the same number.
func (l *Lane) lapse(o Parked, why error) LaneAction {
	return l.again(LaneAction{Do: LaneLapse, Position: o.Position, Order: o.Order, Err: why})
}

// located writes the slot of its event into an order that has none.
func (l *Lane) located(now time.Time, s Signals, a LaneAnswer) LaneAction {
	i := slices.IndexFunc(l.orders, func(o Parked) bool { return o.Slot == NoSlot && o.Position == l.last.Position })
	switch {
	case a.Failure != NoFailure:
		return l.databaseFailed(&l.readFailures, a, (*Lane).top)
	case i < 0:
		return l.top(now, s)
	}
	l.readFailures = 0
	o := &l.orders[i]
	if len(a.Page) == 0 || a.Page[0].Position != o.Position {
		return l.lapse(*o, errors.New(noSuchEvent))
	}
	o.Slot = SlotOf(a.Page[0].Aggregate)
	return l.again(LaneAction{Do: LaneLocate, Position: o.Position, Order: o.Order, Slot: o.Slot})
}

// answered continues once an order was changed.
func (l *Lane) answered(now time.Time, s Signals, a LaneAnswer) LaneAction {
	again := l.last
	switch {
	case a.Failure == Fenced:
		return LaneAction{Do: LaneEnd, End: EndFenced}
	case a.Failure != NoFailure:
		return l.databaseFailed(&l.failures, a, func(*Lane, time.Time, Signals) LaneAction { return again })
	}
	l.failures = 0
	if again.Do == LaneLapse || !l.owns(again.Slot) {
		l.obeyed(again.Position)
	}
	return l.batch(now, s)
}

// retryIn lets the event at fault be tried again in a while. Meanwhile the lane checks for an
// order to park it.
func (l *Lane) retryIn(in time.Duration, pause LaneAction) LaneAction {
	l.wait, pause.Retry = in, in
	pause.For = l.waitOn().For
	return pause
}

// waitOn continues that wait.
func (l *Lane) waitOn() LaneAction {
	some := min(l.wait, l.checkEvery())
	l.wait -= some
	l.resume = (*Lane).waited
	return LaneAction{Do: LanePause, For: some, Why: HandlerWaits}
}

func (l *Lane) waited(now time.Time, s Signals) LaneAction {
	switch {
	case s.stopping():
		return end(s)
	case l.checkDue(now):
		return l.checkAgain(now)
	case l.wait > 0:
		return l.waitOn()
	}
	return l.top(now, s)
}
