package sim

import (
	"maps"
	"slices"
)

// A checkedParked is the parked events of a projection, according to the facts.
type checkedParked struct {
	rows      map[int64]parkedEvent
	of        map[string][]int64 // the parked positions of each aggregate, in ascending order
	asked     map[int64]fact     // the latest request
	ever      map[int64]fact     // the latest request, also if it is done
	discarded map[int64]fact
	ordered   map[int64]fact // open orders to park
}

type parkedEvent struct {
	visible
	by fact
}

func newCheckedParked() checkedParked {
	return checkedParked{rows: map[int64]parkedEvent{}, of: map[string][]int64{}, asked: map[int64]fact{}, ever: map[int64]fact{}, discarded: map[int64]fact{}, ordered: map[int64]fact{}}
}

func (l *checkedParked) remove(position int64) {
	aggregate := l.rows[position].aggregate
	delete(l.rows, position)
	delete(l.asked, position)
	l.of[aggregate] = slices.DeleteFunc(l.of[aggregate], func(p int64) bool { return p == position })
}

// first returns the first parked event of an aggregate.
func (l *checkedParked) first(aggregate string) (parkedEvent, bool) {
	if of := l.of[aggregate]; len(of) > 0 {
		return l.rows[of[0]], true
	}
	return parkedEvent{}, false
}

// eventsParked checks that a park is of the active generation, as a commit is, and that the
// checkpoint passes only what it parks. None of the events may be handled (S3) or parked
// already, and no later one of their aggregates may be handled (S4).
func (c *checker) eventsParked(f fact) *violation {
	p := c.projection(f.projection)
	if v := c.fenced(p, f); v != nil {
		return v
	}
	if v := c.handledBy(p, f, f.events); v != nil {
		return v
	}
	p.commits = append(p.commits, f)
	for _, e := range f.events {
		if v := c.belongs(f, e); v != nil {
			return v
		}
		if before, handled := p.commitOf(e.position); handled {
			return broken(nothingTwice, []fact{before, c.activations[before.generation], c.activated, f},
				"%[3]s parked event %[1]d of projection %[2]s, which %[4]s had committed", e.position, p.name, owner(f), owner(before))
		}
		if before, again := p.parkedSet.rows[e.position]; again {
			return broken(nothingTwice, []fact{before.by, c.activated, f},
				"event %d of projection %s was parked by %s and by %s", e.position, p.name, owner(before.by), owner(f))
		}
		if before, again := p.parkedSet.discarded[e.position]; again {
			return broken(nothingTwice, []fact{before, c.activated, f}, "event %d of projection %s was parked again after it had been discarded", e.position, p.name)
		}
		if last := p.highest[e.aggregate]; e.position < last {
			before, _ := p.commitOf(last)
			return broken(inOrder, []fact{before, c.activated, f},
				"event %[3]d of aggregate %[2]s was parked after the commit of event %[4]d in projection %[1]s", p.name, e.aggregate, e.position, last)
		}
		row := parkedEvent{visible: visible{event: e}, by: f}
		if i, found := p.find(e.position); found {
			row.visible = p.unhandled[i]
			p.unhandled = slices.Delete(p.unhandled, i, i+1)
		}
		p.parkedSet.rows[e.position] = row
		of := append(p.parkedSet.of[e.aggregate], e.position)
		slices.Sort(of)
		p.parkedSet.of[e.aggregate] = of
	}
	return c.moves(p, f)
}

// parkedRetried checks that the event is parked and the first of its aggregate.
func (c *checker) parkedRetried(f fact) *violation {
	p := c.projection(f.projection)
	row, parked := p.parkedSet.rows[f.from]
	if !parked {
		return c.repeated(p, f)
	}
	if v := c.fenced(p, f); v != nil {
		return v
	}
	e := row.event
	if v := c.handledBy(p, f, []event{e}); v != nil {
		return v
	}
	if v := c.belongs(f, e); v != nil {
		return v
	}
	if first, _ := p.parkedSet.first(e.aggregate); first.position < e.position {
		return broken(inOrder, []fact{first.by, row.by, f}, "parked event %[3]d of aggregate %[2]s was handled before parked event %[4]d in projection %[1]s",
			p.name, e.aggregate, e.position, first.position)
	}
	if last := p.highest[e.aggregate]; e.position < last {
		before, _ := p.commitOf(last)
		return broken(inOrder, []fact{row.by, before, f}, "parked event %[3]d of aggregate %[2]s was handled after the commit of event %[4]d in projection %[1]s",
			p.name, e.aggregate, e.position, last)
	}
	p.parkedSet.remove(f.from)
	p.holds[e.position], p.highest[e.aggregate] = len(p.commits), e.position
	p.commits = append(p.commits, f)
	return nil
}

// repeated judges a retry or a discard of an event that is not parked. A request that comes
// late, or twice, changes nothing.
func (c *checker) repeated(p *checkedProjection, f fact) *violation {
	if p.transactional && f.kind == parkedRetried {
		before, _ := p.commitOf(f.from)
		return broken(nothingTwice, []fact{before, c.activated, f}, "%[3]s committed a retry of event %[1]d of projection %[2]s, which is not parked",
			f.from, p.name, owner(f))
	}
	return nil
}

// parkedDiscarded checks that an operator has asked for the discard.
func (c *checker) parkedDiscarded(f fact) *violation {
	p := c.projection(f.projection)
	row, parked := p.parkedSet.rows[f.from]
	if !parked {
		return c.repeated(p, f)
	}
	if v := c.fenced(p, f); v != nil {
		return v
	}
	if p.parkedSet.ever[f.from].text != "discard" {
		return broken(nothingLost, []fact{row.by, p.parkedSet.ever[f.from], f}, "parked event %d of projection %s was discarded without a request", f.from, p.name)
	}
	if v := c.handledBy(p, f, nil); v != nil {
		return v
	}
	p.parkedSet.remove(f.from)
	p.parkedSet.discarded[f.from] = f
	return nil
}

// waits judges a handler call with, or a commit of, an event that is parked or must wait
// behind a parked one. A worker that was frozen before the call is excused as everywhere.
func (c *checker) waits(p *checkedProjection, w *checkedWorker, f fact, e event) *violation {
	excused := func(other fact) bool {
		return f.kind == handlerBegins && other.worker != f.worker && c.excused(w, f, other.at)
	}
	if gone, discarded := p.parkedSet.discarded[e.position]; discarded && !excused(gone) {
		return broken(nothingTwice, []fact{gone, c.activated, f}, "%[3]s handled event %[1]d of projection %[2]s, which had been discarded", e.position, p.name, owner(f))
	}
	first, any := p.parkedSet.first(e.aggregate)
	switch {
	case !any || excused(first.by):
		return nil
	case first.position != e.position:
		return broken(inOrder, append(c.circumstances(w, f), first.by, c.activated, f),
			"%[3]s handled event %[4]d of aggregate %[2]s in projection %[1]s while event %[5]d was parked", p.name, e.aggregate, owner(f), e.position, first.position)
	case f.kind == handlerBegins && p.parkedSet.ever[e.position].text == "retry":
		return nil
	}
	return broken(nothingTwice, []fact{first.by, p.parkedSet.ever[e.position], c.activated, f},
		"%[3]s handled event %[1]d of projection %[2]s, which is parked, without a request to retry it", e.position, p.name, owner(f))
}

func (c *checker) parkRequested(f fact) {
	p := c.projection(f.projection)
	p.parkedSet.ever[f.from] = f
	if _, parked := p.parkedSet.rows[f.from]; parked {
		p.parkedSet.asked[f.from] = f
	}
}

// parkedLeft checks that the rows at the end are exactly the events that are parked.
func (c *checker) parkedLeft(f fact) *violation {
	p := c.projection(f.projection)
	left := map[int64]bool{}
	for _, e := range f.events {
		left[e.position] = true
		if _, parked := p.parkedSet.rows[e.position]; !parked {
			before, _ := p.commitOf(e.position)
			return broken(nothingTwice, []fact{before, f}, "the table of parked events still has event %d of projection %s, which is not parked", e.position, p.name)
		}
	}
	for _, position := range slices.Sorted(maps.Keys(p.parkedSet.rows)) {
		if !left[position] {
			return broken(nothingLost, []fact{p.parkedSet.rows[position].by, f}, "the row of parked event %d of projection %s is gone", position, p.name)
		}
	}
	return nil
}

// askedFor checks that the requests from before everything had settled are carried out.
func (c *checker) askedFor(p *checkedProjection, f fact) *violation {
	for _, position := range slices.Sorted(maps.Keys(p.parkedSet.asked)) {
		asked, row := p.parkedSet.asked[position], p.parkedSet.rows[position]
		if first, _ := p.parkedSet.first(row.aggregate); asked.step < c.settled.step && (asked.text == "discard" || first.position == position) {
			return broken(recovers, []fact{row.by, asked, c.settled, f}, "no worker carried out the request to %[3]s parked event %[1]d of projection %[2]s",
				position, p.name, asked.text)
		}
	}
	return nil
}
