package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// config returns a configuration with the defaults, over the pool.
func config(pool *sql.DB, set string) (orchestrator.Config[orchestrator.Event], error) {
	events, err := orchestrator.NewEventTable(pool, "")
	return orchestrator.Config[orchestrator.Event]{
		DB: pool, EventStore: events, ReplicaSet: orchestrator.ReplicaSetName(set),
		Logger: slog.New(slog.DiscardHandler), // log lines would disturb the output
	}, err
}

// A member is a running worker.
type member struct {
	leave func()
	kill  func()        // kills the process
	done  chan struct{} // closed when it has ended; then err is its error
	err   error
}

// start starts Run.
func start(cfg orchestrator.Config[orchestrator.Event], projections ...orchestrator.Projection[orchestrator.Event]) (*member, error) {
	o, err := orchestrator.New(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{leave: cancel, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		m.err = o.Run(ctx, projections)
	}()
	return m, nil
}

// stop makes the worker leave and waits until it has.
func (m *member) stop() error {
	m.leave()
	<-m.done
	if m.err != nil {
		return fmt.Errorf("worker: %w", m.err)
	}
	return nil
}

// runLibrary runs one worker until the ledgers are complete, and returns their rate.
func runLibrary(ctx context.Context, pool *sql.DB, set string, batch int,
	projections []orchestrator.Projection[orchestrator.Event], ledgers []*ledger) (float64, error) {
	return rateOf(ctx, ledgers, func(ctx context.Context) error {
		cfg, err := config(pool, set)
		if err != nil {
			return err
		}
		cfg.BatchSize = batch
		m, err := start(cfg, projections...)
		if err != nil {
			return err
		}
		for _, l := range ledgers {
			err = errors.Join(err, l.wait(ctx, m.done))
		}
		return errors.Join(err, m.stop())
	})
}
