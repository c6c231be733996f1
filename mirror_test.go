package orchestrator_test

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// pupsourcing's public types, method for method and field for field. The root
// does not depend on it, and must take what has this form without a wrapper.
type (
	mirroredProjection interface {
		Name() string
		Handle(ctx context.Context, event persistedEvent) error
	}

	mirroredScopedProjection interface {
		mirroredProjection
		AggregateTypes() []string
		BoundedContexts() []string
	}

	persistedEvent struct {
		CreatedAt        time.Time
		BoundedContext   string
		AggregateType    string
		EventType        string
		AggregateID      string
		CausationID      nullString
		Metadata         []byte
		Payload          []byte
		CorrelationID    nullString
		TraceID          nullString
		GlobalPosition   int64
		AggregateVersion int64
		EventVersion     int
		EventID          uuid
	}

	nullString struct {
		String string
		Valid  bool
	}

	uuid [16]byte
)

func (n *nullString) Scan(value any) error {
	var s sql.NullString
	err := s.Scan(value)
	n.String, n.Valid = s.String, s.Valid
	return err
}

func (u *uuid) Scan(value any) error {
	text, ok := value.([]byte)
	if !ok {
		return fmt.Errorf("a UUID as %T", value)
	}
	_, err := hex.Decode(u[:], []byte(strings.ReplaceAll(string(text), "-", "")))
	return err
}

// mirrored keeps the events of orders that it is handed.
type mirrored struct {
	mu     sync.Mutex
	events []persistedEvent
}

func (*mirrored) Name() string              { return "mirrored" }
func (*mirrored) AggregateTypes() []string  { return []string{"order"} }
func (*mirrored) BoundedContexts() []string { return nil }

func (m *mirrored) Handle(_ context.Context, e persistedEvent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, e)
	return nil
}

// Projections of pupsourcing's form, as their own interface has them, are
// handed on as they are, and what is optional is found.
func TestPupsourcingsForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version, payload, trace_id, metadata, created_at)
VALUES ('shop', 'order', 'a', 1, '0f000000-0000-4000-8000-00000000000a', 'placed', 2, 'x', 'trace', '{"a": 1}', '2025-01-02T03:04:05Z'),
       ('shop', 'user',  'b', 1, '0f000000-0000-4000-8000-00000000000b', 'joined', 1, 'y', NULL, NULL, now())`)
	events, err := orchestrator.NewTable(w.DB, orchestrator.TableConfig[persistedEvent]{
		AggregateTypeColumn: "aggregate_type", BoundedContextColumn: "bounded_context",
		Columns: []string{
			"global_position", "bounded_context", "aggregate_type", "aggregate_id", "aggregate_version",
			"event_id", "event_type", "event_version", "payload", "trace_id", "correlation_id",
			"causation_id", "metadata", "created_at",
		},
		Fields: func(e *persistedEvent, dest []any) []any {
			return append(dest, &e.GlobalPosition, &e.BoundedContext, &e.AggregateType, &e.AggregateID, &e.AggregateVersion,
				&e.EventID, &e.EventType, &e.EventVersion, &e.Payload, &e.TraceID, &e.CorrelationID,
				&e.CausationID, &e.Metadata, &e.CreatedAt)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[persistedEvent]{
		DB: w.DB, EventStore: events, ReplicaSet: "set", HeartbeatInterval: 50 * time.Millisecond, JoinWindow: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &mirrored{}
	var theirs mirroredProjection = mirroredScopedProjection(m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx, []orchestrator.Projection[persistedEvent]{theirs}) }()
	pgtest.Eventually(t, "all events were passed", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position = 2`) == 1
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("Run returned %v after a graceful stop", err)
	}
	for i := range m.events {
		m.events[i].CreatedAt = m.events[i].CreatedAt.UTC()
	}
	want := []persistedEvent{{
		GlobalPosition: 1, BoundedContext: "shop", AggregateType: "order", AggregateID: "a", AggregateVersion: 1,
		EventID: uuid{0: 0x0f, 6: 0x40, 8: 0x80, 15: 0x0a}, EventType: "placed", EventVersion: 2, Payload: []byte("x"),
		TraceID: nullString{"trace", true}, Metadata: []byte(`{"a": 1}`), CreatedAt: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC),
	}}
	if diff := cmp.Diff(want, m.events); diff != "" {
		t.Errorf("-want +handled:\n%s", diff)
	}
}
