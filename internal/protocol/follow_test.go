package protocol

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestFollow has a follower go after a live version that moves, stops where it happens to
// be, and goes on, in random worlds: it never goes further on any slot, it handles nothing
// twice, whenever it crashes, and where the live one has stopped it comes to where that is.
func TestFollow(t *testing.T) {
	for seed := range uint64(20) {
		if err := followOnce(rand.New(rand.NewPCG(seed, 1))); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func followOnce(r *rand.Rand) error {
	const last = 120
	slots := make([]int, last+1) // of each event
	for p := range slots {
		slots[p] = r.IntN(9)
	}
	// The live version: how far each slot is handled, and its layout.
	frontier := make([]int64, Slots)
	live := func(total int) []Checkpoint {
		out := make([]Checkpoint, total)
		for k := range out {
			out[k] = gather(frontier, k, total)
		}
		return out
	}
	advance := func(total int) { // one of its partitions
		k := r.IntN(total)
		to := gather(frontier, k, total).Position + int64(r.IntN(40))
		for slot := k; slot < Slots; slot += total {
			frontier[slot] = min(last, max(frontier[slot], to))
		}
	}
	liveTotal, total := 1+r.IntN(4), 1+r.IntN(4)
	rows := make([]Checkpoint, total)
	tracks := make([]*Track, total)
	handled := map[int64]bool{}
	order := map[int]int64{}
	start := func(k int) {
		tracks[k] = NewTrack(k, total, rows[k], testStart)
		tracks[k].Follow(Followed{Checkpoints: live(liveTotal)}.ceiling(k, total))
	}
	for k := range tracks {
		start(k)
	}
	step := func(k int, final bool) error {
		l := tracks[k]
		if l.AtCeiling() && l.Pending() == 0 {
			l.Follow(Followed{Checkpoints: live(liveTotal), Final: final}.ceiling(k, total))
		}
		var page []Key
		from := l.Cursor()
		for p := from + 1; p <= min(last, from+int64(1+r.IntN(30))); p++ {
			page = append(page, Key{Position: p, Slot: slots[p]})
		}
		if !l.AtCeiling() {
			if _, err := l.Accept(page, 0); err != nil {
				return err
			}
		}
		n := l.Batch(1 + r.IntN(8))
		for _, p := range l.pending[:n] {
			switch slot := slots[p]; {
			case slot%total != k:
				return fmt.Errorf("event %d is another partition's", p)
			case p > frontier[slot]:
				return fmt.Errorf("event %d of slot %d is handled, and the live version is at %d", p, slot, frontier[slot])
			case handled[p]:
				return fmt.Errorf("event %d is handled twice", p)
			case p < order[slot]:
				return fmt.Errorf("event %d of slot %d comes after %d", p, slot, order[slot])
			}
		}
		if n == 0 && !l.SkipDue(testStart.Add(time.Hour)) {
			return nil
		}
		next := l.After(n)
		if next.Equal(l.Checkpoint()) {
			return fmt.Errorf("a commit of %d events changes nothing: %s", n, next)
		}
		switch r.IntN(6) {
		case 0: // it does not happen
			start(k)
			return nil
		case 1: // nobody hears of it
			defer start(k)
		}
		for _, p := range l.pending[:n] {
			handled[p], order[slots[p]] = true, p
		}
		if got := l.Resolve(0, next, Found{Checkpoint: rows[k], Exists: true}); got != NotApplied {
			return fmt.Errorf("before the commit the row counts as %s", got)
		}
		rows[k] = next
		if got := l.Resolve(0, next, Found{Checkpoint: rows[k], Exists: true}); got != Applied {
			return fmt.Errorf("after the commit the row counts as %s", got)
		}
		l.Committed(next, n, testStart)
		return nil
	}
	for range 3 {
		for range 60 {
			if r.IntN(3) == 0 {
				advance(liveTotal)
			}
			if err := step(r.IntN(total), false); err != nil {
				return err
			}
		}
		for range 300 { // the live version is stopped
			for k := range tracks {
				if err := step(k, true); err != nil {
					return err
				}
			}
		}
		for p := int64(1); p <= last; p++ {
			if handled[p] != (p <= frontier[slots[p]]) {
				return fmt.Errorf("event %d of slot %d is handled: %t, and the live version has stopped at %d", p, slots[p], handled[p], frontier[slots[p]])
			}
		}
		for k, c := range rows {
			for slot := k; slot < Slots; slot += total {
				if c.Frontier(slot) < frontier[slot] {
					return fmt.Errorf("slot %d of partition %d stands at %d, and the live version at %d", slot, k, c.Frontier(slot), frontier[slot])
				}
			}
		}
		liveTotal = 1 + r.IntN(4)
	}
	// It takes over.
	for k, l := range tracks {
		for l.Follow(nil); ; {
			from := l.Cursor()
			var page []Key
			for p := from + 1; p <= last; p++ {
				page = append(page, Key{Position: p, Slot: slots[p]})
			}
			if _, err := l.Accept(page, 0); err != nil {
				return err
			}
			for _, p := range l.pending {
				if handled[p] || slots[p]%total != k {
					return fmt.Errorf("event %d is handled again, or by another's partition", p)
				}
				handled[p] = true
			}
			if l.Committed(l.After(l.Pending()), l.Pending(), testStart); l.Cursor() == last {
				break
			}
		}
	}
	if len(handled) != last {
		return fmt.Errorf("%d events are handled, of %d", len(handled), last)
	}
	return nil
}

// A follower that stands where the live one has stopped, at a place of its own on each of its
// partitions, rests there, and reads nothing again.
func TestFollowerRests(t *testing.T) {
	now := testStart
	l := NewLane(Assignment{Generation: 1, Partition: 0, Total: 1}, LaneConfig{Kind: Plain, Batch: 100, Poll: time.Second, Lease: time.Minute, Attempts: 1})
	live := []Checkpoint{{Position: 1000}, {Position: 30}, {Position: 1000}}
	rests, reads := 0, 0
	var answer LaneAnswer
	for actions := 0; rests < 3; actions++ {
		a := l.Next(now, Signals{}, answer)
		answer = LaneAnswer{}
		switch a.Do {
		case LaneLoad:
			answer.Found = Found{Generation: 1, Exists: true, NoneParked: true, Follows: true}
		case LaneFollow:
			answer.Followed = Followed{Checkpoints: live, Final: true}
		case LaneRead:
			for p := a.After + 1; p <= 1000 && len(answer.Page) < a.Limit; p++ {
				answer.Page = append(answer.Page, Key{Position: p, Slot: int(p*7) % Slots})
			}
			answer.More = a.After+int64(a.Limit) < 1000
			reads++
		case LanePause:
			rests, now = rests+1, now.Add(a.For)
		}
		if actions > 3000 {
			t.Fatalf("%d reads, and %d rests", reads, rests)
		}
	}
	if got, want := l.track.Checkpoint(), Handoff(live, 1)[0]; !got.Equal(want) || reads > 20 {
		t.Errorf("it stands at %s after %d reads, want %s", got, reads, want)
	}
}
