// Package pgx tests the library with pgx's driver for database/sql.
package pgx

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// modes are the tested ways in which pgx sends a statement: the default, which prepares, and
// those for poolers in transaction mode. (The others, cache describe and describe exec, differ
// from the default only in round trips.)
var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

func opener(mode pgx.QueryExecMode) storetest.Open {
	return func(url string) (*sql.DB, error) {
		config, err := pgx.ParseConfig(url)
		if err != nil {
			return nil, err
		}
		config.DefaultQueryExecMode = mode
		return stdlib.OpenDB(*config), nil
	}
}

func TestStore(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, storetest.Postgres(t, opener(mode)))
		})
	}
}

func TestErrors(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			storetest.Errors(t, opener(mode))
		})
	}
}

func TestHandlers(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			storetest.Handlers(t, opener(mode))
		})
	}
}

func TestRun(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			testRun(t, opener(mode))
		})
	}
}

func TestImport(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			_, url := pgtest.Database(t)
			db, err := opener(mode)(url)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := orchestrator.RunMigrations(db); err != nil {
				t.Fatal(err)
			}
			for _, q := range []string{
				`CREATE TABLE projection_checkpoints (projection_name text PRIMARY KEY, last_global_position bigint NOT NULL)`,
				`INSERT INTO projection_checkpoints VALUES ('p_p0', 7), ('p_p1', 5), ('p_p2', 9)`,
			} {
				if _, err := db.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			imported, err := importer.Import(t.Context(), importer.Config{
				DB: db, Projection: "p", ReplicaSet: "set", Total: 3, Watch: time.Millisecond,
			})
			if err != nil || imported.Lowest != 5 || !imported.Exact {
				t.Fatalf("%v, %v", imported, err)
			}
			var n int
			err = db.QueryRow(`SELECT count(*) FROM orchestrator_checkpoints WHERE (partition, position, total, generation) IN ((0, 7, 3, 0), (1, 5, 3, 0), (2, 9, 3, 0))`).Scan(&n)
			if err != nil || n != 3 {
				t.Errorf("%d checkpoints were imported, %v", n, err)
			}
		})
	}
}

const tables = `
CREATE TABLE events (
    global_position   bigserial PRIMARY KEY,
    bounded_context   text NOT NULL,
    aggregate_type    text NOT NULL,
    aggregate_id      uuid NOT NULL,
    aggregate_version bigint NOT NULL,
    event_id          uuid NOT NULL UNIQUE,
    event_type        text NOT NULL,
    event_version     int NOT NULL DEFAULT 1,
    payload           bytea NOT NULL,
    trace_id          text,
    correlation_id    text,
    causation_id      text,
    metadata          jsonb,
    created_at        timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE effects (
    id         bigserial PRIMARY KEY,
    projection text NOT NULL,
    position   bigint NOT NULL,
    aggregate  uuid NOT NULL,
    payload    bytea NOT NULL,
    generation bigint NOT NULL,
    pid        int NOT NULL DEFAULT pg_backend_pid()
)`

const insertEvents = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, trace_id, metadata)
SELECT 'shop', 'order', md5((i % 40)::text)::uuid, i, gen_random_uuid(), 'placed', decode(md5(i::text), 'hex'),
       CASE WHEN i % 2 = 0 THEN 'trace' END, CASE WHEN i % 3 = 0 THEN '{"a": 1}'::jsonb END
  FROM generate_series(1, 200) AS i`

// effect inserts what it sees of an event, through a transaction.
func effect(ctx context.Context, projection string, tx orchestrator.Tx, e orchestrator.Event) error {
	a, ok := orchestrator.DeliveryFrom(ctx)
	if !ok {
		return errors.New("no assignment")
	}
	if e.TraceID.Valid != (e.AggregateVersion%2 == 0) || (e.Metadata != nil) != (e.AggregateVersion%3 == 0) ||
		len(e.EventID) != 36 || len(e.Payload) != 16 || e.CreatedAt.IsZero() || e.BoundedContext != "shop" {
		return fmt.Errorf("event read wrong: %+v", e)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO effects (projection, position, aggregate, payload, generation) VALUES ($1, $2, $3, $4, $5)`,
		projection, e.GlobalPosition, e.AggregateID, e.Payload, a.Generation)
	return err
}

type transactional struct{ failures *atomic.Int64 }

func (transactional) Name() string { return "transactional" }

func (transactional) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a transactional projection")
}

func (p transactional) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	// A statement whose rows are not all read.
	rows, err := tx.QueryContext(ctx, `SELECT position FROM effects WHERE projection = $1 LIMIT 5`, p.Name())
	if err != nil {
		return err
	}
	rows.Next()
	if err := rows.Close(); err != nil {
		return err
	}
	if e.AggregateVersion == 77 && p.failures.Add(1) == 1 {
		if err := effect(ctx, p.Name(), tx, e); err != nil {
			return err
		}
		return errors.New("fails once, after it has written")
	}
	return effect(ctx, p.Name(), tx, e)
}

type batched struct{}

func (batched) Name() string { return "batched" }

func (batched) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a batch projection")
}

func (p batched) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	for _, e := range events {
		if err := effect(ctx, p.Name(), tx, e); err != nil {
			return err
		}
	}
	return nil
}

type worker struct {
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, db *sql.DB) *worker {
	t.Helper()
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: "set", BatchSize: 20,
		HeartbeatInterval: 50 * time.Millisecond, StaleWorkerTimeout: 5 * time.Second, CoordinationTimeout: 20 * time.Second,
		JoinWindow: 10 * time.Millisecond, PollInterval: 20 * time.Millisecond,
		Retry:  orchestrator.Retry{Min: 5 * time.Millisecond, Max: 100 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{cancel, make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.done <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{transactional{new(atomic.Int64)}, batched{}})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return w
}

func (w *worker) stop(t *testing.T) {
	t.Helper()
	w.cancel()
	if err := <-w.done; err != nil {
		t.Fatalf("Run returned %v after a graceful stop", err)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

// Scale 1 → 2 → 1, lose every connection in between: nothing is lost, and nothing happens twice.
func testRun(t *testing.T, open storetest.Open) {
	_, url := pgtest.Database(t)
	admin, err := open(url) // this connection is not lost
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	number := func(query string, args ...any) (n int64) {
		t.Helper()
		if err := admin.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return n
	}
	exec := func(query string) {
		t.Helper()
		if _, err := admin.ExecContext(t.Context(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	active := func(total int) {
		t.Helper()
		pgtest.Eventually(t, fmt.Sprintf("%d partitions run", total), func() bool {
			return number(`SELECT count(*) FROM orchestrator_replica_sets WHERE phase = 'active' AND total = $1`, total) == 1
		})
	}
	caughtUp := func() {
		t.Helper()
		for _, p := range []string{"transactional", "batched"} {
			pgtest.Eventually(t, p+" has caught up", func() bool {
				return number(`SELECT count(DISTINCT position) FROM effects WHERE projection = $1`, p) == number(`SELECT count(*) FROM events`)
			})
		}
	}
	db := func() *sql.DB {
		db, err := open(url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}

	first := db()
	if err := orchestrator.RunMigrations(first); err != nil {
		t.Fatal(err)
	}
	exec(tables)
	exec(insertEvents)
	a := start(t, first)
	active(1)
	exec(insertEvents)
	b := start(t, db())
	active(2)

	exec(insertEvents)
	own := number(`SELECT pg_backend_pid()`)
	if n := number(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid <> $1`, own); n == 0 {
		t.Error("there was no connection to lose")
	}
	exec(insertEvents)
	caughtUp()
	active(2)

	a.stop(t)
	active(1)
	exec(insertEvents)
	caughtUp()
	b.stop(t)

	for promise, query := range map[string]string{
		"S2: lost":               `SELECT count(*) FROM events e, (VALUES ('transactional'), ('batched')) p (name) WHERE NOT EXISTS (SELECT 1 FROM effects WHERE projection = p.name AND position = e.global_position AND payload = e.payload AND aggregate = e.aggregate_id)`,
		"S3: twice":              `SELECT count(*) FROM (SELECT 1 FROM effects GROUP BY projection, position HAVING count(*) > 1) d`,
		"S4: out of order":       `SELECT count(*) FROM (SELECT position < lag(position) OVER (PARTITION BY projection, aggregate ORDER BY id) AS wrong FROM effects) o WHERE wrong`,
		"S5: went back":          `SELECT count(*) FROM (SELECT generation < lag(generation) OVER (PARTITION BY projection, aggregate ORDER BY id) AS wrong FROM effects) o WHERE wrong`,
		"workers that have left": `SELECT count(*) FROM orchestrator_workers`,
	} {
		if n := number(query); n != 0 {
			t.Errorf("%s: %d", promise, n)
		}
	}
}
