package sim

import (
	"database/sql/driver"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A stepClock is moved by hand, and runs the timers that become due one after the other.
type stepClock struct {
	time   time.Time
	timers []*handTimer
}

func (c *stepClock) now() time.Time { return c.time }

func (c *stepClock) after(d time.Duration, f func()) (stop func()) {
	t := &handTimer{c.time.Add(d), f}
	c.timers = append(c.timers, t)
	return func() { t.f = func() {} }
}

func (c *stepClock) advance(d time.Duration) {
	end := c.time.Add(d)
	for {
		slices.SortStableFunc(c.timers, func(a, b *handTimer) int { return a.at.Compare(b.at) })
		if len(c.timers) == 0 || c.timers[0].at.After(end) {
			c.time = end
			return
		}
		t := c.timers[0]
		c.time, c.timers = t.at, c.timers[1:]
		t.f()
	}
}

// A memoryTest is a memory in which worker w1 of set "set" runs p and q alone under
// generation 1.
type memoryTest struct {
	*testing.T
	*stepClock
	database
	m *memory
}

func newMemoryTest(t *testing.T, r memoryRules) *memoryTest {
	t.Helper()
	c := &stepClock{time: epoch}
	m := newMemory(c, r)
	x := &memoryTest{t, c, m.as("set", testBounds), m}
	x.join("w1").is(nil)
	return x
}

// A reply is the result of a call, if it is done.
type reply struct {
	x      *memoryTest
	done   int
	err    error
	result store.Result
	found  protocol.Found
}

func (r *reply) end(err error) { r.done, r.err = r.done+1, err }

// is checks that the call is done, with this error or without one.
func (r *reply) is(want error) {
	r.x.Helper()
	if r.done != 1 || !errors.Is(r.err, want) {
		r.x.Fatalf("done %d times, %v, want %v", r.done, r.err, want)
	}
}

// waits checks that the call is not done.
func (r *reply) waits() {
	r.x.Helper()
	if r.done != 0 {
		r.x.Fatalf("done %d times, %v, and should wait", r.done, r.err)
	}
}

func (x *memoryTest) sync(c connection, hold bool, r protocol.Request, projections ...string) *reply {
	y := &reply{x: x}
	r.Lease = time.Minute
	c.sync(r, projections, nil, nil, hold, func(result store.Result, err error) { y.result = result; y.end(err) })
	return y
}

func (x *memoryTest) join(w protocol.WorkerID) *reply {
	return x.sync(x.connect(), false, protocol.Request{Worker: w, Join: true}, "p", "q")
}

func (x *memoryTest) beat(w protocol.WorkerID) *reply {
	return x.sync(x.connect(), false, protocol.Request{Worker: w, Heartbeat: true})
}

func (x *memoryTest) find(l store.Lane) *reply {
	y := &reply{x: x}
	x.connect().find(l, func(f protocol.Found, err error) { y.found = f; y.end(err) })
	return y
}

func (x *memoryTest) begin(c connection) *reply {
	y := &reply{x: x}
	c.begin(y.end)
	return y
}

func (x *memoryTest) write(c connection, l store.Lane, from, to int64) *reply {
	y := &reply{x: x}
	c.write(l, protocol.Checkpoint{Position: from}, protocol.Checkpoint{Position: to}, y.end)
	return y
}

func (x *memoryTest) commit(c connection) *reply {
	y := &reply{x: x}
	c.commit(y.end)
	return y
}

func (x *memoryTest) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// isAt checks the position of a checkpoint.
func (x *memoryTest) isAt(l store.Lane, want int64) {
	x.Helper()
	y := x.find(l)
	y.is(nil)
	if y.found.Checkpoint.Position != want {
		x.Errorf("checkpoint of %s: %+v, want position %d", l, y.found, want)
	}
}

// state checks the SQLSTATE of an error.
func (r *reply) state(want string) {
	r.x.Helper()
	if r.done != 1 || store.State(r.err) != want {
		r.x.Fatalf("done %d times, %v, want SQLSTATE %s", r.done, r.err, want)
	}
}

var p1, q1 = under(1, "p"), under(1, "q")

// Transactions that wait for a row get it in the order in which they came, and see what the
// one before has committed.
func TestMemoryLine(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	a, b, c, d := x.connect(), x.connect(), x.connect(), x.connect()
	x.write(a, p1, 0, 5).is(nil)
	refused, found, gone, last := x.write(b, p1, 0, 6), x.find(p1), x.write(c, p1, 0, 7), x.find(p1)
	x.write(d, p1, 5, 8).is(store.ErrSuperseded) // it does not see the 5, and has nothing to wait for
	x.isAt(q1, 0)
	c.close()
	x.advance(testBounds.Idle - time.Microsecond) // there is no bound on these waits
	refused.waits()

	x.commit(a).is(nil)
	refused.waits() // until the commit has returned
	x.advance(0)
	refused.is(store.ErrSuperseded)
	found.waits() // the refused one has kept the lock
	b.close()
	x.advance(0)
	for _, y := range []*reply{found, last} {
		y.is(nil)
		if y.found.Checkpoint.Position != 5 || !y.found.Exists {
			t.Errorf("found %+v, want position 5", y.found)
		}
	}
	x.advance(time.Hour)
	gone.waits() // it waits without end
	x.isAt(p1, 5)
	if n := len(x.m.transactions); n != 0 {
		t.Errorf("%d transactions are open; the bound on d's has passed", n)
	}
}

// A coordination that can't get a lock in time leaves nothing behind. The bound on idling
// ends the holder.
func TestMemoryBounds(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	a := x.connect()
	x.join("w2").is(nil)
	x.write(a, q1, 0, 5).is(nil)
	stopped := protocol.Request{Worker: "w1", Stopped: 1}
	first := x.sync(x.connect(), false, stopped)
	beat := x.beat("w1")
	x.advance(testBounds.Lock - time.Microsecond)
	first.waits()
	beat.waits() // for the first
	x.advance(time.Microsecond)
	first.state("55P03")
	if !store.LockTimeout(first.err) {
		t.Errorf("the store does not take %v for a lock that could not be had", first.err)
	}
	beat.is(nil)
	if v := beat.result.View; v.Generation != 2 || v.Holds != 1 {
		t.Errorf("after an activation that did not happen, w1 sees %+v", v)
	}

	second := x.sync(x.connect(), false, stopped)
	x.advance(testBounds.Idle - testBounds.Lock - time.Microsecond)
	second.waits()
	x.advance(time.Microsecond)
	second.is(nil)
	if v := second.result.View; v.Holds != 2 || v.Total != 2 {
		t.Errorf("after the activation w1 sees %+v", v)
	}
	x.commit(a).state("25P03")
	x.commit(a).is(driver.ErrBadConn)
	x.isAt(under(2, "q"), 0)

	handler, e := x.connect(), event{position: 1, aggregate: "a"}
	x.begin(handler).is(nil)
	for range 2 { // the time counts from the latest statement
		x.advance(testBounds.Handler - time.Microsecond)
		x.must(handler.effect("p", e))
	}
	x.advance(testBounds.Handler)
	if err := handler.effect("p", e); store.State(err) != "25P03" {
		t.Errorf("after the bound of a handler: %v", err)
	}
	if got := x.m.effects(); len(got) > 0 {
		t.Errorf("effects %v, want none", got)
	}
}

// A coordination that is held before its COMMIT has all of its locks, and is bounded.
func TestMemoryHold(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	c := x.connect()
	hold := func(w protocol.WorkerID, group string) {
		t.Helper()
		held := x.sync(c, true, protocol.Request{Worker: w, Join: true}, "p", "q")
		held.is(nil)
		if g := held.result.Group.String(); g != group {
			t.Errorf("the held group is %s, want %s", g, group)
		}
	}
	hold("w2", "generation 2 draining {w1:0/2* w2:1/2}")
	beat, look := x.beat("w1"), x.sync(x.connect(), false, protocol.Request{Worker: "w1"})
	stranger := x.beat("w2")
	stranger.is(nil)
	if v := stranger.result.View; v.Member {
		t.Errorf("w2 sees %+v before its join is committed", v)
	}
	x.advance(testBounds.Lock / 2)
	beat.waits()
	look.waits()
	x.commit(c).is(nil)
	x.advance(0)
	beat.is(nil)
	look.is(nil)
	// It shows its own row as of now, and the others as of the beginning of the statement.
	if v := beat.result.View; v.Generation != 2 || v.Total != 2 || !v.Now.Equal(x.now()) || !v.StepAt.IsZero() {
		t.Errorf("a heartbeat that has waited: %+v", v)
	}

	hold("w3", "generation 3 draining {w1:0/3* w2:1/3 w3:2/3}")
	x.advance(testBounds.Idle)
	x.commit(c).state("25P03")
	c = x.connect()
	hold("w4", "generation 3 draining {w1:0/3* w2:1/3 w4:2/3}")
	c.close()
	c = x.connect()
	hold("w5", "generation 3 draining {w1:0/3* w2:1/3 w5:2/3}")
	x.restart()
	x.commit(c).is(driver.ErrBadConn)
	c = x.connect()
	hold("w6", "generation 3 draining {w1:0/3* w2:1/3 w6:2/3}")
	x.commit(c).is(nil)
}

func TestMemoryDeadlock(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	x.join("w2").is(nil)
	x.sync(x.connect(), false, protocol.Request{Worker: "w1", Stopped: 1}).is(nil)
	p, q := under(2, "p"), under(2, "q")
	r := p
	r.Assignment.Partition = 1
	a, b, c := x.connect(), x.connect(), x.connect()
	x.write(a, p, 0, 1).is(nil)
	x.write(b, q, 0, 1).is(nil)
	x.write(c, r, 0, 1).is(nil)
	first, second := x.write(a, q, 0, 2), x.write(b, r, 0, 2)
	first.waits()
	second.waits()
	x.write(c, p, 0, 2).state("40P01")
	x.advance(0)
	second.is(nil) // c has released everything
	first.waits()
	x.commit(c).state("25P02")
	x.commit(b).is(nil)
	x.advance(0)
	first.is(store.ErrSuperseded)
}

// This tests shared locks and their queue.
func TestMemoryShare(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	var l lock
	got := make([]bool, 5)
	var all []*transaction
	for range got {
		all = append(all, x.connect().(*memoryConnection).enter())
	}
	for i, share := range []bool{true, true, false, true, true} {
		all[i].acquire(&l, share, func() { got[i] = true })
	}
	is := func(want ...bool) {
		t.Helper()
		x.advance(0)
		if !slices.Equal(got, want) {
			t.Fatalf("got the lock: %t, want %t", got, want)
		}
	}
	is(true, true, false, false, false) // no transaction overtakes the one that wants the lock alone
	all[0].end(true)
	is(true, true, false, false, false)
	all[1].end(true)
	is(true, true, true, false, false)
	all[2].end(true)
	is(true, true, true, true, true)

	alone, behind := x.connect().(*memoryConnection), x.connect().(*memoryConnection)
	alone.enter().acquire(&l, false, func() { t.Error("a lock that is shared was given to one alone") })
	var passed bool
	behind.enter().acquire(&l, true, func() { passed = true })
	alone.close()
	if x.advance(0); !passed {
		t.Error("the transaction behind one that has left still waits")
	}
}

// A set that activates while another set claims one of its projections waits, and then
// leaves that one alone.
func TestMemoryClaim(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	two := x.m.as("two", testBounds).connect()
	x.write(two, p1, 0, 1).is(store.ErrSuperseded) // the number alone is not enough
	two.close()
	a := x.connect()
	x.write(a, p1, 0, 5).is(nil)
	asked := false
	x.m.as("two", testBounds).connect().find(p1, func(f protocol.Found, err error) { asked = !f.Exists && err == nil })
	if !asked {
		t.Error("another set waits for the checkpoint")
	}
	x.commit(a).is(nil)
	x.sync(x.connect(), false, protocol.Request{Worker: "w1", Leave: true}).is(nil)

	two = x.m.as("two", testBounds).connect()
	x.sync(two, true, protocol.Request{Worker: "v1", Join: true}, "p").is(nil)
	one := x.sync(x.connect(), false, protocol.Request{Worker: "w2", Join: true}, "q")
	found := x.find(p1)
	x.advance(0)
	one.waits()
	found.waits()
	x.commit(two).is(nil)
	x.advance(0)
	one.is(nil)
	found.is(nil)
	if found.found.Exists {
		t.Errorf("the set that has lost p meanwhile finds %+v", found.found)
	}
	x.isAt(under(2, "q"), 0)
	if y := x.find(under(2, "p")); y.found.Exists {
		t.Errorf("the set that has lost p finds %+v", y.found)
	}
	var moved protocol.Found
	two.find(p1, func(f protocol.Found, _ error) { moved = f })
	if moved.Generation != 2 || moved.Checkpoint.Position != 5 {
		t.Errorf("the set that has claimed p finds %+v", moved)
	}
}

// A projection that is claimed twice before an activation stays out of reach of every
// generation.
func TestMemoryClaimTwice(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	x.sync(x.connect(), false, protocol.Request{Worker: "w1", Leave: true}).is(nil)
	for _, set := range []string{"two", "three"} {
		db := x.m.as(set, testBounds)
		x.sync(db.connect(), false, protocol.Request{Worker: "v1", Join: true}, set).is(nil)
		y := x.sync(db.connect(), false, protocol.Request{Worker: "v2", Join: true}, "p")
		y.is(nil)
		if g := y.result.Group; g.Phase != protocol.Draining {
			t.Fatalf("set %s: %s", set, g)
		}
		x.write(db.connect(), p1, 0, 1).is(store.ErrSuperseded)
		x.sync(db.connect(), false, protocol.Request{Worker: "v2", Leave: true}).is(nil)
	}
}

// Projections are claimed in the order of names, so claims can't deadlock. Of the workers
// that run one, the error names the one with the longest lease.
func TestMemoryClaimOrder(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	x.advance(time.Second)
	x.join("w2").is(nil)
	x.advance(time.Second)
	x.beat("w1").is(nil)
	two, three, four := x.m.as("two", testBounds), x.m.as("three", testBounds), x.m.as("four", testBounds)
	var taken *store.TakenError
	if y := x.sync(two.connect(), false, protocol.Request{Worker: "v", Join: true}, "p"); !errors.As(y.err, &taken) || taken.Worker != "w1" {
		t.Errorf("claim of p: %v, want that w1 runs it", y.err)
	}

	x.sync(x.connect(), false, protocol.Request{Worker: "w1", Leave: true}).is(nil)
	x.sync(x.connect(), false, protocol.Request{Worker: "w2", Leave: true}).is(nil)
	x.sync(two.connect(), true, protocol.Request{Worker: "v", Join: true}, "p").is(nil)
	x.sync(three.connect(), true, protocol.Request{Worker: "v", Join: true}, "q", "p").waits()
	x.sync(four.connect(), true, protocol.Request{Worker: "v", Join: true}, "q").is(nil)
}

// Sets insert the same projection at once.
//
//  1. one has inserted z and not committed; two wants a and z, and waits;
//  2. one commits, and at once three wants a and z: it locks a and is about to lock z;
//  3. two has seen that z is there. It has not locked it, so neither blocks the other.
func TestMemoryRegister(t *testing.T) {
	x := newMemoryTest(t, memoryRules{})
	claim := func(set string, hold bool, projections ...string) (connection, *reply) {
		c := x.m.as(set, testBounds).connect()
		return c, x.sync(c, hold, protocol.Request{Worker: "v", Join: true}, projections...)
	}
	var taken *store.TakenError
	for _, commit := range []bool{true, false} {
		c, one := claim("one", true, "z")
		one.is(nil)
		_, two := claim("two", false, "z")
		two.waits()
		if !commit {
			c.close()
			x.advance(0)
			two.is(nil)
			break
		}
		x.commit(c).is(nil)
		x.advance(0)
		if !errors.As(two.err, &taken) || taken.ReplicaSet != "one" {
			t.Fatalf("claim of what one has: %v", two.err)
		}
		x = newMemoryTest(t, memoryRules{})
	}

	x = newMemoryTest(t, memoryRules{})
	_, own := claim("three", false, "a")
	own.is(nil)
	c, one := claim("one", true, "z")
	one.is(nil)
	_, two := claim("two", false, "a", "z")
	two.waits()
	x.commit(c).is(nil)
	_, three := claim("three", false, "a", "z")
	x.advance(0)
	if !errors.As(three.err, &taken) || taken.Projection != "z" {
		t.Errorf("three: %v, want that one has z", three.err)
	}
	if !errors.As(two.err, &taken) || taken.Projection == "" {
		t.Errorf("two: %v, want that the projections are taken", two.err)
	}
}
