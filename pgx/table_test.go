package orchestratorpgx_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

const ordersTable = `
CREATE TABLE orders (
    position    bigserial PRIMARY KEY,
    "OrderID"   text NOT NULL,
    kind        text NOT NULL,
    total_cents int NOT NULL,
    note        text,
    created_at  timestamptz NOT NULL DEFAULT '2020-01-02T03:04:05Z',
    body        jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO orders ("OrderID", kind, total_cents, note, body) VALUES ('o1', 'placed', 100, NULL, '{"n": 1}'), ('o2', 'paid', 200, 'quickly', '{}')`

var orders = orchestrator.TableConfig[order]{Table: "orders", PositionColumn: "position", AggregateIDColumn: "OrderID", AggregateTypeColumn: "kind"}

type stamped struct {
	CreatedAt time.Time
	Internal  string `db:"-"`
}

type order struct {
	ID     string `db:"OrderID"`
	Number int64  `db:"POSITION"`
	stamped
	TotalCents int
	Note       *string
	Body       map[string]int
	Kind       string
	hidden     int // unexported fields have no column
}

// The fields of a struct are matched by name, as in pgx.RowToStructByName.
func TestStructTable(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	if _, err := db.Exec(ordersTable); err != nil {
		t.Fatal(err)
	}
	pool := newPool(t, url, 4)
	events, err := orchestratorpgx.NewStructTable(t.Context(), pool, orders)
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	page, err := events.Read(t.Context(), orchestrator.ReadRequest{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	quickly := "quickly"
	at := stamped{CreatedAt: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC).Local()}
	want := []order{
		{ID: "o1", Number: 1, stamped: at, TotalCents: 100, Body: map[string]int{"n": 1}, Kind: "placed"},
		{ID: "o2", Number: 2, stamped: at, TotalCents: 200, Note: &quickly, Body: map[string]int{}, Kind: "paid"},
	}
	var got []order
	for _, r := range page.Records {
		if r.Err != nil || r.AggregateID != r.Event.ID || r.AggregateType != r.Event.Kind || r.Position != r.Event.Number {
			t.Errorf("%+v", r)
		}
		r.Event.hidden = 0
		got = append(got, r.Event)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(order{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if total := page.Records[1].Size; total < int(reflect.TypeFor[orchestrator.Record[order]]().Size()) {
		t.Errorf("an event is said to take %d bytes", total)
	}
}

// If a column does not fit the struct or the destinations, the table is refused, and the error
// names both.
func TestColumnsThatDoNotFit(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	if _, err := db.Exec(ordersTable + `; DELETE FROM orders`); err != nil { // there are no events that could show it
		t.Fatal(err)
	}
	pool := newPool(t, url, 4)
	type (
		missing struct {
			Position int64
			Amount   int
		}
		tagged struct {
			Position int64
			Cents    int `db:"total"`
		}
		twice struct {
			Position int64
			Kind     string
			Other    string `db:"kind"`
		}
		unfit struct {
			Position  int64
			CreatedAt int
			Kind      []string
		}
		embedded struct {
			Position int64
			Inner    struct{ X int }
		}
		fewer struct{ Position int64 }
	)
	for name, c := range map[string]struct {
		make func() error
		want []string
	}{
		"no column":        {func() error { return structTable[missing](t, pool, nil) }, []string{"no column for the field Amount", `"total_cents"`}},
		"no tagged column": {func() error { return structTable[tagged](t, pool, nil) }, []string{"no column for the field Cents"}},
		"two fields":       {func() error { return structTable[twice](t, pool, nil) }, []string{`"kind" matches two fields, Kind and Other`}},
		"types": {func() error { return structTable[unfit](t, pool, nil) }, []string{
			`"created_at" has the type timestamptz, which the field CreatedAt of type int can't hold`,
			`"kind" has the type text, which the field Kind of type []string can't hold`,
		}},
		"a struct that is not embedded": {func() error { return structTable[embedded](t, pool, nil) }, []string{"no column for the field Inner"}},
		"a column without a field":      {func() error { return structTable[fewer](t, pool, []string{"position", "kind"}) }, []string{`no field for the column "kind"`}},
		"a column that there is not":    {func() error { return structTable[fewer](t, pool, []string{"position", "no"}) }, []string{`there is no column "no"`}},
		"no struct":                     {func() error { return structTable[int](t, pool, nil) }, []string{"needs a struct type; int is not one"}},
		"no table": {func() error {
			_, err := orchestratorpgx.NewStructTable(t.Context(), pool, orchestrator.TableConfig[fewer]{Table: "nowhere"})
			return err
		}, []string{`"nowhere"`, "does not exist"}},
		"destinations": {func() error {
			cfg := orchestrator.TableConfig[unfit]{
				Table: "orders", PositionColumn: "position", AggregateIDColumn: "OrderID", Columns: []string{"created_at", "kind"},
				Fields: func(e *unfit, dest []any) []any { return append(dest, &e.CreatedAt, &e.Kind) },
			}
			events, err := orchestratorpgx.NewTable(pool, cfg)
			if err != nil {
				return err
			}
			return events.Check(t.Context())
		}, []string{`column "created_at" has the type timestamptz, which *int can't hold`, `column "kind" has the type text, which *[]string can't hold`}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.make()
			if err == nil || !strings.HasPrefix(strings.TrimPrefix(err.Error(), "check events table: "), "orchestrator: ") {
				t.Fatalf("the error is %v", err)
			}
			if name != "no table" && !errors.Is(err, orchestrator.ErrInvalidConfig) {
				t.Errorf("it is no ErrInvalidConfig: %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not say %q", err, want)
				}
			}
		})
	}
}

func structTable[E any](t *testing.T, pool *pgxpool.Pool, columns []string) error {
	_, err := orchestratorpgx.NewStructTable(t.Context(), pool, orchestrator.TableConfig[E]{
		Table: "orders", PositionColumn: "position", AggregateIDColumn: "OrderID", Columns: columns,
	})
	return err
}

// Nil pools are refused, and so is TableConfig.Fields in NewStructTable.
func TestRefusedTables(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	pool := newPool(t, url, 1)
	given := orders
	given.Fields = func(*order, []any) []any { return nil }
	_, noPool := orchestratorpgx.NewTable[order](nil, orders)
	_, noEvents := orchestratorpgx.NewEventTable(nil, "")
	_, noStructs := orchestratorpgx.NewStructTable(t.Context(), nil, orders)
	_, noConfig := orchestratorpgx.Config(nil, "set")
	_, both := orchestratorpgx.NewStructTable(t.Context(), pool, given)
	_, noDB := orchestrator.New(orchestratorpgx.ConfigFor[event](nil, "set", nil))
	for name, err := range map[string]error{"table": noPool, "events": noEvents, "structs": noStructs, "config": noConfig, "both": both, "ConfigFor": noDB} {
		if !errors.Is(err, orchestrator.ErrInvalidConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Events that were read do not change when more events are read: strings and bytes share memory,
// which is not written again.
func TestEventsDoNotShareWrittenMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, trace_id, metadata)
SELECT 'c' || i % 3, 't' || i, 'a' || i, 1, ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, 'e' || i % 2,
       decode(repeat(lpad(to_hex(i % 256), 2, '0'), i % 700), 'hex'), CASE WHEN i % 2 = 0 THEN 'trace' || i END, jsonb_build_object('i', i)
  FROM generate_series(1, 3000) i`)
	events, err := orchestratorpgx.NewEventTable(w.pool, "")
	if err != nil {
		t.Fatal(err)
	}
	page, err := events.Read(t.Context(), orchestrator.ReadRequest{Limit: 3000})
	if err != nil || len(page.Records) != 3000 {
		t.Fatalf("%d events, %v", len(page.Records), err)
	}
	for n := range page.Records { // a write to one event's bytes, up to their capacity, changes no other event
		e := &page.Records[n].Event
		if n%2 == 0 {
			for i := range e.Payload[:cap(e.Payload)] {
				e.Payload[:cap(e.Payload)][i] = 0xff
			}
			_ = append(e.Metadata, "and more"...)
		}
	}
	for n, r := range page.Records {
		i, e := n+1, r.Event
		trace := ""
		if i%2 == 0 {
			trace = fmt.Sprintf("trace%d", i)
		}
		payload := byte(i % 256)
		if n%2 == 0 {
			payload = 0xff
		}
		ok := e.BoundedContext == fmt.Sprintf("c%d", i%3) && e.AggregateType == fmt.Sprintf("t%d", i) && e.AggregateID == fmt.Sprintf("a%d", i) &&
			e.EventID == fmt.Sprintf("00000000-0000-0000-0000-%012d", i) && e.EventType == fmt.Sprintf("e%d", i%2) && e.TraceID.String == trace &&
			string(e.Metadata) == fmt.Sprintf(`{"i": %d}`, i) && len(e.Payload) == i%700 && r.AggregateID == e.AggregateID
		for _, b := range e.Payload {
			ok = ok && b == payload
		}
		if !ok {
			t.Fatalf("event %d is %+v", i, r)
		}
	}
}

// A page that is cut because of its size costs the connection, and no more.
func TestPageIsCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'c', 't', 'a', i, gen_random_uuid(), 'e', decode(repeat('ab', 100000), 'hex') FROM generate_series(1, 100) i`)
	events, err := orchestratorpgx.NewEventTable(w.pool, "")
	if err != nil {
		t.Fatal(err)
	}
	after, pages := int64(0), 0
	for after < 100 {
		page, err := events.Read(context.Background(), orchestrator.ReadRequest{After: after, Limit: 100, MaxBytes: 1_000_000})
		if err != nil || len(page.Records) == 0 || page.Records[0].Position != after+1 {
			t.Fatalf("%d events above %d, %v", len(page.Records), after, err)
		}
		after, pages = page.Through, pages+1
	}
	if pages < 8 || pages > 20 {
		t.Errorf("%d pages, of a megabyte each, for ten", pages)
	}
	w.released()
}
