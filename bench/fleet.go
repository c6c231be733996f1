package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/pqnotify"
)

// A fleet is a number of workers of one replica set that join and leave.
//
// Events show whether they work. As soon as a generation is active, one event is appended for
// each of its partitions, and every worker must handle one. The event can't be handled earlier,
// so this adds only the time of an append, and no luck.
type fleet struct {
	d          *database
	set        string
	projection string
	heartbeat  time.Duration                           // 0: the default
	window     time.Duration                           // JoinWindow
	handler    time.Duration                           // how long the handler waits
	partitions int                                     // partitions of each worker; 0: the default
	hints      bool                                    // workers listen for notifications
	table      *orchestrator.Table[orchestrator.Event] // for workers that are goroutines
	pool       *sql.DB                                 // for workers that are goroutines
	events     *appender
	ledger     *ledger // what the goroutines have handled
	apart      bool    // each goroutine reads for itself, as a process does
	tape       *tape   // nil: not recorded
	watched    *sql.Conn
	told       *pq.Listener // receives a notification when a generation may have become active

	members []*member // members that have not left, in the order in which they joined
	reports chan report

	ended     []*member // members that were told to leave, or killed
	active    int64     // the newest generation for which events were appended
	processes bool      // the workers are processes and leave effects
	leader    bool      // the workers compete for an advisory lock and form no replica set
}

// A report says that a worker handles an event of a generation for the first time.
type report struct {
	by         *member
	generation int64
	at         time.Time
}

// newFleet returns a fleet without workers, with a database of its own.
func newFleet(ctx context.Context, b *bench, poolMax int) (*fleet, error) {
	d, err := b.empty(ctx)
	if err != nil {
		return nil, err
	}
	f := &fleet{
		d: d, set: "fleet", projection: "fleet", window: time.Millisecond, ledger: openLedger(), reports: make(chan report, 10_000),
		events: &appender{d: d, versions: map[int]int64{}},
	}
	if f.watched, err = d.db.Conn(ctx); err != nil {
		return nil, err
	}
	f.told = pq.NewListener(d.url, time.Second, time.Second, nil)
	if err := f.told.Listen(store.Channel); err != nil {
		return nil, err
	}
	if f.pool, err = d.pool("worker"); err != nil {
		return nil, err
	}
	f.pool.SetMaxOpenConns(poolMax)
	f.pool.SetMaxIdleConns(poolMax)
	return f, nil
}

// joinGoroutine starts a worker in this process.
func (f *fleet) joinGoroutine(pool *sql.DB) error { return f.joinAt("", f.d.url, pool) }

// joinAt starts a worker that reaches the database by a given URL and pool.
func (f *fleet) joinAt(site, url string, pool *sql.DB) error {
	cfg, err := config(pool, f.set)
	if err != nil {
		return err
	}
	if err := f.configure(&cfg, url); err != nil {
		return err
	}
	if f.table == nil {
		f.table, _ = cfg.EventStore.(*orchestrator.Table[orchestrator.Event])
	}
	if !f.apart {
		cfg.EventStore = f.table // a process reads once for all its workers
	}
	var seen sync.Map
	var m *member
	known := make(chan struct{})
	m, err = start(cfg, checking{name: f.projection, ledger: f.ledger, wait: f.handler, began: func(ctx context.Context) {
		a, _ := orchestrator.DeliveryFrom(ctx)
		if _, again := seen.LoadOrStore(a.Generation, true); !again {
			<-known
			f.tape.note(site, "handles an event of generation %d", a.Generation)
			f.reports <- report{m, a.Generation, time.Now()}
		}
	}})
	if err != nil {
		return err
	}
	close(known)
	f.members = append(f.members, m)
	return nil
}

// configure sets what differs from the defaults.
func (f *fleet) configure(cfg *orchestrator.Config[orchestrator.Event], url string) (err error) {
	cfg.HeartbeatInterval, cfg.JoinWindow, cfg.Partitions = f.heartbeat, f.window, f.partitions
	if f.hints {
		cfg.EventsChannel = eventsChannel
		cfg.Notifier, err = pqnotify.New(url)
	}
	return err
}

// leave makes the oldest worker leave, without waiting for it.
func (f *fleet) leave() {
	m := f.members[0]
	f.members = f.members[1:]
	f.ended = append(f.ended, m)
	m.leave()
}

// generation returns the newest generation of the set, and whether it is active.
func (f *fleet) generation(ctx context.Context) (generation int64, active bool, err error) {
	err = f.watched.QueryRowContext(ctx,
		`SELECT generation, phase = 'active' FROM orchestrator_replica_sets WHERE name = $1`, f.set).Scan(&generation, &active)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return generation, active, err
}

// settle waits until every worker handles events under the same generation, which is newer than
// after. It returns that moment.
func (f *fleet) settle(ctx context.Context, after int64) (at time.Time, generation int64, err error) {
	under := map[*member]report{}
	tick := time.NewTicker(20 * time.Millisecond) // if a notification is missed
	defer tick.Stop()
	mark := func() error {
		g, active, err := f.generation(ctx)
		if err != nil || !active || g <= after || g <= f.active {
			return err
		}
		f.active = g
		f.tape.note("", "generation %d is active, an event is appended for each partition", g)
		return f.events.append(ctx, marks(len(f.members)*max(f.partitions, 1)))
	}
	for {
		for _, m := range f.members {
			select {
			case <-m.done:
				return at, 0, fmt.Errorf("a worker has ended by itself: %w", m.err)
			default:
			}
		}
		select {
		case r := <-f.reports:
			under[r.by] = r
			if at, generation = f.agreed(under); generation > after {
				return at, generation, nil
			}
		case <-f.ledger.wrong:
			return at, 0, f.ledger.fault
		case <-ctx.Done():
			return at, 0, fmt.Errorf("waiting for %d workers to work: %w", len(f.members), context.Cause(ctx))
		case <-f.told.Notify:
			err = mark()
		case <-tick.C:
			err = mark()
		}
		if err != nil {
			return at, 0, err
		}
	}
}

// agreed returns the generation under which all workers work, and since when.
func (f *fleet) agreed(under map[*member]report) (at time.Time, generation int64) {
	for i, m := range f.members {
		r, ok := under[m]
		if !ok || i > 0 && r.generation != generation {
			return at, 0
		}
		generation = r.generation
		if r.at.After(at) {
			at = r.at
		}
	}
	return at, generation
}

// end waits until all events are handled, makes all workers leave, and checks the result.
func (f *fleet) end(ctx context.Context) error {
	defer f.watched.Close()
	defer f.told.Close()
	defer f.pool.Close()
	err := f.caughtUp(ctx)
	for len(f.members) > 0 {
		f.leave()
	}
	for _, m := range f.ended {
		err = errors.Join(err, m.stop())
	}
	if f.processes {
		return errors.Join(err, f.d.checkEffects(context.WithoutCancel(ctx), f.projection, f.events.appended()))
	}
	return errors.Join(err, f.ledger.check())
}

// caughtUp waits until all appended events are handled.
func (f *fleet) caughtUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n := f.ledger.count.Load()
		if f.processes {
			if err := f.watched.QueryRowContext(ctx, `SELECT count(*) FROM effects`).Scan(&n); err != nil {
				return err
			}
		}
		if n == f.events.appended() {
			return nil
		}
		select {
		case <-tick.C:
		case <-f.ledger.wrong:
			return f.ledger.fault
		case <-ctx.Done():
			return fmt.Errorf("events lost: %d handled, %d appended: %w", n, f.events.appended(), context.Cause(ctx))
		}
	}
}
