// Package orchestratorpgx runs the workers of package orchestrator on pgx: on the connections of
// a pgxpool.Pool, with handlers that take a pgx.Tx, and with events read in PostgreSQL's binary
// format.
//
//	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
//	…
//	cfg, err := orchestratorpgx.Config(pool, "main-projections")
//	…
//	o, err := orchestrator.New(cfg)
//	…
//	err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{
//		orchestratorpgx.Batch("users", func(ctx context.Context, tx pgx.Tx, events []orchestrator.Event) error {
//			_, err := tx.CopyFrom(ctx, pgx.Identifier{"users"}, columns, rows(events))
//			return err
//		}),
//	})
//
// The guarantees are those of package orchestrator, whose code runs. pgx also works with
// package orchestrator alone, as a driver of database/sql. This module adds:
//
//   - The pool is the only setting. Notifications are included.
//   - Handlers can use all of pgx (CopyFrom, SendBatch, its types) in the transaction that
//     commits the checkpoint.
//   - A worker needs about two thirds of the CPU that it needs with lib/pq: see docs/pgx.md.
//
// # The pool
//
// A worker uses these connections at the same time:
//
//   - one that it keeps, so that other workers notice a crash at once (not with LeaseOnly);
//   - one to listen on, which all workers of the pool share (not if Notifier is nil);
//   - one to coordinate and to read;
//   - one for each transactional projection on each of its partitions.
//
// It needs at least four per worker, unless LeaseOnly is set. Run refuses a pool with fewer
// (pgxpool.Config.MaxConns). Connections that handlers take from the pool beside their
// transaction, and those of the rest of the program, come on top. Stop the workers before you
// close the pool.
//
// # Poolers
//
// Behind a pooler in transaction mode, such as PgBouncer, set default_query_exec_mode=exec, and
// set Config.Notifier to nil or to a Notifier of a pool that leads to the server itself. Run
// refuses settings that can't work there.
package orchestratorpgx
