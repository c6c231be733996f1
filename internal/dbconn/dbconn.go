// Package dbconn makes calls on the connections of a database/sql pool. Its calls return when
// their context ends, and they leave no connection behind.
//
// A context ends a call only if the driver supports that. lib/pq, for example, goes on reading
// from a connection whose other end is silent until the kernel gives up, a quarter of an hour
// later. Such a call keeps its place in the pool: a pool with a limit runs out of connections,
// although new ones would work at once.
//
// So this package records which connection a call is on. If the call has not returned a moment
// after its context has ended, the connection is cut: its socket is closed, the call fails, and
// the connection does not go back to the pool.
//
// This does not work while the driver is still opening a connection. Then the driver's own
// timeout (connect_timeout) applies.
package dbconn

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// grace is how long a driver has to return by itself after a context has ended.
const grace = 50 * time.Millisecond

// A hold is a connection that was taken out of the pool.
type hold struct {
	db     *sql.DB
	driver any // the driver's connection
	mu     sync.Mutex
	isCut  bool
	isBack bool
}

// cut closes the connection, unless it was given back. A call on it fails.
func (h *hold) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isCut || h.isBack {
		return
	}
	h.isCut = true
	silent.add(h.db, 1)
	go closeSocket(h.driver) // it may have to wait until data is sent
}

// wasCut reports whether the connection was cut.
func (h *hold) wasCut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.isCut
}

// back reports whether the connection may go back to the pool, and whether this is the first
// call of back.
func (h *hold) back() (whole, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, h.isBack = !h.isBack, true
	return !h.isCut, first
}

// watch cuts the connection a moment after ctx has ended, unless leave was called before.
func (h *hold) watch(ctx context.Context) (leave func()) {
	var left atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(grace, func() {
			if !left.Load() {
				h.cut()
			}
		})
	})
	return func() {
		left.Store(true)
		stop()
	}
}

// closeSocket closes the network connection below a driver's while a call on it is
// under way.
//
//   - pgx must not be closed by another goroutine, but exports its net.Conn. (It is found by
//     its methods, so that this module does not depend on pgx.)
//   - lib/pq may be closed: its Close sends a message and closes the net.Conn. lib/pq itself
//     does the same during a call whose context ends.
//   - Of other drivers, Close is called. Nothing else can be tried.
func closeSocket(conn any) {
	for {
		w, ok := conn.(interface{ Raw() driver.Conn }) // wrappers that trace calls have it
		if !ok {
			break
		}
		conn = w.Raw()
	}
	if c := netConn(conn); c != nil {
		_ = c.Close()
	} else if c, ok := conn.(driver.Conn); ok {
		_ = c.Close()
	}
}

// netConn returns conn.Conn().PgConn().Conn(), or nil if there are no such methods.
func netConn(conn any) net.Conn {
	v := reached(conn, "Conn", "PgConn", "Conn")
	if !v.IsValid() {
		return nil
	}
	c, _ := v.Interface().(net.Conn)
	return c
}

// reached calls methods without arguments, each on the result of the one before, and returns the
// last result. It returns the zero Value if a method or a receiver is missing.
func reached(conn any, methods ...string) reflect.Value {
	v := reflect.ValueOf(conn)
	for i, name := range methods {
		if i > 0 && (v.Kind() != reflect.Pointer || v.IsNil()) {
			return reflect.Value{}
		}
		m := v.MethodByName(name)
		if !m.IsValid() || m.Type().NumIn() != 0 || m.Type().NumOut() != 1 {
			return reflect.Value{}
		}
		v = m.Call(nil)[0]
	}
	return v
}

// silent counts, for each pool, the connections that were cut and whose calls have not returned
// yet.
var silent counts

type counts struct {
	mu sync.Mutex
	of map[*sql.DB]int
}

func (c *counts) add(db *sql.DB, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[*sql.DB]int{}
	}
	if c.of[db] += n; c.of[db] == 0 {
		delete(c.of, db)
	}
}

func (c *counts) get(db *sql.DB) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[db]
}

// full returns an error if the pool has no free connection.
func full(db *sql.DB) error {
	s := db.Stats()
	if s.MaxOpenConnections == 0 || s.InUse < s.MaxOpenConnections {
		return nil
	}
	if n := silent.get(db); n > 0 {
		return fmt.Errorf("the pool has no free connection: %d are in use, and %d of them wait for answers that do not come", s.InUse, n)
	}
	return fmt.Errorf("the pool has no free connection: all %d are in use (see db.SetMaxOpenConns)", s.InUse)
}

// A Conn is a connection taken out of a pool.
type Conn struct {
	*sql.Conn
	hold  *hold
	leave func()
}

// ErrNoDatabase is returned if the pool is nil.
var ErrNoDatabase = errors.New("orchestrator: the database (*sql.DB) is nil")

// Take takes a connection out of the pool.
func Take(ctx context.Context, db *sql.DB) (*Conn, error) {
	if db == nil {
		return nil, ErrNoDatabase
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		if pool := full(db); pool != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", pool, err)
		}
		return nil, err
	}
	c := &Conn{Conn: conn, hold: &hold{db: db}, leave: func() {}}
	if err := conn.Raw(func(driver any) error { c.hold.driver = driver; return nil }); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// During calls f. If that has not returned when ctx ends, the connection is cut.
func (c *Conn) During(ctx context.Context, f func() error) error {
	defer c.hold.watch(ctx)()
	return c.said(ctx, f())
}

// said returns the error of a call that has returned.
func (c *Conn) said(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && c.hold.wasCut() {
		return fmt.Errorf("no answer from the database: %w (%w)", context.Cause(ctx), err)
	}
	return err
}

// Close gives the connection back to the pool, or closes it if it was cut. It waits for calls on
// the connection.
func (c *Conn) Close() error {
	whole, first := c.hold.back()
	if !first {
		return nil
	}
	c.leave()
	if !whole {
		_ = c.Raw(func(conn any) error {
			closePgx(conn)
			return driver.ErrBadConn
		})
		silent.add(c.hold.db, -1)
	}
	return c.Conn.Close()
}

// closePgx tells pgx that its connection is closed. pgx does not notice that if no call was under
// way, and a pool of pgx (stdlib.OpenDBFromPool) would hand out the connection again.
func closePgx(conn any) {
	c := reached(conn, "Conn")
	if !c.IsValid() {
		return
	}
	if c, ok := c.Interface().(interface{ Close(context.Context) error }); ok {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		_ = c.Close(ctx)
	}
}

// Cut closes the network connection. A call on it fails.
func (c *Conn) Cut() { c.hold.cut() }

// Discard closes the connection without waiting.
func (c *Conn) Discard() {
	c.hold.cut()
	go c.Close()
}

// on makes a call on a connection of the pool. Like database/sql, it tries another connection if
// the driver reports that this one was dead before. The caller must close the connection. If it
// has not done so when ctx ends, the connection is cut.
func on[T any](ctx context.Context, db *sql.DB, call func(*Conn) (T, error)) (value T, c *Conn, err error) {
	for tries := 0; ; tries++ {
		if c, err = Take(ctx, db); err != nil {
			return value, nil, err
		}
		c.leave = c.hold.watch(ctx)
		if value, err = call(c); err == nil {
			return value, c, nil
		}
		err = c.said(ctx, err)
		_ = c.Close()
		if !errors.Is(err, driver.ErrBadConn) || ctx.Err() != nil || tries > db.Stats().OpenConnections {
			return value, nil, err
		}
	}
}

// Exec does what db.ExecContext does.
func Exec(ctx context.Context, db *sql.DB, query string, args ...any) (sql.Result, error) {
	result, c, err := on(ctx, db, func(c *Conn) (sql.Result, error) { return c.ExecContext(ctx, query, args...) })
	if err == nil {
		_ = c.Close()
	}
	return result, err
}

// Rows are the rows of a query. Close gives the connection back.
type Rows struct {
	*sql.Rows
	ctx  context.Context
	conn *Conn
}

// Query does what db.QueryContext does.
func Query(ctx context.Context, db *sql.DB, query string, args ...any) (*Rows, error) {
	rows, c, err := on(ctx, db, func(c *Conn) (*sql.Rows, error) { return c.QueryContext(ctx, query, args...) })
	if err != nil {
		return nil, err
	}
	return &Rows{rows, ctx, c}, nil
}

// Err does what sql.Rows.Err does.
func (r *Rows) Err() error { return r.conn.said(r.ctx, r.Rows.Err()) }

// Close closes the rows and gives the connection back.
func (r *Rows) Close() error { return errors.Join(r.Rows.Close(), r.conn.Close()) }

// A Row is the row of a query.
type Row struct {
	row  *sql.Row
	ctx  context.Context
	conn *Conn
	err  error
}

// QueryRow does what db.QueryRowContext does. Scan must be called.
func QueryRow(ctx context.Context, db *sql.DB, query string, args ...any) *Row {
	row, c, err := on(ctx, db, func(c *Conn) (*sql.Row, error) {
		row := c.QueryRowContext(ctx, query, args...)
		return row, row.Err()
	})
	return &Row{row, ctx, c, err}
}

// Scan does what sql.Row.Scan does.
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	err := r.conn.said(r.ctx, r.row.Scan(dest...))
	_ = r.conn.Close()
	return err
}

// A Tx is a transaction and its connection.
type Tx struct {
	*sql.Tx
	conn *Conn
	once bool // the connection is closed after the transaction
}

// Begin does what db.BeginTx does. If ctx ends before the transaction, the connection is cut.
func Begin(ctx context.Context, db *sql.DB, o *sql.TxOptions) (*Tx, error) {
	tx, c, err := on(ctx, db, func(c *Conn) (*sql.Tx, error) { return c.BeginTx(ctx, o) })
	if err != nil {
		return nil, err
	}
	return &Tx{Tx: tx, conn: c}, nil
}

// Commit does what sql.Tx.Commit does.
func (tx *Tx) Commit() error { return tx.end(tx.Tx.Commit()) }

// Rollback does what sql.Tx.Rollback does.
func (tx *Tx) Rollback() error { return tx.end(tx.Tx.Rollback()) }

// end gives the connection back. If the context ended the transaction, or it ended without an
// answer from the server, a call may still be under way on the connection: end does not wait for
// it.
func (tx *Tx) end(err error) error {
	var answer interface{ SQLState() string }
	if err != nil && !errors.As(err, &answer) {
		tx.conn.Cut()
	}
	if tx.once {
		_ = tx.conn.Raw(func(conn any) error {
			closePgx(conn)
			return driver.ErrBadConn // database/sql closes it
		})
	}
	_ = tx.conn.Close()
	return err
}

// CloseAfter makes the end of the transaction close the connection, for transactions that may
// change settings of the session.
func (tx *Tx) CloseAfter() { tx.once = true }

// During calls f. If that has not returned when ctx ends, the connection is cut.
func (tx *Tx) During(ctx context.Context, f func() error) error { return tx.conn.During(ctx, f) }

// Raw calls f with the driver's connection, as sql.Conn.Raw does. The transaction can't be used
// meanwhile. f must return. If it returns true, the connection is broken and is cut. (If f
// returned driver.ErrBadConn to sql.Conn.Raw, that would close the connection and wait for the
// end of the transaction, which waits for Raw.)
func (tx *Tx) Raw(f func(driverConn any) (broken bool)) error {
	broken := false
	err := tx.conn.Raw(func(driverConn any) error {
		broken = f(driverConn)
		return nil
	})
	if broken {
		tx.Cut()
	}
	return err
}

// Busy reports whether conn.Conn().PgConn().IsBusy() returns true: a call is under way on the
// connection. It returns false for drivers without these methods. pgx treats a busy connection
// as lost.
func Busy(conn any) bool {
	c := reached(conn, "Conn", "PgConn")
	if !c.IsValid() {
		return false
	}
	is, ok := c.Interface().(interface{ IsBusy() bool })
	return ok && is.IsBusy()
}

// Cut closes the network connection. A call in the transaction fails.
func (tx *Tx) Cut() { tx.conn.Cut() }

// A Querier is a pool, a connection of a pool, or a transaction.
type Querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// A Scanner has the methods that Rows and sql.Rows share.
type Scanner interface {
	Next() bool
	Scan(...any) error
	Err() error
	Close() error
}

// ExecOn runs a statement on q. If q is a pool, it is Exec.
func ExecOn(ctx context.Context, q Querier, query string, args ...any) (sql.Result, error) {
	if db, pool := q.(*sql.DB); pool {
		return Exec(ctx, db, query, args...)
	}
	return q.ExecContext(ctx, query, args...)
}

// QueryOn runs a query on q. If q is a pool, it is Query.
func QueryOn(ctx context.Context, q Querier, query string, args ...any) (Scanner, error) {
	if db, pool := q.(*sql.DB); pool {
		rows, err := Query(ctx, db, query, args...)
		if err != nil {
			return nil, err
		}
		return rows, nil
	}
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// ScanOn runs a query on q and scans its row. If q is a pool, it uses QueryRow.
func ScanOn(ctx context.Context, q Querier, query string, args []any, dest ...any) error {
	if db, pool := q.(*sql.DB); pool {
		return QueryRow(ctx, db, query, args...).Scan(dest...)
	}
	return q.QueryRowContext(ctx, query, args...).Scan(dest...)
}
