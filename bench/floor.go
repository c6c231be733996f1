package main

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// selectEvents reads every column. All contenders except the library use it.
const selectEvents = `
SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
       event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at
  FROM events WHERE global_position > $1 %s ORDER BY global_position LIMIT $2`

var (
	wholeStream = fmt.Sprintf(selectEvents, "")
	rareOnly    = fmt.Sprintf(selectEvents, "AND aggregate_type = $3")
)

type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// readEvents appends a page to events.
func readEvents(ctx context.Context, q queryer, events []orchestrator.Event, query string, args ...any) ([]orchestrator.Event, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var e orchestrator.Event
		err := rows.Scan(&e.GlobalPosition, &e.BoundedContext, &e.AggregateType, &e.AggregateID, &e.AggregateVersion,
			&e.EventID, &e.EventType, &e.EventVersion, &e.Payload, &e.TraceID, &e.CorrelationID, &e.CausationID,
			&e.Metadata, &e.CreatedAt)
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// readFloor is a bare loop. It reads pages into structs, one after the other, and keeps no
// state. With this driver, one connection and such pages, nothing does less. (Reading the next
// page during a handler would help only handlers that take time. This one takes none.)
func readFloor(ctx context.Context, pool *sql.DB, l *ledger, query string, limit int, args ...any) error {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	page := make([]orchestrator.Event, 0, limit)
	for after := int64(0); l.count.Load() < l.want; {
		page, err = readEvents(ctx, conn, page[:0], query, append([]any{after, limit}, args...)...)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for i := range page {
			l.note(&page[i])
		}
		after = page[len(page)-1].GlobalPosition
	}
	return nil
}

// commitFloor is a bare loop that also saves its position at an interval. Another connection
// reads ahead. For each interval, one UPDATE of one row commits by itself. This is the least
// work that limits the events repeated after a crash to the interval.
func commitFloor(ctx context.Context, pool *sql.DB, l *ledger, every int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages, failed := make(chan []orchestrator.Event, 1), make(chan error, 1)
	go func() {
		for after := int64(0); ctx.Err() == nil; {
			page, err := readEvents(ctx, pool, make([]orchestrator.Event, 0, pageMax), wholeStream, after, pageMax)
			if err != nil {
				failed <- err
				return
			}
			after = page[len(page)-1].GlobalPosition
			select {
			case pages <- page:
			case <-ctx.Done():
			}
		}
	}()
	for l.count.Load() < l.want {
		select {
		case page := <-pages:
			for batch := range slices.Chunk(page, every) {
				for i := range batch {
					l.note(&batch[i])
				}
				if _, err := pool.ExecContext(ctx, `UPDATE commits SET n = n + 1`); err != nil {
					return err
				}
			}
		case err := <-failed:
			return err
		}
	}
	return nil
}

// writeFloor reads a batch, inserts a row for each event, and commits: the work of a projection
// without a checkpoint.
func writeFloor(ctx context.Context, pool *sql.DB, name string, l *ledger, limit int) error {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	page := make([]orchestrator.Event, 0, limit)
	for after := int64(0); after < l.through; {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if page, err = readEvents(ctx, tx, page[:0], wholeStream, after, limit); err == nil {
			err = insertEffects(ctx, tx, name, page)
		}
		if err != nil {
			return fmt.Errorf("%w (rolled back: %v)", err, tx.Rollback())
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		for i := range page {
			l.note(&page[i])
		}
		after = page[len(page)-1].GlobalPosition
	}
	return nil
}
