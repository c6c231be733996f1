package testworld

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/lib/pq"
)

// Faults are hooks between database/sql and the driver. They can be set at any time. A nil hook
// does nothing.
type Faults struct {
	// Commit is called instead of COMMIT. Its argument do sends the COMMIT.
	Commit atomic.Pointer[func(do func() error) error]
	// Commits counts the requested COMMITs.
	Commits atomic.Int64
	// Query is called before each statement that returns rows.
	Query atomic.Pointer[func(query string)]
	// Rewrite replaces the text of such a statement.
	Rewrite atomic.Pointer[func(query string) string]
}

// OnCommit sets Commit.
func (f *Faults) OnCommit(hook func(do func() error) error) { f.Commit.Store(&hook) }

// OnQuery sets Query.
func (f *Faults) OnQuery(hook func(query string)) { f.Query.Store(&hook) }

// Faulty opens a database with faults in between.
func Faulty(t testing.TB, url string) (*sql.DB, *Faults) {
	t.Helper()
	connector, err := pq.NewConnector(url)
	if err != nil {
		t.Fatal(err)
	}
	f := &Faults{}
	db := sql.OpenDB(f.Between(connector))
	t.Cleanup(func() { _ = db.Close() })
	return db, f
}

// Between returns c with the faults in between. The driver of c must be lib/pq.
func (f *Faults) Between(c driver.Connector) driver.Connector { return faultyConnector{c, f} }

type faultyConnector struct {
	driver.Connector
	faults *Faults
}

func (c faultyConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &faultyConn{Conn: conn.(Conn), faults: c.faults}, nil
}

// Conn has the methods of lib/pq's connections.
type Conn interface {
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
	Conn
	faults *Faults
	broken atomic.Bool
}

func (c *faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if hook := c.faults.Query.Load(); hook != nil {
		(*hook)(query)
	}
	if rewrite := c.faults.Rewrite.Load(); rewrite != nil {
		query = (*rewrite)(query)
	}
	return c.Conn.QueryContext(ctx, query, args)
}

func (c *faultyConn) IsValid() bool { return !c.broken.Load() && c.Conn.IsValid() }

func (c *faultyConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	tx, err := c.Conn.BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	return faultyTx{tx, c}, nil
}

type faultyTx struct {
	driver.Tx
	conn *faultyConn
}

// ErrLost is the error of a client whose connection ends while it waits for a reply.
var ErrLost = errors.Join(errors.New("connection lost before the reply came"), driver.ErrBadConn)

func (tx faultyTx) Commit() error {
	tx.conn.faults.Commits.Add(1)
	hook := tx.conn.faults.Commit.Load()
	if hook == nil {
		return tx.Tx.Commit()
	}
	err := (*hook)(tx.Tx.Commit)
	if errors.Is(err, ErrLost) {
		tx.conn.broken.Store(true)
		_ = tx.conn.Conn.Close()
	}
	return err
}

// An Outage is a connector that can refuse connections.
type Outage struct {
	driver.Connector
	refuses atomic.Bool
}

func (o *Outage) Connect(ctx context.Context) (driver.Conn, error) {
	if o.refuses.Load() {
		return nil, syscall.ECONNREFUSED
	}
	return o.Connector.Connect(ctx)
}

// Begin ends all connections to the world's database and refuses new ones.
func (o *Outage) Begin(w *World) {
	o.refuses.Store(true)
	w.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
}
