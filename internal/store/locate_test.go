package store_test

import (
	"database/sql"
	"errors"
	"net/url"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// one opens a database with one connection, and a search path unless that is "",
// and runs statements on that connection.
func one(t *testing.T, base, path string, statements ...string) *sql.DB {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	if q := u.Query(); path != "" {
		q.Set("search_path", path)
		u.RawQuery = q.Encode()
	}
	db, err := open(u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	return db
}

// A table is looked for where the connection's search path led when it began.
func TestFind(t *testing.T) {
	_, base := pgtest.Database(t)
	one(t, base, "",
		`CREATE SCHEMA a`, `CREATE SCHEMA "B, ""b"`, `CREATE SCHEMA empty`, `CREATE SCHEMA postgres`,
		`CREATE TABLE a.t ()`, `CREATE TABLE "B, ""b".t ()`, `CREATE TABLE public.t ()`, `CREATE TABLE a.only ()`, `CREATE TABLE postgres.mine ()`)
	for _, c := range []struct {
		why, path, session, table, want string
		ambiguous, temporary            bool
	}{
		{"the default", "", "", "t", "public", false, false},
		{"the first that has it", "nowhere, empty, A, public", "", "t", "a", false, false},
		{"a quoted name", `"B, ""b",a`, "", "t", `B, "b`, false, false},
		{"the user's own", "", "", "mine", "postgres", false, false},
		{"nowhere", "empty", "", "t", "", false, false},
		{"set since, to where there is none", "", "SET search_path = empty", "t", "public", false, false},
		{"set since, and the same", "empty,a", "SET search_path = a, public", "t", "a", false, false},
		{"set since, to another", "", "SET search_path = a, public", "t", "", true, false},
		{"set on each connection, which leads nowhere by itself", "empty", "SET search_path = a", "only", "a", false, false},
		{"a temporary one hides nothing", "", "CREATE TEMP TABLE t ()", "t", "public", false, true},
		{"a temporary one alone", "", "CREATE TEMP TABLE lonely ()", "lonely", "", false, true},
		{"a temporary one, named", "pg_temp,public", "CREATE TEMP TABLE t ()", "t", "public", false, true},
	} {
		t.Run(c.why, func(t *testing.T) {
			db := one(t, base, c.path, c.session)
			schema, temporary, err := sqltext.Find(t.Context(), db, c.table)
			var ambiguous *sqltext.AmbiguousError
			if schema != c.want || temporary != c.temporary || errors.As(err, &ambiguous) != c.ambiguous || err != nil && !c.ambiguous {
				t.Errorf("schema %q, temporary %t, %v", schema, temporary, err)
			}
		})
	}
}

// A store finds its tables once, and goes on with them. What can't be is refused.
func TestLocate(t *testing.T) {
	_, base := pgtest.Database(t)
	one(t, base, "", `CREATE SCHEMA a`, `CREATE SCHEMA b`, `CREATE SCHEMA empty`)
	for _, schema := range []string{"a", "b"} {
		if err := orchestrator.RunMigrations(one(t, base, schema)); err != nil {
			t.Fatal(err)
		}
	}
	db := one(t, base, "a")
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{`SET search_path = b`, `CREATE TEMP TABLE orchestrator_workers ()`} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := join(s, t, "w", "p"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ schema, want string }{{"a", "1"}, {"b", "0"}} {
		var n string
		if err := one(t, base, "").QueryRowContext(t.Context(), `SELECT count(*) FROM `+c.schema+`.orchestrator_workers`).Scan(&n); err != nil || n != c.want {
			t.Errorf("schema %s has %s workers, want %s: %v", c.schema, n, c.want, err)
		}
	}
	// The same database, for whoever asks later.
	if names, err := (store.Tables{DB: db}).Locate(t.Context()); err != nil || names.Schema != "a" {
		t.Errorf("located in %q, %v", names.Schema, err)
	}
	if exists, err := store.ProjectionExists(t.Context(), store.Tables{DB: db}, "p"); !exists || err != nil {
		t.Errorf("the projection exists: %t, %v", exists, err)
	}

	for _, c := range []struct {
		why     string
		db      *sql.DB
		schema  string
		mention string
	}{
		{"another path since", one(t, base, "a", `SET search_path = b`), "", `in schema "a" by the search path with which the connection began, and in "b"`},
		{"temporary tables alone", one(t, base, "empty", `CREATE TEMP TABLE orchestrator_schema ()`), "", "pg_temp"},
		{"pg_temp", one(t, base, "a"), "pg_temp", "pg_temp"},
		{"a schema without tables", one(t, base, "a"), "empty", `in schema "empty"`},
		{"no schema", one(t, base, "a"), "nowhere", `in schema "nowhere"`},
		{"nowhere", one(t, base, "empty"), "", "search path"},
	} {
		err := store.New(c.db, "set", store.Options{Schema: c.schema}).Check(t.Context())
		if !errors.Is(err, store.ErrSchema) || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("%s: %v", c.why, err)
		}
	}
	if err := store.New(one(t, base, "a"), "set", store.Options{Schema: "b"}).Check(t.Context()); err != nil {
		t.Errorf("a schema by name: %v", err)
	}
}

// A role that somebody has left on the pool's only connection costs the connection.
func TestRoleThatWasLeft(t *testing.T) {
	db := migrated(t)
	db.SetMaxOpenConns(1)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := db.ExecContext(t.Context(), `CREATE ROLE may_nothing`); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := db.ExecContext(t.Context(), `DROP ROLE may_nothing`); err != nil {
			t.Error(err)
		}
	}()
	for what, ask := range map[string]func() error{
		"join": func() error { _, err := join(s, t, "w", "p"); return err },
		"load": func() error {
			_, err := s.Load(t.Context(), store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Total: 1}})
			return err
		},
		"report": func() error { return s.Report(t.Context(), "w", []byte(`{}`)) },
	} {
		if _, err := db.ExecContext(t.Context(), `SET ROLE may_nothing`); err != nil {
			t.Fatal(err)
		}
		if err := ask(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
