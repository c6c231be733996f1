package sim

import (
	"database/sql"
	"database/sql/driver"
	"slices"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A memory is a model of PostgreSQL as far as internal/store and internal/eventtable use
// it: what each of their statements does, under READ COMMITTED, with the same row locks in
// the same order, around the same pure functions. It decides nothing of the protocol. A
// call takes no time except to wait for locks. The store's conformance suite and a
// comparison with the real server, call by call, keep it correct.
//
// It finds a deadlock at once, where the server takes a second. No other difference is
// known for users like the store.
type memory struct {
	numbers int64 // of orders to park an event
	clock   clock
	rules   memoryRules

	sets        map[string]*replicaSet
	rebuilds    map[string]string // the live projections by the names of their rebuilds
	projections []*projectionRow  // by name

	// This is what is committed: events by position, effects in the order of commits.
	events  []event
	written []effect
	last    int64 // of the sequence of positions
	// cached: writers' sessions cache every other number. kept are the cached numbers.
	cached bool
	kept   []int64

	present []*memoryConnection // that hold a liveness lock
	faked   []protocol.Presence // locks that another program holds too

	transactions []*transaction // open ones, prepared ones too, in the order in which they began

	restarts  int
	processes int // so far
	backends  int // since the restart
	xids      int
}

// memoryRules are what mutants change. The zero value is the correct model.
type memoryRules struct {
	// These replace protocol.Step and protocol.Handoff.
	step    func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision)
	handoff func(old []protocol.Checkpoint, total int) []protocol.Checkpoint

	// between is how long it takes from reading a set until the decision arrives; nil: no
	// time.
	between      func() time.Duration
	blindAttempt bool // a decision is carried out whatever has changed

	unfenced    bool // a commit names neither replica set nor generation
	anyPosition bool // a commit does not name the position that it starts from
	noIdleBound bool // transactions may idle without a bound
	takesAny    bool // a projection is taken over although another set runs it
	unmarked    bool // a commit does not check that its transaction is the one that was begun
	anyStream   bool // a worker that reads another stream may join
	hastyFind   bool // a checkpoint is read although a transaction with a newer version is open

	tableAlone    bool // of the writers, only those that have inserted are seen
	standbyUnseen bool // a standby counts as the primary

	startsAgain bool // each join decides where a projection starts, until it runs

	// ready replaces store.Ready. A switch without the fence leaves the replaced version's
	// checkpoints under their generation.
	ready          func(next, live *store.ProjectionVersion) error
	switchUnfenced bool

	parkUnfenced bool // events are parked although the checkpoint did not move

	// noWait is no mutant: a call that would wait for a lock is refused at once, as on the
	// postgres of a simulation.
	noWait bool
}

func newMemory(c clock, r memoryRules) *memory {
	if r.step == nil {
		r.step = protocol.Step
	}
	if r.handoff == nil {
		r.handoff = protocol.Handoff
	}
	if r.ready == nil {
		r.ready = store.Ready
	}
	return &memory{clock: c, rules: r, sets: map[string]*replicaSet{}}
}

// as returns the memory as the database of one replica set.
func (m *memory) as(set string, bounds store.Bounds) database {
	return &memoryDatabase{m, set, bounds}
}

type memoryDatabase struct {
	*memory
	set    string
	bounds store.Bounds
}

func (d *memoryDatabase) connect() connection {
	d.processes++
	d.backends++
	return &memoryConnection{memoryDatabase: d, run: d.restarts, process: d.processes, backend: d.backends}
}

// restart numbers backends anew, as a server does: a later transaction may get the name of
// an earlier one.
func (m *memory) restart() {
	m.restarts++
	m.backends = 0
	m.present = nil
	for _, t := range slices.Clone(m.transactions) {
		if t.conn != nil {
			t.end(false)
		} else {
			t.backend, t.local = -1, t.xid
		}
	}
}

func (m *memory) close() error {
	m.restart()
	return nil
}

// now returns the time with the precision of timestamptz.
func (m *memory) now() time.Time { return m.clock.now().Round(time.Microsecond) }

// These are errors of the server, beside errIdle. They are shared, since no code writes to
// them.
var (
	errNotAvailable = &pq.Error{Severity: "ERROR", Code: "55P03", Message: "canceling statement due to lock timeout"}
	errDeadlock     = &pq.Error{Severity: "ERROR", Code: "40P01", Message: "deadlock detected"}
	errFailed       = &pq.Error{Severity: "ERROR", Code: "25P02", Message: "current transaction is aborted, commands ignored until end of transaction block"}
	errViolated     = &pq.Error{Severity: "ERROR", Code: "23503", Message: "insert violates foreign key constraint"}
	errReadOnly     = &pq.Error{Severity: "ERROR", Code: "25006", Message: "cannot execute it in a read-only transaction"}
	errUnprepared   = &pq.Error{Severity: "ERROR", Code: "42704", Message: "prepared transaction does not exist"}
)

// A memoryConnection is a session of the server.
type memoryConnection struct {
	*memoryDatabase
	run, process, backend int

	standby bool // it leads to a standby

	open  *transaction      // nil: none
	holds protocol.Presence // the liveness lock that it holds, if any
	local int               // the number of transactions so far
	// ended is the error of the next call after the connection has ended.
	ended error
}

// alive returns the error of a call on a connection that has ended.
func (c *memoryConnection) alive() error {
	if c.ended == nil && c.run != c.restarts {
		c.ended = driver.ErrBadConn
	}
	err := c.ended
	if err != nil {
		c.ended = driver.ErrBadConn
	}
	if err == nil && c.standby {
		err = errReadOnly
	}
	return err
}

// free is alive for calls that are not part of a transaction.
func (c *memoryConnection) free(call string) error {
	if c.open != nil {
		panic("sim: " + call + " on a connection with an open transaction")
	}
	return c.alive()
}

// running is alive for statements in a transaction.
func (c *memoryConnection) running() error {
	if err := c.alive(); err != nil {
		return err
	}
	switch t := c.open; {
	case t == nil:
		return sql.ErrTxDone
	case t.wait != nil:
		panic("sim: two calls at once on one connection")
	case t.failed:
		return errFailed
	}
	return nil
}

// within is running for statements that open a transaction unless there is one.
func (c *memoryConnection) within() error {
	if err := c.alive(); err != nil {
		return err
	}
	if c.open == nil {
		c.enter()
	}
	return c.running()
}

func (c *memoryConnection) begin(done func(error)) {
	err := c.free("begin")
	if err == nil {
		t := c.enter()
		t.begun, t.idleMax = true, c.bounds.Handler
		t.idle()
	}
	done(err)
}

func (c *memoryConnection) commit(done func(error)) {
	err := c.running()
	if t := c.open; t != nil {
		if err == nil && t.violates {
			err = errViolated
		}
		t.end(err == nil)
	}
	done(err)
}

func (c *memoryConnection) close() { c.drop(driver.ErrBadConn) }

// drop ends the connection. reason is the error of the next call.
func (c *memoryConnection) drop(reason error) {
	c.ended = reason
	c.present = slices.DeleteFunc(c.present, func(o *memoryConnection) bool { return o == c })
	if c.open != nil {
		c.open.end(false)
	}
}

// A transaction idles, or waits for a lock, or goes on at once with the lock that it has
// got. stop stops its timer.
type transaction struct {
	m    *memory
	conn *memoryConnection // nil: it is prepared
	// backend and local name it in lists of locks.
	backend, local, xid int

	idleMax time.Duration // 0: no bound
	lockMax time.Duration // 0: no bound
	stop    func()
	refused func(error) // ends the call under way when it can't have a lock
	wait    *waiter

	locks   []*lock
	rows    []interface{ settle(commit bool) } // that it has written
	events  []event
	effects []effect
	first   bool // it has taken positions for its events and not inserted them yet
	undone  bool // it has gone back to before it took a position
	// violates: it has broken a constraint that is checked at COMMIT.
	violates bool
	begun    bool // by Store.BeginHandler
	failed   bool
	ended    bool
}

// enter opens a transaction.
func (c *memoryConnection) enter() *transaction {
	c.local++
	t := &transaction{m: c.memory, conn: c, backend: c.backend, local: c.local, stop: func() {}}
	c.open = t
	c.transactions = append(c.transactions, t)
	return t
}

// idle starts the time for which the transaction may idle. Each statement starts it anew.
func (t *transaction) idle() {
	t.stop()
	if t.idleMax > 0 && !t.m.rules.noIdleBound {
		t.stop = t.m.clock.after(t.idleMax, func() { t.conn.drop(errIdle) })
	}
}

// fail does what an error does to a transaction: it loses everything, even its bound, and
// must be ended.
func (t *transaction) fail() {
	t.settle(false)
	t.failed = true
}

// end commits the transaction, or rolls it back.
func (t *transaction) end(commit bool) {
	t.settle(commit)
	t.ended = true
	t.m.transactions = slices.DeleteFunc(t.m.transactions, func(o *transaction) bool { return o == t })
	if t.conn != nil {
		t.conn.open = nil
	}
}

// settle makes the transaction's writes visible, or undoes them, and then releases its
// locks.
func (t *transaction) settle(commit bool) {
	t.stop()
	t.leave()
	for _, r := range t.rows {
		r.settle(commit)
	}
	if commit {
		t.m.publish(t.events)
		t.m.written = append(t.m.written, t.effects...)
	}
	for _, l := range t.locks {
		l.release(t)
	}
	t.rows, t.locks, t.events, t.effects, t.undone = nil, nil, nil, nil, false
}
