package protocol

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// orders answers a look with orders to park the events at some positions, which nobody has
// looked at yet, or which are of the slot of an aggregate: "11", "11 a".
func orders(of ...string) LaneAnswer {
	var a LaneAnswer
	for i, o := range of {
		p := Parked{Slot: NoSlot, Request: ToPark, Order: int64(i) + 1}
		var aggregate string
		fmt.Sscan(o, &p.Position, &aggregate)
		if aggregate != "" {
			p.Slot = SlotOf(aggregate)
		}
		a.Parked = append(a.Parked, p)
	}
	return a
}

// Each row is the life of a lane that never parks by itself, on the only partition but
// where it says something else.
func TestLaneOrderedToPark(t *testing.T) {
	var (
		ok    LaneAnswer
		fault = failing(Fault)
		begin = []turn{{answer: ok, want: "load"}, {answer: found(5, 10), want: "load parked"}, {answer: ok, want: "read 4 after 10"}}
		fails = slices.Concat(begin, []turn{
			{answer: aggregates(11, "a", "b", "a"), want: "handle 0+1"},
			{answer: fault, want: "pause 100ms: the handler failed at 11, attempt 1"},
			{answer: ok, want: "load parked", later: 2 * time.Second},
		})
		mine, other = "a", ""
	)
	for i := 0; other == ""; i++ {
		if id := fmt.Sprint("x", i); SlotOf(id)%2 != SlotOf(mine)%2 {
			other = id
		}
	}
	for _, tt := range []struct {
		name   string
		config LaneConfig
		total  int
		turns  []turn
	}{
		{"the event at fault is parked, and the later ones of its aggregate; others go on", LaneConfig{}, 1, slices.Concat(fails, []turn{
			{answer: orders("11"), want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b", "a"), want: "park 1, 10 to 11 by order at 11, attempt 1"},
			{answer: ok, want: "read 4 after 13"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "save 11 to 12"},
			{answer: ok, want: "read 4 after 13"},
			{answer: ok, want: "park 1, 12 to 13"},
		})},
		{"also before the time of the next attempt", LaneConfig{Retry: Backoff{Min: 10 * time.Second, Max: time.Minute}}, 1, slices.Concat(begin, []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "pause 10s: the handler failed at 11, attempt 1"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: ok, want: "pause 1s: until the next attempt"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: orders("11"), want: "read 4 after 10"},
			{answer: aggregates(11, "a"), want: "park 1, 10 to 11 by order at 11, attempt 1"},
			{answer: ok, want: "read 4 after 11"},
			{answer: aggregates(12, "b"), want: "handle 0+1"}, // it waits no more
		})},
		{"the pause goes on where there is no order", LaneConfig{Retry: Backoff{Min: 2500 * time.Millisecond, Max: time.Minute}}, 1, slices.Concat(begin, []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "pause 2.5s: the handler failed at 11, attempt 1"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: ok, want: "pause 1s: until the next attempt"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: ok, want: "pause 500ms: until the next attempt"},
			{answer: ok, want: "read 4 after 11", later: 500 * time.Millisecond},
			{answer: ok, want: "handle 0+1"},
		})},
		{"nor where the order is for another event", LaneConfig{Retry: Backoff{Min: 2500 * time.Millisecond, Max: time.Minute}}, 1, slices.Concat(begin, []turn{
			{answer: aggregates(11, "a", "b"), want: "handle 0+1"},
			{answer: fault, want: "pause 2.5s: the handler failed at 11, attempt 1"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: orders("12"), want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b"), want: "lapse 12: the projection is not at this event yet: it is at position 11"},
			{answer: ok, want: "pause 1s: until the next attempt"},
		})},
		{"one that was handled meanwhile is not parked", LaneConfig{}, 1, slices.Concat(fails, []turn{
			{answer: ok, want: "read 4 after 13"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "read 4 after 13"},
			{answer: ok, want: "handle 0+1"},
			{answer: fault, want: "pause 100ms: the handler failed at 12, attempt 1"},
			{answer: ok, want: "load parked", later: 2 * time.Second},
			{answer: orders("11 a"), want: "read 4 after 11"},
			{answer: aggregates(12, "b", "a"), want: "lapse 11: the projection is past this event"},
			{answer: failing(Passing), want: "pause 20ms: the database failed"},
			{answer: ok, want: "lapse 11: the projection is past this event"},
			{answer: ok, want: "handle 0+1"},
		})},
		{"one that is out of scope, or not there, is not parked", LaneConfig{}, 1, slices.Concat(fails, []turn{
			{answer: orders("500"), want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b"), want: "fetch 500"},
			{answer: failing(Passing), want: "pause 20ms: the database failed"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "fetch 500"},
			{answer: ok, want: "lapse 500: " + noSuchEvent},
			{answer: ok, want: "handle 0+1"},
		})},
		{"one of another partition is that one's affair, once it is known", LaneConfig{}, 2, slices.Concat(begin, []turn{
			{answer: aggregates(11, mine), want: "handle 0+1"},
			{answer: fault, want: "pause 100ms: the handler failed at 11, attempt 1"},
			{answer: ok, want: "load parked", later: 2 * time.Second},
			{answer: orders("500"), want: "read 4 after 10"},
			{answer: aggregates(11, mine), want: "fetch 500"},
			{answer: aggregates(500, other), want: fmt.Sprintf("locate 500, slot %d", SlotOf(other))},
			{answer: ok, want: "handle 0+1"},
			{answer: fault, want: "pause 200ms: the handler failed at 11, attempt 2"},
			{answer: ok, want: "load parked", later: 2 * time.Second},
			{answer: orders("500 " + other), want: "read 4 after 11"},
			{answer: ok, want: "handle 0+1"},
		})},
		{"one that the lane is to come to is not parked, nor read twice", LaneConfig{}, 1, slices.Concat(fails, []turn{
			{answer: orders("500"), want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b"), want: "fetch 500"},
			{answer: aggregates(500, "b"), want: fmt.Sprintf("locate 500, slot %d", SlotOf("b"))},
			{answer: ok, want: "lapse 500: the projection is not at this event yet: it is at position 11"},
			{answer: failing(Fenced), want: "end: fenced"},
		})},
		{"a batch that has failed ends before the event, which is parked then", LaneConfig{Kind: Batched}, 1, slices.Concat(begin, []turn{
			{answer: aggregates(11, "a", "b", "c", "d"), want: "open"},
			{answer: ok, want: "handle 0+4"},
			{answer: fault, want: "rollback, pause 100ms: the handler failed at 11, attempt 0"},
			{answer: ok, want: "load parked", later: 2 * time.Second},
			{answer: orders("14"), want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b", "c", "d"), want: "open"},
			{answer: ok, want: "handle 0+2"},
			{answer: ok, want: "write 10 to 12"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 14"},
			{answer: ok, want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 12 to 13"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 14"},
			{answer: ok, want: "park 1, 13 to 14 by order"},
		})},
		{"a lane that begins parks it without a call", LaneConfig{Kind: PlainBatched, OnFailure: StopOnFailure, Attempts: 1}, 1, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: orders("12"), want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b", "a"), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "read 4 after 13"},
			{answer: ok, want: "park 1, 11 to 12 by order"},
			{answer: ok, want: "read 4 after 13"},
		}},
		{"a park that is not heard of is sent until it is", LaneConfig{}, 1, slices.Concat(fails, []turn{
			{answer: orders("11"), want: "read 4 after 10"},
			{answer: aggregates(11, "a"), want: "park 1, 10 to 11 by order at 11, attempt 1"},
			{answer: failing(Passing), want: "pause 20ms: the database failed"},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "park 1, 10 to 11 by order at 11, attempt 1"},
			{answer: failing(Fenced), want: "find"},
			{answer: found(6, 10), want: "end: fenced"},
		})},
		{"there is always room", LaneConfig{OnFailure: ParkEvents, Attempts: 1, MaxParked: 1}, 1, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 b"), want: "read 4 after 10"},
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "pause 100ms: too many parked at 11, attempt 1"},
			{answer: ok, want: "load parked", later: 2 * time.Second},
			{answer: LaneAnswer{Parked: slices.Concat(parkedRows("5 b").Parked, orders("11").Parked)}, want: "read 4 after 11"},
			{answer: ok, want: "park 1, 10 to 11 by order at 11, attempt 1"},
		}},
		{"who is asked to stop parks nothing", LaneConfig{}, 1, slices.Concat(fails, []turn{
			{answer: orders("11"), want: "end: requested", signals: Signals{Asked: true}},
		})},
		{"nor who is asked to in the pause", LaneConfig{}, 1, slices.Concat(begin, []turn{
			{answer: aggregates(11, "a", "b", "a"), want: "handle 0+1"},
			{answer: fault, want: "pause 100ms: the handler failed at 11, attempt 1"},
			{answer: ok, want: "end: requested", signals: Signals{Asked: true}},
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.config
			c.Batch, c.Poll, c.Lease = 4, time.Second, 6*time.Second
			c.MaxParked = max(c.MaxParked, 1)
			if c.MaxParked == 1 && c.OnFailure != ParkEvents {
				c.MaxParked = 3
			}
			if c.Retry == (Backoff{}) {
				c.Retry = Backoff{Min: 100 * time.Millisecond, Max: time.Second}
			}
			l := NewLane(Assignment{Generation: 5, Partition: SlotOf(mine) % tt.total, Total: tt.total}, c)
			now := testStart
			var log strings.Builder
			for i, turn := range tt.turns {
				now = now.Add(turn.later)
				got := l.Next(now, turn.signals, turn.answer)
				fmt.Fprintf(&log, "%2d %s\n", i, got)
				if got.String() != turn.want {
					t.Fatalf("want %q, got the last of\n%s", turn.want, log.String())
				}
			}
		})
	}
}

// The row that parks an event by order says so, and is then like any other.
func TestLaneParkingByOrder(t *testing.T) {
	l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 1}, LaneConfig{Batch: 4, Poll: time.Minute, MaxParked: 9})
	for _, a := range []LaneAnswer{{}, found(5, 10), orders("11"), aggregates(11, "a", "a")} {
		l.Next(testStart, Signals{}, a)
	}
	if got := l.Parking(); len(got) != 1 || got[0].Position != 11 || got[0].Request != ToPark || got[0].Attempts != 0 {
		t.Errorf("it parks %+v", got)
	}
	if a := l.Next(testStart, Signals{}, LaneAnswer{}); a.Do != LaneRead {
		t.Errorf("it goes on with %s", a)
	}
	if a := l.Next(testStart, Signals{}, LaneAnswer{}); a.String() != "park 1, 11 to 12" {
		t.Errorf("it goes on with %s", a)
	}
	if l.parkedSet.asked != 0 {
		t.Errorf("something is asked for: %+v", l.parkedSet.rows)
	}
}

// Of several orders each is about its own event: the one in a batch that is not first waits
// for it, and what is said of another partition's event is not said of it.
func TestOrdersSideBySide(t *testing.T) {
	other := ""
	for i := 0; other == ""; i++ {
		if id := fmt.Sprint("x", i); SlotOf(id)%2 != SlotOf("a")%2 {
			other = id
		}
	}
	for _, tt := range []struct {
		why     string
		config  LaneConfig
		total   int
		answers []LaneAnswer
	}{
		{"one is of another partition", LaneConfig{Kind: Batched}, 2, []LaneAnswer{
			{}, found(5, 10), {}, aggregates(11, "a", "a", "a", "a"), {}, failing(Fault), {}, orders("13", "500"), aggregates(11, "a", "a", "a", "a"), aggregates(500, other),
		}},
		{"both are in the first batch", LaneConfig{Kind: PlainBatched, OnFailure: StopOnFailure, Attempts: 1}, 1, []LaneAnswer{
			{}, found(5, 10), orders("12", "14"), aggregates(11, "a", "b", "c", "d"), {},
		}},
	} {
		c := tt.config
		c.Batch, c.Poll, c.Lease, c.MaxParked = 4, time.Second, 6*time.Second, 9
		c.Retry = Backoff{Min: 100 * time.Millisecond, Max: time.Second}
		l, now := NewLane(Assignment{Generation: 5, Partition: SlotOf("a") % tt.total, Total: tt.total}, c), testStart
		for _, answer := range tt.answers {
			now = now.Add(2 * time.Second)
			if a := l.Next(now, Signals{}, answer); a.Do == LaneLapse {
				t.Errorf("%s: %s", tt.why, a)
			}
		}
	}
}
