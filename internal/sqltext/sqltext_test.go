package sqltext

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lib/pq"
)

func TestBind(t *testing.T) {
	for _, c := range []struct {
		why, text, want string
	}{
		{"a table, a function, an operator", `SELECT max(position) FROM orchestrator_checkpoints c WHERE c.total = 1`,
			`SELECT pg_catalog.max(position) FROM "it's".orchestrator_checkpoints c WHERE c.total OPERATOR(pg_catalog.=) 1`},
		{"a catalog, and a function that is named like one", `SELECT pg_backend_pid() FROM pg_locks`,
			`SELECT pg_catalog.pg_backend_pid() FROM pg_catalog.pg_locks`},
		{"types", `SELECT a::text, b::bigint, 'c'::regclass::oid FROM jsonb_to_recordset('[]'::jsonb) AS x (id text, n bigint, at timestamptz)`,
			`SELECT a::pg_catalog.text, b::bigint, 'c'::pg_catalog.regclass::pg_catalog.oid FROM pg_catalog.jsonb_to_recordset('[]'::pg_catalog.jsonb) AS x (id pg_catalog.text, n bigint, at pg_catalog.timestamptz)`},
		{"columns that are named like types and catalogs", `SELECT oid, t.name, text FROM t ORDER BY oid`, `SELECT oid, t.name, text FROM t ORDER BY oid`},
		{"an assignment is no operator", `UPDATE t SET a = 1, b = CASE WHEN a = 1 THEN 2 END, c = (d + 1) FROM u WHERE a = 3`,
			`UPDATE t SET a = 1, b = CASE WHEN a OPERATOR(pg_catalog.=) 1 THEN 2 END, c = (d OPERATOR(pg_catalog.+) 1) FROM u WHERE a OPERATOR(pg_catalog.=) 3`},
		{"all columns, and a product", `SELECT count(*), (SELECT * FROM t), a * 2`, `SELECT pg_catalog.count(*), (SELECT * FROM t), a OPERATOR(pg_catalog.*) 2`},
		{"a sign", `SELECT -abs(a)`, `SELECT OPERATOR(pg_catalog.-)pg_catalog.abs(a)`},
		{"strings, quoted names and comments are left alone", "SELECT 'a = b(c)', \"x=y\" -- it's = this\n", `SELECT 'a = b(c)', "x=y"  `},
		{"lists are no calls", `INSERT INTO orchestrator_parked (a) SELECT a FROM x ON CONFLICT (a) DO UPDATE SET a = excluded.a`,
			`INSERT INTO "it's".orchestrator_parked (a) SELECT a FROM x ON CONFLICT (a) DO UPDATE SET a = excluded.a`},
		{"the clock", `SELECT {clock} + interval '1 microsecond'`, `SELECT pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) interval '1 microsecond'`},
		{"fragments", `SELECT {column} FROM {table}`, `SELECT "a""b" FROM "s"."t"`},
	} {
		got, args := Names{Schema: "it's"}.Bind(New(c.text), Values{"column": Ident(`a"b`), "table": SQL(`"s"."t"`)})
		if diff := cmp.Diff(c.want, got); diff != "" || args != nil {
			t.Errorf("%s: (-want +got)\n%s%v", c.why, diff, args)
		}
	}
}

// Each value arrives with its type, in the text or beside it.
func TestBindValues(t *testing.T) {
	s := New(`SELECT {a}, {b}, {c}, {d}, {e}, {f}, {g}, {a}`)
	values := Values{
		"a": `it's \ %d {b} $1`, "b": -5, "c": int32(7), "d": true, "e": JSON{[]string{"'"}},
		"f": time.Date(2001, 2, 3, 4, 5, 6, 789, time.FixedZone("", 3600)), "g": time.Time{},
	}
	want := `SELECT  E'it''s \\ %d {b} $1'::pg_catalog.text, '-5'::bigint, '7'::integer, 'true'::boolean, '["''"]'::pg_catalog.jsonb, '2001-02-03T03:05:06.000000789Z'::pg_catalog.timestamptz, NULL::pg_catalog.timestamptz,  E'it''s \\ %d {b} $1'::pg_catalog.text`
	got, args := Names{Literals: true}.Bind(s, values)
	if diff := cmp.Diff(want, got); diff != "" || len(args) > 0 {
		t.Errorf("literals: (-want +got)\n%s%v", diff, args)
	}
	got, args = Names{}.Bind(s, values)
	want = `SELECT $1::pg_catalog.text, $2::bigint, $3::integer, $4::boolean, $5::pg_catalog.jsonb, $6::pg_catalog.timestamptz, $7::pg_catalog.timestamptz, $1::pg_catalog.text`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parameters: (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]any{`it's \ %d {b} $1`, int64(-5), int64(7), true, `["'"]`, "2001-02-03T03:05:06.000000789Z", nil}, args); diff != "" {
		t.Errorf("arguments: (-want +got)\n%s", diff)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, text := range []string{
		`SELECT a IN (1)`, `SELECT a BETWEEN 1 AND 2`, `SELECT a LIKE 'x'`, `SELECT NULLIF(a, 1)`,
		`SELECT a IS DISTINCT FROM b`, `SELECT a IS NOT DISTINCT FROM b`, `SELECT CASE a WHEN 1 THEN 2 END`,
		`SELECT a = b + 1`, `SELECT a % 2 = 0`, `SELECT public.f(1)`, `SELECT nullif(a, 1)`, `SELECT * FROM a JOIN b USING (c)`,
	} {
		func() {
			defer func() {
				if r := recover(); r == nil || !strings.HasPrefix(r.(string), "sqltext: ") {
					t.Errorf("%s: %v", text, r)
				}
			}()
			New(text)
		}()
	}
}

// QuoteLiteral does what lib/pq's does.
func TestQuoteLiteral(t *testing.T) {
	for _, text := range []string{"", "a", "it's", `\`, `a\'b`, `''\\`, "E'", "Größe\n", `$1 "x"`} {
		if got, want := QuoteLiteral(text), pq.QuoteLiteral(text); got != want {
			t.Errorf("QuoteLiteral(%q) = %q, want %q", text, got, want)
		}
	}
}

// An otherConnector is another driver's.
type otherConnector struct{}

func (otherConnector) Connect(context.Context) (driver.Conn, error) { return nil, driver.ErrBadConn }
func (c otherConnector) Driver() driver.Driver                      { return c }
func (otherConnector) Open(string) (driver.Conn, error)             { return nil, driver.ErrBadConn }

// lib/pq is known by the name of its type, however the pool was opened.
func TestLibPQ(t *testing.T) {
	byName, err := sql.Open("postgres", "host=h")
	if err != nil {
		t.Fatal(err)
	}
	connector, err := pq.NewConnector("host=h")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		db   *sql.DB
		want bool
	}{"by name": {byName, true}, "by connector": {sql.OpenDB(connector), true}, "another": {sql.OpenDB(otherConnector{}), false}} {
		if got := LibPQ(c.db); got != c.want {
			t.Errorf("%s: LibPQ is %t", name, got)
		}
		_ = c.db.Close()
	}
}
