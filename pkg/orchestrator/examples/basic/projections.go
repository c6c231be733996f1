package main

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/getpup/pupsourcing/es"

	root "github.com/getpup/pupsourcing-orchestrator"
	orchestrator "github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator"
)

const readModels = `
CREATE TABLE cities (id text PRIMARY KEY, city text NOT NULL, moves int NOT NULL DEFAULT 0);
CREATE TABLE revenue (cents bigint NOT NULL);
INSERT INTO revenue VALUES (0);
CREATE TABLE audit (position bigint PRIMARY KEY, partition int NOT NULL, total int NOT NULL)`

// cities records where users live. Each event is applied exactly once, in the transaction that
// commits the checkpoint.
type cities struct{ uncalled }

func (cities) Name() string              { return "cities" }
func (cities) AggregateTypes() []string  { return []string{"User"} }
func (cities) BoundedContexts() []string { return []string{"Identity"} }

func (cities) HandleTx(ctx context.Context, tx orchestrator.Tx, e es.PersistedEvent) error {
	_, err := tx.ExecContext(ctx, `
INSERT INTO cities AS c (id, city) VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE SET city = EXCLUDED.city, moves = c.moves + 1`, e.AggregateID, string(e.Payload))
	return err
}

// revenue adds up orders, in batches.
type revenue struct{ uncalled }

func (revenue) Name() string              { return "revenue" }
func (revenue) AggregateTypes() []string  { return []string{"Order"} }
func (revenue) BoundedContexts() []string { return nil }

func (revenue) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []es.PersistedEvent) error {
	var cents int64
	for _, e := range events {
		n, err := strconv.ParseInt(string(e.Payload), 10, 64)
		if err != nil {
			return err
		}
		cents += n
	}
	_, err := tx.ExecContext(ctx, `UPDATE revenue SET cents = cents + $1`, cents)
	return err
}

// audit lists all events and the worker that handled them. It writes through a connection of its
// own, so it may see an event again, and is idempotent.
type audit struct{ db *sql.DB }

func (audit) Name() string { return "audit" }

func (p audit) list(ctx context.Context, e es.PersistedEvent) error {
	d, _ := root.DeliveryFrom(ctx)
	_, err := p.db.ExecContext(ctx, `INSERT INTO audit VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		e.GlobalPosition, d.Partition, d.TotalPartitions)
	return err
}
