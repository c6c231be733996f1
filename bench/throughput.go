package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sort"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// The library's defaults, which the trials use.
const (
	defaultHeartbeatInterval  = 5 * time.Second
	defaultStaleWorkerTimeout = 30 * time.Second
	defaultBatchSize          = 100
	defaultJoinWindow         = 500 * time.Millisecond
	defaultPollInterval       = time.Second
)

// A contender takes its turn in a race, and returns its result.
type contender struct {
	name string
	run  func(ctx context.Context, pool *sql.DB) (float64, error)
	goal float64 // goal of the ratio to the first contender; 0: none
}

// race lets the contenders take turns, each with a pool of its own, and returns a row for each.
// The others are compared with the first.
func (b *bench) race(ctx context.Context, d *database, repetitions int, contenders []contender) ([]row, error) {
	if b.quick {
		repetitions = 2
	}
	var running []contender
	for i, c := range contenders {
		if i == 0 || c.name == b.only || !strings.Contains(b.only, "/") {
			running = append(running, c)
		}
	}
	samples := make([][]float64, len(running))
	for repetition := range repetitions + 1 {
		for i, c := range running {
			if repetition == 0 && i > 0 {
				break // the first contender alone warms the server's cache
			}
			v, err := b.turn(ctx, d, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if repetition > 0 {
				samples[i] = append(samples[i], v)
			}
		}
	}
	var rows []row
	for i, c := range running {
		r := newRow(c.name, eventsPerSecond, samples[i])
		if i > 0 {
			r = r.to(rows[0])
		}
		if c.goal > 0 {
			r = r.goal(fmt.Sprintf("≥ %.4g", c.goal), r.Ratio.Median >= c.goal)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// turnMax ends a turn that loses its last event.
const turnMax = time.Minute

// turn runs one contender once, from a clean start.
func (b *bench) turn(ctx context.Context, d *database, c contender) (v float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnMax)
	defer cancel()
	pool, err := d.pool("bench")
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	runtime.GC()
	if b.profile != "" && strings.Contains(c.name, "/library") {
		stop, err := profile(filepath.Join(b.profile, strings.ReplaceAll(c.name, "/", "-")))
		if err != nil {
			return 0, err
		}
		defer stop()
	}
	return c.run(ctx, pool)
}

// profile writes a CPU profile until stop, and a block profile of all repetitions so far. Go
// can't reset a block profile: profile one contender at a time.
func profile(path string) (stop func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	cpu, err := os.Create(path + ".cpu.pprof")
	if err != nil {
		return nil, err
	}
	block, err := os.Create(path + ".block.pprof")
	if err != nil {
		return nil, err
	}
	runtime.SetBlockProfileRate(10_000)
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = pprof.Lookup("block").WriteTo(block, 0)
		runtime.SetBlockProfileRate(0)
		_ = cpu.Close()
		_ = block.Close()
	}, nil
}

// throughput lets every contender read every event and pass it to the ledger. The floor reads
// pages of 1000. The others are also compared with a floor at their own batch size, since they
// can choose it. For five projections the rate is that of each. No contender needs the whole
// stream, and slow ones get less of it: only the rate counts.
func throughput(ctx context.Context, b *bench) ([]row, error) {
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	all, half, tenth := d.events/2, d.events/4, d.events/20
	byHand := func(batch, projections, partitions int, through int64) func(context.Context, *sql.DB) (float64, error) {
		return func(ctx context.Context, pool *sql.DB) (float64, error) {
			h := handrun{pool: pool, partitions: partitions, batch: batch, through: through}
			var ledgers []*ledger
			for range projections {
				h.projections = append(h.projections, b.fresh("h"))
				ledgers = append(ledgers, newLedger(through, through, readMax))
			}
			h.handle = func(_ context.Context, _ *sql.Tx, p int, events []orchestrator.Event) error {
				for i := range events {
					ledgers[p].note(&events[i])
				}
				return nil
			}
			return rateOf(ctx, ledgers, h.run)
		}
	}
	return b.race(ctx, d, 5, []contender{
		{"throughput/floor", readingFloor(all, pageMax), 0},
		{"throughput/floor-2000", readingFloor(all, readMax), 0},
		{"throughput/floor-100", func(ctx context.Context, pool *sql.DB) (float64, error) {
			l := newLedger(half, half, readMax)
			return rateOf(ctx, []*ledger{l}, func(ctx context.Context) error {
				return commitFloor(ctx, pool, l, defaultBatchSize)
			})
		}, 0},
		{"throughput/library-1000", b.reading(1000, 1, all), 0.9},
		{"throughput/library-100", b.reading(defaultBatchSize, 1, half), 0.75},
		{"throughput/by-hand-1000", byHand(1000, 1, 1, all), 0},
		{"throughput/by-hand-100", byHand(100, 1, 1, half), 0},
		{"throughput/library-5-projections", b.reading(1000, 5, half), 0.7},
		{"throughput/by-hand-5-projections", byHand(1000, 5, 1, half), 0},
		{"throughput/by-hand-16-segments", byHand(1000, 1, 16, tenth), 0},
	})
}

const (
	// pageMax is the largest page of a bare loop or a hand-written processor, and the largest
	// batch of any contender.
	pageMax = 1000
	// readMax is the largest page of all: that of the library.
	readMax = 2000
)

// readingFloor is the bare loop over the events up to a position.
func readingFloor(through int64, page int) func(context.Context, *sql.DB) (float64, error) {
	return func(ctx context.Context, pool *sql.DB) (float64, error) {
		l := newLedger(through, through, readMax)
		return rateOf(ctx, []*ledger{l}, func(ctx context.Context) error { return readFloor(ctx, pool, l, wholeStream, page) })
	}
}

// reading is one worker over the same events.
func (b *bench) reading(batch, projections int, through int64) func(context.Context, *sql.DB) (float64, error) {
	return func(ctx context.Context, pool *sql.DB) (float64, error) {
		var ps []orchestrator.Projection[orchestrator.Event]
		var ledgers []*ledger
		for range projections {
			l := newLedger(through, through, readMax)
			ledgers = append(ledgers, l)
			ps = append(ps, checking{name: b.fresh("p"), ledger: l})
		}
		return runLibrary(ctx, pool, b.fresh("set"), batch, ps, ledgers)
	}
}

// pooler measures reading in the mode for poolers, which sends 1 KB of bytes as 2 KB of text.
func pooler(ctx context.Context, b *bench) ([]row, error) {
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	through := d.events / 2
	with := func(run func(context.Context, *sql.DB) (float64, error)) func(context.Context, *sql.DB) (float64, error) {
		return func(ctx context.Context, _ *sql.DB) (float64, error) {
			pool, err := d.poolerPool("bench")
			if err != nil {
				return 0, err
			}
			defer pool.Close()
			return run(ctx, pool)
		}
	}
	return b.race(ctx, d, 5, []contender{
		{"pooler/floor", with(readingFloor(through, pageMax)), 0},
		{"pooler/library-1000", with(b.reading(1000, 1, through)), 0.9},
		{"pooler/library-100", with(b.reading(defaultBatchSize, 1, through)), 0.75},
	})
}

// scoped lets both contenders read the same pages of one projection's scope.
func scoped(ctx context.Context, b *bench) ([]row, error) {
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	const page = 100
	wanted := func() *ledger { return newLedger(d.events, d.events/100, page) }
	return b.race(ctx, d, 5, []contender{
		{"scoped/floor", func(ctx context.Context, pool *sql.DB) (float64, error) {
			l := wanted()
			return rateOf(ctx, []*ledger{l}, func(ctx context.Context) error { return readFloor(ctx, pool, l, rareOnly, page, "rare") })
		}, 0},
		{"scoped/library", func(ctx context.Context, pool *sql.DB) (float64, error) {
			l := wanted()
			p := rare{checking{name: b.fresh("p"), ledger: l}}
			return runLibrary(ctx, pool, b.fresh("set"), page, []orchestrator.Projection[orchestrator.Event]{p}, []*ledger{l})
		}, 0},
	})
}

// transactional measures batches of 1000 with an INSERT of one row per event.
func transactional(ctx context.Context, b *bench) ([]row, error) {
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	through := d.events / 4
	checked := func(name string, rate float64, err error) (float64, error) {
		if err != nil {
			return 0, err
		}
		return rate, d.checkEffects(ctx, name, through)
	}
	return b.race(ctx, d, 5, []contender{
		{"transactional/floor", func(ctx context.Context, pool *sql.DB) (float64, error) {
			name, l := b.fresh("f"), newLedger(through, through, readMax)
			rate, err := rateOf(ctx, []*ledger{l}, func(ctx context.Context) error { return writeFloor(ctx, pool, name, l, pageMax) })
			return checked(name, rate, err)
		}, 0},
		{"transactional/library", func(ctx context.Context, pool *sql.DB) (float64, error) {
			name, l := b.fresh("p"), newLedger(through, through, readMax)
			p := inserting{name, func(_ context.Context, events []orchestrator.Event) { l.noteAll(events) }}
			rate, err := runLibrary(ctx, pool, b.fresh("set"), pageMax, []orchestrator.Projection[orchestrator.Event]{bounded{p, through}}, []*ledger{l})
			return checked(name, rate, err)
		}, 0.8},
		{"transactional/by-hand", func(ctx context.Context, pool *sql.DB) (float64, error) {
			name, l := b.fresh("h"), newLedger(through, through, readMax)
			h := handrun{pool: pool, projections: []string{name}, partitions: 1, batch: pageMax, through: through}
			h.handle = func(ctx context.Context, tx *sql.Tx, _ int, events []orchestrator.Event) error {
				l.noteAll(events)
				return insertEffects(ctx, tx, name, events)
			}
			rate, err := rateOf(ctx, []*ledger{l}, h.run)
			return checked(name, rate, err)
		}, 0},
	})
}

// bounded skips events after a position, so that every contender writes the same rows.
type bounded struct {
	inserting
	through int64
}

func (p bounded) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	beyond := sort.Search(len(events), func(i int) bool { return events[i].GlobalPosition > p.through })
	if beyond == 0 {
		return nil
	}
	return p.inserting.HandleBatch(ctx, tx, events[:beyond])
}

func (l *ledger) noteAll(events []orchestrator.Event) {
	for i := range events {
		l.note(&events[i])
	}
}
