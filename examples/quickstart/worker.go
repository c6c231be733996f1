package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	_ "github.com/lib/pq" // the driver "postgres"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// lease is short, so that there is something to see soon: it is how long the
// partition of a killed worker stays idle.
const lease = 2 * time.Second

// work is a whole worker: run it in as many processes as you like, on as many
// machines. It returns nil after SIGTERM, when it has finished and committed
// what it had in hand and left the others its partition.
func work(ctx context.Context, name, databaseURL string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()

	db, err := sql.Open("postgres", databaseURL)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer db.Close()
	// database/sql keeps only two idle connections, and would open the others
	// anew all the time: one for coordination, two for each projection.
	db.SetMaxIdleConns(1 + 2*3)

	if err := orchestrator.RunMigrations(db); err != nil {
		return err
	}
	events, err := orchestrator.NewEventTable(db, "events")
	if err != nil {
		return err
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB:         db,
		EventStore: events,
		ReplicaSet: "quickstart",
		Logger:     slog.New(slog.NewJSONHandler(os.Stderr, nil)),

		// Leave these out to get the defaults: 5s, 30s and 60s.
		HeartbeatInterval:   200 * time.Millisecond,
		StaleWorkerTimeout:  lease,
		CoordinationTimeout: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{
		plain{name, db}, transactional{name}, batch{name},
	})
}
