// Command basic runs two workers over a pupsourcing store.
//
//	go run ./examples/basic
//
// It appends users and orders through the store, before and while two workers run projections,
// and compares the read models with the appended events. The exit status is 0 only if they
// match.
//
// If DATABASE_URL is set, it uses that server, with a database of its own that it drops at the
// end. Otherwise it starts a PostgreSQL server.
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
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/getpup/pupsourcing/es/migrations"
	"github.com/getpup/pupsourcing/es/projection"
	"github.com/google/uuid"
	_ "github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	orchestrator "github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator"
)

func main() {
	slog.SetLogLoggerLevel(slog.LevelWarn) // successes are printed below
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "basic: %v\n", err)
		os.Exit(1)
	}
}

// limit ends a run that makes no progress.
const limit = 2 * time.Minute

func run(ctx context.Context, out io.Writer) (err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	fmt.Fprintln(out, server.Source())
	url, drop, err := server.CreateDatabase(ctx, "basic_"+strings.ReplaceAll(uuid.NewString(), "-", ""))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	db, err := sql.Open("postgres", url)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxIdleConns(10) // one for each worker, and one for each projection of each worker

	if err := migrate(ctx, db); err != nil {
		return err
	}
	s := &shop{db: db, store: postgres.NewStore(postgres.DefaultStoreConfig()), cities: map[string]string{}}
	if err := s.open(ctx, 100); err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	workers := make(chan error, 2)
	for range cap(workers) {
		go func() { workers <- work(ctx, db, s.store) }()
	}
	err = play(ctx, s, workers, out)
	cancel()
	for range cap(workers) {
		err = errors.Join(err, <-workers)
	}
	return err
}

// migrate creates the tables of pupsourcing, of the library and of the read models.
func migrate(ctx context.Context, db *sql.DB) error {
	folder, err := os.MkdirTemp("", "basic")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	cfg := migrations.DefaultConfig()
	cfg.OutputFolder = folder
	if err := migrations.GeneratePostgres(&cfg); err != nil {
		return err
	}
	layout, err := os.ReadFile(filepath.Join(folder, cfg.OutputFilename))
	if err != nil {
		return err
	}
	for _, statements := range []string{string(layout), readModels} {
		if _, err := db.ExecContext(ctx, statements); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	return orchestrator.RunMigrations(db)
}

// work runs one worker. In production it is a process of its own.
func work(ctx context.Context, db *sql.DB, store *postgres.Store) error {
	orch, err := orchestrator.New(orchestrator.Config{
		DB: db, EventStore: store, ReplicaSet: "main-projections",
		HeartbeatInterval: 100 * time.Millisecond, PollInterval: 20 * time.Millisecond, // to react quickly
	})
	if err != nil {
		return err
	}
	return orch.Run(ctx, []projection.Projection{cities{}, revenue{}, audit{db}})
}

// play appends the other half when there are two workers, waits until all events are handled,
// and checks the result.
func play(ctx context.Context, s *shop, workers chan error, out io.Writer) error {
	if err := s.until(ctx, workers, `SELECT count(*) = 1 FROM orchestrator_replica_sets WHERE phase = 'active' AND total = 2`); err != nil {
		return fmt.Errorf("wait for two partitions: %w", err)
	}
	if err := s.open(ctx, 100); err != nil {
		return err
	}
	fmt.Fprintf(out, "appended: %d events, %d users, %d cents\n", s.events, len(s.cities), s.cents)
	if err := s.until(ctx, workers, `SELECT count(*) >= 3 * 2 AND min(position) >= (SELECT max(global_position) FROM events) FROM orchestrator_checkpoints`); err != nil {
		return fmt.Errorf("wait for the projections: %w", err)
	}
	return s.judge(ctx, out)
}
