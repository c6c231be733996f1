package sim

import (
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// These are the rules about orders to park an event. As in TestChecker, each story has a
// near miss.
func TestCheckerOfOrdersToPark(t *testing.T) {
	ordered := func(position int64) fact { return fact{kind: parkOrdered, projection: "tx", from: position} }
	parks := func(how string, from, to int64, events ...event) fact {
		f := on(eventsParked, "w1", 1, "0/1")
		f.projection, f.from, f.to, f.events, f.text = "tx", from, to, events, how
		return f
	}
	lapses := func(position int64, why string) fact {
		f := on(orderLapsed, "w1", 1, "0/1")
		f.projection, f.from, f.text = "tx", position, why
		return f
	}
	left := fact{kind: ordersLeft, projection: "tx", from: 1}
	written := then(begun, at(1, writes(ev(1, 0), ev(2, 1))))
	// again makes the handler fail so many times at event 1, at short intervals.
	again := func(first float64, times int) (story []fact) {
		for i := range times {
			story = append(story, at(first+0.4*float64(i), begins(i+1, "w1", 1, "0/1", ev(1, 0)), ends(i+1, "w1", "failed"))...)
		}
		return story
	}
	for _, s := range []struct {
		name  string
		facts []fact
		want  string
	}{
		{"parked by order", then(written, at(2, ordered(1), parks(parkedByOrder, 0, 1, ev(1, 0)))), ""},
		{"no order names it", then(written, at(2, parks(parkedByOrder, 0, 1, ev(1, 0)))),
			"under-policy: w1 (generation 1) parked event 1 by order, although no order names it [6]"},
		{"it is another event", then(written, at(2, ordered(2), parks(parkedByOrder, 0, 1, ev(1, 0)))),
			"under-policy: w1 (generation 1) parked event 1 by order, although no order names it [7]"},
		{"the order is used up", then(written, at(2, ordered(2), lapses(2, "not yet"), parks(parkedByOrder, 0, 1, ev(1, 0)))),
			"under-policy: w1 (generation 1) parked event 1 by order, although no order names it [8]"},
		{"under no policy", then(written, at(2, parks("", 0, 1, ev(1, 0)))),
			"under-policy: w1 (generation 1) parked event 1, although neither the projection's policy nor an order allows it [6]"},
		{"it lapses, and the event is not handled", then(written, at(2, ordered(1), lapses(1, protocol.Past))),
			"obeys: w1 (generation 1) dropped the order to park event 1 as past, although the event was not handled [3 6 7]"},
		{"it lapses, and the lane stands there", then(written, at(2, ordered(1), lapses(1, "not yet"))),
			"obeys: w1 (generation 1) dropped the order to park event 1, at which it stood [3 6 7]"},
		{"it lapses, and the lane is to come there", then(written, at(2, ordered(2), lapses(2, "not yet"))), ""},
		{"it lapses, as the event was handled", then(written, at(2, ordered(1), begins(1, "w1", 1, "0/1", ev(1, 0)), ends(1, "w1", ""), commits("w1", 1, "0/1", 0, 1, ev(1, 0)), lapses(1, protocol.Past))), ""},
		{"it lapses a second time, late", then(written, at(2, ordered(2), lapses(2, "not yet"), lapses(2, protocol.Past))), ""},
		{"it is ignored", then(written, at(1.5, ordered(1)), again(3.6, 8)),
			"obeys: w1 (generation 1) kept failing at event 1, which it had been ordered to park [6 17 18]"},
		{"it was given just now", then(written, again(1.5, 8), at(5, ordered(1)), again(5.2, 2)), ""},
		{"one is left in the end", then(written, at(2, ordered(1), begins(1, "w1", 1, "0/1", ev(1, 0), ev(2, 1)), ends(1, "w1", ""), commits("w1", 1, "0/1", 0, 2, ev(1, 0), ev(2, 1)), bare(healed), bare(settled), left)),
			"recovers: 1 orders to park events of projection tx were still open after all events were handled [11 12]"},
	} {
		t.Run(s.name, func(t *testing.T) {
			if got := judge(t, setup{timing: protocol.Timing{Lease: time.Second, Heartbeat: time.Second / 5, Drain: time.Minute}, settle: 1000 * time.Hour}, then(s.facts)); got != s.want {
				t.Errorf("got  %s\nwant %s", got, s.want)
			}
		})
	}
}
