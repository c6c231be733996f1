package store_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

// What is asked on a connection that has fallen silent ends, and gives its connection
// back. A worker that hears of a standby looks through its pool, and some of the
// connections there lead to a primary that is gone.
func TestSilentConnections(t *testing.T) {
	for name, call := range map[string]func(context.Context, *sql.DB){
		"Save": func(ctx context.Context, db *sql.DB) {
			l := store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Total: 1}}
			_ = store.New(db, "set", store.Options{}).Save(ctx, l, protocol.Checkpoint{}, protocol.Checkpoint{Position: 1})
		},
		"Highest": func(ctx context.Context, db *sql.DB) { _, _ = store.Highest(ctx, store.Tables{DB: db}, "p") },
		"HandledTo": func(ctx context.Context, db *sql.DB) {
			_, _ = store.HandledTo(ctx, store.Tables{DB: db}, store.Awaited{Projection: "p", Position: 1})
		},
		"DropStandbys": func(ctx context.Context, db *sql.DB) { store.DropStandbys(ctx, db) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, to := pgtest.Database(t)
			w, err := wire.To(to, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.Close)
			db, err := open(w.URL)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			db.SetMaxOpenConns(1)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			w.Silence()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			done := make(chan struct{})
			go func() { defer close(done); call(ctx, db) }()
			pgtest.Eventually(t, "it has returned", func() bool {
				select {
				case <-done:
					return true
				default:
					return false
				}
			})
			if err := db.PingContext(t.Context()); err != nil {
				t.Errorf("the pool: %v", err)
			}
			pgtest.Eventually(t, "no connection is in use", func() bool { return db.Stats().InUse == 0 })
		})
	}
}
