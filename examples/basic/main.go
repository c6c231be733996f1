// Command basic is a whole program with two workers and one projection. Copy this file: it
// uses nothing but the library and a driver.
//
//	export DATABASE_URL='postgres://postgres:secret@localhost:5432/postgres?sslmode=disable'
//	go run ./examples/basic
//
// It counts the users that have registered, while more events are appended, and then checks
// the count. In production the workers are processes of their own, and each of them has what
// userCount and work have. The exit status is 0 if every event was counted once.
//
// All tables are in a schema of their own, orchestrator_basic, which is dropped at the end.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	_ "github.com/lib/pq" // the driver "postgres"; pgx's works as well

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

const schema = "orchestrator_basic"

// tables are the events and the read model. If you have an events table, use that: see
// orchestrator.NewTable.
const tables = `
CREATE TABLE IF NOT EXISTS events (
    global_position   bigserial   PRIMARY KEY,
    bounded_context   text        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    event_id          uuid        NOT NULL UNIQUE,
    event_type        text        NOT NULL,
    event_version     integer     NOT NULL DEFAULT 1,
    payload           bytea       NOT NULL,
    trace_id          text,
    correlation_id    text,
    causation_id      text,
    metadata          jsonb,
    created_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version)
);

-- Each partition has a row of its own: for a single row the workers would queue.
CREATE TABLE IF NOT EXISTS user_count (partition int PRIMARY KEY, n bigint NOT NULL);`

// userCount is the projection. What it writes through tx is committed together with its
// checkpoint, so each event is counted exactly once.
var userCount = orchestrator.Transactional("user_count",
	func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		if e.EventType != "UserRegistered" {
			return nil
		}
		d, _ := orchestrator.DeliveryFrom(ctx)
		_, err := tx.ExecContext(ctx, `
INSERT INTO user_count AS c VALUES ($1, 1) ON CONFLICT (partition) DO UPDATE SET n = c.n + 1`, d.Partition)
		return err
	})

// work is a worker. It needs no number and no address: the workers of a replica set find
// each other in the database. It returns nil when ctx ends.
func work(ctx context.Context, db *sql.DB, events orchestrator.EventStore[orchestrator.Event]) error {
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB:                db,
		EventStore:        events,
		ReplicaSet:        "main-projections",
		HeartbeatInterval: 100 * time.Millisecond, // leave it out to get 5s
	})
	if err != nil {
		return err
	}
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{userCount})
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // the program itself says what goes well
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Getenv("DATABASE_URL"), os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "basic:", err)
		os.Exit(1)
	}
}

const noDatabase = `DATABASE_URL is not set. It says which PostgreSQL to use, for example
    docker run --rm -d -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres
    export DATABASE_URL='postgres://postgres:secret@localhost:5432/postgres?sslmode=disable'
To see the library at work without a database of your own: go run ./examples/quickstart`

// run makes the tables, lets two workers share the events, and removes the tables.
func run(ctx context.Context, databaseURL string, out io.Writer) (err error) {
	if databaseURL == "" {
		return errors.New(noDatabase)
	}
	db, err := open(databaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE SCHEMA "+schema); err != nil {
		return fmt.Errorf("create schema %s (if it is left from an earlier run, drop it): %w", schema, err)
	}
	defer func() {
		_, dropped := db.ExecContext(context.WithoutCancel(ctx), "DROP SCHEMA "+schema+" CASCADE")
		err = errors.Join(err, dropped)
	}()
	// The library's tables and the program's own. Every copy of a program may do this at
	// every start.
	if err := orchestrator.Migrate(ctx, db, orchestrator.WithSQL(tables)); err != nil {
		return err
	}
	if err := share(ctx, db, out); err != nil {
		return err
	}
	return verify(ctx, db, out)
}

// open opens the database, with all names in the schema.
func open(databaseURL string) (*sql.DB, error) {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Scheme == "" {
		return nil, errors.New("DATABASE_URL is not of the form postgres://user:password@host:port/database")
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxIdleConns(8) // for each worker two for coordination, one to read, one for the projection
	return db, nil
}

// share lets two workers handle events, and appends more events while they work.
func share(ctx context.Context, db *sql.DB, out io.Writer) error {
	if err := appendEvents(ctx, db, 1000); err != nil {
		return err
	}
	fmt.Fprintln(out, "1000 events are in the table. Two workers start.")
	events, err := orchestrator.NewEventTable(db, "events") // one for both: they read it together
	if err != nil {
		return err
	}

	// Two minutes are enough. A worker that fails ends the rest.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer fail(nil)
	for range 2 {
		workers.Go(func() {
			if err := work(ctx, db, events); err != nil {
				fail(err)
			}
		})
	}

	generation, err := awaitWorkers(ctx, db, 2)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Generation %d is active: each worker has one of 2 partitions. 1000 more events are appended.\n", generation)
	if err := appendEvents(ctx, db, 1000); err != nil {
		return err
	}
	var last int64
	if err := db.QueryRowContext(ctx, `SELECT max(global_position) FROM events`).Scan(&last); err != nil {
		return err
	}
	if err := orchestrator.WaitFor(ctx, db, userCount.Name(), last); err != nil {
		return err
	}
	fmt.Fprintf(out, "All events up to position %d are handled and committed.\n", last)
	return nil
}

// awaitWorkers waits until a generation with so many partitions is active.
func awaitWorkers(ctx context.Context, db *sql.DB, n int) (generation int64, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := ops.Status(ctx, db, "main-projections")
		switch {
		case err == nil && s.Phase == ops.PhaseActive && s.TotalPartitions == n:
			return s.Generation, nil
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case err != nil && !errors.Is(err, ops.ErrNoReplicaSet): // the first worker makes it
			return 0, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// appendEvents appends n events of 100 users. Every second one is a registration.
func appendEvents(ctx context.Context, db *sql.DB, n int) error {
	_, err := db.ExecContext(ctx, `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'shop', 'User', 'user-' || i % 100, seen + i, gen_random_uuid(), CASE i % 2 WHEN 1 THEN 'UserRegistered' ELSE 'UserMoved' END, ''
  FROM generate_series(1, $1) AS i, (SELECT count(*) AS seen FROM events) AS already`, n)
	if err != nil {
		return fmt.Errorf("append events: %w", err)
	}
	return nil
}

// verify compares the read model with the events.
func verify(ctx context.Context, db *sql.DB, out io.Writer) error {
	var registered, counted, first, second int64
	err := db.QueryRowContext(ctx, `
SELECT (SELECT count(*) FROM events WHERE event_type = 'UserRegistered'), coalesce(sum(n), 0),
       coalesce(sum(n) FILTER (WHERE partition = 0), 0), coalesce(sum(n) FILTER (WHERE partition = 1), 0)
  FROM user_count`).Scan(&registered, &counted, &first, &second)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Partition 0 has counted %d registrations, partition 1 %d.\n", first, second)
	fmt.Fprintf(out, "registered=%d counted=%d\n", registered, counted)
	switch {
	case counted != registered:
		return errors.New("the count is wrong: an event was lost, or counted twice")
	case second == 0:
		return errors.New("one worker did all the work")
	}
	return nil
}
