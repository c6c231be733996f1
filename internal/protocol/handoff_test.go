package protocol

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// marks returns marks for the slots from the lowest, every step-th one, that
// keep accepts.
func marks(position int64, step int, keep func(slot int) bool) []Mark {
	var out []Mark
	for slot := 0; slot < Slots; slot += step {
		if keep(slot) {
			out = append(out, Mark{Slot: slot, Position: position})
		}
	}
	return out
}

func TestHandoff(t *testing.T) {
	mod := func(k, n int) func(int) bool { return func(slot int) bool { return slot%n == k } }
	tests := []struct {
		why   string
		old   []Checkpoint
		total int
		want  []Checkpoint
	}{
		{"a projection that is new to the set starts from the beginning", nil, 2, []Checkpoint{{}, {}}},
		{"1 to 2: neither half starts again from zero", []Checkpoint{{Position: 7}}, 2, []Checkpoint{{Position: 7}, {Position: 7}}},
		{"2 to 1: stands where the slower one stood, marks for what the faster one has done",
			[]Checkpoint{{Position: 10}, {Position: 20}}, 1,
			[]Checkpoint{{Position: 10, Ahead: marks(20, 1, mod(1, 2))}}},
		{"2 to 2, as when one worker replaces another: nothing changes",
			[]Checkpoint{{Position: 10}, {Position: 20}}, 2, []Checkpoint{{Position: 10}, {Position: 20}}},
		{"2 to 3: what the lagging partition had not read is not skipped",
			[]Checkpoint{{Position: 10}, {Position: 20}}, 3,
			[]Checkpoint{
				{Position: 10, Ahead: marks(20, 1, mod(3, 6))},
				{Position: 10, Ahead: marks(20, 1, mod(1, 6))},
				{Position: 10, Ahead: marks(20, 1, mod(5, 6))},
			}},
		{"3 to 2: three frontiers meet in one partition",
			[]Checkpoint{{Position: 10}, {Position: 30}, {Position: 20}}, 2,
			[]Checkpoint{
				{Position: 10, Ahead: append2(marks(30, 1, mod(4, 6)), marks(20, 1, mod(2, 6)))},
				{Position: 10, Ahead: append2(marks(30, 1, mod(1, 6)), marks(20, 1, mod(5, 6)))},
			}},
		{"4 to 4 with marks: they are carried over",
			[]Checkpoint{{Position: 1}, {Position: 2, Ahead: []Mark{{Slot: 5, Position: 9}}}, {Position: 3}, {Position: 4}}, 4,
			[]Checkpoint{{Position: 1}, {Position: 2, Ahead: []Mark{{Slot: 5, Position: 9}}}, {Position: 3}, {Position: 4}}},
		{"a mark that the position has passed, before all were dropped, does not pull the slot back",
			[]Checkpoint{{Position: 10, Ahead: []Mark{{Slot: 0, Position: 5}, {Slot: 3, Position: 12}}}}, 1,
			[]Checkpoint{{Position: 10, Ahead: []Mark{{Slot: 3, Position: 12}}}}},
		{"a mark for a slot of another partition is not believed",
			[]Checkpoint{{Position: 10, Ahead: []Mark{{Slot: 1, Position: 99}}}, {Position: 10}}, 1,
			[]Checkpoint{{Position: 10}}},
		{"every slot is ahead: the position goes up to the lowest mark",
			[]Checkpoint{{Position: 3, Ahead: append2(marks(8, 1, mod(0, 2)), marks(9, 1, mod(1, 2)))}}, 2,
			[]Checkpoint{{Position: 8}, {Position: 9}}},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Handoff(tt.old, tt.total)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// append2 merges two lists of marks in slot order.
func append2(a, b []Mark) []Mark {
	out := slices.Concat(a, b)
	slices.SortFunc(out, func(a, b Mark) int { return a.Slot - b.Slot })
	return out
}

func TestHandoffBeyondTheSlots(t *testing.T) {
	next := Handoff([]Checkpoint{{Position: 7}}, Slots+2)
	if got := next[Slots-1]; !got.Equal(Checkpoint{Position: 7}) {
		t.Errorf("the last slot stands at %s, want 7", got)
	}
	if got := next[Slots+1]; !got.Equal(Checkpoint{}) {
		t.Errorf("a partition without a slot stands at %s, want 0", got)
	}
}

func TestCheckpointAdvance(t *testing.T) {
	c := Checkpoint{Position: 10, Ahead: []Mark{{Slot: 1, Position: 15}, {Slot: 4, Position: 12}}}
	for _, tt := range []struct {
		why  string
		to   int64
		want Checkpoint
	}{
		{"below every mark: all stay", 11, Checkpoint{Position: 11, Ahead: c.Ahead}},
		{"past one mark: they are dropped together, or each commit would write them", 14, Checkpoint{Position: 14, Ahead: c.Ahead}},
		{"at the highest: dropped, since it is handled up to there", 15, Checkpoint{Position: 15}},
		{"past the highest", 20, Checkpoint{Position: 20}},
	} {
		if diff := cmp.Diff(tt.want, c.Advance(tt.to)); diff != "" {
			t.Errorf("%s: to %d, -want +got:\n%s", tt.why, tt.to, diff)
		}
	}
}

func TestCheckpointString(t *testing.T) {
	for want, c := range map[string]Checkpoint{
		"120":           {Position: 120},
		"120+3:150,7:9": {Position: 120, Ahead: []Mark{{3, 150}, {7, 9}}},
		"1+5 marks":     {Position: 1, Ahead: make([]Mark, 5)},
	} {
		if got := c.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// frontiers is what a layout says of each slot.
func frontiers(layout []Checkpoint) []int64 {
	out := make([]int64, Slots)
	for k, c := range layout {
		for slot := k; slot < Slots; slot += len(layout) {
			out[slot] = c.Position
		}
		for _, m := range c.Ahead {
			out[m.Slot] = max(out[m.Slot], m.Position)
		}
	}
	return out
}

// checkHandoff compares a hand-over with what it must be.
func checkHandoff(old, next []Checkpoint, total int) error {
	if len(next) != total {
		return fmt.Errorf("%d checkpoints, want %d", len(next), total)
	}
	was, is := frontiers(old), frontiers(next)
	for slot := range was {
		if was[slot] != is[slot] {
			return fmt.Errorf("%d to %d: slot %d was at %d and is at %d", len(old), total, slot, was[slot], is[slot])
		}
	}
	want := make([]Checkpoint, total)
	for slot, f := range was {
		if c := &want[slot%total]; slot < total || f < c.Position {
			c.Position = f
		}
	}
	for slot, f := range was {
		if c := &want[slot%total]; f > c.Position {
			c.Ahead = append(c.Ahead, Mark{Slot: slot, Position: f})
		}
	}
	if !slices.EqualFunc(want, next, Checkpoint.Equal) {
		return fmt.Errorf("%v to %d: got %v, want %v", old, total, next, want)
	}
	return nil
}

// playHandoffs runs one projection over a stream of events, through a chain
// of layouts: in each, partitions get as far as they get. Every event must be
// handled exactly once, and those of a slot in order.
func playHandoffs(data []byte) error {
	d := &dice{data}
	const last = 40
	slots := make([]int, last+1) // of the event at each position
	for p := range slots {
		slots[p] = d.below(12) * 431 % Slots // 431 is prime: they meet in every total
	}
	handled := make([]bool, last+1)
	order := map[int]int64{}

	layout := []Checkpoint(nil)
	for round := 0; round < 4; round++ {
		total := 1 + d.below(9)
		next := Handoff(layout, total)
		if err := checkHandoff(layout, next, total); err != nil {
			return err
		}
		back := Handoff(Handoff(next, 1+d.below(9)), total)
		if !slices.EqualFunc(next, back, Checkpoint.Equal) {
			return fmt.Errorf("%d to another total and back: %v became %v", total, next, back)
		}
		layout = next
		for k := range layout {
			lane := NewTrack(k, total, layout[k], testStart)
			var pending []int64
			for range d.below(4) {
				var page []Key
				for p := lane.Cursor() + 1; p <= last && len(page) < 1+d.below(20); p++ {
					page = append(page, Key{Position: p, Slot: slots[p]})
				}
				keep, err := lane.Accept(page, 0)
				if err != nil {
					return err
				}
				for _, i := range keep {
					pending = append(pending, page[i].Position)
				}
				n := lane.Batch(1 + d.below(20))
				for _, p := range pending[:n] {
					if handled[p] {
						return fmt.Errorf("event %d is handled again, by partition %d/%d from %s", p, k, total, layout[k])
					}
					if slot := slots[p]; p < order[slot] {
						return fmt.Errorf("slot %d: event %d is handled after %d", slot, p, order[slot])
					}
					handled[p], order[slots[p]] = true, p
				}
				lane.Committed(lane.After(n), n, testStart)
				pending = pending[n:]
			}
			layout[k] = lane.Checkpoint()
		}
	}
	reached := frontiers(layout)
	for p, f := range handled {
		if frontier := reached[slots[p]]; p > 0 && f != (int64(p) <= frontier) {
			return fmt.Errorf("event %d of slot %d: handled %t, and the slot's frontier is %d", p, slots[p], f, frontier)
		}
	}
	return nil
}

func TestRandomHandoffs(t *testing.T) {
	for seed := range int64(150) {
		if err := playHandoffs(randomBytes(seed, 300)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func FuzzHandoff(f *testing.F) {
	for seed := range int64(4) {
		f.Add(randomBytes(seed, 200))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = data[:min(len(data), 300)] // longer finds no more
		if err := playHandoffs(data); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSlotOf(t *testing.T) {
	// The hashes are those that FNV's authors publish for FNV-1a, 32 bits. A
	// stored slot must mean the same in every version of this library.
	for id, hash := range map[string]uint32{"": 0x811c9dc5, "a": 0xe40c292c, "foobar": 0xbf9cf968} {
		if got, want := SlotOf(id), int(hash%Slots); got != want {
			t.Errorf("SlotOf(%q) = %d, want %d", id, got, want)
		}
	}
}
