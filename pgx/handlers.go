package orchestratorpgx

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/jackc/pgx/v5"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Transactional is orchestrator.Transactional with pgx's transaction: what the handler
// writes through tx commits together with the checkpoint, so each event is applied exactly
// once. All that a pgx.Tx can do, it can do: CopyFrom, SendBatch, nested transactions
// (Begin), large objects.
//
// But it can't end the transaction. Commit and Rollback of tx itself, and statements that
// would end it, are refused, and the handler fails, whatever it makes of the error;
// return an error to have everything rolled back. (What is committed all the same, through
// tx.Conn, is noticed before the checkpoint moves.) Rows and the results of a batch must
// be closed, and tx is of no use, when the handler has returned.
//
// A panic in the source of CopyFrom is the handler's failure, like any other. pgx encodes
// the values on a goroutine of its own: an encoder of a type of yours that panics there ends
// the process.
//
// Config.DB must be the DB of a pool, or another of pgx's database/sql driver.
func Transactional[E any](name string, handle func(ctx context.Context, tx pgx.Tx, event E) error, options ...orchestrator.ProjectionOption) orchestrator.Projection[E] {
	if handle == nil {
		return orchestrator.Transactional[E](name, nil, options...)
	}
	return orchestrator.Transactional(name, func(ctx context.Context, tx orchestrator.Tx, event E) error {
		return during(tx, func(tx pgx.Tx) error { return handle(ctx, tx, event) })
	}, options...)
}

// Batch is orchestrator.Batch with pgx's transaction: it takes up to Config.BatchSize
// events in one call. See Transactional.
func Batch[E any](name string, handle func(ctx context.Context, tx pgx.Tx, events []E) error, options ...orchestrator.ProjectionOption) orchestrator.Projection[E] {
	if handle == nil {
		return orchestrator.Batch[E](name, nil, options...)
	}
	return orchestrator.Batch(name, func(ctx context.Context, tx orchestrator.Tx, events []E) error {
		return during(tx, func(tx pgx.Tx) error { return handle(ctx, tx, events) })
	}, options...)
}

// during makes one call of a handler, with the transaction that tx is.
func during(tx orchestrator.Tx, handle func(pgx.Tx) error) error {
	var failed error
	err := tx.Raw(func(driverConn any) error {
		c, ok := driverConn.(interface{ Conn() *pgx.Conn })
		if !ok {
			failed = fmt.Errorf("Config.DB has the driver of %T: a handler that takes a pgx.Tx needs DB of this package, or another database of pgx's driver", driverConn)
			return nil
		}
		call, err := newCall(c.Conn())
		if err != nil {
			return err
		}
		failed = call.end(guarded(call, handle))
		if errors.Is(failed, driver.ErrBadConn) {
			return failed
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// guarded calls the handler. A panic is its error: what is under way on the connection is
// known, so that need not be closed for it.
func guarded(c *call, handle func(pgx.Tx) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &orchestrator.PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return handle(&tx{Tx: c.within, call: c})
}
