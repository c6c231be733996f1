package dbconn_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// through opens a database through a wire, with a pool of one connection.
func through(t *testing.T) (*sql.DB, *wire.Wire) {
	t.Helper()
	_, to := pgtest.Database(t)
	w, err := wire.To(to, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	db, err := sql.Open("postgres", w.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	return db, w
}

// Each kind of call on a silent connection ends with its context, and the pool, of one
// connection, has another one for the next call.
func TestSilentConnection(t *testing.T) {
	for name, call := range map[string]func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error{
		"exec": func(_ *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			silence()
			_, err := dbconn.Exec(ctx, db, `SELECT 1`)
			return err
		},
		"a row": func(_ *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			silence()
			var n int
			return dbconn.QueryRow(ctx, db, `SELECT 1`).Scan(&n)
		},
		"rows that are being read": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			rows, err := dbconn.Query(ctx, db, `SELECT repeat('x', 1000) FROM generate_series(1, 100000)`)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			silence()
			for rows.Next() {
			}
			return rows.Err()
		},
		"rows that are closed early": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			rows, err := dbconn.Query(ctx, db, `SELECT repeat('x', 1000) FROM generate_series(1, 100000)`)
			if err != nil {
				t.Fatal(err)
			}
			silence()
			_ = rows.Close()
			return ctx.Err()
		},
		"begin": func(_ *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			silence()
			_, err := dbconn.Begin(ctx, db, nil)
			return err
		},
		"commit": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			tx, err := dbconn.Begin(context.Background(), db, nil)
			if err != nil {
				t.Fatal(err)
			}
			silence()
			return tx.During(ctx, tx.Commit)
		},
		"rollback": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			tx, err := dbconn.Begin(context.Background(), db, nil)
			if err != nil {
				t.Fatal(err)
			}
			silence()
			return tx.During(ctx, tx.Rollback)
		},
		"a statement in a transaction, and its end by its context": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			tx, err := dbconn.Begin(ctx, db, nil)
			if err != nil {
				t.Fatal(err)
			}
			silence()
			_, err = tx.ExecContext(context.Background(), `SELECT 1`)
			_ = tx.Rollback()
			return errors.Join(ctx.Err(), err)
		},
		"a statement in a transaction that is cut": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			tx, err := dbconn.Begin(context.Background(), db, nil)
			if err != nil {
				t.Fatal(err)
			}
			silence()
			stop := context.AfterFunc(ctx, tx.Cut)
			defer stop()
			_, err = tx.ExecContext(context.Background(), `SELECT 1`)
			_ = tx.Rollback()
			return errors.Join(ctx.Err(), err)
		},
		"a connection that is discarded": func(t *testing.T, ctx context.Context, db *sql.DB, silence func()) error {
			c, err := dbconn.Take(ctx, db)
			if err != nil {
				t.Fatal(err)
			}
			silence()
			done := make(chan error)
			go func() { _, err := c.ExecContext(context.Background(), `SELECT 1`); done <- err }()
			<-ctx.Done()
			c.Discard()
			<-done
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, w := through(t)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := call(t, ctx, db, w.Silence); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it ended with %v, want the context's end", err)
			}
			var n int
			if err := dbconn.QueryRow(t.Context(), db, `SELECT 1`).Scan(&n); err != nil {
				t.Errorf("the next call: %v", err)
			}
			pgtest.Eventually(t, "nothing is in use", func() bool { return db.Stats().InUse == 0 })
		})
	}
}

// Calls that end in time cost no connection, and neither do errors of the server.
func TestConnectionIsKept(t *testing.T) {
	db, _ := through(t)
	backend := func() (pid int) {
		t.Helper()
		if err := dbconn.QueryRow(t.Context(), db, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first := backend()
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := dbconn.Exec(ctx, db, `SELECT 1`); err != nil {
			t.Fatal(err)
		}
		if _, err := dbconn.Exec(ctx, db, `SELECT 1 / 0`); err == nil {
			t.Fatal("it divided by zero")
		}
		rows, err := dbconn.Query(ctx, db, `SELECT generate_series(1, 10)`)
		if err != nil || !rows.Next() {
			t.Fatal(err)
		}
		rows.Close()
		tx, err := dbconn.Begin(t.Context(), db, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.During(ctx, func() error { _, err := tx.ExecContext(ctx, `SELECT 1`); return err }); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("rollback after commit: %v", err)
		}
	}
	if pid := backend(); pid != first {
		t.Errorf("backend %d has become %d", first, pid)
	}
}

// A connection that the server has ended while it was idle is replaced without an error.
func TestDeadConnectionIsReplaced(t *testing.T) {
	_, to := pgtest.Database(t)
	db, err := sql.Open("postgres", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	other, err := sql.Open("postgres", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	for range 3 {
		var pid int
		if err := dbconn.QueryRow(t.Context(), db, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Exec(`SELECT pg_terminate_backend($1, 10000)`, pid); err != nil {
			t.Fatal(err)
		}
		if _, err := dbconn.Exec(t.Context(), db, `SELECT 1`); err != nil && !strings.Contains(err.Error(), "57P01") {
			t.Errorf("after the server has ended the connection: %v", err)
		}
	}
}

// The error of a full pool differs from that of a database that does not answer.
func TestFullPool(t *testing.T) {
	db, _ := through(t)
	c, err := dbconn.Take(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = dbconn.Exec(ctx, db, `SELECT 1`)
	if err == nil || !strings.Contains(err.Error(), "the pool has no free connection: all 1 are in use") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := dbconn.Exec(t.Context(), db, `SELECT 1`); err != nil {
		t.Error(err)
	}
}

// If Raw's function returns true, the connection is closed, and neither Raw nor the end of the
// transaction waits for the other.
func TestRaw(t *testing.T) {
	db, _ := through(t)
	for _, broken := range []bool{false, true} {
		tx, err := dbconn.Begin(t.Context(), db, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Raw(func(any) bool { return broken }); err != nil {
			t.Errorf("Raw returned %v", err)
		}
		if _, err := tx.ExecContext(t.Context(), `SELECT 1`); err != nil && !broken {
			t.Errorf("the transaction says %v", err)
		}
		if broken { // Raw does not wait until it is closed
			pgtest.Eventually(t, "the transaction fails", func() bool {
				_, err := tx.ExecContext(t.Context(), `SELECT 1`)
				return err != nil
			})
		}
		if err := tx.Rollback(); (err != nil) != broken {
			t.Errorf("broken: %t, and its end says %v", broken, err)
		}
	}
}
