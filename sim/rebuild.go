package sim

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A rebuild is a new version of a projection beside the live one, with what operators do
// with the two: they promote the new one, and back. protocol.Promotion and the store
// decide; an operator's program is here what ops.Promote is.
type rebuild struct {
	next, live string
	asks       []ask
	retire     time.Duration // when the replaced version is retired; 0: never
}

// An ask is a request for a promotion, of the new version or back. crash is the step at
// which the program crashes; 0: it does not.
type ask struct {
	at    time.Duration
	back  bool
	crash int
}

func (a ask) String() string {
	what := "promotion"
	if a.back {
		what = "promotion back"
	}
	if a.crash > 0 {
		what += fmt.Sprintf(" that crashes at step %d", a.crash)
	}
	return fmt.Sprintf("%s at %s", what, a.at)
}

// rebuilt is the name of the new version.
const rebuilt = "v2"

// drawRebuild draws a rebuild of one of the projections: in a set of its own, or in a
// program that is deployed after the live version has run.
func (p *plan) drawRebuild(r *rand.Rand, o options) {
	if !chance(r, 250) || len(p.workers) > 20 || p.crowd > 0 {
		return
	}
	of := pick(r, p.programs[0].projections...)
	next := of
	next.name, next.rebuildOf, next.start = rebuilt, of.name, start{}
	next.kind = pick(r, protocol.Plain, protocol.Transactional, protocol.Transactional, protocol.Batched, protocol.PlainBatched)
	next.parks = pick(r, of.parks, 0)
	if chance(r, 200) {
		next.scope = ""
	}
	for i, v := range p.programs { // otherwise it may never run
		if !slices.ContainsFunc(v.projections, func(q projection) bool { return q.name == of.name }) {
			p.programs[i].projections = append(slices.Clone(v.projections), of)
		}
	}
	last, rewinds := p.programs[len(p.programs)-1], false
	switch {
	case p.sets < 3 && chance(r, 500):
		next.set = p.sets
		p.sets++
		for i := range p.programs {
			p.programs[i].projections = append(slices.Clone(p.programs[i].projections), next)
		}
		for len(p.workers) < p.sets {
			p.workers = append(p.workers, 0)
		}
		if p.sets > 2 { // see drawOrders
			break
		}
		for i := range p.orders {
			p.orders[i].set = r.IntN(p.sets)
		}
		rewinds = chance(r, 500)
	default:
		next.set = last.projections[slices.IndexFunc(last.projections, func(q projection) bool { return q.name == of.name })].set
		last.projections = append(slices.Clone(last.projections), next)
		p.deploys(r, last)
	}
	if of.set == 0 && chance(r, 250) { // at the end no program has the replaced version
		last = p.programs[len(p.programs)-1]
		last.projections = slices.DeleteFunc(slices.Clone(last.projections), func(q projection) bool { return q.name == of.name })
		if len(last.of(of.set)) > 0 {
			p.deploys(r, last)
		}
	}
	b := &rebuild{next: next.name, live: of.name}
	for i := range 1 + r.IntN(4) {
		a := ask{at: between(r, 0, p.length), back: i > 0 && chance(r, 500)}
		if chance(r, 400) {
			a.crash = 1 + r.IntN(pick(r, 4, 8, 16, 40))
		}
		b.asks = append(b.asks, a)
		if rewinds {
			p.orders = append(p.orders, order{at: a.at + between(r, 0, p.timing.Lease), kind: protocol.OrderRewind, set: next.set, part: r.IntN(1000)})
		}
	}
	if chance(r, 300) {
		b.retire = between(r, p.length/2, p.length)
	}
	p.rebuild = b
	if p.length < 4*protocol.HoldFor && !o.postgres && chance(r, 500) {
		p.length += protocol.HoldFor
	}
}

// deploys adds a program and its deploy.
func (p *plan) deploys(r *rand.Rand, v program) {
	p.programs = append(p.programs, v)
	p.faults = append(p.faults, fault{at: between(r, p.length/8, p.length/2), kind: deploy, length: between(r, 0, p.timing.Lease)})
	p.sortFaults()
}

// rebuilds returns the live projections by the names of their rebuilds.
func (p *plan) rebuilds() map[string]string {
	if p.rebuild == nil {
		return nil
	}
	return map[string]string{p.rebuild.next: p.rebuild.live}
}

// runsLast reports whether the last program has a projection.
func (p *plan) runsLast(name string) bool {
	return slices.ContainsFunc(p.programs[len(p.programs)-1].projections, func(q projection) bool { return q.name == name })
}

// settleRebuild returns how long it takes until a promotion that is requested after the
// faults has ended, and until the new version has handled what the live one has.
func (p *plan) settleRebuild(backlog time.Duration) time.Duration {
	if p.rebuild == nil {
		return 0
	}
	t := p.slowest()
	return p.askedLast() + protocol.HoldFor + 2*t.Lease + 10*t.Heartbeat + 10*time.Second + 4*p.poll + 3*backlog*(2*p.handlers.typical+6*p.network.latency)
}

// askedLast returns how long after the faults the last promotion is requested.
func (p *plan) askedLast() time.Duration {
	return 2*p.slowest().Lease + protocol.HoldFor + time.Second
}

// A promoter is a program that promotes a projection.
type promoter struct {
	w          *world
	rand       *rand.Rand
	core       *protocol.Promotion
	projection string
	live       string
	set        int // of the live version
	crash      int
	steps      int
	last       bool // the faults are over
}

// promote makes an operator promote a projection.
func (w *world) promote(a ask, last bool) {
	b := w.plan.rebuild
	p := &promoter{w: w, rand: rand.New(rand.NewPCG(w.plan.seed, 200+uint64(a.at))), projection: b.next, crash: a.crash, last: last}
	if a.back {
		p.projection = b.live
	}
	w.record(fact{kind: promotionAsked, projection: p.projection, from: int64(a.crash)})
	p.begin()
}

// begin finds the live version, as ops.Promote does first.
func (p *promoter) begin() {
	p.versions([]string{p.projection}, func(all map[string]*store.ProjectionVersion, err error) {
		next := all[p.projection]
		switch {
		case err != nil:
			p.w.after(p.w.orderAgain(), p.begin)
		case next == nil || next.Retired || next.Follows == "":
			p.ended(nothingToPromote)
		default:
			p.live, p.core = next.Follows, protocol.NewPromotion()
			p.versions([]string{p.live}, func(all map[string]*store.ProjectionVersion, err error) {
				live := all[p.live]
				switch {
				case err != nil:
					p.w.after(p.w.orderAgain(), p.begin)
				case live == nil:
					p.ended(nothingToPromote)
				case next.Paused:
					p.set = setNumber(live.ReplicaSet)
					p.order(setNumber(next.ReplicaSet), protocol.Order{Kind: protocol.OrderResume, Projection: p.projection}, func(error) { p.next(protocol.PromotionAnswer{}) })
				default:
					p.set = setNumber(live.ReplicaSet)
					p.next(protocol.PromotionAnswer{})
				}
			})
		}
	})
}

// setNumber is the inverse of setName.
func setNumber(name string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(name, "sim"))
	return n
}

// These are the outcomes of promotions.
const (
	nothingToPromote = "nothing to do"
	promoterCrashed  = "crashed"
)

func (p *promoter) ended(text string) {
	p.w.record(fact{kind: promotionEnded, projection: p.projection, text: text})
}

// next carries out the core's actions, up to the step at which the program crashes.
func (p *promoter) next(a protocol.PromotionAnswer) {
	w := p.w
	if w.healed && !p.last {
		a.Stop = true
	}
	if p.steps++; p.steps == p.crash {
		p.ended(promoterCrashed)
		return
	}
	action := p.core.Next(epoch.Add(w.at), a)
	order := func(kind protocol.OrderKind) {
		p.order(p.set, protocol.Order{Kind: kind, Projection: p.live}, func(err error) {
			p.next(protocol.PromotionAnswer{Failure: promotionFailure(err)})
		})
	}
	switch action.Do {
	case protocol.PromoteCheck:
		p.versions([]string{p.projection, p.live}, func(all map[string]*store.ProjectionVersion, err error) {
			a := protocol.PromotionAnswer{Failure: promotionFailure(err)}
			if next, live := all[p.projection], all[p.live]; next != nil && live != nil {
				a.Follows, a.Runs, a.Next, a.Live = next.Follows == p.live, len(next.Workers) > 0, next.Standing, live.Standing
			}
			if bend := w.rules.standing; bend != nil {
				bend(&a)
			}
			p.next(a)
		})
	case protocol.PromoteHold:
		order(protocol.OrderHold)
	case protocol.PromoteRelease:
		order(protocol.OrderRelease)
	case protocol.PromoteSwitch:
		p.takePlace()
	case protocol.PromotePause:
		w.after(action.For, func() { p.next(protocol.PromotionAnswer{}) })
	case protocol.PromoteEnd:
		p.ended(promotionEnds[action.End])
	}
}

var promotionEnds = [...]string{"promoted", "given up", "no longer a rebuild", "refused", "made no progress", "outcome unknown"}

// promotionFailure is failureOf of ops.
func promotionFailure(err error) protocol.PromotionFailure {
	notYet := (*store.NotYetError)(nil)
	switch {
	case err == nil:
		return protocol.NotFailed
	case errors.Is(err, errUnclear):
		return protocol.MayHaveHappened
	case errors.As(err, &notYet), store.LockTimeout(err), store.Deadlock(err), store.Passing(err), errors.Is(err, errNoAnswer):
		return protocol.FailsNow
	}
	return protocol.IsRefused
}

// errUnclear is the error of a COMMIT whose reply was lost.
var errUnclear = errors.New("the outcome of COMMIT is unknown")

// ask makes a call over a connection of its own.
func (p *promoter) ask(set int, call func(c connection, done func(error)), then func(error)) {
	w, latency := p.w, p.w.plan.network.latency
	w.after(latency, func() {
		if w.down {
			w.after(latency, func() { then(errReset) })
			return
		}
		conn := w.db.as(setName(set), store.BoundsOf(w.plan.timing.Lease)).connect()
		answered := false
		giveUp := w.after(w.plan.timing.Lease, func() {
			answered = true
			conn.close()
			then(errNoAnswer)
		})
		call(conn, func(err error) {
			if answered {
				return
			}
			answered = true
			giveUp()
			conn.close()
			if !w.healed && chance(p.rand, w.plan.network.lostReply) {
				w.record(fact{kind: faultLost, text: "reply: to a promoter"})
				err = errReset
			}
			w.after(latency, func() { then(err) })
		})
	})
}

func (p *promoter) versions(names []string, then func(map[string]*store.ProjectionVersion, error)) {
	var all map[string]*store.ProjectionVersion
	p.ask(p.set, func(c connection, done func(error)) {
		c.versions(names, func(found map[string]*store.ProjectionVersion, err error) {
			all = found
			done(err)
		})
	}, func(err error) {
		if err != nil {
			all = nil
		}
		then(all, err)
	})
}

// order gives an order, again if the set's rows are locked.
func (p *promoter) order(set int, o protocol.Order, then func(error)) {
	w := p.w
	p.ask(set, func(c connection, done func(error)) {
		r := protocol.Request{Order: &o}
		c.sync(r, nil, nil, nil, false, func(result store.Result, err error) {
			if err == nil {
				w.record(fact{kind: ordered, set: set, order: o})
				w.regrouped(fact{set: set}, r, result, w.at)
			}
			done(err)
		})
	}, func(err error) {
		if store.LockTimeout(err) {
			w.after(50*time.Millisecond, func() { p.order(set, o, then) })
			return
		}
		then(err)
	})
}

// takePlace is the switch. Its reply may get lost. If the database holds a transaction
// before COMMIT, the program may crash in between.
func (p *promoter) takePlace() {
	w := p.w
	switched := func(set int) {
		w.holds[set] = slices.DeleteFunc(w.holds[set], func(name string) bool { return name == p.live })
		w.record(fact{kind: promoted, set: set, projection: p.projection, text: p.live})
	}
	hold := w.plan.hold && chance(p.rand, 500)
	crashes := p.steps+1 == p.crash
	p.ask(p.set, func(c connection, done func(error)) {
		set := p.set
		if m, ok := c.(*memoryConnection); ok { // it may have moved
			set = setNumber(cmp.Or(*m.projection(p.live).committed, setName(p.set)))
		}
		c.promote(p.projection, p.live, hold, func(_ int, err error) {
			switch {
			case err != nil:
				done(err)
			case !hold:
				switched(set)
				done(nil)
			case crashes && chance(p.rand, 500): // and the server ends its transaction
				p.steps = p.crash
				p.ended(promoterCrashed)
			default:
				w.after(2*w.plan.network.latency, func() {
					c.commit(func(err error) {
						if err == nil {
							switched(set)
						}
						done(err)
					})
				})
			}
		})
	}, func(err error) {
		a := protocol.PromotionAnswer{Failure: promotionFailure(err)}
		if errors.Is(err, errReset) || errors.Is(err, errNoAnswer) {
			a.Failure = protocol.MayHaveHappened
		}
		p.next(a)
	})
}

// retire makes an operator retire the replaced version.
func (w *world) retire() {
	if w.down {
		return
	}
	name := w.plan.rebuild.live
	c := w.db.as(setName(0), store.BoundsOf(w.plan.timing.Lease)).connect()
	c.retire(name, func(err error) {
		if err == nil {
			w.record(fact{kind: retired, projection: name})
		}
		c.close()
	})
}

// lapses records the holds that have ended by themselves.
func (w *world) lapses(set int, o *protocol.Order, holds []protocol.Hold) {
	var names []string
	for _, h := range holds {
		names = append(names, h.Projection)
	}
	for _, name := range w.holds[set] {
		byOrder := o != nil && (o.Projection == name || o.Projection == protocol.All) &&
			slices.Contains([]protocol.OrderKind{protocol.OrderRelease, protocol.OrderPause, protocol.OrderResume}, o.Kind)
		if !slices.Contains(names, name) && !byOrder {
			w.record(fact{kind: holdOver, set: set, projection: name})
		}
	}
	w.holds[set] = names
}
