package orchestratorpgx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// The library coordinates by database/sql, over the connections of the pool: a sql.DB is
// made of it that keeps none for itself. What its driver can do beside: read events
// natively (rows.go), and say whether the pool can carry a worker (carry.go).

// DB returns the pool as a *sql.DB, for orchestrator.Config.DB, orchestrator.Migrate,
// package ops, and all else of the library that takes one: its connections are the pool's,
// and go back to it after each use. Of a pool it is always the same. It has the pool's
// limit, and ends with the pool: do not close it, nor change its limits.
//
// An orchestrator.Table over it reads natively, as one of NewTable does.
func DB(pool *pgxpool.Pool) *sql.DB {
	if pool == nil {
		return nil
	}
	databases.Lock()
	defer databases.Unlock()
	key := weak.Make(pool)
	if db := databases.of[key]; db != nil {
		return db
	}
	d := &poolDriver{pool: key, max: pool.Config().MaxConns}
	db := sql.OpenDB(d)
	db.SetMaxIdleConns(0) // what is idle is so in the pool, for everybody
	db.SetMaxOpenConns(int(d.max))
	databases.of[key] = db
	runtime.AddCleanup(pool, func(key weak.Pointer[pgxpool.Pool]) {
		databases.Lock()
		defer databases.Unlock()
		_ = databases.of[key].Close()
		delete(databases.of, key)
	}, key)
	return db
}

// databases are those of the pools. A pool is kept by a goroutine of its own, until it is
// closed; and from then on by whoever still has it.
var databases = struct {
	sync.Mutex
	of map[weak.Pointer[pgxpool.Pool]]*sql.DB
}{of: map[weak.Pointer[pgxpool.Pool]]*sql.DB{}}

// A poolDriver is the driver of a pool's sql.DB, and opens its connections.
type poolDriver struct {
	pool    weak.Pointer[pgxpool.Pool]
	max     int32 // connections
	mu      sync.Mutex
	workers []*dbconn.Load // that the pool carries
}

var (
	_ driver.Connector  = (*poolDriver)(nil)
	_ eventtable.Source = (*poolDriver)(nil)
	_ dbconn.Carrier    = (*poolDriver)(nil)
)

var errPoolGone = errors.New("the pgxpool.Pool is closed")

// Connect implements driver.Connector. The connection is a *stdlib.Conn.
func (d *poolDriver) Connect(ctx context.Context) (driver.Conn, error) {
	pool := d.pool.Value()
	if pool == nil {
		return nil, errPoolGone
	}
	conn, err := stdlib.GetPoolConnector(pool).Connect(ctx)
	return conn, d.unavailable(ctx, pool, err)
}

// acquire takes a connection past database/sql.
func (d *poolDriver) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	pool := d.pool.Value()
	if pool == nil {
		return nil, errPoolGone
	}
	conn, err := pool.Acquire(ctx)
	return conn, d.unavailable(ctx, pool, err)
}

// unavailable says why there was no connection, where the pool itself is the reason: what
// database/sql knows of it is only its own part.
func (d *poolDriver) unavailable(ctx context.Context, pool *pgxpool.Pool, err error) error {
	if err == nil || ctx.Err() == nil || pool.Stat().AcquiredConns() < d.max {
		return err
	}
	return fmt.Errorf("the pool has no free connection: all %d are in use (see pgxpool.Config.MaxConns): %w", d.max, err)
}

// Driver implements driver.Connector.
func (d *poolDriver) Driver() driver.Driver { return d }

// Open implements driver.Driver, for which database/sql has no use here.
func (d *poolDriver) Open(name string) (driver.Conn, error) {
	return stdlib.GetDefaultDriver().Open(name)
}
