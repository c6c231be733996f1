package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// collector returns a plain projection that keeps the positions that it has handled.
type collector struct {
	mu  sync.Mutex
	got []int64
}

func (c *collector) projection(name string, start orchestrator.Start) orchestrator.Projection[orchestrator.Event] {
	return orchestrator.Plain(name, func(_ context.Context, e orchestrator.Event) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got = append(c.got, e.GlobalPosition)
		return nil
	}, orchestrator.WithStart(start))
}

func (c *collector) has() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(slices.Values(c.got))
}

// await waits until it has handled an event at a position.
func (c *collector) await(t *testing.T, position int64) {
	t.Helper()
	pgtest.Eventually(t, fmt.Sprintf("event %d is handled", position), func() bool { return slices.Contains(c.has(), position) })
}

func (w *world) last() int64 {
	w.T.Helper()
	return w.Number(`SELECT max(global_position) FROM events`)
}

// checkpointed waits for a projection's first checkpoint, and returns where it stands.
func (w *world) checkpointed(projection string) int64 {
	w.T.Helper()
	pgtest.Eventually(w.T, projection+" has a checkpoint", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE projection = $1`, projection) > 0
	})
	return w.Number(`SELECT min(position) FROM orchestrator_checkpoints WHERE projection = $1`, projection)
}

// A new projection starts where it says, beside one that starts at the beginning; and after
// a restart with another start, or none, it goes on.
func TestStart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start orchestrator.Start
		first int64 // of 10 events, the one that it handles first
	}{
		{"now", orchestrator.StartNow(), 11},
		{"after", orchestrator.StartAfter(7), 8},
		{"after the last", orchestrator.StartAfter(10), 11},
		{"after nothing", orchestrator.StartAfter(0), 1},
		{"at a time", orchestrator.StartAtTime(time.Date(2020, 1, 4, 0, 0, 0, 0, time.UTC)), 4},
		{"after a time, by a nanosecond", orchestrator.StartAtTime(time.Date(2020, 1, 4, 0, 0, 0, 1, time.UTC)), 5},
		{"at a time that nothing has", orchestrator.StartAtTime(time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)), 11},
		{"by default", orchestrator.Start{}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(10)
			w.Exec(`UPDATE events SET created_at = timestamptz '2020-01-01 00:00:00Z' + (global_position - 1) * interval '1 day'`)
			// Times need not ascend: the ninth event is as old as the second. And it is
			// the second that has a late one.
			w.Exec(`UPDATE events SET created_at = '2020-01-02Z' WHERE global_position = 9`)

			var whole, part collector
			cfg := w.Config(w.DB, "set")
			worker := testworld.Run(t, cfg, whole.projection("whole", orchestrator.Start{}), part.projection("part", tt.start))
			whole.await(t, 10)
			w.checkpointed("part")
			w.Append(2)
			part.await(t, 12)
			worker.Stop()
			if got := part.has(); got[0] != tt.first || len(got) != int(12-tt.first+1) {
				t.Errorf("it has handled %v, want all from %d on", got, tt.first)
			}

			for i, start := range []orchestrator.Start{{}, orchestrator.StartNow(), orchestrator.StartAfter(3)} {
				w.Append(1)
				before := len(part.has())
				worker := testworld.Run(t, w.Config(w.DB, "set"), whole.projection("whole", orchestrator.Start{}), part.projection("part", start))
				part.await(t, int64(13+i))
				worker.Stop()
				if got := part.has(); len(got) != before+1 {
					t.Errorf("after a restart with %s it has handled %v", start, got)
				}
			}
		})
	}
}

// A worker that starts now waits for whoever appends right then, and says so. What these
// commit precedes the first checkpoint; what is committed after it is handled, also at a
// position that was taken before.
func TestStartNowWaitsForWhoAppends(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	early := w.begin(insertOther) // takes 11
	w.Append(1)                   // 12, the highest

	log := &testworld.Log{To: t.Output()}
	var got collector
	cfg := w.Config(w.DB, "set")
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	testworld.Run(t, cfg, got.projection("p", orchestrator.StartNow()))
	log.Wait(t, "waiting for open transactions that append events")
	if w.Sets() > 0 {
		t.Error("the worker has joined, and what is final is not known")
	}
	if err := early.Commit(); err != nil {
		t.Fatal(err)
	}
	if at := w.checkpointed("p"); at != 12 {
		t.Errorf("it starts above %d, want 12", at)
	}
	w.Append(1)
	got.await(t, 13)
	if got := got.has(); len(got) != 1 {
		t.Errorf("handled %v", got)
	}
}

// insertOther inserts an event of an aggregate of its own.
const insertOther = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', 'other', 1, gen_random_uuid(), 'happened', 'x')`

// begin runs a statement in a transaction, which stays open.
func (w *world) begin(query string, args ...any) *sql.Tx {
	w.T.Helper()
	tx, err := w.Connect().BeginTx(context.WithoutCancel(w.T.Context()), nil)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = tx.Rollback() })
	if _, err := tx.ExecContext(w.T.Context(), query, args...); err != nil {
		w.T.Fatal(err)
	}
	return tx
}

// Final does not wait where a worker has done so just before; and then it is below what is in
// flight, and not where the first position is missing.
func TestFinal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	table := w.Config(w.DB, "set").EventStore.(*orchestrator.Table[orchestrator.Event])
	final := func(want int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if at, err := table.Final(ctx); err != nil || at != want {
			t.Errorf("final to %d, %v, want %d", at, err, want)
		}
	}
	final(0)
	w.Append(3)
	if err := w.begin(insertOther).Rollback(); err != nil { // 4, of long ago
		t.Fatal(err)
	}
	w.Append(2)
	final(6)
	w.Append(2)                  // 7 and 8
	open := w.begin(insertOther) // 9
	w.Append(1)
	final(8)
	if err := open.Commit(); err != nil {
		t.Fatal(err)
	}
	final(10)

	fresh := w.Config(w.DB, "set").EventStore.(*orchestrator.Table[orchestrator.Event])
	w.begin(`SELECT nextval('events_global_position_seq')`)
	w.Append(1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if at, err := fresh.Final(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "server processes") {
		t.Errorf("one that has never looked: final to %d, %v", at, err)
	}
}

// Now is when the first checkpoint is made, and not when the worker began: what is appended
// while its join waits is not handled.
func TestStartNowIsTheJoin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	var other, got collector
	testworld.Run(t, w.Config(w.DB, "set"), other.projection("other", orchestrator.Start{}))
	other.await(t, 10)
	locked := w.begin(`SELECT FROM orchestrator_replica_sets WHERE name = 'set' FOR UPDATE`)
	testworld.Run(t, w.Config(w.DB, "set"), other.projection("other", orchestrator.Start{}), got.projection("p", orchestrator.StartNow()))
	pgtest.Eventually(t, "the join waits", func() bool {
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%join_window_us%'`) > 0
	})
	w.Append(5)
	if err := locked.Rollback(); err != nil {
		t.Fatal(err)
	}
	if at := w.checkpointed("p"); at != 15 {
		t.Errorf("it starts above %d, want 15", at)
	}
}

// The first event of a time is looked for among those that are final: one that is in flight
// before it may be the first.
func TestPositionBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	w.Exec(`UPDATE events SET created_at = '2020-01-01Z'`)
	early := w.begin(insertOther) // 11
	w.Append(1)
	table := w.Config(w.DB, "set").EventStore.(*orchestrator.Table[orchestrator.Event])
	found := make(chan int64, 1)
	go func() {
		at, err := table.PositionBefore(t.Context(), time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC))
		if err != nil {
			t.Error(err)
		}
		found <- at
	}()
	pgtest.Eventually(t, "it has looked", func() bool {
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_locks%' AND pid <> pg_backend_pid()`) > 0
	})
	if err := early.Commit(); err != nil {
		t.Fatal(err)
	}
	if at := <-found; at != 10 {
		t.Errorf("it starts above %d, want 10", at)
	}
}

// Of two programs that disagree, the first that comes with the projection decides, also if
// it never runs.
func TestStartsDisagree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	var whole, now collector
	first, second := w.Config(w.DB, "set"), w.Config(w.DB, "set")
	first.JoinWindow = time.Minute
	// Somebody runs the set, so that the first waits for the join window.
	var other collector
	runs := testworld.Run(t, first, other.projection("other", orchestrator.Start{}))
	other.await(t, 10)
	a := testworld.Run(t, first, other.projection("other", orchestrator.Start{}), now.projection("p", orchestrator.StartNow()))
	if at := w.checkpointed("p"); at != 10 {
		t.Fatalf("p starts above %d", at)
	}
	a.Stop()
	runs.Stop()
	w.Append(1)
	testworld.Run(t, second, other.projection("other", orchestrator.Start{}), whole.projection("p", orchestrator.StartAfter(3)))
	whole.await(t, 11)
	if got := slices.Concat(now.has(), whole.has()); len(got) != 1 {
		t.Errorf("handled %v, and the first program starts it now, after event 10", got)
	}
}

// Two that join at once agree, and nothing that is appended after the first checkpoint is
// left out.
func TestStartsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	stop := make(chan struct{})
	var appends sync.WaitGroup
	appends.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				w.Append(1)
			}
		}
	})
	var got collector
	for i := range 4 {
		start := orchestrator.StartNow()
		if i%2 == 1 {
			start = orchestrator.StartAfter(100)
		}
		testworld.Run(t, w.Config(w.DB, "set"), got.projection("p", start))
	}
	w.checkpointed("p")
	w.Active("set", 4)
	close(stop)
	appends.Wait()
	w.Append(20)
	last := w.last()
	pgtest.Eventually(t, "all is handled", func() bool {
		return w.Number(`SELECT min(position) FROM orchestrator_checkpoints`) >= last || slices.Contains(got.has(), last)
	})
	if err := orchestrator.WaitFor(t.Context(), w.DB, "p", last); err != nil {
		t.Fatal(err)
	}
	all := slices.Compact(got.has())
	if n := int(last - all[0] + 1); len(all) != n || all[0] <= 100 {
		t.Errorf("handled %d events from %d to %d", len(all), all[0], last)
	}
}

// What can't be is said before anything is touched.
func TestStartRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(5)
	untimed, err := orchestrator.NewTable(w.DB, orchestrator.TableConfig[orchestrator.Event]{
		Columns: []string{"global_position"}, Fields: func(e *orchestrator.Event, dest []any) []any { return append(dest, &e.GlobalPosition) },
	})
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := orchestrator.NewTable(w.DB, orchestrator.TableConfig[orchestrator.Event]{
		TimeColumn: "payload",
		Columns:    []string{"global_position"}, Fields: func(e *orchestrator.Event, dest []any) []any { return append(dest, &e.GlobalPosition) },
	})
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		start orchestrator.Start
		store orchestrator.EventStore[orchestrator.Event]
		want  string
	}{
		{orchestrator.StartAfter(-1), nil, `projection "p": StartAfter(-1): a position can't be negative`},
		{orchestrator.StartAfter(6), nil, `projection "p": StartAfter(6): the event stream ends at position 5`},
		{orchestrator.StartAtTime(time.Time{}), nil, `projection "p": StartAtTime(0001-01-01T00:00:00Z): the time is zero`},
		{orchestrator.StartAtTime(time.Now().Add(time.Hour)), nil, "the time is in the future"},
		{orchestrator.StartAtTime(past), untimed, "TableConfig.TimeColumn is empty"},
		{orchestrator.StartAtTime(past), wrong, `TableConfig.TimeColumn "payload" is of type bytea`},
		{orchestrator.StartNow(), onlyReads{}, "is not a FinalStore; give it a method Final(context.Context) (int64, error)"},
		{orchestrator.StartAtTime(past), onlyReads{}, "is not a TimeStore; give it a method PositionBefore"},
		{orchestrator.StartNow(), badEnd{}, "Final returned the negative position -1"},
	} {
		cfg := w.Config(w.DB, "set")
		if tt.store != nil {
			cfg.EventStore = tt.store
		}
		var c collector
		err := testworld.Run(t, cfg, c.projection("p", tt.start)).Failed()
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, orchestrator.ErrInvalidConfig) && !errors.Is(err, orchestrator.ErrEventStore) {
			t.Errorf("%s: %v\nwant: %s", tt.start, err, tt.want)
		}
	}
	one := w.Connect()
	cfg := w.Config(one, "set")
	err = testworld.Run(t, cfg, new(collector).projection("p", orchestrator.StartNow())).Failed()
	if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), "Config.DB has one connection") {
		t.Errorf("a pool of one connection: %v", err)
	}
	if n := w.Sets(); n != 0 {
		t.Errorf("there are %d replica sets", n)
	}
}

// onlyReads is an event store that can do no more.
type onlyReads struct{}

func (onlyReads) Read(context.Context, orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	return orchestrator.Page[orchestrator.Event]{}, nil
}

// badEnd is one that ends at no position.
type badEnd struct{ onlyReads }

func (badEnd) Final(context.Context) (int64, error) { return -1, nil }
