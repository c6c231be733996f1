package sim

import (
	"context"
	"database/sql"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

// The model passes the suite of the store, whether its calls wait or are refused.
func TestMemoryIsAStore(t *testing.T) {
	for name, rules := range map[string]memoryRules{"waiting": {}, "refusing": {noWait: true}} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.World { return newMemoryWorld(rules) })
		})
	}
}

// A memoryWorld lets goroutines use a memory. Its clock is moved by hand, its timers run in
// real time, and its calls block.
type memoryWorld struct {
	mu      sync.Mutex // of all that follows
	m       *memory
	time    time.Time
	pending int // calls that are not done
}

func newMemoryWorld(r memoryRules) *memoryWorld {
	w := &memoryWorld{time: epoch}
	w.m = newMemory(w, r)
	w.m.rebuilds = storetest.Rebuilds
	return w
}

func (w *memoryWorld) now() time.Time { return w.time }

func (w *memoryWorld) after(d time.Duration, f func()) (stop func()) {
	stopped := false
	timer := time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !stopped {
			f()
		}
	})
	return func() {
		stopped = true
		timer.Stop()
	}
}

// call makes a call and waits until it is done. A test that repeats a refused call must not
// block the others.
func (w *memoryWorld) call(start func(done func())) {
	runtime.Gosched()
	ended := make(chan struct{})
	w.mu.Lock()
	w.pending++
	start(func() {
		w.pending--
		close(ended)
	})
	w.mu.Unlock()
	<-ended
}

func (w *memoryWorld) Open(set string, lease time.Duration) storetest.Store {
	return memoryStore{w, w.m.as(set, store.BoundsOf(lease))}
}

func (w *memoryWorld) Advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.time = w.time.Add(d)
}

func (w *memoryWorld) Waiting() int {
	runtime.Gosched()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pending
}

func (w *memoryWorld) Delete(projection string, partitions ...int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range partitions {
		w.m.projection(projection).checkpoints[k].committed = nil
	}
}

type memoryStore struct {
	w  *memoryWorld
	db database
}

func (s memoryStore) Sync(_ context.Context, r protocol.Request, projections []string) (result store.Result, err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.sync(r, projections, nil, nil, false, func(r store.Result, e error) {
			result, err = r, e
			c.close()
			done()
		})
	})
	return result, err
}

func (s memoryStore) Load(_ context.Context, l store.Lane) (found protocol.Found, err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.load(l, func(f protocol.Found, e error) {
			found, err = f, e
			c.close()
			done()
		})
	})
	return found, err
}

func (s memoryStore) Find(_ context.Context, l store.Lane) (found protocol.Found, err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.find(l, func(f protocol.Found, e error) {
			found, err = f, e
			c.close()
			done()
		})
	})
	return found, err
}

func (s memoryStore) Write(_ context.Context, l store.Lane, from, to protocol.Checkpoint) (_ storetest.Tx, err error) {
	tx := memoryTx{w: s.w}
	s.w.call(func(done func()) {
		tx.conn = s.db.connect()
		tx.conn.write(l, from, to, func(e error) {
			err = e
			if err != nil {
				tx.conn.close()
			}
			done()
		})
	})
	return tx, err
}

func (s memoryStore) Save(_ context.Context, l store.Lane, from, to protocol.Checkpoint) (err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.save(l, from, to, func(e error) {
			err = e
			c.close()
			done()
		})
	})
	return err
}

func (s memoryStore) Parked(_ context.Context, l store.Lane) (rows []protocol.Parked, err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.parked(l, func(r []protocol.Parked, e error) {
			rows, err = r, e
			c.close()
			done()
		})
	})
	return rows, err
}

// statement makes a call that is a transaction of its own.
func (s memoryStore) statement(call func(c connection, done func(error))) (err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		call(c, func(e error) {
			err = e
			c.close()
			done()
		})
	})
	return err
}

func (s memoryStore) Park(_ context.Context, l store.Lane, from, to protocol.Checkpoint, parked []protocol.Parked, _ string) error {
	return s.statement(func(c connection, done func(error)) { c.park(l, from, to, parked, done) })
}

func (s memoryStore) Take(_ context.Context, l store.Lane, position int64) (_ storetest.Tx, err error) {
	tx := memoryTx{w: s.w}
	s.w.call(func(done func()) {
		tx.conn = s.db.connect()
		tx.conn.unpark(l, position, func(e error) {
			err = e
			if err != nil {
				tx.conn.close()
			}
			done()
		})
	})
	return tx, err
}

func (s memoryStore) Drop(_ context.Context, l store.Lane, position int64) error {
	return s.statement(func(c connection, done func(error)) { c.forget(l, position, done) })
}

func (s memoryStore) Note(_ context.Context, l store.Lane, position int64, attempts int, _ string) error {
	return s.statement(func(c connection, done func(error)) { c.note(l, position, attempts, done) })
}

func (s memoryStore) Request(_ context.Context, projection string, position int64, r protocol.ParkRequest) (n int, err error) {
	err = s.statement(func(c connection, done func(error)) {
		c.request(projection, position, r, func(rows int, err error) {
			n = rows
			done(err)
		})
	})
	return n, err
}

func (s memoryStore) OrderPark(_ context.Context, projection string, position int64, _ string) (number int64, err error) {
	err = s.statement(func(c connection, done func(error)) {
		c.orderPark(projection, position, func(n int64, err error) {
			number = n
			done(err)
		})
	})
	return number, err
}

func (s memoryStore) Outcome(_ context.Context, number int64) (outcome string, err error) {
	err = s.statement(func(c connection, done func(error)) {
		var err error
		outcome, err = c.outcome(number)
		done(err)
	})
	return outcome, err
}

func (s memoryStore) Locate(_ context.Context, l store.Lane, number int64, slot int) error {
	return s.statement(func(c connection, done func(error)) { c.locate(l, number, slot, done) })
}

func (s memoryStore) Lapse(_ context.Context, l store.Lane, number int64, why string) error {
	return s.statement(func(c connection, done func(error)) { c.lapse(l, number, why, done) })
}

func (s memoryStore) Followed(_ context.Context, projection string) (f protocol.Followed, err error) {
	err = s.statement(func(c connection, done func(error)) {
		c.followed(projection, func(followed protocol.Followed, err error) {
			f = followed
			done(err)
		})
	})
	return f, err
}

func (s memoryStore) Promote(_ context.Context, projection, live, _ string) (parked int, err error) {
	err = s.statement(func(c connection, done func(error)) {
		c.promote(projection, live, false, func(n int, err error) {
			parked = n
			done(err)
		})
	})
	return parked, err
}

func (s memoryStore) Retire(_ context.Context, projection string) error {
	return s.statement(func(c connection, done func(error)) { c.retire(projection, done) })
}

type memoryTx struct {
	w    *memoryWorld
	conn connection
}

func (tx memoryTx) Commit() (err error) {
	tx.w.call(func(done func()) {
		tx.conn.commit(func(e error) {
			err = e
			tx.conn.close()
			done()
		})
	})
	return err
}

func (tx memoryTx) Rollback() error {
	tx.w.call(func(done func()) {
		tx.conn.close()
		done()
	})
	return nil
}

func TestMemoryEvents(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	reader, a, b := x.connect(), x.connect(), x.connect()
	insert := func(c connection, want int64) {
		t.Helper()
		if position, err := c.insert("a"); position != want || err != nil {
			t.Fatalf("position %d, %v, want %d", position, err, want)
		}
	}
	positions := func(page []event) (out []int64) {
		for _, e := range page {
			out = append(out, e.position)
		}
		return out
	}
	reads := func(want ...int64) []event {
		t.Helper()
		page, err := reader.page(eventtable.At{}, "", 0, 0, 10)
		if got := positions(page); !slices.Equal(got, want) || err != nil {
			t.Errorf("page %v, %v, want %v", got, err, want)
		}
		return page
	}
	holder := func() protocol.Holder {
		t.Helper()
		a, err := reader.ask()
		list := a.Holders
		if len(list) != 1 || err != nil {
			t.Fatalf("holders %v, %v, want one", list, err)
		}
		return list[0]
	}
	for position := range int64(4) {
		insert(b, 1+position)
		x.commit(b).is(nil)
	}
	insert(a, 5)
	insert(b, 6)
	insert(a, 7)
	x.commit(b).is(nil)
	early := reads(1, 2, 3, 4, 6)
	running := holder()

	finish, err := a.prepare()
	x.must(err)
	if prepared := holder(); prepared.Transaction != running.Transaction || prepared.Backend != 0 || running.Backend == 0 {
		t.Errorf("the holder was %+v, and is prepared %+v", running, prepared)
	}
	x.commit(a).is(sql.ErrTxDone)
	insert(a, 8)
	if a, _ := reader.ask(); len(a.Holders) != 2 || a.Holders[0].Transaction == a.Holders[1].Transaction {
		t.Errorf("holders %+v, want two", a.Holders)
	}
	a.close()
	x.restart()
	reader, b = x.connect(), x.connect()
	if h := holder(); h.Transaction != "-1/1" || h.Backend != 0 {
		t.Errorf("after the restart the holder is %+v", h)
	}
	x.must(finish(true))
	if err := finish(true); err == nil {
		t.Error("a prepared transaction was finished twice")
	}
	reads(1, 2, 3, 4, 5, 6, 7)
	if got := positions(early); !slices.Equal(got, []int64{1, 2, 3, 4, 6}) {
		t.Errorf("a page that was read earlier has changed to %v", got)
	}
	insert(b, 9)
	if h := holder(); h.Transaction != "2/1" {
		t.Errorf("the second backend after the restart begins with %+v", h)
	}
	finish, err = b.prepare()
	x.must(err)
	x.must(finish(false))
	reads(1, 2, 3, 4, 5, 6, 7)
}

// Each rule changes what it names and nothing else.
func TestMemoryRules(t *testing.T) {
	write := func(x *memoryTest, set string, generation, from int64) *reply {
		return x.write(x.m.as(set, testBounds).connect(), under(generation, "p"), from, 9)
	}
	x := newMemoryTest(t, memoryRules{unfenced: true})
	write(x, "set", 7, 1).is(store.ErrSuperseded)
	write(x, "other", 7, 0).is(nil)

	x = newMemoryTest(t, memoryRules{anyPosition: true})
	write(x, "set", 7, 1).is(store.ErrSuperseded)
	write(x, "other", 1, 1).is(store.ErrSuperseded)
	write(x, "set", 1, 1).is(nil)

	x = newMemoryTest(t, memoryRules{noIdleBound: true})
	write(x, "set", 1, 0).is(nil)
	found := x.find(p1)
	x.advance(time.Hour)
	found.waits()

	x = newMemoryTest(t, memoryRules{noWait: true})
	write(x, "set", 1, 0).is(nil)
	x.find(p1).state("55P03")

	x = newMemoryTest(t, memoryRules{handoff: func([]protocol.Checkpoint, int) []protocol.Checkpoint {
		return []protocol.Checkpoint{{Position: 77}}
	}})
	x.isAt(p1, 77)
	x = newMemoryTest(t, memoryRules{step: func(g protocol.Group, now time.Time, w protocol.Watch) (protocol.Group, protocol.Decision) {
		g, d := protocol.Step(g, now, w)
		g.Generation += 10
		return g, d
	}})
	x.isAt(under(11, "p"), 0)
}
