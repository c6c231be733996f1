package sim

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

var (
	firstSeed    = flag.Uint64("sim.seed", 0, "play from this `seed` on; without -sim.seeds and -sim.for, play only this one")
	seedCount    = flag.Int("sim.seeds", 0, "play this many `seeds`")
	seedTime     = flag.Duration("sim.for", 0, "play seeds for this `duration`, on all cores")
	storeKind    = flag.String("sim.store", "memory", "use this `store`: memory or postgres")
	timelineFile = flag.String("sim.timeline", "", "write the timeline of the first seed to this `file`")
)

// batch is the number of seeds of an ordinary test run: enough for every rare event to
// happen.
const batch = 600

func inMemory(w *world) (database, error) {
	rules := w.rules.memory
	if !rules.noWait {
		rules.between = w.between
	}
	m := newMemory(w, rules)
	m.rebuilds = w.plan.rebuilds()
	return m.as("sim", store.BoundsOf(w.plan.timing.Lease)), nil
}

// TestSeeds plays worlds, each from a seed, and checks every promise in each. To play one
// of them again:
//
//	go test ./sim -run 'TestSeeds$' -sim.seed=8347
func TestSeeds(t *testing.T) {
	t.Parallel()
	open, o, postgres := opener(inMemory), options{}, *storeKind == "postgres"
	switch {
	case postgres:
		open, o = onPostgres(t), options{postgres: true}
	case *storeKind != "memory":
		t.Fatalf("-sim.store=%s: must be memory or postgres", *storeKind)
	}
	first, n := max(1, *firstSeed), *seedCount
	whole := false // the batch is large enough for every rare event
	switch {
	case *seedTime > 0:
		n = math.MaxInt
	case n == 0 && *firstSeed != 0:
		n = 1
	case n == 0 && postgres:
		n = 20
	case n == 0 && raced:
		n = batch / 10
	case n == 0:
		n = batch
	}
	whole = n >= batch && !postgres
	if *timelineFile != "" {
		drawTimeline(t, planOf(first, o), open)
	}

	var (
		mu     sync.Mutex
		totals counters
		broken int
		played int
		hours  time.Duration
		next   atomic.Uint64
		failed []outcome
	)
	start := time.Now()
	progress := start
	stopped, restore := context.WithCancel(t.Context())
	if *seedTime > 0 { // an interrupt ends the batch, which then still prints its summary
		stopped, restore = signal.NotifyContext(t.Context(), os.Interrupt)
	}
	defer restore()
	var cores sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		cores.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= uint64(n) || stopped.Err() != nil || *seedTime > 0 && time.Since(start) > *seedTime {
					return
				}
				result, err := play(planOf(first+i, o), rules{}, open, false)
				happened := countRare(result.history)
				mu.Lock()
				if err != nil {
					t.Errorf("seed %d: %v", first+i, err)
					mu.Unlock()
					return
				}
				played++
				hours += result.simulated
				totals.add(happened)
				if result.violation != nil {
					if broken++; broken <= 3 {
						failed = append(failed, result)
					}
				}
				enough := broken >= 10
				if *seedTime > 0 && time.Since(progress) > 10*time.Second {
					progress = time.Now()
					fmt.Printf("%s: %d seeds, %.1f simulated hours, %d failed\n", time.Since(start).Round(time.Second), played, hours.Hours(), broken)
				}
				mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
	cores.Wait()
	for _, result := range failed {
		fail(t, result, rules{}, open)
	}
	t.Logf("played %s from %d, %.1f simulated hours, %d failed, in %s", plural(played, "seed"), first, hours.Hours(), broken, time.Since(start).Round(time.Millisecond))
	t.Logf("what happened in these seeds:\n%s", totals)
	if whole {
		for _, name := range totals.never() {
			t.Errorf("none of %d seeds had this: %s", played, name)
		}
	}
}

// fail reports a seed that broke a promise.
func fail(t *testing.T, o outcome, r rules, open opener) {
	t.Helper()
	tries := 300
	if *storeKind != "memory" {
		tries = 30
	}
	command := fmt.Sprintf("go test ./sim -run 'TestSeeds$' -sim.seed=%d", o.plan.seed)
	if *storeKind != "memory" {
		command += " -sim.store=" + *storeKind
	}
	text, err := explain(o, r, open, tries, command, "../failures")
	if err != nil {
		t.Fatalf("seed %d breaks %s, but explaining that failed: %v", o.plan.seed, o.violation.promise, err)
	}
	t.Errorf("\n%s", text)
}

func drawTimeline(t *testing.T, p plan, open opener) {
	t.Helper()
	o, err := play(p, rules{}, open, true)
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	if err := timeline(&page, o.history, o.violation, fmt.Sprintf("seed %d: %s", p.seed, p.String())); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*timelineFile, []byte(page.String()), 0o666); err != nil {
		t.Fatal(err)
	}
}

// The same seed gives the same trace, byte for byte.
func TestSameSeedSameTrace(t *testing.T) {
	for seed := range uint64(20) {
		var traces [2]strings.Builder
		for i := range traces {
			o, err := play(planOf(seed+1, options{}), rules{}, inMemory, true)
			if err != nil {
				t.Fatal(err)
			}
			trace(&traces[i], o.history)
		}
		if traces[0].String() != traces[1].String() {
			t.Errorf("seed %d gives two different traces", seed+1)
		}
	}
}

func onPostgres(t *testing.T) opener {
	_, url := pgtest.Database(t)
	return func(w *world) (database, error) {
		p, err := newPostgres(t.Context(), url, w, "sim", store.BoundsOf(w.plan.timing.Lease))
		if err == nil {
			p.rebuilds = w.plan.rebuilds()
		}
		return p, err
	}
}
