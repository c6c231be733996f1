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

// Run checks two things about the pool when it begins, because they would fail later with
// errors that do not show the cause. In a pool that is too small, all users wait for each
// other. Behind a pooler in transaction mode, prepared statements disappear and notifications
// do not arrive.

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

// take adds a worker to those on the pool, or returns why the pool is too small.
func (d *poolDriver) take(l *dbconn.Load) (release func(), refused string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	workers := append(slices.Clip(d.workers), l)
	needs, why := needed(workers, d.pool)
	if needs > int(d.max) {
		return nil, fmt.Sprintf("is a pool whose MaxConns is %d, and %d connections are needed at the same time (%s): set pgxpool.Config.MaxConns, or pool_max_conns in the connection string, to at least %d plus what handlers and the rest of the program need",
			d.max, needs, why, needs)
	}
	d.workers = workers
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.workers = slices.DeleteFunc(slices.Clone(d.workers), func(o *dbconn.Load) bool { return o == l })
	}, ""
}

// needed returns how many connections workers use at the same time, and what for.
func needed(workers []*dbconn.Load, pool weak.Pointer[pgxpool.Pool]) (n int, why string) {
	var kept, least, handlers, listens int
	for _, l := range workers {
		handlers += l.Handlers
		if l.Keeps > 0 {
			kept++
			least += l.Keeps
		}
		if listensOn(l.Notifier, pool) {
			listens = 1 // shared by all workers
		}
	}
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{kept, "so that other workers notice a crash at once, unless LeaseOnly is set"},
		{listens, "to LISTEN on, unless Notifier is nil"},
		{len(workers), "to coordinate and read"},
		{handlers, "for a transaction of each projection on each partition"},
	} {
		if n += p.n; p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if n < least {
		return least, fmt.Sprintf("for %d workers whose crash others notice at once, unless LeaseOnly is set", kept)
	}
	return n, strings.Join(parts, ", ")
}

// listensOn reports whether a notifier takes its connection from the pool.
func listensOn(notifier any, pool weak.Pointer[pgxpool.Pool]) bool {
	n, ok := notifier.(Notifier)
	return ok && weak.Make(n.pool) == pool
}

// behindPooler returns which setting can't work because the pool leads to a pooler in
// transaction mode, or "". A server reports the process id of its backend when a client
// connects, a pooler reports another number: so if it differs from pg_backend_pid(), there is a
// pooler. It is in transaction mode if one backend serves two sessions, or two backends serve
// one. That is tried out.
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
	const pooler = "is a pool that leads to a pooler in transaction mode (see docs/pgbouncer.md): "
	switch shared, forgets, err := sharing(ctx, first.Conn(), second.Conn()); {
	case err != nil:
		return "", err
	case forgets:
		return pooler + "prepared statements are lost there; set default_query_exec_mode=exec in the connection string", nil
	case shared && listens:
		return pooler + "notifications don't arrive there; set Config.Notifier to nil, or to NewNotifier of a pool that leads to the server itself", nil
	}
	return "", nil
}

// sharing reports whether two sessions share their backends with others, and whether a session
// loses its prepared statements by that.
func sharing(ctx context.Context, first, second *pgx.Conn) (shared, forgets bool, err error) {
	// Poolers hand out idle backends in turn, or the latest first. The second session asks
	// more often. So it gets a new backend, or that of the first session.
	of := [2]uint32{}
	for _, who := range []int{0, 1, 1, 0, 1, 1, 1, 0, 1} {
		pid, err := backend(ctx, []*pgx.Conn{first, second}[who])
		if err != nil {
			return false, false, err
		}
		shared = shared || of[who] != 0 && of[who] != pid || of[1-who] == pid
		of[who] = pid
	}
	if !shared {
		return false, false, nil
	}
	switch first.Config().DefaultQueryExecMode {
	case pgx.QueryExecModeDescribeExec: // with an unnamed statement, which no pooler tracks
		return true, true, nil
	case pgx.QueryExecModeCacheStatement:
		forgets, err = forgetting(ctx, first, second)
	}
	return true, forgets, err
}

// forgetting reports whether a statement that the first session has prepared is missing when the
// session gets another backend. Some poolers prepare it there again.
func forgetting(ctx context.Context, first, second *pgx.Conn) (forgets bool, err error) {
	name := "orchestrator_" + strings.ToLower(rand.Text())
	if _, err := first.PgConn().Prepare(ctx, name, askBackend, nil); err != nil {
		return false, err
	}
	defer func() { _ = first.PgConn().Deallocate(ctx, name) }() // an error means that it is not there
	for range forgettingTries {
		// The second session takes the first session's backend now, or another one is handed
		// out in between.
		for _, statement := range []string{askBackend, `BEGIN`} {
			if err := second.PgConn().Exec(ctx, statement).Close(); err != nil {
				return false, err
			}
		}
		err := first.PgConn().ExecPrepared(ctx, name, nil, nil, nil).Read().Err
		if end := second.PgConn().Exec(ctx, `ROLLBACK`).Close(); end != nil {
			return false, end
		}
		var answer *pgconn.PgError
		switch {
		case errors.As(err, &answer) && answer.Code == "26000":
			return true, nil
		case err != nil:
			return false, err
		}
	}
	return false, nil
}

const (
	askBackend      = `SELECT pg_catalog.pg_backend_pid()`
	forgettingTries = 5
)

// backend returns the process id of a session's present backend.
func backend(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	results, err := conn.PgConn().Exec(ctx, askBackend).ReadAll()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	return uint32(n), err
}
