package sim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// An effect is what a transactional projection wrote for an event.
type effect struct {
	projection string
	position   int64
}

// effects returns what is committed, in the order of the commits.
func (m *memory) effects() []effect { return m.written }

// checkpoint returns the row of a lane's checkpoint if the transaction sees it.
func (m *memory) checkpoint(t *transaction, l store.Lane) *row[checkpointRow] {
	rows := m.projection(l.Projection).checkpoints
	if k := l.Assignment.Partition; k >= 0 && k < len(rows) && rows[k].as(t) != nil {
		return rows[k]
	}
	return nil
}

// load is Store.Load.
func (c *memoryConnection) load(l store.Lane, done func(protocol.Found, error)) {
	err := c.free("load")
	var found protocol.Found
	if r := c.checkpoint(nil, l); err == nil && r != nil {
		found = c.found(l, r)
		found.NoneParked = found.Exists && len(c.parkedRows(l)) == 0 && !c.ordered(l.Projection)
		found.Follows = found.Exists && c.projection(l.Projection).kinOf(nil).follows != ""
	}
	done(found, err)
}

// shown returns the checkpoints from which a worker may start, as a look shows them.
func (c *memoryConnection) shown(set *replicaSet, v protocol.View) map[store.Lane]protocol.Found {
	if !v.May() {
		return nil
	}
	shown := map[store.Lane]protocol.Found{}
	for _, p := range c.memory.projections {
		for _, k := range v.Partitions {
			l := store.Lane{Projection: p.name, Assignment: protocol.Assignment{Generation: v.Generation, Partition: k, Total: v.Total}}
			r := c.checkpoint(nil, l)
			if r == nil || r.committed == nil || r.committed.set != set.name || r.committed.generation != v.Generation || r.committed.total != v.Total {
				continue
			}
			found := c.found(l, r)
			found.NoneParked = len(c.parkedRows(l)) == 0 && !c.ordered(l.Projection)
			found.Follows = p.kinOf(nil).follows != ""
			shown[l] = found
		}
	}
	return shown
}

// found returns what is committed of a checkpoint. Marks of another generation belong to
// another layout.
func (c *memoryConnection) found(l store.Lane, r *row[checkpointRow]) (found protocol.Found) {
	if v := r.committed; v != nil && v.set == c.set {
		found = protocol.Found{Generation: v.generation, Checkpoint: v.Checkpoint, Exists: true}
		if v.generation != l.Assignment.Generation {
			found.Checkpoint.Ahead = nil
		}
	}
	return found
}

// find is Store.Find, a transaction of its own.
func (c *memoryConnection) find(l store.Lane, done func(protocol.Found, error)) {
	if err := c.free("find"); err != nil {
		done(protocol.Found{}, err)
		return
	}
	r := c.checkpoint(nil, l)
	if r == nil || r.committed.set != c.set {
		done(protocol.Found{}, nil)
		return
	}
	if c.rules.hastyFind {
		done(c.found(l, r), nil)
		return
	}
	t := c.enter()
	t.refused = func(err error) {
		t.end(false)
		done(protocol.Found{}, err)
	}
	t.acquire(&r.lock, false, func() {
		found := c.found(l, r)
		t.end(true)
		done(found, nil)
	})
}

func (c *memoryConnection) effect(projection string, e event) error {
	if err := c.running(); err != nil {
		return err
	}
	c.open.effects = append(c.open.effects, effect{projection, e.position})
	c.open.idle()
	return nil
}

func (c *memoryConnection) spoil() {
	if c.running() == nil {
		c.open.fail()
	}
}

func (c *memoryConnection) violate() {
	if c.running() == nil {
		c.open.violates = true
		c.open.idle()
	}
}

// chain also ends what was bound to the transaction: its mark, and the bound on idling.
func (c *memoryConnection) chain() {
	if c.alive() != nil || c.open == nil {
		return
	}
	c.open.end(false)
	c.enter()
}

// write is Store.Commit, in the open transaction or in one of Store.BeginHandler.
//
// It does not wait for a row that is not the right one in the statement's snapshot,
// although a transaction that is about to commit may make it that.
func (c *memoryConnection) write(l store.Lane, from, to protocol.Checkpoint, done func(error)) {
	opens := c.open == nil
	if err := c.within(); err != nil {
		done(err)
		return
	}
	t := c.open
	t.stop()
	t.begun, t.idleMax = t.begun || opens, c.bounds.Idle
	t.refused = func(err error) {
		t.fail()
		done(err)
	}
	if !t.begun && !c.rules.unmarked {
		t.idle()
		done(store.ErrTransactionEnded)
		return
	}
	c.move(t, l, from, to, func(_, moved bool) {
		t.idle()
		if !moved {
			done(store.ErrSuperseded)
			return
		}
		done(nil)
	})
}

// save is Store.Save.
func (c *memoryConnection) save(l store.Lane, from, to protocol.Checkpoint, done func(error)) {
	if err := c.free("save"); err != nil {
		done(err)
		return
	}
	t := c.enter()
	t.refused = func(err error) {
		t.end(false)
		done(err)
	}
	c.move(t, l, from, to, func(_, moved bool) {
		t.end(true)
		if !moved {
			done(store.ErrSuperseded)
			return
		}
		done(nil)
	})
}

// move is the UPDATE behind the fence. done hears whether it got the row's lock in the end,
// and whether the row was still the right one then.
func (c *memoryConnection) move(t *transaction, l store.Lane, from, to protocol.Checkpoint, done func(locked, moved bool)) {
	r := c.checkpoint(t, l)
	marks := len(to.Ahead) > 0 && !slices.Equal(from.Ahead, to.Ahead) // marks change
	fits := func() bool {
		v := r.as(t)
		return v != nil &&
			(c.rules.unfenced || v.set == c.set && v.generation == l.Assignment.Generation) &&
			(c.rules.anyPosition || v.Position == from.Position && (!marks || slices.Equal(v.Ahead, from.Ahead)))
	}
	if r == nil || !fits() {
		done(false, false)
		return
	}
	t.acquire(&r.lock, false, func() {
		if !fits() {
			done(true, false) // and keeps the lock
			return
		}
		v := *r.as(t)
		v.Position = to.Position
		if len(to.Ahead) == 0 || marks {
			v.Ahead = to.Ahead
		}
		r.put(t, &v)
		done(true, true)
	})
}

func (c *memoryConnection) page(at eventtable.At, s scope, after, through int64, limit int) ([]event, error) {
	if err := c.at(at, "page"); err != nil {
		return nil, err
	}
	above := c.above(after)
	if s == "" {
		end := min(limit, len(above))
		return above[:end:end], nil
	}
	var page []event
	for _, e := range above {
		if len(page) == limit || e.position > through {
			break
		}
		if s.includes(e) {
			page = append(page, e)
		}
	}
	return page, nil
}

func (c *memoryConnection) keys(at eventtable.At, after int64, limit int) ([]protocol.Key, error) {
	if err := c.at(at, "keys"); err != nil {
		return nil, err
	}
	var keys []protocol.Key
	for _, e := range c.above(after) {
		if len(keys) == limit {
			break
		}
		keys = append(keys, protocol.Key{Position: e.position, Slot: e.slot})
	}
	return keys, nil
}

func (c *memoryConnection) rows(at eventtable.At, positions []int64) ([]event, error) {
	if err := c.at(at, "rows"); err != nil {
		return nil, err
	}
	var found []event
	for _, p := range positions {
		if i, there := slices.BinarySearchFunc(c.events, p, byPosition); there {
			found = append(found, c.events[i])
		}
	}
	return found, nil
}

// above returns the events that are visible above a position.
func (m *memory) above(after int64) []event {
	i, _ := slices.BinarySearchFunc(m.events, after+1, byPosition)
	return m.events[i:]
}

func (c *memoryConnection) ahead(at eventtable.At, after int64) (last, missing int64, err error) {
	if err := c.at(at, "ahead"); err != nil {
		return 0, 0, err
	}
	last = after
	above := c.above(after)
	for _, e := range above[:min(eventtable.AheadMax, len(above))] {
		if missing == 0 && e.position > last+1 {
			missing = last + 1
		}
		last = e.position
	}
	return last, missing, nil
}

func byPosition(e event, position int64) int { return cmp.Compare(e.position, position) }

func (c *memoryConnection) high(at eventtable.At) (int64, error) {
	if err := c.at(at, "high"); err != nil {
		return 0, err
	}
	return c.highest(), nil
}

func (m *memory) highest() int64 {
	if n := len(m.events); n > 0 {
		return m.events[n-1].position
	}
	return 0
}

// errElsewhere ends a statement that does not run in its epoch.
var errElsewhere = errors.New("elsewhere")

// at is free for statements that must run in an epoch.
func (c *memoryConnection) at(at eventtable.At, call string) error {
	err := c.read(call)
	if c.standby && c.rules.standbyUnseen {
		return err
	}
	if err == nil && c.standby && at != (eventtable.At{}) {
		return errElsewhere
	}
	if err == nil && at != (eventtable.At{}) && (at.Epoch != c.epoch() || at.Reaches > c.highest()) {
		err = errElsewhere
	}
	return err
}

// read is free for statements that a standby runs too.
func (c *memoryConnection) read(call string) error {
	err := c.free(call)
	if err == errReadOnly {
		err = nil
	}
	return err
}

// epoch differs after each restart. (The server behind a postgres is never restarted.)
func (c *memoryConnection) epoch() protocol.Epoch {
	if c.rules.noWait {
		return "run"
	}
	return protocol.Epoch(fmt.Sprint("run ", c.restarts))
}

func (c *memoryConnection) ask() (protocol.ReadAnswer, error) {
	if err := c.read("ask"); err != nil {
		return protocol.ReadAnswer{}, err
	}
	a := protocol.ReadAnswer{Epoch: c.epoch(), High: c.highest(), Holders: c.holders()}
	switch {
	case c.standby && !c.rules.standbyUnseen:
		a.Broken = "the server is a standby"
	case c.standby:
		a.Holders = nil // a standby does not know them
	case c.cached:
		a.Broken = "the sequence caches"
	}
	return a, nil
}

// holders returns the transactions that have taken positions and so hold the sequence's
// lock.
func (c *memoryConnection) holders() []protocol.Holder {
	var out []protocol.Holder
	for _, t := range c.transactions {
		if len(t.events) == 0 && !t.undone || t.first && c.rules.tableAlone {
			continue
		}
		h := protocol.Holder{Transaction: fmt.Sprintf("%d/%d", t.backend, t.local)}
		if t.conn != nil {
			h.Backend = t.conn.process
		}
		out = append(out, h)
	}
	return out
}

// insert takes the next position for good, whatever becomes of the event.
func (c *memoryConnection) insert(aggregate string) (int64, error) {
	if err := c.within(); err != nil {
		return 0, err
	}
	position := c.number()
	c.open.events = append(c.open.events, event{position: position, aggregate: aggregate, slot: protocol.SlotOf(aggregate)})
	c.open.idle()
	return position, nil
}

// number returns the next number of the sequence, or one that a session has cached.
func (m *memory) number() int64 {
	switch {
	case m.cached && len(m.kept) > 2:
		n := m.kept[0]
		m.kept = m.kept[1:]
		return n
	case m.cached:
		m.last += 2
		m.kept = append(m.kept, m.last)
		return m.last - 1
	}
	m.last++
	return m.last
}

// cache makes writers' sessions cache numbers, or ends that.
func (m *memory) cache(on bool) { m.cached, m.kept = on, nil }

// first makes the transaction insert its events only at its end.
func (c *memoryConnection) first() {
	if c.running() == nil {
		c.open.first = true
	}
}

// undo goes back to a savepoint from before the transaction took a position.
func (c *memoryConnection) undo() {
	if c.running() == nil {
		c.open.events, c.open.undone = nil, true
	}
}

// prepare takes the transaction off its connection. It keeps its name until the server
// restarts.
func (c *memoryConnection) prepare() (finish func(commit bool) error, err error) {
	if err := c.running(); err != nil {
		return nil, err
	}
	t := c.open
	t.stop()
	c.xids++
	c.open, t.conn, t.xid = nil, nil, c.xids
	return func(commit bool) error {
		if t.ended {
			return errUnprepared
		}
		t.end(commit)
		return nil
	}, nil
}

// publish makes events visible. The pages that readers have got do not change.
func (m *memory) publish(events []event) {
	if len(events) == 0 {
		return
	}
	slices.SortFunc(events, func(a, b event) int { return byPosition(a, b.position) }) // a session may have cached a number
	i, _ := slices.BinarySearchFunc(m.events, events[0].position, byPosition)
	if i == len(m.events) {
		m.events = append(m.events, events...)
		return
	}
	m.events = append(slices.Clone(m.events), events...)
	slices.SortFunc(m.events[i:], func(a, b event) int { return byPosition(a, b.position) })
}
