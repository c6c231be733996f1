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

// A call is one call of a handler, and what came of its transaction.
type call struct {
	conn   *pgx.Conn
	within pgx.Tx // whoever calls its Commit or Rollback ends the transaction

	mu   sync.Mutex
	err  error  // of what was refused: the handler's failure, whatever it says
	open func() // closes the latest that has to be closed
	over bool   // the handler has returned
}

var (
	errEndsTx   = errors.New("a handler can't end its transaction, which commits with the checkpoint: return an error to have it rolled back")
	errEnded    = errors.New("the handler has ended its transaction, by tx.Conn(): it commits with the checkpoint, and what came before in the batch will be handled again")
	errReturned = errors.New("the handler has returned, and its transaction is of no more use to it")
	errLeftOpen = errors.New("the handler has left rows, or the results of a batch, open: close them before it returns (defer rows.Close())")
)

// txKey is where a connection keeps its pgx.Tx.
const txKey = "github.com/getpup/pupsourcing-orchestrator/pgx"

// newCall returns the call of a handler whose transaction is open on conn.
func newCall(conn *pgx.Conn) (*call, error) {
	within, ok := conn.PgConn().CustomData()[txKey].(pgx.Tx)
	if !ok {
		// pgx makes a Tx only where it begins a transaction. This one was begun long ago, so
		// it begins with a statement that does nothing. A Tx knows of its connection and of
		// nothing else, so it does for all transactions to come.
		var err error
		if within, err = conn.BeginTx(context.Background(), pgx.TxOptions{BeginQuery: "-- it is open"}); err != nil {
			return nil, err
		}
		conn.PgConn().CustomData()[txKey] = within
	}
	return &call{conn: conn, within: within}, nil
}

// end returns what has become of the call, whose handler has returned err.
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

// allows returns why a statement is not sent.
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

// ends refuses to end the transaction.
func (c *call) ends(method string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return errReturned
	}
	c.err = fmt.Errorf("%s: %w", method, errEndsTx)
	return c.err
}

// opened remembers what is to be closed before the handler returns. On a connection
// there is one such thing at a time.
func (c *call) opened(closes func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = closes
}

// A tx is the pgx.Tx of a handler, or one within.
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
	t.call.opened(func() { _ = rows.Scan() }) // which closes it
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

// A guardedSource is a handler's source of rows. pgx asks it on a goroutine of its own,
// where a panic would end the process, and the end of the goroutine would have everybody
// wait for rows that do not come.
type guardedSource struct {
	source pgx.CopyFromSource
	ended  func()
	failed error
}

var errSourceExited = errors.New("the source of CopyFrom has ended its goroutine (runtime.Goexit)")

// guard calls the source, and remembers how it ended if not by returning.
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

// refusedRows are those of a statement that was not sent.
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
