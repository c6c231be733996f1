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

// Transactional returns a projection whose handler writes with a pgx.Tx. It is
// orchestrator.Transactional for pgx: the writes through tx commit together with the
// checkpoint, so each event is applied exactly once. tx can do all that a pgx.Tx can:
// CopyFrom, SendBatch, nested transactions (Begin), large objects.
//
// The handler can't end the transaction. tx.Commit, tx.Rollback and statements that would end it
// are refused, and the handler fails even if it ignores the error. To roll back, return an
// error. If the handler commits through tx.Conn, that is noticed before the checkpoint moves.
// Close rows and batch results before the handler returns. Don't use tx after that.
//
// A panic in the source of CopyFrom is a failure of the handler, like any other. pgx encodes
// values on a goroutine of its own: a panic in the encoder of your own type ends the process.
//
// Config.DB must be the result of DB, or another database of pgx's database/sql driver.
func Transactional[E any](name string, handle func(ctx context.Context, tx pgx.Tx, event E) error, options ...orchestrator.ProjectionOption) orchestrator.Projection[E] {
	if handle == nil {
		return orchestrator.Transactional[E](name, nil, options...)
	}
	return orchestrator.Transactional(name, func(ctx context.Context, tx orchestrator.Tx, event E) error {
		return during(tx, func(tx pgx.Tx) error { return handle(ctx, tx, event) })
	}, options...)
}

// Batch returns a projection whose handler takes up to Config.BatchSize events in one call and
// writes with a pgx.Tx. It is orchestrator.Batch for pgx. See Transactional.
func Batch[E any](name string, handle func(ctx context.Context, tx pgx.Tx, events []E) error, options ...orchestrator.ProjectionOption) orchestrator.Projection[E] {
	if handle == nil {
		return orchestrator.Batch[E](name, nil, options...)
	}
	return orchestrator.Batch(name, func(ctx context.Context, tx orchestrator.Tx, events []E) error {
		return during(tx, func(tx pgx.Tx) error { return handle(ctx, tx, events) })
	}, options...)
}

// during calls a handler with the pgx.Tx of an open transaction.
func during(tx orchestrator.Tx, handle func(pgx.Tx) error) error {
	var failed error
	err := tx.Raw(func(driverConn any) error {
		c, ok := driverConn.(interface{ Conn() *pgx.Conn })
		if !ok {
			failed = fmt.Errorf("Config.DB has the driver of %T: a handler that takes a pgx.Tx needs orchestratorpgx.DB, or another database of pgx's driver", driverConn)
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

// guarded calls the handler and turns a panic into an error. The state of the connection is
// known then, so it need not be closed.
func guarded(c *call, handle func(pgx.Tx) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &orchestrator.PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return handle(&tx{Tx: c.within, call: c})
}
