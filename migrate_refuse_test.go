package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

// snapshot is what there is in the schema public: tables and their columns.
func snapshot(t testing.TB, db *sql.DB) (all string) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `
SELECT coalesce(string_agg(c.relname || '.' || a.attname || ' ' || a.atttypid::regtype, E'\n' ORDER BY 1), '')
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Tables of our names that another program has made are refused by name, in whatever
// way the schema is applied, and nothing is changed.
func TestMigrateRefusesForeignTables(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, made string
		mentions   []string
	}{
		{"of the earlier migrations", `
CREATE TABLE orchestrator_generations (id uuid PRIMARY KEY, replica_set text NOT NULL, total_partitions int NOT NULL, created_at timestamptz NOT NULL);
CREATE TABLE orchestrator_workers (id uuid PRIMARY KEY, replica_set text NOT NULL, generation_id uuid NOT NULL REFERENCES orchestrator_generations (id),
    partition_key int NOT NULL DEFAULT -1, state text NOT NULL DEFAULT 'pending', last_heartbeat timestamptz NOT NULL, started_at timestamptz NOT NULL)`,
			[]string{"orchestrator_workers", "id", "another schema"}},
		{"without a version", `CREATE TABLE orchestrator_schema (singleton boolean, versions int)`, []string{"orchestrator_schema", "version", "another schema"}},
		{"of another type", `CREATE TABLE orchestrator_parked (projection text, position text)`, []string{"orchestrator_parked", "position", "another schema"}},
		{"squatted, with a version that is new enough", `CREATE TABLE orchestrator_schema (singleton boolean, version integer); INSERT INTO orchestrator_schema VALUES (true, 99)`,
			[]string{"orchestrator_schema", "another schema"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db, _ := pgtest.Database(t)
			execute(t, db, tt.made)
			before := snapshot(t, db)
			_, applied := db.ExecContext(t.Context(), orchestrator.SchemaSQL())
			w := newRefused(db)
			for how, err := range map[string]error{
				"Migrate": orchestrator.Migrate(t.Context(), db), "RunMigrations": orchestrator.RunMigrations(db), "schema.sql": applied,
				"Run": w,
			} {
				if err == nil {
					t.Errorf("%s has accepted it", how)
					continue
				}
				if how == "Run" && !errors.Is(err, orchestrator.ErrSchema) {
					t.Errorf("Run: %v, want ErrSchema", err)
				}
				if how != "Run" || strings.Contains(tt.made, "orchestrator_schema") {
					for _, m := range tt.mentions {
						if how != "schema.sql" || m != "another schema" { // that is the HINT there
							if !strings.Contains(err.Error(), m) {
								t.Errorf("%s does not mention %q: %v", how, m, err)
							}
						}
					}
				}
			}
			if after := snapshot(t, db); after != before {
				t.Errorf("it was changed: from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// newRefused returns what Run says in a database.
func newRefused(db *sql.DB) error {
	events, err := orchestrator.NewEventTable(db, "events")
	if err != nil {
		return err
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{DB: db, ReplicaSet: "set", EventStore: events})
	if err != nil {
		return err
	}
	return o.Run(context.Background(), []orchestrator.Projection[orchestrator.Event]{testworld.Effects{Projection: "p"}.Transactional()})
}

// Tables that fit, and are a stranger's: whoever may CREATE in a schema could have put
// them there, with triggers, for a superuser to alter or to use.
func TestMigrateRefusesAStrangersTables(t *testing.T) {
	t.Parallel()
	admin, base := pgtest.Database(t)
	r := role(t, admin, base)
	execute(t, admin, "GRANT CREATE, USAGE ON SCHEMA public TO "+r)
	if err := orchestrator.Migrate(t.Context(), reopen(t, base, "role", r)); err != nil {
		t.Fatal(err)
	}
	for _, version := range []int{3, 2} {
		execute(t, admin, fmt.Sprintf("UPDATE orchestrator_schema SET version = %d", version))
		err := orchestrator.Migrate(t.Context(), admin)
		for _, m := range []string{r, "owned", "another schema"} {
			if err == nil || !strings.Contains(err.Error(), m) {
				t.Errorf("version %d: %v; want that it mentions %q", version, err, m)
			}
		}
		if err := orchestrator.Migrate(t.Context(), reopen(t, base, "role", r)); err != nil {
			t.Errorf("their owner can't migrate version %d: %v", version, err)
		}
	}
}

// A schema that is named for the tables, and a stranger's: whoever may create schemas could
// have made it before, with the tables in it and triggers on them.
func TestMigrateRefusesAStrangersSchema(t *testing.T) {
	t.Parallel()
	admin, base := pgtest.Database(t)
	r := role(t, admin, base)
	execute(t, admin, fmt.Sprintf(`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %%I TO %s', current_database()); END $$`, r))
	theirs, in := reopen(t, base, "role", r), orchestrator.InSchema("squatted")
	execute(t, theirs, `CREATE SCHEMA squatted`)
	for _, when := range []string{"empty", "with tables"} {
		if err := orchestrator.Migrate(t.Context(), admin, in); !errors.Is(err, orchestrator.ErrSchema) || !strings.Contains(err.Error(), r) || !strings.Contains(err.Error(), `"squatted"`) {
			t.Errorf("%s: %v; want ErrSchema with the owner %s", when, err, r)
		}
		if err := orchestrator.Migrate(t.Context(), theirs, in); err != nil {
			t.Errorf("%s: its owner can't migrate: %v", when, err)
		}
	}
	if err := orchestrator.Migrate(t.Context(), admin, orchestrator.InSchema("public")); err != nil {
		t.Errorf("in public: %v", err)
	}
}

// shadows are functions and operators that fit better than those of pg_catalog where
// a statement is careless about types.
const shadows = `
CREATE TABLE public.called (what text, who text);
GRANT ALL ON public.called TO PUBLIC;
CREATE FUNCTION public.caught(what text) RETURNS void LANGUAGE sql SECURITY INVOKER AS $$ INSERT INTO public.called VALUES (what, current_user) $$;
CREATE FUNCTION public.eq(a oid, b regclass) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('oid=regclass'); RETURN a OPERATOR(pg_catalog.=) b::oid; END $$;
CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = public.eq);
CREATE FUNCTION public.eq(a name, b text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('name=text'); RETURN a::text OPERATOR(pg_catalog.=) b; END $$;
CREATE FUNCTION public.eqv(a text, b varchar) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('text=varchar'); RETURN a OPERATOR(pg_catalog.=) b::text; END $$;
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = varchar, FUNCTION = public.eqv);
CREATE FUNCTION public.arrow(a jsonb, b jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb->>jsonb'); RETURN NULL; END $$;
CREATE OPERATOR public.->> (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = public.arrow);
CREATE FUNCTION public.arrow2(a jsonb, b jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb->jsonb'); RETURN NULL; END $$;
CREATE OPERATOR public.-> (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = public.arrow2);
CREATE FUNCTION public.has(a jsonb, b jsonb) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb?jsonb'); RETURN false; END $$;
CREATE OPERATOR public.? (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = public.has);
CREATE FUNCTION public.cat(a text, b text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('name||text'); RETURN a; END $$;
CREATE FUNCTION public.quote_ident(a name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('quote_ident'); RETURN pg_catalog.quote_ident(a::text); END $$;
CREATE FUNCTION public.to_jsonb(a integer) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('to_jsonb'); RETURN pg_catalog.to_jsonb(a); END $$;
CREATE FUNCTION public.set_config(a text, b text, c integer) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('set_config'); RETURN a; END $$;
CREATE FUNCTION public.pg_advisory_xact_lock(a text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('pg_advisory_xact_lock'); END $$;
CREATE FUNCTION public.pg_advisory_xact_lock(a integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('pg_advisory_xact_lock'); END $$;
CREATE FUNCTION public.to_regclass(a name) RETURNS regclass LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('to_regclass'); RETURN NULL; END $$;
CREATE FUNCTION public.format(a text, b name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('format'); RETURN a; END $$;
CREATE FUNCTION public.format(a text, b text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('format'); RETURN a; END $$;
CREATE FUNCTION public.format(a text, b text, c text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('format'); RETURN a; END $$;
CREATE FUNCTION public.format(a text, b text, c text, d text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('format'); RETURN a; END $$;
CREATE FUNCTION public.concat(a text, b text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('concat'); RETURN a; END $$;
CREATE FUNCTION public.count(a integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('count'); RETURN 0; END $$;
CREATE FUNCTION public.sfunc(a text[], b text) RETURNS text[] LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('array_agg'); RETURN a; END $$;
CREATE AGGREGATE public.array_agg(text) (SFUNC = public.sfunc, STYPE = text[]);
CREATE FUNCTION public.sfunc(a jsonb, b jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb_agg'); RETURN a; END $$;
CREATE AGGREGATE public.jsonb_agg(jsonb) (SFUNC = public.sfunc, STYPE = jsonb);
CREATE FUNCTION public.jsonb_typeof(a text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb_typeof'); RETURN 'array'; END $$;
CREATE FUNCTION public.jsonb_path_exists(a jsonb, b text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb_path_exists'); RETURN false; END $$;
CREATE FUNCTION public.jsonb_path_exists(a jsonb, b jsonpath) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught('jsonb_path_exists'); RETURN false; END $$;
`

// What others have put into a schema of the search path is not called: not by a
// migration, and not by whoever looks at the views or writes a row afterwards.
func TestMigrateCallsNobodysFunctions(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"", "testdata/schema_v1.sql", "testdata/schema_v2.sql"} {
		db, _ := pgtest.Database(t)
		if version != "" {
			execute(t, db, readFile(t, version))
		}
		execute(t, db, shadows)
		if err := orchestrator.Migrate(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		execute(t, db, orchestrator.SchemaSQL(),
			`INSERT INTO orchestrator_replica_sets (name, paused) VALUES ('set', '["p"]')`,
			`INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, ahead, updated_at) VALUES ('p', 0, 'set', 1, 1, 1, '[[0, 2]]', now())`,
			`INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
			 VALUES ('set', 'w', now(), 1000000, now(), 1, 1, '[0]', 1, 0, 0, 0, '["p"]')`,
			`INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report) VALUES ('set', 'w', now(), '{"generation": 1, "head": 1, "lanes": []}')`)
		for _, view := range []string{"orchestrator_status", "orchestrator_status_workers", "orchestrator_status_partitions"} {
			execute(t, db, "SELECT * FROM "+view)
		}
		var called, foreign sql.NullString
		err := db.QueryRowContext(t.Context(), `
SELECT (SELECT string_agg(DISTINCT what || ' as ' || who, ', ') FROM called),
       (SELECT string_agg(DISTINCT d.classid::regclass::text || ' ' || d.refobjid::text, ', ')
          FROM pg_depend d
          LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
          LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
         WHERE d.classid IN ('pg_rewrite'::regclass, 'pg_constraint'::regclass)
           AND coalesce(p.pronamespace, o.oprnamespace) = 'public'::regnamespace)`).Scan(&called, &foreign)
		if err != nil || called.Valid || foreign.Valid {
			t.Errorf("from %q: called %q, stays with %q, %v", version, called.String, foreign.String, err)
		}
	}
}

// Who holds the lock of migrations, which anybody who may connect can, holds them up
// for a bounded time, and is named; and so is who reads a table in a long transaction.
func TestMigrateNamesWhoHoldsItUp(t *testing.T) {
	t.Parallel()
	for what, hold := range map[string]string{
		"the lock":          `SELECT pg_advisory_lock(8030590385584829554)`,
		"a table":           `SELECT FROM orchestrator_workers`,
		"a lock on a table": `LOCK TABLE orchestrator_parked IN SHARE MODE`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db, base := pgtest.Database(t)
			execute(t, db, readFile(t, "testdata/schema_v2.sql"))
			other := reopen(t, base, "application_name", "long_report")
			tx, err := other.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			var pid int
			if err := tx.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(t.Context(), hold); err != nil {
				t.Fatal(err)
			}
			err = orchestrator.Migrate(untilWaiting(t, db), db)
			for _, want := range []string{fmt.Sprintf("backend %d", pid), "long_report", "user", "for "} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v; want that it mentions %q", err, want)
				}
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want the context's error", err)
			}
			other.Close()
			if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
				t.Log(err)
			}
			if err := orchestrator.Migrate(t.Context(), db); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// A migration that waits for somebody goes on when they have ended.
func TestMigrateWaits(t *testing.T) {
	t.Parallel()
	db, base := pgtest.Database(t)
	conn, err := reopen(t, base, "application_name", "other").Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), `SELECT pg_advisory_lock(8030590385584829554)`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- orchestrator.Migrate(t.Context(), db) }()
	pgtest.Eventually(t, "it waits", func() bool {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
		   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n)
		return err == nil && n == 1
	})
	if _, err := conn.ExecContext(t.Context(), `SELECT pg_advisory_unlock(8030590385584829554)`); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who has locked the table of the version holds a migration up for a bounded time, also
// where there is nothing to do, and is named.
func TestMigrateVersionLocked(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 3} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			w := newWorld(t)
			w.Exec(fmt.Sprint(`UPDATE orchestrator_schema SET version = `, version))
			tx, err := w.DB.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			var pid int
			if err := tx.QueryRow(`SELECT pg_backend_pid()`).Scan(&pid); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(`LOCK TABLE orchestrator_schema`); err != nil {
				t.Fatal(err)
			}
			err = orchestrator.Migrate(untilWaiting(t, w.DB), w.DB)
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("backend %d", pid)) {
				t.Errorf("the error does not name backend %d: %v", pid, err)
			}
		})
	}
}

// A migration on a connection that is silent ends with its context, and leaves no
// connection behind.
func TestMigrateSilentConnection(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 3} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			_, to := pgtest.Database(t)
			l, err := wire.To(to, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.Close)
			db, err := sql.Open("postgres", l.URL)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			db.SetMaxOpenConns(1)
			if version == 3 {
				if err := orchestrator.RunMigrations(db); err != nil {
					t.Fatal(err)
				}
			}
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			l.Silence()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := orchestrator.Migrate(ctx, db); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it ended with %v, want the context's end", err)
			}
			pgtest.Eventually(t, "nothing is in use", func() bool { return db.Stats().InUse == 0 })
		})
	}
}
