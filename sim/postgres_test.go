package sim

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A handClock is a clock that is moved by hand.
type handClock struct {
	time   time.Time
	timers []*handTimer
}

type handTimer struct {
	at time.Time
	f  func()
}

func (c *handClock) now() time.Time { return c.time }

func (c *handClock) after(d time.Duration, f func()) (stop func()) {
	t := &handTimer{c.time.Add(d), f}
	c.timers = append(c.timers, t)
	return func() { t.f = func() {} }
}

func (c *handClock) advance(d time.Duration) {
	c.time = c.time.Add(d)
	for _, t := range slices.Clone(c.timers) {
		if !t.at.After(c.time) {
			t.f()
		}
	}
	c.timers = slices.DeleteFunc(c.timers, func(t *handTimer) bool { return !t.at.After(c.time) })
}

var testBounds = store.Bounds{Idle: 1500 * time.Millisecond, Lock: time.Second, Handler: 30 * time.Second}

// A postgresTest is a postgres in which worker w1 runs projections p and q alone, under
// generation 1.
type postgresTest struct {
	*testing.T
	*postgres
	clock *handClock
	url   string
	outer *sql.DB // outside the schema
}

func newPostgresTest(t *testing.T) *postgresTest {
	t.Helper()
	outer, url := pgtest.Database(t)
	c := &handClock{time: time.Date(2001, 2, 3, 4, 5, 6, 789_012_000, time.UTC)}
	db, err := newPostgres(t.Context(), url, c, "set", testBounds)
	if err != nil {
		t.Fatal(err)
	}
	x := &postgresTest{t, db, c, url, outer}
	t.Cleanup(func() {
		if err := db.close(); err != nil {
			t.Error(err)
		}
	})
	result, err := x.ask(protocol.Request{Worker: "w1", Lease: time.Minute, Join: true})
	if err != nil || result.View.Generation != 1 || result.View.Holds != 1 {
		t.Fatalf("join: %+v, %v", result.View, err)
	}
	return x
}

// done returns the done of a call, and a function that returns how the call ended. A call
// must be done when it returns.
func (x *postgresTest) done() (done func(error), ended func() error) {
	x.Helper()
	called := 0
	var err error
	return func(e error) { called, err = called+1, e }, func() error {
		x.Helper()
		if called != 1 {
			x.Fatalf("done was called %d times by the time that the call returned", called)
		}
		return err
	}
}

func (x *postgresTest) ask(r protocol.Request) (result store.Result, err error) {
	x.Helper()
	done, ended := x.done()
	x.connect().sync(r, []string{"p", "q"}, nil, nil, false, func(r store.Result, err error) { result = r; done(err) })
	return result, ended()
}

func (x *postgresTest) find(l store.Lane) (found protocol.Found, err error) {
	x.Helper()
	done, ended := x.done()
	x.connect().find(l, func(f protocol.Found, err error) { found = f; done(err) })
	return found, ended()
}

func (x *postgresTest) begin(c connection) error {
	x.Helper()
	done, ended := x.done()
	c.begin(done)
	return ended()
}

func (x *postgresTest) write(c connection, l store.Lane, from, to int64) error {
	x.Helper()
	done, ended := x.done()
	c.write(l, protocol.Checkpoint{Position: from}, protocol.Checkpoint{Position: to}, done)
	return ended()
}

func (x *postgresTest) commit(c connection) error {
	x.Helper()
	done, ended := x.done()
	c.commit(done)
	return ended()
}

func (x *postgresTest) insert(c connection, want int64) {
	x.Helper()
	if position, err := c.insert("a"); position != want || err != nil {
		x.Fatalf("insert: position %d, %v, want %d", position, err, want)
	}
}

// must fails the test on an error that only a bug can cause.
func (x *postgresTest) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// want compares the SQLSTATE of an error.
func (x *postgresTest) want(what string, err error, state string) {
	x.Helper()
	if store.State(err) != state || err == nil {
		x.Errorf("%s: %v, want SQLSTATE %s", what, err, state)
	}
}

// wantPosition checks a checkpoint. No transaction may have it locked.
func (x *postgresTest) wantPosition(l store.Lane, want int64) {
	x.Helper()
	if found, err := x.find(l); found.Checkpoint.Position != want || err != nil {
		x.Errorf("checkpoint of %s: %+v, %v, want position %d", l, found, err, want)
	}
}

// under returns projection p, alone, under a generation.
func under(generation int64, projection string) store.Lane {
	return store.Lane{Projection: projection, Assignment: protocol.Assignment{Generation: generation, Total: 1}}
}

func TestPostgresTime(t *testing.T) {
	x := newPostgresTest(t)
	for _, step := range []time.Duration{0, time.Microsecond, time.Hour, -2 * time.Hour} {
		x.clock.advance(step)
		result, err := x.ask(protocol.Request{Worker: "w1", Lease: time.Minute, Heartbeat: true})
		if err != nil || !result.View.Now.Equal(x.clock.time) || !result.View.Member {
			t.Errorf("heartbeat at %s: %+v, %v", x.clock.time, result.View, err)
		}
		var lease time.Time
		x.must(x.pool.QueryRowContext(t.Context(), `SELECT lease_until FROM orchestrator_workers`).Scan(&lease))
		if want := x.clock.time.Add(time.Minute); !lease.Equal(want) {
			t.Errorf("the lease ends at %s, want %s", lease, want)
		}
	}
}

func TestPostgresCommit(t *testing.T) {
	x := newPostgresTest(t)
	a, b, plain := x.connect(), x.connect(), x.connect()
	x.must(x.begin(a))
	x.must(x.begin(b))
	x.must(a.effect("p", event{position: 1, aggregate: "a"}))
	x.must(b.effect("q", event{position: 1, aggregate: "a"}))
	x.must(a.effect("p", event{position: 2, aggregate: "a"}))
	x.must(x.write(b, under(1, "q"), 0, 1))
	x.must(x.commit(b))
	x.must(x.write(a, under(1, "p"), 0, 2))
	x.must(x.commit(a))
	x.wantPosition(under(1, "p"), 2)
	x.wantPosition(under(1, "q"), 1)

	x.must(x.write(plain, under(1, "p"), 2, 3)) // no begin before it
	x.must(x.commit(plain))
	x.wantPosition(under(1, "p"), 3)

	// Refused writes leave nothing behind.
	for _, l := range []store.Lane{under(1, "p"), under(0, "p"), under(1, "unknown")} {
		x.must(x.begin(a))
		x.must(a.effect("p", event{position: 3, aggregate: "a"}))
		if err := x.write(a, l, 2, 4); !errors.Is(err, store.ErrSuperseded) {
			t.Errorf("write of %s from an old position: %v, want %v", l, err, store.ErrSuperseded)
		}
		a.close()
		a = x.connect()
	}
	x.wantPosition(under(1, "p"), 3)

	got, err := x.effects()
	x.must(err)
	want := []effect{{"q", 1}, {"p", 1}, {"p", 2}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(effect{})); d != "" {
		t.Errorf("effects in the order in which they committed (-want +got):\n%s", d)
	}
}

// A call that would have to wait is refused at once, without harm.
func TestPostgresLocks(t *testing.T) {
	x := newPostgresTest(t)
	owner, other := x.connect(), x.connect()
	x.must(x.write(owner, under(1, "p"), 0, 1))

	_, err := x.find(under(1, "p"))
	x.want("find", err, "55P03")
	if !store.LockTimeout(err) {
		t.Errorf("the store does not take %v for a lock that could not be had", err)
	}
	x.want("write", x.write(other, under(1, "p"), 0, 2), "55P03")
	x.want("write after that", x.write(other, under(1, "p"), 0, 2), "25P02")
	if err := x.commit(other); err == nil {
		t.Error("a transaction that had failed was committed")
	}
	// w1 leaves and w2 takes its partitions, which locks the checkpoints.
	replace := protocol.Request{Worker: "w1~2", Lease: time.Minute, Join: true}
	_, err = x.ask(replace)
	x.want("activate", err, "55P03")
	_, err = x.ask(protocol.Request{Worker: "w1", Lease: time.Minute, Heartbeat: true})
	x.must(err)

	x.must(x.commit(owner))
	if result, err := x.ask(replace); err != nil || result.View.Generation != 2 {
		t.Errorf("activate once the lock is free: %+v, %v", result.View, err)
	}
	x.wantPosition(under(2, "p"), 1)
	if err := x.write(owner, under(1, "p"), 1, 2); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("write under generation 1: %v, want %v", err, store.ErrSuperseded)
	}
}

func TestPostgresIdle(t *testing.T) {
	x := newPostgresTest(t)
	ended := func(what string, c connection) {
		t.Helper()
		x.want(what, x.begin(c), "25P03")
		if err := x.write(c, under(1, "p"), 0, 1); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("%s, a later call: %v, want %v", what, err, driver.ErrBadConn)
		}
	}
	almost := testBounds.Handler - time.Millisecond

	c := x.connect()
	x.must(x.begin(c))
	x.clock.advance(almost)
	x.must(c.effect("p", event{position: 1, aggregate: "a"}))
	x.clock.advance(almost) // the bound began anew
	x.must(c.effect("p", event{position: 2, aggregate: "a"}))
	x.clock.advance(almost)
	x.must(x.write(c, under(1, "p"), 0, 1))
	x.clock.advance(testBounds.Idle - time.Millisecond)
	_, err := x.find(under(1, "p"))
	x.want("find before the bound", err, "55P03")
	x.clock.advance(time.Millisecond)
	x.wantPosition(under(1, "p"), 0)
	ended("after the bound of a written checkpoint", c)

	c = x.connect()
	x.must(x.begin(c))
	x.clock.advance(testBounds.Handler)
	ended("after the bound of a handler", c)

	c = x.connect()
	x.must(x.write(c, under(1, "p"), 0, 1))
	x.clock.advance(testBounds.Idle)
	ended("after the bound of a plain commit", c)

	// It stops with the transaction.
	c = x.connect()
	x.must(x.begin(c))
	x.must(x.commit(c))
	x.clock.advance(time.Hour)
	x.must(x.begin(c))

	// The server has no bound on transactions that append, nor on those that have failed:
	// an error takes back what was set in them.
	appender, failed := x.connect(), x.connect()
	x.insert(appender, 1)
	x.must(x.write(c, under(1, "p"), 0, 1))
	x.must(x.begin(failed))
	x.want("write", x.write(failed, under(1, "p"), 0, 2), "55P03")
	x.clock.advance(time.Hour)
	x.must(x.commit(appender))
	x.want("a statement after a failed one", failed.effect("p", event{position: 1}), "25P02")

	if got, err := x.effects(); len(got) > 0 || err != nil {
		t.Errorf("effects %v, %v, want none", got, err)
	}
}

// This checks on the server when transactions have no bound.
func TestServerTakesBackBounds(t *testing.T) {
	x := newPostgresTest(t)
	tx, err := x.outer.BeginTx(t.Context(), nil)
	x.must(err)
	defer tx.Rollback()
	var backend int
	x.must(tx.QueryRowContext(t.Context(), `SELECT pg_backend_pid() FROM set_config('idle_in_transaction_session_timeout', '200ms', true)`).Scan(&backend))
	if _, err := tx.ExecContext(t.Context(), `SELECT 1/0`); err == nil {
		t.Fatal("no error")
	}
	var state string
	pgtest.Eventually(t, "the transaction has idled for long enough", func() bool {
		var over bool
		err := x.outer.QueryRowContext(t.Context(),
			`SELECT state, now() - state_change > interval '600ms' FROM pg_stat_activity WHERE pid = $1`, backend).Scan(&state, &over)
		return errors.Is(err, sql.ErrNoRows) || over
	})
	_, err = tx.ExecContext(t.Context(), `SELECT 1`)
	x.want("after the bound", err, "25P02")
}

// here returns the epoch of a connection.
func here(c connection) eventtable.At {
	a, _ := c.ask() // a connection that has ended fails again in the call that follows
	return eventtable.At{Epoch: a.Epoch}
}

func TestPostgresReading(t *testing.T) {
	x := newPostgresTest(t)
	reader, first, second := x.connect(), x.connect(), x.connect()
	expect := func(what string, holders int, high int64, page ...int64) []protocol.Holder {
		t.Helper()
		events, err := reader.page(here(reader), "", 0, 0, 10)
		x.must(err)
		var positions []int64
		for _, e := range events {
			positions = append(positions, e.position)
			if e.aggregate != "a" || e.slot != protocol.SlotOf("a") {
				t.Errorf("%s: event %+v", what, e)
			}
		}
		if !slices.Equal(positions, page) {
			t.Errorf("%s: positions %v, want %v", what, positions, page)
		}
		if got, err := reader.high(here(reader)); got != high || err != nil {
			t.Errorf("%s: highest position %d, %v, want %d", what, got, err, high)
		}
		a, err := reader.ask()
		got := a.Holders
		if len(got) != holders || err != nil {
			t.Errorf("%s: holders %v, %v, want %d", what, got, err, holders)
		}
		return got
	}
	// None of these is a transaction that appends.
	handler, plain := x.connect(), x.connect()
	x.must(x.begin(handler))
	x.must(handler.effect("p", event{position: 1, aggregate: "a"}))
	x.must(x.write(plain, under(1, "p"), 0, 1))
	expect("nothing appended", 0, 0)

	x.insert(first, 1)
	was := expect("one open", 1, 0)
	x.insert(second, 2)
	expect("two open", 2, 0)
	x.must(x.commit(second))
	is := expect("a gap", 1, 2, 2)
	if !slices.Equal(was, is) {
		t.Errorf("the holder was %v and is %v", was, is)
	}
	x.insert(second, 3)
	x.insert(second, 4)
	second.close()
	x.must(x.commit(first))
	expect("all ended", 0, 2, 1, 2)
	if page, err := reader.page(here(reader), "", 1, 0, 1); len(page) != 1 || err != nil || page[0].position != 2 {
		t.Errorf("page of one after position 1: %+v, %v", page, err)
	}
	x.insert(first, 5)
	if is := expect("another", 1, 2, 1, 2); slices.Equal(was, is) {
		t.Errorf("two transactions go by one name: %v", is)
	}
	if _, err := first.prepare(); err == nil {
		t.Error("a transaction was prepared")
	}
	x.must(x.commit(first))
}

func TestPostgresRestart(t *testing.T) {
	x := newPostgresTest(t)
	owner, appender, idle := x.connect(), x.connect(), x.connect()
	x.must(x.write(owner, under(1, "p"), 0, 1))
	x.insert(appender, 1)
	x.restart()
	for name, c := range map[string]connection{"owner": owner, "appender": appender, "idle": idle} {
		if err := x.commit(c); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("%s after the restart: %v, want %v", name, err, driver.ErrBadConn)
		}
		c.close()
		if _, err := c.insert("a"); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("%s closed: %v, want %v", name, err, driver.ErrBadConn)
		}
	}
	x.wantPosition(under(1, "p"), 0)
	if a, err := x.connect().ask(); len(a.Holders) > 0 || err != nil {
		t.Errorf("holders %v, %v, want none", a.Holders, err)
	}
	x.clock.advance(time.Hour) // no timer is left that ends anything
}

// When the limit of transactions is reached, others are refused, and calls without a
// transaction work.
func TestPostgresFull(t *testing.T) {
	x := newPostgresTest(t)
	var all []connection
	for range transactionsMax {
		all = append(all, x.connect())
		x.must(x.begin(all[len(all)-1]))
	}
	last := x.connect()
	x.want("one more", x.begin(last), "53300")
	x.wantPosition(under(1, "p"), 0)
	all[0].close()
	x.must(x.begin(last))
}

func TestPostgresClose(t *testing.T) {
	x := newPostgresTest(t)
	other, err := newPostgres(t.Context(), x.url, x.clock, "set", testBounds)
	x.must(err)
	schemas := func(want int) {
		t.Helper()
		var n int
		x.must(x.outer.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sim\_%'`).Scan(&n))
		if n != want {
			t.Errorf("%d schemas, want %d", n, want)
		}
	}
	schemas(2)
	c := other.connect() // with an open transaction
	if position, err := c.insert("a"); position != 1 || err != nil {
		t.Errorf("position %d, %v", position, err)
	}
	x.must(other.close())
	schemas(1)
	x.wantPosition(under(1, "p"), 0)
}
