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

// The library coordinates through database/sql. DB makes a sql.DB of the pool that keeps no
// connection for itself. Its driver also reads events natively (rows.go) and checks whether the
// pool is large enough for a worker (carry.go).

// DB returns a *sql.DB that uses the connections of the pool, for orchestrator.Config.DB,
// orchestrator.Migrate and package ops. Connections go back to the pool after each use. DB
// always returns the same value for a pool, and nil for nil. The *sql.DB has the pool's limit
// and ends with the pool: don't close it, and don't change its limits.
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
	db.SetMaxIdleConns(0) // idle connections stay in the pool, for all its users
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

// databases maps pools to their databases. A pool keeps itself alive with its own goroutine until
// it is closed. After that, only its users keep it alive.
var databases = struct {
	sync.Mutex
	of map[weak.Pointer[pgxpool.Pool]]*sql.DB
}{of: map[weak.Pointer[pgxpool.Pool]]*sql.DB{}}

// A poolDriver is the driver and connector of a pool's sql.DB.
type poolDriver struct {
	pool    weak.Pointer[pgxpool.Pool]
	max     int32 // number of connections
	mu      sync.Mutex
	workers []*dbconn.Load // workers that run on the pool
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

// acquire takes a connection without database/sql.
func (d *poolDriver) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	pool := d.pool.Value()
	if pool == nil {
		return nil, errPoolGone
	}
	conn, err := pool.Acquire(ctx)
	return conn, d.unavailable(ctx, pool, err)
}

// unavailable adds to an error that the pool has no free connection, if that is the reason.
// database/sql knows only its own connections.
func (d *poolDriver) unavailable(ctx context.Context, pool *pgxpool.Pool, err error) error {
	if err == nil || ctx.Err() == nil || pool.Stat().AcquiredConns() < d.max {
		return err
	}
	return fmt.Errorf("the pool has no free connection: all %d are in use (see pgxpool.Config.MaxConns): %w", d.max, err)
}

// Driver implements driver.Connector.
func (d *poolDriver) Driver() driver.Driver { return d }

// Open implements driver.Driver. database/sql does not call it here.
func (d *poolDriver) Open(name string) (driver.Conn, error) {
	return stdlib.GetDefaultDriver().Open(name)
}
