package orchestrator

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// The worker's dedicated connection, for fast crash detection. It holds an advisory lock
// that shows other workers that this one is alive, and when it ends they notice at once.
// protocol.Session decides when the worker must use it to prove that it is alive, and what
// follows if it can't: presence.go there has the argument.

// presence is the dedicated connection. It is used for one call at a time.
type presence struct {
	conn *dbconn.Conn // nil: there is none
	own  store.Attachment
	// ctx is the context of the calls on the connection, and ends with it. It is not that
	// of a single call: a driver may close a connection whose call is cancelled, and a
	// worker that gives up its handlers during a call keeps the connection.
	ctx  context.Context
	stop context.CancelFunc
}

const (
	// presencePatience is how long to wait for an answer on the connection.
	presencePatience = time.Second
	// presencePool is how many connections a pool must have for each dedicated one.
	presencePool = 4
)

// spared counts the dedicated connections of each pool of the process: workers may share a
// pool, and none of them returns its connection before it ends.
var spared = struct {
	sync.Mutex
	of map[*sql.DB]int
}{of: map[*sql.DB]int{}}

// spare reserves a dedicated connection of a pool until release is called; ok is false if the
// pool is too small.
func spare(db *sql.DB) (release func(), ok bool) {
	spared.Lock()
	defer spared.Unlock()
	if n := db.Stats().MaxOpenConnections; n > 0 && n < presencePool*(spared.of[db]+1) {
		return func() {}, false
	}
	spared.of[db]++
	return sync.OnceFunc(func() {
		spared.Lock()
		defer spared.Unlock()
		if spared.of[db]--; spared.of[db] == 0 {
			delete(spared.of, db)
		}
	}), true
}

// present turns fast crash detection on, if the configuration and the pool allow it.
func (w *worker[E]) present() {
	w.unspare = func() {}
	if w.cfg.LeaseOnly {
		return
	}
	release, ok := spare(w.cfg.DB)
	if !ok {
		w.noPresence("the pool has no connection to spare; allow %d for each worker that shares it (db.SetMaxOpenConns), or set Config.LeaseOnly", presencePool)
		return
	}
	w.unspare = release
	w.session.Present()
}

// attach opens the dedicated connection. If the worker gives up its handlers meanwhile, the
// connection is kept, as one that it had already.
func (w *worker[E]) attach(a protocol.Attach) {
	w.presence.drop()
	sent := time.Now()
	ctx, stop := context.WithCancel(context.Background())
	p, err := bounded(w.life, presencePatience, func(context.Context) (presence, error) {
		p := presence{ctx: ctx, stop: stop}
		var err error
		if p.conn, err = dbconn.Take(ctx, w.cfg.DB); err != nil {
			return p, err
		}
		err = p.conn.During(ctx, func() (err error) {
			if err = store.Writable(ctx, p.conn.Conn); err != nil {
				return err
			}
			p.own, err = w.store.Attach(ctx, p.conn.Conn, a)
			return err
		})
		if err != nil {
			p.drop()
		}
		return p, err
	}, func(p presence) { p.dropAfter(time.Duration(w.keeps.Load())) })
	if err != nil {
		if w.keeps.Load() == 0 {
			stop()
		}
		w.log.Debug("cannot open a dedicated connection", "error", err)
		w.detached(a.Number, err)
		return
	}
	w.presence = p
	w.input(protocol.Attached{Number: a.Number, Key: p.own.Key, Sent: sent, RoundTrip: p.own.RoundTrip, Worker: a.Worker, Published: p.own.Published})
}

// prove checks that the dedicated connection answers.
func (w *worker[E]) prove(a protocol.Prove, id protocol.WorkerID) {
	type answer struct {
		same  bool
		group protocol.Glimpse
	}
	p, sent := w.presence, time.Now()
	moved := w.moved.Swap(false)
	got, err := bounded(w.life, presencePatience, func(context.Context) (r answer, err error) {
		if moved {
			if err := store.Writable(p.ctx, p.conn.Conn); err != nil {
				return r, err
			}
		}
		if a.Glimpse {
			r.same, r.group, err = p.own.Glimpse(p.ctx, id)
		} else {
			r.same, err = p.own.Prove(p.ctx)
		}
		return r, err
	}, nil)
	switch {
	case err != nil && w.life.Err() != nil: // leavePresence decides how long to keep it
	case err != nil:
		w.log.Debug("dedicated connection lost", "error", err)
		w.presence.drop()
		w.detached(a.Number, err)
	case !got.same:
		w.presence.drop()
		w.input(protocol.Detached{Number: a.Number, Never: true})
	default:
		w.input(protocol.Proven{Number: a.Number, Sent: sent, Glimpsed: a.Glimpse, Group: got.group})
	}
}

// detached tells the session that the connection is lost, or could not be opened.
func (w *worker[E]) detached(number int32, err error) {
	w.unattached.Store(&err)
	w.input(protocol.Detached{Number: number, Jitter: rand.Float64()})
}

// forgo closes the connection, and turns fast crash detection off.
func (w *worker[E]) forgo(why protocol.Forgone) {
	w.presence.drop()
	w.unspare()
	if err := w.unattached.Load(); err != nil && why == protocol.ForgoneUnavailable {
		w.noPresence("%s: %v; if that is permanent, set Config.LeaseOnly", why, redact.Error(*err))
		return
	}
	w.noPresence("%s; if that is permanent, set Config.LeaseOnly", why)
}

// leavePresence closes the dedicated connection after a time, or returns it at once.
func (w *worker[E]) leavePresence(after time.Duration) {
	w.keeps.Store(int64(after))
	w.end()
	w.busy.Wait() // so that no goroutine opens another one
	if after == 0 {
		w.presence.giveBack()
	} else {
		w.presence.dropAfter(after)
	}
}

// noPresence notes and logs why fast crash detection is off.
func (w *worker[E]) noPresence(why string, args ...any) {
	reason := fmt.Sprintf(why, args...)
	w.leaseOnly.Store(&reason)
	w.log.Warn("fast crash detection is off, relying on the lease", "reason", reason)
}

// dropAfter drops it after a time.
func (p presence) dropAfter(d time.Duration) {
	if d == 0 {
		p.drop()
		return
	}
	time.AfterFunc(d, p.drop)
}

// drop closes the connection: one that went back to the pool would keep the lock.
func (p *presence) drop() { p.end(func() bool { return false }) }

// giveBack releases the lock and returns the connection to the pool. If it were closed, and
// workers share the pool, one of them would have to open another connection, in the middle
// of a change of members. If the lock can't be released, the connection is closed.
func (p *presence) giveBack() {
	own, conn := p.own, p.conn
	p.end(func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), presencePatience)
		defer cancel()
		return conn.During(ctx, func() error { return own.Release(ctx) }) == nil
	})
}

// end gives up the connection, and closes it unless release succeeds. It does not wait for a
// call that is under way.
func (p *presence) end(release func() bool) {
	if p.conn == nil {
		return
	}
	conn := p.conn
	p.conn = nil
	if p.stop != nil {
		p.stop()
	}
	go func() {
		if !release() {
			conn.Cut()
		}
		conn.Close()
	}()
}
