package dbconn

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// A Load is the number of connections that one worker uses at the same time, in addition to one
// for coordination and reading.
type Load struct {
	Keeps    int // the smallest pool in which it keeps a connection for fast crash detection; 0: it keeps none
	Handlers int // number of transactions of handlers
	Notifier any // its orchestrator.Notifier; nil: none
}

// A Carrier is the driver of a pool (sql.DB.Driver) that knows how many workers the pool is
// large enough for. Only drivers of this repository can implement it, since its method has an
// internal type.
type Carrier interface {
	driver.Driver
	// Carry adds a worker to the pool's load until release is called. refused is why the
	// worker can't run on the pool, or "". err is an error of the database.
	Carry(ctx context.Context, l Load) (release func(), refused string, err error)
}

// Carry calls Carrier.Carry of the pool's driver. If the driver is not a Carrier, it refuses
// nothing.
func Carry(ctx context.Context, db *sql.DB, l Load) (release func(), refused string, err error) {
	if c, ok := db.Driver().(Carrier); ok {
		return c.Carry(ctx, l)
	}
	return func() {}, "", nil
}
