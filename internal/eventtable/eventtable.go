// Package eventtable holds the statements that read a table of events without
// losing any. The order in which to use them is for [protocol.Reading] to say.
package eventtable

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Layout creates an events table in pupsourcing's layout, for tests and the
// demo.
//
//go:embed layout.sql
var Layout string

// A Table is an events table.
type Table struct {
	// Name is quoted, for statements.
	Name string
	// Rows reads what Page does of the events at the positions in $1, an array as text.
	Rows string

	config   Config
	selected string // the columns of a page
	keys     string
	high     string
	ahead    string
}

// A Config names a table and its columns. Names are quoted; an empty schema is
// the search path. AggregateType and BoundedContext may be empty.
type Config struct {
	Schema, Table, Position, Aggregate string
	AggregateType, BoundedContext      string
	Columns                            []string
	Keyed                              bool // read Columns only: the others are among them
}

// New returns the statements for a table.
func New(c Config) Table {
	t := Table{Name: Quote(c.Table), config: c}
	if c.Schema != "" {
		t.Name = Quote(c.Schema) + "." + t.Name
	}
	position := Quote(c.Position)
	t.selected = strings.Join(selected(c), ", ")
	t.Rows = fmt.Sprintf(`SELECT %s FROM %s WHERE %s = ANY ($1::text::bigint[]) ORDER BY %[3]s`, t.selected, t.Name, position)
	t.keys = fmt.Sprintf(`SELECT %[1]s, %[2]s::text FROM %[3]s WHERE %[1]s > $1 ORDER BY %[1]s LIMIT $2`, position, Quote(c.Aggregate), t.Name)
	t.high = fmt.Sprintf(`SELECT coalesce(max(%s), 0) FROM %s`, position, t.Name)
	t.ahead = fmt.Sprintf(`
SELECT coalesce(max(position), $1::bigint), coalesce(min(before) FILTER (WHERE position > before + 1) + 1, 0)
  FROM (SELECT position, lag(position, 1, $1::bigint) OVER (ORDER BY position) AS before
          FROM (SELECT %[1]s::bigint AS position FROM %[2]s WHERE %[1]s > $1::bigint ORDER BY %[1]s LIMIT $2) above) pairs`,
		position, t.Name)
	return t
}

func selected(c Config) (selected []string) {
	if !c.Keyed {
		selected = []string{Quote(c.Position), Quote(c.Aggregate) + "::text"}
		for _, c := range []string{c.AggregateType, c.BoundedContext} {
			if c != "" {
				selected = append(selected, Quote(c)+"::text")
			}
		}
	}
	for _, c := range c.Columns {
		selected = append(selected, Quote(c))
	}
	return selected
}

// A Range is what to read of the events: those above After, at most Limit of them; or of
// these, up to Through, those of some aggregate types in some bounded contexts. No types
// are all, and so are no contexts.
type Range struct {
	After           int64
	Limit           int
	Types, Contexts []string
	Through         int64
	// Literals has the statement take no arguments. lib/pq takes one round trip then
	// instead of two; but it gets the result as text, which for bytes is twice as long. pgx
	// is better off with arguments: it prepares, and keeps, each statement that is another
	// text.
	Literals bool
}

// Page returns what reads position, aggregate id, aggregate type and bounded context,
// where there are such columns, and Columns, of the events in the range.
func (t Table) Page(r Range) (query string, args []any) {
	put := func(value any) string {
		if text, ok := value.(string); ok && r.Literals {
			return pq.QuoteLiteral(text)
		} else if r.Literals {
			return fmt.Sprint(value)
		}
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	position := Quote(t.config.Position)
	where := fmt.Sprintf("%s > %s", position, put(r.After))
	if len(r.Types)+len(r.Contexts) > 0 {
		where += fmt.Sprintf(" AND %s <= %s", position, put(r.Through))
	}
	for _, f := range []struct {
		column string
		values []string
	}{{t.config.AggregateType, r.Types}, {t.config.BoundedContext, r.Contexts}} {
		if len(f.values) == 0 {
			continue
		}
		values, _ := json.Marshal(f.values) // strings always encode; drivers differ in how they take arrays
		where += fmt.Sprintf(" AND %s::text = ANY (ARRAY(SELECT jsonb_array_elements_text(%s::jsonb)))", Quote(f.column), put(string(values)))
	}
	query = fmt.Sprintf(`SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT %s`, t.selected, t.Name, where, position, put(r.Limit))
	return query, args
}

// Keys returns the keys of the events above after, at most limit of them: what a
// partition is decided by, and no more.
func (t Table) Keys(ctx context.Context, db *sql.DB, after int64, limit int) ([]protocol.Key, error) {
	rows, err := dbconn.Query(ctx, db, t.keys, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read keys from %s: %w", t.Name, err)
	}
	defer rows.Close()
	keys := make([]protocol.Key, 0, limit)
	var aggregate sql.RawBytes
	for rows.Next() {
		var k protocol.Key
		if err := rows.Scan(&k.Position, &aggregate); err != nil {
			return nil, fmt.Errorf("read a key from %s after position %d: %w", t.Name, after, err)
		}
		k.Slot = protocol.SlotOf(string(aggregate))
		keys = append(keys, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read keys from %s: %w", t.Name, err)
	}
	return keys, nil
}

// Positions returns the argument of Rows. Drivers differ in how they take arrays.
func Positions(positions []int64) string {
	text := make([]byte, 0, 12*len(positions)+2)
	text = append(text, '{')
	for i, p := range positions {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, p, 10)
	}
	return string(append(text, '}'))
}

// AheadMax is how many positions a look ahead takes in at most. They come from
// the index, and none of them leaves the server.
const AheadMax = 10_000

// Ahead looks at the next positions above after. It returns the last of them,
// after itself if there is none, and the first that is missing; 0 is none.
func (t Table) Ahead(ctx context.Context, db *sql.DB, after int64) (last, missing int64, err error) {
	if err := dbconn.QueryRow(ctx, db, t.ahead, after, AheadMax).Scan(&last, &missing); err != nil {
		return 0, 0, fmt.Errorf("look for gaps in %s above position %d: %w", t.Name, after, err)
	}
	return last, missing, nil
}

// Quote quotes a name for SQL.
func Quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// High returns the highest visible position, 0 if there is none.
func (t Table) High(ctx context.Context, db *sql.DB) (high int64, err error) {
	if err := dbconn.QueryRow(ctx, db, t.high).Scan(&high); err != nil {
		return 0, fmt.Errorf("highest position of %s: %w", t.Name, err)
	}
	return high, nil
}

// holders lists who holds the lock that an insert takes, on the table, on any
// of its partitions, or on a table that inherits from it; prepared
// transactions included.
const holders = `
SELECT DISTINCT virtualtransaction, coalesce(pid, 0)
  FROM pg_locks
 WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND relation IN (
       WITH RECURSIVE part AS (
           SELECT $1::regclass::oid AS oid
            UNION SELECT inhrelid FROM pg_inherits JOIN part ON inhparent = part.oid)
       SELECT oid FROM part)
   AND pid IS DISTINCT FROM pg_backend_pid()`

// Holders returns who may still make an event visible below the highest
// position that is visible.
func (t Table) Holders(ctx context.Context, db *sql.DB) ([]protocol.Holder, error) {
	rows, err := dbconn.Query(ctx, db, holders, t.Name)
	if err != nil {
		return nil, fmt.Errorf("list the writers of %s: %w", t.Name, err)
	}
	defer rows.Close()
	var out []protocol.Holder
	for rows.Next() {
		var h protocol.Holder
		if err := rows.Scan(&h.Transaction, &h.Backend); err != nil {
			return nil, fmt.Errorf("list the writers of %s: %w", t.Name, err)
		}
		out = append(out, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list the writers of %s: %w", t.Name, err)
	}
	return out, nil
}
