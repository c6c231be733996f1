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
	var kept, least, handlers, listens int
	for _, l := range workers {
		handlers += l.Handlers
		if l.Keeps > 0 {
			kept++
			least += l.Keeps
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
	if n < least {
		return least, fmt.Sprintf("for %d of which others see at once when they crash, unless LeaseOnly is set", kept)
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
	const pooler = "is a pool that leads to a pooler which hands out its connections by transaction (see docs/pgbouncer.md): "
	switch shared, forgets, err := sharing(ctx, first.Conn(), second.Conn()); {
	case err != nil:
		return "", err
	case forgets:
		return pooler + "what is prepared there is lost; set default_query_exec_mode=exec in the connection string", nil
	case shared && listens:
		return pooler + "nobody hears notifications there; set Config.Notifier to nil, or to one of NewNotifier for a pool that leads to the server itself", nil
	}
	return "", nil
}

// sharing reports whether two sessions share their backends with others, and whether what
// one prepares is lost by that.
func sharing(ctx context.Context, first, second *pgx.Conn) (shared, forgets bool, err error) {
	// Idle backends are handed out in turn, or the latest first. So the second session,
	// which asks more often, gets another one than before, or that of the first.
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
	case pgx.QueryExecModeDescribeExec: // by a statement without a name, of which no pooler keeps track
		return true, true, nil
	case pgx.QueryExecModeCacheStatement:
		forgets, err = forgetting(ctx, first, second)
	}
	return true, forgets, err
}

// forgetting reports whether what the first session prepares is not there when it gets
// another backend. Some poolers see to it that it is.
func forgetting(ctx context.Context, first, second *pgx.Conn) (forgets bool, err error) {
	name := "orchestrator_" + strings.ToLower(rand.Text())
	if _, err := first.PgConn().Prepare(ctx, name, askBackend, nil); err != nil {
		return false, err
	}
	defer func() { _ = first.PgConn().Deallocate(ctx, name) }() // an error says that it is not there
	for range forgettingTries {
		// The backend that the first session has had is taken now, or another was handed out
		// in between.
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

// backend returns the process id of the backend that a session has at the moment.
func backend(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	results, err := conn.PgConn().Exec(ctx, askBackend).ReadAll()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	return uint32(n), err
}
