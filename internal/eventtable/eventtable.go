// Package eventtable has the statements that read a table of events without
// losing any. [protocol.Reading] decides in which order they are used.
//
// It promises that a statement runs in the epoch for which it was made, or fails (hereText), and
// that each part of an event's identity is one and the same expression in every statement
// (Reader). It must never read a table of which an Assumption does not hold.
package eventtable

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Layout creates an events table in pupsourcing's layout, for tests and the
// demo.
//
//go:embed layout.sql
var Layout string

// A Table is an events table.
type Table struct {
	// Name is quoted, for statements and messages.
	Name string

	config Config
	names  sqltext.Values // what statements need of the table
}

// The columns of a Config by default.
const (
	DefaultPosition  = "global_position"
	DefaultAggregate = "aggregate_id"
)

// A Config names a table and its columns. Names are not quoted; an empty schema means
// the search path (see Find). AggregateType, BoundedContext, EventType and Time may be
// empty.
type Config struct {
	Schema, Table, Position, Aggregate       string
	AggregateType, BoundedContext, EventType string
	Time                                     string
	Columns                                  []string

	// Sequence is the sequence that fills Position. Writers are the tables that the events
	// table takes its events from if it is a view. Both are written as in SQL. NoSequence is
	// true if no sequence fills Position.
	Sequence   string
	Writers    []string
	NoSequence bool
}

// An At is where a statement must run: in an epoch, in which the stream reaches a
// position. The zero At is anywhere.
type At struct {
	Epoch   protocol.Epoch
	Reaches int64
}

func (a At) values() sqltext.Values {
	return sqltext.Values{"epoch": string(a.Epoch), "reaches": a.Reaches}
}

// New returns the statements for a table.
func New(c Config) Table {
	t := Table{Name: Quote(c.Table), config: c}
	if c.Schema != "" {
		t.Name = Quote(c.Schema) + "." + t.Name
	}
	roots := append([]string{t.Name}, c.Writers...)
	wanted := append([]string{}, c.Writers...)
	if c.Sequence != "" {
		wanted = append(wanted, c.Sequence)
	}
	t.names = sqltext.Values{
		"table": sqltext.SQL(t.Name), "name": t.Name, "position": sqltext.Ident(c.Position), "position_name": c.Position,
		"aggregate_name": c.Aggregate, "type_name": c.AggregateType, "context_name": c.BoundedContext, "event_type_name": c.EventType,
		"time": sqltext.Ident(c.Time), "time_name": c.Time,
		"sequence": c.Sequence, "roots": sqltext.JSON{Value: roots}, "wanted": sqltext.JSON{Value: wanted},
	}
	return t
}

// ErrNoTable is returned by Find if there is no such table.
var ErrNoTable = errors.New("it does not exist in a schema of the search path that the role may use; create it, or name its schema")

// Find returns the table with the schema in its name. It is read by that name from then
// on, whatever happens to a session's search path. Without a schema in the Config
// it is the one to which the search path leads. The name and not the oid is kept: a table
// that replaces another is read, and its writers are found. The sequence
// and the writers that the Config names are found in the same way.
func (t Table) Find(ctx context.Context, db dbconn.Querier) (Table, error) {
	c := t.config
	if c.Schema == "" {
		switch schema, temporary, err := sqltext.Find(ctx, db, c.Table); {
		case err != nil:
			return t, err
		case schema == "" && temporary:
			return t, errors.New("it is a temporary table of one session (pg_temp); drop it, and name a table that all sessions see")
		case schema == "":
			return t, ErrNoTable
		default:
			c.Schema = schema
		}
	}
	c.Writers = slices.Clone(c.Writers)
	for _, name := range append(pointers(c.Writers), &c.Sequence) {
		plain, ok := sqltext.Plain(*name)
		if !ok {
			continue // it has a schema, or there is no name
		}
		schema, _, err := sqltext.Find(ctx, db, plain)
		if err != nil {
			return t, err
		}
		if schema != "" { // otherwise Ask says that it is missing
			*name = Quote(schema) + "." + Quote(plain)
		}
	}
	return New(c), nil
}

func pointers(names []string) (out []*string) {
	for i := range names {
		out = append(out, &names[i])
	}
	return out
}

// bind returns a statement with what it needs of the table, and values.
func (t Table) bind(literals bool, statement sqltext.Statement, values sqltext.Values) (query string, args []any) {
	all := maps.Clone(t.names)
	maps.Copy(all, values)
	return sqltext.Names{Literals: literals}.Bind(statement, all)
}

var (
	highSQL     = sqltext.New(highText)
	highHereSQL = sqltext.New(`SELECT (` + highText + `), ` + hereText)
	aheadSQL    = sqltext.New(`
SELECT coalesce(max(position), {after}), coalesce(min(before) FILTER (WHERE position > (before + 1)) + 1, 0), ` + hereText + `
  FROM (SELECT position, lag(position, 1, {after}) OVER (ORDER BY position) AS before
          FROM (SELECT {position}::bigint AS position FROM {table} WHERE {position} > {after} ORDER BY {position} LIMIT {limit}) above) pairs`)
)

const highText = `SELECT coalesce(max({position}), 0) FROM {table}`

// A scope is how a page is limited to some values of a part of the identity.
type scope int

const (
	all        scope = iota
	some             // of some values
	someOrNull       // one of them is empty
	scopes           // how many there are
)

func scopeOf(values []string) scope {
	switch {
	case len(values) == 0:
		return all
	case slices.Contains(values, ""): // NULL is read as that
		return someOrNull
	}
	return some
}

// pageSQL are the statements that read events above a position, by the scopes of the
// aggregate types, the contexts and the event types, and by whether they must run in an
// epoch. rowsSQL are those that read events at some positions, by the latter.
var pageSQL, rowsSQL = func() (pages [scopes][scopes][scopes][2]sqltext.Statement, rows [2]sqltext.Statement) {
	conditions := func(values, part string) [scopes]string {
		// An array and not a subquery: for a subquery the planner would not know how rare the
		// values are, and would read all events in search of a few, instead of an index.
		among := part + ` = ANY (` + values + `::text[])`
		return [scopes]string{"", ` AND ` + among, ` AND (` + among + ` OR ` + part + ` IS NULL)`}
	}
	for here, condition := range []string{"", ` AND ` + hereText} {
		rows[here] = sqltext.New(`SELECT {selected} FROM {table} WHERE {position} = ANY ({rows}::bigint[])` + condition + ` ORDER BY {position}`)
		for i, types := range conditions("{types}", "{type}") {
			for j, contexts := range conditions("{contexts}", "{context}") {
				for k, events := range conditions("{event_types}", "{event_type}") {
					scoped := types + contexts + events
					if scoped != "" {
						scoped = ` AND {position} <= {through}` + scoped
					}
					// WITH TIES: a second event at the last position would otherwise be lost between two pages.
					pages[i][j][k][here] = sqltext.New(`SELECT {selected} FROM {table} WHERE {position} > {after}` + scoped + condition + ` ORDER BY {position} FETCH FIRST ({limit}) ROWS WITH TIES`)
				}
			}
		}
	}
	return pages, rows
}()

// A Part is a part of an event's identity.
type Part int

const (
	Position Part = iota
	AggregateID
	AggregateType
	BoundedContext
	EventType
	Parts // how many there are
)

// A Reader has the statements that read the events of a table, with the types
// of its columns known. Each part of an event's identity is one expression, the
// same in every statement: in a page, in the keys and the rows that are read by
// slot, and in the condition of a scope. So no two ways of reading can take one
// event for two different ones.
type Reader struct {
	// Shared is, for each of the table's Columns, which part of the identity it
	// is; Parts if it is none. Page does not select such a column a second time.
	Shared []Part
	// Selected are the parts that Page selects, before Columns.
	Selected []Part

	table   Table
	parts   [Parts]string // the expressions; "" is a part that the table does not have
	columns []string      // to select behind the parts
}

// Reader returns the statements. takes is whether the destination of one of
// Columns accepts a part of the identity as it is.
func (t Table) Reader(types map[string]Type, takes func(column int, part Part) bool) (*Reader, error) {
	c := t.config
	r := &Reader{table: t, Shared: make([]Part, len(c.Columns))}
	shares := map[string]Part{}
	for part, column := range [Parts]string{c.Position, c.Aggregate, c.AggregateType, c.BoundedContext, c.EventType} {
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

// A Range is which events to read: those above After, at most Limit of them (and all
// with the same position as the last); or of
// these, up to Through, those of some aggregate types in some bounded contexts, of some
// event types. An empty list is all.
type Range struct {
	After                       int64
	Limit                       int
	Types, Contexts, EventTypes []string
	Through                     int64
	// Rows, if not nil, are the positions of the events to read; nothing else
	// counts then.
	Rows []int64
	// Only are the parts of the identity to read, beside the position, and
	// nothing else of an event. nil: all of it, and Columns.
	Only []Part
	At   At
	// Literals sends the values in the text, without arguments. lib/pq takes one round trip then
	// instead of two; but it gets the result as text, which for bytes is twice as long. With pgx
	// arguments are better: it prepares, and keeps, each different text.
	Literals bool
}

// Len returns the most events that the range can have.
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
	for len(r.Rows) > 0 && r.Rows[0] <= position {
		r.Rows = r.Rows[1:]
	}
	r.After = max(r.After, position)
	return r
}

// Page returns the statement that reads the events in the range: the parts of
// their identity in Selected, and then Columns without those that are
// Shared; or the parts in Only.
func (r *Reader) Page(g Range) (query string, args []any) {
	values := g.At.values()
	maps.Copy(values, sqltext.Values{
		"selected": sqltext.SQL(r.selected(g.Only)), "type": sqltext.SQL(r.parts[AggregateType]), "context": sqltext.SQL(r.parts[BoundedContext]),
		"event_type": sqltext.SQL(r.parts[EventType]),
	})
	here := 0
	if g.At.Epoch != "" {
		here = 1
	}
	if g.Rows != nil {
		values["rows"] = array(g.Rows)
		return r.table.bind(g.Literals, rowsSQL[here], values)
	}
	maps.Copy(values, sqltext.Values{
		"after": g.After, "limit": g.Limit, "through": g.Through, "types": texts(g.Types), "contexts": texts(g.Contexts),
		"event_types": texts(g.EventTypes),
	})
	return r.table.bind(g.Literals, pageSQL[scopeOf(g.Types)][scopeOf(g.Contexts)][scopeOf(g.EventTypes)][here], values)
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

// Keys returns the keys of the events in a range: position and slot. With an error it returns
// the keys before it.
func (r *Reader) Keys(ctx context.Context, db *sql.DB, g Range) ([]protocol.Key, error) {
	name := r.table.Name
	g.Only = []Part{AggregateID}
	rows, err := r.Rows(ctx, db, g)
	if err != nil {
		return nil, fmt.Errorf("read keys from %s: %w", name, err)
	}
	defer rows.Close()
	keys := make([]protocol.Key, 0, g.Len())
	var aggregate sql.RawBytes
	for rows.Next() {
		var k protocol.Key
		if err := rows.Scan(&k.Position, &aggregate); err != nil {
			return keys, fmt.Errorf("read a key from %s after position %d: %w", name, g.After, err)
		}
		k.Slot = protocol.SlotOf(string(aggregate))
		keys = append(keys, k)
	}
	if err := rows.Err(); err != nil {
		return keys, fmt.Errorf("read keys from %s: %w", name, err)
	}
	return keys, nil
}

// array returns positions as the text of an array. Drivers differ in how they take arrays.
func array(positions []int64) string {
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

// texts returns names as the text of an array.
func texts(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = `"` + escapes.Replace(name) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// AheadMax is how many positions Ahead reads at most. They come from
// the index, and none of them leaves the server.
const AheadMax = 10_000

// Ahead reads the next positions above after. It returns the last of them,
// after itself if there is none, and the first that is missing; 0 is none.
func (t Table) Ahead(ctx context.Context, db *sql.DB, at At, after int64) (last, missing int64, err error) {
	var here bool
	values := at.values()
	values["after"], values["limit"] = after, AheadMax
	query, args := t.bind(sqltext.LibPQ(db), aheadSQL, values)
	if err := dbconn.QueryRow(ctx, db, query, args...).Scan(&last, &missing, &here); err != nil {
		return 0, 0, fmt.Errorf("look for gaps in %s above position %d: %w", t.Name, after, err)
	}
	return last, missing, nil
}

// Quote quotes a name for SQL.
func Quote(name string) string { return sqltext.Quote(name) }

// High returns the highest visible position, 0 if there is none.
func (t Table) High(ctx context.Context, db *sql.DB, at At) (high int64, err error) {
	var here bool
	if at.Epoch == "" {
		query, _ := t.bind(true, highSQL, nil)
		err = dbconn.QueryRow(ctx, db, query).Scan(&high)
	} else {
		query, args := t.bind(sqltext.LibPQ(db), highHereSQL, at.values())
		err = dbconn.QueryRow(ctx, db, query, args...).Scan(&high, &here)
	}
	if err != nil {
		return 0, fmt.Errorf("highest position of %s: %w", t.Name, err)
	}
	return high, nil
}

// Elsewhere reports whether a statement has failed since it ran in another
// epoch, or the stream does not reach as far.
func Elsewhere(err error) bool {
	var e interface{ SQLState() string }
	return errors.As(err, &e) && e.SQLState() == "22P02" && strings.Contains(err.Error(), elsewhere)
}

var (
	timeTypeSQL = sqltext.New(`
SELECT format_type(atttypid, NULL) FROM pg_attribute
 WHERE attrelid = {name}::regclass::oid AND attname = {time_name}::name AND attnum > 0 AND NOT attisdropped`)
	firstAtSQL = sqltext.New(`SELECT (SELECT coalesce(min({position}), 0) FROM {table} WHERE {time} >= {from}), ` + hereText)
)

// TimeType returns the type of the column of times, as SQL writes it.
func (t Table) TimeType(ctx context.Context, db *sql.DB) (kind string, err error) {
	query, args := t.bind(sqltext.LibPQ(db), timeTypeSQL, nil)
	switch err = dbconn.QueryRow(ctx, db, query, args...).Scan(&kind); {
	case errors.Is(err, sql.ErrNoRows):
		return "", fmt.Errorf("%s has no column %s", t.Name, Quote(t.config.Time))
	case err != nil:
		return "", fmt.Errorf("type of column %s of %s: %w", Quote(t.config.Time), t.Name, err)
	}
	return kind, nil
}

// FirstAt returns the lowest position of an event at a time or later; 0 if there is none.
func (t Table) FirstAt(ctx context.Context, db *sql.DB, at At, from time.Time) (position int64, err error) {
	var here bool
	values := at.values()
	values["from"] = from.Add(time.Microsecond - 1).Truncate(time.Microsecond) // what the column has no more digits for
	query, args := t.bind(sqltext.LibPQ(db), firstAtSQL, values)
	if err := dbconn.QueryRow(ctx, db, query, args...).Scan(&position, &here); err != nil {
		return 0, fmt.Errorf("look for the first event of %s at or after %s: %w", t.Name, from.Format(time.RFC3339Nano), err)
	}
	return position, nil
}
