// Package dbconn makes calls on the connections of a database/sql pool that return
// when their context ends, and leave no connection behind.
//
// A context ends a call only where the driver listens to it. lib/pq, for one, goes on
// reading from a connection whose other end has fallen silent until the kernel gives
// up, a quarter of an hour later. Such a call keeps its place in the pool: a pool with
// a limit runs out of connections, though new ones would work at once.
//
// So this package remembers which connection a call is on. If the call has not
// returned a moment after its context has ended, the connection is cut: its socket is
// closed, the call fails, and the connection does not go back to the pool.
//
// It can't do so while the driver is still opening a connection; that is for the
// driver's own timeout (connect_timeout).
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

// grace is how long a driver has to return by itself when a context has ended.
const grace = 50 * time.Millisecond

// A hold is a connection that was taken out of the pool.
type hold struct {
	db     *sql.DB
	driver any // the driver's connection
	mu     sync.Mutex
	isCut  bool
	isBack bool
}

// cut closes the connection, unless it was given back. The call that is on it fails.
func (h *hold) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isCut || h.isBack {
		return
	}
	h.isCut = true
	silent.add(h.db, 1)
	go closeSocket(h.driver) // it may have to wait for what is being sent
}

// wasCut reports whether it was.
func (h *hold) wasCut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.isCut
}

// back reports whether it may go back to the pool, and whether this is the first time
// that it is asked.
func (h *hold) back() (whole, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, h.isBack = !h.isBack, true
	return !h.isCut, first
}

// watch cuts the connection a moment after ctx has ended, unless leave was called.
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
//   - pgx is not made for being closed by another goroutine, but shows its net.Conn. (It
//     is found by its methods, or this module would depend on pgx.)
//   - lib/pq is: its Close sends a message and closes the net.Conn, and does so itself
//     beside a call whose context ends.
//   - Another driver that has not listened to a context has its Close called. It is the
//     last that can be tried.
func closeSocket(conn any) {
	for {
		w, ok := conn.(interface{ Raw() driver.Conn }) // as wrappers have it that trace calls
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

// netConn returns conn.Conn().PgConn().Conn(), if there is such a thing.
func netConn(conn any) net.Conn {
	v := reached(conn, "Conn", "PgConn", "Conn")
	if !v.IsValid() {
		return nil
	}
	c, _ := v.Interface().(net.Conn)
	return c
}

// reached returns what methods without arguments return, each called on the result of
// the one before it; the zero Value if there is no such method, or nothing to call it on.
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

// silent counts, for each pool, the connections that were cut, and whose calls have
// not returned yet.
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

// full returns an error if the pool has no connection to give.
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

// A Conn is a connection out of a pool.
type Conn struct {
	*sql.Conn
	hold  *hold
	leave func()
}

// ErrNoDatabase is returned where the pool is nil.
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

// said returns what is to be said of a call on it that has returned.
func (c *Conn) said(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && c.hold.wasCut() {
		return fmt.Errorf("no answer from the database: %w (%w)", context.Cause(ctx), err)
	}
	return err
}

// Close gives it back to the pool, or has it closed if it was cut. It waits for what
// is under way on it.
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

// closePgx has pgx know that its connection is closed, which it does not by itself where no
// call was under way. From a pool of pgx's (stdlib.OpenDBFromPool) the connection would
// be handed out to the next who asks.
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

// Cut closes the connection below it. Whatever is under way on it fails.
func (c *Conn) Cut() { c.hold.cut() }

// Discard has it closed, and waits for nothing.
func (c *Conn) Discard() {
	c.hold.cut()
	go c.Close()
}

// on makes a call on a connection of the pool, as database/sql does: on another one if
// the driver says that this one was dead before. The connection is the caller's to
// close, and is cut if it has not done so when ctx ends.
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

// Exec is db.ExecContext.
func Exec(ctx context.Context, db *sql.DB, query string, args ...any) (sql.Result, error) {
	result, c, err := on(ctx, db, func(c *Conn) (sql.Result, error) { return c.ExecContext(ctx, query, args...) })
	if err == nil {
		_ = c.Close()
	}
	return result, err
}

// Rows are those of a query. Close gives the connection back.
type Rows struct {
	*sql.Rows
	ctx  context.Context
	conn *Conn
}

// Query is db.QueryContext.
func Query(ctx context.Context, db *sql.DB, query string, args ...any) (*Rows, error) {
	rows, c, err := on(ctx, db, func(c *Conn) (*sql.Rows, error) { return c.QueryContext(ctx, query, args...) })
	if err != nil {
		return nil, err
	}
	return &Rows{rows, ctx, c}, nil
}

// Err is that of sql.Rows.
func (r *Rows) Err() error { return r.conn.said(r.ctx, r.Rows.Err()) }

// Close closes the rows.
func (r *Rows) Close() error { return errors.Join(r.Rows.Close(), r.conn.Close()) }

// A Row is that of a query.
type Row struct {
	row  *sql.Row
	ctx  context.Context
	conn *Conn
	err  error
}

// QueryRow is db.QueryRowContext. Scan has to be called.
func QueryRow(ctx context.Context, db *sql.DB, query string, args ...any) *Row {
	row, c, err := on(ctx, db, func(c *Conn) (*sql.Row, error) {
		row := c.QueryRowContext(ctx, query, args...)
		return row, row.Err()
	})
	return &Row{row, ctx, c, err}
}

// Scan is that of sql.Row.
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	err := r.conn.said(r.ctx, r.row.Scan(dest...))
	_ = r.conn.Close()
	return err
}

// A Tx is a transaction, and its connection.
type Tx struct {
	*sql.Tx
	conn *Conn
	once bool // the connection is of no further use
}

// Begin is db.BeginTx. Where ctx ends before the transaction does, the connection is
// cut.
func Begin(ctx context.Context, db *sql.DB, o *sql.TxOptions) (*Tx, error) {
	tx, c, err := on(ctx, db, func(c *Conn) (*sql.Tx, error) { return c.BeginTx(ctx, o) })
	if err != nil {
		return nil, err
	}
	return &Tx{Tx: tx, conn: c}, nil
}

// Commit is that of sql.Tx.
func (tx *Tx) Commit() error { return tx.end(tx.Tx.Commit()) }

// Rollback is that of sql.Tx.
func (tx *Tx) Rollback() error { return tx.end(tx.Tx.Rollback()) }

// end gives the connection back. Where a transaction was ended by its context, or has
// ended without a word from the server, something may still be under way on it, which
// nobody is to wait for.
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

// CloseAfter has the connection closed when the transaction has ended, for one that may
// leave settings of its session behind.
func (tx *Tx) CloseAfter() { tx.once = true }

// During calls f. If that has not returned when ctx ends, the connection is cut.
func (tx *Tx) During(ctx context.Context, f func() error) error { return tx.conn.During(ctx, f) }

// Raw calls f with the driver's connection, as sql.Conn.Raw does. Nothing else can be done
// in the transaction meanwhile. f must return, and reports whether the connection is of
// no more use: it is cut then. (What f would return to sql.Conn.Raw as driver.ErrBadConn
// has that close the connection, and wait for the transaction to end, which waits for
// Raw.)
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

// Busy reports whether something is under way on a driver's connection, as far as that
// says so: by conn.Conn().PgConn().IsBusy(). pgx takes a busy connection for a lost one.
func Busy(conn any) bool {
	c := reached(conn, "Conn", "PgConn")
	if !c.IsValid() {
		return false
	}
	is, ok := c.Interface().(interface{ IsBusy() bool })
	return ok && is.IsBusy()
}

// Cut closes the connection. Whatever is under way in the transaction fails.
func (tx *Tx) Cut() { tx.conn.Cut() }

// A Querier is a pool, a connection out of one, or a transaction.
type Querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// A Scanner is what is common to Rows and sql.Rows.
type Scanner interface {
	Next() bool
	Scan(...any) error
	Err() error
	Close() error
}

// ExecOn is Exec where q is a pool.
func ExecOn(ctx context.Context, q Querier, query string, args ...any) (sql.Result, error) {
	if db, pool := q.(*sql.DB); pool {
		return Exec(ctx, db, query, args...)
	}
	return q.ExecContext(ctx, query, args...)
}

// QueryOn is Query where q is a pool.
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

// ScanOn is QueryRow where q is a pool, and scans the row.
func ScanOn(ctx context.Context, q Querier, query string, args []any, dest ...any) error {
	if db, pool := q.(*sql.DB); pool {
		return QueryRow(ctx, db, query, args...).Scan(dest...)
	}
	return q.QueryRowContext(ctx, query, args...).Scan(dest...)
}
