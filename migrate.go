package orchestrator

import (
	"context"
	"database/sql"
	_ "embed" // schema.sql
	"fmt"

	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Schema is the text of schema.sql, for migration tools that take SQL from Go.
//
//go:embed schema.sql
var Schema string

// migrationLock is the key of the advisory lock that migrations take:
// "orchestr" in ASCII.
const migrationLock = 0x6f72636865737472

// RunMigrations creates or upgrades the library's tables. It does nothing when
// they are there and new enough, so a program may call it at every start, in
// many processes at once; it needs the right to create tables only when there
// is something to do. Where a long transaction keeps a table that is to be
// altered, it gives up after 3s with the server's error. The tables go into the
// first schema of the search path, unless another one on it has them already.
func RunMigrations(db *sql.DB) error {
	if db == nil {
		return fmt.Errorf("%w: RunMigrations was given a nil database", ErrInvalidConfig)
	}
	ctx := context.Background()
	if version, _, err := store.SchemaVersion(ctx, db); err == nil && version >= store.Version {
		return nil
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("run migrations: begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	// A process that is frozen in here must not keep all others from starting.
	if _, err := tx.ExecContext(ctx, `SELECT set_config('idle_in_transaction_session_timeout', '10s', true)`); err != nil {
		return fmt.Errorf("run migrations: bound the transaction: %w", err)
	}
	// CREATE TABLE IF NOT EXISTS is not safe against itself.
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(migrationLock)); err != nil {
		return fmt.Errorf("run migrations: lock: %w", err)
	}
	// Who reads one of the tables in a long transaction makes an ALTER TABLE wait,
	// and every heartbeat wait behind that. Not for as long as a lease is.
	if _, err := tx.ExecContext(ctx, `SELECT set_config('lock_timeout', '3s', true)`); err != nil {
		return fmt.Errorf("run migrations: bound the wait for locks: %w", err)
	}
	// Tables that are there, and older, are upgraded where they are.
	if _, err := tx.ExecContext(ctx, `
SELECT set_config('search_path', quote_ident(n.nspname) || ', ' || current_setting('search_path'), true)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass('orchestrator_schema')`); err != nil {
		return fmt.Errorf("run migrations: look for the tables: %w", err)
	}
	if _, err := tx.ExecContext(ctx, Schema); err != nil {
		return fmt.Errorf("run migrations: apply schema.sql: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("run migrations: commit: %w", err)
	}
	return nil
}
