package orchestratorpgx_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// A projection that copies a row for each event into a table, exactly once.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, exampleURL()) // in production: os.Getenv("DATABASE_URL")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := orchestrator.Migrate(ctx, orchestratorpgx.DB(pool)); err != nil {
		log.Fatal(err)
	}
	cfg, err := orchestratorpgx.Config(pool, "main-projections")
	if err != nil {
		log.Fatal(err)
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	o, err := orchestrator.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	users := orchestratorpgx.Batch("users", func(ctx context.Context, tx pgx.Tx, events []orchestrator.Event) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"users"}, []string{"id", "registered_at"},
			pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
				return []any{events[i].AggregateID, events[i].CreatedAt}, nil
			}))
		return err
	})
	// CatchUp ends when all events are handled. A worker calls Run.
	if err := o.CatchUp(ctx, []orchestrator.Projection[orchestrator.Event]{users}); err != nil {
		log.Fatal(err)
	}
	var n int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM users`).Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "users")
	// Output: 1000 users
}

// exampleURL returns the URL of a database with events, which ends with the server.
func exampleURL() string {
	ctx := context.Background()
	url, _, err := pgtest.Server(exampleTB{}).CreateDatabase(ctx, "example")
	if err != nil {
		log.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, eventtable.Layout+`;
CREATE TABLE users (id text PRIMARY KEY, registered_at timestamptz NOT NULL);
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'shop', 'user', 'user-' || i, 1, gen_random_uuid(), 'UserRegistered', '{}' FROM generate_series(1, 1000) i`)
	if err != nil {
		log.Fatal(err)
	}
	return url
}

// An exampleTB is the testing.TB of an example.
type exampleTB struct{ testing.TB }

func (exampleTB) Helper()           {}
func (exampleTB) Fatal(args ...any) { log.Fatal(args...) }
