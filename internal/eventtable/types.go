package eventtable

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// A Type is the type of a column, without the domains and arrays around it.
type Type struct {
	Name      string // as SQL writes it, with them
	Base      string // of its own
	BuiltIn   bool   // it is PostgreSQL's own
	Enum      bool
	Immutable bool // its output function is declared IMMUTABLE: its text does not depend on a setting
	Array     bool
}

// Types returns the types of those columns that the table has.
func (t Table) Types(ctx context.Context, db *sql.DB) (map[string]Type, error) {
	query, args := t.bind(sqltext.LibPQ(db), typesSQL, nil)
	rows, err := dbconn.Query(ctx, db, query, args...)
	if err != nil {
		return nil, fmt.Errorf("column types of %s: %w", t.Name, err)
	}
	defer rows.Close()
	types := map[string]Type{}
	for rows.Next() {
		var column string
		var k Type
		if err := rows.Scan(&column, &k.Name, &k.Base, &k.BuiltIn, &k.Enum, &k.Immutable, &k.Array); err != nil {
			return nil, fmt.Errorf("column types of %s: %w", t.Name, err)
		}
		types[column] = k
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("column types of %s: %w", t.Name, err)
	}
	return types, nil
}

var typesSQL = sqltext.New(`
WITH RECURSIVE kind AS (
       SELECT attname, format_type(atttypid, atttypmod) AS name, atttypid AS type, false AS isarray
         FROM pg_attribute
        WHERE attrelid = {name}::regclass::oid AND attname = ANY (ARRAY[{aggregate_name}::name, {type_name}::name, {context_name}::name, {event_type_name}::name])
          AND attnum > 0 AND NOT attisdropped
        UNION ALL
       SELECT k.attname, k.name, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END, k.isarray OR t.typtype <> 'd'
         FROM kind k JOIN pg_type t ON t.oid = k.type
        WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typelem <> 0)
SELECT k.attname::text, k.name, t.typname::text, t.typnamespace = 'pg_catalog'::regnamespace::oid, t.typtype = 'e', p.provolatile = 'i', k.isarray
  FROM kind k JOIN pg_type t ON t.oid = k.type JOIN pg_proc p ON p.oid = t.typoutput
 WHERE t.typtype <> 'd' AND NOT (t.typcategory = 'A' AND t.typelem <> 0)`)

// steady are PostgreSQL's own types whose text is the same in every session.
// Others follow a setting: DateStyle, TimeZone, IntervalStyle,
// extra_float_digits, lc_monetary, search_path.
var steady = []string{
	"text", "varchar", "bpchar", "name", "char", "uuid", "int2", "int4", "int8", "numeric", "bool", "oid", "xid", "xid8",
	"inet", "cidr", "macaddr", "macaddr8", "json", "jsonb", "bit", "varbit", "pg_lsn",
}

// text returns the expression for a column's text, which must not depend on
// the session: it decides the partition.
func (k Type) text(column string) (string, error) {
	switch {
	case k.Name == "" && k.Base == "text", k.BuiltIn && slices.Contains(steady, k.Base), k.Enum, !k.BuiltIn && k.Immutable:
		return column + "::pg_catalog.text", nil
	case k.BuiltIn && k.Base == "bytea" && !k.Array:
		// As bytea_output = hex writes it, which is the default, whatever it is
		// set to. chr(92) is a backslash under any standard_conforming_strings.
		return fmt.Sprintf("(pg_catalog.chr(92) OPERATOR(pg_catalog.||) 'x' OPERATOR(pg_catalog.||) pg_catalog.encode(%s, 'hex'))", column), nil
	}
	return "", fmt.Errorf("the text of its type, %s, depends on the session's settings, so two workers could see one aggregate as two; name a column of type text, uuid or bigint instead, if need be a generated one", k.Name)
}

// plain reports whether a string that is read from the column as text is what
// would have been read from the column itself.
func (k Type) plain() bool {
	return k.BuiltIn && !k.Array && slices.Contains([]string{"text", "varchar", "uuid"}, k.Base)
}
