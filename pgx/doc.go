// Package orchestratorpgx runs the workers of package orchestrator natively on pgx: on the
// connections of a pgxpool.Pool, with handlers that take a pgx.Tx, and with an events table
// that is read in PostgreSQL's binary format.
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
// Without it pgx works as well, as a driver of database/sql. What the module adds: nothing
// has to be configured beside the pool, hints included; handlers have all of pgx
// (CopyFrom, SendBatch, its types), in the transaction that commits the checkpoint; and
// a worker takes about two thirds of the CPU that it takes over lib/pq. docs/pgx.md has the
// figures.
//
// The promises are the root's, and so is the code that keeps them. The workers coordinate
// through [DB], which is the pool as a *sql.DB, and the reading without loss is
// orchestrator.Table's: only the rows come to it another way.
//
// # The pool
//
// A worker needs connections that it has all at the same time: one that it keeps, by which
// others see that it is there (unless LeaseOnly is set); one to listen on, for all
// workers of the pool; one for coordinating and reading, in turns; and one for each
// transactional projection on each of its partitions; and four for each worker at least,
// unless LeaseOnly is set. Run refuses a pool that has fewer
// (pgxpool.Config.MaxConns). What handlers take from the pool beside their transaction, and
// the rest of the program, comes on top. End the workers before the pool is closed.
//
// Behind a pooler that hands out connections by transaction, such as PgBouncer,
// default_query_exec_mode=exec is needed, and Config.Notifier must be nil, or listen on a
// pool that leads to the server itself. Run refuses what can't work there.
package orchestratorpgx
