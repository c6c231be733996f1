// Command migration takes a projection over from processors that were run by hand, without
// replaying an event, and checks the result.
//
//	go run ./examples/migration
//
// before.go has the processors: three of them, each with a fixed partition and a row in
// projection_checkpoints. after.go has the workers that take their place. migrate does the
// change. The exit status is 0 if no event was lost or repeated.
//
// With DATABASE_URL set, that database is used, in a schema of its own, which is dropped at
// the end. Otherwise it starts a PostgreSQL.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
	"github.com/getpup/pupsourcing-orchestrator/importer"
)

// handledTable is the read model: which events were handled, and what handled them. Nothing
// in it is unique, so that the check finds an event that was handled again.
const handledTable = `
CREATE TABLE handled (position bigint NOT NULL, by text NOT NULL);`

func main() { stage.Main("migration", run) }

func run(ctx context.Context, out io.Writer) error {
	return stage.Play(ctx, out, "migration", checkpointsTable+handledTable, migrate, verify)
}

func migrate(ctx context.Context, db *sql.DB, out io.Writer) error {
	if err := appendEvents(ctx, db, 3000); err != nil {
		return err
	}
	stops := []int64{2100, 900, 1500} // each processor was stopped at another position
	for k, position := range stops {
		if err := runByHand(ctx, db, k, len(stops), position); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "Before: %d processors, run by hand. They were stopped at positions %v of 3000.\n", len(stops), stops)

	config := importer.Config{
		DB: db, Projection: projectionName, ReplicaSet: "migration", Total: len(stops),
		Watch:  time.Second, // leave it out unless you are certain that the processors are stopped
		DryRun: true,
	}
	for range 2 {
		imported, err := importer.Import(ctx, config)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "Import: %s\n", imported)
		config.DryRun = false
		if !imported.DryRun {
			for _, p := range imported.Partitions {
				fmt.Fprintf(out, "    the checkpoint %s was at %d, its partition continues at %d\n", p.Key, p.Position, p.Start)
			}
		}
	}

	// Two workers take over, a third one joins, and the first one stops. Events are appended
	// before, during and after each change.
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
		what    string
		do      func()
		workers int
	}{
		{"Workers 1 and 2 take over", func() {}, 2},
		{"Worker 3 joins", func() { start() }, 3},
		{"Worker 1 stops", leave, 2},
	} {
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		change.do()
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		generation, err := team.AwaitPartitions(db, "migration", change.workers)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %d workers share the projection (generation %d).\n", change.what, change.workers, generation)
	}
	return team.Await(db, `SELECT (`+lostSQL+`) = 0`)
}

func appendEvents(ctx context.Context, db *sql.DB, n int) error {
	return stage.Append(ctx, db, n, "OrderChanged")
}

const lostSQL = `
SELECT count(*) FROM events WHERE NOT EXISTS (SELECT FROM handled WHERE position = global_position)`

// verify compares the read model with the events.
func verify(ctx context.Context, db *sql.DB, out io.Writer) error {
	rows, err := db.QueryContext(ctx, `SELECT by, count(*) FROM handled GROUP BY by ORDER BY by`)
	if err != nil {
		return err
	}
	defer rows.Close()
	fmt.Fprintln(out, "All events are handled:")
	for rows.Next() {
		var by string
		var n int64
		if err := rows.Scan(&by, &n); err != nil {
			return err
		}
		fmt.Fprintf(out, "    %s handled %d events\n", by, n)
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
