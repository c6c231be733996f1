package protocol

import "time"

// A projection that follows the live one takes its place: see follow.go for why that is
// safe, once the two stand where Ready says. A Promotion is what a program does to get there:
//
//	look … close behind ─▶ hold ─▶ look … ready ─▶ switch ─▶ end
//	                        ▲           │ not ready, or somebody was in the way
//	                        └── pause ◀─┘
//
// Whatever it has seen, the switch looks again, with everything locked that the decision is
// about, so nothing that happens in between does harm. What a promotion that crashes leaves
// behind is a hold, which ends by itself.

// A Standing is how one version of a projection stands.
type Standing struct {
	Paused bool // it is not run: it is paused, or all of its set is
	Held   bool // that is for a while only
	// Stopped: nobody runs it, nor will before it is resumed.
	Stopped bool
	// Rewinding: it is to be set to a position with the next activation.
	Rewinding   bool
	Checkpoints []Checkpoint
}

// A Hindrance is what keeps a projection from taking the place of the live one.
type Hindrance int

const (
	NoHindrance   Hindrance = iota
	LiveRuns                // it is not paused
	LiveGoesOn              // it is, and not all have stopped
	LiveRewinding           // it is to be set to a position first
	NextRewinding           // the other one is
	NextAhead               // the other one is ahead, on some slot
	NextLacks               // the other one is behind, on some slot
)

// Ready returns what keeps a projection from taking the place of the live one; lacks is by how
// many positions it is behind, or ahead.
//
// A rewind that is due is waited for:
//  1. orders has handled up to 100, and orders_v2 has as well, as replays; an operator has
//     orders_v2 rewound, to build it once more;
//  2. it takes the place of orders before that is carried out;
//  3. the rewind is, and it handles 1 to 100 again, as new: each mail is sent twice.
//
// A rewind may also have set one of the two to where the other is not. Events that the
// follower is ahead by would be new to nobody, so the live one has to come there first.
func Ready(next, live Standing) (why Hindrance, lacks int64) {
	lacks = Lacks(next.Checkpoints, live.Checkpoints)
	switch {
	case !live.Paused:
		why = LiveRuns
	case !live.Stopped:
		why = LiveGoesOn
	case live.Rewinding:
		why = LiveRewinding
	case next.Rewinding:
		why = NextRewinding
	case lacks > 0:
		why = NextLacks
	default:
		if lacks = Lacks(live.Checkpoints, next.Checkpoints); lacks > 0 {
			why = NextAhead
		}
	}
	return why, lacks
}

// How a promotion waits.
const (
	promotePoll  = 100 * time.Millisecond
	PromoteClose = 5 * time.Second // that the projection is behind the live one, before that is held
	// PromoteMax is for how long the live one stands still.
	PromoteMax = 30 * time.Second
)

// A PromotionDo is what a promotion wants done next.
type PromotionDo int

const (
	PromoteLook    PromotionDo = iota // see how both stand; answer Next and Live
	PromoteHold                       // order a hold of the live one
	PromoteSwitch                     // have the projection take its place, if it is ready
	PromotePause                      // wait For
	PromoteRelease                    // end the hold; whether that succeeds does not matter
	PromoteEnd                        // it is over
)

func (d PromotionDo) String() string {
	return [...]string{"look", "hold", "switch", "pause", "release", "end"}[d]
}

// A PromotionEnd says how a promotion has ended.
type PromotionEnd int

const (
	Promoted    PromotionEnd = iota
	GivenUp                  // it was asked to end
	NoRebuild                // the projection does not follow the live one any more
	NotPromoted              // the latest request was refused, or has failed for good
	StoodStill               // the live one has stood still for PromoteMax
	PerhapsDone              // nobody knows whether the switch has happened
)

// A PromotionAction is one thing to do, and then to answer.
type PromotionAction struct {
	Do  PromotionDo
	For time.Duration
	End PromotionEnd
}

// A PromotionFailure says what is known of a request that did not succeed.
type PromotionFailure int

const (
	NotFailed PromotionFailure = iota
	FailsNow                   // it has had no effect, or does none by being repeated, and may succeed later
	IsRefused                  // it never will
	MayHaveHappened
)

// A PromotionAnswer says what has become of the latest action.
type PromotionAnswer struct {
	Failure    PromotionFailure
	Follows    bool // the projection follows the live one
	Runs       bool // a worker has the projection
	Next, Live Standing
	Stop       bool // the promotion is to end
}

// A Promotion is one program's.
type Promotion struct {
	doing PromotionDo

	goal []Checkpoint // where the live one was, when that was seen; nil: not yet
	seen time.Time

	holding bool      // it has come close, and the live one is to be held from now on
	held    time.Time // when that was ordered last
	refused bool      // since the live one is paused, or is not the set's
	paused  bool      // by an operator, who is to resume it
	stopped time.Time // when the live one was first seen to stand still
	end     PromotionEnd
}

// NewPromotion returns a promotion that has done nothing yet. The first call of Next answers
// nothing.
func NewPromotion() *Promotion { return &Promotion{doing: PromotePause} }

// Next takes the answer to the latest action and returns what to do now.
func (p *Promotion) Next(now time.Time, a PromotionAnswer) PromotionAction {
	action := p.advance(now, a)
	if action.Do == PromoteHold {
		p.held = now
	}
	p.doing = action.Do
	return action
}

func (p *Promotion) advance(now time.Time, a PromotionAnswer) PromotionAction {
	switch {
	case p.doing == PromoteRelease:
		return PromotionAction{Do: PromoteEnd, End: p.end}
	case p.doing == PromoteSwitch && a.Failure == NotFailed:
		return PromotionAction{Do: PromoteEnd, End: Promoted}
	case p.doing == PromoteSwitch && a.Failure == MayHaveHappened:
		return p.ends(PerhapsDone)
	case a.Stop:
		return p.ends(GivenUp)
	case p.doing == PromoteHold && a.Failure == IsRefused:
		p.refused = true
		return PromotionAction{Do: PromoteLook}
	case a.Failure == IsRefused:
		return p.ends(NotPromoted)
	case a.Failure != NotFailed:
		return p.wait(now)
	}
	switch p.doing {
	case PromotePause:
		if p.holding && !p.paused && now.Sub(p.held) >= HoldFor/4 {
			return PromotionAction{Do: PromoteHold}
		}
	case PromoteHold:
		p.paused = false
	case PromoteLook:
		return p.looked(now, a)
	}
	return PromotionAction{Do: PromoteLook}
}

func (p *Promotion) looked(now time.Time, a PromotionAnswer) PromotionAction {
	if !a.Follows {
		return p.ends(NoRebuild)
	}
	if !p.holding {
		return p.approach(now, a)
	}
	if p.paused = a.Live.Paused && !a.Live.Held; p.refused && !p.paused {
		return p.ends(NotPromoted)
	}
	p.refused = false
	if !a.Live.Stopped {
		p.stopped = time.Time{}
	} else if p.stopped.IsZero() {
		p.stopped = now
	}
	if why, _ := Ready(a.Next, a.Live); why == NoHindrance {
		return PromotionAction{Do: PromoteSwitch}
	}
	return p.wait(now)
}

// approach waits until the projection comes to where the live one was a moment ago.
func (p *Promotion) approach(now time.Time, a PromotionAnswer) PromotionAction {
	if p.goal == nil {
		p.goal, p.seen = lowest(a.Live.Checkpoints), now
	}
	if ahead := Lacks(a.Live.Checkpoints, a.Next.Checkpoints) > 0; a.Runs && !ahead && Lacks(a.Next.Checkpoints, p.goal) == 0 {
		if now.Sub(p.seen) <= PromoteClose {
			p.holding = true
			return PromotionAction{Do: PromoteHold}
		}
		p.goal = nil
	}
	return p.wait(now)
}

// lowest returns the position that a projection has reached on all slots: how far one that
// follows it comes while it runs.
func lowest(checkpoints []Checkpoint) []Checkpoint {
	return []Checkpoint{{Position: Handoff(checkpoints, 1)[0].Position}}
}

// wait pauses before the next look, unless the live one has stood still for too long.
func (p *Promotion) wait(now time.Time) PromotionAction {
	if !p.stopped.IsZero() && now.Sub(p.stopped) > PromoteMax {
		return p.ends(StoodStill)
	}
	return PromotionAction{Do: PromotePause, For: promotePoll}
}

// ends lets the live one go on, if it was held, and then ends.
func (p *Promotion) ends(why PromotionEnd) PromotionAction {
	p.end = why
	if p.holding && !p.paused {
		return PromotionAction{Do: PromoteRelease}
	}
	return PromotionAction{Do: PromoteEnd, End: why}
}

// Goal returns how far behind the projection is that is to come close to the live one.
func (p *Promotion) Goal(next Standing) (lacks int64) { return Lacks(next.Checkpoints, p.goal) }
