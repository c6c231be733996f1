package eventtable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
)

// A Source is the driver.Driver of a pool (sql.DB.Driver) that can read events without
// database/sql: as the driver itself reads rows, without an intermediate value for each
// column. The statements, and when they are sent, stay the same. Only a Driver of this
// repository can be a Source, since the methods name an internal type.
type Source interface {
	driver.Driver
	// Events runs a query that reads events.
	Events(ctx context.Context, query string, args []any) (dbconn.Scanner, error)
	// Fits returns why no row of such a query can be scanned into the destinations, whatever
	// is in it; "" if some can.
	Fits(ctx context.Context, query string, dest []any) (problem string, err error)
}

// Rows runs the statement of Page.
func (r *Reader) Rows(ctx context.Context, db *sql.DB, g Range) (dbconn.Scanner, error) {
	query, args := r.Page(g)
	if s, ok := db.Driver().(Source); ok {
		return s.Events(ctx, query, args)
	}
	return dbconn.QueryOn(ctx, db, query, args...)
}

// Fits returns why no event can be scanned into the destinations, if the driver can tell
// without reading one; "" otherwise.
func (r *Reader) Fits(ctx context.Context, db *sql.DB, dest []any) (problem string, err error) {
	s, ok := db.Driver().(Source)
	if !ok {
		return "", nil
	}
	query, _ := r.Page(Range{Limit: 1, Literals: true})
	return s.Fits(ctx, query, dest)
}

// A Text takes one part of an event's identity.
type Text struct {
	String string
	Null   bool
}

// Scan implements sql.Scanner. A Source knows the type, and sets the fields.
func (t *Text) Scan(value any) error {
	switch v := value.(type) {
	case string:
		*t = Text{String: v}
	case []byte:
		*t = Text{String: string(v)}
	case nil:
		*t = Text{Null: true}
	default:
		return fmt.Errorf("the driver returned %T for a text", value)
	}
	return nil
}
