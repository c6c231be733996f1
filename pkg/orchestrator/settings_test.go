package orchestrator_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/projection"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	orchestrator "github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator"
)

// paid gets only some types of events.
type paid struct{ transactional }

func (paid) EventTypes() []string { return []string{"paid"} }

var _ orchestrator.EventTypedProjection = paid{}

// measured records its longest batch.
type measured struct {
	batched
	longest *atomic.Int64
}

func (m measured) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []es.PersistedEvent) error {
	m.longest.Store(max(m.longest.Load(), int64(len(events))))
	return m.batched.HandleBatch(ctx, tx, events)
}

// With gives a projection of pupsourcing settings of its own, with either form of Handle. A
// method sets event types.
func TestSettingsOfOneProjection(t *testing.T) {
	w := newWorld(t, "events")
	w.append(100)
	w.exec(`UPDATE events SET event_type = 'paid' WHERE global_position % 4 = 0`)
	events := orchestrator.WithScope(orchestrator.Scope{EventTypes: []string{"paid"}})
	var longest, configured atomic.Int64
	s := &seen{}
	run(t, w.config(),
		paid{transactional{effects: "by a method"}},
		orchestrator.With(paid{transactional{effects: "kept by With"}}, orchestrator.WithBatchSize(7)),
		orchestrator.With(scopedTransactional{transactional{effects: "replaced"}, []string{"none"}, nil}, events),
		orchestrator.With(plain{"plain", w.db}, events),
		orchestrator.With(s, events, orchestrator.WithStart(orchestrator.StartAfter(50))),
		orchestrator.With(orchestrator.With(measured{batched{effects: "three"}, &longest}, orchestrator.WithBatchSize(3)), events),
		measured{batched{effects: "configured"}, &configured},
	)
	w.caughtUp("configured")
	for _, name := range []string{"by a method", "kept by With", "replaced", "plain", "three"} {
		pgtest.Eventually(t, name+" has handled its events", func() bool { return w.handled(name) == 25 })
	}
	pgtest.Eventually(t, "one has handled those above where it started", func() bool { return len(s.all()) == 13 })
	if n := w.number(`SELECT count(*) FROM effects f JOIN events e ON e.global_position = f.position WHERE e.event_type <> 'paid' AND f.projection <> 'configured'`); n != 0 {
		t.Errorf("%d events were handled that are out of scope", n)
	}
	if longest.Load() != 3 || configured.Load() != 20 {
		t.Errorf("the longest batches are of %d and %d events, want 3 and 20", longest.Load(), configured.Load())
	}
}

// An invalid setting is refused with the projection's name. A projection's own failure rule
// applies.
func TestSettingsAreChecked(t *testing.T) {
	w := newWorld(t, "events")
	w.append(1)
	o, err := orchestrator.New(w.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // Run would not return if an option were ignored
	defer cancel()
	for _, test := range []struct {
		option orchestrator.ProjectionOption
		want   string
	}{
		{orchestrator.WithBatchSize(0), `WithBatchSize of projection "failing" is 0; it must be at least 1`},
		{orchestrator.WithRetry(orchestrator.Retry{Min: -1}), `WithRetry of projection "failing" is -1ns to 0s`},
		{orchestrator.WithStallAfter(-time.Second), `WithStallAfter of projection "failing" is -1s`},
		{orchestrator.WithFailureRule(orchestrator.FailureRule{Attempts: -1}), `WithFailureRule of projection "failing" has a rule whose Attempts is -1`},
		{orchestrator.WithStart(orchestrator.StartAfter(-1)), `projection "failing": StartAfter(-1): a position can't be negative`},
		{orchestrator.WithScope(orchestrator.Scope{EventTypes: []string{"\xff"}}), `projection "failing" is scoped: EventTypes()[0] "\xff" is not valid UTF-8`},
	} {
		err := o.Run(ctx, []projection.Projection{orchestrator.With(failing{}, test.option)})
		if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
	if err := o.Run(ctx, []projection.Projection{orchestrator.With(nil)}); !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), "projections[0] is nil") {
		t.Errorf("Run without a projection: %v", err)
	}
	var failed *orchestrator.HandlerError
	rule := orchestrator.WithFailureRule(orchestrator.FailureRule{Policy: orchestrator.StopOnFailure})
	if err := o.Run(ctx, []projection.Projection{orchestrator.With(failing{}, rule)}); !errors.As(err, &failed) {
		t.Errorf("Run returned %v, want a HandlerError", err)
	}
}
