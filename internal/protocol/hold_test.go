package protocol

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHolds compares holds with a simple record of them, in random groups, under random orders
// and clock steps. A hold ends when its time is over, or the time of one that is ordered now, and
// for no other reason. Each change opens a generation if there is a worker to run it, and a
// worker's next Step is due in time for it.
func TestHolds(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(300) {
		if err := holdOnce(rand.New(rand.NewPCG(seed, 2)), seen); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	for _, what := range []string{"lapsed", "lapsed while draining", "lapsed with nobody there", "cut", "renewed", "refused"} {
		if seen[what] == 0 {
			t.Errorf("no hold was %s: %v", what, seen)
		}
	}
}

func holdOnce(r *rand.Rand, seen map[string]int) error {
	now := testStart
	g, _ := Step(Apply(Group{}, Request{Worker: "a", Join: true, Lease: time.Minute}, now), now, Watch{})
	book, paused := map[string]time.Time{}, map[string]bool{} // until when; by whomever
	for range 60 {
		switch r.IntN(6) {
		case 0:
			now = now.Add(time.Duration(r.IntN(12)) * time.Second)
		case 1:
			now = now.Add(time.Duration(r.IntN(7)-3) * time.Minute) // stepped
		}
		request, name := Request{}, [...]string{"p", "q"}[r.IntN(2)]
		switch n := r.IntN(14); n {
		case 0, 1, 2:
			request.Order = &Order{Kind: OrderHold, Projection: name}
		case 3:
			request.Order = &Order{Kind: OrderRelease, Projection: name}
		case 4:
			request.Order = &Order{Kind: OrderPause, Projection: name}
		case 5:
			request.Order = &Order{Kind: OrderResume, Projection: [...]string{name, All}[r.IntN(2)]}
		case 6, 7, 8:
			request = Request{Worker: "a", Lease: time.Hour, Stopped: g.Generation - 1}
		case 9:
			request = Request{Worker: "a", Leave: true}
		case 10:
			request = Request{Worker: "a", Join: true, Lease: time.Hour}
		default:
			request = Request{Worker: "b", Lease: time.Hour} // nobody
		}
		before := g
		_, held := book[name]
		if o := request.Order; o != nil {
			if err := o.Check(g); err != nil {
				if o.Kind != OrderHold || !paused[name] || held {
					return fmt.Errorf("%s of %s is refused: %w", o, g, err)
				}
				seen["refused"]++
				continue
			}
			switch o.Kind {
			case OrderHold:
				if held {
					seen["renewed"]++
				}
				book[name], paused[name] = now.Add(HoldFor), true
			case OrderRelease:
				if held {
					delete(book, name)
					delete(paused, name)
				}
			case OrderPause:
				delete(book, name)
				paused[name] = true
			case OrderResume:
				if delete(book, o.Projection); o.Projection == All {
					clear(book)
					clear(paused)
				}
				delete(paused, o.Projection)
			}
		}
		there := slices.ContainsFunc(before.Members, func(m Member) bool { return m.ID == "a" }) && !request.Leave || request.Join
		for name, until := range book {
			if !now.Before(until) {
				delete(book, name)
				delete(paused, name)
				seen["lapsed"]++
				switch {
				case !there:
					seen["lapsed with nobody there"]++
				case before.Phase == Draining:
					seen["lapsed while draining"]++
				}
			} else if until.After(now.Add(HoldFor)) {
				book[name] = now.Add(HoldFor)
				seen["cut"]++
			}
		}
		var d Decision
		g, d = Step(Apply(g, request, now), now, Watch{})
		var first time.Time
		for _, name := range []string{"p", "q"} {
			until, held := book[name]
			if g.Held(name) != held || slices.Contains(g.Paused, name) != paused[name] {
				return fmt.Errorf("at %s %s is held: %t, and paused: %t, in %s", now.Sub(testStart), name, held, paused[name], g)
			}
			if i, is := g.held(name); is && !g.Holds[i].Until.Equal(until) {
				return fmt.Errorf("%s is held until %s, want %s", name, g.Holds[i].Until.Sub(testStart), until.Sub(testStart))
			}
			if held && (first.IsZero() || until.Before(first)) {
				first = until
			}
		}
		if !first.IsZero() && (d.StepAt.IsZero() || d.StepAt.After(first)) {
			return fmt.Errorf("a hold ends at %s, and nobody looks before %s: %s", first.Sub(testStart), d.StepAt.Sub(testStart), g)
		}
		if !slices.Equal(before.Paused, g.Paused) && there && !d.Opened {
			return fmt.Errorf("%q was paused, and %q is, in no new generation", before.Paused, g.Paused)
		}
		if request.Order != nil && request.Order.Kind == OrderHold && held && d.Opened && slices.Equal(before.Paused, g.Paused) {
			return fmt.Errorf("a hold that goes on has opened a generation: %s", g)
		}
	}
	return nil
}
