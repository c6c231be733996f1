package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

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
		{"a policy that there is not", orchestrator.Plain("orders", handle, rule(orchestrator.FailureRule{Policy: 99})), `Config.Failures["orders"].Policy is 99`},
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
