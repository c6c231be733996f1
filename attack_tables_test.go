package orchestrator_test

import (
	"slices"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// refuses expects an error of a read that mentions a text.
func refuses(t testing.TB, table *positions, after int64, want string) {
	t.Helper()
	if page, err := records(t.Context(), table, after, 100); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("read after %d: %d events, %v; want an error that says %q", after, len(page), err, want)
	}
}

// A policy that comes to hide rows below what is final, where gaps are passed without a
// question; and one that only some connections of the pool are subject to.
func TestTableRowSecurityBelowTheHorizon(t *testing.T) {
	t.Parallel()
	policy := []string{`ALTER TABLE events ENABLE ROW LEVEL SECURITY`, `CREATE POLICY part ON events USING (global_position <> 2)`}
	t.Run("it comes later", func(t *testing.T) {
		s := newStream(t)
		r := role(t, s.db, s.url)
		execute(t, s.db, `GRANT SELECT ON events TO `+r)
		table := tableOf(t, reopen(t, s.url, "role", r))
		for range 3 {
			s.insert()
		}
		execute(t, s.db, `SELECT nextval('events_global_position_seq')`)
		s.insert()
		expectRead(t, "before", table, 3, 5)
		execute(t, s.db, policy...)
		refuses(t, table, 0, "row-level security")
	})
	t.Run("one connection", func(t *testing.T) {
		s := newStream(t)
		r := role(t, s.db, s.url)
		execute(t, s.db, append(policy, `GRANT SELECT ON events TO `+r)...)
		for range 3 {
			s.insert()
		}
		execute(t, s.db, `SELECT nextval('events_global_position_seq')`)
		s.insert()
		s.db.SetMaxOpenConns(1)
		table := s.table()
		expectRead(t, "before", table, 3, 5)
		execute(t, s.db, `SET ROLE `+r)                     // a handler, say, that does not set it back
		expectRead(t, "another role", table, 0, 1, 2, 3, 5) // over another connection
	})
}

// A view reads its tables as its owner, whoever reads the view.
func TestTableRowSecurityOfAViewsOwner(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	r := role(t, s.db, s.url)
	execute(t, s.db, `GRANT SELECT ON events TO `+r, `GRANT CREATE ON SCHEMA public TO `+r)
	execute(t, reopen(t, s.url, "role", r), `CREATE VIEW stream AS SELECT * FROM events`)
	table := s.table(func(c *orchestrator.TableConfig[int64]) {
		c.Table, c.Writers, c.Sequence = "stream", []string{"events"}, "events_global_position_seq"
	})
	s.insert()
	expectRead(t, "before", table, 0, 1)
	execute(t, s.db, `ALTER TABLE events ENABLE ROW LEVEL SECURITY`, `CREATE POLICY part ON events USING (global_position <> 2)`)
	s.insert()
	s.insert()
	refuses(t, table, 1, "row-level security")
	execute(t, s.db, `ALTER VIEW stream OWNER TO CURRENT_USER`)
	expectRead(t, "an owner who sees all", table, 0, 1, 2, 3)
}

// A writer of the partitioned table has its position before it locks the partition.
func TestTableIsAPartition(t *testing.T) {
	t.Parallel()
	s := newStream(t, `CREATE SEQUENCE hidden`,
		`CREATE FUNCTION number() RETURNS bigint LANGUAGE plpgsql AS 'DECLARE n bigint := nextval(''hidden''); BEGIN
		 PERFORM pg_advisory_xact_lock_shared(1); RETURN n; END'`,
		`CREATE TABLE everything (global_position bigint DEFAULT number(), aggregate_id text NOT NULL DEFAULT 'a') PARTITION BY LIST (aggregate_id)`,
		`CREATE TABLE events PARTITION OF everything FOR VALUES IN ('a')`, `CREATE UNIQUE INDEX ON events (global_position)`)
	table := s.table(func(c *orchestrator.TableConfig[int64]) { c.NoSequence = true })
	execute(t, s.db, `INSERT INTO everything DEFAULT VALUES`)
	gate := s.begin(`SELECT 0`)
	gate.exec(`SELECT pg_advisory_xact_lock(1)`)
	inserted := make(chan error, 1)
	go func() {
		_, err := s.db.ExecContext(t.Context(), `INSERT INTO everything DEFAULT VALUES`) // 2
		inserted <- err
	}()
	pgtest.Eventually(t, "the writer has its position", func() bool {
		return s.number(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) == 1
	})
	execute(t, s.db, `INSERT INTO events (global_position) VALUES (3)`)
	expectRead(t, "one is open", table, 1)
	gate.exec(`COMMIT`)
	if err := <-inserted; err != nil {
		t.Fatal(err)
	}
	expectRead(t, "committed", table, 1, 2, 3)
}

// The position of a view may be another column of its table than the one of that name.
func TestTableOverAViewThatRenames(t *testing.T) {
	t.Parallel()
	s := newStream(t, `CREATE TABLE events (id bigserial PRIMARY KEY, global_position bigserial, aggregate_id text NOT NULL DEFAULT 'a')`,
		`CREATE VIEW stream AS SELECT id AS global_position, aggregate_id FROM events`)
	view := func(c *orchestrator.TableConfig[int64]) { c.Table, c.Writers = "stream", []string{"events"} }
	refuses(t, s.table(view), 0, "TableConfig.Sequence")
	table := s.table(view, func(c *orchestrator.TableConfig[int64]) { c.Sequence = "events_id_seq" })
	s.insert()
	expectRead(t, "before", table, 0, 1)
	w := s.begin(`SELECT nextval('events_id_seq')`)
	s.insert()
	expectRead(t, "one is open", table, 1)
	w.exec(`INSERT INTO events (id) VALUES (2)`)
	w.exec(`COMMIT`)
	expectRead(t, "committed", table, 1, 2, 3)
}

// Writers beside a table, and not a view: the table's own writers count as well.
func TestTableWithWriters(t *testing.T) {
	t.Parallel()
	s := newStream(t, byHand, `CREATE TABLE orders (id int)`)
	table := s.table(func(c *orchestrator.TableConfig[int64]) { c.NoSequence, c.Writers = true, []string{"orders"} })
	execute(t, s.db, `INSERT INTO events VALUES (1)`)
	w := s.begin(`INSERT INTO events VALUES (2) RETURNING 2`)
	execute(t, s.db, `INSERT INTO events VALUES (3)`)
	expectRead(t, "one is open", table, 0, 1)
	expectRead(t, "one is open", table, 1)
	w.exec(`COMMIT`)
	expectRead(t, "committed", table, 1, 2, 3)
}

// Two events at one position, where a page ends: both come, so that it is seen (the lanes
// refuse a page that repeats a position), and the second is not left out.
func TestTableRepeatedPositionBetweenPages(t *testing.T) {
	t.Parallel()
	s := newStream(t, `CREATE TABLE events (global_position bigserial, aggregate_id text NOT NULL DEFAULT 'a')`)
	for range 5 {
		s.insert()
	}
	execute(t, s.db, `INSERT INTO events (global_position) VALUES (3)`)
	if got := read(t, s.table(), 0, 3); !slices.Equal(got, []int64{1, 2, 3, 3}) {
		t.Errorf("read %v", got)
	}
}

// A text in the session's encoding decides about partitions.
func TestTableClientEncoding(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	s.db.SetMaxOpenConns(1)
	table := s.table()
	s.insert()
	expectRead(t, "before", table, 0, 1)
	execute(t, s.db, `SET client_encoding = 'LATIN1'`)
	if err := table.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "client_encoding") {
		t.Errorf("Check: %v", err)
	}
	refuses(t, table, 0, "client_encoding")
}

// Two workers of a set that take the aggregate from different columns.
func TestWorkersReadOneColumn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 1)
	cfg := w.Config(w.DB, "set")
	table, err := orchestrator.NewTable(w.DB, orchestrator.TableConfig[orchestrator.Event]{
		AggregateIDColumn: "event_id", AggregateTypeColumn: "aggregate_type", BoundedContextColumn: "bounded_context", Columns: []string{"global_position"},
		Fields: func(e *orchestrator.Event, dest []any) []any { return append(dest, &e.GlobalPosition) },
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.EventStore = table
	err = testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional()).Failed()
	for _, want := range []string{"public.events", "(global_position, event_id)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
}

// What is VACUUMed, clustered or made anew keeps its events.
func TestTableIsRewritten(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	table := s.table()
	var want []int64
	for i, rewrite := range []string{`VACUUM FULL events`, `CLUSTER events USING events_pkey`, `ALTER TABLE events SET UNLOGGED`, `ALTER TABLE events SET LOGGED`,
		`ALTER TABLE events ALTER aggregate_id TYPE varchar(40)`, `ALTER SEQUENCE events_global_position_seq OWNED BY NONE`, `REINDEX TABLE events`} {
		s.insert()
		execute(t, s.db, `SELECT nextval('events_global_position_seq')`)
		want = append(want, int64(2*i+1))
		execute(t, s.db, rewrite)
		if strings.Contains(rewrite, "UNLOGGED") {
			refuses(t, table, 0, "unlogged")
			continue
		}
		read(t, table, 0, 100) // up to the gap
		if got := read(t, table, 0, 100); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", rewrite, got, want)
		}
	}
}
