package protocol

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Orders of operators: pause, resume, rewind, hold, drain.
//
// An order is carried out by opening a generation. This file promises that what runs has
// stopped, or can't commit any more, before an order has its effect, and that an order that
// changes nothing opens no generation. It must never tell a worker anything beside its
// assignment: a worker that missed it would go on.

// An OrderKind is what an operator can order.
type OrderKind string

const (
	OrderPause   OrderKind = "pause"   // stop the projection on all workers
	OrderResume  OrderKind = "resume"  // run it again
	OrderRewind  OrderKind = "rewind"  // set it to a position, back or forward
	OrderHold    OrderKind = "hold"    // pause it for HoldFor from now on
	OrderRelease OrderKind = "release" // end a hold
	OrderDrain   OrderKind = "drain"   // give the worker no partitions
	OrderUndrain OrderKind = "undrain" // give it partitions again
)

// All stands for every projection of a group, in Order and Group.Paused. No
// projection has this name.
const All = ""

// An Order is an operator's order to a group.
type Order struct {
	Kind       OrderKind
	Projection string   // of pause and resume, where it may be All, and of rewind, hold and release
	Position   int64    // of rewind: the next event is the first above it
	Worker     WorkerID // of drain and undrain
}

// A Hold is a pause that ends by itself, at Until, unless it is ordered again before. It is for
// a program that stops a projection to do something in between, and may crash.
type Hold struct {
	Projection string
	Until      time.Time
}

// HoldFor is how long a hold lasts.
const HoldFor = 10 * time.Second

// lapse ends the holds whose time is over, and returns when the next one ends; zero if
// there is none. After the clock was stepped back, a hold ends no later than one
// that is ordered now would.
func (g *Group) lapse(now time.Time) (next time.Time) {
	before := g.Holds
	g.Holds = nil
	for _, h := range before {
		if !now.Before(h.Until) {
			g.Paused = without(g.Paused, h.Projection)
			g.ordered = cmp.Or(g.ordered, fmt.Sprintf("the hold of %s is over", h.Projection))
			continue
		}
		if h.Until.After(now.Add(HoldFor)) {
			h.Until = now.Add(HoldFor)
		}
		if next.IsZero() || h.Until.Before(next) {
			next = h.Until
		}
		g.Holds = append(g.Holds, h)
	}
	return next
}

// held returns the index at which the projection is, or would be, among the holds.
func (g Group) held(projection string) (i int, is bool) {
	return slices.BinarySearchFunc(g.Holds, projection, func(h Hold, name string) int { return strings.Compare(h.Projection, name) })
}

// Held reports whether the projection is paused by a hold.
func (g Group) Held(projection string) bool {
	_, is := g.held(projection)
	return is
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

// A Rewind is due to set a projection to a position, on all partitions.
type Rewind struct {
	Projection string
	Position   int64
}

// String returns the order as it appears in a generation's reason.
func (o Order) String() string {
	switch {
	case o.Kind == OrderRewind:
		return fmt.Sprintf("rewind of %s to %d", o.Projection, o.Position)
	case o.Worker != "":
		return fmt.Sprintf("%s of %s", o.Kind, o.Worker)
	case o.Projection == All:
		return fmt.Sprintf("%s of all", o.Kind)
	}
	return fmt.Sprintf("%s of %s", o.Kind, o.Projection)
}

// Check returns why the group can't carry the order out; nil if it can.
func (o Order) Check(g Group) error {
	switch o.Kind {
	case OrderDrain, OrderUndrain:
		i := g.index(o.Worker)
		if i < 0 {
			return fmt.Errorf("there is no worker %q", o.Worker)
		}
		if g.Members[i].Vacant {
			return nil // no worker runs there: without its place the group is no worse off
		}
		g.Members = slices.Clone(g.Members)
		g.Members[i].Drained = o.Kind == OrderDrain
		if !slices.ContainsFunc(g.Members, func(m Member) bool { return !m.Drained && !m.Vacant }) {
			return fmt.Errorf("worker %q is the last one that can have partitions; pause the replica set instead", o.Worker)
		}
	case OrderResume:
		if o.Projection != All && slices.Contains(g.Paused, All) {
			return fmt.Errorf("the whole replica set is paused, and projection %q with it; resume the replica set", o.Projection)
		}
	case OrderHold:
		if _, paused := slices.BinarySearch(g.Paused, o.Projection); paused && !g.Held(o.Projection) {
			return fmt.Errorf("projection %q is already paused", o.Projection)
		}
	}
	return nil
}

// obey carries the order out in the group; Step then opens a generation for it. An order that
// changes nothing opens none.
func (g Group) obey(o Order, now time.Time) Group {
	changed := true
	switch hold, held := g.held(o.Projection); o.Kind {
	case OrderHold:
		if changed = !held; changed {
			i, _ := slices.BinarySearch(g.Paused, o.Projection)
			g.Paused = slices.Insert(slices.Clone(g.Paused), i, o.Projection)
			g.Holds = slices.Insert(slices.Clone(g.Holds), hold, Hold{})
		} else {
			g.Holds = slices.Clone(g.Holds)
		}
		g.Holds[hold] = Hold{o.Projection, now.Add(HoldFor)}
	case OrderRelease:
		if changed = held; changed {
			g.Paused, g.Holds = without(g.Paused, o.Projection), slices.Delete(slices.Clone(g.Holds), hold, hold+1)
		}
	case OrderPause:
		if held {
			g.Holds = slices.Delete(slices.Clone(g.Holds), hold, hold+1)
		}
		i, paused := slices.BinarySearch(g.Paused, o.Projection)
		if changed = !paused; changed {
			g.Paused = slices.Insert(slices.Clone(g.Paused), i, o.Projection)
		}
	case OrderResume:
		i, paused := slices.BinarySearch(g.Paused, o.Projection)
		switch {
		case o.Projection == All:
			changed, g.Paused, g.Holds = len(g.Paused) > 0, nil, nil
		case paused:
			g.Paused = slices.Delete(slices.Clone(g.Paused), i, i+1)
			if held {
				g.Holds = slices.Delete(slices.Clone(g.Holds), hold, hold+1)
			}
		default:
			changed = false
		}
	case OrderRewind:
		// Another rewind that is still due has not happened.
		g.Rewinds = slices.DeleteFunc(slices.Clone(g.Rewinds), func(r Rewind) bool { return r.Projection == o.Projection })
		i, _ := slices.BinarySearchFunc(g.Rewinds, o.Projection, func(r Rewind, name string) int { return strings.Compare(r.Projection, name) })
		g.Rewinds = slices.Insert(g.Rewinds, i, Rewind{o.Projection, o.Position})
	case OrderDrain, OrderUndrain:
		i := g.index(o.Worker)
		changed = i >= 0 && g.Members[i].Drained != (o.Kind == OrderDrain)
		if changed {
			g.Members[i].Drained = o.Kind == OrderDrain
		}
	}
	if changed {
		g.ordered = o.String()
	}
	return g
}

// Runs reports whether the share's generation runs the projection: it does not if that is
// paused.
func (s Share) Runs(projection string) bool {
	return !slices.Contains(s.Paused, All) && !slices.Contains(s.Paused, projection)
}

// Rewound returns the checkpoints from which to hand the projection over: the old
// ones, or, if it is due to be rewound, one at that position.
func Rewound(projection string, old []Checkpoint, rewinds []Rewind) []Checkpoint {
	for _, r := range rewinds {
		if r.Projection == projection {
			return []Checkpoint{{Position: r.Position}}
		}
	}
	return old
}

// Take returns the group after it has taken projections over from other groups. A
// rewind of one that was ordered when the projection was this group's before, and never
// carried out, is dropped:
//  1. p is at 50, no worker runs it, and a rewind to 5 is due with the next worker;
//  2. a worker of another group takes p over, and handles up to 100;
//  3. p comes back, and is set to 5.
func (g Group) Take(projections []string) Group {
	g.Rewinds = slices.DeleteFunc(slices.Clone(g.Rewinds), func(r Rewind) bool { return slices.Contains(projections, r.Projection) })
	return g
}
