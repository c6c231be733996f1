// Command basic is the quick start of the README as a program that can be run at
// once.
//
//	go run ./examples/basic
//
// Two workers share the events of a table, of which more come while they work.
// They are goroutines here; in earnest they are processes, and each has userCount
// and work in it, and nothing else of this. The exit status is 0 if every event
// was counted once.
//
// With DATABASE_URL set, that database is used, in a schema of its own, which
// is dropped in the end. Otherwise it starts a PostgreSQL.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// userCountTable is the read model. Each partition has a row of its own: at a
// single one they would wait for each other.
const userCountTable = `
CREATE TABLE user_count (partition int PRIMARY KEY, n bigint NOT NULL);`

// userCount counts users. Its writes go through the transaction that also
// commits the checkpoint, so each event counts exactly once.
type userCount struct{}

func (userCount) Name() string { return "user_count" }

func (userCount) Handle(context.Context, orchestrator.Event) error {
	panic("not called: userCount is transactional")
}

func (userCount) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if e.EventType != "UserRegistered" {
		return nil
	}
	d, _ := orchestrator.DeliveryFrom(ctx)
	_, err := tx.ExecContext(ctx, `
INSERT INTO user_count AS c VALUES ($1, 1) ON CONFLICT (partition) DO UPDATE SET n = c.n + 1`, d.Partition)
	return err
}

// work is a worker. It is told nothing of the others.
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
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{userCount{}})
}

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // what goes well is told below
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "basic:", err)
		os.Exit(1)
	}
}

// run makes the tables, those of orchestrator.RunMigrations among them, lets
// the workers work, and removes the tables.
func run(ctx context.Context, out io.Writer) (err error) {
	s, err := stage.Open(ctx, "basic", eventtable.Layout+userCountTable)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := share(ctx, s.DB, out); err != nil {
		return err
	}
	return verify(ctx, s.DB, out)
}

func share(ctx context.Context, db *sql.DB, out io.Writer) error {
	if err := appendEvents(ctx, db, 1000); err != nil {
		return err
	}
	events, err := orchestrator.NewEventTable(db, "events") // one for both: they read it together
	if err != nil {
		return err
	}
	team := stage.NewTeam(ctx)
	defer team.Stop()
	for range 2 {
		team.Start(func(ctx context.Context) error { return work(ctx, db, events) })
	}
	if err := team.Await(db, `SELECT EXISTS (SELECT FROM orchestrator_replica_sets WHERE phase = 'active' AND total = 2)`); err != nil {
		return err
	}
	fmt.Fprintln(out, "two workers share the events")
	if err := appendEvents(ctx, db, 1000); err != nil {
		return err
	}
	return team.Await(db, `
SELECT count(*) = 2 AND min(position) = (SELECT max(global_position) FROM events) FROM orchestrator_checkpoints`)
}

func appendEvents(ctx context.Context, db *sql.DB, n int) error {
	return stage.Append(ctx, db, n, "UserRegistered", "UserMoved")
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
	fmt.Fprintf(out, "registered=%d counted=%d (%d as partition 0, %d as partition 1)\n", registered, counted, first, second)
	if counted != registered || second == 0 {
		return errors.New("that is not what was appended, or was not shared")
	}
	return nil
}
