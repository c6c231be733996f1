package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A stream is an events table with no more than a Table needs.
type stream struct {
	t   testing.TB
	db  *sql.DB
	url string
}

const streamTable = `CREATE TABLE events (global_position bigserial PRIMARY KEY, aggregate_id text NOT NULL DEFAULT 'a')`

// newStream creates the table by the given statements, by default streamTable.
func newStream(t testing.TB, statements ...string) *stream {
	t.Helper()
	db, base := pgtest.Database(t)
	return streamOn(t, db, base, statements...)
}

func streamOn(t testing.TB, db *sql.DB, base string, statements ...string) *stream {
	t.Helper()
	if len(statements) == 0 {
		statements = []string{streamTable}
	}
	execute(t, db, statements...)
	return &stream{t, db, base}
}

// prepared is newStream on a server that takes prepared transactions.
func prepared(t testing.TB) *stream {
	t.Helper()
	db, base := pgtest.Database(t)
	var n int
	if err := db.QueryRowContext(t.Context(), `SELECT current_setting('max_prepared_transactions')::int`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		s, err := embedpg.Start(t.Context(), embedpg.Options{Own: true, Logger: t.Logf})
		if err != nil {
			t.Fatalf("the server takes %d prepared transactions, and this test needs 20; another can't be started: %v", n, err)
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		db, base = pgtest.DatabaseOn(t, s)
	}
	return streamOn(t, db, base)
}

func (s *stream) number(query string, args ...any) (n int64) {
	s.t.Helper()
	if err := s.db.QueryRowContext(s.t.Context(), query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

type positions = orchestrator.Table[int64]

// table returns a reader whose events are their positions.
func (s *stream) table(change ...func(*orchestrator.TableConfig[int64])) *positions {
	s.t.Helper()
	return tableOf(s.t, s.db, change...)
}

func tableOf(t testing.TB, db *sql.DB, change ...func(*orchestrator.TableConfig[int64])) *positions {
	t.Helper()
	cfg := orchestrator.TableConfig[int64]{
		Columns: []string{"global_position"},
		Fields:  func(n *int64, dest []any) []any { return append(dest, n) },
	}
	for _, f := range change {
		f(&cfg)
	}
	table, err := orchestrator.NewTable(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// records reads until there are as many, or no more for now.
func records[E any](ctx context.Context, events orchestrator.EventStore[E], after int64, limit int) ([]orchestrator.Record[E], error) {
	var all []orchestrator.Record[E]
	for {
		page, err := events.Read(ctx, orchestrator.ReadRequest{After: after, Limit: limit - len(all)})
		if err != nil {
			return nil, err
		}
		all, after = append(all, page.Records...), max(after, page.Through)
		if len(all) >= limit || !page.More {
			return all, nil
		}
	}
}

func read(t testing.TB, table *positions, after int64, limit int) []int64 {
	t.Helper()
	page, err := records(t.Context(), table, after, limit)
	if err != nil {
		t.Fatal(err)
	}
	out := []int64{}
	for _, r := range page {
		if r.Position != r.Event {
			t.Fatalf("position %d with the event of %d", r.Position, r.Event)
		}
		out = append(out, r.Position)
	}
	return out
}

func expectRead(t testing.TB, why string, table *positions, after int64, want ...int64) {
	t.Helper()
	if got := read(t, table, after, 100); !slices.Equal(got, want) {
		t.Errorf("%s: read after %d: %v, want %v", why, after, got, want)
	}
}

// A writer is a transaction that has inserted an event.
type writer struct {
	t        testing.TB
	conn     *sql.Conn
	position int64
	backend  int
}

// begin inserts an event and leaves the transaction open.
func (s *stream) begin(insert ...string) *writer {
	s.t.Helper()
	conn, err := s.db.Conn(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	w := &writer{t: s.t, conn: conn}
	s.t.Cleanup(func() { conn.Close() })
	if len(insert) == 0 {
		insert = []string{`INSERT INTO events DEFAULT VALUES RETURNING global_position`}
	}
	w.exec(`BEGIN`)
	if err := conn.QueryRowContext(s.t.Context(), insert[0]).Scan(&w.position); err != nil {
		s.t.Fatal(err)
	}
	if err := conn.QueryRowContext(s.t.Context(), `SELECT pg_backend_pid()`).Scan(&w.backend); err != nil {
		s.t.Fatal(err)
	}
	return w
}

func (w *writer) exec(statement string) {
	w.t.Helper()
	if _, err := w.conn.ExecContext(w.t.Context(), statement); err != nil {
		w.t.Fatalf("%s: %v", statement, err)
	}
}

func (s *stream) insert() {
	s.t.Helper()
	execute(s.t, s.db, `INSERT INTO events DEFAULT VALUES`)
}

func expectWaiting(t testing.TB, why string, table *positions, position int64, backends ...int) {
	t.Helper()
	gap, ok := table.Waiting()
	slices.Sort(gap.Backends)
	slices.Sort(backends)
	if !ok || gap.Position != position || gap.Since.IsZero() || !slices.Equal(gap.Backends, backends) {
		t.Errorf("%s: waiting is %+v, %t, want position %d and backends %v", why, gap, ok, position, backends)
	}
}

func expectNoWait(t testing.TB, why string, table *positions) {
	t.Helper()
	if gap, ok := table.Waiting(); ok {
		t.Errorf("%s: still waiting: %+v", why, gap)
	}
}

// A position is missing, because its transaction is open. Whatever becomes of
// it, the reader neither passes it too early nor waits any longer.
func TestTableGap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		end     func(s *stream, w *writer)
		visible bool
	}{
		{"committed", func(_ *stream, w *writer) { w.exec(`COMMIT`) }, true},
		{"rolled back", func(_ *stream, w *writer) { w.exec(`ROLLBACK`) }, false},
		// The sequence stays locked: the position could still be used.
		{"rolled back to a savepoint, and committed", func(s *stream, w *writer) {
			w.exec(`ROLLBACK TO empty`)
			w.exec(`COMMIT`)
		}, false},
		{"killed", func(s *stream, w *writer) {
			execute(s.t, s.db, fmt.Sprintf(`SELECT pg_terminate_backend(%d)`, w.backend))
			pgtest.Eventually(s.t, "the writer is gone", func() bool {
				return s.number(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, w.backend) == 0
			})
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStream(t)
			table := s.table()
			s.insert()
			insert := `INSERT INTO events DEFAULT VALUES RETURNING global_position`
			var w *writer
			if strings.Contains(c.name, "savepoint") {
				w = s.begin(`SELECT 0::bigint`)
				w.exec(`SAVEPOINT empty`)
				w.exec(insert)
				w.position = 2
			} else {
				w = s.begin(insert)
			}
			expectRead(t, "nothing after the open one", table, 0, 1)
			expectNoWait(t, "a gap that nothing follows is none", table)
			s.insert()
			s.insert()
			before := time.Now()
			for range 3 {
				expectRead(t, "the open one", table, 0, 1)
				expectRead(t, "the open one", table, 1)
				expectWaiting(t, "the open one", table, 2, w.backend)
			}
			if gap, _ := table.Waiting(); gap.Since.Before(before) {
				t.Errorf("waiting since %s, want after %s", gap.Since, before)
			}
			// Somebody who begins later is not waited for.
			late := s.begin()
			expectRead(t, "another writer", table, 1)
			expectWaiting(t, "another writer", table, 2, w.backend)

			c.end(s, w)
			if c.visible {
				expectRead(t, "after the end", table, 1, 2, 3, 4)
			} else {
				expectRead(t, "after the end", table, 1, 3, 4)
			}
			expectNoWait(t, "after the end", table)
			s.insert()
			expectRead(t, "the later writer's", table, 4)
			expectWaiting(t, "the later writer's", table, 5, late.backend)
			late.exec(`COMMIT`)
			expectRead(t, "the later writer's", table, 4, 5, 6)
		})
	}
}

// A prepared transaction has no backend any more and may still commit.
func TestTablePrepared(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		when  string
		end   string
		found []int64
	}{
		{"before the gap was seen", `COMMIT PREPARED`, []int64{2, 3}},
		{"before the gap was seen", `ROLLBACK PREPARED`, []int64{3}},
		{"while it was waited for", `COMMIT PREPARED`, []int64{2, 3}},
		{"while it was waited for", `ROLLBACK PREPARED`, []int64{3}},
	} {
		t.Run(c.when+" "+c.end, func(t *testing.T) {
			s := prepared(t)
			table := s.table()
			name := "'" + strings.ReplaceAll(s.url[strings.LastIndex(s.url, "/")+1:], "?", "_") + "'"
			s.insert()
			w := s.begin()
			s.insert()
			if c.when == "while it was waited for" {
				expectRead(t, "open", table, 0, 1)
				expectWaiting(t, "open", table, 2, w.backend)
			}
			w.exec(`PREPARE TRANSACTION ` + name)
			for range 3 {
				expectRead(t, "prepared", table, 0, 1)
				expectRead(t, "prepared", table, 1)
				expectWaiting(t, "prepared", table, 2, 0)
			}
			execute(t, s.db, c.end+` `+name)
			expectRead(t, "after the end", table, 1, c.found...)
			expectNoWait(t, "after the end", table)
		})
	}
}

// A restart of the server leaves prepared transactions, and may give them other
// names in pg_locks.
//
//  1. a transaction takes position 2 and is prepared, 3 is committed;
//  2. a reader lists it as 4/11, without a backend, and waits for it;
//  3. the server crashes and comes back: the transaction is now -1/731;
//  4. the reader finds 4/11 gone, and must not pass 2: it is committed next.
func TestTablePreparedRestart(t *testing.T) {
	t.Parallel()
	server, err := embedpg.Start(t.Context(), embedpg.Options{Own: true, Logger: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	db, base := pgtest.DatabaseOn(t, server)
	s := streamOn(t, db, base)
	table := s.table()
	s.insert()
	w := s.begin()
	s.insert()
	w.exec(`PREPARE TRANSACTION 'survivor'`)
	expectRead(t, "prepared", table, 0, 1)
	expectWaiting(t, "prepared", table, 2, 0)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the server is back", func() bool { return db.PingContext(t.Context()) == nil })
	expectRead(t, "after the restart", table, 1)
	execute(t, db, `COMMIT PREPARED 'survivor'`)
	expectRead(t, "after its commit", table, 1, 2, 3)
}

// One look at the locks settles every gap below what was visible then; and
// where there is no gap, there is no look.
func TestTableLooks(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	db, f := testworld.Faulty(t, s.url)
	table := tableOf(t, db)
	var looks atomic.Int64
	f.OnQuery(func(query string) {
		if strings.Contains(query, "pg_locks") {
			looks.Add(1)
		}
	})
	expectLooks := func(why string, want int64) {
		t.Helper()
		if got := looks.Swap(0); got != want {
			t.Errorf("%s: %d looks at the locks, want %d", why, got, want)
		}
	}

	for range 20 {
		s.insert()
	}
	for after := int64(0); after < 20; after += 5 {
		if got := read(t, table, after, 5); len(got) != 5 {
			t.Errorf("read after %d: %v", after, got)
		}
	}
	expectRead(t, "the end", table, 20)
	expectLooks("no gaps: what is assumed is asked for once", 1)

	execute(t, s.db, `DELETE FROM events WHERE global_position % 2 = 0`)
	for after, pages := int64(0), 0; ; pages++ {
		got := read(t, table, after, 3)
		if len(got) == 0 {
			break
		}
		for _, p := range got {
			if p != after+1 && p != after+2 || p%2 == 0 {
				t.Errorf("%d after %d", p, after)
			}
			after = p
		}
	}
	expectLooks("ten gaps that nobody can fill", 1)
	expectRead(t, "from the beginning", table, 0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19)
	expectLooks("old gaps again", 0)

	// Gaps at 21, 23 and 25, open, rolled back, open.
	one := s.begin()
	s.insert()
	rolled := s.begin()
	rolled.exec(`ROLLBACK`)
	s.insert()
	two := s.begin()
	s.insert()
	expectRead(t, "three gaps", table, 19)
	expectWaiting(t, "three gaps", table, 20, one.backend, two.backend)
	two.exec(`COMMIT`)
	expectRead(t, "the last one is filled", table, 19)
	expectWaiting(t, "the last one is filled", table, 20, one.backend)
	one.exec(`COMMIT`)
	looks.Store(0)
	expectRead(t, "all are settled", table, 19, 21, 22, 24, 25, 26)
	expectLooks("the end of one wait", 1)
	expectRead(t, "all are settled", table, 19, 21, 22, 24, 25, 26)
	expectLooks("settled gaps", 0)

	// Two readers at different places, one horizon.
	three := s.begin()
	s.insert()
	expectRead(t, "the first reader", table, 26)
	expectRead(t, "one far behind", table, 0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 22, 24, 25, 26)
	expectWaiting(t, "both", table, 27, three.backend)
	three.exec(`ROLLBACK`)
	expectRead(t, "the first reader", table, 26, 28)
}

// The steps of a read have an order, and something can happen before each.
func TestTableSteps(t *testing.T) {
	t.Parallel()
	// once calls f before the first statement that contains text.
	once := func(f *testworld.Faults, text string, call func()) {
		var begun atomic.Bool
		f.OnQuery(func(query string) {
			if strings.Contains(query, text) && begun.CompareAndSwap(false, true) {
				call()
			}
		})
	}

	// The transaction that is waited for ends as the reader looks for it. The
	// page has to be read after that; one from before lacks its event.
	t.Run("horizon, then page", func(t *testing.T) {
		s := newStream(t)
		db, f := testworld.Faulty(t, s.url)
		table := tableOf(t, db)
		s.insert()
		w := s.begin()
		s.insert()
		expectRead(t, "open", table, 1)
		once(f, "pg_locks", func() { w.exec(`COMMIT`) })
		expectRead(t, "committed before the look", table, 1, 2, 3)
	})

	// A transaction takes a position, and a higher one becomes visible, as the
	// reader asks for the highest. Only holders that are listed after that
	// include it.
	t.Run("highest position, then holders", func(t *testing.T) {
		s := newStream(t)
		db, f := testworld.Faulty(t, s.url)
		table := tableOf(t, db)
		s.insert()
		s.begin().exec(`ROLLBACK`)
		s.insert()
		var w *writer
		once(f, "max(", func() {
			w = s.begin()
			s.insert()
		})
		expectRead(t, "rolled back, and one open", table, 1)
		w.exec(`COMMIT`)
		expectRead(t, "all have ended", table, 1, 3, 4, 5)
	})

	// The highest position is taken from what is committed when the gap is
	// met, so one that follows later is a gap of its own.
	t.Run("holders, then another writer", func(t *testing.T) {
		s := newStream(t)
		db, f := testworld.Faulty(t, s.url)
		table := tableOf(t, db)
		s.insert()
		s.begin().exec(`ROLLBACK`)
		s.insert()
		var w *writer
		once(f, "pg_locks", func() {
			w = s.begin()
			s.insert()
		})
		expectRead(t, "rolled back, and one open", table, 1)
		w.exec(`COMMIT`)
		expectRead(t, "all have ended", table, 1, 3, 4, 5)
	})
}

// The reader's own program has transactions of its own that append.
func TestTableOwnWriter(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	s.db.SetMaxOpenConns(2)
	table := s.table()
	s.insert()
	own := s.begin()
	s.insert()
	expectRead(t, "own transaction open", table, 1)
	expectWaiting(t, "own transaction open", table, 2, own.backend)
	own.exec(`INSERT INTO events DEFAULT VALUES`)
	own.exec(`COMMIT`)
	expectRead(t, "own transaction committed", table, 1, 2, 3, 4)
}

// Whoever inserts into a part of the table locks that part, and not the table.
func TestTableParts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		create []string
		part   string
	}{
		{"partition", []string{
			`CREATE TABLE events (global_position bigserial, aggregate_id text NOT NULL DEFAULT 'a', kind text NOT NULL DEFAULT 'x') PARTITION BY LIST (kind)`,
			`CREATE TABLE events_x PARTITION OF events FOR VALUES IN ('x')`,
			`CREATE TABLE events_y PARTITION OF events FOR VALUES IN ('y')`,
			`ALTER TABLE events_y ALTER kind SET DEFAULT 'y'`,
		}, "events_y"},
		{"partition of a partition", []string{
			`CREATE TABLE events (global_position bigserial, aggregate_id text NOT NULL DEFAULT 'a', kind text NOT NULL DEFAULT 'x') PARTITION BY LIST (kind)`,
			`CREATE TABLE events_x PARTITION OF events FOR VALUES IN ('x')`,
			`CREATE TABLE events_y PARTITION OF events FOR VALUES IN ('y') PARTITION BY LIST (aggregate_id)`,
			`CREATE TABLE events_y_a PARTITION OF events_y FOR VALUES IN ('a')`,
			`ALTER TABLE events_y_a ALTER kind SET DEFAULT 'y'`,
		}, "events_y_a"},
		{"table that inherits", []string{
			streamTable,
			`CREATE TABLE events_y () INHERITS (events)`,
		}, "events_y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStream(t, c.create...)
			table := s.table()
			if err := table.Check(t.Context()); err != nil {
				// Refusing it is as good as reading it right.
				t.Logf("refused: %v", err)
				return
			}
			s.insert()
			w := s.begin(`INSERT INTO ` + c.part + ` DEFAULT VALUES RETURNING global_position`)
			s.insert()
			expectRead(t, "an open insert into the part", table, 0, 1)
			expectWaiting(t, "an open insert into the part", table, 2, w.backend)
			through := s.begin() // and one through the table
			s.insert()
			w.exec(`COMMIT`)
			expectRead(t, "committed", table, 1, 2, 3)
			expectRead(t, "the other one", table, 3)
			expectWaiting(t, "the other one", table, 4, through.backend)
			through.exec(`COMMIT`)
			expectRead(t, "the other one", table, 3, 4, 5)
		})
	}
}

// Nobody who inserts locks a view. It must be refused, or events are lost.
func TestTableView(t *testing.T) {
	t.Parallel()
	s := newStream(t, streamTable, `CREATE VIEW stream AS SELECT * FROM events`)
	table := s.table(func(c *orchestrator.TableConfig[int64]) { c.Table = "stream" })
	if err := table.Check(t.Context()); err != nil {
		if !strings.Contains(err.Error(), "view") {
			t.Errorf("the error does not say why: %v", err)
		}
		return
	}
	s.insert()
	s.begin()
	s.insert()
	expectRead(t, "an open insert under a view that Check has let pass", table, 0, 1)
	expectRead(t, "an open insert under a view that Check has let pass", table, 1)
}

// Names are quoted, in every statement.
func TestTableNames(t *testing.T) {
	t.Parallel()
	const (
		schema    = `Odd "Schema" é`
		name      = `My "Events'; --`
		position  = `Global Position "x"`
		aggregate = `Aggregate$1 %s`
	)
	q := func(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
	s := newStream(t,
		`CREATE SCHEMA `+q(schema),
		`CREATE TABLE `+q(schema)+`.`+q(name)+` (`+q(position)+` bigserial PRIMARY KEY, `+q(aggregate)+` uuid NOT NULL DEFAULT '0F000000-0000-0000-0000-00000000000a')`,
		`CREATE TABLE events (wrong int)`)
	change := func(c *orchestrator.TableConfig[int64]) {
		c.Schema, c.Table, c.PositionColumn, c.AggregateIDColumn, c.Columns = schema, name, position, aggregate, []string{position}
	}
	table := s.table(change)
	if err := table.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	insert := `INSERT INTO ` + q(schema) + `.` + q(name) + ` DEFAULT VALUES RETURNING ` + q(position)
	execute(t, s.db, insert)
	w := s.begin(insert)
	execute(t, s.db, insert)
	expectRead(t, "open", table, 0, 1)
	expectWaiting(t, "open", table, 2, w.backend)
	w.exec(`COMMIT`)
	expectRead(t, "committed", table, 1, 2, 3)
	page, err := records(t.Context(), table, 0, 1)
	if err != nil || len(page) != 1 || page[0].AggregateID != "0f000000-0000-0000-0000-00000000000a" {
		t.Errorf("a uuid: %+v, %v", page, err)
	}

	// On the search path, and the same.
	table = tableOf(t, reopen(t, s.url, "search_path", q(schema)), change, func(c *orchestrator.TableConfig[int64]) { c.Schema = "" })
	if err := table.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectRead(t, "by the search path", table, 1, 2, 3)

	execute(t, s.db, `ALTER TABLE `+q(schema)+`.`+q(name)+` ALTER `+q(position)+` DROP DEFAULT, ALTER `+q(position)+` ADD GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME `+q(schema)+`."Seq" CACHE 5)`)
	if err := table.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "Seq") {
		t.Errorf("a caching sequence under quoted names: %v", err)
	}
}

// A sequence that caches is found wherever the column has it from, and the
// advice heals it.
func TestTableCache(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string][]string{
		"serial": {streamTable, `ALTER SEQUENCE events_global_position_seq CACHE 10`},
		"identity": {
			`CREATE TABLE events (global_position bigint GENERATED ALWAYS AS IDENTITY (CACHE 10) PRIMARY KEY, aggregate_id text)`},
		"default": {
			`CREATE SEQUENCE other_seq CACHE 10`,
			`CREATE TABLE events (global_position bigint DEFAULT nextval('other_seq') PRIMARY KEY, aggregate_id text)`},
		"default in an expression": {
			`CREATE SCHEMA "Other"`, `CREATE SEQUENCE "Other"."Seq" CACHE 10`,
			`CREATE TABLE events (global_position bigint DEFAULT 1000 + nextval('"Other"."Seq"') PRIMARY KEY, aggregate_id text)`},
		"serial of another table": {
			`CREATE TABLE others (id bigserial)`, `ALTER SEQUENCE others_id_seq CACHE 10`,
			`CREATE TABLE events (global_position bigint DEFAULT nextval('others_id_seq') PRIMARY KEY, aggregate_id text)`},
		"partitioned": {
			`CREATE TABLE events (global_position bigserial, aggregate_id text) PARTITION BY RANGE (global_position)`,
			`CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (1000)`,
			`ALTER SEQUENCE events_global_position_seq CACHE 10`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, statements...)
			table := s.table()
			err := table.Check(t.Context())
			if err == nil {
				t.Fatal("Check has let it pass")
			}
			_, advice, found := strings.Cut(err.Error(), "ALTER SEQUENCE ")
			advice, _, _ = strings.Cut(advice, ",")
			if !found || !strings.Contains(err.Error(), "CACHE 10") {
				t.Fatalf("the error gives no advice: %v", err)
			}
			execute(t, s.db, `ALTER SEQUENCE `+advice)
			if err := table.Check(t.Context()); err != nil {
				t.Errorf("after ALTER SEQUENCE %s: %v", advice, err)
			}
		})
	}
	for name, statements := range map[string][]string{
		"a caching sequence of another column": {
			`CREATE TABLE events (global_position bigserial PRIMARY KEY, aggregate_id text, other bigserial)`,
			`ALTER SEQUENCE events_other_seq CACHE 10`},
	} {
		t.Run(name, func(t *testing.T) {
			if err := newStream(t, statements...).table().Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is wrong with the table is said by name, by Check and by Run.
func TestTableCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := role(t, w.DB, w.URL)
	w.Exec(`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ` + r)
	w.Exec(`GRANT USAGE ON SCHEMA public TO ` + r)
	w.Exec(`REVOKE ALL ON events FROM ` + r)
	w.Exec(`CREATE TABLE narrow AS SELECT global_position, aggregate_id FROM events`)
	standby, f := testworld.Faulty(t, w.URL)
	pretend := func(query string) string {
		return strings.ReplaceAll(query, "pg_catalog.pg_is_in_recovery()", "true")
	}
	f.Rewrite.Store(&pretend)

	for _, c := range []struct {
		name  string
		db    *sql.DB
		table string
		want  []string
	}{
		{"missing table", w.DB, "no_such_table", []string{`"no_such_table"`, "does not exist"}},
		{"missing column", w.DB, "narrow", []string{`"narrow"`, `"aggregate_type"`, "does not exist"}},
		{"no privilege", reopen(t, w.URL, "role", r), "events", []string{"events", "permission denied"}},
		{"standby", standby, "events", []string{"events", "standby", "primary"}},
		{"standby, and a missing column", standby, "narrow", []string{"narrow", "standby", "primary"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, err := orchestrator.NewEventTable(c.db, c.table)
			if err != nil {
				t.Fatal(err)
			}
			cfg := w.Config(c.db, "set")
			cfg.EventStore = table
			for by, err := range map[string]error{
				"Check": table.Check(t.Context()),
				"Run":   testworld.Run(t, cfg, w.All(c.db, nil)...).Failed(),
			} {
				if err == nil {
					t.Errorf("%s has let it pass", by)
					continue
				}
				for _, want := range c.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s does not mention %s: %v", by, want, err)
					}
				}
				if by == "Run" && !errors.Is(err, orchestrator.ErrEventStore) {
					t.Errorf("Run returned %v, want ErrEventStore", err)
				}
			}
		})
	}
	if n := w.Sets(); n != 0 {
		t.Errorf("a worker that was refused has joined: %d replica sets", n)
	}

	// The privilege to read is enough, gap or no gap.
	reader := &stream{t, w.DB, w.URL}
	execute(t, w.DB, `CREATE TABLE streamed (global_position bigserial PRIMARY KEY, aggregate_id text DEFAULT 'a')`, `GRANT SELECT ON streamed TO `+r)
	table := tableOf(t, reopen(t, w.URL, "role", r), func(c *orchestrator.TableConfig[int64]) { c.Table = "streamed" })
	if err := table.Check(t.Context()); err != nil {
		t.Error(err)
	}
	const insert = `INSERT INTO streamed DEFAULT VALUES RETURNING global_position`
	open := reader.begin(insert)
	execute(t, w.DB, insert)
	expectRead(t, "with little privilege", table, 0)
	expectWaiting(t, "with little privilege", table, 1, open.backend)
	open.exec(`COMMIT`)
	expectRead(t, "with little privilege", table, 0, 1, 2)
}

// Writers that commit late, roll back, and prepare; readers with pages of all
// sizes, of everything or of a part. Every reader sees every committed position
// once, in order.
func TestTableRandom(t *testing.T) {
	t.Parallel()
	s := prepared(t)
	execute(t, s.db, `ALTER TABLE events ALTER aggregate_id SET DEFAULT CASE WHEN random() < 0.2 THEN 'b' ELSE 'a' END`)
	u, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	const writers, transactions = 6, 150
	var writing sync.WaitGroup
	var written atomic.Bool
	for i := range writers {
		writing.Go(func() {
			if err := writeRandom(t.Context(), s, rand.New(rand.NewPCG(uint64(i), 7)), transactions, fmt.Sprintf("%s-%d", u.Path, i)); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	byAggregate := func(c *orchestrator.TableConfig[int64]) { c.AggregateTypeColumn = "aggregate_id" }
	shared := s.table(byAggregate)
	var reading sync.WaitGroup
	seen := make([][]int64, 6)
	scoped := func(i int) bool { return i%3 == 2 }
	for i := range seen {
		table := shared
		if i >= 3 {
			table = s.table(byAggregate)
		}
		var scope orchestrator.Scope
		if scoped(i) {
			scope.AggregateTypes = []string{"b"}
		}
		reading.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 8))
			poll := time.NewTicker(time.Millisecond)
			defer poll.Stop()
			after := int64(0)
			for t.Context().Err() == nil {
				done := written.Load()
				page, err := table.Read(t.Context(), orchestrator.ReadRequest{After: after, Limit: 1 + r.IntN(40), Scope: scope})
				if err != nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
				for _, e := range page.Records {
					if e.Position <= after {
						t.Errorf("reader %d: %d after %d", i, e.Position, after)
						return
					}
					after = e.Position
					seen[i] = append(seen[i], after)
				}
				if page.Through > after {
					after = page.Through
				} else if len(page.Records) == 0 {
					if done {
						return
					}
					<-poll.C
				}
			}
		})
	}
	writing.Wait()
	written.Store(true)
	reading.Wait()

	var want, part []int64
	rows, err := s.db.QueryContext(t.Context(), `SELECT global_position, aggregate_id = 'b' FROM events ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var p int64
		var b bool
		if err := rows.Scan(&p, &b); err != nil {
			t.Fatal(err)
		}
		want = append(want, p)
		if b {
			part = append(part, p)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	gaps := want[len(want)-1] - int64(len(want))
	t.Logf("%d events, %d positions that were rolled back", len(want), gaps)
	if len(want) < 2000 || gaps < 200 {
		t.Errorf("%d events and %d gaps: not what this test is about", len(want), gaps)
	}
	for i, got := range seen {
		want := want
		if scoped(i) {
			want = part
		}
		if !slices.Equal(got, want) {
			lost := slices.DeleteFunc(slices.Clone(want), func(p int64) bool { return slices.Contains(got, p) })
			t.Errorf("reader %d saw %d of %d events; the first that it lost: %v", i, len(got), len(want), lost[:min(len(lost), 5)])
		}
	}
}

// writeRandom has up to four transactions open at a time and ends them in any
// order and in any way.
func writeRandom(ctx context.Context, s *stream, r *rand.Rand, transactions int, name string) error {
	var open []*sql.Conn
	var waiting []string // prepared
	exec := func(c interface {
		ExecContext(context.Context, string, ...any) (sql.Result, error)
	}, statement string, args ...any) error {
		if _, err := c.ExecContext(ctx, statement, args...); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
		return nil
	}
	insert := func(c *sql.Conn) error {
		return exec(c, `INSERT INTO events SELECT FROM generate_series(1, $1)`, 1+r.IntN(4))
	}
	finish := func() error {
		i := r.IntN(len(open))
		c := open[i]
		open = slices.Delete(open, i, i+1)
		defer c.Close()
		switch n := r.IntN(10); {
		case n < 6:
			return exec(c, `COMMIT`)
		case n < 8 || len(waiting) >= 2:
			return exec(c, `ROLLBACK`)
		default:
			id := fmt.Sprintf("'%s-%d-%d'", name, transactions, r.Uint64())
			waiting = append(waiting, id)
			return exec(c, `PREPARE TRANSACTION `+id)
		}
	}
	finishPrepared := func() error {
		id := waiting[0]
		waiting = waiting[1:]
		return exec(s.db, []string{`COMMIT`, `COMMIT`, `ROLLBACK`}[r.IntN(3)]+` PREPARED `+id)
	}
	for transactions > 0 || len(open)+len(waiting) > 0 {
		var err error
		switch n := r.IntN(10); {
		case n < 4 && transactions > 0 && len(open) < 4:
			transactions--
			var c *sql.Conn
			if c, err = s.db.Conn(ctx); err != nil {
				return err
			}
			open = append(open, c)
			if err = exec(c, `BEGIN`); err == nil {
				err = insert(c)
			}
		case n < 6 && len(open) > 0:
			err = insert(open[r.IntN(len(open))])
		case n < 9 && len(open) > 0:
			err = finish()
		case len(waiting) > 0:
			err = finishPrepared()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// An event that can't be read says so, in a page with all others.
func TestTableNamesTheEventThatItCannotRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`CREATE TABLE loose (LIKE events INCLUDING ALL)`)
	w.Exec(`ALTER TABLE loose ALTER event_type DROP NOT NULL`)
	w.Exec(`
INSERT INTO loose (global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT i, 'c', 't', 'a', i, gen_random_uuid(), CASE WHEN i <> 3 THEN 'x' END, 'x' FROM generate_series(1, 5) i`)
	w.Exec(`SELECT setval(pg_get_serial_sequence('events', 'global_position'), 5)`) // which both tables have
	table, err := orchestrator.NewEventTable(w.DB, "loose")
	if err != nil {
		t.Fatal(err)
	}
	if page, err := records(t.Context(), table, 0, 100); err != nil || len(page) != 5 || page[2].Position != 3 || !strings.Contains(fmt.Sprint(page[2].Err), `from "loose"`) {
		t.Errorf("read: %+v, %v", page, err)
	}
}

// Of several faults, the first field's is named, each time.
func TestTableNamesTheFirstFault(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("postgres", "")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	cfg := orchestrator.TableConfig[orchestrator.Event]{
		Table: "a\n", PositionColumn: "b\n", AggregateIDColumn: "c\n", Schema: "d\n", Columns: []string{"e\n"},
		Fields: func(e *orchestrator.Event, dest []any) []any { return append(dest, &e.GlobalPosition) },
	}
	for range 50 {
		if _, err := orchestrator.NewTable(db, cfg); err == nil || !strings.Contains(err.Error(), "TableConfig.Table ") {
			t.Fatal(err)
		}
	}
}
