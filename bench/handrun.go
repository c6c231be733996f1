package main

import (
	"context"
	"database/sql"
	"errors"
	"hash/fnv"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A handrun is a hand-written processor. For each projection and partition, it runs a loop of
// transactions that read the checkpoint, read a batch of the stream, handle the partition's
// events, and move the checkpoint. It is safe if each partition is configured in exactly one
// process. It does not handle gaps.
type handrun struct {
	pool        *sql.DB
	projections []string
	partitions  int
	batch       int
	through     int64
	handle      func(ctx context.Context, tx *sql.Tx, projection int, events []orchestrator.Event) error
}

// run handles events up to the position through.
func (h handrun) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends := make(chan error)
	for p := range h.projections {
		for k := range h.partitions {
			go func() { ends <- h.process(ctx, p, k) }()
		}
	}
	var errs []error
	for range len(h.projections) * h.partitions {
		if err := <-ends; err != nil {
			errs = append(errs, err)
			cancel()
		}
	}
	return errors.Join(errs...)
}

func (h handrun) process(ctx context.Context, projection, partition int) error {
	name := h.projections[projection]
	if _, err := h.pool.ExecContext(ctx, `INSERT INTO handrun_checkpoints VALUES ($1, $2, 0)`, name, partition); err != nil {
		return err
	}
	page := make([]orchestrator.Event, 0, h.batch)
	for {
		position, err := h.batchOf(ctx, projection, partition, page)
		if err != nil || position >= h.through {
			return err
		}
	}
}

// batchOf runs one transaction.
func (h handrun) batchOf(ctx context.Context, projection, partition int, page []orchestrator.Event) (position int64, err error) {
	tx, err := h.pool.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() // after a commit it does nothing
	name := h.projections[projection]
	err = tx.QueryRowContext(ctx,
		`SELECT position FROM handrun_checkpoints WHERE projection = $1 AND partition = $2 FOR UPDATE`, name, partition).Scan(&position)
	if err != nil {
		return 0, err
	}
	if page, err = readEvents(ctx, tx, page[:0], wholeStream, position, h.batch); err != nil || len(page) == 0 {
		return position, err
	}
	position = page[len(page)-1].GlobalPosition
	own := page[:0]
	for _, e := range page {
		if h.partitions == 1 || partitionOf(e.AggregateID, h.partitions) == partition {
			own = append(own, e)
		}
	}
	if err := h.handle(ctx, tx, projection, own); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx,
		`UPDATE handrun_checkpoints SET position = $3 WHERE projection = $1 AND partition = $2`, name, partition, position)
	if err != nil {
		return 0, err
	}
	return position, tx.Commit()
}

func partitionOf(aggregate string, partitions int) int {
	h := fnv.New32a()
	h.Write([]byte(aggregate))
	return int(h.Sum32() % uint32(partitions))
}
