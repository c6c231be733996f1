package orchestratorpgx_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/orchestratortest"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// A pool has one database with the pool's limit. The database keeps no connections: they go back
// to the pool.
func TestDB(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	pool := newPool(t, url, 3)
	db := orchestratorpgx.DB(pool)
	if orchestratorpgx.DB(pool) != db || orchestratorpgx.DB(newPool(t, url, 3)) == db || orchestratorpgx.DB(nil) != nil {
		t.Error("a pool has not one database of its own")
	}
	if n := db.Stats().MaxOpenConnections; n != 3 {
		t.Errorf("the limit is %d, want 3", n)
	}
	var first, then int
	for i, pid := range []*int{&first, &then} {
		if err := db.QueryRow(`SELECT pg_backend_pid()`).Scan(pid); err != nil {
			t.Fatal(err)
		}
		if s := pool.Stat(); s.AcquiredConns() != 0 || s.IdleConns() != 1 {
			t.Errorf("after use %d: %d connections in use, %d idle", i, s.AcquiredConns(), s.IdleConns())
		}
	}
	if first != then {
		t.Errorf("backend %d follows backend %d", then, first)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Raw(func(c any) error {
		if _, ok := c.(*stdlib.Conn); !ok {
			return fmt.Errorf("the driver's connection is a %T", c)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// The program's own SQL may consist of several statements. What it SETs stays on no connection
// of the pool.
func TestMigrateWithSQL(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	pool := newPool(t, url, 1)
	for range 2 {
		err := orchestrator.Migrate(t.Context(), orchestratorpgx.DB(pool), orchestrator.InSchema("library"),
			orchestrator.WithSQL(`CREATE TABLE IF NOT EXISTS one (); CREATE TABLE IF NOT EXISTS two (); SET search_path = pg_catalog`))
		if err != nil {
			t.Fatal(err)
		}
	}
	var path, tables string
	err := pool.QueryRow(t.Context(), `SELECT current_setting('search_path'), string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'`).Scan(&path, &tables)
	if err != nil || path != `"$user", public` || tables != "one two" {
		t.Errorf("the search path is %s, the tables are %q, %v", path, tables, err)
	}
	if err := orchestrator.Migrate(t.Context(), orchestratorpgx.DB(pool), orchestrator.WithSQL(`SELECT 1; SELECT nonsense`)); err == nil || !strings.Contains(err.Error(), "the SQL of WithSQL failed") {
		t.Errorf("SQL that fails: %v", err)
	}
	pgtest.Eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
}

// A projection with a pgx.Tx can be tested with orchestratortest.
func TestProjectionInOrchestratortest(t *testing.T) {
	t.Parallel()
	pool := newPool(t, orchestratortest.URL(t), 20)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE users (id text)`); err != nil {
		t.Fatal(err)
	}
	users := orchestratorpgx.Batch("users", func(ctx context.Context, tx pgx.Tx, events []orchestrator.Event) error {
		var rows [][]any
		for _, e := range events {
			rows = append(rows, []any{e.AggregateID})
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"users"}, []string{"id"}, pgx.CopyFromRows(rows))
		return err
	})
	orchestratortest.Run(t, orchestratorpgx.DB(pool), users, orchestratortest.Events(orchestrator.Event{AggregateID: "a"}, orchestrator.Event{AggregateID: "b"})...)
	var all string
	if err := pool.QueryRow(t.Context(), `SELECT string_agg(id, ' ' ORDER BY id) FROM users`).Scan(&all); err != nil || all != "a b" {
		t.Errorf("the users are %q, %v", all, err)
	}
}

// A cut connection is closed and does not go back to the pool.
func TestCutConnection(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	pool := newPool(t, url, 1)
	conn, err := dbconn.Take(t.Context(), orchestratorpgx.DB(pool))
	if err != nil {
		t.Fatal(err)
	}
	conn.Cut() // no call is under way, so pgx does not notice
	conn.Close()
	var n int
	if err := pool.QueryRow(t.Context(), `SELECT 1`).Scan(&n); err != nil {
		t.Errorf("the next user of the pool: %v", err)
	}
	if n := pool.Stat().NewConnsCount(); n != 2 {
		t.Errorf("%d connections were made, want 2", n)
	}
}

// The error of a full pool differs from that of a database that does not answer, whoever uses
// the connections.
func TestFullPool(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	pool := newPool(t, url, 1)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = orchestratorpgx.DB(pool).ExecContext(ctx, `SELECT 1`)
	if err == nil || !strings.Contains(err.Error(), "the pool has no free connection: all 1 are in use (see pgxpool.Config.MaxConns)") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
	conn.Release()
	if _, err := orchestratorpgx.DB(pool).ExecContext(t.Context(), `SELECT 1`); err != nil {
		t.Error(err)
	}
}

// A closed pool closes its database.
func TestDatabaseEndsWithItsPool(t *testing.T) {
	_, url := pgtest.Database(t)
	database := func() weak.Pointer[sql.DB] {
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		db := orchestratorpgx.DB(pool)
		if err := db.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		if orchestratorpgx.DB(pool) != db {
			t.Error("a pool that is open has lost its database")
		}
		pool.Close()
		if err := db.PingContext(t.Context()); err == nil {
			t.Error("the database of a closed pool answers")
		}
		return weak.Make(db)
	}()
	pgtest.Eventually(t, "it is gone", func() bool {
		runtime.GC()
		return database.Value() == nil
	})
}

// A pool that is too small is refused by name, with the necessary size and its parts. A pool of
// exactly that size works.
func TestPoolTooSmall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	for _, c := range []struct {
		name      string
		size      int32
		change    func(*orchestrator.Config[event])
		kinds     int
		want      string // "": it runs
		alongside bool   // another worker runs on the pool
	}{
		{name: "one projection", size: 3, kinds: 1, want: "4 connections are needed"},
		{name: "one projection fits", size: 4, kinds: 1},
		{name: "three projections", size: 5, kinds: 3, want: "6 connections are needed"},
		{name: "three projections fit", size: 6, kinds: 3},
		{name: "partitions", size: 8, kinds: 3, change: func(c *orchestrator.Config[event]) { c.Partitions = 2 }, want: "9 connections are needed"},
		{name: "lease only", size: 3, kinds: 1, change: func(c *orchestrator.Config[event]) { c.LeaseOnly = true }},
		{name: "no hints, lease only", size: 2, kinds: 1, change: func(c *orchestrator.Config[event]) { c.LeaseOnly, c.Notifier = true, nil }},
		{name: "no hints, lease only, too small", size: 1, kinds: 1, change: func(c *orchestrator.Config[event]) { c.LeaseOnly, c.Notifier = true, nil }, want: "2 connections are needed"},
		{name: "two workers", size: 6, kinds: 1, alongside: true, want: "8 connections are needed"},
		{name: "two workers fit", size: 8, kinds: 1, alongside: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			small := world{&testworld.World{T: t, DB: w.DB, URL: w.URL}, newPool(t, w.URL, c.size)}
			cfg := small.config(orchestrator.ReplicaSetName(c.name))
			if c.change != nil {
				c.change(&cfg)
			}
			var projections []orchestrator.Projection[event]
			for i := range c.kinds {
				projections = append(projections, copying(fmt.Sprintf("%s %d", c.name, i)))
			}
			if c.alongside {
				other := small.config(orchestrator.ReplicaSetName(c.name + ", the other"))
				testworld.Run(t, other, copying(c.name+", the other"))
				small.Active(other.ReplicaSet, 1)
			}
			before := w.Sets()
			o, err := orchestrator.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), testworld.Limit)
			defer cancel()
			err = o.CatchUp(ctx, projections)
			if c.want == "" {
				if err != nil {
					t.Errorf("CatchUp returned %v", err)
				}
				w.CheckEffects(c.name + " 0")
				if err := o.CatchUp(ctx, projections); err != nil { // the first worker is no longer counted
					t.Errorf("CatchUp returned %v, once more", err)
				}
				return
			}
			if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.HasPrefix(err.Error(), "orchestrator: ") ||
				!strings.Contains(err.Error(), fmt.Sprintf("MaxConns is %d, and %s", c.size, c.want)) {
				t.Errorf("CatchUp returned %v", err)
			}
			if w.Sets() != before {
				t.Error("it has joined all the same")
			}
		})
	}
}

// Behind a pooler in transaction mode, settings that can't work are refused by name before
// anything starts, and other settings work. A pooler in session mode makes no difference.
func TestBehindPooler(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	byTransaction, bySession := testworld.PgBouncer(t, w.URL, "transaction"), testworld.PgBouncer(t, w.URL, "session")
	server := newPool(t, w.URL, 4)
	mode := func(m pgx.QueryExecMode) func(*pgxpool.Config) {
		return func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = m }
	}
	for _, c := range []struct {
		name, url string
		mode      pgx.QueryExecMode
		notifier  func(own orchestrator.Notifier) orchestrator.Notifier
		want      string
	}{
		{"prepared", byTransaction, pgx.QueryExecModeCacheStatement, nil, "prepared statements are lost there; set default_query_exec_mode=exec"},
		{"described", byTransaction, pgx.QueryExecModeDescribeExec, nil, "prepared statements are lost there; set default_query_exec_mode=exec"},
		{"deaf", byTransaction, pgx.QueryExecModeExec, nil, "notifications don't arrive there; set Config.Notifier to nil"},
		{"polls", byTransaction, pgx.QueryExecModeExec, func(orchestrator.Notifier) orchestrator.Notifier { return nil }, ""},
		{"listens elsewhere", byTransaction, pgx.QueryExecModeSimpleProtocol, func(orchestrator.Notifier) orchestrator.Notifier { return orchestratorpgx.NewNotifier(server) }, ""},
		{"by session", bySession, pgx.QueryExecModeCacheStatement, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			behind := world{&testworld.World{T: t, DB: w.DB, URL: w.URL}, newPool(t, c.url, 6, mode(c.mode))}
			cfg := behind.config(orchestrator.ReplicaSetName(c.name))
			if c.notifier != nil {
				cfg.Notifier = c.notifier(cfg.Notifier)
			}
			before := w.Sets()
			o, err := orchestrator.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- o.Run(ctx, []orchestrator.Projection[event]{copying(c.name)}) }()
			if c.want == "" {
				behind.CaughtUp(c.name)
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("Run returned %v", err)
				}
				w.CheckEffects(c.name)
				return
			}
			err = <-ended
			if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.HasPrefix(err.Error(), "orchestrator: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run returned %v, want %q", err, c.want)
			}
			if w.Sets() != before {
				t.Error("it has joined all the same")
			}
		})
	}
}

// A program that uses the module does not link lib/pq.
func TestNoOtherDriver(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "github.com/jackc/pgx/v5") {
		t.Errorf("the list is of something else: %s", out)
	}
	if slices.ContainsFunc(deps, func(d string) bool { return strings.HasPrefix(d, "github.com/lib/pq") }) {
		t.Error("lib/pq is among the dependencies")
	}
}

// If the database is unreachable from the start, the worker waits for it. A stop meanwhile is
// graceful.
func TestStopWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	pool := newPool(t, "postgres://127.0.0.1:1/nowhere", 4)
	cfg, err := orchestratorpgx.Config(pool, "set")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.Run(ctx, []orchestrator.Projection[event]{copying("copying")}) }()
	pgtest.Eventually(t, "it has tried", func() bool { return pool.Stat().NewConnsCount() > 2 })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run returned %v", err)
	}
}
