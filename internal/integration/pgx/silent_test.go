package pgx

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

// With pgx too, a call on a silent connection ends with its context, even a call without one,
// and the pool has another connection for the next call.
func TestSilentConnectionWithPgx(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, db *sql.DB, silence func()) error{
		"a row": func(ctx context.Context, db *sql.DB, silence func()) error {
			silence()
			var n int
			return dbconn.QueryRow(ctx, db, `SELECT 1`).Scan(&n)
		},
		"commit": func(ctx context.Context, db *sql.DB, silence func()) error {
			tx, err := dbconn.Begin(context.Background(), db, nil)
			if err != nil {
				return err
			}
			silence()
			return tx.During(ctx, tx.Commit)
		},
		"a statement in a transaction that is cut": func(ctx context.Context, db *sql.DB, silence func()) error {
			tx, err := dbconn.Begin(context.Background(), db, nil)
			if err != nil {
				return err
			}
			silence()
			stop := context.AfterFunc(ctx, tx.Cut)
			defer stop()
			_, err = tx.ExecContext(context.Background(), `SELECT 1`)
			_ = tx.Rollback()
			return errors.Join(ctx.Err(), err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, to := pgtest.Database(t)
			w, err := wire.To(to, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.Close)
			db, err := sql.Open("pgx", w.URL)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			db.SetMaxOpenConns(1)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := call(ctx, db, w.Silence); !errors.Is(err, context.DeadlineExceeded) {
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
