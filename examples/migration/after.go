package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

const projectionName = "order_history"

// An execer is a transaction, of the library or of the program.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// handle is what the projection does, before and after.
func handle(ctx context.Context, tx execer, position int64, by string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO handled (position, by) VALUES ($1, $2)`, position, by)
	return err
}

// orderHistory keeps its name: the import finds its checkpoints by it.
type orderHistory struct{ worker string }

func (orderHistory) Name() string { return projectionName }

func (p orderHistory) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	return handle(ctx, tx, e.GlobalPosition, p.worker)
}

func (orderHistory) Handle(context.Context, orchestrator.Event) error {
	return errors.New("not called: orderHistory is transactional")
}

// work is a worker. It needs no partition number.
func work(ctx context.Context, db *sql.DB, name string) error {
	events, err := orchestrator.NewEventTable(db, "events")
	if err != nil {
		return err
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: "migration",
		HeartbeatInterval: 100 * time.Millisecond, // leave it out to get 5s
	})
	if err != nil {
		return err
	}
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{orderHistory{name}})
}
