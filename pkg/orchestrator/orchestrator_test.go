package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/getpup/pupsourcing/es/projection"
	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	orchestrator "github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator"
)

// Workers join and leave while events are appended. One transaction stays open and commits
// positions below those that others have committed.
func TestScaleUpAndDown(t *testing.T) {
	w := newWorld(t, "events")
	names := []string{"plain", "transactional", "batched"}
	projections := []projection.Projection{
		plain{"plain", w.db}, transactional{effects: "transactional"}, batched{effects: "batched"},
	}
	w.append(100)
	a := run(t, w.config(), projections...)
	w.active(1)
	w.caughtUp(names...)

	late := w.begin()
	w.appendTo(late, "shop", "order", "late", 3)
	w.append(100)
	a.waiting() // and not skip it, or the late events would be lost
	b := run(t, w.config(), projections...)
	w.active(2)
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	w.append(100)
	c := run(t, w.config(), projections...)
	w.active(3)
	w.append(100)
	w.caughtUp(names...)

	a.stop()
	w.active(2)
	w.append(100)
	b.stop()
	w.active(1)
	w.append(100)
	w.caughtUp(names...)
	c.stop()
	w.checkEffects(names...) // without crashes, even the plain projection is exact
}

// seen keeps the events that it gets.
type seen struct {
	mu     sync.Mutex
	events []es.PersistedEvent
}

func (*seen) Name() string { return "seen" }

func (s *seen) keep(e es.PersistedEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return nil
}

func (s *seen) all() []es.PersistedEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// A handler gets exactly the fields that pupsourcing's own reader returns.
func TestEventsAsPupsourcingReadsThem(t *testing.T) {
	w := newWorld(t, "events")
	for _, id := range []string{"a", "b"} {
		tx := w.begin()
		w.appendTo(tx, "shop", "order", id, 4)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	want, err := w.store.ReadEvents(t.Context(), w.db, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	s := &seen{}
	run(t, w.config(), s)
	pgtest.Eventually(t, "all events were handled", func() bool { return len(s.all()) == 8 })
	if diff := cmp.Diff(want, s.all()); diff != "" {
		t.Errorf("-ReadEvents +handled:\n%s", diff)
	}
	// Otherwise the comparison would not notice a field that neither reads.
	e := want[0]
	if len(want) != 8 || e.GlobalPosition == 0 || e.BoundedContext != "shop" || e.AggregateType != "order" || e.AggregateID != "a" ||
		e.AggregateVersion != 1 || e.EventType != "happened" || e.EventVersion != 1 || len(e.Payload) != 3 || e.CreatedAt.IsZero() ||
		e.EventID.Version() != 4 || !e.TraceID.Valid || !e.CorrelationID.Valid || !e.CausationID.Valid || len(e.Metadata) == 0 ||
		want[1].TraceID.Valid || want[1].Metadata != nil {
		t.Errorf("the events are not what the test takes them for: %+v", want)
	}
}

// The name means the same table as in pupsourcing's statements, and not the default table beside
// it.
func TestEventsTable(t *testing.T) {
	for _, table := range []string{"shop_events", "ShopEvents"} {
		t.Run(table, func(t *testing.T) {
			w := newWorld(t, table)
			w.exec(`CREATE TABLE events (LIKE ` + table + ` INCLUDING ALL)`)
			w.append(100)
			r := run(t, w.config(), transactional{effects: "transactional"})
			w.caughtUp("transactional")
			r.stop()
			w.checkEffects("transactional")
		})
	}

	t.Run("in a schema", func(t *testing.T) {
		w := newWorld(t, "events")
		w.append(100)
		w.exec(`CREATE SCHEMA "Shop"`)
		w.exec(`ALTER TABLE events SET SCHEMA "Shop"`)
		w.table = `"Shop".Events`
		r := run(t, w.config(), transactional{effects: "transactional"})
		w.caughtUp("transactional")
		r.stop()
		w.checkEffects("transactional")
	})

	t.Run("one that is not there", func(t *testing.T) {
		w := newWorld(t, "shop_events")
		cfg := w.config()
		cfg.EventsTable = ""
		o, err := orchestrator.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Run(t.Context(), []projection.Projection{transactional{effects: "transactional"}}); !errors.Is(err, orchestrator.ErrEventStore) {
			t.Errorf("Run returned %v, want ErrEventStore", err)
		}
	})
}

// Each projection gets the events of its scope, from one shared stream.
func TestScopedProjections(t *testing.T) {
	w := newWorld(t, "events")
	type kind struct{ boundedContext, aggregateType string }
	kinds := []kind{{"sales", "Order"}, {"sales", "User"}, {"identity", "User"}, {"billing", "Order"}, {"billing", "Invoice"}}
	var last int64
	positions := map[kind][]int64{}
	for i := range 200 {
		k := kinds[i%len(kinds)]
		tx := w.begin()
		result := w.appendTo(tx, k.boundedContext, k.aggregateType, fmt.Sprint(i%30), 1)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		last = result.GlobalPositions[0]
		positions[k] = append(positions[k], last)
	}
	plainOf := func(name string) projection.Projection { return plain{effects(name), w.db} }
	tests := []struct {
		projection projection.Projection
		want       []kind
	}{
		{plainOf("no scope"), kinds},
		{scoped{plainOf("empty scope"), nil, nil}, kinds},
		{scoped{plainOf("orders"), []string{"Order"}, nil}, []kind{{"sales", "Order"}, {"billing", "Order"}}},
		{scoped{plainOf("sales"), nil, []string{"sales"}}, []kind{{"sales", "Order"}, {"sales", "User"}}},
		{scopedTransactional{transactional{effects: "both"}, []string{"Order", "User"}, []string{"sales", "identity"}},
			[]kind{{"sales", "Order"}, {"sales", "User"}, {"identity", "User"}}},
		{scoped{plainOf("nothing"), []string{"Invoice"}, []string{"sales"}}, nil},
	}
	var projections []projection.Projection
	for _, test := range tests {
		projections = append(projections, test.projection)
	}
	a, b := run(t, w.config(), projections...), run(t, w.config(), projections...)
	w.active(2)
	pgtest.Eventually(t, "all checkpoints have passed everything", func() bool {
		return w.number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position >= $1`, last) == int64(2*len(tests))
	})
	a.stop()
	b.stop()
	for _, test := range tests {
		var want []int64
		for _, k := range test.want {
			want = append(want, positions[k]...)
		}
		slices.Sort(want)
		var got []int64
		rows, err := w.db.QueryContext(t.Context(), `SELECT position FROM effects WHERE projection = $1 ORDER BY position`, test.projection.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var position int64
			if err := rows.Scan(&position); err != nil {
				t.Fatal(err)
			}
			got = append(got, position)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("projection %q -want +handled:\n%s", test.projection.Name(), diff)
		}
	}
}

// reaction appends an event to another aggregate for each event, in the same transaction.
type reaction struct {
	uncalled
	store    *postgres.Store
	failures sync.Once
}

func (*reaction) Name() string { return "reaction" }

func (r *reaction) HandleTx(ctx context.Context, tx orchestrator.Tx, e es.PersistedEvent) (err error) {
	if e.AggregateType != "order" {
		return nil
	}
	if _, err := r.store.Append(ctx, tx, es.Any(), []es.Event{event("shop", "receipt", e.AggregateID, 0)}); err != nil {
		return err
	}
	if e.AggregateVersion == 3 {
		r.failures.Do(func() { err = errors.New("fails once, after it has appended") })
	}
	return err
}

// The writes of a transactional projection commit once, and pupsourcing's store accepts its
// transaction.
func TestAppendWithinAProjection(t *testing.T) {
	w := newWorld(t, "events")
	w.append(200)
	r := run(t, w.config(), &reaction{store: w.store})
	pgtest.Eventually(t, "every order has its receipts", func() bool {
		return w.number(`SELECT count(*) FROM events WHERE aggregate_type = 'receipt'`) >= 200
	})
	pgtest.Eventually(t, "the receipts were passed", func() bool {
		return w.number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position = (SELECT max(global_position) FROM events)`) == 1
	})
	r.stop()
	if n := w.number(`SELECT count(*) FROM events WHERE aggregate_type = 'receipt'`); n != 200 {
		t.Errorf("%d receipts, want 200", n)
	}
}

// Waiting returns the gap that readers wait for.
func TestWaiting(t *testing.T) {
	w := newWorld(t, "events")
	late := w.begin()
	w.appendTo(late, "shop", "order", "late", 1)
	w.append(1)
	r := run(t, w.config(), transactional{effects: "transactional"})
	gap := r.waiting()
	if gap.Position != 1 || len(gap.Backends) != 1 {
		t.Errorf("waiting at %+v, want position 1 and one backend", gap)
	}
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	w.caughtUp("transactional")
	r.stop()
}

// The failure policy works, and Run returns the handler's error.
func TestStopOnFailure(t *testing.T) {
	w := newWorld(t, "events")
	w.append(3)
	cfg := w.config()
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var failed *orchestrator.HandlerError
	if err := o.Run(t.Context(), []projection.Projection{failing{}}); !errors.As(err, &failed) || failed.Position != 1 || !errors.Is(failed, errFailing) {
		t.Errorf("Run returned %v, want a HandlerError at position 1", err)
	}
}

var errFailing = errors.New("fails")

type failing struct{}

func (failing) Name() string { return "failing" }
