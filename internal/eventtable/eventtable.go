// Package eventtable holds the statements that read a table of events without
// losing any. The order in which to use them is for [protocol.Reading] to say.
package eventtable

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

	config Config
	facts  string
	high   string
	ahead  string
}

// A Config names a table and its columns. Names are quoted; an empty schema is
// the search path. AggregateType and BoundedContext may be empty.
type Config struct {
	Schema, Table, Position, Aggregate string
	AggregateType, BoundedContext      string
	Columns                            []string

	// Sequence is one that fills Position, and Writers the tables whose writers fill
	// the events table where it is a view; both as SQL has names. NoSequence: there is
	// none.
	Sequence   string
	Writers    []string
	NoSequence bool
}

// An At says where a statement must run: in an epoch, where the stream reaches a
// position. The zero At is anywhere.
type At struct {
	Epoch   protocol.Epoch
	Reaches int64
}

// New returns the statements for a table.
func New(c Config) Table {
	t := Table{Name: Quote(c.Table), config: c}
	if c.Schema != "" {
		t.Name = Quote(c.Schema) + "." + t.Name
	}
	position := Quote(c.Position)
	t.high = fmt.Sprintf(`SELECT coalesce(max(%s), 0) FROM %s`, position, t.Name)
	t.facts = t.factsSQL()
	t.ahead = fmt.Sprintf(`
SELECT coalesce(max(position), $1::bigint), coalesce(min(before) FILTER (WHERE position > before + 1) + 1, 0), %[3]s
  FROM (SELECT position, lag(position, 1, $1::bigint) OVER (ORDER BY position) AS before
          FROM (SELECT %[1]s::bigint AS position FROM %[2]s WHERE %[1]s > $1::bigint ORDER BY %[1]s LIMIT $2) above) pairs`,
		position, t.Name, t.here("$3::text", "$4::bigint"))
	return t
}

// A Part is a part of an event's identity.
type Part int

const (
	Position Part = iota
	AggregateID
	AggregateType
	BoundedContext
	Parts // how many there are
)

// A Reader has the statements that read the events of a table, with the types
// of its columns known. Each part of an event's identity is one expression, the
// same in every statement: in a page, in the keys and the rows that are read by
// slot, and in the condition of a scope. So no two ways of reading can take one
// event for two different ones.
type Reader struct {
	// Shared says of each of the table's Columns which part of the identity it
	// is. Page does not select such a column a second time. Parts: of none.
	Shared []Part
	// Selected are the parts that Page selects, before Columns.
	Selected []Part

	table   Table
	parts   [Parts]string // the expressions; "" is a part that the table does not have
	columns []string      // to select behind the parts
}

// Reader returns the statements. takes says whether the destination of one of
// Columns takes a part of the identity as it is.
func (t Table) Reader(types map[string]Type, takes func(column int, part Part) bool) (*Reader, error) {
	c := t.config
	r := &Reader{table: t, Shared: make([]Part, len(c.Columns))}
	shares := map[string]Part{}
	for part, column := range [Parts]string{c.Position, c.Aggregate, c.AggregateType, c.BoundedContext} {
		if column == "" {
			continue
		}
		r.Selected = append(r.Selected, Part(part))
		if r.parts[part] = Quote(column); Part(part) == Position {
			shares[column] = Position
			continue
		}
		kind, known := types[column]
		if !known {
			kind = Type{Base: "text"} // the server says what is wrong with the column
		}
		text, err := kind.text(Quote(column))
		if err != nil {
			return nil, fmt.Errorf("column %s of %s: %w", Quote(column), t.Name, err)
		}
		r.parts[part] = text
		if _, shared := shares[column]; known && kind.plain() && !shared {
			shares[column] = Part(part)
		}
	}
	for i, column := range c.Columns {
		part, shared := shares[column]
		if r.Shared[i] = part; !shared || !takes(i, part) {
			r.Shared[i] = Parts
			r.columns = append(r.columns, Quote(column))
		}
	}
	return r, nil
}

// A Range is what to read of the events: those above After, at most Limit of them; or of
// these, up to Through, those of some aggregate types in some bounded contexts. No types
// are all, and so are no contexts.
type Range struct {
	After           int64
	Limit           int
	Types, Contexts []string
	Through         int64
	// Rows, if not nil, are the positions of the events to read; nothing else
	// counts then.
	Rows []int64
	// Only are the parts of the identity to read, beside the position, and
	// nothing else of an event. nil: all of it, and Columns.
	Only []Part
	At   At
	// Literals has the statement take no arguments. lib/pq takes one round trip then
	// instead of two; but it gets the result as text, which for bytes is twice as long. pgx
	// is better off with arguments: it prepares, and keeps, each statement that is another
	// text.
	Literals bool
}

// Len returns how many events may be in the range.
func (r Range) Len() int {
	if r.Rows != nil {
		return len(r.Rows)
	}
	return r.Limit
}

// First returns the first n of the range.
func (r Range) First(n int) Range {
	if r.Rows != nil {
		r.Rows = r.Rows[:min(n, len(r.Rows))]
	}
	r.Limit = min(n, r.Limit)
	return r
}

// Above returns what of the range is above a position.
func (r Range) Above(position int64) Range {
	for r.Rows != nil && len(r.Rows) > 0 && r.Rows[0] <= position {
		r.Rows = r.Rows[1:]
	}
	r.After = max(r.After, position)
	return r
}

// Page returns the statement that reads the events in the range: the parts of
// their identity that Selected says, and then Columns without those that are
// Shared; or what Only says.
func (r *Reader) Page(g Range) (query string, args []any) {
	put := func(value any) string {
		if text, ok := value.(string); ok && g.Literals {
			return pq.QuoteLiteral(text)
		} else if g.Literals {
			return fmt.Sprint(value)
		}
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	position, limit := r.parts[Position], ""
	var where string
	if g.Rows != nil {
		where = fmt.Sprintf("%s = ANY (%s::text::bigint[])", position, put(Positions(g.Rows)))
	} else {
		where = fmt.Sprintf("%s > %s", position, put(g.After))
		if len(g.Types)+len(g.Contexts) > 0 {
			where += fmt.Sprintf(" AND %s <= %s", position, put(g.Through))
		}
		for _, f := range []struct {
			part   Part
			values []string
		}{{AggregateType, g.Types}, {BoundedContext, g.Contexts}} {
			if len(f.values) == 0 {
				continue
			}
			values, _ := json.Marshal(f.values) // strings always encode; drivers differ in how they take arrays
			where += fmt.Sprintf(" AND %s", r.among(f.part, f.values, put(string(values))))
		}
		limit = " LIMIT " + put(g.Limit)
	}
	if g.At.Epoch != "" {
		reaches := ""
		if g.At.Reaches > 0 {
			reaches = put(g.At.Reaches) + "::bigint"
		}
		where += " AND " + r.table.here(put(string(g.At.Epoch))+"::text", reaches)
	}
	query = fmt.Sprintf(`SELECT %s FROM %s WHERE %s ORDER BY %s%s`, r.selected(g.Only), r.table.Name, where, position, limit)
	return query, args
}

// among is the condition that a part is one of some values. NULL is read as the
// empty text, so it counts as that here, too.
func (r *Reader) among(part Part, values []string, array string) string {
	condition := fmt.Sprintf("%s = ANY (ARRAY(SELECT jsonb_array_elements_text(%s::jsonb)))", r.parts[part], array)
	if slices.Contains(values, "") {
		condition = fmt.Sprintf("(%s OR %s IS NULL)", condition, r.parts[part])
	}
	return condition
}

func (r *Reader) selected(only []Part) string {
	parts, columns := r.Selected, r.columns
	if only != nil {
		parts, columns = append([]Part{Position}, only...), nil
	}
	var selected []string
	for _, part := range parts {
		selected = append(selected, r.parts[part])
	}
	return strings.Join(append(selected, columns...), ", ")
}

// Keys returns the keys of the events above after, at most limit of them: what a
// partition is decided by, and no more. With an error it returns those that
// precede it.
func (r *Reader) Keys(ctx context.Context, db *sql.DB, at At, after int64, limit int) ([]protocol.Key, error) {
	name := r.table.Name
	query, args := r.Page(Range{After: after, Limit: limit, Only: []Part{AggregateID}, At: at})
	rows, err := dbconn.Query(ctx, db, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read keys from %s: %w", name, err)
	}
	defer rows.Close()
	keys := make([]protocol.Key, 0, limit)
	var aggregate sql.RawBytes
	for rows.Next() {
		var k protocol.Key
		if err := rows.Scan(&k.Position, &aggregate); err != nil {
			return keys, fmt.Errorf("read a key from %s after position %d: %w", name, after, err)
		}
		k.Slot = protocol.SlotOf(string(aggregate))
		keys = append(keys, k)
	}
	if err := rows.Err(); err != nil {
		return keys, fmt.Errorf("read keys from %s: %w", name, err)
	}
	return keys, nil
}

// Positions returns positions as the text of an array. Drivers differ in how they take arrays.
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
func (t Table) Ahead(ctx context.Context, db *sql.DB, at At, after int64) (last, missing int64, err error) {
	var here bool
	if err := dbconn.QueryRow(ctx, db, t.ahead, after, AheadMax, string(at.Epoch), at.Reaches).Scan(&last, &missing, &here); err != nil {
		return 0, 0, fmt.Errorf("look for gaps in %s above position %d: %w", t.Name, after, err)
	}
	return last, missing, nil
}

// Quote quotes a name for SQL.
func Quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// High returns the highest visible position, 0 if there is none.
func (t Table) High(ctx context.Context, db *sql.DB, at At) (high int64, err error) {
	var here bool
	query := t.high
	if at.Epoch == "" {
		err = dbconn.QueryRow(ctx, db, query).Scan(&high)
	} else { // literals: it takes lib/pq one round trip
		query = `SELECT (` + query + `), ` + t.here(pq.QuoteLiteral(string(at.Epoch)), "")
		err = dbconn.QueryRow(ctx, db, query).Scan(&high, &here)
	}
	if err != nil {
		return 0, fmt.Errorf("highest position of %s: %w", t.Name, err)
	}
	return high, nil
}

// Elsewhere reports whether a statement has ended since it was to run in another
// epoch, or the stream did not reach as far.
func Elsewhere(err error) bool {
	var e interface{ SQLState() string }
	return errors.As(err, &e) && e.SQLState() == "22P02" && strings.Contains(err.Error(), elsewhere)
}
