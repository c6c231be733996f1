package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// A rebalance measures how long a change of members takes: from the call of Run, or from the
// cancelling of its context, until every worker of the new generation handles an event. Workers
// join and leave in turn, the oldest first. The changes follow each other closely, so a worker
// that must wait for its next heartbeat waits for almost the whole interval.
//
// JoinWindow, in which a join waits for more joins, is shorter than the default, to fit more
// joins into the time. It is not counted. The workers listen for notifications (Notifier,
// EventsChannel). Other settings are the defaults.
//
// The floor is the number of commits, one after the other, that every protocol of this kind
// needs: the change itself, a report of each worker that it has stopped, and the look that
// starts the last worker.
type rebalance struct {
	workers   int
	processes bool
	load      bool          // events are appended all the time
	handler   time.Duration // how long the handler waits
	locks     bool          // measure how long the set's row is locked
	heartbeat time.Duration // for tests; 0: the default
	quick     bool
}

func (r rebalance) name() string {
	name := fmt.Sprintf("rebalance-%d", r.workers)
	if r.processes {
		name += "-processes"
	}
	if r.load {
		name += fmt.Sprintf("-load-%dms", r.handler.Milliseconds())
	}
	return name
}

func (r rebalance) about() string {
	about := fmt.Sprintf("a join and a leave among %d workers, until all of them work; floor: the necessary commits", r.workers)
	if r.processes {
		about += "; each in a process"
	}
	if r.load {
		about += fmt.Sprintf("; %d events per second, handler of %s", r.perSecond(), r.handler)
	}
	return about
}

// perSecond returns half of the rate that the workers can handle, or 1000.
func (r rebalance) perSecond() int {
	if r.handler == 0 {
		return 1000
	}
	return min(1000, r.workers*int(time.Second/r.handler)/2)
}

func (r rebalance) run(ctx context.Context, b *bench) (rows []row, err error) {
	connections, err := b.connections(ctx)
	if err != nil {
		return nil, err
	}
	f, err := newFleet(ctx, b, min(3*(r.workers+1), connections))
	if err != nil {
		return nil, err
	}
	f.handler, f.heartbeat, f.hints, f.window = r.handler, r.heartbeat, true, 50*time.Millisecond
	if _, err := f.d.db.ExecContext(ctx, notifying); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.end(ctx)) }()
	for range r.workers {
		if _, err := r.join(f); err != nil {
			return nil, err
		}
	}
	if _, _, err := f.settle(ctx, 0); err != nil {
		return nil, err
	}
	if r.load {
		loadCtx, stop := context.WithCancel(ctx)
		loaded := make(chan error, 1)
		go func() { loaded <- f.events.load(loadCtx, r.perSecond()) }()
		defer func() { stop(); err = errors.Join(err, <-loaded) }()
	}
	return r.changes(ctx, b, f)
}

func (r rebalance) join(f *fleet) (time.Time, error) {
	if r.processes {
		return f.joinProcess()
	}
	return time.Now(), f.joinGoroutine(f.pool)
}

// changes measures as many changes as fit into the time, and at least one of each kind.
func (r rebalance) changes(ctx context.Context, b *bench, f *fleet) (rows []row, err error) {
	most, longest := 60, 14*time.Second
	if b.quick {
		most, longest = 20, 4*time.Second
	}
	var last time.Duration
	var took, floor, locked []float64
	byKind := [2][]float64{}
	for n, began := 0, time.Now(); n < 2 || n < most && time.Since(began)+last < longest; n++ {
		time.Sleep(rand.N(100 * time.Millisecond)) // at a random moment
		before, _, err := f.generation(ctx)
		if err != nil {
			return nil, err
		}
		var lock *lockWatch
		if r.locks {
			lock = watchLock(ctx, f)
		}
		changed := time.Now()
		if n%2 == 0 {
			changed, err = r.join(f)
		} else {
			f.leave()
		}
		if err != nil {
			return nil, err
		}
		at, _, err := f.settle(ctx, before)
		if err != nil {
			return nil, err
		}
		if last = at.Sub(changed); n%2 == 0 {
			last -= f.window
		}
		took = append(took, millis(last))
		byKind[n%2] = append(byKind[n%2], millis(last))
		if lock != nil {
			held, err := lock.stop()
			if err != nil {
				return nil, err
			}
			locked = append(locked, millis(held))
		}
		commits, err := f.commits(ctx, r.workers+2)
		if err != nil {
			return nil, err
		}
		floor = append(floor, millis(commits))
	}
	base := newRow(r.name()+"/floor", milliseconds, floor)
	result := newRow(r.name(), milliseconds, took).to(base).
		noted(fmt.Sprintf("median join %.0f, leave %.0f", summarize(byKind[0]).Median, summarize(byKind[1]).Median))
	if r.workers == 10 && r.handler <= time.Millisecond {
		result = result.goal("median ≤ 20, p99 ≤ 100", result.Value.Median <= 20 && result.Value.P99 <= 100)
	}
	rows = []row{base, result}
	if r.locks {
		rows = append(rows, newRow(r.name()+"/set-locked", milliseconds, locked).noted("in all, in each change"))
	}
	return rows, nil
}

// commits measures n commits in sequence.
func (f *fleet) commits(ctx context.Context, n int) (time.Duration, error) {
	began := time.Now()
	for range n {
		if _, err := f.watched.ExecContext(ctx, `UPDATE commits SET n = n + 1`); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// connections returns how many connections the workers may use. The rest is for measuring.
func (b *bench) connections(ctx context.Context) (n int, err error) {
	err = b.databases[0].db.QueryRowContext(ctx, `SELECT current_setting('max_connections')::int - 60`).Scan(&n)
	if err == nil && n < 20 {
		err = fmt.Errorf("the server allows %d connections; set max_connections to 100 at least", n+60)
	}
	return n, err
}

// A lockWatch adds up how long the set's row is locked. The lock of a row is in its xmax, and
// lasts as long as that transaction. Reading it blocks nothing.
type lockWatch struct {
	cancel context.CancelFunc
	held   time.Duration
	err    error
	done   chan struct{}
}

const lockHeld = `
SELECT EXISTS (SELECT FROM orchestrator_replica_sets s
                 JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = s.xmax
                WHERE s.name = $1)`

func watchLock(ctx context.Context, f *fleet) *lockWatch {
	w := &lockWatch{done: make(chan struct{})}
	ctx, w.cancel = context.WithCancel(ctx)
	go func() {
		defer close(w.done)
		for last := time.Now(); ctx.Err() == nil; {
			var held bool
			if w.err = f.d.db.QueryRowContext(context.WithoutCancel(ctx), lockHeld, f.set).Scan(&held); w.err != nil {
				return
			}
			now := time.Now()
			if held {
				w.held += now.Sub(last)
			}
			last = now
		}
	}()
	return w
}

func (w *lockWatch) stop() (time.Duration, error) {
	w.cancel()
	<-w.done
	return w.held, w.err
}
