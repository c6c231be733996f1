// Command migration takes a projection over from processors that were run by
// hand, without replaying an event, and checks it.
//
//	go run ./examples/migration
//
// before.go is what there was: three processors, each with a fixed partition and
// a row in projection_checkpoints. after.go is what takes their place, and
// migrate is the way. The exit status is 0 if no event was lost or repeated.
//
// With DATABASE_URL set, that database is used, in a schema of its own, which
// is dropped in the end.
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

	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// handledTable is the read model: which events were handled, and by whom.
// Nothing in it is unique: an event that is handled again is to be found.
const handledTable = `
CREATE TABLE handled (position bigint NOT NULL, by text NOT NULL);`

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // what goes well is told below
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "migration:", err)
		os.Exit(1)
	}
}

// run has a database made, the migration done in it, and the database removed.
func run(ctx context.Context, out io.Writer) (err error) {
	s, err := stage.Open(ctx, "migration", eventtable.Layout+checkpointsTable+handledTable)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	s.DB.SetMaxIdleConns(10)
	if err := migrate(ctx, s.DB, out); err != nil {
		return err
	}
	return verify(ctx, s.DB, out)
}

func migrate(ctx context.Context, db *sql.DB, out io.Writer) error {
	if err := appendEvents(ctx, db, 3000); err != nil {
		return err
	}
	// The processors, each stopped somewhere else.
	stops := []int64{2100, 900, 1500}
	for k, position := range stops {
		if err := runByHand(ctx, db, k, len(stops), position); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%d processors were run by hand and stopped at %v\n", len(stops), stops)

	config := importer.Config{
		DB: db, Projection: projectionName, ReplicaSet: "migration", Total: len(stops),
		Watch:  time.Second, // leave it out where the processors are not stopped for certain
		DryRun: true,
	}
	for range 2 {
		imported, err := importer.Import(ctx, config)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, imported)
		for _, p := range imported.Partitions {
			fmt.Fprintf(out, "    %s: stopped at %d, goes on from %d\n", p.Key, p.Position, p.Start)
		}
		config.DryRun = false
	}

	// Two workers take over, a third one joins, the first leaves; events are
	// appended before, meanwhile and after.
	team := stage.NewTeam(ctx)
	defer team.Stop()
	started := 0
	start := func() (leave func()) {
		started++
		name := fmt.Sprintf("worker %d", started)
		return team.Start(func(ctx context.Context) error { return work(ctx, db, name) })
	}
	leave := start()
	start()
	for _, change := range []struct {
		do      func()
		workers int
	}{{func() {}, 2}, {func() { start() }, 3}, {leave, 2}} {
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		change.do()
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		if err := team.Await(db, runningSQL, change.workers); err != nil {
			return err
		}
		fmt.Fprintf(out, "%d workers share the projection\n", change.workers)
	}
	return team.Await(db, `SELECT (`+lostSQL+`) = 0`)
}

func appendEvents(ctx context.Context, db *sql.DB, n int) error {
	return stage.Append(ctx, db, n, "OrderChanged")
}

const lostSQL = `
SELECT count(*) FROM events WHERE NOT EXISTS (SELECT FROM handled WHERE position = global_position)`

const runningSQL = `
SELECT EXISTS (SELECT FROM orchestrator_replica_sets WHERE phase = 'active' AND total = $1)`

// verify compares the read model with the events.
func verify(ctx context.Context, db *sql.DB, out io.Writer) error {
	rows, err := db.QueryContext(ctx, `SELECT by, count(*) FROM handled GROUP BY by ORDER BY by`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var by string
		var n int64
		if err := rows.Scan(&by, &n); err != nil {
			return err
		}
		fmt.Fprintf(out, "    %s handled %d\n", by, n)
	}
	if err := rows.Err(); err != nil {
		return err
	}

	var events, lost, repeated int64
	err = db.QueryRowContext(ctx, `
SELECT (SELECT count(*) FROM events), (`+lostSQL+`),
       (SELECT count(*) FROM (SELECT FROM handled GROUP BY position HAVING count(*) > 1) AS again)`).
		Scan(&events, &lost, &repeated)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "events=%d lost=%d repeated=%d\n", events, lost, repeated)
	if lost+repeated > 0 {
		return errors.New("events were lost or repeated")
	}
	return nil
}
