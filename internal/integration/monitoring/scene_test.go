package monitoring

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
	metrics "github.com/getpup/pupsourcing-orchestrator/prometheus"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// takePosition inserts an event of an aggregate that no other writer has.
const takePosition = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', 'held', 1, gen_random_uuid(), 'happened', 'x')`

// scene runs workers on PostgreSQL for two minutes, scrapes them each second, and has happen
// what the dashboard is for. It is for the picture: nothing is checked by it.
func scene(t *testing.T) (w *world, lasted time.Duration) {
	const set, lasts = "shop", 2 * time.Minute
	db := testworld.New(t)
	var readOnly, broken, slow atomic.Bool
	work := func(d time.Duration) {
		if slow.Load() {
			d *= 10
		}
		time.Sleep(d)
	}
	projections := []orchestrator.Projection[orchestrator.Event]{
		orchestrator.Plain("orders", func(context.Context, orchestrator.Event) error {
			work(2 * time.Millisecond)
			return nil
		}),
		orchestrator.PlainBatch("search", func(_ context.Context, events []orchestrator.Event) error {
			if readOnly.Load() {
				return errors.New("the index is read-only")
			}
			work(10*time.Millisecond + time.Duration(len(events))*100*time.Microsecond)
			return nil
		}),
		orchestrator.Plain("mail", func(_ context.Context, e orchestrator.Event) error {
			if broken.Load() && e.AggregateID == "a7" {
				return errors.New("the address is not valid")
			}
			work(time.Millisecond)
			return nil
		}, orchestrator.WithFailureRule(orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 2})),
	}
	w = newWorld(t)
	var processes []*process
	running := map[string]*testworld.Running{}
	start := func(name string) {
		c := metrics.NewCollector()
		p := &process{name: name, collector: c, observer: c.Observer()}
		cfg := db.Config(db.DB, set)
		cfg.Observer, cfg.HeartbeatInterval, cfg.StallAfter = p.observer, time.Second, 5*time.Second
		cfg.Retry = orchestrator.Retry{Min: 200 * time.Millisecond, Max: time.Second}
		running[name] = testworld.Run(t, cfg, projections...)
		processes = append(processes, p)
	}
	ordered := func(_ int64, err error) {
		if err != nil {
			t.Error(err)
		}
	}
	var end func() error // of the transaction that holds a gap open
	script := map[int]func(){
		0:  func() { start("a"); start("b") },
		15: func() { readOnly.Store(true) },
		28: func() { readOnly.Store(false) },
		35: func() { broken.Store(true) },
		42: func() { broken.Store(false) },
		50: func() { start("c") },
		60: func() { slow.Store(true) },
		70: func() { slow.Store(false) },
		75: func() {
			tx, err := db.Connect().BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(t.Context(), takePosition); err != nil {
				t.Fatal(err)
			}
			end = tx.Rollback
		},
		85:  func() { _ = end() },
		90:  func() { ordered(ops.Pause(t.Context(), db.DB, set, "mail")) },
		100: func() { running["b"].Kill(); processes[1].gone = true },
		105: func() { readOnly.Store(true) },
	}
	began := time.Now()
	seconds := time.NewTicker(time.Second)
	defer seconds.Stop()
	for n := 0; ; n++ {
		if do := script[n]; do != nil {
			do()
		}
		db.Append(120 + 40*(n/20%3))
		at := time.Since(began).Truncate(time.Second)
		for _, p := range processes {
			w.scrape(t, p, at)
		}
		if at >= lasts {
			break
		}
		<-seconds.C
	}
	readOnly.Store(false)
	return w, lasts
}
