// Command multiple-replica-sets runs two groups of projections over one stream of events.
// Each group scales on its own.
//
//	go run ./examples/multiple-replica-sets
//
// The critical projections get more workers when the shop is busy. The analytics get another
// one at another time. A rebalance of one group does not stop the other. A program of your own
// needs what replicasets.go has. The exit status is 0 if each projection handled each event
// once, and each partition had one owner.
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

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
)

func main() { stage.Main("multiple-replica-sets", run) }

func run(ctx context.Context, out io.Writer) error {
	return stage.Play(ctx, out, "multiple_replica_sets", handledTable, scale, show, verify)
}

// scale changes the number of workers, one set at a time. Events are appended before, during
// and after each change.
func scale(ctx context.Context, db *sql.DB, out io.Writer) error {
	events, err := orchestrator.NewEventTable(db, "events") // one for both sets: they read it together
	if err != nil {
		return err
	}
	team := stage.NewTeam(ctx)
	defer team.Stop()
	critical := &replicaSet{team: team, db: db, events: events, name: "critical", projections: []string{"orders", "stock"}}
	analytics := &replicaSet{team: team, db: db, events: events, name: "analytics", projections: []string{"revenue"}}
	for _, step := range []struct {
		why     string
		set     *replicaSet
		workers int
	}{
		{"to begin with", critical, 2},
		{"to begin with", analytics, 1},
		{"the shop is busy", critical, 4},
		{"a report is due", analytics, 2},
		{"the shop is quiet", critical, 1},
	} {
		other := critical
		if step.set == critical {
			other = analytics
		}
		before, err := stage.Generation(ctx, db, other.name)
		if err != nil {
			return err
		}
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		step.set.scale(step.workers)
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		generation, err := team.AwaitPartitions(db, step.set.name, step.workers)
		if err != nil {
			return err
		}
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %s now has %s (generation %d)%s\n", step.why, step.set.name, workers(step.workers), generation, undisturbed(other, before))
		if after, err := stage.Generation(ctx, db, other.name); err != nil || after != before {
			return errors.Join(fmt.Errorf("%s was rebalanced as well, from generation %d to %d", other.name, before, after), err)
		}
	}
	return team.Await(db, `SELECT (`+lostSQL+`) = 0`)
}

func appendEvents(ctx context.Context, db *sql.DB, n int) error {
	return stage.Append(ctx, db, n, "OrderPlaced", "OrderPaid")
}

func workers(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return fmt.Sprintf("%d workers", n)
}

func undisturbed(other *replicaSet, generation int64) string {
	if generation == 0 {
		return ""
	}
	return fmt.Sprintf("; %s was not rebalanced (generation %d)", other.name, generation)
}

// show lists which worker handled how much of which partition.
func show(ctx context.Context, db *sql.DB, out io.Writer) error {
	rows, err := db.QueryContext(ctx, `
SELECT replica_set, generation, partition, total, worker, count(*) FROM handled GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3`)
	if err != nil {
		return err
	}
	defer rows.Close()
	fmt.Fprintf(out, "\nWhat each worker handled (each of the two projections of critical handles every event):\n\n")
	const format = "%-12s %10v  %-10s %-12s %8v\n"
	fmt.Fprintf(out, format, "replica set", "generation", "partition", "worker", "handled")
	for rows.Next() {
		var set, worker string
		var generation, partition, total, n int
		if err := rows.Scan(&set, &generation, &partition, &total, &worker, &n); err != nil {
			return err
		}
		fmt.Fprintf(out, format, set, generation, fmt.Sprintf("%d of %d", partition, total), worker, n)
	}
	fmt.Fprintln(out)
	return rows.Err()
}

// wantSQL is what each projection has to handle.
const wantSQL = `
SELECT replica_set, projection, global_position AS position
  FROM events, (VALUES ('critical', 'orders'), ('critical', 'stock'), ('analytics', 'revenue')) AS p (replica_set, projection)`

const lostSQL = `
SELECT count(*) FROM (` + wantSQL + ` EXCEPT SELECT replica_set, projection, position FROM handled) AS lost`

// verify compares the read model with the events.
func verify(ctx context.Context, db *sql.DB, out io.Writer) error {
	var want, lost, repeated, overlaps int64
	err := db.QueryRowContext(ctx, `
SELECT (SELECT count(*) FROM (`+wantSQL+`) AS want), (`+lostSQL+`),
       (SELECT count(*) FROM (SELECT FROM handled GROUP BY projection, position HAVING count(*) > 1) AS again),
       (SELECT count(*) FROM (SELECT FROM handled GROUP BY replica_set, generation, partition HAVING count(DISTINCT worker) > 1) AS two)`).
		Scan(&want, &lost, &repeated, &overlaps)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "to_handle=%d lost=%d repeated=%d overlaps=%d\n", want, lost, repeated, overlaps)
	if lost+repeated+overlaps > 0 {
		return errors.New("events were lost or repeated, or a partition had two owners")
	}
	return nil
}
