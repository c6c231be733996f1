package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

const (
	replacementStart  = 2 * time.Second        // time that a new worker takes to start
	replacementWindow = 10 * time.Second       // Config.ReplacementWindow
	replacementPace   = 20 * time.Millisecond  // time between two events of a partition
	replacementRest   = 300 * time.Millisecond // pause after the replacement of a worker
)

// replaced measures a deployment. It stops the oldest of ten workers, starts a new one when that
// has ended, which takes two seconds, and goes on when the new one works, until all are new. For
// each of ten partitions, an event is appended every twenty milliseconds. The time between two
// handled events of a partition shows how long it was idle.
func replaced(ctx context.Context, b *bench) (rows []row, err error) {
	for _, window := range []time.Duration{0, replacementWindow} {
		some, err := replacedWith(ctx, b, window)
		if err != nil {
			return rows, err
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

func replacedWith(ctx context.Context, b *bench, window time.Duration) (rows []row, err error) {
	f, err := newFleet(ctx, b, 3*(rolloutWorkers+1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.end(ctx)) }()
	f.window, f.hints = defaultJoinWindow, true
	pauses := &pauses{last: map[string]time.Time{}, longest: map[string]time.Duration{}}
	join := func() error { return f.joinPaced(window, pauses) }
	for range rolloutWorkers {
		if err := join(); err != nil {
			return nil, err
		}
	}
	first, err := f.whole(ctx)
	if err != nil {
		return nil, err
	}

	loading, stop := context.WithCancel(ctx)
	loaded := make(chan error, 1)
	go func() { loaded <- f.events.pace(loading, marks(rolloutWorkers), replacementPace) }()
	defer func() {
		stop()
		err = errors.Join(err, <-loaded)
	}()
	time.Sleep(time.Second)
	pauses.begin()
	time.Sleep(replacementStart)
	undisturbed, still := pauses.end(), []float64(nil)
	for range rolloutWorkers {
		pauses.begin()
		m := f.members[0]
		f.leave()
		<-m.done
		time.Sleep(replacementStart)
		if err := join(); err != nil {
			return nil, err
		}
		if _, err := f.whole(ctx); err != nil {
			return nil, err
		}
		time.Sleep(replacementRest)
		still = append(still, pauses.end()...)
	}
	last, err := f.whole(ctx)
	if err != nil {
		return nil, err
	}
	name := "replaced-" + window.String()
	if window == 0 {
		name = "replaced"
	}
	generations := newRow(name+"/generations", "generations", []float64{float64(last - first)})
	if window > 0 {
		generations = generations.goal("0", last == first)
	}
	return []row{
		generations.noted("each pauses every partition"),
		newRow(name+"/standstill", milliseconds, still).noted("the longest of each partition, while a worker is replaced"),
		newRow(name+"/undisturbed", milliseconds, undisturbed).noted("the same, while no worker is replaced"),
	}, nil
}

// joinPaced starts a worker that reserves its place for window when it leaves.
func (f *fleet) joinPaced(window time.Duration, p *pauses) error {
	cfg, err := config(f.pool, f.set)
	if err != nil {
		return err
	}
	if err := f.configure(&cfg, f.d.url); err != nil {
		return err
	}
	if f.table == nil {
		f.table, _ = cfg.EventStore.(*orchestrator.Table[orchestrator.Event])
	}
	cfg.EventStore, cfg.ReplacementWindow = f.table, window
	m, err := start(cfg, paced{checking{name: f.projection, ledger: f.ledger}, p})
	if err == nil {
		f.members = append(f.members, m)
	}
	return err
}

// whole waits until each of ten workers has a partition of the active generation, and returns
// the generation.
func (f *fleet) whole(ctx context.Context) (generation int64, err error) {
	for {
		var workers int
		err := f.watched.QueryRowContext(ctx, `
SELECT s.generation, (SELECT count(*) FROM orchestrator_workers w
        WHERE w.replica_set = s.name AND w.holds = s.generation AND jsonb_array_length(w.partitions) = 1 AND NOT w.vacant)
  FROM orchestrator_replica_sets s WHERE s.phase = 'active'`).Scan(&generation, &workers)
		switch {
		case err == nil && workers == rolloutWorkers:
			return generation, nil
		case ctx.Err() != nil:
			return 0, fmt.Errorf("waiting for %d workers: %w", rolloutWorkers, context.Cause(ctx))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// pace appends an event to each of the aggregates at an interval, until ctx ends.
func (a *appender) pace(ctx context.Context, aggregates []int, apart time.Duration) error {
	tick := time.NewTicker(apart)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := a.append(context.WithoutCancel(ctx), aggregates); err != nil {
			return err
		}
	}
}

// paced is checking that also records when each event was handled.
type paced struct {
	checking
	pauses *pauses
}

func (p paced) Handle(ctx context.Context, e orchestrator.Event) error {
	p.pauses.note(e.AggregateID, time.Now())
	return p.checking.Handle(ctx, e)
}

// pauses records the time between two events, by aggregate.
type pauses struct {
	mu      sync.Mutex
	last    map[string]time.Time
	longest map[string]time.Duration // since begin
}

func (p *pauses) note(aggregate string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.last[aggregate]; ok {
		p.longest[aggregate] = max(p.longest[aggregate], at.Sub(last))
	}
	p.last[aggregate] = at
}

func (p *pauses) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.longest)
}

func (p *pauses) end() (longest []float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.longest {
		longest = append(longest, millis(d))
	}
	return longest
}
