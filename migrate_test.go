package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// reopen opens a database again, with a setting of the session.
func reopen(t testing.TB, base, setting, value string) *sql.DB {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(setting, value)
	u.RawQuery = q.Encode()
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func execute(t testing.TB, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// tables returns the library's tables in a schema, in order.
func tables(t testing.TB, db *sql.DB, schema string) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename LIKE 'orchestrator%' ORDER BY 1`, schema)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		out = append(out, name)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

var allTables = []string{
	"orchestrator_checkpoints", "orchestrator_history", "orchestrator_parked", "orchestrator_projections",
	"orchestrator_replica_sets", "orchestrator_reports", "orchestrator_schema", "orchestrator_workers",
}

func expectTables(t testing.TB, db *sql.DB, schema string, want []string) {
	t.Helper()
	if got := tables(t, db, schema); !slices.Equal(got, want) {
		t.Errorf("schema %s has the tables %v, want %v", schema, got, want)
	}
}

// Every process migrates at its start, and a deployment starts many at once.
// Whatever isolation the database gives to transactions by default.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(isolation, func(t *testing.T) {
			_, base := pgtest.Database(t)
			db := reopen(t, base, "default_transaction_isolation", isolation)
			const n = 16
			db.SetMaxIdleConns(n)
			// All have a connection before the first begins.
			conns := make([]*sql.Conn, n)
			for i := range conns {
				conn, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				conns[i] = conn
			}
			for _, c := range conns {
				c.Close()
			}
			var all sync.WaitGroup
			begin := make(chan struct{})
			for range n {
				all.Go(func() {
					<-begin
					if err := orchestrator.RunMigrations(db); err != nil {
						t.Errorf("one of %d migrations: %v", n, err)
					}
				})
			}
			close(begin)
			all.Wait()
			expectTables(t, db, "public", allTables)
			if err := orchestrator.RunMigrations(db); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// What is there stays as it is, by RunMigrations as by schema.sql itself.
func TestMigrateTwice(t *testing.T) {
	t.Parallel()
	db, _ := pgtest.Database(t)
	execute(t, db, orchestrator.SchemaSQL(),
		`INSERT INTO orchestrator_replica_sets (name, generation) VALUES ('set', 7)`)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	execute(t, db, orchestrator.SchemaSQL())
	expectTables(t, db, "public", allTables)
	var generation, versions int
	err := db.QueryRow(`SELECT (SELECT generation FROM orchestrator_replica_sets), (SELECT count(*) FROM orchestrator_schema)`).Scan(&generation, &versions)
	if err != nil || generation != 7 || versions != 1 {
		t.Errorf("generation %d, %d versions, %v", generation, versions, err)
	}
}

func TestMigrateNil(t *testing.T) {
	t.Parallel()
	if err := orchestrator.RunMigrations(nil); !errors.Is(err, orchestrator.ErrInvalidConfig) {
		t.Errorf("%v, want ErrInvalidConfig", err)
	}
}

// role creates a role for the test.
func role(t testing.TB, db *sql.DB, base string) (name string) {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	name = "r" + strings.TrimPrefix(u.Path, "/t") // as unique as the database
	name = name[:min(len(name), 63)]
	execute(t, db, "CREATE ROLE "+name)
	t.Cleanup(func() {
		for _, s := range []string{"DROP OWNED BY " + name, "DROP ROLE " + name} {
			if _, err := db.ExecContext(context.Background(), s); err != nil {
				t.Errorf("%s: %v", s, err)
			}
		}
	})
	return name
}

// A program whose role may use the tables and not create any still calls
// RunMigrations at its start. When there is something to do, it says what it
// was not allowed to.
func TestMigratePrivilege(t *testing.T) {
	t.Parallel()
	admin, base := pgtest.Database(t)
	r := role(t, admin, base)
	execute(t, admin, "REVOKE ALL ON SCHEMA public FROM public", "GRANT USAGE ON SCHEMA public TO "+r)
	db := reopen(t, base, "role", r)
	err := orchestrator.RunMigrations(db)
	if err == nil || !strings.Contains(err.Error(), "permission denied for schema public") {
		t.Errorf("without the right to create tables: %v", err)
	}
	if err := orchestrator.RunMigrations(admin); err != nil {
		t.Fatal(err)
	}
	execute(t, admin, "GRANT SELECT ON orchestrator_schema TO "+r)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Errorf("up to date, and the right to read: %v", err)
	}
}

// Tables that are in the second schema of the search path are found, used and
// upgraded there. New ones in the first would hide them, and with them every
// checkpoint.
func TestMigrateSearchPath(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 0} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			admin, base := pgtest.Database(t)
			execute(t, admin, "CREATE SCHEMA first", "CREATE SCHEMA second")
			if err := orchestrator.RunMigrations(reopen(t, base, "search_path", "second")); err != nil {
				t.Fatal(err)
			}
			execute(t, admin, fmt.Sprintf("UPDATE second.orchestrator_schema SET version = %d", version))
			db := reopen(t, base, "search_path", "first,second")
			if err := orchestrator.RunMigrations(db); err != nil {
				t.Errorf("migrate with the tables in the second schema: %v", err)
			}
			expectTables(t, db, "first", nil)
			expectTables(t, db, "second", allTables)

			// And Run works with them where they are.
			execute(t, admin, strings.Replace(eventtable.Layout, "TABLE events", "TABLE second.events", 1), strings.Replace(testworld.EffectsTable, "effects", "second.effects", 1))
			w := &world{&testworld.World{T: t, DB: db, URL: base}}
			w.Append(20)
			worker := testworld.Run(t, w.Config(db, "set"), w.All(db, nil)...)
			w.CaughtUp(testworld.Names...)
			worker.Stop()
			w.CheckEffects(testworld.Names...)
			expectTables(t, db, "first", nil)
		})
	}
	t.Run("none yet", func(t *testing.T) {
		admin, base := pgtest.Database(t)
		execute(t, admin, "CREATE SCHEMA first", "CREATE SCHEMA second")
		if err := orchestrator.RunMigrations(reopen(t, base, "search_path", "missing,first,second")); err != nil {
			t.Fatal(err)
		}
		expectTables(t, admin, "first", allTables)
		expectTables(t, admin, "second", nil)
	})
	t.Run("nowhere", func(t *testing.T) {
		_, base := pgtest.Database(t)
		err := orchestrator.RunMigrations(reopen(t, base, "search_path", "missing"))
		if err == nil || !strings.Contains(err.Error(), "no schema has been selected") {
			t.Errorf("migrate with a search path that leads nowhere: %v", err)
		}
	})
}

// Run refuses tables that are missing or too old, says what to do, and leaves
// them alone; newer ones it uses.
func TestRunSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	refused := func(what string, in ...string) {
		t.Helper()
		err := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, nil)...).Failed()
		if !errors.Is(err, orchestrator.ErrSchema) {
			t.Errorf("%s: Run returned %v, want ErrSchema", what, err)
			return
		}
		for _, s := range append(in, "RunMigrations(db)", "schema.sql") {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: the error does not mention %s: %v", what, s, err)
			}
		}
	}
	w.Exec(`UPDATE orchestrator_schema SET version = 0`)
	refused("an older version")
	w.Exec(`DELETE FROM orchestrator_schema`)
	refused("no version")
	w.Exec(`ALTER TABLE orchestrator_schema RENAME TO gone`)
	refused("no tables", "orchestrator_schema")
	w.Exec(`ALTER TABLE gone RENAME TO orchestrator_schema`)
	if n := w.Sets(); n != 0 {
		t.Errorf("a worker that was refused has joined: %d replica sets", n)
	}

	w.Exec(`INSERT INTO orchestrator_schema (version) VALUES (99)`)
	if err := orchestrator.RunMigrations(w.DB); err != nil {
		t.Errorf("migrate a newer version: %v", err)
	}
	w.Exec(orchestrator.SchemaSQL())
	if v := w.Number(`SELECT version FROM orchestrator_schema`); v != 99 {
		t.Errorf("version 99 was turned into %d", v)
	}
	w.Append(10)
	worker := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, nil)...)
	w.CaughtUp(testworld.Names...)
	worker.Stop()
}
