package eventtable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
)

// A Source is the driver.Driver of a pool (sql.DB.Driver) that can read events past
// database/sql: as the driver itself reads rows, without a value in between for each
// column. What is read, when, and what an event is made of stay the same; only the way of
// the bytes does not. No Driver but one of this repository's can be a Source, since its
// methods name this package.
type Source interface {
	driver.Driver
	// Events runs a query that reads events.
	Events(ctx context.Context, query string, args []any) (Rows, error)
}

// Rows are those of a query that reads events.
type Rows interface {
	dbconn.Scanner
	// Fits returns why no row can be scanned into the destinations, whatever is in it.
	Fits(dest []any) error
}

// query runs a query that reads events.
func query(ctx context.Context, db *sql.DB, query string, args []any) (Rows, error) {
	if s, ok := db.Driver().(Source); ok {
		return s.Events(ctx, query, args)
	}
	rows, err := dbconn.Query(ctx, db, query, args...)
	if err != nil {
		return nil, err
	}
	return plainRows{rows}, nil
}

// plainRows are those of database/sql, which does not tell what it can scan until it has
// a value.
type plainRows struct{ *dbconn.Rows }

func (plainRows) Fits([]any) error { return nil }

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
