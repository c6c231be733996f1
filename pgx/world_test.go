package orchestratorpgx_test

import (
	"database/sql"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(childMain())
	}
	os.Exit(testworld.Main(m))
}

// newPool returns a pool with a number of connections, which is closed at the end of the test.
func newPool(t testing.TB, url string, size int32, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = size
	for _, f := range change {
		f(cfg)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// opener opens databases with DB, over pools.
func opener(t testing.TB) storetest.Open {
	return func(url string) (*sql.DB, error) { return orchestratorpgx.DB(newPool(t, url, 20)), nil }
}

// A world is a testworld.World with a pool.
type world struct {
	*testworld.World
	pool *pgxpool.Pool
}

func newWorld(t testing.TB) world {
	t.Helper()
	w := testworld.New(t)
	return world{w, newPool(t, w.URL, 20)}
}
