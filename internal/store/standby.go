package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Connections of a pool that lead to a server which takes no writes, after a failover.

// CantWrite reports whether an error means that a server takes no writes: it is a
// standby (25006; 0A000 at BEGIN, 55000 "recovery is in progress"), or set to be
// read-only.
//
// Call it for this library's own statements only: others may fail with
// 0A000 and 55000 for many reasons.
func CantWrite(err error) bool {
	switch State(err) {
	case "25006", "0A000", "55000":
		return true
	}
	return false
}

// dropping are the pools whose idle connections are being checked.
var dropping sync.Map

// dropMax is how long the check of a pool may take.
const dropMax = 2 * time.Second

var standbySQL = sqltext.New(`
SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' OR CURRENT_USER <> SESSION_USER`)

// DropStandbys closes those of the pool's idle connections that lead to a server which
// takes no writes, and returns how many. A name or a proxy may lead to another server by now,
// but a pool keeps handing out the connections that it has, also the one of the failed
// statement. Connections that are in use are found when they fail.
//
// It also closes connections whose role is not the one that has logged in: a SET ROLE was
// left behind. If the connection string sets the role, that only costs new connections.
func DropStandbys(ctx context.Context, db *sql.DB) (dropped int) {
	if _, busy := dropping.LoadOrStore(db, true); busy {
		return 0
	}
	defer dropping.Delete(db)
	ctx, cancel := context.WithTimeout(ctx, dropMax)
	defer cancel()
	query, _ := sqltext.Names{Literals: true}.Bind(standbySQL, nil)
	for range db.Stats().Idle {
		c, err := dbconn.Take(ctx, db)
		if err != nil {
			return dropped
		}
		defer c.Close() // kept until then, so that the pool hands out another one
		var standby bool
		err = c.During(ctx, func() error { return c.QueryRowContext(ctx, query).Scan(&standby) })
		if err != nil || standby {
			_ = c.Raw(func(any) error { return driver.ErrBadConn }) // which is all that it returns
			dropped++
		}
	}
	return dropped
}
