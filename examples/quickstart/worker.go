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

// lease is the shortest one with which a crash is noticed by the worker's connection, and
// not only by the end of its lease: see Config.LeaseOnly. It is short because the demo also
// freezes a worker. A frozen worker keeps its connection, so its lease has to end.
const lease = 4 * time.Second

// work is a whole worker: run it in as many processes as you like, on as many machines. It
// returns nil after SIGTERM, when it has committed what it had in hand and has handed over
// its partition.
func work(ctx context.Context, name, databaseURL string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()

	db, err := sql.Open("postgres", databaseURL)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer db.Close()
	// database/sql keeps only two idle connections, and would open the others again and
	// again: two for coordination, and two for each projection.
	db.SetMaxIdleConns(2 + 2*3)

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

		// Leave these out to get the defaults: 5s and 30s.
		HeartbeatInterval:  time.Second,
		StaleWorkerTimeout: lease,
	})
	if err != nil {
		return err
	}
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{
		plain{name, db}, transactional{name}, batch{name},
	})
}
