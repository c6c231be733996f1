package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// longLease is so long that a test which waits for its end fails.
func (w *world) longLease() orchestrator.Config[orchestrator.Event] {
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout, cfg.CoordinationTimeout = time.Hour, time.Hour
	return cfg
}

// own is the backend of a session that holds the lock of a worker, 0 if there
// is none; not is one that is passed over.
func (w *world) own(not int64) int64 {
	w.T.Helper()
	return w.Number(`
SELECT coalesce(min(l.pid), 0) FROM pg_locks l
  JOIN orchestrator_workers w ON l.classid = w.presence_key::oid AND l.objid = w.presence_number::oid
 WHERE l.locktype = 'advisory' AND l.granted AND l.pid <> $1`, not)
}

// held counts the workers whose sessions are there.
const held = `
SELECT count(*) FROM orchestrator_workers w JOIN pg_locks l ON l.classid = w.presence_key::oid AND l.objid = w.presence_number::oid
 WHERE l.locktype = 'advisory' AND l.granted`

// A process that is killed is missed at once, long before its lease is over.
func TestACrashIsNoticedAtOnce(t *testing.T) {
	w := newWorld(t)
	w.Append(300)
	c := startChild(w, "hang in the middle of a batch, with a long lease")
	c.says("hanging")
	testworld.Run(t, w.longLease(), testworld.Effects{Projection: "transactional"}.Transactional())
	pgtest.Eventually(t, "both are there", func() bool {
		return w.Proving() == 2
	})
	c.signal(syscall.SIGKILL)
	<-c.done
	w.Active("set", 1)
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}

// A worker that leaves gives its session back, without the lock: others that share the
// pool go on with it. Unless it was just being asked something: then the session ends.
func TestDedicatedConnectionIsGivenBack(t *testing.T) {
	w := newWorld(t)
	pgtest.Eventually(t, "a session that was given back is still there", func() bool {
		m := testworld.Run(t, w.longLease(), testworld.Effects{Projection: "transactional"}.Transactional())
		var pid int64
		pgtest.Eventually(t, "the worker has a session of its own", func() bool { pid = w.own(0); return pid != 0 })
		m.Stop()
		pgtest.Eventually(t, "it has no lock", func() bool {
			return w.Number(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1`, pid) == 0
		})
		pgtest.Eventually(t, "the pool has all sessions", func() bool { return w.DB.Stats().InUse == 0 })
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid) == 1
	})
}

// A worker that leaves while its connections are silent leaves none of them in use.
func TestDedicatedConnectionFallsSilent(t *testing.T) {
	w := newWorld(t)
	link := newLink(t, w.URL)
	db, _ := testworld.Faulty(t, link.url)
	cfg := w.Config(db, "set")
	cfg.StaleWorkerTimeout = 6 * time.Second
	m := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	pgtest.Eventually(t, "the worker has a session of its own", func() bool { return w.own(0) != 0 })
	link.silence()
	m.Stop()
	pgtest.Eventually(t, "no connection is in use", func() bool { return db.Stats().InUse == 0 })
}

// A worker whose own session is ended, by an administrator say, takes another,
// and nobody else notices.
func TestDedicatedConnectionIsReplaced(t *testing.T) {
	w := newWorld(t)
	h := &testworld.History{}
	for range 2 {
		testworld.Run(t, w.longLease(), testworld.Effects{Projection: "transactional", Log: h}.Transactional())
	}
	generation := w.Active("set", 2)
	var last int64
	for range 5 {
		w.Append(50)
		w.CaughtUp("transactional") // handlers run, so that a worker knows soon
		var pid int64
		pgtest.Eventually(t, "a worker has a session of its own", func() bool { pid = w.own(last); return pid != 0 })
		w.Exec(`SELECT pg_terminate_backend($1)`, pid)
		last = pid
		w.Append(50)
		w.CaughtUp("transactional")
	}
	h.Check(t)
	w.CheckEffects("transactional")
	if n := w.Active("set", 2); n > generation+5 {
		t.Errorf("generation %d has become %d", generation, n)
	}
}

// A worker that has lost its session and can't take another cancels what runs
// and begins nothing, though its lease goes on; the others take over; and it
// comes back. The handler has not failed.
func TestAHandlerIsSuspended(t *testing.T) {
	w := newWorld(t)
	link := newLink(t, w.URL)
	db, _ := testworld.Faulty(t, link.url)
	cfg := w.longLease()
	cfg.DB, cfg.OnFailure = db, orchestrator.StopOnFailure
	var failed atomic.Int64
	var reported atomic.Value // an interruption
	cfg.Observer = &orchestrator.Observer{
		HandlerFailed: func(orchestrator.HandlerFailed) { failed.Add(1) },
		Reported: func(r orchestrator.WorkerReport) {
			for _, l := range r.Lanes {
				if l.Interruption != "" {
					reported.Store(l)
				}
			}
		},
	}
	log := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	w.Append(100)
	var cause atomic.Value
	in := make(chan struct{}, 1)
	var waits atomic.Bool
	waits.Store(true)
	testworld.Run(t, cfg, testworld.Effects{Projection: "plain", Hook: func(ctx context.Context, _ orchestrator.Event) error {
		if !waits.Load() {
			return nil
		}
		select {
		case in <- struct{}{}:
		default:
		}
		<-ctx.Done()
		if errors.Is(context.Cause(ctx), orchestrator.ErrSuspended) {
			cause.Store(context.Cause(ctx))
		}
		return ctx.Err()
	}}.Plain(w.DB))
	<-in
	pgtest.Eventually(t, "it is there", func() bool { return w.own(0) != 0 })
	pid := w.own(0)
	link.silence()
	w.Exec(`SELECT pg_terminate_backend($1)`, pid)
	pgtest.Eventually(t, "the handler was cancelled, and the worker reports why", func() bool { return cause.Load() != nil && reported.Load() != nil })
	if l := reported.Load().(orchestrator.LaneReport); l.Interruption != orchestrator.ErrSuspended.Error() || l.Attempts != 0 || l.Error != "" {
		t.Errorf("it reports %+v", l)
	}
	waits.Store(false)
	w.CaughtUp("plain")
	log.Wait(t, "handler interrupted, will be called again")
	if n := failed.Load(); n != 0 {
		t.Errorf("the observer was told of %d failures", n)
	}
}

// A worker that gives up its handlers during a call on its dedicated connection, or while it
// opens one, keeps the connection: the handlers may still run, and others wait for them until
// the lease is over.
func TestDedicatedConnectionIsKeptWhenHandlersAreGivenUp(t *testing.T) {
	for _, test := range []struct{ amid, query string }{
		{"a proof", "pg_backend_pid() AND classid"},
		{"an attach", "SET presence_key"},
	} {
		t.Run(test.amid, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(10)
			db, f := testworld.Faulty(t, w.URL)
			cfg := w.longLease()
			cfg.DB, cfg.CoordinationTimeout = db, 600*time.Millisecond
			answer := make(chan struct{})
			var holdBack atomic.Bool
			f.OnQuery(func(query string) {
				if holdBack.Load() && strings.Contains(query, test.query) {
					<-answer
				}
			})
			in, leave := make(chan struct{}), make(chan struct{})
			t.Cleanup(func() { close(leave) })
			var once sync.Once
			a := testworld.Run(t, cfg, testworld.Effects{Projection: "plain", Hook: func(context.Context, orchestrator.Event) error {
				once.Do(func() { close(in) })
				<-leave
				return nil
			}}.Plain(w.DB))
			<-in
			pgtest.Eventually(t, "it has a session of its own", func() bool { return w.own(0) != 0 })
			pid := w.own(0)
			other := w.longLease()
			db, f = testworld.Faulty(t, w.URL)
			other.DB = db
			var looks atomic.Int64
			f.OnQuery(func(query string) {
				if strings.Contains(query, "jsonb_agg") {
					looks.Add(1)
				}
			})
			testworld.Run(t, other, testworld.Effects{Projection: "plain"}.Plain(w.DB))
			pgtest.Eventually(t, "another has joined", func() bool { return w.Members() == 2 })
			holdBack.Store(true)
			if test.amid == "an attach" {
				w.Exec(`SELECT pg_terminate_backend($1)`, pid)
			}
			if err := a.Failed(); !errors.Is(err, orchestrator.ErrCoordinationTimeout) {
				t.Fatalf("Run returned %v", err)
			}
			close(answer)
			since := looks.Load()
			pgtest.Eventually(t, "the other has looked", func() bool { return looks.Load() > since+2 })
			if n := w.Proving(); n != 2 {
				t.Errorf("%d workers have a session of their own, want 2", n)
			}
			if n := w.Number(held); n != 2 {
				t.Errorf("the sessions of %d workers are there, want 2", n)
			}
		})
	}
}

// Lanes that wait for a proof do not take the connection that is needed for it:
//
//  1. handlers run, and more lanes than the pool has connections wait for one
//  2. the dedicated connection is ended, and the handlers are suspended
//  3. another dedicated connection is opened before any handler runs again
func TestDedicatedConnectionIsReplacedInASmallPool(t *testing.T) {
	w := newWorld(t)
	cfg := w.longLease()
	cfg.DB = w.Connect()
	cfg.DB.SetMaxOpenConns(5)
	var projections []orchestrator.Projection[orchestrator.Event]
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	var gate atomic.Value // a channel: handlers wait until it is closed
	running := make(chan struct{}, 1)
	for _, name := range names {
		projections = append(projections, testworld.Effects{Projection: name, Hook: func(ctx context.Context, _ orchestrator.Event) error {
			select {
			case running <- struct{}{}:
			default:
			}
			select {
			case <-gate.Load().(chan struct{}):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}.Transactional())
	}
	gate.Store(make(chan struct{}))
	testworld.Run(t, cfg, projections...)
	var pid int64
	for range 3 { // a fifth suspension would have it go by its lease
		pgtest.Eventually(t, "it has a session of its own", func() bool { pid = w.own(pid); return pid != 0 })
		w.Append(200)
		<-running
		w.Exec(`SELECT pg_terminate_backend($1)`, pid)
		pgtest.Eventually(t, "it has another", func() bool { return w.own(pid) != 0 })
		close(gate.Load().(chan struct{}))
		for _, name := range names {
			w.CaughtUp(name)
		}
		gate.Store(make(chan struct{}))
		select {
		case <-running:
		default:
		}
	}
}

// A pool that has no connection to spare, and whoever wants it so, go by leases.
func TestLeaseOnly(t *testing.T) {
	for _, test := range []struct {
		why    string
		change func(*orchestrator.Config[orchestrator.Event])
	}{
		{"it is set", func(c *orchestrator.Config[orchestrator.Event]) { c.LeaseOnly = true }},
		{"a small pool", func(c *orchestrator.Config[orchestrator.Event]) { c.DB.SetMaxOpenConns(3) }},
		{"a short lease", func(c *orchestrator.Config[orchestrator.Event]) { c.StaleWorkerTimeout = 3 * time.Second }},
	} {
		t.Run(test.why, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.longLease()
			cfg.DB = w.Connect()
			test.change(&cfg)
			w.Append(100)
			r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
			w.CaughtUp("transactional")
			if n := w.Number(`SELECT sum(presence_number) FROM orchestrator_workers`); n != 0 {
				t.Errorf("a presence was published")
			}
			r.Stop()
			w.CheckEffects("transactional")
		})
	}
}

// Workers that share a pool don't take all of its connections for their own sessions,
// which none gives back: one for each four is spared.
func TestWorkersShareAPool(t *testing.T) {
	w := newWorld(t)
	db, err := sql.Open("postgres", w.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(4)
	w.Append(100)
	for i := range 6 {
		cfg := w.longLease()
		cfg.ReplicaSet = orchestrator.ReplicaSetName(fmt.Sprint("set", i))
		cfg.DB = db
		if cfg.EventStore, err = orchestrator.NewEventTable(db, ""); err != nil {
			t.Fatal(err)
		}
		testworld.Run(t, cfg, testworld.Effects{Projection: fmt.Sprint("p", i)}.Transactional())
	}
	for i := range 6 {
		w.CaughtUp(fmt.Sprint("p", i))
	}
	pgtest.Eventually(t, "one of them has a session of its own", func() bool { return w.Number(held) == 1 })
}

// A worker whose dedicated connection opens, but can't check whether other workers are alive,
// runs as with LeaseOnly and logs why: here its role may not try locks.
func TestDedicatedConnectionThatCannotCheckOthers(t *testing.T) {
	w := newWorld(t)
	r := role(t, w.DB, w.URL)
	w.Exec(`GRANT ALL ON ALL TABLES IN SCHEMA public TO ` + r)
	w.Exec(`GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO ` + r)
	w.Exec(`REVOKE ALL ON FUNCTION pg_try_advisory_xact_lock(integer, integer) FROM PUBLIC`)
	log := &testworld.Log{To: t.Output()}
	cfg := w.longLease()
	cfg.DB = reopen(t, w.URL, "role", r)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	w.Append(10)
	w.CaughtUp("transactional")
	log.Wait(t, "crash detection is off")
}
