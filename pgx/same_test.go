package orchestratorpgx_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// An any1 is an event with one value.
type any1 struct {
	Position int64
	Into     any
}

// A heard is a Scanner that keeps the value that it gets.
type heard struct{ Value any }

func (h *heard) Scan(value any) error {
	if b, ok := value.([]byte); ok {
		value = append([]byte(nil), b...)
	}
	h.Value = value
	return nil
}

type (
	namedText   string
	namedNumber int32
	namedBytes  []byte
)

var types = []struct {
	sql    string
	values []string
}{
	{"text", []string{"''", "'abc'", "'42'", "'-1.5'", "'true'", "'é'", "'2020-01-02T03:04:05Z'"}},
	{"varchar(10)", []string{"'abc'", "'7'"}},
	{"char(5)", []string{"'abc'"}},
	{"name", []string{"'abc'"}},
	{`"char"`, []string{"'x'"}},
	{"uuid", []string{"'0d3e4a9c-5f0b-4a53-9f50-8f6f7b6b1c2d'"}},
	{"json", []string{`'{"a":  [1, 2]}'`, "'3'", `'"x"'`, "'null'"}},
	{"jsonb", []string{`'{"a":  [1, 2]}'`, "'3'", `'"x"'`, "'null'"}},
	{"bytea", []string{`'\x'`, `'\x00ff61'`, `'\x3432'`}},
	{"smallint", []string{"0", "-32768", "32767", "200", "300"}},
	{"integer", []string{"0", "-2147483648", "2147483647", "70000", "1"}},
	{"bigint", []string{"0", "-9223372036854775808", "9223372036854775807", "1"}},
	{"boolean", []string{"true", "false"}},
	{"real", []string{"0", "1.5", "'NaN'", "'-Infinity'", "1e20"}},
	{"double precision", []string{"0", "1.5", "'NaN'", "'Infinity'", "1e300", "3"}},
	{"numeric", []string{"0", "100", "1.50", "'NaN'", "12345678901234567890.123"}},
	{"date", []string{"'2020-02-29'", "'0044-03-15 BC'", "'infinity'"}},
	{"timestamp", []string{"'2020-02-29 12:34:56.789012'", "'1969-12-31 23:59:59.5'", "'-infinity'"}},
	{"timestamptz", []string{"'2020-02-29 12:34:56.789012+05'", "'1969-12-31 23:59:59.5Z'", "'infinity'", "'0044-03-15 00:00Z BC'"}},
	{"time", []string{"'12:34:56.5'"}},
	{"interval", []string{"'1 day 2 hours'"}},
	{"inet", []string{"'10.0.0.1/8'"}},
	{"oid", []string{"7", "4000000000"}},
	{"money", []string{"12.5"}},
	{"bit(3)", []string{"'101'"}},
	{"xml", []string{"'<a/>'"}},
	{"integer[]", []string{"'{1,2,NULL}'", "'{}'"}},
	{"text[]", []string{`'{a,"b c"}'`}},
	{"mood", []string{"'happy'"}},
	{"words", []string{"'abc'"}},
	{"count", []string{"5"}},
}

// For each type of a column and each type of a field, events are the same as with pgx through
// database/sql: the same values, and the same ones are refused.
func TestSameAsThroughDatabaseSQL(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	exec := func(query string) {
		t.Helper()
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	exec(`CREATE TYPE mood AS ENUM ('happy', 'sad'); CREATE DOMAIN words AS text; CREATE DOMAIN count AS int`)
	for i, c := range types {
		exec(fmt.Sprintf(`CREATE TABLE t%d (global_position bigserial PRIMARY KEY, aggregate_id text NOT NULL DEFAULT 'a', v %s)`, i, c.sql))
		for _, v := range append(c.values, "NULL") {
			exec(fmt.Sprintf(`INSERT INTO t%d (v) VALUES (%s)`, i, v))
		}
	}
	// Modes without a round trip for types return all results as text.
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, url, 4, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			through := stdlib.OpenDB(*pool.Config().ConnConfig)
			t.Cleanup(func() { through.Close() })
			same(t, through, pool)
		})
	}
}

func same(t *testing.T, through *sql.DB, pool *pgxpool.Pool) {
	fields := []func() any{
		func() any { return new(string) }, func() any { return new([]byte) }, func() any { return new(any) },
		func() any { return new(int64) }, func() any { return new(int) }, func() any { return new(int32) }, func() any { return new(int16) },
		func() any { return new(int8) }, func() any { return new(uint64) }, func() any { return new(uint8) }, func() any { return new(bool) },
		func() any { return new(float64) }, func() any { return new(float32) }, func() any { return new(time.Time) },
		func() any { return new(json.RawMessage) }, func() any { return new(namedText) }, func() any { return new(namedNumber) }, func() any { return new(namedBytes) },
		func() any { return new(sql.NullString) }, func() any { return new(sql.NullInt64) }, func() any { return new(sql.NullInt32) }, func() any { return new(sql.NullBool) },
		func() any { return new(sql.NullFloat64) }, func() any { return new(sql.NullTime) }, func() any { return new(sql.Null[[]byte]) },
		func() any { return new(*string) }, func() any { return new(*int64) }, func() any { return new(*time.Time) }, func() any { return new(**bool) },
		func() any { return new(heard) }, func() any { return new(*heard) },
		func() any { return new(pgtype.Text) }, func() any { return new(pgtype.Int8) }, func() any { return new(pgtype.Timestamptz) }, func() any { return new(pgtype.Numeric) },
	}
	compared, read := 0, 0
	for i, c := range types {
		for _, into := range fields {
			cfg := orchestrator.TableConfig[any1]{
				Table: fmt.Sprintf("t%d", i), Columns: []string{"global_position", "v"},
				Fields: func(e *any1, dest []any) []any {
					e.Into = into()
					return append(dest, &e.Position, e.Into)
				},
				Size: func(any1) int { return 1 },
			}
			want, err := orchestrator.NewTable(through, cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := orchestratorpgx.NewTable(pool, cfg)
			if err != nil {
				t.Fatal(err)
			}
			all := orchestrator.ReadRequest{Limit: 100}
			wantPage, err := want.Read(t.Context(), all)
			if err != nil {
				t.Fatalf("%s: %v", c.sql, err)
			}
			gotPage, err := got.Read(t.Context(), all)
			if err != nil {
				t.Fatalf("%s into %T: %v", c.sql, into(), err)
			}
			if len(gotPage.Records) != len(wantPage.Records) || gotPage.Through != wantPage.Through || gotPage.More != wantPage.More {
				t.Fatalf("%s: %d events through %d, want %d through %d", c.sql, len(gotPage.Records), gotPage.Through, len(wantPage.Records), wantPage.Through)
			}
			for n := range gotPage.Records {
				g, w := gotPage.Records[n], wantPage.Records[n]
				compared++
				value := append(c.values, "NULL")[n]
				if _, more := into().(*json.RawMessage); more && w.Err != nil && g.Err == nil {
					continue // database/sql takes only bytes there; pgx also takes NULL and text
				}
				switch {
				case (g.Err == nil) != (w.Err == nil):
					t.Errorf("%s %s into %T: the error is %v, want %v", c.sql, value, into(), g.Err, w.Err)
				case g.Err != nil:
				case !reflect.DeepEqual(g.Event.Into, w.Event.Into) && fmt.Sprintf("%#v", reflect.ValueOf(g.Event.Into).Elem()) != fmt.Sprintf("%#v", reflect.ValueOf(w.Event.Into).Elem()): // NaN
					t.Errorf("%s %s into %T: %s", c.sql, value, into(), cmp.Diff(w.Event.Into, g.Event.Into))
				default:
					read++
				}
				g.Err, w.Err, g.Event, w.Event = nil, nil, any1{}, any1{}
				if !reflect.DeepEqual(g, w) {
					t.Errorf("%s %s into %T: %+v, want %+v", c.sql, value, into(), g, w)
				}
			}
		}
	}
	if read < compared/4 {
		t.Errorf("of %d values only %d could be read", compared, read)
	}
	t.Logf("%d values, %d of them could be read", compared, read)
}

// pgx can scan into types that database/sql can't.
func TestPgxTypes(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	if _, err := db.Exec(`
CREATE TABLE events (
    global_position bigserial PRIMARY KEY, aggregate_id text NOT NULL, tags text[], numbers int[], doc jsonb, id uuid, span int4range, address inet);
INSERT INTO events (aggregate_id, tags, numbers, doc, id, span, address)
VALUES ('a', '{x,"y z"}', '{1,2}', '{"n": 7}', '0d3e4a9c-5f0b-4a53-9f50-8f6f7b6b1c2d', '[1,5)', '10.0.0.1'), ('b', NULL, NULL, NULL, NULL, NULL, NULL)`); err != nil {
		t.Fatal(err)
	}
	type event struct {
		Position int64 `db:"global_position"`
		Tags     []string
		Numbers  []int32
		Doc      map[string]int
		ID       [16]byte
		Span     pgtype.Range[pgtype.Int4]
		Address  netip.Addr
	}
	events, err := orchestratorpgx.NewStructTable(t.Context(), newPool(t, url, 4), orchestrator.TableConfig[event]{})
	if err != nil {
		t.Fatal(err)
	}
	page, err := events.Read(t.Context(), orchestrator.ReadRequest{Limit: 10})
	if err != nil || len(page.Records) != 2 {
		t.Fatalf("%d events, %v", len(page.Records), err)
	}
	want := event{
		1, []string{"x", "y z"}, []int32{1, 2}, map[string]int{"n": 7},
		[16]byte{0x0d, 0x3e, 0x4a, 0x9c, 0x5f, 0x0b, 0x4a, 0x53, 0x9f, 0x50, 0x8f, 0x6f, 0x7b, 0x6b, 0x1c, 0x2d},
		pgtype.Range[pgtype.Int4]{
			Lower: pgtype.Int4{Int32: 1, Valid: true}, Upper: pgtype.Int4{Int32: 5, Valid: true},
			LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
		},
		netip.MustParseAddr("10.0.0.1"),
	}
	if got := page.Records[0]; got.Err != nil || !reflect.DeepEqual(got.Event, want) {
		t.Errorf("%+v (%v), want %+v", got.Event, got.Err, want)
	}
	if got := page.Records[1]; got.Err == nil { // an array can't hold NULL
		t.Errorf("%+v was made of NULLs", got.Event)
	}
}
