// Package eventtable holds the statements that read a table of events without
// losing any. The order in which to use them is for [protocol.Reading] to say.
package eventtable

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"strings"

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
	// Page reads position, aggregate id and the columns of the events above
	// $1, at most $2 of them.
	Page string
	high string
}

// New returns the statements for a table. Names are quoted; an empty schema is
// the search path.
func New(schema, table, position, aggregate string, columns ...string) Table {
	t := Table{Name: Quote(table)}
	if schema != "" {
		t.Name = Quote(schema) + "." + t.Name
	}
	position = Quote(position)
	selected := []string{position, Quote(aggregate) + "::text"}
	for _, c := range columns {
		selected = append(selected, Quote(c))
	}
	t.Page = fmt.Sprintf(`SELECT %s FROM %s WHERE %s > $1 ORDER BY %s LIMIT $2`,
		strings.Join(selected, ", "), t.Name, position, position)
	t.high = fmt.Sprintf(`SELECT coalesce(max(%s), 0) FROM %s`, position, t.Name)
	return t
}

// Quote quotes a name for SQL.
func Quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// High returns the highest visible position, 0 if there is none.
func (t Table) High(ctx context.Context, db *sql.DB) (high int64, err error) {
	if err := db.QueryRowContext(ctx, t.high).Scan(&high); err != nil {
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
	rows, err := db.QueryContext(ctx, holders, t.Name)
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
