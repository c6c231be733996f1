package protocol

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Each story is a promotion, as its answers come.
func TestPromotion(t *testing.T) {
	at := func(position int64) []Checkpoint { return []Checkpoint{{Position: position}} }
	look := func(next, live Standing) PromotionAnswer {
		return PromotionAnswer{Follows: true, Runs: true, Next: next, Live: live}
	}
	runs := func(position int64) Standing { return Standing{Checkpoints: at(position)} }
	held := func(position int64) Standing {
		return Standing{Paused: true, Held: true, Stopped: true, Checkpoints: at(position)}
	}
	drains := Standing{Paused: true, Held: true, Checkpoints: at(100)}
	paused := Standing{Paused: true, Stopped: true, Checkpoints: at(100)}
	rewound := func(s Standing) Standing { s.Rewinding = true; return s }
	ok := PromotionAnswer{}
	fails := func(f PromotionFailure) PromotionAnswer { return PromotionAnswer{Failure: f} }
	stop := PromotionAnswer{Stop: true}
	for _, tt := range []struct {
		name    string
		answers []PromotionAnswer
		want    string
	}{
		{"the way", []PromotionAnswer{look(runs(100), runs(100)), ok, look(runs(100), drains), ok, look(runs(100), held(100)), ok},
			"check hold check pause check switch end 0"},
		{"it is far behind first", []PromotionAnswer{look(runs(10), runs(100)), ok, look(runs(100), runs(120)), ok, look(runs(100), held(120)), ok, look(runs(120), held(120)), ok},
			"check pause check hold check pause check switch end 0"},
		{"it takes so long that the live one is somewhere else", []PromotionAnswer{
			look(runs(10), runs(100)), ok, look(runs(20), runs(110)), ok, look(runs(30), runs(120)), ok, look(runs(100), runs(200)), ok, look(runs(100), runs(300)), ok,
		}, "check pause check pause check pause check pause check pause check"},
		{"where an operator rewinds one of them, that comes first", []PromotionAnswer{
			look(runs(100), runs(100)), ok, look(runs(100), rewound(held(100))), ok, look(rewound(runs(100)), held(100)), ok, ok, look(runs(100), held(100)), ok,
		}, "check hold check pause check pause hold check switch end 0"},
		{"an operator has paused it before", []PromotionAnswer{look(runs(100), paused), fails(IsRefused), look(runs(90), paused), ok, look(runs(90), paused), stop},
			"check hold check pause check pause end 1"},
		{"an operator pauses it, and resumes it", []PromotionAnswer{look(runs(100), runs(100)), ok, look(runs(90), paused), ok, look(runs(90), runs(100)), ok, ok, look(runs(100), held(100)), ok},
			"check hold check pause check pause hold check switch end 0"},
		{"the hold is refused, and it is not paused", []PromotionAnswer{look(runs(100), runs(100)), fails(IsRefused), look(runs(100), runs(100)), ok}, "check hold check release end 3"},
		{"it was replaced by another one meanwhile", []PromotionAnswer{look(runs(100), runs(100)), ok, {}, ok}, "check hold check release end 2"},
		{"nobody runs it", []PromotionAnswer{{Follows: true, Next: runs(100), Live: runs(100)}, ok, look(runs(100), runs(100)), ok}, "check pause check hold check"},
		{"it was set to beyond the live one", []PromotionAnswer{look(runs(100), runs(50)), ok, look(runs(100), runs(100)), ok, look(runs(110), held(100)), ok, look(runs(110), held(110)), ok},
			"check pause check hold check pause check switch end 0"},
		{"somebody is in the way", []PromotionAnswer{look(runs(100), runs(100)), ok, look(runs(100), held(100)), fails(FailsNow), ok, look(runs(100), held(100)), ok},
			"check hold check switch pause check switch end 0"},
		{"the program's own SQL fails", []PromotionAnswer{look(runs(100), runs(100)), ok, look(runs(100), held(100)), fails(IsRefused), ok}, "check hold check switch release end 3"},
		{"nobody knows", []PromotionAnswer{look(runs(100), runs(100)), ok, look(runs(100), held(100)), fails(MayHaveHappened), ok}, "check hold check switch release end 5"},
		{"it is asked to end before the hold", []PromotionAnswer{look(runs(10), runs(100)), stop}, "check pause end 1"},
		{"and when it has happened", []PromotionAnswer{look(runs(100), runs(100)), ok, look(runs(100), held(100)), stop}, "check hold check switch end 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, now := NewPromotion(), testStart
			a := p.Next(now, PromotionAnswer{})
			got := []string{a.Do.String()}
			for _, answer := range tt.answers {
				now = now.Add(500 * time.Millisecond)
				if strings.HasPrefix(tt.name, "it takes so long") {
					now = now.Add(time.Second)
				}
				if a = p.Next(now, answer); a.Do == PromoteEnd {
					got = append(got, fmt.Sprint(a.Do, " ", int(a.End)))
					break
				}
				got = append(got, a.Do.String())
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("got  %s\nwant %s", text, tt.want)
			}
		})
	}
}

// A hold is renewed before it lapses, and for PromoteMax at most.
func TestPromotionHoldsForAWhile(t *testing.T) {
	p, now, last, holds := NewPromotion(), testStart, time.Time{}, 0
	live := Standing{Paused: true, Held: true, Stopped: true, Checkpoints: []Checkpoint{{Position: 100}}}
	var answer PromotionAnswer
	for {
		a := p.Next(now, answer)
		answer = PromotionAnswer{Follows: true, Runs: true, Live: live}
		switch a.Do {
		case PromoteCheck:
			if answer.Next.Checkpoints = live.Checkpoints; !last.IsZero() {
				answer.Next.Checkpoints = nil
			}
		case PromoteHold:
			if !last.IsZero() && now.Sub(last) > HoldFor/2 {
				t.Fatalf("held again after %s", now.Sub(last))
			}
			last = now
			holds++
		case PromotePause:
			now = now.Add(a.For)
		case PromoteRelease:
			if over := now.Sub(testStart); over < PromoteMax || over > PromoteMax+time.Second || holds < 10 {
				t.Errorf("given up after %s, held %d times", over, holds)
			}
		case PromoteEnd:
			if a.End != StoodStill {
				t.Errorf("ended for %d", a.End)
			}
			return
		}
	}
}
