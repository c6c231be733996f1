package orchestrator_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lib/pq"
)

// Faults sit between database/sql and the driver. A nil hook is none. Hooks
// may be set at any time.
type faults struct {
	// commit is called in place of COMMIT; it calls do to have it sent.
	commit atomic.Pointer[func(do func() error) error]
	// commits counts the COMMITs that were asked for.
	commits atomic.Int64
	// query is called before each statement that returns rows.
	query atomic.Pointer[func(query string)]
	// rewrite replaces the text of such a statement.
	rewrite atomic.Pointer[func(query string) string]
}

func (f *faults) onCommit(hook func(do func() error) error) { f.commit.Store(&hook) }
func (f *faults) onQuery(hook func(query string))           { f.query.Store(&hook) }

// faulty opens a database with faults in between.
func faulty(t testing.TB, url string) (*sql.DB, *faults) {
	t.Helper()
	connector, err := pq.NewConnector(url)
	if err != nil {
		t.Fatal(err)
	}
	f := &faults{}
	db := sql.OpenDB(faultyConnector{connector, f})
	t.Cleanup(func() { _ = db.Close() })
	return db, f
}

type faultyConnector struct {
	driver.Connector
	faults *faults
}

func (c faultyConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &faultyConn{fullConn: conn.(fullConn), faults: c.faults}, nil
}

// fullConn is what lib/pq's connections can do.
type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	driver.NamedValueChecker
}

type faultyConn struct {
	fullConn
	faults *faults
	broken atomic.Bool
}

func (c *faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if hook := c.faults.query.Load(); hook != nil {
		(*hook)(query)
	}
	if rewrite := c.faults.rewrite.Load(); rewrite != nil {
		query = (*rewrite)(query)
	}
	return c.fullConn.QueryContext(ctx, query, args)
}

func (c *faultyConn) IsValid() bool { return !c.broken.Load() && c.fullConn.IsValid() }

func (c *faultyConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	tx, err := c.fullConn.BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	return faultyTx{tx, c}, nil
}

type faultyTx struct {
	driver.Tx
	conn *faultyConn
}

// errLost is what a client sees of a connection that ended while it waited.
var errLost = errors.Join(errors.New("connection lost before the reply came"), driver.ErrBadConn)

func (tx faultyTx) Commit() error {
	tx.conn.faults.commits.Add(1)
	hook := tx.conn.faults.commit.Load()
	if hook == nil {
		return tx.Tx.Commit()
	}
	err := (*hook)(tx.Tx.Commit)
	if errors.Is(err, errLost) {
		tx.conn.broken.Store(true)
		_ = tx.conn.fullConn.Close()
	}
	return err
}
