package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/google/uuid"
)

// A shop appends events and records the expected result.
type shop struct {
	db    *sql.DB
	store *postgres.Store

	events int
	cities map[string]string // by user
	cents  int
}

// open lets n users register, move twice and order.
func (s *shop) open(ctx context.Context, n int) error {
	for i := range n {
		user, order := uuid.NewString(), uuid.NewString()
		cents := 100 + i
		if err := s.append(ctx, "Identity", "User", user, "UserRegistered", "Paris"); err != nil {
			return err
		}
		if err := s.append(ctx, "Identity", "User", user, "UserMoved", "Rome", "Oslo "+strconv.Itoa(i)); err != nil {
			return err
		}
		if err := s.append(ctx, "Sales", "Order", order, "OrderPlaced", strconv.Itoa(cents)); err != nil {
			return err
		}
		s.events += 4
		s.cities[user] = "Oslo " + strconv.Itoa(i)
		s.cents += cents
	}
	return nil
}

// append appends an event for each payload, in one transaction.
func (s *shop) append(ctx context.Context, boundedContext, aggregateType, id, eventType string, payloads ...string) error {
	var events []es.Event
	for _, payload := range payloads {
		events = append(events, es.Event{
			BoundedContext: boundedContext, AggregateType: aggregateType, AggregateID: id,
			EventID: uuid.New(), EventType: eventType, EventVersion: 1, Payload: []byte(payload), CreatedAt: time.Now(),
		})
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after a commit
	if _, err := s.store.Append(ctx, tx, es.Any(), events); err != nil {
		return fmt.Errorf("append to %s %s: %w", aggregateType, id, err)
	}
	return tx.Commit()
}

// until waits until a query returns true, as long as the workers run.
func (s *shop) until(ctx context.Context, workers chan error, query string) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		var yes bool
		if err := s.db.QueryRowContext(ctx, query).Scan(&yes); err != nil || yes {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		case err := <-workers:
			workers <- err // collected at the end
			return errors.New("a worker has ended")
		}
	}
}

// judge compares the read models with the appended events.
func (s *shop) judge(ctx context.Context, out io.Writer) error {
	wrong := 0
	rows, err := s.db.QueryContext(ctx, `SELECT id, city, moves FROM cities`)
	if err != nil {
		return err
	}
	defer rows.Close()
	users := 0
	for rows.Next() {
		var id, city string
		var moves int
		if err := rows.Scan(&id, &city, &moves); err != nil {
			return err
		}
		users++
		if s.cities[id] != city || moves != 2 {
			wrong++
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	var cents, audited, first, second int
	if err := s.db.QueryRowContext(ctx, `
SELECT (SELECT cents FROM revenue), count(*),
       count(*) FILTER (WHERE total = 2 AND partition = 0), count(*) FILTER (WHERE total = 2 AND partition = 1)
  FROM audit`).Scan(&cents, &audited, &first, &second); err != nil {
		return err
	}
	fmt.Fprintf(out, "projected: %d events, %d users (%d wrong), %d cents; as two workers: %d and %d events\n",
		audited, users, wrong, cents, first, second)
	if audited != s.events || users != len(s.cities) || wrong > 0 || cents != s.cents || first == 0 || second == 0 {
		return errors.New("that is not what was appended")
	}
	fmt.Fprintln(out, "ok")
	return nil
}
