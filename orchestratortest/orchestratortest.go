// Package orchestratortest tests projections: it runs a projection with a list of events on a
// PostgreSQL database of the test.
//
//	func TestUsers(t *testing.T) {
//		db := orchestratortest.DB(t)
//		// … create the read model's tables
//		orchestratortest.Run(t, db, users, orchestratortest.Events(
//			orchestrator.Event{AggregateID: "1", EventType: "UserRegistered"},
//			orchestrator.Event{AggregateID: "2", EventType: "UserRegistered"},
//		)...)
//		// … check the read model
//	}
//
// The rules:
//
//   - Tests can run in parallel, and need no TestMain.
//   - DB takes about 0.06 s if the server runs already, and Run about 0.02 s for a few events.
//   - Run uses the code of a real worker, with one partition.
//   - To test what happens when workers crash, freeze and rebalance, use package sim.
package orchestratortest

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// DB returns a new database for the test, which contains the library's tables. It is opened
// with lib/pq, and closed and dropped when the test ends.
//
// If the environment variable DATABASE_URL is set, the database is created on that server, whose
// user must be allowed to create databases. Otherwise the first test of the test binary starts a
// server, from PostgreSQL binaries on this machine or from a download. It ends with the test
// binary. This also works as root. On Windows, set DATABASE_URL. If no server can be had, DB
// fails the test and says what to do.
func DB(t testing.TB) *sql.DB {
	t.Helper()
	db, _ := database(t)
	return db
}

// URL returns the URL of a new database for the test, as DB does, for tests that open it
// themselves, for example with pgx. Connections that are still open when the test ends are closed
// by the server.
func URL(t testing.TB) string {
	t.Helper()
	_, url := database(t)
	return url
}

func database(t testing.TB) (*sql.DB, string) {
	t.Helper()
	db, url := pgtest.Database(t)
	if err := orchestrator.Migrate(t.Context(), db); err != nil {
		t.Fatalf("orchestratortest: create the library's tables: %v", err)
	}
	return db, url
}

// Events returns events as records for Run and Store. Each record takes its aggregate, types,
// bounded context, time and position from the event. A position of 0 means: the next one.
func Events(events ...orchestrator.Event) []orchestrator.Record[orchestrator.Event] {
	records := make([]orchestrator.Record[orchestrator.Event], len(events))
	for i, e := range events {
		records[i] = orchestrator.Record[orchestrator.Event]{
			Position: e.GlobalPosition, AggregateID: e.AggregateID, AggregateType: e.AggregateType, BoundedContext: e.BoundedContext,
			EventType: e.EventType, Time: e.CreatedAt, Event: e,
		}
	}
	return records
}

// Run runs the projection with the events, and returns when all of them are handled and
// committed. The projection can be of any kind. Run uses the code of a real worker: one
// partition, events in order, batches of up to 100 events, the checkpoint in the database, and
// the writes of a TransactionalProjection in the same transaction as its checkpoint. Events
// outside of the projection's scope are skipped.
//
// If the handler fails, Run fails the test with the error, the projection's name and the
// event's position. It calls the handler at most twice for that event, whatever the
// projection's FailureRule says: the second call lets it commit the events before it.
//
// A second Run of the same projection in the same database goes on after the last event of the
// first. Records without a position get the position after the previous record, and so does
// Event.GlobalPosition. The first position is 1. Given positions must ascend.
//
// Nothing else may run the projection in this database at the same time.
func Run[E any](t testing.TB, db *sql.DB, p orchestrator.Projection[E], events ...orchestrator.Record[E]) {
	t.Helper()
	if err := run(t.Context(), db, p, events, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))); err != nil {
		t.Fatalf("orchestratortest: %v", err)
	}
}

func run[E any](ctx context.Context, db *sql.DB, p orchestrator.Projection[E], events []orchestrator.Record[E], log *slog.Logger) error {
	if db == nil {
		return fmt.Errorf("Run: db is nil; pass the result of DB")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	name := nameOf(p)
	var positioned []orchestrator.Record[E]
	if name != "" {
		last, err := store.Highest(ctx, store.Tables{DB: db}, name)
		if err == nil {
			positioned, err = position(last, events)
		}
		if err != nil {
			return fmt.Errorf("projection %q: %w", name, err)
		}
	}
	var failure atomic.Pointer[orchestrator.HandlerError] // the latest failure
	o, err := orchestrator.New(orchestrator.Config[E]{
		DB: db, EventStore: &Store[E]{records: positioned}, ReplicaSet: setOf(name), Logger: log,
		LeaseOnly:  true, // no handler is cancelled because the database is slow
		JoinWindow: time.Millisecond, PollInterval: 10 * time.Millisecond,
		OnFailure: orchestrator.StopOnFailure,
		Retry:     orchestrator.Retry{Min: 100 * time.Millisecond, Max: time.Second},
		Observer: &orchestrator.Observer{HandlerFailed: func(f orchestrator.HandlerFailed) {
			failure.Store(&orchestrator.HandlerError{
				Projection: f.Projection, Position: f.Position, Partition: f.Partition, Attempts: f.Attempt, Err: f.Err,
			})
			// If other events precede it in the transaction, they are committed first:
			// StopOnFailure needs two attempts. The projection's own rule may allow
			// more.
			if f.Attempt >= 2 || f.Final {
				cancel()
			}
		}},
	})
	if err != nil {
		return err
	}
	if r, ok := p.(orchestrator.RebuildProjection[E]); ok && name != "" && r.RebuildOf() != "" {
		p = orchestrator.With(p, orchestrator.WithRebuildOf("")) // there is no live version here
	}
	err = o.CatchUp(ctx, []orchestrator.Projection[E]{p}) // all observer calls have returned
	var stopped *orchestrator.HandlerError
	if failed := failure.Load(); err != nil && failed != nil && !errors.As(err, &stopped) {
		return failed
	}
	return err
}

// nameOf returns the projection's name, or "" if Name panics: then CatchUp returns the error.
func nameOf[E any](p orchestrator.Projection[E]) (name string) {
	defer func() {
		if recover() != nil {
			name = ""
		}
	}()
	return p.Name()
}

// setOf returns a replica set of its own for each projection. In one set, the workers of
// parallel runs would share partitions.
func setOf(projection string) orchestrator.ReplicaSetName {
	h := fnv.New64a()
	h.Write([]byte(projection)) // never fails
	return orchestrator.ReplicaSetName(fmt.Sprintf("orchestratortest-%x", h.Sum64()))
}

// position returns the records with positions above after.
func position[E any](after int64, records []orchestrator.Record[E]) ([]orchestrator.Record[E], error) {
	out := make([]orchestrator.Record[E], 0, len(records))
	for i, r := range records {
		switch {
		case r.Position == 0:
			r.Position = after + 1
		case r.Position <= after && i > 0:
			return nil, fmt.Errorf("events[%d] has position %d, which must be above %d, the position of events[%d]", i, r.Position, after, i-1)
		case r.Position <= after:
			return nil, fmt.Errorf("events[0] has position %d, which must be above %d, the last handled position", r.Position, after)
		}
		if e, ok := any(&r.Event).(*orchestrator.Event); ok && e.GlobalPosition == 0 {
			e.GlobalPosition = r.Position // as a Table sets it
		}
		out = append(out, r)
		after = r.Position
	}
	return out, nil
}

// Store is an event store in memory, for Config.EventStore in tests of programs that create an
// Orchestrator. The zero value is empty. Its methods are safe for concurrent use.
type Store[E any] struct {
	mu      sync.Mutex
	records []orchestrator.Record[E]
}

// Append adds events at the end. Records without a position get the position after the
// previous record; the first is 1. If positions do not ascend, Append returns an error and
// adds nothing.
func (s *Store[E]) Append(records ...orchestrator.Record[E]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	positioned, err := position(s.head(), records)
	if err != nil {
		return fmt.Errorf("orchestratortest: Store.Append: %w", err)
	}
	s.records = append(s.records, positioned...)
	return nil
}

// Read implements orchestrator.EventStore.
func (s *Store[E]) Read(_ context.Context, r orchestrator.ReadRequest) (orchestrator.Page[E], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, _ := slices.BinarySearchFunc(s.records, r.After+1, func(r orchestrator.Record[E], position int64) int {
		return cmp.Compare(r.Position, position)
	})
	page := s.records[first:]
	return orchestrator.Page[E]{Records: slices.Clone(page[:min(r.Limit, len(page))])}, nil
}

// Head implements orchestrator.HeadStore.
func (s *Store[E]) Head(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head(), nil
}

func (s *Store[E]) head() int64 {
	if len(s.records) == 0 {
		return 0
	}
	return s.records[len(s.records)-1].Position
}
