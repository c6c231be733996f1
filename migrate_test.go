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
	"orchestrator_checkpoints", "orchestrator_history", "orchestrator_park_orders", "orchestrator_parked", "orchestrator_projections",
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

// Copies of a program that start at once run the program's own SQL in turns, after the
// library's: two that run CREATE TABLE IF NOT EXISTS side by side may both find no table.
func TestMigrateSQLAtOnce(t *testing.T) {
	t.Parallel()
	db, _ := pgtest.Database(t)
	const n, rounds = 8, 5
	db.SetMaxOpenConns(n)
	for round := range rounds {
		var all sync.WaitGroup
		begin := make(chan struct{})
		text := fmt.Sprintf(`
CREATE TABLE IF NOT EXISTS read_model_%[1]d (id serial PRIMARY KEY, starts int NOT NULL);
-- It says so if somebody else is in here as well. (A transaction's locks don't go at one
-- moment, so this one goes before.)
DO $$ BEGIN
    IF NOT pg_try_advisory_lock(4711) THEN RAISE 'two at once'; END IF;
    INSERT INTO read_model_%[1]d (starts) SELECT 0 WHERE NOT EXISTS (SELECT FROM read_model_%[1]d);
    UPDATE read_model_%[1]d SET starts = starts + 1;
END $$;
CREATE INDEX IF NOT EXISTS read_model_%[1]d_starts ON read_model_%[1]d (starts);
SELECT pg_advisory_unlock(4711)`, round)
		for range n {
			all.Go(func() {
				<-begin
				if err := orchestrator.Migrate(t.Context(), db, orchestrator.WithSQL(text)); err != nil {
					t.Errorf("one of %d migrations: %v", n, err)
				}
			})
		}
		close(begin)
		all.Wait()
		var rows, starts int
		if err := db.QueryRow(fmt.Sprintf(`SELECT count(*), sum(starts) FROM read_model_%d`, round)).Scan(&rows, &starts); err != nil || rows != 1 || starts != n {
			t.Errorf("%d rows, and %d starts, %v; want 1 and %d", rows, starts, err, n)
		}
	}
	expectTables(t, db, "public", allTables)
}

// The program's SQL runs on the program's search path, wherever the library's tables are;
// and what it SETs is left on no connection.
func TestMigrateSQLSearchPath(t *testing.T) {
	t.Parallel()
	admin, base := pgtest.Database(t)
	execute(t, admin, "CREATE SCHEMA mine")
	db := reopen(t, base, "search_path", "mine,public")
	db.SetMaxOpenConns(1) // all of it is on one connection
	err := orchestrator.Migrate(t.Context(), db, orchestrator.InSchema("library"),
		orchestrator.WithSQL(`CREATE TABLE IF NOT EXISTS first (path text); INSERT INTO first SELECT current_setting('search_path')`),
		nil,
		orchestrator.WithSQL(`CREATE TABLE IF NOT EXISTS second (); SET search_path = pg_catalog; SET lock_timeout = 0`))
	if err != nil {
		t.Fatal(err)
	}
	expectTables(t, admin, "library", allTables)
	var path, after, found string
	err = db.QueryRow(`SELECT (SELECT path FROM first), current_setting('search_path'),
		(SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE tablename IN ('first', 'second'))`).Scan(&path, &after, &found)
	if err != nil || path != "mine,public" || after != "mine,public" || found != "mine.first mine.second" {
		t.Errorf("the path was %q, and is %q afterwards; the tables are %q, %v", path, after, found, err)
	}
}

// An error of the program's SQL says whose it is. The library's tables are migrated by
// then, and of the SQL nothing has happened.
func TestMigrateSQLFails(t *testing.T) {
	t.Parallel()
	const good = `CREATE TABLE good ()`
	for name, c := range map[string]struct {
		sql  []string
		says []string
		left string // what there is afterwards, beside the library's tables
	}{
		"an error":         {[]string{good + `; SELECT nonsense`}, []string{"the SQL of WithSQL failed", "nonsense", "none of it was applied", "are migrated"}, ""},
		"the second":       {[]string{good, `SELECT nonsense`}, []string{"WithSQL number 2 (of 2) failed", "nonsense"}, ""},
		"an index":         {[]string{`CREATE INDEX CONCURRENTLY ON pg_class (oid)`}, []string{"WithSQL failed", "CREATE INDEX CONCURRENTLY", "it runs in a transaction"}, ""},
		"vacuum":           {[]string{good + `; VACUUM`}, []string{"WithSQL failed", "VACUUM", "it runs in a transaction"}, ""},
		"found at COMMIT":  {[]string{good + `; CREATE TABLE a (id int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO a VALUES (1), (1)`}, []string{"the SQL of WithSQL failed", "duplicate key"}, ""},
		"END, unseen":      {[]string{good + `; END; CREATE TABLE more ()`}, []string{"the SQL of WithSQL has ended its transaction", "some of it may have happened"}, "good more"},
		"COMMIT":           {[]string{good + `; COMMIT`}, []string{"the SQL of WithSQL contains COMMIT"}, "-"},
		"ROLLBACK":         {[]string{good, `ROLLBACK; ` + good}, []string{"number 2 (of 2) contains ROLLBACK"}, "-"},
		"nothing":          {[]string{" -- a comment\n"}, []string{"the SQL of WithSQL contains no statement"}, "-"},
		"a function's END": {[]string{`DO $$ BEGIN END; $$; CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$; SAVEPOINT s; ROLLBACK TO s`}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, _ := pgtest.Database(t)
			var options []orchestrator.MigrateOption
			for _, text := range c.sql {
				options = append(options, orchestrator.WithSQL(text))
			}
			err := orchestrator.Migrate(t.Context(), db, options...)
			if (err == nil) != (c.says == nil) {
				t.Errorf("Migrate returned %v", err)
			}
			for _, want := range c.says {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%v; want that it says %q", err, want)
				}
			}
			library := allTables
			if c.left == "-" { // it was refused before anything was done
				c.left, library = "", nil
				if !errors.Is(err, orchestrator.ErrInvalidConfig) {
					t.Errorf("%v, want ErrInvalidConfig", err)
				}
			}
			expectTables(t, db, "public", library)
			var left string
			if err := db.QueryRow(`SELECT coalesce(string_agg(tablename, ' ' ORDER BY tablename), '') FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'orchestrator%'`).Scan(&left); err != nil || left != c.left {
				t.Errorf("it has left %q, %v; want %q", left, err, c.left)
			}
			if in := db.Stats().InUse; in != 0 {
				t.Errorf("%d connections are in use", in)
			}
		})
	}
}

// untilWaiting returns a context that is cancelled once a session of the database waits for
// a lock.
func untilWaiting(t *testing.T, db *sql.DB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		defer cancel()
		for waiting := false; !waiting && ctx.Err() == nil; {
			err := db.QueryRowContext(ctx, `
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	return ctx
}

// The program's SQL waits for a lock for a bounded time, and names who may hold it; the
// library's tables are migrated all the same. Then it goes on.
func TestMigrateSQLWaits(t *testing.T) {
	t.Parallel()
	db, base := pgtest.Database(t)
	execute(t, db, `CREATE TABLE orders (id int)`)
	tx, err := reopen(t, base, "application_name", "long_report").BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `SELECT FROM orders`); err != nil {
		t.Fatal(err)
	}
	alter := orchestrator.WithSQL(`ALTER TABLE orders ADD COLUMN IF NOT EXISTS total int`)
	err = orchestrator.Migrate(untilWaiting(t, db), db, alter)
	for _, want := range []string{"the SQL of WithSQL", "long_report", "held by one of backend"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want that it says %q", err, want)
		}
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
	expectTables(t, db, "public", allTables)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := orchestrator.Migrate(t.Context(), db, alter); err != nil {
		t.Error(err)
	}
}
