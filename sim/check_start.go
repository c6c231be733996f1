package sim

// starts checks that a projection starts once; that everything that it leaves out was
// final; and, for a start now, that it does not handle what was final before. (appended
// judges later events.)
func (c *checker) starts(f fact) *violation {
	p := c.projection(f.projection)
	switch before := p.started; {
	case !before.unset() && before.kind == projectionStarts:
		return broken(startsWhere, []fact{before, f}, "projection %s started above %d after it had started above %d", p.name, f.from, before.from)
	case len(p.commits) > 0:
		return broken(startsWhere, []fact{p.commits[0], f}, "projection %s started above %d after it had run", p.name, f.from)
	case f.text == startsNow && f.from < f.to:
		return broken(startsWhere, []fact{f}, "projection %s started now above %d, although everything up to %d was final before", p.name, f.from, f.to)
	}
	p.started, p.above = f, f.from
	c.moved(p, f.from, func() { c.setTo(p, f.from) })
	return nil
}

// hasStarted checks that no worker handles events from before the start of a projection, or
// before it has a start.
func (c *checker) hasStarted(p *checkedProjection, f fact) *violation {
	if !c.setup.starting {
		return nil
	}
	if p.started.unset() {
		return broken(startsWhere, []fact{c.activated, f}, "%s handled events of projection %s before the start of the projection was recorded", owner(f), p.name)
	}
	for _, e := range f.events {
		if e.position <= p.above {
			return broken(startsWhere, []fact{p.started, f}, "%s handled event %d of projection %s, which starts above %d", owner(f), e.position, p.name, p.above)
		}
	}
	return nil
}
