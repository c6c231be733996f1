package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// Projections made of functions do what the types with the methods do: each kind
// handles its scope exactly once, and a rule of its own applies to one alone.
func TestProjectionsMadeOfFunctions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(200)
	plain, tx, batch := testworld.Effects{Projection: "plain"}, testworld.Effects{Projection: "transactional"}, testworld.Effects{Projection: "batched"}
	parks := errors.New("can't handle it")
	projections := []projection{
		orchestrator.Plain(plain.Projection, func(ctx context.Context, e orchestrator.Event) error { return plain.Write(ctx, w.DB, e) }),
		orchestrator.Transactional(tx.Projection, func(ctx context.Context, t orchestrator.Tx, e orchestrator.Event) error { return tx.Write(ctx, t, e) }),
		orchestrator.Batch(batch.Projection, func(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
			for _, e := range events {
				if err := batch.Write(ctx, tx, e); err != nil {
					return err
				}
			}
			return nil
		}),
		orchestrator.Plain("elsewhere", func(context.Context, orchestrator.Event) error { return errors.New("out of its scope") },
			orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"of none"}})),
		orchestrator.Plain("parks", func(_ context.Context, e orchestrator.Event) error { return parks },
			orchestrator.WithFailureRule(orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 1})),
	}
	r := testworld.Run(t, w.Config(w.DB, "set"), projections...)
	w.CaughtUp(plain.Projection, tx.Projection, batch.Projection)
	pgtest.Eventually(t, "everything is parked", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE projection = 'parks'`) == 200
	})
	r.Stop()
	w.CheckEffects(plain.Projection, tx.Projection, batch.Projection)
}

func TestRunNamesTheFunctionAtFault(t *testing.T) {
	t.Parallel()
	handle := func(context.Context, orchestrator.Event) error { return nil }
	rule := func(r orchestrator.FailureRule) orchestrator.ProjectionOption { return orchestrator.WithFailureRule(r) }
	for _, test := range []struct {
		why        string
		projection projection
		want       string
	}{
		{"no name", orchestrator.Plain("", handle), "the name of projections[0] is empty"},
		{"no handler", orchestrator.Plain[orchestrator.Event]("orders", nil), `projections[0], "orders", has a nil handler`},
		{"no handler in a transaction", orchestrator.Transactional[orchestrator.Event]("orders", nil), "has a nil handler"},
		{"no handler of batches", orchestrator.Batch[orchestrator.Event]("orders", nil), "has a nil handler"},
		{"a policy that there is not", orchestrator.Plain("orders", handle, rule(orchestrator.FailureRule{Policy: 99})), `WithFailureRule of projection "orders" has a rule whose Policy is 99; it must be RetryForever`},
		{"attempts below none", orchestrator.Plain("orders", handle, rule(orchestrator.FailureRule{Attempts: -1})), `WithFailureRule of projection "orders" has a rule whose Attempts is -1; it can't be negative`},
		{"room for fewer than none", orchestrator.Plain("orders", handle, rule(orchestrator.FailureRule{MaxParked: -1})), `WithFailureRule of projection "orders" has a rule whose MaxParked is -1; it can't be negative`},
		{"a scope of what no event has", orchestrator.Plain("orders", handle, orchestrator.WithScope(orchestrator.Scope{EventTypes: []string{"Paid", "a\x00"}})), `projection "orders" is scoped: EventTypes()[1] "a\x00" contains NUL, so no event can have it; remove it`},
		{"an empty batch", orchestrator.Plain("orders", handle, orchestrator.WithBatchSize(0)), `WithBatchSize of projection "orders" is 0; it must be at least 1`},
		{"a retry before the failure", orchestrator.Plain("orders", handle, orchestrator.WithRetry(orchestrator.Retry{Min: -1})), `WithRetry of projection "orders" is -1ns to 0s`},
		{"a retry that shrinks", orchestrator.Plain("orders", handle, orchestrator.WithRetry(orchestrator.Retry{Min: time.Hour})), `WithRetry of projection "orders" has a Max of 30s, less than its Min, which is 1h0m0s`},
		{"no time to stall", orchestrator.Plain("orders", handle, orchestrator.WithStallAfter(0)), `WithStallAfter of projection "orders" is 0s; it must be more than 0`},
		{"a type with options", orchestrator.With(orchestrator.Plain[orchestrator.Event]("orders", nil), orchestrator.WithBatchSize(1)), "has a nil handler"},
		{"two rules", orchestrator.Plain("twice", handle, rule(orchestrator.FailureRule{})), `has a rule for "twice", which has one of its own (WithFailureRule)`},
	} {
		t.Run(test.why, func(t *testing.T) {
			cfg := valid(t)
			cfg.Failures = map[string]orchestrator.FailureRule{"twice": {}}
			projections := []projection{test.projection}
			if test.projection.Name() != "twice" {
				projections = append(projections, orchestrator.Plain("twice", handle))
			}
			o, err := orchestrator.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			checkInvalid(t, o.Run(t.Context(), projections), test.want)
		})
	}
}

// What an option sets is for its projection alone, and With brings options to a type with
// the methods.
func TestOptionsOfOneProjection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	var mu sync.Mutex
	longest := map[string]int{}
	batch := func(name string, options ...orchestrator.ProjectionOption) projection {
		return orchestrator.Batch(name, func(_ context.Context, _ orchestrator.Tx, events []orchestrator.Event) error {
			mu.Lock()
			defer mu.Unlock()
			longest[name] = max(longest[name], len(events))
			return nil
		}, options...)
	}
	failed, stalled := map[string]int{}, make(chan string, 100)
	fails := func(name string, times int, options ...orchestrator.ProjectionOption) projection {
		return orchestrator.With(aType{orchestrator.Plain(name, func(context.Context, orchestrator.Event) error {
			mu.Lock()
			defer mu.Unlock()
			if failed[name] < times {
				failed[name]++
				return errors.New("not yet")
			}
			return nil
		})}, options...)
	}
	cfg := w.Config(w.DB, "set")
	cfg.BatchSize, cfg.StallAfter = 20, time.Hour
	cfg.Retry = orchestrator.Retry{Min: time.Hour, Max: time.Hour}
	cfg.Observer = &orchestrator.Observer{Stalled: func(e orchestrator.Stalled) { stalled <- e.Lane.Projection }}
	soon := orchestrator.WithRetry(orchestrator.Retry{Min: 20 * time.Millisecond, Max: 20 * time.Millisecond})
	r := testworld.Run(t, cfg,
		batch("as configured"), batch("of three", orchestrator.WithBatchSize(3)), orchestrator.With(batch("of five"), orchestrator.WithBatchSize(5)),
		fails("retries soon", 3, soon), fails("waits", 1),
		fails("is told", 1_000_000, soon, orchestrator.WithStallAfter(10*time.Millisecond)))
	pgtest.Eventually(t, "four have handled all", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position = 100`) == 4
	})
	if name := <-stalled; name != "is told" {
		t.Errorf("%q is told to stand still", name)
	}
	r.Stop()
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(map[string]int{"as configured": 20, "of three": 3, "of five": 5}, longest); diff != "" {
		t.Errorf("the longest batches, -want +got:\n%s", diff)
	}
	if failed["waits"] != 1 || failed["retries soon"] != 3 {
		t.Errorf("they have failed %v times", failed)
	}
}

// aType is a projection of a type of its own.
type aType struct{ projection }

// E is inferred from the function, also for a slice of several kinds.
func ExampleTransactional() {
	projections := []orchestrator.Projection[orchestrator.Event]{
		orchestrator.Transactional("user_count", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING`, e.AggregateID)
			return err
		}),
		orchestrator.Plain("welcome_mail", func(ctx context.Context, e orchestrator.Event) error { return nil },
			orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"User"}})),
	}
	for _, p := range projections {
		fmt.Println(p.Name())
	}
	// Output:
	// user_count
	// welcome_mail
}
