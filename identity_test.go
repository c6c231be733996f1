package orchestrator_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A rowOf is an event of any table: its position, and what else there is as the driver
// gives it.
type rowOf struct {
	position int64
	id       any
}

// seen writes the positions that it is called with.
type seen struct {
	name  string
	types []string
}

func (s seen) Name() string                      { return s.name }
func (s seen) AggregateTypes() []string          { return s.types }
func (s seen) BoundedContexts() []string         { return nil }
func (seen) Handle(context.Context, rowOf) error { panic("it takes batches") }
func (s seen) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []rowOf) error {
	var positions []int64
	for _, e := range events {
		positions = append(positions, e.position)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO seen SELECT $1, unnest($2::bigint[])`, s.name, pq.Array(positions))
	return err
}

// Whatever the type of the columns, and whatever the sessions of the workers are set
// to, each event is one worker's: one that shares a backlog by slots reads the same
// aggregate ids and types as one that reads whole pages.
func TestNoEventFallsBetweenTwoWorkers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, kind, id, types string }{
		"text":                 {"", "text", `'a' || i % 60`, "text"},
		"char":                 {"", "char(36)", `'a' || i % 60`, "char(20)"},
		"bytea":                {"", "bytea", `convert_to('a\\' || i % 60, 'UTF8')`, "bytea"},
		"uuid":                 {"", "uuid", `md5((i % 60)::text)::uuid`, "varchar"},
		"enum":                 {`CREATE TYPE id AS ENUM ('ann', 'bob', 'eve', 'joe', 'sue')`, "id", `(ARRAY['ann', 'bob', 'eve', 'joe', 'sue'])[1 + i % 5]::id`, "text"},
		"domain over char":     {`CREATE DOMAIN id AS char(30)`, "id", `'a' || i % 60`, "name"},
		"domain over bytea":    {`CREATE DOMAIN id AS bytea`, "id", `convert_to('a' || i % 60, 'UTF8')`, "text"},
		"array":                {"", "text[]", `ARRAY['a b', (i % 60)::text]`, "text"},
		"int":                  {"", "int", `i % 60`, "text"},
		"numeric":              {"", "numeric(9,2)", `i % 60`, "text"},
		"a type of extensions": {"", "citext", `'A' || i % 60`, "citext"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if c.kind == "citext" {
				if _, err := w.DB.ExecContext(t.Context(), `CREATE EXTENSION citext`); err != nil {
					pgtest.Missing(t, "the server has no citext: %v", err)
				}
			}
			if c.before != "" {
				w.Exec(c.before)
			}
			const n = 3000
			w.Exec(`CREATE TABLE seen (projection text, position bigint)`)
			w.Exec(fmt.Sprintf(`CREATE TABLE stream (position bigserial PRIMARY KEY, id %s NOT NULL, kind %s NOT NULL)`, c.kind, c.types))
			w.Exec(fmt.Sprintf(`INSERT INTO stream (id, kind) SELECT %s, 'Order' FROM generate_series(1, %d) i`, c.id, n))
			kinds := []string{"Order"}
			if c.types == "bytea" {
				kinds = []string{`\x4f72646572`}
			}
			for i := range 3 {
				db := reopen(t, w.URL, "bytea_output", []string{"hex", "escape", "hex"}[i])
				table, err := orchestrator.NewTable(db, orchestrator.TableConfig[rowOf]{
					Table: "stream", PositionColumn: "position", AggregateIDColumn: "id", AggregateTypeColumn: "kind",
					Columns: []string{"position", "id"},
					Fields:  func(e *rowOf, dest []any) []any { return append(dest, &e.position, &e.id) },
				})
				if err != nil {
					t.Fatal(err)
				}
				o, err := orchestrator.New(orchestrator.Config[rowOf]{
					DB: db, EventStore: table, ReplicaSet: "set", JoinWindow: 300 * time.Millisecond, HeartbeatInterval: 50 * time.Millisecond,
					Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(context.Background())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					if err := o.Run(ctx, []orchestrator.Projection[rowOf]{seen{name: "all"}, seen{"orders", kinds}}); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}()
				t.Cleanup(func() { stop(); <-ended })
			}
			pgtest.Eventually(t, "all checkpoints have passed everything", func() bool {
				return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position >= $1`, n) > 0 &&
					w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position < $1`, n) == 0
			})
			for _, p := range []string{"all", "orders"} {
				if got, once := w.Number(`SELECT count(*) FROM seen WHERE projection = $1`, p), w.Number(`SELECT count(DISTINCT position) FROM seen WHERE projection = $1`, p); got != n || once != n {
					t.Errorf("%s: %d events were handled, %d of them different, and there are %d", p, got, once, n)
				}
			}
		})
	}
}

// An id is what a record says, whatever way it is read; a field of the event with the
// same column gets what the column has.
func TestIdentityIsTheSameOnEveryWay(t *testing.T) {
	t.Parallel()
	type event struct {
		id, kind string
		raw      []byte
	}
	s := newStream(t, `CREATE TABLE events (global_position bigserial PRIMARY KEY, aggregate_id char(8) NOT NULL DEFAULT 'a17', kind uuid NOT NULL DEFAULT '0F000000-0000-0000-0000-00000000000a')`)
	s.insert()
	table, err := orchestrator.NewTable(s.db, orchestrator.TableConfig[event]{
		AggregateTypeColumn: "kind", Columns: []string{"aggregate_id", "kind", "aggregate_id"},
		Fields: func(e *event, dest []any) []any { return append(dest, &e.id, &e.kind, &e.raw) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	const kind = "0f000000-0000-0000-0000-00000000000a"
	whole, err := records(t.Context(), table, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	part, err := table.Read(t.Context(), orchestrator.ReadRequest{Limit: 10, Scope: orchestrator.Scope{AggregateTypes: []string{kind}}})
	if err != nil {
		t.Fatal(err)
	}
	own, _, _, err := table.ReadOwn(t.Context(), 0, 1, 0, 10, 0)
	if err != nil {
		t.Fatal(err)
	}
	for way, page := range map[string][]orchestrator.Record[event]{"whole": whole, "scoped": part.Records, "by slot": own} {
		if len(page) != 1 || page[0].AggregateID != "a17" || page[0].AggregateType != kind || page[0].Err != nil {
			t.Fatalf("%s: %+v", way, page)
		}
		if e := page[0].Event; e.id != "a17     " || e.kind != kind || string(e.raw) != "a17     " {
			t.Errorf("%s: the event has %q", way, e)
		}
	}
}

// A column whose text depends on the session can't decide about partitions.
func TestIdentityThatSettingsChangeIsRefused(t *testing.T) {
	t.Parallel()
	s := newStream(t, streamTable, `CREATE DOMAIN moment AS timestamptz`, `CREATE TYPE pair AS (a text, at date)`, `CREATE TYPE spans AS RANGE (subtype = date)`)
	for _, kind := range []string{
		"timestamp", "timestamptz", "date", "interval", "real", "double precision", "money", "regclass", "moment", "moment[]", "bytea[]", "pair",
		"spans", "tstzrange", "point",
	} {
		for _, column := range []string{"aggregate_id", "kind"} {
			execute(t, s.db, `DROP TABLE IF EXISTS odd`, `CREATE TABLE odd (global_position bigserial PRIMARY KEY, aggregate_id text, kind text)`,
				fmt.Sprintf(`ALTER TABLE odd ALTER %[1]s TYPE %[2]s USING NULL::%[2]s`, column, kind))
			table := s.table(func(c *orchestrator.TableConfig[int64]) { c.Table, c.AggregateTypeColumn = "odd", "kind" })
			err := table.Check(t.Context())
			if err == nil {
				t.Errorf("%s of type %s is let pass", column, kind)
				continue
			}
			for _, want := range []string{`"odd"`, `"` + column + `"`, "settings", strings.TrimPrefix(kind, "double ")} {
				if kind != "timestamp" && kind != "timestamptz" && !strings.Contains(err.Error(), want) {
					t.Errorf("%s of type %s: the error does not mention %s: %v", column, kind, want, err)
				}
			}
			if _, err := records(t.Context(), table, 0, 1); err == nil {
				t.Errorf("%s of type %s is read without Check", column, kind)
			}
		}
	}
}

// Rows that are read for their slots, and are another aggregate's by then, end the read.
func TestRowOfAnotherSlotIsNotSkipped(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	execute(t, s.db, `INSERT INTO events (aggregate_id) SELECT 'a' || i % 20 FROM generate_series(1, 200) i`)
	db, f := testworld.Faulty(t, s.url)
	table := tableOf(t, db)
	own, _, _, err := table.ReadOwn(t.Context(), 0, 2, 0, 200, 0)
	if err != nil || len(own) == 0 {
		t.Fatalf("%d events, %v", len(own), err)
	}
	moved := own[3].Position
	f.OnQuery(func(query string) {
		if strings.Contains(query, "OPERATOR(pg_catalog.=) ANY") {
			execute(t, s.db, fmt.Sprintf(`UPDATE events SET aggregate_id = (SELECT aggregate_id FROM events WHERE global_position <> ALL ('{%s}') LIMIT 1) WHERE global_position = %d`, list(own), moved))
		}
	})
	_, _, _, err = table.ReadOwn(t.Context(), 0, 2, 0, 200, 0)
	for _, want := range []string{fmt.Sprintf("position %d", moved), "aggregate"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q: %v", want, err)
		}
	}
	f.OnQuery(func(string) {})
	if _, _, _, err := table.ReadOwn(t.Context(), 0, 2, 0, 200, 0); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func list(page []orchestrator.Record[int64]) string {
	var out []string
	for _, r := range page {
		out = append(out, fmt.Sprint(r.Position))
	}
	return strings.Join(out, ",")
}

// overriding embeds a Table and changes how events are read.
type overriding struct {
	*orchestrator.Table[orchestrator.Event]
	reads, scopedReads *atomic.Int64
}

func (o overriding) Read(ctx context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	o.reads.Add(1)
	if len(r.Scope.AggregateTypes) > 0 {
		o.scopedReads.Add(1)
	}
	page, err := o.Table.Read(ctx, r)
	for i := range page.Records {
		page.Records[i].Event.EventType = "changed"
	}
	return page, err
}

// A store that embeds a Table and overrides how it reads is read in its own way, also
// for a backlog that workers share, and for parked events.
func TestEmbeddedTableIsReadThroughItsOwnMethods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(300)
	var reads, scopedReads, wrong atomic.Int64
	hook := func(_ context.Context, e orchestrator.Event) error {
		if e.EventType != "changed" {
			wrong.Add(1)
		}
		return nil
	}
	for range 2 {
		table, err := orchestrator.NewEventTable(w.DB, "")
		if err != nil {
			t.Fatal(err)
		}
		cfg := w.Config(w.DB, "set")
		cfg.EventStore = overriding{table, &reads, &scopedReads}
		testworld.Run(t, cfg, testworld.Effects{Projection: "all", Hook: hook}.Transactional(), scopedTransactional{testworld.Effects{Projection: "things", Hook: hook}.Transactional(), scope{types: []string{"thing"}}})
	}
	w.CaughtUp("all", "things")
	if n := wrong.Load(); n != 0 || reads.Load() == 0 {
		t.Errorf("%d events were read past the store's own Read; %d calls of it, %d with a scope", n, reads.Load(), scopedReads.Load())
	}

	// By itself, a scoped projection is read within its scope.
	table, err := orchestrator.NewEventTable(w.DB, "")
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.Config(w.DB, "another set")
	cfg.EventStore = overriding{table, &reads, &scopedReads}
	testworld.Run(t, cfg, scopedTransactional{testworld.Effects{Projection: "alone", Hook: hook}.Transactional(), scope{types: []string{"thing"}}})
	w.CaughtUp("alone")
	if wrong.Load() != 0 || scopedReads.Load() == 0 {
		t.Errorf("%d events were read past the store's own Read; %d calls of it with a scope", wrong.Load(), scopedReads.Load())
	}
}
