package sim

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A user's projection in a world: only the statements of its handlers are real. Workers
// coordinate, read and keep their checkpoints in the model, which produces the same
// histories as a real server (TestModelAndPostgresAgree). A world has some thousands of
// statements of the model, and a few hundred of handlers.

// A subject calls the user's projection for the lanes.
type subject[E any] struct {
	Harness[E]
	ctx         context.Context
	db          *sql.DB
	projections map[*worker]orchestrator.Projection[E] // one for each process
}

// aggregate returns the aggregate of the n-th event, and whether there is one.
func (s *subject[E]) aggregate(n int) (string, bool) {
	if n >= len(s.Events) {
		return "", false
	}
	return s.AggregateID(s.Events[n]), true
}

// handle calls the handler for a lane.
func (s *subject[E]) handle(l *lane, index map[int64]int, c *call) error {
	projection, ok := s.projections[l.p]
	if !ok {
		projection = s.New(s.db)
		s.projections[l.p] = projection
	}
	var tx orchestrator.Tx
	if l.kind.InTransaction() {
		var err error
		if tx, err = l.link.conn.(*subjectConnection).tx(); err != nil {
			return err // the server has ended the transaction meanwhile
		}
	}
	var values []E
	for _, e := range c.events {
		values = append(values, s.Events[index[e.position]])
	}
	a := l.id.Assignment
	d := orchestrator.Delivery{
		Projection: l.id.Projection,
		Assignment: orchestrator.Assignment{ReplicaSet: "sim", Generation: a.Generation, Partition: a.Partition, TotalPartitions: a.Total},
		Position:   c.events[0].position, Events: len(c.events), Attempt: c.attempt,
	}
	if c.parked {
		d.Replay = orchestrator.ReplayParked
	}
	return invoke(orchestrator.ContextWithDelivery(s.ctx, d), projection, tx, values)
}

// invoke calls the handler of a projection of any kind, and turns a panic into an error.
// Only batch projections get more than one event.
func invoke[E any](ctx context.Context, p orchestrator.Projection[E], tx orchestrator.Tx, events []E) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	switch p := p.(type) {
	case orchestrator.BatchProjection[E]:
		return p.HandleBatch(ctx, tx, events)
	case orchestrator.TransactionalProjection[E]:
		return p.HandleTx(ctx, tx, events[0])
	case orchestrator.PlainBatchProjection[E]:
		return p.HandlePlainBatch(ctx, events)
	}
	return p.Handle(ctx, events[0])
}

// A subjectDatabase is the model, with a schema on a real server for the handlers.
type subjectDatabase struct {
	*memoryDatabase
	real *subjectSchema
}

type subjectSchema struct {
	*ownSchema
	open int // transactions
	// trouble is the first error that is the real server's or network's own. A seed can't
	// repeat what comes after it.
	trouble error
}

func newSubjectDatabase(ctx context.Context, base string, w *world) (*subjectDatabase, error) {
	s, err := newOwnSchema(ctx, base)
	if err != nil {
		return nil, err
	}
	m := newMemory(w, memoryRules{}).as("sim", store.BoundsOf(w.plan.timing.Lease)).(*memoryDatabase)
	return &subjectDatabase{m, &subjectSchema{ownSchema: s}}, nil
}

func (d *subjectDatabase) connect() connection {
	return &subjectConnection{memoryConnection: d.memoryDatabase.connect().(*memoryConnection), schema: d.real}
}

func (d *subjectDatabase) as(set string, bounds store.Bounds) database {
	return &subjectDatabase{d.memoryDatabase.as(set, bounds).(*memoryDatabase), d.real}
}

func (d *subjectDatabase) close() error {
	err := d.memoryDatabase.close() // rolls back what is open
	dropped := d.real.drop()
	return cmp.Or(d.real.trouble, err, dropped)
}

// heard keeps errors that the world did not ask for.
func (s *subjectSchema) heard(err error) error {
	if s.trouble == nil && store.Passing(err) && !store.LockTimeout(err) && !store.Deadlock(err) {
		s.trouble = fmt.Errorf("the real database failed, which a seed can't repeat: %w", err)
	}
	return err
}

// A subjectConnection is a connection to both. If a transaction of the model has a real
// one, they end alike.
type subjectConnection struct {
	*memoryConnection
	schema *subjectSchema
	real   *realTransaction // of the latest transaction that has one
}

// tx returns the open transaction for a handler. What the handler does in it takes no time.
func (c *subjectConnection) tx() (orchestrator.Tx, error) {
	if err := c.running(); err != nil {
		return nil, err
	}
	c.open.idle()
	if c.realOpen() == nil {
		r, err := c.schema.begin(c.open)
		if err != nil {
			return nil, c.schema.heard(err)
		}
		c.real = r
		c.open.rows = append(c.open.rows, r)
	}
	return handlerTx{c.real.tx}, nil
}

// realOpen returns the real transaction of the open one; nil: it has none.
func (c *subjectConnection) realOpen() *realTransaction {
	if c.open == nil || c.real == nil || c.real.of != c.open || c.real.ended {
		return nil
	}
	return c.real
}

// write notices, as the statement that moves the checkpoint does, that a statement of the
// handler has failed or has ended the transaction.
func (c *subjectConnection) write(l store.Lane, from, to protocol.Checkpoint, done func(error)) {
	if r := c.realOpen(); r != nil {
		switch marked, err := r.marked(); {
		case err != nil:
			c.open.fail()
		case !marked:
			c.chain()
		}
	}
	c.memoryConnection.write(l, from, to, done)
}

// commit commits the real transaction first: a constraint may forbid it.
func (c *subjectConnection) commit(done func(error)) {
	if r := c.realOpen(); r != nil && !c.open.failed && !c.open.violates {
		c.open.violates = r.end((*dbconn.Tx).Commit) != nil
	}
	c.memoryConnection.commit(done)
}

// A realTransaction is the real counterpart of a transaction of the model.
type realTransaction struct {
	schema *subjectSchema
	of     *transaction
	tx     *dbconn.Tx
	ended  bool
}

// The mark ends with the transaction for which it was set, as that of Store.BeginHandler
// does.
const (
	markSQL   = `SELECT set_config('sim.handler', 'on', true)`
	markedSQL = `SELECT coalesce(current_setting('sim.handler', true), '') = 'on'`
)

func (s *subjectSchema) begin(of *transaction) (*realTransaction, error) {
	if s.open == transactionsMax {
		return nil, errFull // instead of waiting for the pool
	}
	tx, err := dbconn.Begin(context.Background(), s.pool, nil)
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(context.Background(), markSQL); err != nil {
		_ = tx.Rollback()
		return nil, err
	}
	s.open++
	return &realTransaction{schema: s, of: of, tx: tx}, nil
}

func (r *realTransaction) marked() (is bool, err error) {
	err = r.tx.QueryRowContext(context.Background(), markedSQL).Scan(&is)
	return is, r.schema.heard(err)
}

func (r *realTransaction) end(how func(*dbconn.Tx) error) error {
	if r.ended {
		return nil
	}
	r.ended = true
	r.schema.open--
	return r.schema.heard(how(r.tx))
}

// settle ends it as the model's transaction ends.
func (r *realTransaction) settle(commit bool) {
	how := (*dbconn.Tx).Rollback
	if commit {
		how = (*dbconn.Tx).Commit
	}
	_ = r.end(how) // heard has the error
}

// handlerTx is a transaction with the Raw of handlers.
type handlerTx struct{ *dbconn.Tx }

func (t handlerTx) Raw(f func(driverConn any) error) (err error) {
	taken := t.Tx.Raw(func(conn any) (broken bool) {
		err = f(conn)
		return store.FactsOf(err).Lost
	})
	return cmp.Or(err, taken)
}
