package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Three kinds of projection. They write each event that they are given into the table
// effects (tables.go). Nothing there is unique, so an event that is handled twice has two
// rows.

// plain writes through a connection of its own, so what it has written stays when its worker
// crashes before the checkpoint is committed. Then it gets the event again.
type plain struct {
	worker string
	db     *sql.DB
}

func (plain) Name() string { return "plain" }

func (p plain) Handle(ctx context.Context, e orchestrator.Event) error {
	return record(ctx, p.db, p.Name(), p.worker, e)
}

// transactional writes through tx, which commits with the checkpoint.
type transactional struct{ worker string }

func (transactional) Name() string { return "transactional" }

func (p transactional) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	return record(ctx, tx, p.Name(), p.worker, e)
}

func (transactional) Handle(context.Context, orchestrator.Event) error { return errNotCalled }

// batch does the same for many events in one statement.
type batch struct{ worker string }

func (batch) Name() string { return "batch" }

func (p batch) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	return record(ctx, tx, p.Name(), p.worker, events...)
}

func (batch) Handle(context.Context, orchestrator.Event) error { return errNotCalled }

// errNotCalled: of HandleBatch, HandleTx and Handle, the library calls the
// first that a projection has.
var errNotCalled = errors.New("Handle was called in place of HandleTx or HandleBatch")

// began is when the transaction began: for plain, which has none, the statement.
const recordSQL = `
INSERT INTO effects (projection, worker, generation, partition, total,
                     position, aggregate_id, aggregate_version, began, ended)
SELECT $1, $2, $3, $4, $5, position, aggregate_id, aggregate_version, now(), clock_timestamp()
  FROM unnest($6::bigint[], $7::text[], $8::bigint[]) AS e (position, aggregate_id, aggregate_version)`

// An execer is a database, or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// record writes one effect for each event, with its worker and the time. The time is the
// database's, the one clock that all workers share.
func record(ctx context.Context, db execer, projection, worker string, events ...orchestrator.Event) error {
	d, _ := orchestrator.DeliveryFrom(ctx)
	var positions, versions []int64
	var aggregates []string
	for _, e := range events {
		positions = append(positions, e.GlobalPosition)
		aggregates = append(aggregates, e.AggregateID)
		versions = append(versions, e.AggregateVersion)
	}
	_, err := db.ExecContext(ctx, recordSQL, projection, worker, d.Generation, d.Partition, d.TotalPartitions,
		pq.Array(positions), pq.Array(aggregates), pq.Array(versions))
	if err != nil {
		return fmt.Errorf("record %d events: %w", len(events), err)
	}
	return nil
}
