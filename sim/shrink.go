package sim

import (
	"fmt"
	"slices"
	"time"
)

// shrink looks for a smaller plan that breaks the same promise: with fewer faults, fewer
// workers, fewer rates, a shorter run. It tries at most so many plans.
func shrink(p plan, broken violation, tries int, play func(plan) *violation) (smaller plan, why violation) {
	attempt := func(q plan) bool {
		if tries == 0 {
			return false
		}
		tries--
		v := play(q)
		if v == nil || v.promise != broken.promise {
			return false
		}
		p, broken = q, *v
		return true
	}
	if last := broken.facts[len(broken.facts)-1].at; broken.promise.safety() { // what comes later plays no part
		q := p
		q.faults = slices.DeleteFunc(slices.Clone(p.faults), func(f fault) bool { return f.at > last })
		q.workers = slices.DeleteFunc(slices.Clone(p.workers), func(at time.Duration) bool { return at > last })
		q.crowd = 0
		attempt(q)
	}
	for again := true; again && tries > 0; {
		again = false
		for _, cut := range cuts {
			for cut(p, attempt) {
				again = true
			}
		}
	}
	return p, broken
}

// cuts are the ways to make a plan smaller. Each reports whether it has succeeded.
var cuts = []func(p plan, attempt func(plan) bool) bool{
	func(p plan, attempt func(plan) bool) bool { // half of the faults
		n := len(p.faults)
		if n < 4 {
			return false
		}
		q := p
		q.faults = slices.Clone(p.faults[:n/2])
		if attempt(q) {
			return true
		}
		q.faults = slices.Clone(p.faults[n/2:])
		return attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // one fault
		for i := range p.faults {
			q := p
			q.faults = slices.Delete(slices.Clone(p.faults), i, i+1)
			if attempt(q) {
				return true
			}
		}
		return false
	},
	func(p plan, attempt func(plan) bool) bool { // one promotion
		if p.rebuild == nil {
			return false
		}
		for i := range p.rebuild.asks {
			q, b := p, *p.rebuild
			b.asks = slices.Delete(slices.Clone(b.asks), i, i+1)
			if q.rebuild = &b; attempt(q) {
				return true
			}
		}
		return false
	},
	func(p plan, attempt func(plan) bool) bool { // half of the workers
		q := p
		q.workers = p.workers[:(len(p.workers)+1)/2]
		return len(q.workers) < len(p.workers) && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // one worker
		for i := range p.workers {
			q := p
			q.workers = slices.Delete(slices.Clone(p.workers), i, i+1)
			if len(q.workers) > 0 && attempt(q) {
				return true
			}
		}
		return false
	},
	func(p plan, attempt func(plan) bool) bool { // one rate of things that go wrong by themselves
		for _, rate := range []func(*plan) *int{
			func(p *plan) *int { return &p.network.lostRequest },
			func(p *plan) *int { return &p.network.lostReply },
			func(p *plan) *int { return &p.network.slow },
			func(p *plan) *int { return &p.network.holdCommit },
			func(p *plan) *int { return &p.network.halfOpen },
			func(p *plan) *int { return &p.network.hints },
			func(p *plan) *int { return &p.handlers.slow },
			func(p *plan) *int { return &p.handlers.fail },
			func(p *plan) *int { return &p.handlers.panics },
			func(p *plan) *int { return &p.handlers.deaf },
			func(p *plan) *int { return &p.handlers.outlive },
			func(p *plan) *int { return &p.handlers.poison },
			func(p *plan) *int { return &p.unreadable },
			func(p *plan) *int { return &p.handlers.timeout },
			func(p *plan) *int { return &p.handlers.kill },
			func(p *plan) *int { return &p.handlers.chain },
			func(p *plan) *int { return &p.handlers.spoil },
			func(p *plan) *int { return &p.handlers.violate },
			func(p *plan) *int { return &p.appends.late },
			func(p *plan) *int { return &p.appends.long },
			func(p *plan) *int { return &p.appends.lose },
			func(p *plan) *int { return &p.appends.prepare },
			func(p *plan) *int { return &p.drift },
		} {
			q := p
			if r := rate(&q); *r != 0 {
				*r = 0
				if attempt(q) {
					return true
				}
			}
		}
		return false
	},
	func(p plan, attempt func(plan) bool) bool { // one projection of the first program
		for i, dropped := range p.programs[0].projections {
			q := p
			q.programs = slices.Clone(p.programs)
			q.programs[0].projections = slices.Delete(slices.Clone(p.programs[0].projections), i, i+1)
			if len(q.programs[0].of(dropped.set)) > 0 && attempt(q) {
				return true
			}
		}
		return false
	},
	func(p plan, attempt func(plan) bool) bool { // all replica sets but the first, with what they run
		q := p
		q.sets, q.programs = 1, slices.Clone(p.programs)
		for i := range q.programs {
			q.programs[i].projections = p.programs[i].of(0)
		}
		return p.sets > 1 && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // more partitions than workers
		q := p
		q.wants = nil
		return len(p.wants) > 0 && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // different timing settings
		q := p
		q.programs = slices.Clone(p.programs)
		for i := range q.programs {
			q.programs[i].timing = p.timing
		}
		return p.uneven() && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // scopes
		q := p
		q.programs = slices.Clone(p.programs)
		for i, v := range p.programs {
			q.programs[i].projections = slices.Clone(v.projections)
			for k := range v.projections {
				q.programs[i].projections[k].scope = ""
			}
		}
		return p.scoped() && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // parking
		q := p
		q.programs = slices.Clone(p.programs)
		for i, v := range p.programs {
			q.programs[i].projections = slices.Clone(v.projections)
			for k := range v.projections {
				q.programs[i].projections[k].parks = 0
			}
		}
		return p.parks() && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // reads that are cut short
		q := p
		q.feed = ordinaryFeed
		return p.feed != ordinaryFeed && attempt(q)
	},
	func(p plan, attempt func(plan) bool) bool { // a shorter run
		q := p
		q.length = (p.length * 3 / 4).Truncate(time.Microsecond)
		q.faults = slices.DeleteFunc(slices.Clone(p.faults), func(f fault) bool { return f.at > q.length })
		return q.length > p.timing.Lease/2 && attempt(q)
	},
}

// size returns the size of a plan in words.
func (p *plan) size() string {
	return fmt.Sprintf("%s, %s, %s", plural(len(p.workers)+p.crowd, "worker"), plural(len(p.faults), "fault"), p.length.Round(time.Millisecond))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
