package sim

import (
	"maps"
	"slices"
)

// A checkedParked is what the facts say of the events that a projection has parked.
type checkedParked struct {
	rows      map[int64]parkedEvent
	of        map[string][]int64 // of an aggregate, ascending
	asked     map[int64]fact     // the latest request
	ever      map[int64]fact     // likewise, also those that are done
	discarded map[int64]fact
	ordered   map[int64]fact // orders to park that wait
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

// eventsParked: like a commit it is of the newest generation, and the checkpoint
// passes nothing but what it parks. None of that is handled (S3) or parked
// already, and nothing later of its aggregate is handled (S4).
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
				"event %d of projection %s is parked by %s, and %s has committed it", e.position, p.name, owner(f), owner(before))
		}
		if before, again := p.parkedSet.rows[e.position]; again {
			return broken(nothingTwice, []fact{before.by, c.activated, f},
				"event %d of projection %s is parked twice: by %s and by %s", e.position, p.name, owner(before.by), owner(f))
		}
		if before, again := p.parkedSet.discarded[e.position]; again {
			return broken(nothingTwice, []fact{before, c.activated, f}, "event %d of projection %s is parked again, and was discarded", e.position, p.name)
		}
		if last := p.highest[e.aggregate]; e.position < last {
			before, _ := p.commitOf(last)
			return broken(inOrder, []fact{before, c.activated, f},
				"projection %s, aggregate %s: event %d is parked after event %d was committed", p.name, e.aggregate, e.position, last)
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

// parkedRetried: an event that is parked, the first of its aggregate, is handled.
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
		return broken(inOrder, []fact{first.by, row.by, f}, "projection %s, aggregate %s: parked event %d is handled before event %d, which is parked as well",
			p.name, e.aggregate, e.position, first.position)
	}
	if last := p.highest[e.aggregate]; e.position < last {
		before, _ := p.commitOf(last)
		return broken(inOrder, []fact{row.by, before, f}, "projection %s, aggregate %s: parked event %d is handled after event %d was committed",
			p.name, e.aggregate, e.position, last)
	}
	p.parkedSet.remove(f.from)
	p.holds[e.position], p.highest[e.aggregate] = len(p.commits), e.position
	p.commits = append(p.commits, f)
	return nil
}

// repeated judges a row that is taken though there is none. A request that comes
// late, or a second time, changes nothing.
func (c *checker) repeated(p *checkedProjection, f fact) *violation {
	if p.transactional && f.kind == parkedRetried {
		before, _ := p.commitOf(f.from)
		return broken(nothingTwice, []fact{before, c.activated, f}, "parked event %d of projection %s is committed by %s, and is not parked",
			f.from, p.name, owner(f))
	}
	return nil
}

// parkedDiscarded: somebody has asked for that.
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
		return broken(nothingLost, []fact{row.by, p.parkedSet.ever[f.from], f}, "parked event %d of projection %s is discarded, and nobody has asked for that", f.from, p.name)
	}
	if v := c.handledBy(p, f, nil); v != nil {
		return v
	}
	p.parkedSet.remove(f.from)
	p.parkedSet.discarded[f.from] = f
	return nil
}

// waits judges a handler that is called with an event, or a commit of one, that
// is parked or waits behind one that is. Who was frozen before it called is excused
// as everywhere.
func (c *checker) waits(p *checkedProjection, w *checkedWorker, f fact, e event) *violation {
	excused := func(other fact) bool {
		return f.kind == handlerBegins && other.worker != f.worker && c.excused(w, f, other.at)
	}
	if gone, discarded := p.parkedSet.discarded[e.position]; discarded && !excused(gone) {
		return broken(nothingTwice, []fact{gone, c.activated, f}, "event %d of projection %s is handled by %s, and was discarded", e.position, p.name, owner(f))
	}
	first, any := p.parkedSet.first(e.aggregate)
	switch {
	case !any || excused(first.by):
		return nil
	case first.position != e.position:
		return broken(inOrder, append(c.circumstances(w, f), first.by, c.activated, f),
			"projection %s, aggregate %s: %s handles event %d, and event %d is parked", p.name, e.aggregate, owner(f), e.position, first.position)
	case f.kind == handlerBegins && p.parkedSet.ever[e.position].text == "retry":
		return nil
	}
	return broken(nothingTwice, []fact{first.by, p.parkedSet.ever[e.position], c.activated, f},
		"event %d of projection %s is handled by %s as if it were not parked", e.position, p.name, owner(f))
}

func (c *checker) parkRequested(f fact) {
	p := c.projection(f.projection)
	p.parkedSet.ever[f.from] = f
	if _, parked := p.parkedSet.rows[f.from]; parked {
		p.parkedSet.asked[f.from] = f
	}
}

// parkedLeft: what is parked in the end is what was parked and not taken.
func (c *checker) parkedLeft(f fact) *violation {
	p := c.projection(f.projection)
	left := map[int64]bool{}
	for _, e := range f.events {
		left[e.position] = true
		if _, parked := p.parkedSet.rows[e.position]; !parked {
			before, _ := p.commitOf(e.position)
			return broken(nothingTwice, []fact{before, f}, "event %d of projection %s is still among the parked ones", e.position, p.name)
		}
	}
	for _, position := range slices.Sorted(maps.Keys(p.parkedSet.rows)) {
		if !left[position] {
			return broken(nothingLost, []fact{p.parkedSet.rows[position].by, f}, "event %d of projection %s was parked, and is no longer there", position, p.name)
		}
	}
	return nil
}

// askedFor: what was asked for before everything had settled is done.
func (c *checker) askedFor(p *checkedProjection, f fact) *violation {
	for _, position := range slices.Sorted(maps.Keys(p.parkedSet.asked)) {
		asked, row := p.parkedSet.asked[position], p.parkedSet.rows[position]
		if first, _ := p.parkedSet.first(row.aggregate); asked.step < c.settled.step && (asked.text == "discard" || first.position == position) {
			return broken(recovers, []fact{row.by, asked, c.settled, f}, "event %d of projection %s is parked, and nothing has come of the request to %s it",
				position, p.name, asked.text)
		}
	}
	return nil
}
