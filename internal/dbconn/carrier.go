package dbconn

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// A Load is what one worker needs of a pool: connections that it has all at the same time,
// beside one that coordination and reading take turns on.
type Load struct {
	Keeps    int // it keeps one, which shows that it is there, of a pool of so many; 0: none
	Handlers int // transactions of handlers
	Notifier any // what it hears hints by; nil: nothing
}

// A Carrier is the driver.Driver of a pool (sql.DB.Driver) that knows what it can carry.
// No Driver but one of this repository's can be one, since its method names an internal
// type.
type Carrier interface {
	driver.Driver
	// Carry returns what keeps a worker from running on the pool. Until release is called
	// the pool carries it, and can carry others only beside it. An error that Passing
	// knows is of the database.
	Carry(ctx context.Context, l Load) (release func(), refused string, err error)
}

// Carry has a pool carry a worker. refused says why it can't; a pool that is no Carrier
// takes what comes.
func Carry(ctx context.Context, db *sql.DB, l Load) (release func(), refused string, err error) {
	if c, ok := db.Driver().(Carrier); ok {
		return c.Carry(ctx, l)
	}
	return func() {}, "", nil
}
