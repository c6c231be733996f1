package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// checking passes its events to a ledger, after a wait.
type checking struct {
	name   string
	ledger *ledger
	wait   time.Duration
	began  func(ctx context.Context) // nil: not called
}

func (p checking) Name() string { return p.name }

func (p checking) Handle(ctx context.Context, e orchestrator.Event) error {
	if p.began != nil {
		p.began(ctx)
	}
	if p.wait > 0 {
		time.Sleep(p.wait)
	}
	p.ledger.note(&e)
	return nil
}

// rare is checking, for one aggregate type.
type rare struct{ checking }

func (rare) AggregateTypes() []string  { return []string{"rare"} }
func (rare) BoundedContexts() []string { return nil }

// inserting inserts a row for each event, in batches.
type inserting struct {
	name  string
	noted func(ctx context.Context, events []orchestrator.Event)
}

func (p inserting) Name() string { return p.name }

func (p inserting) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a batch projection")
}

func (p inserting) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	p.noted(ctx, events)
	return insertEffects(ctx, tx, p.name, events)
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func insertEffects(ctx context.Context, tx execer, projection string, events []orchestrator.Event) error {
	ids, versions := make([]string, len(events)), make([]int64, len(events))
	for i := range events {
		ids[i], versions[i] = events[i].AggregateID, events[i].AggregateVersion
	}
	_, err := tx.ExecContext(ctx, `
INSERT INTO effects (projection, aggregate, version)
SELECT $1, * FROM unnest($2::text[], $3::bigint[])`, projection, pq.Array(ids), pq.Array(versions))
	return err
}
