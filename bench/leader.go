package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A leader is one of several workers that compete for an advisory lock, as one writes it by
// hand. The owner of the lock does all the work, and the others try to get the lock once a
// second. That is little code. It is safe as long as the worker checks the connection that holds
// the lock: it is pinged once a second, and the work ends with it.
type leader struct {
	work handrun // one projection, one partition
}

const (
	// leaderLock is the number of the lock.
	leaderLock = 7_001
	// leaderInterval is the time between two tries, and between two pings.
	leaderInterval = time.Second
	// leaderPoll is the time between two polls for new events.
	leaderPoll = 50 * time.Millisecond
)

// run waits for the lock, and works until ctx or the connection with the lock ends.
func (l leader) run(ctx context.Context) error {
	conn, err := l.work.pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		var locked bool
		if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, leaderLock).Scan(&locked); err != nil {
			return err
		}
		if locked {
			break
		}
		if !pause(ctx, leaderInterval) {
			return ctx.Err()
		}
	}
	defer func() {
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, leaderLock)
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		for pause(ctx, leaderInterval) {
			ping, stop := context.WithTimeout(ctx, leaderInterval)
			err := conn.PingContext(ping)
			stop()
			if err != nil {
				cancel(fmt.Errorf("the lock's connection: %w", err))
			}
		}
	}()
	return l.lead(ctx)
}

// lead works on from the checkpoint.
func (l leader) lead(ctx context.Context) error {
	_, err := l.work.pool.ExecContext(ctx, `INSERT INTO handrun_checkpoints VALUES ($1, 0, 0) ON CONFLICT DO NOTHING`, l.work.projections[0])
	page := make([]orchestrator.Event, 0, l.work.batch)
	for last := int64(-1); err == nil; {
		var position int64
		if position, err = l.work.batchOf(ctx, 0, 0, page); err == nil && position == last {
			pause(ctx, leaderPoll)
		}
		last = position
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// pause waits for d, and returns whether there is still work to do.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// leaderRate measures four workers on a lock, with the handler and the time of waitingRate.
func leaderRate(ctx context.Context, b *bench, pool *sql.DB) (rate float64, err error) {
	l := openLedger()
	began := make(chan struct{}, 1)
	work := handrun{pool: pool, projections: []string{b.fresh("h")}, partitions: 1, batch: defaultBatchSize,
		handle: func(ctx context.Context, _ *sql.Tx, _ int, events []orchestrator.Event) error {
			select {
			case began <- struct{}{}:
			default:
			}
			for i := range events {
				if ctx.Err() != nil { // an abandoned batch is not committed
					return ctx.Err()
				}
				time.Sleep(time.Millisecond)
				l.note(&events[i])
			}
			return nil
		}}
	workers, cancel := context.WithCancel(ctx)
	const n = 4
	ends := make(chan error, n)
	for range n {
		go func() { ends <- leader{work}.run(workers) }()
	}
	defer func() {
		cancel()
		for range n {
			if e := <-ends; !errors.Is(e, context.Canceled) {
				err = errors.Join(err, e)
			}
		}
	}()
	select {
	case <-began:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	from, before := time.Now(), l.count.Load()
	time.Sleep(1500 * time.Millisecond)
	return float64(l.count.Load()-before) / time.Since(from).Seconds(), l.check()
}

// leaderWork is the work of a worker's process. It calls said each time when it has become the
// leader and handles its first events.
func leaderWork(ctx context.Context, pool *sql.DB, projection string, said func()) error {
	first := true
	err := leader{handrun{pool: pool, projections: []string{projection}, partitions: 1, batch: defaultBatchSize,
		handle: func(ctx context.Context, tx *sql.Tx, _ int, events []orchestrator.Event) error {
			if first {
				first = false
				said()
			}
			return insertEffects(ctx, tx, projection, events)
		}}}.run(ctx)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// leaderFailover measures sets of worker processes on an advisory lock. The process with the
// lock is killed, an event is appended, and the time counts until another process handles it.
// The operating system closes the connections of a dead process, which releases the locks. So
// this measures the death of a process. The death of a machine shows only by the server's TCP
// keepalive.
func leaderFailover(ctx context.Context, b *bench) ([]row, error) {
	const sets, processes, kills = 4, 4, 5
	type outcome struct {
		took []float64
		err  error
	}
	outcomes := make(chan outcome)
	for range sets {
		f, err := newFleet(ctx, b, 1)
		if err != nil {
			return nil, err
		}
		f.leader = true
		go func() {
			took, err := f.leaderFailovers(ctx, processes, kills)
			outcomes <- outcome{took, errors.Join(err, f.end(ctx))}
		}()
	}
	var took []float64
	var errs []error
	for range sets {
		o := <-outcomes
		took, errs = append(took, o.took...), append(errs, o.err)
	}
	return []row{newRow("failover-by-lock", milliseconds, took).
		noted(fmt.Sprintf("of %d processes the one with the lock; each asks for it every %s", processes, leaderInterval))}, errors.Join(errs...)
}

func (f *fleet) leaderFailovers(ctx context.Context, processes, kills int) (took []float64, err error) {
	for range processes {
		if _, err := f.joinProcess(); err != nil {
			return nil, err
		}
	}
	var at time.Time
	for range kills + 1 {
		if err := f.events.append(ctx, []int{1}); err != nil {
			return took, err
		}
		var r report
		select {
		case r = <-f.reports:
		case <-ctx.Done():
			return took, fmt.Errorf("waiting for a worker to lead: %w", context.Cause(ctx))
		}
		if !at.IsZero() {
			took = append(took, millis(r.at.Sub(at)))
			if len(took) == kills {
				break
			}
			// A new process asks for the lock at once, so it must not start earlier.
			if _, err := f.joinProcess(); err != nil {
				return took, err
			}
		}
		time.Sleep(rand.N(leaderInterval))
		at = time.Now()
		for i, m := range f.members {
			if m == r.by {
				f.kill(i)
				break
			}
		}
	}
	return took, nil
}
