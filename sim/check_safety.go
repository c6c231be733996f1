package sim

import (
	"slices"
	"strings"
)

// handlerBegins checks that no other worker handles the same slots (S1), that nothing is
// handled again (S3, S4), and that the worker runs the partition (S6).
func (c *checker) handlerBegins(f fact) *violation {
	w, p := c.worker(f.worker), c.projection(f.projection)
	if r := w.runOf(f); !w.tardy(f) && (r.unset() || r.generation != f.generation || r.partition != f.partition || r.total != f.total) {
		return broken(agreement, []fact{c.activations[f.generation], r, f},
			"%s handled events of partition %d/%d of generation %d, which it does not run", f.worker, f.partition, f.total, f.generation)
	}
	if v := c.obeyed(f); v != nil {
		return v
	}
	if v := c.hasStarted(p, f); v != nil {
		return v
	}
	if v := c.asReplay(p, f); v != nil {
		return v
	}
	if v := c.onLease(w, f); v != nil {
		return v
	}
	if v := c.onProof(w, f); v != nil {
		return v
	}
	for _, e := range f.events {
		if v := c.belongs(f, e); v != nil {
			return v
		}
		if e.bad {
			return broken(nothingLost, []fact{f}, "%[2]s called projection %[1]s with event %[3]d, which could not be read", p.name, owner(f), e.position)
		}
		for _, call := range p.open[e.slot] {
			if !c.mayCoincide(call, w, f) {
				facts := append(c.circumstances(call.worker, call.begin), call.begin, c.activations[f.generation], f)
				return broken(oneOwner, facts, "%[3]s and %[4]s handled slot %[2]d of projection %[1]s at the same time",
					p.name, e.slot, owner(call.begin), owner(f))
			}
		}
		if v := c.repeats(p, w, f, e); v != nil {
			return v
		}
		if v := c.waits(p, w, f, e); v != nil {
			return v
		}
	}
	call := &openCall{begin: f, worker: w}
	if v := c.again(p, call); v != nil {
		return v
	}
	c.calls[callKey{f.worker, f.call}] = call
	w.calls = append(w.calls, call)
	for _, e := range f.events {
		if !slices.Contains(p.open[e.slot], call) {
			p.open[e.slot] = append(p.open[e.slot], call)
		}
	}
	return nil
}

// mayCoincide reports whether one of two calls is excused: the open one, or the one that
// worker w begins now. A worker has no excuse for its own earlier call.
func (c *checker) mayCoincide(open *openCall, w *checkedWorker, begin fact) bool {
	return open.worker != w &&
		(c.excused(open.worker, open.begin, begin.at) || c.excused(w, begin, open.begin.at))
}

// repeats judges a handler call with an event that is committed, or that precedes a
// committed one of the same aggregate.
//
// The excuse is that of S1, with the commit as the other side: the process was frozen
// between deciding to call and calling. Handlers of transactional projections may be called
// twice, but a lane that has committed must not go back.
func (c *checker) repeats(p *checkedProjection, w *checkedWorker, f fact, e event) *violation {
	last := p.highest[e.aggregate]
	if e.position > last {
		return nil
	}
	commit, again := p.commitOf(e.position)
	if !again {
		commit, _ = p.commitOf(last)
	}
	if commit.worker != f.worker && c.excused(w, f, commit.at) {
		return nil
	}
	facts := append(c.circumstances(w, f), commit, c.activated, f)
	if again && !p.transactional {
		return broken(nothingTwice, facts, "%[3]s handled event %[1]d of projection %[2]s, which %[4]s had committed",
			e.position, p.name, owner(f), owner(commit))
	}
	if again {
		return broken(inOrder, facts, "%[3]s went back to event %[4]d of aggregate %[2]s in projection %[1]s, which %[5]s had committed",
			p.name, e.aggregate, owner(f), e.position, owner(commit))
	}
	return broken(inOrder, facts, "%[3]s handled event %[4]d of aggregate %[2]s in projection %[1]s after the commit of event %[5]d",
		p.name, e.aggregate, owner(f), e.position, last)
}

// again judges a call of a plain handler with an uncommitted event that a handler has had
// before. There must have been trouble since, for the worker that had it or for the one
// that has it again, or the handler must have failed. A transactional handler may get an
// event any number of times, since its effects are rolled back.
func (c *checker) again(p *checkedProjection, call *openCall) *violation {
	if p.transactional {
		return nil
	}
	for _, e := range call.begin.events {
		i, found := p.find(e.position)
		if !found {
			continue
		}
		before := p.unhandled[i].had
		p.unhandled[i].had = call
		if before == nil || before.failed || max(before.worker.trouble.step, c.trouble.step) > before.begin.step ||
			before.begin.at <= max(before.worker.troubled, c.troubled) || call.begin.at <= call.worker.troubled {
			continue
		}
		return broken(nothingTwice, []fact{before.begin, c.activated, call.begin},
			"%[3]s handled event %[1]d of projection %[2]s again, although nothing had gone wrong since %[4]s handled it",
			e.position, p.name, owner(call.begin), owner(before.begin))
	}
	return nil
}

// belongs checks that an event is handled and committed only by the partition that owns its
// slot (S6), and only by projections whose scope includes it.
func (c *checker) belongs(f fact, e event) *violation {
	if s := c.projection(f.projection).scope; !s.includes(e) {
		return broken(withinScope, []fact{c.worker(f.worker).run, f},
			"%[5]s got event %[1]d (%[2]s) of aggregate %[3]s, which has the type %[4]s, in projection %[6]s, whose scope is %[7]s",
			e.position, eventTypeOf(e.position), e.aggregate, typeOf(e.aggregate), owner(f), f.projection, s)
	}
	if e.slot%f.total == f.partition {
		return nil
	}
	return broken(agreement, []fact{c.activations[f.generation], c.worker(f.worker).runOf(f), f},
		"%[5]s got event %[1]d in partition %[3]d/%[4]d, which does not own the event's slot, %[2]d", e.position, e.slot, f.partition, f.total, owner(f))
}

// fenced checks that the active generation commits (S5).
func (c *checker) fenced(p *checkedProjection, f fact) *violation {
	run := c.worker(f.worker).runOf(f)
	switch {
	case c.activated.generation == 0:
		return broken(onlyGrow, []fact{c.opened, run, f}, "%s committed while no generation was active", owner(f))
	case f.generation != c.activated.generation:
		return broken(onlyGrow, append(c.circumstances(c.worker(f.worker), f), c.activations[f.generation], run, c.activated, f),
			"%s committed while generation %d was active", owner(f), c.activated.generation)
	case f.total != c.activated.total || f.partition < 0 || f.partition >= f.total:
		return broken(agreement, []fact{c.activated, run, f}, "%s committed for partition %d/%d of a generation with %d partitions",
			owner(f), f.partition, f.total, c.activated.total)
	}
	if v := c.afterLeaving(f); v != nil {
		return v
	}
	n := len(p.commits)
	if n > 0 && p.commits[n-1].set != f.set && p.commits[n-1].generation >= f.generation {
		before := p.commits[n-1]
		return broken(onlyGrow, []fact{before, c.activated, f}, "projection %s moved to another replica set without a higher generation: %s committed after %s",
			p.name, owner(f), owner(before))
	}
	return nil
}

// committed checks that each event is committed once (S3), that the events of an aggregate
// are committed in order (S4), and that the checkpoint passes no event that no commit holds
// (S2).
func (c *checker) committed(f fact) *violation {
	p := c.projection(f.projection)
	if v := c.fenced(p, f); v != nil {
		return v
	}
	if v := c.handledBy(p, f, f.events); v != nil {
		return v
	}
	n := len(p.commits)
	p.commits = append(p.commits, f)
	for _, e := range f.events {
		if v := c.belongs(f, e); v != nil {
			return v
		}
		if before, again := p.commitOf(e.position); again {
			return broken(nothingTwice, []fact{before, c.activations[before.generation], c.activated, f},
				"event %d of projection %s was committed by %s and by %s", e.position, p.name, owner(before), owner(f))
		}
		if last := p.highest[e.aggregate]; e.position < last {
			before, _ := p.commitOf(last)
			return broken(inOrder, []fact{before, c.activations[before.generation], c.activated, f},
				"event %[3]d of aggregate %[2]s was committed after event %[4]d in projection %[1]s", p.name, e.aggregate, e.position, last)
		}
		if v := c.waits(p, c.worker(f.worker), f, e); v != nil {
			return v
		}
		if i, found := p.find(e.position); found {
			if v := c.noticed(p, e, c.appends[p.unhandled[i].append], f, f.worker); v != nil {
				return v
			}
		}
		p.holds[e.position], p.highest[e.aggregate] = n, e.position
		if i, found := p.find(e.position); found {
			p.unhandled = slices.Delete(p.unhandled, i, i+1)
		}
	}
	return c.moves(p, f)
}

// moves checks that the checkpoint passes only what is handled or parked (S2).
func (c *checker) moves(p *checkedProjection, f fact) *violation {
	p.passed.commit(f)
	for _, e := range p.unhandled {
		if e.position > f.to && len(f.ahead) == 0 {
			break
		}
		if e.slot%f.total == f.partition && e.position <= max(f.to, p.passed.slot(e.slot)) {
			return c.passes(p, f, e)
		}
	}
	return nil
}

// passes returns the violation of a checkpoint that has passed a visible event that no
// commit holds. The loss is final: lanes read on from their checkpoint, and a hand-over
// carries it to all of its slots. Slots that are ahead need no exception, since earlier
// commits hold what they are ahead by.
func (c *checker) passes(p *checkedProjection, f fact, e visible) *violation {
	before := p.latest(e.slot, len(p.commits)-1)
	facts := append(c.gapsAround(e.position), c.appends[e.append], before, c.activated, f)
	if e.position <= f.from {
		return broken(nothingLost, facts, "event %d of projection %s was skipped: %s took over partition %d/%d at position %d before any worker had handled the event",
			e.position, p.name, owner(f), f.partition, f.total, f.from)
	}
	return broken(nothingLost, facts, "event %d of projection %s was skipped: the checkpoint of partition %d/%d moved from %d to %d without it",
		e.position, p.name, f.partition, f.total, f.from, f.to)
}

// appended checks that no checkpoint passed the event before it was visible (S2).
func (c *checker) appended(f fact) *violation {
	c.appends = append(c.appends, f)
	for _, e := range f.events {
		for _, p := range c.inOrder {
			if s := p.started; s.text == startsNow && e.position <= p.above && p.scope.includes(e) {
				return broken(nothingLost, append(c.gapsAround(e.position), s, f),
					"event %d of projection %s was left out: it was appended after the projection had started above %d", e.position, p.name, s.from)
			}
			if p.scope.includes(e) && e.position > p.skipped && e.position <= p.passed.slot(e.slot) {
				by := p.commits[max(0, slices.IndexFunc(p.commits, func(f fact) bool {
					return e.slot%f.total == f.partition && e.position <= f.to
				}))]
				return broken(nothingLost, append(c.gapsAround(e.position), by, f),
					"event %d of projection %s was skipped: the checkpoint of partition %d/%d moved from %d to %d before the event was visible",
					e.position, p.name, by.partition, by.total, by.from, by.to)
			}
			p.sees(visible{event: e, append: len(c.appends) - 1})
		}
	}
	return nil
}

// gapsAround returns the facts of the first reader that waited for the position and of the
// first that took it for final.
func (c *checker) gapsAround(position int64) []fact {
	var waited, passed fact
	for _, f := range slices.Backward(c.gaps) {
		switch {
		case f.kind == gapWaited && f.to == position:
			waited = f
		case f.kind == gapPassed && f.to >= position:
			passed = f
		}
	}
	return []fact{waited, passed}
}

// groupOpened checks that numbers ascend (S5), and that nothing opens a generation when all
// is well (L2).
func (c *checker) groupOpened(f fact) *violation {
	before := c.opened
	if f.generation <= before.generation {
		return broken(onlyGrow, []fact{before, f}, "generation %d was opened after generation %d", f.generation, before.generation)
	}
	c.opened = f
	c.ordersOpen(f)
	if c.pause.unset() {
		c.pause = f
	}
	if v := c.laidOut(before, f); v != nil {
		return v
	}
	return c.still(before, f)
}

// groupActivated checks that numbers ascend, and that only the newest generation becomes
// active (S5).
func (c *checker) groupActivated(f fact) *violation {
	switch {
	case f.generation <= c.activated.generation:
		return broken(onlyGrow, []fact{c.activated, f}, "generation %d was activated after generation %d", f.generation, c.activated.generation)
	case f.generation < c.opened.generation:
		return broken(onlyGrow, []fact{c.opened, f}, "generation %d was activated after generation %d had been opened", f.generation, c.opened.generation)
	}
	v := c.paused(f)
	c.pause = fact{}
	c.activated = f
	f.layout = c.layout
	c.activations[f.generation] = f
	c.holdings(f)
	c.rewind(f)
	return v
}

// whole checks that a worker runs its whole share (S6).
func (c *checker) whole(w *checkedWorker, f fact) *violation {
	decided := c.activations[w.run.generation]
	if w.run.unset() || decided.layout == nil || f.at <= w.run.at {
		return nil
	}
	share := 0
	for _, id := range decided.layout {
		if isOf(id, w.name) {
			share++
		}
	}
	if share == len(w.runs) {
		return nil
	}
	return broken(agreement, []fact{decided, w.run, f}, "%s ran %d of its %d partitions of generation %d", w.name, len(w.runs), share, w.run.generation)
}

// isOf reports whether an incarnation belongs to the worker.
func isOf(incarnation, worker string) bool {
	name, _, _ := strings.Cut(incarnation, "~")
	return name == worker
}

// runStarts checks that a worker runs what was decided, and that no other worker runs the
// same (S6).
func (c *checker) runStarts(f fact) *violation {
	decided, active := c.activations[f.generation]
	switch {
	case !active:
		return broken(agreement, []fact{c.opened, c.activated, f}, "%s ran generation %d, which was never activated", f.worker, f.generation)
	case f.total != decided.total || f.partition < 0 || f.partition >= f.total:
		return broken(agreement, []fact{decided, f}, "%s ran partition %d/%d of generation %d, which has %d partitions",
			f.worker, f.partition, f.total, f.generation, decided.total)
	}
	if w := c.worker(f.worker); w.ran.generation >= f.generation {
		return broken(agreement, []fact{decided, w.ran, f}, "%s started generation %d again after it had stopped it", f.worker, f.generation)
	}
	key := ownerKey{f.generation, f.partition}
	if before, taken := c.owners[key]; taken {
		return broken(agreement, []fact{decided, before, f}, "%s and %s both ran partition %d/%d of generation %d",
			before.worker, f.worker, f.partition, f.total, f.generation)
	}
	c.owners[key] = f
	if decided.layout != nil && !isOf(decided.layout[f.partition], f.worker) {
		return broken(agreement, []fact{decided, f}, "%s ran partition %d/%d of generation %d, which belongs to %s",
			f.worker, f.partition, f.total, f.generation, decided.layout[f.partition])
	}
	// A slow answer may start a generation late. But the next one is active only after this
	// worker has reported a stop, after which it does not start the old one, or after its
	// lease is over.
	if w := c.worker(f.worker); f.generation != c.activated.generation && !w.lease.unset() && !c.overBy(w, f.at) && w.presence.missing.unset() {
		return broken(agreement, []fact{decided, w.lease, c.activated, f}, "%s started generation %d while generation %d was active and its own lease was not over",
			f.worker, f.generation, c.activated.generation)
	}
	return nil
}
