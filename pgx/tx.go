package orchestratorpgx

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// A call is one call of a handler and the state of its transaction.
type call struct {
	conn   *pgx.Conn
	within pgx.Tx // its Commit and Rollback end the transaction

	mu   sync.Mutex
	err  error  // a refused statement; then the handler fails whatever it returns
	open func() // closes the rows or results that were opened last
	over bool   // the handler has returned
}

var (
	errEndsTx   = errors.New("a handler can't end its transaction, which commits with the checkpoint: to roll back, return an error")
	errEnded    = errors.New("the handler has ended its transaction, by tx.Conn(): it commits with the checkpoint, and what came before in the batch will be handled again")
	errReturned = errors.New("the handler has returned: its pgx.Tx can't be used any more")
	errLeftOpen = errors.New("the handler has left rows, or the results of a batch, open: close them before returning (defer rows.Close())")
)

// txKey is the key of a connection's pgx.Tx in its custom data.
const txKey = "github.com/getpup/pupsourcing-orchestrator/pgx"

// newCall returns a call whose transaction is open on conn.
func newCall(conn *pgx.Conn) (*call, error) {
	within, ok := conn.PgConn().CustomData()[txKey].(pgx.Tx)
	if !ok {
		// pgx creates a Tx only when it begins a transaction. This transaction is open
		// already, so the statement that begins it does nothing. A Tx refers only to its
		// connection, so one Tx serves all later transactions of the connection.
		var err error
		if within, err = conn.BeginTx(context.Background(), pgx.TxOptions{BeginQuery: "-- it is open"}); err != nil {
			return nil, err
		}
		conn.PgConn().CustomData()[txKey] = within
	}
	return &call{conn: conn, within: within}, nil
}

// end ends the call and returns its result. err is what the handler returned.
func (c *call) end(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.conn.PgConn().IsBusy() && c.open != nil {
		c.open()
		if err == nil {
			err = errLeftOpen
		}
	}
	switch {
	case c.err != nil:
		return c.err
	case c.conn.PgConn().TxStatus() == 'I' && !c.conn.IsClosed():
		return errEnded
	}
	return err
}

// allows returns an error if a statement must not be sent.
func (c *call) allows(query string) error {
	word := sqltext.EndsTransaction(query)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over:
		return errReturned
	case word != "":
		c.err = fmt.Errorf("%s: %w", word, errEndsTx)
		return c.err
	}
	return nil
}

// ends returns the error for a method that would end the transaction.
func (c *call) ends(method string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return errReturned
	}
	c.err = fmt.Errorf("%s: %w", method, errEndsTx)
	return c.err
}

// opened records what must be closed before the handler returns. A connection has one open
// result at a time.
func (c *call) opened(closes func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = closes
}

// A tx is the pgx.Tx of a handler, or a nested one.
type tx struct {
	pgx.Tx
	call   *call
	nested bool
}

func (t *tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := t.call.allows(""); err != nil {
		return nil, err
	}
	nested, err := t.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &tx{nested, t.call, true}, nil
}

func (t *tx) Commit(ctx context.Context) error {
	if !t.nested {
		return t.call.ends("Commit")
	}
	if err := t.call.allows(""); err != nil {
		return err
	}
	return t.Tx.Commit(ctx)
}

func (t *tx) Rollback(ctx context.Context) error {
	if !t.nested {
		return t.call.ends("Rollback")
	}
	if err := t.call.allows(""); err != nil {
		return err
	}
	return t.Tx.Rollback(ctx)
}

func (t *tx) Exec(ctx context.Context, query string, args ...any) (tag pgconn.CommandTag, err error) {
	if err := t.call.allows(query); err != nil {
		return tag, err
	}
	return t.Tx.Exec(ctx, query, args...)
}

func (t *tx) Prepare(ctx context.Context, name, query string) (*pgconn.StatementDescription, error) {
	if err := t.call.allows(query); err != nil {
		return nil, err
	}
	return t.Tx.Prepare(ctx, name, query)
}

func (t *tx) Query(ctx context.Context, query string, args ...any) (pgx.Rows, error) {
	if err := t.call.allows(query); err != nil {
		return refusedRows{err}, err
	}
	rows, err := t.Tx.Query(ctx, query, args...)
	if err == nil {
		t.call.opened(rows.Close)
	}
	return rows, err
}

func (t *tx) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	if err := t.call.allows(query); err != nil {
		return refusedRows{err}
	}
	rows := t.Tx.QueryRow(ctx, query, args...)
	t.call.opened(func() { _ = rows.Scan() }) // Scan closes the row
	return rows
}

func (t *tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	for _, q := range b.QueuedQueries {
		if err := t.call.allows(q.SQL); err != nil {
			return pgx.FailedBatchResults(b, err)
		}
	}
	results := t.Tx.SendBatch(ctx, b)
	t.call.opened(func() { _ = results.Close() })
	return results
}

func (t *tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	if err := t.call.allows(""); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	source := &guardedSource{source: rows, ended: cancel}
	n, err := t.Tx.CopyFrom(ctx, table, columns, source)
	if source.failed != nil {
		err = source.failed
	}
	return n, err
}

// A guardedSource wraps a handler's source of rows. pgx calls it on a goroutine of its own.
// There a panic would end the process, and an exit of the goroutine would block the handler
// forever.
type guardedSource struct {
	source pgx.CopyFromSource
	ended  func()
	failed error
}

var errSourceExited = errors.New("the source of CopyFrom has ended its goroutine (runtime.Goexit)")

// guard calls the source, and records a panic or an exit of the goroutine.
func (s *guardedSource) guard(f func()) {
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil {
			s.failed = errSourceExited
			s.ended()
			return
		}
		s.failed = &orchestrator.PanicError{Value: v, Stack: debug.Stack()}
	}()
	f()
	returned = true
}

func (s *guardedSource) Next() (more bool) {
	s.guard(func() { more = s.source.Next() })
	return more && s.failed == nil
}

func (s *guardedSource) Values() (values []any, err error) {
	s.guard(func() { values, err = s.source.Values() })
	if s.failed != nil {
		return nil, s.failed
	}
	return values, err
}

func (s *guardedSource) Err() (err error) {
	if s.failed != nil {
		return s.failed
	}
	s.guard(func() { err = s.source.Err() })
	if s.failed != nil {
		return s.failed
	}
	return err
}

// refusedRows is the result of a statement that was not sent.
type refusedRows struct{ err error }

func (r refusedRows) Close()                                       {}
func (r refusedRows) Err() error                                   { return r.err }
func (r refusedRows) CommandTag() (tag pgconn.CommandTag)          { return tag }
func (r refusedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r refusedRows) Next() bool                                   { return false }
func (r refusedRows) Scan(...any) error                            { return r.err }
func (r refusedRows) Values() ([]any, error)                       { return nil, r.err }
func (r refusedRows) RawValues() [][]byte                          { return nil }
func (r refusedRows) Conn() *pgx.Conn                              { return nil }
func (r refusedRows) TypeMap() *pgtype.Map                         { return nil }
