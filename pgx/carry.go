package orchestratorpgx

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"weak"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
)

// What a pool must have for a worker to run on it. Both are asked when Run begins, since
// both fail later in ways from which nobody could tell the cause: a pool that is too small
// has everybody wait for each other, and behind a pooler that shares connections between
// transactions statements are gone that were prepared a moment ago, and nobody hears what
// he listens to.

// Carry implements dbconn.Carrier.
func (d *poolDriver) Carry(ctx context.Context, l dbconn.Load) (release func(), refused string, err error) {
	pool := d.pool.Value()
	if pool == nil {
		return nil, "", errPoolGone
	}
	if release, refused = d.take(&l); refused != "" {
		return nil, refused, nil
	}
	if refused, err = behindPooler(ctx, pool, listensOn(l.Notifier, d.pool)); refused != "" || err != nil {
		release()
		return nil, refused, err
	}
	return release, "", nil
}

// take has the pool carry a worker, if it is large enough.
func (d *poolDriver) take(l *dbconn.Load) (release func(), refused string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	workers := append(slices.Clip(d.workers), l)
	needs, why := needed(workers, d.pool)
	if needs > int(d.max) {
		return nil, fmt.Sprintf("is a pool whose MaxConns is %d, and %d connections are needed at the same time (%s): set pgxpool.Config.MaxConns to %d at least, or pool_max_conns in the connection string, and add what handlers and the rest of the program take",
			d.max, needs, why, needs)
	}
	d.workers = workers
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.workers = slices.DeleteFunc(slices.Clone(d.workers), func(o *dbconn.Load) bool { return o == l })
	}, ""
}

// needed returns how many connections workers have at the same time, and what for.
func needed(workers []*dbconn.Load, pool weak.Pointer[pgxpool.Pool]) (n int, why string) {
	var kept, handlers, listens int
	for _, l := range workers {
		handlers += l.Handlers
		if l.Keeps {
			kept++
		}
		if listensOn(l.Notifier, pool) {
			listens = 1 // all share it
		}
	}
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{kept, "by which others see that this worker is there, unless LeaseOnly is set"},
		{listens, "to LISTEN on, unless Notifier is nil"},
		{len(workers), "to coordinate and read"},
		{handlers, "for a transaction of each projection on each partition"},
	} {
		if n += p.n; p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return n, strings.Join(parts, ", ")
}

// listensOn reports whether a notifier takes its connection from the pool.
func listensOn(notifier any, pool weak.Pointer[pgxpool.Pool]) bool {
	n, ok := notifier.(Notifier)
	return ok && weak.Make(n.pool) == pool
}

// behindPooler says what does not work on the pool because what it leads to is a pooler
// that hands out its connections by transaction. A server tells a client the process id of
// its backend, and a pooler one of its own; so between the two there is one, of whatever
// kind. It shares its connections by transaction if one backend is met in two sessions, or
// two in one: that is tried.
func behindPooler(ctx context.Context, pool *pgxpool.Pool, listens bool) (refused string, err error) {
	first, err := pool.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer first.Release()
	if pid, err := backend(ctx, first.Conn()); err != nil || pid == first.Conn().PgConn().PID() {
		return "", err
	}
	second, err := pool.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer second.Release()
	const pooler = "is a pool that leads to a pooler which hands out its connections by transaction (see docs/production.md): "
	for range sharingTries {
		switch shared, forgets, err := sharing(ctx, first.Conn(), second.Conn()); {
		case err != nil:
			return "", err
		case forgets:
			return pooler + "what is prepared there is lost; set default_query_exec_mode=exec in the connection string", nil
		case shared && listens:
			return pooler + "nobody hears notifications there; set Config.Notifier to nil, or to one of NewNotifier for a pool that leads to the server itself", nil
		case shared:
			return "", nil
		}
	}
	return "", nil
}

// sharingTries is how often two sessions are tried. A pooler may give one the same backend
// by accident.
const sharingTries = 3

// sharing reports whether two sessions share their backends with others, and whether
// what one prepares is lost by that. While the first is idle the second has a transaction:
// either that is on the backend of the first, or the first gets it back, or another.
func sharing(ctx context.Context, first, second *pgx.Conn) (shared, forgets bool, err error) {
	mode := first.Config().DefaultQueryExecMode
	prepared := "orchestrator_" + strings.ToLower(rand.Text())
	if mode == pgx.QueryExecModeCacheStatement {
		if _, err := first.PgConn().Prepare(ctx, prepared, `SELECT 1`, nil); err != nil {
			return false, false, err
		}
		defer func() { _ = first.PgConn().Deallocate(ctx, prepared) }() // an error says that it is not there
	}
	before, err := backend(ctx, first)
	if err != nil {
		return false, false, err
	}
	if err := second.PgConn().Exec(ctx, `BEGIN`).Close(); err != nil {
		return false, false, err
	}
	defer func() { _ = second.PgConn().Exec(ctx, `ROLLBACK`).Close() }() // one that fails ends with its connection
	other, err := backend(ctx, second)
	if err != nil {
		return false, false, err
	}
	after, err := backend(ctx, first)
	if err != nil {
		return false, false, err
	}
	shared = before != after || before == other
	switch {
	case !shared:
	case mode == pgx.QueryExecModeDescribeExec:
		forgets = true
	case mode == pgx.QueryExecModeCacheStatement:
		var answer *pgconn.PgError
		err := first.PgConn().ExecPrepared(ctx, prepared, nil, nil, nil).Read().Err
		forgets = errors.As(err, &answer) && answer.Code == "26000"
	}
	return shared, forgets, nil
}

// backend returns the process id of the backend that a session has at the moment.
func backend(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	results, err := conn.PgConn().Exec(ctx, `SELECT pg_catalog.pg_backend_pid()`).ReadAll()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	return uint32(n), err
}
