// Command multiple-replica-sets runs two groups of projections over one stream of
// events, which scale apart.
//
//	go run ./examples/multiple-replica-sets
//
// The critical projections get more workers when there is much to do, and the
// analytics have theirs changed at another time; neither stops for the other.
// replicasets.go is what such a program consists of. The exit status is 0 if each
// projection handled each event once, and each partition had one owner.
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

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // what goes well is told below
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "multiple-replica-sets:", err)
		os.Exit(1)
	}
}

// run has a database made, the sets scaled in it, and the database removed.
func run(ctx context.Context, out io.Writer) (err error) {
	s, err := stage.Open(ctx, "multiple_replica_sets", eventtable.Layout+handledTable)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	s.DB.SetMaxIdleConns(20) // for each worker, one and one for each projection
	if err := scale(ctx, s.DB, out); err != nil {
		return err
	}
	if err := tell(ctx, s.DB, out); err != nil {
		return err
	}
	return verify(ctx, s.DB, out)
}

// scale changes the sets' workers, one set at a time. Events come before each
// change, meanwhile, and after it.
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
		before, err := other.generation(ctx)
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
		if err := team.Await(db, runningSQL, step.set.name, step.workers); err != nil {
			return err
		}
		if err := appendEvents(ctx, db, 500); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %s on %d\n", step.why, step.set.name, step.workers)
		if after, err := other.generation(ctx); err != nil || after != before {
			return errors.Join(fmt.Errorf("%s was re-partitioned, from generation %d to %d", other.name, before, after), err)
		}
	}
	return team.Await(db, `SELECT (`+lostSQL+`) = 0`)
}

func appendEvents(ctx context.Context, db *sql.DB, n int) error {
	return stage.Append(ctx, db, n, "OrderPlaced", "OrderPaid")
}

const runningSQL = `
SELECT EXISTS (SELECT FROM orchestrator_replica_sets WHERE name = $1 AND phase = 'active' AND total = $2)`

// tell lists who had which partitions.
func tell(ctx context.Context, db *sql.DB, out io.Writer) error {
	rows, err := db.QueryContext(ctx, `
SELECT replica_set, generation, total, string_agg(format('%s/%s %s (%s)', partition, total, worker, n), ', ' ORDER BY partition)
  FROM (SELECT replica_set, generation, partition, total, worker, count(*) AS n FROM handled GROUP BY 1, 2, 3, 4, 5) AS h
 GROUP BY 1, 2, 3 ORDER BY 1, 2`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var set, who string
		var generation, total int
		if err := rows.Scan(&set, &generation, &total, &who); err != nil {
			return err
		}
		fmt.Fprintf(out, "    %s, generation %d: %s\n", set, generation, who)
	}
	return rows.Err()
}

// wantSQL is what is to be handled by whom.
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
