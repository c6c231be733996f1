package protocol

import "time"

// A promotion: a projection that follows the live one takes its place. See follow.go for why
// that is safe once Ready returns NoHindrance. A Promotion is what a program does to get there:
//
//	check … close behind ─▶ hold ─▶ check … ready ─▶ switch ─▶ end
//	                         ▲           │ not ready, or a lock could not be had
//	                         └── pause ◀─┘
//
// It promises that the live version is stopped for PromoteMax at most, and that it runs again
// if the promotion fails. It must never rely on what it has seen: the switch checks again, with
// everything locked that the decision depends on, so nothing that happens in between does harm.
// A promotion that crashes leaves a hold behind, which ends by itself.

// A Standing is the state of one version of a projection.
type Standing struct {
	Paused bool // the version, or its whole replica set, is paused
	Held   bool // and that ends by itself
	// Stopped is true if no worker runs the version, nor will before it is resumed.
	Stopped bool
	// Rewinding is true if a rewind is due with the next activation.
	Rewinding   bool
	Checkpoints []Checkpoint
}

// A Hindrance is what keeps a projection from taking the place of the live one.
type Hindrance int

const (
	NoHindrance   Hindrance = iota
	LiveRuns                // the live one is not paused
	LiveGoesOn              // the live one is paused, and not all workers have stopped it
	LiveRewinding           // a rewind of the live one is due
	NextRewinding           // a rewind of the follower is due
	NextAhead               // the follower is ahead on some slot
	NextLacks               // the follower is behind on some slot
)

// Ready returns what keeps a projection from taking the place of the live one; lacks is by how
// many positions it is behind, or ahead.
//
// A rewind that is due is waited for:
//  1. orders has handled up to 100, and orders_v2 has as well, as replays; an operator orders a
//     rewind of orders_v2, to build it once more;
//  2. it takes the place of orders before that is carried out;
//  3. then the rewind is, and it handles 1 to 100 again, as new: each mail is sent twice.
//
// A rewind may also have set one of the two to where the other is not. An event that the
// follower has handled ahead of the live one was new to neither, so the live one has to get
// there first.
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
	promotePoll = 100 * time.Millisecond
	// PromoteClose is how far behind the live one the follower may be when that is held.
	PromoteClose = 5 * time.Second
	// PromoteMax is for how long the live one is stopped at most.
	PromoteMax = 30 * time.Second
)

// A PromotionDo is what the driver of a promotion is to do next.
type PromotionDo int

const (
	PromoteCheck   PromotionDo = iota // read the state of both; answer Next and Live
	PromoteHold                       // order a hold of the live one
	PromoteSwitch                     // let the follower take the live one's place, if it is ready
	PromotePause                      // wait For
	PromoteRelease                    // end the hold; its outcome does not matter
	PromoteEnd                        // the promotion is over
)

func (d PromotionDo) String() string {
	return [...]string{"check", "hold", "switch", "pause", "release", "end"}[d]
}

// A PromotionEnd is how a promotion has ended.
type PromotionEnd int

const (
	Promoted    PromotionEnd = iota
	GivenUp                  // it was asked to end
	NoRebuild                // the projection does not follow the live one any more
	NotPromoted              // the latest request was refused, or has failed for good
	StoodStill               // the live one was stopped for PromoteMax
	PerhapsDone              // it is not known whether the switch has happened
)

// A PromotionAction is one thing to do, and then to answer.
type PromotionAction struct {
	Do  PromotionDo
	For time.Duration
	End PromotionEnd
}

// A PromotionFailure is what is known of a request that did not succeed.
type PromotionFailure int

const (
	NotFailed       PromotionFailure = iota
	FailsNow                         // it has had no effect, or can be repeated without harm, and may succeed later
	IsRefused                        // it can never succeed
	MayHaveHappened                  // only of a switch
)

// A PromotionAnswer is the outcome of the latest action.
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

// NewPromotion returns a promotion that has done nothing yet. The answer of the first call of
// Next is ignored.
func NewPromotion() *Promotion { return &Promotion{doing: PromotePause} }

// Next takes the answer to the latest action and returns the next one.
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
		return PromotionAction{Do: PromoteCheck}
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
	case PromoteCheck:
		return p.checked(now, a)
	}
	return PromotionAction{Do: PromoteCheck}
}

func (p *Promotion) checked(now time.Time, a PromotionAnswer) PromotionAction {
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

// lowest returns the position that a projection has reached on all slots: a follower gets that
// far while the live one runs.
func lowest(checkpoints []Checkpoint) []Checkpoint {
	return []Checkpoint{{Position: Handoff(checkpoints, 1)[0].Position}}
}

// wait pauses before the next check, unless the live one was stopped for too long.
func (p *Promotion) wait(now time.Time) PromotionAction {
	if !p.stopped.IsZero() && now.Sub(p.stopped) > PromoteMax {
		return p.ends(StoodStill)
	}
	return PromotionAction{Do: PromotePause, For: promotePoll}
}

// ends releases the live one, if it was held, and then ends.
func (p *Promotion) ends(why PromotionEnd) PromotionAction {
	p.end = why
	if p.holding && !p.paused {
		return PromotionAction{Do: PromoteRelease}
	}
	return PromotionAction{Do: PromoteEnd, End: why}
}

// Goal returns by how many positions the follower is behind where the live one was when the
// promotion began to wait.
func (p *Promotion) Goal(next Standing) (lacks int64) { return Lacks(next.Checkpoints, p.goal) }
