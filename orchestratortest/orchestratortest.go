// Package orchestratortest tests projections: on a PostgreSQL of the test's own, a
// projection handles a list of events, as a worker would have it do that.
//
//	func TestUsers(t *testing.T) {
//		db := orchestratortest.DB(t)
//		// … create the read model's tables
//		orchestratortest.Run(t, db, users, orchestratortest.Events(
//			orchestrator.Event{AggregateID: "1", EventType: "UserRegistered"},
//			orchestrator.Event{AggregateID: "2", EventType: "UserRegistered"},
//		)...)
//		// … compare the read model with what it should be
//	}
//
// Tests may run in parallel. No TestMain is needed. A DB takes about 0.06 s where the
// server runs already, and a Run of a few events about 0.02 s.
//
// What becomes of a projection when workers crash, freeze and hand over is tested by
// package sim.
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

// DB returns a database of the test's own with the tables of the library in it. It is
// opened with lib/pq, and is closed and dropped when the test ends.
//
// It is on the server that the environment variable DATABASE_URL names, whose user must be
// allowed to create databases; where that is not set, on a server that the first test of
// the test binary starts, from binaries of PostgreSQL on this machine or from a download,
// and that ends with it. That works for root as well. (On Windows set DATABASE_URL.) Where
// none can be had DB fails the test, and says what to do.
func DB(t testing.TB) *sql.DB {
	t.Helper()
	db, _ := database(t)
	return db
}

// URL is DB for tests that open the database themselves, with pgx for example. It returns
// the database's URL. What is still connected when the test ends is disconnected.
func URL(t testing.TB) string {
	t.Helper()
	_, url := database(t)
	return url
}

func database(t testing.TB) (*sql.DB, string) {
	t.Helper()
	db, url := pgtest.Database(t)
	if err := orchestrator.Migrate(t.Context(), db); err != nil {
		t.Fatalf("orchestratortest: make the tables of the library: %v", err)
	}
	return db, url
}

// Events returns events as records for Run and Store: each of the aggregate, types and
// bounded context, at the time, and at the position (if it has one) that the event says.
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

// Run hands the events to the projection, of whatever kind, and returns when all of them
// are handled and that is committed. It does what a worker does, with the same code, and
// against the database, which has the checkpoint: one partition, in order, a BatchProjection
// or PlainBatchProjection with up to 100 events at once, the writes of a
// TransactionalProjection in one transaction with its checkpoint. An event that is
// outside of the projection's scope is not handed to it.
//
// Run fails the test at the first event that the handler fails at, with its error, the
// name of the projection and the position of the event. The handler may be called a
// second time with it, so that what precedes the event is committed; nothing is retried
// beyond that, whatever the projection's FailureRule says.
//
// A further call goes on after the last event of the one before it. Records without a
// position are given the one after the record before them, and an Event without a
// GlobalPosition gets that as well; the first record that there is has position 1.
// Positions that are given must ascend.
//
// Nothing else may run the projection in this database meanwhile.
func Run[E any](t testing.TB, db *sql.DB, p orchestrator.Projection[E], events ...orchestrator.Record[E]) {
	t.Helper()
	if err := run(t.Context(), db, p, events, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))); err != nil {
		t.Fatalf("orchestratortest: %v", err)
	}
}

func run[E any](ctx context.Context, db *sql.DB, p orchestrator.Projection[E], events []orchestrator.Record[E], log *slog.Logger) error {
	if db == nil {
		return fmt.Errorf("db is nil")
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
	var failure atomic.Pointer[orchestrator.HandlerError] // the latest that was told
	o, err := orchestrator.New(orchestrator.Config[E]{
		DB: db, EventStore: &Store[E]{records: positioned}, ReplicaSet: setOf(name), Logger: log,
		LeaseOnly:  true, // no handler is cancelled where the database answers late
		JoinWindow: time.Millisecond, PollInterval: 10 * time.Millisecond,
		OnFailure: orchestrator.StopOnFailure,
		Retry:     orchestrator.Retry{Min: 100 * time.Millisecond, Max: time.Second},
		Observer: &orchestrator.Observer{HandlerFailed: func(f orchestrator.HandlerFailed) {
			failure.Store(&orchestrator.HandlerError{
				Projection: f.Projection, Position: f.Position, Partition: f.Partition, Attempts: f.Attempt, Err: f.Err,
			})
			// Where others precede the event in the transaction, they are committed
			// first: StopOnFailure takes two attempts. A rule of the projection's own
			// may want more.
			if f.Attempt >= 2 || f.Final {
				cancel()
			}
		}},
	})
	if err != nil {
		return err
	}
	if r, ok := p.(orchestrator.RebuildProjection[E]); ok && name != "" && r.RebuildOf() != "" {
		p = orchestrator.With(p, orchestrator.WithRebuildOf("")) // there is nothing here that it could follow
	}
	err = o.CatchUp(ctx, []orchestrator.Projection[E]{p}) // and all that there was has been told
	var stopped *orchestrator.HandlerError
	if failed := failure.Load(); err != nil && failed != nil && !errors.As(err, &stopped) {
		return failed
	}
	return err
}

// nameOf returns the projection's name; "": Run of the orchestrator says what is wrong.
func nameOf[E any](p orchestrator.Projection[E]) (name string) {
	defer func() {
		if recover() != nil {
			name = ""
		}
	}()
	return p.Name()
}

// setOf returns the replica set of a projection: one of its own, or two projections of
// one database would share partitions out.
func setOf(projection string) orchestrator.ReplicaSetName {
	h := fnv.New64a()
	h.Write([]byte(projection)) // an error can't be
	return orchestrator.ReplicaSetName(fmt.Sprintf("orchestratortest-%x", h.Sum64()))
}

// position returns the records with their positions, which are above after.
func position[E any](after int64, records []orchestrator.Record[E]) ([]orchestrator.Record[E], error) {
	out := make([]orchestrator.Record[E], 0, len(records))
	for i, r := range records {
		switch {
		case r.Position == 0:
			r.Position = after + 1
		case r.Position <= after && i > 0:
			return nil, fmt.Errorf("events[%d] has position %d, which must be above that of events[%d], %d", i, r.Position, i-1, after)
		case r.Position <= after:
			return nil, fmt.Errorf("events[0] has position %d, which must be above %d, up to where the events are handled", r.Position, after)
		}
		if e, ok := any(&r.Event).(*orchestrator.Event); ok && e.GlobalPosition == 0 {
			e.GlobalPosition = r.Position // as Table has it
		}
		out = append(out, r)
		after = r.Position
	}
	return out, nil
}

// A Store is an event store in memory, to be Config.EventStore in tests of what is
// around an Orchestrator. The zero value is empty. Its methods may be called
// concurrently.
type Store[E any] struct {
	mu      sync.Mutex
	records []orchestrator.Record[E]
}

// Append adds events at the end. Records without a position are given the one after
// the record before them, from 1. At a position that does not ascend it returns an error,
// and adds nothing.
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
