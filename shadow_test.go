package orchestrator_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// shadowsSQL makes a schema in which whatever a plain name may mean is something
// else, that counts how often it is called, and fails: every function and operator of
// pg_catalog, with the same arguments, and with those that need a cast there or are
// polymorphic; the types, and tables with the library's names.
const shadowsSQL = `
CREATE SCHEMA shadow;
CREATE SEQUENCE shadow.calls;
CREATE FUNCTION shadow.trap(what text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_catalog.nextval('shadow.calls');
    RAISE EXCEPTION 'shadow called: %', what;
END $$;
DO $do$
DECLARE
    f record; l text; r text; args text; body text; n integer := 0; made integer := 0;
    kinds text[] := ARRAY['text', 'name', '"char"', 'boolean', 'smallint', 'integer', 'bigint', 'double precision', 'interval', 'timestamptz', 'jsonb', 'oid', 'regclass'];
BEGIN
    SET LOCAL check_function_bodies = off;
    FOR f IN SELECT p.oid, p.proname, pg_get_function_identity_arguments(p.oid) AS args FROM pg_proc p
              WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind IN ('f', 'a', 'w') AND p.provariadic = 0 AND p.pronargs + (p.proname <> 'count')::integer > 0
                AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) a JOIN pg_type t ON t.oid = a
                                 WHERE t.typname IN ('internal', 'cstring', 'any', 'trigger', 'event_trigger', 'language_handler'))
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION shadow.%I(%s) RETURNS text LANGUAGE plpgsql AS %L', f.proname,
                (SELECT coalesce(string_agg(format_type(a, NULL), ', ' ORDER BY i), '') FROM pg_proc p, unnest(p.proargtypes::oid[]) WITH ORDINALITY AS u (a, i) WHERE p.oid = f.oid),
                format('BEGIN PERFORM shadow.trap(%L); END', f.proname || '(' || f.args || ')'));
            made := made + 1;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    FOREACH body IN ARRAY ARRAY[
        'jsonb_build_object(text, integer, text, integer)', 'jsonb_build_object(text, text, text, jsonb)', 'jsonb_build_object(text, text, text, text)',
        'jsonb_agg(jsonb)', 'jsonb_agg(text)', 'lag(bigint, integer, bigint)', 'array_agg(text)', 'to_jsonb(integer)', 'record_eq(record, record)',
        'quote_ident(name)', 'max(integer)', 'min(timestamptz)', 'abs(integer)'] LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION shadow.%s RETURNS text LANGUAGE plpgsql AS %L', body, format('BEGIN PERFORM shadow.trap(%L); END', body));
        EXCEPTION WHEN duplicate_function THEN NULL;
        END;
    END LOOP;
    CREATE FUNCTION shadow.counted(bigint) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM shadow.trap(''count(*)''); END';
    CREATE AGGREGATE shadow.count(*) (SFUNC = shadow.counted, STYPE = bigint, INITCOND = '0');
    FOR f IN SELECT DISTINCT o.oprname, format_type(o.oprleft, NULL) AS l, format_type(o.oprright, NULL) AS r, o.oprleft
               FROM pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace
              UNION
             SELECT o, a, b, 1 FROM unnest(ARRAY['=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '%', '||', '->', '->>', '?', '@>', '~~']) o,
                    unnest(kinds || ARRAY['anyelement', 'anyarray', 'anynonarray', 'record']) a, unnest(kinds || ARRAY['anyelement', 'anyarray', 'anynonarray', 'record']) b
    LOOP
        n := n + 1;
        args := CASE WHEN f.oprleft = 0 THEN f.r ELSE f.l || ', ' || f.r END;
        BEGIN
            EXECUTE format('CREATE FUNCTION shadow.op%s(%s) RETURNS boolean LANGUAGE plpgsql AS %L', n, args,
                format('BEGIN PERFORM shadow.trap(%L); END', f.l || ' ' || f.oprname || ' ' || f.r));
            EXECUTE format('CREATE OPERATOR shadow.%s (PROCEDURE = shadow.op%s, %s RIGHTARG = %s)', f.oprname, n,
                CASE WHEN f.oprleft = 0 THEN '' ELSE 'LEFTARG = ' || f.l || ',' END, f.r);
            made := made + 1;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    IF made < 3000 THEN
        RAISE EXCEPTION 'only % shadows were made', made;
    END IF;
    FOREACH l IN ARRAY ARRAY['text', 'jsonb', 'timestamptz', 'oid', 'regclass', 'name', 'bigint', 'integer', 'boolean', 'interval', 'int8', 'int4', 'bool'] LOOP
        EXECUTE format('CREATE TYPE shadow.%I AS (trap pg_catalog.int4)', l);
    END LOOP;
    FOR f IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
                 UNION SELECT unnest(ARRAY['pg_class', 'pg_locks', 'pg_namespace', 'pg_settings', 'pg_inherits', 'pg_database', 'pg_attribute', 'pg_depend', 'pg_sequence', 'pg_attrdef']) LOOP
        EXECUTE format(CASE WHEN f.relname LIKE 'pg%' THEN 'CREATE TABLE shadow.%I (trap integer)'
                       ELSE 'CREATE TABLE shadow.%1$I AS SELECT * FROM public.%1$I WHERE false' END, f.relname);
    END LOOP;
END $do$`

// poisonSQL is what handlers may leave on a connection, or an attacker on the
// search path.
const poisonSQL = `
DO $do$
DECLARE f record;
BEGIN
    FOR f IN SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'public'::pg_catalog.regnamespace AND relkind IN ('r', 'v')
                 UNION SELECT pg_catalog.unnest(ARRAY['pg_class', 'pg_locks', 'text', 'jsonb', 'oid']) LOOP
        EXECUTE pg_catalog.format('CREATE TEMP TABLE %I (trap integer)', f.relname);
    END LOOP;
END $do$;
SET search_path = shadow, pg_catalog, public`

// poisoned is a database whose connections are poisoned from a moment on.
type poisonedConnector struct {
	driver.Connector
	on *atomic.Bool
}

type poisonedConn struct {
	testworld.Conn
	on   *atomic.Bool
	done bool
}

func (c poisonedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	p := &poisonedConn{Conn: conn.(testworld.Conn), on: c.on}
	return p, p.poison(ctx)
}

func (c *poisonedConn) ResetSession(ctx context.Context) error {
	if err := c.Conn.ResetSession(ctx); err != nil {
		return err
	}
	return c.poison(ctx)
}

func (c *poisonedConn) poison(ctx context.Context) error {
	if c.done || !c.on.Load() {
		return nil
	}
	c.done = true
	_, err := c.Conn.ExecContext(ctx, poisonSQL, nil)
	return err
}

func poisonable(t testing.TB, url string) (db *sql.DB, poison func()) {
	t.Helper()
	connector, err := pq.NewConnector(url)
	if err != nil {
		t.Fatal(err)
	}
	on := &atomic.Bool{}
	db = sql.OpenDB(poisonedConnector{connector, on})
	t.Cleanup(func() { _ = db.Close() })
	return db, func() { on.Store(true) }
}

const qualifiedEffect = `INSERT INTO public.effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, 0, 0, 0)`

// A qualified projection leaves effects, whatever its session is like.
type qualified struct {
	name string
	db   *sql.DB
	hook func(context.Context, orchestrator.Event) error
}

func (p qualified) Name() string { return p.name }

func (p qualified) write(ctx context.Context, db testworld.Execer, e orchestrator.Event) error {
	if err := p.hook(ctx, e); err != nil {
		return err
	}
	_, err := db.ExecContext(ctx, qualifiedEffect, p.name, e.GlobalPosition, e.AggregateID)
	return err
}

func (p qualified) Handle(ctx context.Context, e orchestrator.Event) error {
	return p.write(ctx, p.db, e)
}

type qualifiedTx struct{ qualified }

// HandleTx leaves a search path, which is taken back with the next checkpoint.
func (p qualifiedTx) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if _, err := tx.ExecContext(ctx, `SET search_path = shadow`); err != nil {
		return err
	}
	return p.write(ctx, tx, e)
}

type qualifiedBatch struct{ qualified }

func (p qualifiedBatch) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	for _, e := range events {
		if err := p.write(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

// Whatever handlers have left on the pool's connections, and whatever is on the
// search path: no name of a statement of the library's means anything else than
// it does on a fresh connection.
func TestNamesMeanWhatWasMeant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`CREATE TABLE old (key text PRIMARY KEY, position bigint NOT NULL)`)
	w.Exec(`INSERT INTO old VALUES ('imported', 3)`)
	w.Exec(shadowsSQL)
	db, poison := poisonable(t, w.URL)
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	generation := func(what string) func(int64, error) {
		return func(g int64, err error) {
			t.Helper()
			must(what, err)
			must(what, ops.AwaitGeneration(ctx, db, "set", g))
		}
	}

	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a7" })
	projections := []orchestrator.Projection[orchestrator.Event]{
		qualified{"plain", db, hook}, qualifiedTx{qualified{"transactional", db, hook}}, qualifiedBatch{qualified{"batched", db, hook}},
	}
	cfg := testworld.Parking(w.Config(db, "set"), testworld.Names...)
	start := func() *testworld.Running { return testworld.Run(t, cfg, projections...) }
	first := start()
	w.Active("set", 1)
	poison()

	second := start()
	w.Active("set", 2)
	w.Append(300)
	gap, err := w.DB.BeginTx(ctx, nil)
	must("begin", err)
	defer gap.Rollback()
	_, err = gap.ExecContext(ctx, `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', 'late', 1, gen_random_uuid(), 'happened', 'x')`)
	must("insert", err)
	w.Append(300)
	must("commit", gap.Commit())
	for _, name := range testworld.Names { // all of them before one is mended
		pgtest.Eventually(t, name+" has handled or parked everything", func() bool {
			return w.Number(`SELECT (SELECT count(DISTINCT position) FROM effects WHERE projection = $1) + (SELECT count(*) FROM orchestrator_parked WHERE projection = $1)`, name) == 601
		})
	}
	for _, name := range testworld.Names {
		parked, err := ops.Parked(ctx, db, name, 1000)
		must("list what is parked", err)
		if len(parked) != 12 {
			t.Fatalf("%s has parked %d events, want 12", name, len(parked))
		}
		_, err = ops.RetryParked(ctx, db, name, ops.ParkedSelector{Positions: []int64{parked[0].Position}})
		must("retry by position", err)
		_, err = ops.DiscardParked(ctx, db, name, ops.ParkedSelector{Positions: []int64{parked[11].Position}})
		must("discard", err)
		mended.Store(true)
		pgtest.Eventually(t, "one is discarded", func() bool {
			return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE projection = $1 AND position = $2`, name, parked[11].Position) == 0
		})
		_, err = ops.RetryParked(ctx, db, name, ops.ParkedSelector{AggregateID: "a7"})
		must("retry by aggregate", err)
		pgtest.Eventually(t, "nothing is parked by "+name, func() bool { n, _ := w.Parked(name); return len(n) == 0 })
	}

	generation("pause")(ops.Pause(ctx, db, "set", "plain"))
	generation("resume")(ops.Resume(ctx, db, "set", "plain"))
	generation("rewind")(ops.Rewind(ctx, db, "set", "plain", 0))
	status, err := ops.Status(ctx, db, "set")
	must("status", err)
	if len(status.Workers) != 2 || len(status.Partitions) != 6 {
		t.Errorf("status: %d workers, %d partitions", len(status.Workers), len(status.Partitions))
	}
	generation("drain")(ops.DrainWorker(ctx, db, "set", status.Workers[0].Worker))
	generation("undrain")(ops.UndrainWorker(ctx, db, "set", status.Workers[0].Worker))
	if history, err := ops.History(ctx, db, "set", 10); err != nil || len(history) < 5 {
		t.Errorf("history: %d, %v", len(history), err)
	}
	if sets, err := ops.ReplicaSets(ctx, db); err != nil || len(sets) != 1 {
		t.Errorf("replica sets: %v, %v", sets, err)
	}
	_, err = importer.Import(ctx, importer.Config{
		DB: db, Projection: "imported", ReplicaSet: "other", Total: 1, Watch: time.Millisecond,
		Old: importer.OldCheckpoints{Schema: "public", Table: "old", KeyColumn: "key", PositionColumn: "position"},
	})
	must("import", err)
	second.Stop()
	w.Active("set", 1)
	table := cfg.EventStore.(*orchestrator.Table[orchestrator.Event])
	if own, _, _, err := table.ReadOwn(ctx, 0, 2, 0, 1000, 0); err != nil || len(own) < 100 {
		t.Errorf("by slot: %d events, %v", len(own), err)
	}
	for _, scope := range []orchestrator.Scope{
		{AggregateTypes: []string{"thing"}}, {BoundedContexts: []string{"test", ""}}, {AggregateTypes: []string{"thing", ""}, BoundedContexts: []string{"test"}},
	} {
		page, err := table.Read(ctx, orchestrator.ReadRequest{Limit: 1000, Scope: scope})
		if err != nil || page.Through < 601 {
			t.Errorf("%+v: read through %d, %v", scope, page.Through, err)
		}
	}
	must("check the events table", table.Check(ctx))
	head, err := cfg.EventStore.(orchestrator.HeadStore).Head(ctx)
	must("head", err)
	if want := w.Number(`SELECT max(global_position) FROM events`); head != want {
		t.Errorf("the head is %d, want %d", head, want)
	}
	for _, name := range testworld.Names {
		must("wait for "+name, orchestrator.WaitFor(ctx, db, name, head))
	}
	first.Stop()
	for _, name := range testworld.Exact { // one event of each was discarded
		if n := w.Handled(name); n != 600 {
			t.Errorf("%s has handled %d events, want 600", name, n)
		}
	}
	if n := w.Handled("plain"); n != 601 {
		t.Errorf("plain has handled %d events, want 601: it was set back to 0", n)
	}
	var called bool
	must("look whether a shadow was called", w.DB.QueryRowContext(ctx, `SELECT is_called FROM shadow.calls`).Scan(&called))
	if called {
		t.Error(fmt.Sprint("a shadow was called: ", w.Number(`SELECT last_value FROM shadow.calls`)))
	}
}
