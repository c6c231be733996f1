package orchestratorpgx

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/getpup/pupsourcing-orchestrator/internal/chunks"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// Events implements eventtable.Source: it runs a query that reads events, on a connection of the
// pool. If the connection was dead already, it tries another one, as database/sql does.
func (d *poolDriver) Events(ctx context.Context, query string, args []any) (dbconn.Scanner, error) {
	args = append([]any{formats}, args...)
	for tries := int32(0); ; tries++ {
		conn, err := d.acquire(ctx)
		if err != nil {
			return nil, err
		}
		r, err := begin(ctx, conn, query, args)
		if err == nil {
			return r, nil
		}
		conn.Release()
		if !pgconn.SafeToRetry(err) || ctx.Err() != nil || tries > d.max {
			return nil, err
		}
	}
}

// Fits implements eventtable.Source.
func (d *poolDriver) Fits(ctx context.Context, query string, dest []any) (problem string, err error) {
	conn, err := d.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Release()
	described, err := conn.Conn().Prepare(ctx, "", query)
	if err != nil {
		return "", err
	}
	var problems []string
	for i, f := range described.Fields[:min(len(dest), len(described.Fields))] {
		f.Format = formats[f.DataTypeOID]
		if c := newColumn(conn.Conn().TypeMap(), f); !c.fits(dest[i]) {
			problems = append(problems, fmt.Sprintf("column %s has the type %s, which %T can't hold", eventtable.Quote(c.Name), c.typeName(), dest[i]))
		}
	}
	return strings.Join(problems, "; "), nil
}

// A nativeRows iterates over the rows of a query that reads events.
type nativeRows struct {
	conn    *pgxpool.Conn
	rows    pgx.Rows
	columns []column
	plain   plainScan
	room    room
	ahead   bool // the first row was read together with the columns; Next has not returned it yet
	more    bool // there is a first row
}

// begin runs a query up to its first row.
func begin(ctx context.Context, conn *pgxpool.Conn, query string, args []any) (*nativeRows, error) {
	// Not pool.Query: it gives the connection back at the last row, and the next call of Next
	// would have to acquire it again.
	rows, err := conn.Conn().Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	r := &nativeRows{conn: conn, rows: rows, ahead: true, room: room{bytes: chunks.Chunk{Size: chunkBytes}}}
	if r.more = rows.Next(); !r.more && rows.Err() != nil {
		return nil, rows.Err()
	}
	fields, types := rows.FieldDescriptions(), conn.Conn().TypeMap()
	r.columns = make([]column, len(fields))
	for i, f := range fields {
		r.columns[i] = newColumn(types, f)
	}
	return r, nil
}

// Next implements dbconn.Scanner.
func (r *nativeRows) Next() bool {
	if r.ahead {
		r.ahead = false
		return r.more
	}
	return r.rows.Next()
}

// Scan implements dbconn.Scanner. A row can be scanned several times.
func (r *nativeRows) Scan(dest ...any) error {
	values := r.rows.RawValues()
	if len(values) != len(dest) {
		return fmt.Errorf("%d columns were selected, for %d destinations", len(values), len(dest))
	}
	r.room.row(r.columns, values)
	for i := range dest {
		if err := r.columns[i].scan(values[i], dest[i], &r.plain, &r.room); err != nil {
			return fmt.Errorf("column %s: %w", eventtable.Quote(r.columns[i].Name), err)
		}
	}
	return nil
}

// Err implements dbconn.Scanner.
func (r *nativeRows) Err() error { return r.rows.Err() }

// Close gives the connection back. It reads the remaining rows, unless the context has ended,
// which ends the connection.
func (r *nativeRows) Close() error {
	r.plain.close()
	r.rows.Close()
	r.conn.Release()
	return nil
}
