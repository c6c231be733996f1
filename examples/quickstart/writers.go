package main

import (
	"context"
	"database/sql"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// The writers make a stream that is hard to read: positions are taken in order and
// committed in any order, and some are never committed.
const (
	writerCount = 8
	// The default number of events takes appendTime; more take longer.
	appendTime = 12 * time.Second
	maxRate    = 1700 // events in a second
	// They wait while the slowest projection has this lag, so that a slow machine plays
	// the same drama, more slowly.
	maxLag = 2000

	// Transactions append 1 to maxAppend events.
	maxAppend = 4
	// Every so many transactions one is rolled back after its insert, which leaves a gap
	// in the positions that is never filled.
	rollbackEvery = 20
	// This many in all stay open for a while after their insert, which leaves a gap that is
	// filled after higher positions have become visible.
	slowTotal        = 60
	slowMin, slowMax = 50 * time.Millisecond, 500 * time.Millisecond
)

// writers append events.
type writers struct {
	db         *sql.DB
	aggregates []*aggregate
	total      int64
	pace       time.Duration // between two events
	slowEvery  int64

	mu    sync.Mutex
	due   time.Time // of the next transaction
	taken int64     // events that a writer has undertaken to append

	transactions, appended, gaps atomic.Int64

	watch *watch

	// The last tenth of the events waits for the end of the drama, so that events are being
	// appended as long as it lasts.
	finale chan struct{}
	done   chan struct{} // closed: all events are appended, or ctx has ended

	enough atomic.Bool // no more events, because the user finishes
}

// An aggregate is appended to by one writer only, so its versions ascend with
// the positions.
type aggregate struct {
	id      string
	version int64
}

func newWriters(db *sql.DB, w *watch, o options) *writers {
	ws := &writers{
		db: db, watch: w, total: int64(o.events),
		pace:      max(appendTime/time.Duration(o.events), time.Second/maxRate),
		slowEvery: max(int64(o.events)*2/(maxAppend+1)/slowTotal, 5),
		finale:    make(chan struct{}), done: make(chan struct{}),
	}
	for i := range o.aggregates {
		ws.aggregates = append(ws.aggregates, &aggregate{id: fmt.Sprintf("order-%d", i+1)})
	}
	return ws
}

// stop has the writers append no more, as soon as there are some events to verify.
func (w *writers) stop() { w.enough.Store(true) }

// goal is how many events there will be, as far as is known.
func (w *writers) goal() int64 {
	if w.enough.Load() {
		return 0
	}
	return w.total
}

// duration is how long appending takes if nothing holds it up.
func (w *writers) duration() time.Duration { return time.Duration(w.total) * w.pace }

// run appends all events, and calls fail if it can't.
func (w *writers) run(ctx context.Context, fail context.CancelCauseFunc) {
	defer close(w.done)
	var all sync.WaitGroup
	for i := range writerCount {
		all.Go(func() {
			if err := w.write(ctx, i); err != nil {
				fail(fmt.Errorf("append events: %w", err))
			}
		})
	}
	all.Wait()
}

// write is one writer.
func (w *writers) write(ctx context.Context, writer int) error {
	for {
		n, err := w.take(ctx)
		if n == 0 || err != nil {
			return err
		}
		if err := w.append(ctx, w.pick(writer), n); err != nil {
			return err
		}
	}
}

// take returns how many events to append next, when it is time to; 0: no more.
func (w *writers) take(ctx context.Context) (n int64, err error) {
	if err := w.room(ctx); err != nil {
		return 0, err
	}
	w.mu.Lock()
	at := w.taken
	n = min(1+mathrand.Int64N(maxAppend), w.total-at)
	if w.enough.Load() && at >= minEvents {
		n = 0
	}
	w.taken += n
	if now := time.Now(); w.due.Before(now) {
		w.due = now
	}
	due := w.due
	w.due = due.Add(time.Duration(n) * w.pace)
	w.mu.Unlock()
	if n == 0 {
		return 0, nil
	}
	if at >= w.total/10*9 {
		select {
		case <-w.finale:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return n, pause(ctx, time.Until(due))
}

// room waits while the projections are too far behind.
func (w *writers) room(ctx context.Context) error {
	low := func(s state) bool { return s.lag() < maxLag || w.enough.Load() }
	if s, _ := w.watch.now(); low(s) {
		return nil
	}
	_, err := w.watch.await(ctx, fmt.Sprintf("a lag below %d", maxLag), time.Minute, low)
	return err
}

// pick returns one of the writer's own aggregates.
func (w *writers) pick(writer int) *aggregate {
	own := (len(w.aggregates) - writer + writerCount - 1) / writerCount
	return w.aggregates[writer+writerCount*mathrand.IntN(own)]
}

// append appends n events to the aggregate in one transaction, before which
// there may be one that is rolled back.
func (w *writers) append(ctx context.Context, a *aggregate, n int64) error {
	k := w.transactions.Add(1)
	if k%rollbackEvery == 0 {
		if err := w.transact(ctx, a, n, (*sql.Tx).Rollback); err != nil {
			return err
		}
		w.gaps.Add(n)
	}
	err := w.transact(ctx, a, n, func(tx *sql.Tx) error {
		if k%w.slowEvery == 0 {
			if err := pause(ctx, slowMin+mathrand.N(slowMax-slowMin)); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
	if err != nil {
		return err
	}
	a.version += n
	w.appended.Add(n)
	return nil
}

const appendSQL = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'shop', 'order', $1, version, gen_random_uuid(), 'order changed', ''
  FROM generate_series($2::bigint, $3::bigint) AS version`

// transact inserts the aggregate's next n events, and has end commit them or roll them
// back.
func (w *writers) transact(ctx context.Context, a *aggregate, n int64, end func(*sql.Tx) error) error {
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, appendSQL, a.id, a.version+1, a.version+n); err != nil {
		return err
	}
	return end(tx)
}

// trickle goes on slowly, after run, until one of the channels is closed.
func (w *writers) trickle(ctx context.Context, released, quit <-chan struct{}) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-released:
			return nil
		case <-quit:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if err := w.append(ctx, w.pick(mathrand.IntN(writerCount)), 1+mathrand.Int64N(maxAppend)); err != nil {
				return fmt.Errorf("append events: %w", err)
			}
		}
	}
}

// pause is for pacing only. To wait for something, use watch.await.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
