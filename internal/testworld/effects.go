package testworld

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Effects is the name of a test projection and what it leaves: a row for each event that it has
// handled.
type Effects struct {
	Projection string                                                // its name
	Hook       func(ctx context.Context, e orchestrator.Event) error // called before each write; nil: not called
	Log        *History                                              // records when handlers are open; nil: not recorded
}

// Plain returns a plain projection, which writes through a connection of its own.
func (p Effects) Plain(db *sql.DB) Plain { return Plain{p, db} }

// Transactional returns a transactional projection, which writes through the transaction of its
// lane.
func (p Effects) Transactional() Transactional { return Transactional{p} }

// Batched returns a batch projection, which writes through the transaction of its lane.
func (p Effects) Batched() Batched { return Batched{p} }

// PlainBatched returns a plain batch projection, which writes through a connection of its own.
func (p Effects) PlainBatched(db *sql.DB) PlainBatched { return PlainBatched{p, db} }

// Name returns the projection's name.
func (p Effects) Name() string { return p.Projection }

// An Execer is a database or a transaction.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Write inserts the effect of one event.
func (p Effects) Write(ctx context.Context, db Execer, e orchestrator.Event) error {
	defer p.Log.Open(ctx, p.Projection, e)()
	if p.Hook != nil {
		if err := p.Hook(ctx, e); err != nil {
			return err
		}
	}
	d, ok := orchestrator.DeliveryFrom(ctx)
	if !ok {
		return errors.New("no delivery in the handler's context")
	}
	_, err := db.ExecContext(ctx, `
INSERT INTO effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, $4, $5, $6)`,
		p.Projection, e.GlobalPosition, e.AggregateID, d.Generation, d.Partition, d.TotalPartitions)
	return err
}

// Plain is a plain projection that leaves effects.
type Plain struct {
	Effects
	db *sql.DB
}

func (p Plain) Handle(ctx context.Context, e orchestrator.Event) error { return p.Write(ctx, p.db, e) }

// Transactional is a transactional projection that leaves effects.
type Transactional struct{ Effects }

func (p Transactional) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a transactional projection")
}

func (p Transactional) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	return p.Write(ctx, tx, e)
}

// Batched is a batch projection that leaves effects.
type Batched struct{ Effects }

func (p Batched) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a batch projection")
}

func (p Batched) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	for _, e := range events {
		if err := p.Write(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

// PlainBatched is a plain batch projection that leaves effects.
type PlainBatched struct {
	Effects
	db *sql.DB
}

func (p PlainBatched) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a batch projection")
}

func (p PlainBatched) HandlePlainBatch(ctx context.Context, events []orchestrator.Event) error {
	for _, e := range events {
		if err := p.Write(ctx, p.db, e); err != nil {
			return err
		}
	}
	return nil
}

// Failing returns a hook that fails at poison events until mended is true.
func Failing(mended *atomic.Bool, poison func(e orchestrator.Event) bool) func(context.Context, orchestrator.Event) error {
	return func(_ context.Context, e orchestrator.Event) error {
		if !mended.Load() && poison(e) {
			return fmt.Errorf("can't handle %s\x00\xff", e.AggregateID)
		}
		return nil
	}
}

// Parking returns cfg with the failure rule ParkEvents, after two attempts, for the named
// projections.
func Parking(cfg orchestrator.Config[orchestrator.Event], names ...string) orchestrator.Config[orchestrator.Event] {
	cfg.Failures = map[string]orchestrator.FailureRule{}
	for _, name := range names {
		cfg.Failures[name] = orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 2}
	}
	return cfg
}
