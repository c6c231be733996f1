package ops_test

import (
	"database/sql"
	"os"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A world is a database with the library's tables.
type world struct {
	t  testing.TB
	db *sql.DB
}

func newWorld(t testing.TB) *world {
	t.Helper()
	db, _ := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	return &world{t, db}
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// number runs a query that returns one number.
func (w *world) number(query string, args ...any) (n int64) {
	w.t.Helper()
	if err := w.db.QueryRowContext(w.t.Context(), query, args...).Scan(&n); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	return n
}
