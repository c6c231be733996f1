package store

import (
	"context"
	"errors"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// The program's own SQL, in a transaction of the library's. The library commits that transaction,
// so it must never go on in another one that the SQL has begun.

// ErrScriptEnds is returned if the program's own SQL has ended the transaction.
var ErrScriptEnds = errors.New("has ended its transaction (END, COMMIT, ROLLBACK, RESET ALL), so some of it may have happened: leave the end of the transaction to the library")

// The mark ends with the transaction for which it was set.
const (
	markScriptsSQL  = `SELECT pg_catalog.current_setting('role'::text) FROM pg_catalog.set_config('orchestrator.script'::text, 'on'::text, true)`
	scriptMarkedSQL = `SELECT coalesce(pg_catalog.current_setting('orchestrator.script'::text, true), ''::text) OPERATOR(pg_catalog.=) 'on'::text`
)

// RunScript runs SQL of the program's own, which may be several statements. The connection
// is closed afterwards, since the SQL may have changed settings of its session.
func RunScript(ctx context.Context, tx *dbconn.Tx, text string) error {
	tx.CloseAfter()
	var role string
	if err := tx.QueryRowContext(ctx, markScriptsSQL).Scan(&role); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, text); err != nil { // without arguments, drivers send it as it is
		return err
	}
	var marked bool
	switch err := tx.QueryRowContext(ctx, scriptMarkedSQL).Scan(&marked); {
	case err != nil:
		return err
	case !marked:
		return ErrScriptEnds
	}
	if _, err := tx.ExecContext(ctx, `SET CONSTRAINTS ALL IMMEDIATE`); err != nil { // or COMMIT would find what they forbid
		return err
	}
	// The SQL may SET ROLE: the owner of the read model may be another role than the operator's.
	_, err := tx.ExecContext(ctx, `SELECT pg_catalog.set_config('role'::text, `+sqltext.QuoteLiteral(role)+`, true)`)
	return err
}
