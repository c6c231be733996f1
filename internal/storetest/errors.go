package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Errors checks how package store classifies the errors of a driver, with real errors.
func Errors(t *testing.T, open Open) {
	_, base := pgtest.Database(t)
	db, err := open(base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	exec(t, db, `CREATE TABLE numbers (n int PRIMARY KEY, v int NOT NULL DEFAULT 0 CHECK (v < 1000), later int UNIQUE DEFERRABLE INITIALLY DEFERRED)`)
	exec(t, db, `INSERT INTO numbers VALUES (1, 1, 1), (2, 2, 2)`)

	for _, c := range []struct {
		name             string
		make             func(t *testing.T, d database) error
		state            string // "*": the driver may have lost it with the connection
		passing, forever bool
		network          bool // it can't be told from an error of any other connection
	}{
		{name: "undefined table", make: statement(`SELECT * FROM missing`), state: "42P01", forever: true},
		{name: "undefined column", make: statement(`SELECT missing FROM numbers`), state: "42703", forever: true},
		{name: "undefined schema", make: statement(`SELECT * FROM missing.numbers`), state: "42P01", forever: true},
		{name: "no schema to create in", make: noSchema, state: "3F000", forever: true},
		{name: "no such database", make: noDatabase, state: "3D000", forever: true},
		{name: "no privilege", make: noPrivilege, state: "42501", forever: true},
		{name: "value out of range", make: statement(`UPDATE numbers SET v = 1 / (n - n)`), state: "22012", forever: true},
		{name: "constraint", make: statement(`UPDATE numbers SET v = 1000`), state: "23514"},
		{name: "deferred constraint", make: deferred, state: "23505"},
		{name: "failed transaction", make: failedTransaction, state: "25P02"},
		{name: "deadlock", make: deadlock, state: "40P01", passing: true},
		{name: "serialization failure", make: serialization, state: "40001", passing: true},
		{name: "lock timeout", make: lockTimeout, state: "55P03", passing: true},
		{name: "statement timeout", make: statementTimeout, state: "57014", passing: true},
		{name: "terminated while waiting", make: terminatedWaiting, state: "*", passing: true},
		{name: "terminated while idle", make: terminatedIdle, state: "*", passing: true},
		{name: "terminated, then COMMIT", make: terminatedCommit, state: "*", passing: true},
		{name: "idle in transaction", make: idleTransaction, state: "*", passing: true},
		{name: "second statement on a lost connection", make: terminatedTwice, state: "*", passing: true},
		{name: "connection refused", make: refusedConnection, passing: true, network: true},
		{name: "connection closed by the peer", make: closedByPeer, state: "*", passing: true},
		{name: "context cancelled", make: cancelled, state: "*"},
		{name: "deadline exceeded", make: deadline, state: "*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.make(t, database{db, base, open})
			if err == nil {
				t.Fatal("no error")
			}
			t.Logf("%T: %v", err, err)
			if got := store.State(err); got != c.state && c.state != "*" {
				t.Errorf("State is %q, want %q", got, c.state)
			}
			for _, err := range []error{err, fmt.Errorf("wrapped: %w", err), errors.Join(errors.New("other"), err)} {
				if got := store.Passing(err); got != c.passing {
					t.Errorf("Passing(%v) = %t", err, got)
				}
				if got := store.Permanent(err); got != c.forever {
					t.Errorf("Permanent(%v) = %t", err, got)
				}
				if got := store.PassingState(err); got != c.passing && c.state != "*" && !c.network || got && c.network {
					t.Errorf("PassingState(%v) = %t", err, got)
				}
				if got, want := store.LockTimeout(err), c.state == "55P03"; got != want {
					t.Errorf("LockTimeout(%v) = %t", err, got)
				}
				if got, want := store.FailedTransaction(err), c.state == "25P02"; got != want {
					t.Errorf("FailedTransaction(%v) = %t", err, got)
				}
			}
		})
	}
}

// A database is where the errors are produced.
type database struct {
	db   *sql.DB
	base string
	open Open
}

func exec(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func statement(query string) func(*testing.T, database) error {
	return func(t *testing.T, d database) error {
		_, err := d.db.ExecContext(t.Context(), query)
		return err
	}
}

func noSchema(t *testing.T, d database) error {
	conn := connection(t, d.db)
	defer conn.Close()
	defer conn.ExecContext(context.Background(), `RESET search_path`)
	return errors.Join(execConn(t, conn, `SET search_path = ''`), execConn(t, conn, `CREATE TABLE nowhere ()`))
}

// noDatabase fails when a connection is opened.
func noDatabase(t *testing.T, d database) error {
	u, err := url.Parse(d.base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/no_such_database"
	return ping(t, d.open, u.String())
}

func noPrivilege(t *testing.T, d database) error {
	// pg_monitor is a role that every server has, and that has no rights here.
	conn := connection(t, d.db)
	defer conn.Close()
	defer conn.ExecContext(context.Background(), `RESET ROLE`)
	return errors.Join(execConn(t, conn, `SET ROLE pg_monitor`), execConn(t, conn, `UPDATE numbers SET v = 5`))
}

func deferred(t *testing.T, d database) error {
	tx := transaction(t, d.db, nil)
	execTx(t, tx, `UPDATE numbers SET later = 1`)
	return tx.Commit()
}

func failedTransaction(t *testing.T, d database) error {
	tx := transaction(t, d.db, nil)
	if _, err := tx.ExecContext(t.Context(), `SELECT 1 / 0`); err == nil {
		t.Fatal("no error")
	}
	_, err := tx.ExecContext(t.Context(), `SELECT 1`)
	return err
}

func deadlock(t *testing.T, d database) error {
	one, two := transaction(t, d.db, nil), transaction(t, d.db, nil)
	execTx(t, one, `UPDATE numbers SET v = 5 WHERE n = 1`)
	execTx(t, two, `UPDATE numbers SET v = 5 WHERE n = 2`)
	// The one that is to fail must be the first to check for a deadlock.
	execTx(t, one, `SET LOCAL deadlock_timeout = '1h'`)
	execTx(t, two, `SET LOCAL deadlock_timeout = '10ms'`)
	first := make(chan error, 1)
	go func() {
		_, err := one.ExecContext(t.Context(), `UPDATE numbers SET v = 6 WHERE n = 2`)
		first <- err
	}()
	pgtest.Eventually(t, "the first one waits", func() bool { return (&postgres{t: t, db: d.db}).Waiting() == 1 })
	_, err := two.ExecContext(t.Context(), `UPDATE numbers SET v = 6 WHERE n = 1`)
	if err == nil {
		t.Fatal("no deadlock")
	}
	two.Rollback()
	if err := <-first; err != nil {
		t.Errorf("the other one: %v", err)
	}
	return err
}

func serialization(t *testing.T, d database) error {
	tx := transaction(t, d.db, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	var v int
	if err := tx.QueryRowContext(t.Context(), `SELECT v FROM numbers WHERE n = 1`).Scan(&v); err != nil {
		t.Fatal(err)
	}
	exec(t, d.db, `UPDATE numbers SET v = v + 1 WHERE n = 1`)
	_, err := tx.ExecContext(t.Context(), `UPDATE numbers SET v = v + 1 WHERE n = 1`)
	return err
}

func lockTimeout(t *testing.T, d database) error {
	one, two := transaction(t, d.db, nil), transaction(t, d.db, nil)
	execTx(t, one, `UPDATE numbers SET v = 5 WHERE n = 1`)
	execTx(t, two, `SET LOCAL lock_timeout = '1ms'`)
	_, err := two.ExecContext(t.Context(), `UPDATE numbers SET v = 6 WHERE n = 1`)
	return err
}

func statementTimeout(t *testing.T, d database) error {
	tx := transaction(t, d.db, nil)
	execTx(t, tx, `SET LOCAL statement_timeout = '1ms'`)
	_, err := tx.ExecContext(t.Context(), `SELECT pg_sleep(60)`)
	return err
}

func terminatedWaiting(t *testing.T, d database) error {
	one, two := transaction(t, d.db, nil), transaction(t, d.db, nil)
	execTx(t, one, `UPDATE numbers SET v = 5 WHERE n = 1`)
	backend := backendOf(t, two)
	done := make(chan error, 1)
	go func() {
		_, err := two.ExecContext(t.Context(), `UPDATE numbers SET v = 6 WHERE n = 1`)
		done <- err
	}()
	pgtest.Eventually(t, "the second one waits", func() bool { return (&postgres{t: t, db: d.db}).Waiting() == 1 })
	exec(t, d.db, `SELECT pg_terminate_backend($1)`, backend)
	return <-done
}

func terminatedIdle(t *testing.T, d database) error {
	tx := transaction(t, d.db, nil)
	terminate(t, d.db, tx)
	_, err := tx.ExecContext(t.Context(), `UPDATE numbers SET v = 5 WHERE n = 1`)
	return err
}

func terminatedTwice(t *testing.T, d database) error {
	tx := transaction(t, d.db, nil)
	terminate(t, d.db, tx)
	if _, err := tx.ExecContext(t.Context(), `SELECT 1`); err == nil {
		t.Fatal("no error")
	}
	var n int
	return tx.QueryRowContext(t.Context(), `SELECT 1`).Scan(&n)
}

func terminatedCommit(t *testing.T, d database) error {
	tx := transaction(t, d.db, nil)
	execTx(t, tx, `UPDATE numbers SET v = 5 WHERE n = 1`)
	terminate(t, d.db, tx)
	return tx.Commit()
}

// idleTransaction returns the error that a frozen worker gets when it goes on.
func idleTransaction(t *testing.T, d database) error {
	tx, err := store.New(d.db, "set", store.Options{Bounds: store.BoundsOf(10 * time.Millisecond)}).BeginHandler(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	// The backend is found by the start of its transaction: reading its process id in the
	// transaction would keep it from being idle.
	pgtest.Eventually(t, "the server has ended the transaction", func() bool {
		var n int
		err := d.db.QueryRowContext(t.Context(), `
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND query LIKE '%idle_in_transaction_session_timeout%'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	_, err = tx.ExecContext(t.Context(), `UPDATE numbers SET v = 5 WHERE n = 1`)
	return err
}

func refusedConnection(t *testing.T, d database) error {
	return ping(t, d.open, at127(t, d.base, func(l net.Listener) { l.Close() }))
}

func closedByPeer(t *testing.T, d database) error {
	return ping(t, d.open, at127(t, d.base, func(l net.Listener) {
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
	}))
}

// at127 returns the URL of a simulated server on a port of its own.
func at127(t *testing.T, base string, play func(net.Listener)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	play(l)
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	return u.String()
}

func ping(t *testing.T, open Open, address string) error {
	db, err := open(address)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.PingContext(t.Context())
}

func cancelled(t *testing.T, d database) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := d.db.ExecContext(ctx, `SELECT 1`)
	return err
}

func deadline(t *testing.T, d database) error {
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	_, err := d.db.ExecContext(ctx, `SELECT 1`)
	return err
}

func connection(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func execConn(t *testing.T, conn *sql.Conn, query string) error {
	_, err := conn.ExecContext(t.Context(), query)
	return err
}

func transaction(t *testing.T, db *sql.DB, o *sql.TxOptions) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return tx
}

func execTx(t *testing.T, tx *sql.Tx, query string) {
	t.Helper()
	if _, err := tx.ExecContext(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func backendOf(t *testing.T, tx *sql.Tx) (pid int) {
	t.Helper()
	if err := tx.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// terminate ends the transaction's backend and waits until it has ended.
func terminate(t *testing.T, db *sql.DB, tx *sql.Tx) {
	t.Helper()
	pid := backendOf(t, tx)
	exec(t, db, `SELECT pg_terminate_backend($1)`, pid)
	pgtest.Eventually(t, "the backend is gone", func() bool {
		var n int
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}
