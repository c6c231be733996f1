package eventtable

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
)

// A Type is the type of a column, without the domains and arrays around it.
type Type struct {
	Name      string // as SQL writes it, with them
	Base      string // of its own
	BuiltIn   bool   // it is PostgreSQL's own
	Enum      bool
	Immutable bool // its text never depends on a setting, says whoever made the type
	Array     bool
}

// Types returns the types of those columns that the table has.
func (t Table) Types(ctx context.Context, db *sql.DB) (map[string]Type, error) {
	c := t.config
	rows, err := dbconn.Query(ctx, db, typesSQL, t.Name, c.Aggregate, c.AggregateType, c.BoundedContext)
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

const typesSQL = `
WITH RECURSIVE kind AS (
       SELECT attname, format_type(atttypid, atttypmod) AS name, atttypid AS type, false AS isarray
         FROM pg_attribute
        WHERE attrelid = $1::regclass AND attname IN ($2::name, $3::name, $4::name) AND attnum > 0 AND NOT attisdropped
        UNION ALL
       SELECT attname, name, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END, isarray OR typtype <> 'd'
         FROM kind JOIN pg_type ON pg_type.oid = type
        WHERE typtype = 'd' OR typcategory = 'A' AND typelem <> 0)
SELECT attname::text, name, typname::text, typnamespace = 'pg_catalog'::regnamespace, typtype = 'e', provolatile = 'i', isarray
  FROM kind JOIN pg_type ON pg_type.oid = type JOIN pg_proc ON pg_proc.oid = typoutput
 WHERE typtype <> 'd' AND NOT (typcategory = 'A' AND typelem <> 0)`

// steady are PostgreSQL's own types whose text is the same in every session.
// Others follow a setting: DateStyle, TimeZone, IntervalStyle,
// extra_float_digits, lc_monetary, search_path.
var steady = []string{
	"text", "varchar", "bpchar", "name", "char", "uuid", "int2", "int4", "int8", "numeric", "bool", "oid", "xid", "xid8",
	"inet", "cidr", "macaddr", "macaddr8", "json", "jsonb", "bit", "varbit", "pg_lsn",
}

// text returns the expression for a column's text, which must not depend on
// who asks: it decides about the partition.
func (k Type) text(column string) (string, error) {
	switch {
	case k.Name == "" && k.Base == "text", k.BuiltIn && slices.Contains(steady, k.Base), k.Enum, !k.BuiltIn && k.Immutable:
		return column + "::text", nil
	case k.BuiltIn && k.Base == "bytea" && !k.Array:
		// As bytea_output = hex writes it, which is the default, whatever it is
		// set to. chr(92) is a backslash under any standard_conforming_strings.
		return fmt.Sprintf("(chr(92) || 'x' || encode(%s, 'hex'))", column), nil
	}
	return "", fmt.Errorf("the text of its type, %s, depends on the session's settings, so that two workers could take an event for events of two different aggregates; name a column of type text, uuid or bigint instead, if need be a generated one", k.Name)
}

// plain reports whether a string that is read from the column as text is what
// would have been read from the column itself.
func (k Type) plain() bool {
	return k.BuiltIn && !k.Array && slices.Contains([]string{"text", "varchar", "uuid"}, k.Base)
}
