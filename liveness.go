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

// The worker's liveness connection: a session at the database whose lock shows others that
// the worker is there, and whose end shows them at once that it is not. When it has to
// prove that, and what follows if it can't, is protocol.Session's to say: the file
// presence.go there has the argument.

// presence carries out what the session says of a session at the database that
// is the worker's own. One thing is asked of it at a time.
type presence struct {
	conn *dbconn.Conn // nil: there is none
	own  store.Attachment
	// ctx is of what is asked of it, and ends with it: a driver may close a
	// connection whose call is cancelled, and a worker that gives its handlers up
	// amid one keeps the session.
	ctx  context.Context
	stop context.CancelFunc
}

const (
	// presencePatience is how long to wait for an answer about it.
	presencePatience = time.Second
	// presencePool is of how many connections a pool spares one.
	presencePool = 4
)

// spared counts the connections that each pool of the process spares: workers may
// share one, and none of them gives its connection back before it ends.
var spared = struct {
	sync.Mutex
	of map[*sql.DB]int
}{of: map[*sql.DB]int{}}

// spare has a pool spare a connection, if it has one to spare, until release is called.
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

// present gives the session a presence, if there may be one.
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

// attach takes a connection out of the pool. Should the worker give its handlers up
// meanwhile, the session is kept as one that it has.
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

// prove asks the connection whether it is there.
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
		if a.Look {
			r.same, r.group, err = p.own.Glimpse(p.ctx, id)
		} else {
			r.same, err = p.own.Prove(p.ctx)
		}
		return r, err
	}, nil)
	switch {
	case err != nil && w.life.Err() != nil: // leavePresence knows for how long to keep it
	case err != nil:
		w.log.Debug("dedicated connection lost", "error", err)
		w.presence.drop()
		w.detached(a.Number, err)
	case !got.same:
		w.presence.drop()
		w.input(protocol.Detached{Number: a.Number, Never: true})
	default:
		w.input(protocol.Proven{Number: a.Number, Sent: sent, Looked: a.Look, Group: got.group})
	}
}

// detached tells the session that it is gone, or could not be had.
func (w *worker[E]) detached(number int32, err error) {
	w.unattached.Store(&err)
	w.input(protocol.Detached{Number: number, Jitter: rand.Float64()})
}

// forgo ends the session, which nobody counts on any more.
func (w *worker[E]) forgo(why protocol.Forgone) {
	w.presence.drop()
	w.unspare()
	if err := w.unattached.Load(); err != nil && why == protocol.ForgoneUnavailable {
		w.noPresence("%s: %v; if that is permanent, set Config.LeaseOnly", why, redact.Error(*err))
		return
	}
	w.noPresence("%s; if that is permanent, set Config.LeaseOnly", why)
}

// leavePresence ends the worker's own session, after a while.
func (w *worker[E]) leavePresence(after time.Duration) {
	w.keeps.Store(int64(after))
	w.end()
	w.busy.Wait() // nobody takes another one
	if after == 0 {
		w.presence.giveBack()
	} else {
		w.presence.dropAfter(after)
	}
}

func (w *worker[E]) noPresence(why string, args ...any) {
	reason := fmt.Sprintf(why, args...)
	w.leaseOnly.Store(&reason)
	w.log.Warn("fast crash detection is off, relying on the lease", "reason", reason)
}

// dropAfter drops it after a while.
func (p presence) dropAfter(d time.Duration) {
	if d == 0 {
		p.drop()
		return
	}
	time.AfterFunc(d, p.drop)
}

// drop ends the session: a connection that went back to the pool would keep the
// lock.
func (p *presence) drop() { p.end(func() bool { return false }) }

// giveBack lets the lock go, and gives the connection back to the pool. Where workers
// share one, somebody would have to open another for it, in the middle of the change of
// members that this is. If the lock can't be let go, the session ends.
func (p *presence) giveBack() {
	own, conn := p.own, p.conn
	p.end(func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), presencePatience)
		defer cancel()
		return conn.During(ctx, func() error { return own.Release(ctx) }) == nil
	})
}

// end gives the connection up, and has the pool close it if it was not released. Nobody
// waits for what is under way on it.
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
