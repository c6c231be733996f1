package main

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
)

// checkpointsTable is pupsourcing's.
const checkpointsTable = `
CREATE TABLE projection_checkpoints (
    projection_name      text        PRIMARY KEY,
    last_global_position bigint      NOT NULL DEFAULT 0,
    updated_at           timestamptz NOT NULL DEFAULT now()
);`

// runByHand does what a processor of pupsourcing does for partition k of total: read the
// checkpoint, read a batch, handle the events of the partition, write the checkpoint. It
// stops at a position.
func runByHand(ctx context.Context, db *sql.DB, k, total int, stop int64) error {
	for more := true; more; {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if more, err = batchByHand(ctx, tx, k, total, stop); err == nil {
			err = tx.Commit()
		}
		if err != nil {
			_ = tx.Rollback()
			return fmt.Errorf("processor %d of %d: %w", k, total, err)
		}
	}
	return nil
}

func batchByHand(ctx context.Context, tx *sql.Tx, k, total int, stop int64) (more bool, err error) {
	key := fmt.Sprintf("%s_p%d", projectionName, k)
	rows, err := tx.QueryContext(ctx, `
SELECT global_position, aggregate_id FROM events
 WHERE global_position > coalesce((SELECT last_global_position FROM projection_checkpoints WHERE projection_name = $1), 0)
   AND global_position <= $2
 ORDER BY global_position LIMIT 100`, key, stop)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	var last int64
	var own []int64
	for rows.Next() {
		var aggregate string
		if err := rows.Scan(&last, &aggregate); err != nil {
			return false, err
		}
		hash := fnv.New32a()
		hash.Write([]byte(aggregate))
		if int(hash.Sum32()%uint32(total)) == k {
			own = append(own, last)
		}
	}
	if err := rows.Err(); err != nil || last == 0 {
		return false, err
	}
	for _, position := range own {
		if err := handle(ctx, tx, position, fmt.Sprintf("processor %d of %d, run by hand,", k, total)); err != nil {
			return false, err
		}
	}
	_, err = tx.ExecContext(ctx, `
INSERT INTO projection_checkpoints (projection_name, last_global_position) VALUES ($1, $2)
    ON CONFLICT (projection_name) DO UPDATE
   SET last_global_position = excluded.last_global_position, updated_at = now()`, key, last)
	return true, err
}
