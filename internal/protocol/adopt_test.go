package protocol

import (
	"fmt"
	"hash/fnv"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAdopt(t *testing.T) {
	for _, tt := range []struct {
		why       string
		positions []int64
		want      []Checkpoint
	}{
		{"one alone", []int64{7}, []Checkpoint{{Position: 7}}},
		{"the layout itself", []int64{7, 0, 5}, []Checkpoint{{Position: 7}, {Position: 0}, {Position: 5}}},
		{"prime to the slots: the lowest", []int64{9, 8, 7, 6, 5, 4, 5, 6, 7, 8, 9}, []Checkpoint{{Position: 4}}},
		{"halves of 22 are told apart", append(slices.Repeat([]int64{9, 3}, 10), 8, 2), []Checkpoint{{Position: 8}, {Position: 2}}},
	} {
		if diff := cmp.Diff(tt.want, Adopt(tt.positions)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.why, diff)
		}
	}
}

// For every total, no aggregate is adopted further than its old partition was,
// and where the total divides the slots exactly as far.
func TestAdoptLosesNothing(t *testing.T) {
	aggregates := make([]string, 2000)
	hashes := make([]int, len(aggregates))
	for i := range aggregates {
		aggregates[i] = fmt.Sprintf("aggregate-%d", i)
		h := fnv.New32a()
		h.Write([]byte(aggregates[i]))
		hashes[i] = int(h.Sum32())
	}
	for total := 1; total <= 64; total++ {
		positions := make([]int64, total)
		for k := range positions {
			positions[k] = int64(k*7919%101) + 1
		}
		lowest := slices.Min(positions)
		for _, next := range []int{1, 2, 5, 11} {
			layout := Handoff(Adopt(positions), next)
			for i, a := range aggregates {
				slot := SlotOf(a)
				got, old := layout[slot%next].Frontier(slot), positions[hashes[i]%total]
				if got > old || got < lowest || Slots%total == 0 && got != old {
					t.Fatalf("%d → %d: %s stands at %d, stood at %d; the lowest is %d", total, next, a, got, old, lowest)
				}
			}
		}
	}
}

func TestQuiet(t *testing.T) {
	const watch = 10 * time.Second
	user := func(name string) User { return User{Holder: Holder{Transaction: name}} }
	blocked := func(name string) User { return User{Holder: Holder{Transaction: name}, Blocked: true} }
	type look struct {
		at    time.Duration
		users []User
		want  Idleness
		names string
	}
	for _, tt := range []struct {
		why   string
		looks []look
	}{
		{"nobody", []look{
			{0, nil, Unclear, ""},
			{watch - 1, nil, Unclear, ""},
			{watch, nil, Still, ""},
		}},
		{"one is blocked at once", []look{
			{0, []User{user("a"), blocked("b")}, Moving, "b"},
		}},
		{"one begins a batch and wants to move", []look{
			{0, nil, Unclear, ""},
			{watch - 1, []User{user("a")}, Unclear, ""},
			{watch, []User{user("a")}, Unclear, ""},
			{watch + 1, []User{blocked("a")}, Moving, "a"},
		}},
		{"others come and go", []look{
			{0, []User{user("a")}, Unclear, ""},
			{watch, []User{user("b"), user("c")}, Unclear, ""},
			{watch + 1, []User{user("c"), user("d")}, Unclear, ""},
			{watch + 2, []User{user("d"), user("e")}, Still, ""},
		}},
		{"one ends, and its name comes back", []look{
			{0, nil, Unclear, ""},
			{watch, []User{user("a"), user("b")}, Unclear, ""},
			{watch + 1, []User{user("b")}, Unclear, ""},
			{watch + 2, []User{user("a")}, Still, ""},
		}},
		{"one does not end", []look{
			{0, []User{user("a")}, Unclear, ""},
			{watch, []User{user("a"), user("b")}, Unclear, ""},
			{2*watch - 1, []User{user("a"), user("c")}, Unclear, ""},
			{2 * watch, []User{user("a"), user("c")}, Open, "a"},
		}},
		{"the first look comes late", []look{
			{5 * watch, []User{user("a")}, Unclear, ""},
			{6 * watch, nil, Still, ""},
		}},
	} {
		start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		q := IdleCheck{Watch: watch}
		for _, l := range tt.looks {
			got, holders := q.Observe(start.Add(l.at), l.users)
			names := ""
			for _, h := range holders {
				names += h.Transaction
			}
			if got != l.want || names != l.names {
				t.Errorf("%s, at %s: %d %q, want %d %q", tt.why, l.at, got, names, l.want, l.names)
			}
		}
	}
}
