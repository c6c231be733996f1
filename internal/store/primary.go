package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

var writableSQL = sqltext.New(`SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'`)

// ErrReadOnly is returned if a connection leads to a standby, or to a server that is
// read-only.
var ErrReadOnly = errors.New("the connection leads to a standby or to a read-only server")

// Writable returns ErrReadOnly if a connection leads to a server that takes no writes.
// Such a server has locks of its own: it does not show those of the primary, nor does the
// primary show those of the standby.
func Writable(ctx context.Context, conn *sql.Conn) error {
	var writable bool
	query, _ := sqltext.Names{Literals: true}.Bind(writableSQL, nil)
	if err := conn.QueryRowContext(ctx, query).Scan(&writable); err != nil {
		return fmt.Errorf("check whether the server takes writes: %w", err)
	}
	if !writable {
		return ErrReadOnly
	}
	return nil
}
