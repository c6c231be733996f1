package orchestrator_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// What a reader of its own slots has passed, it has seen: what others have
// written does not hide a gap, and a page ends before what it has no room for.
func TestTableOwnGap(t *testing.T) {
	t.Parallel()
	s := newStream(t, `CREATE TABLE events (global_position bigserial PRIMARY KEY, aggregate_id text NOT NULL)`)
	table := s.table()
	const mine, others = "a", "b" // partitions 0 and 1 of 2
	expect := func(why string, after int64, limit, bytes int, passed int64, more bool, want ...int64) {
		t.Helper()
		page, got, gotMore, err := table.ReadOwn(t.Context(), 0, 2, after, limit, bytes)
		if err != nil {
			t.Fatal(err)
		}
		var positions []int64
		for _, r := range page {
			positions = append(positions, r.Position)
		}
		if !slices.Equal(positions, want) || got != passed || gotMore != more {
			t.Errorf("%s: read after %d: %v, passed %d, more %t; want %v, %d, %t", why, after, positions, got, gotMore, want, passed, more)
		}
	}
	insert := func(aggregate string) { execute(t, s.db, `INSERT INTO events (aggregate_id) VALUES ('`+aggregate+`')`) }

	expect("nothing there", 0, 10, 0, 0, false)
	insert(others)
	expect("nothing of it", 0, 10, 0, 1, false)
	insert(mine)
	open := s.begin(`INSERT INTO events (aggregate_id) VALUES ('` + mine + `') RETURNING global_position`) // 3
	insert(mine)
	insert(others)
	expect("up to the gap", 0, 10, 0, 2, false, 2)
	expectWaiting(t, "the open one", table, 3, open.backend)
	expect("at the gap", 2, 10, 0, 2, false)
	open.exec(`COMMIT`)
	expect("it was waited for", 2, 10, 0, 5, false, 3, 4)
	expect("no room for the next of its own", 2, 1, 0, 3, true, 3)
	expect("no more fits", 2, 10, 1, 3, true, 3)

	dead := s.begin(`INSERT INTO events (aggregate_id) VALUES ('` + mine + `') RETURNING global_position`) // 6
	insert(others)
	expect("nothing but a gap and what follows it", 5, 10, 0, 5, false)
	dead.exec(`ROLLBACK`)
	expect("there is to be no event", 5, 10, 0, 7, false)
	execute(t, s.db, `DELETE FROM events WHERE global_position = 4`)
	expect("somebody has deleted one", 3, 10, 0, 7, false)
}

// Workers that each read for themselves share the backlog, and none of them
// reads the parts of the others.
func TestTheBacklogIsReadInParts(t *testing.T) {
	const workers, backlog = 4, 12_000
	w := newWorld(t)
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'a' || i % 500, i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, $1) AS i`, backlog)
	var begun atomic.Bool
	var scanned, handled atomic.Int64
	p := hooked{"p", func(ctx context.Context) error {
		if a, _ := orchestrator.DeliveryFrom(ctx); a.TotalPartitions < workers {
			return errors.New("the others are still to come")
		}
		begun.Store(true)
		handled.Add(1)
		return nil
	}}
	for range workers {
		table, err := orchestrator.NewTable(w.DB, orchestrator.TableConfig[orchestrator.Event]{
			Columns: []string{"global_position"},
			Fields: func(e *orchestrator.Event, dest []any) []any {
				if begun.Load() {
					scanned.Add(1)
				}
				return append(dest, &e.GlobalPosition)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		cfg := w.Config(w.DB, "set")
		cfg.EventStore, cfg.Retry = table, orchestrator.Retry{Min: time.Millisecond, Max: 5 * time.Millisecond}
		testworld.Run(t, cfg, p)
	}
	pgtest.Eventually(t, "all has been handled", func() bool { return handled.Load() == backlog })
	// The first page of each is of everything: nobody knows yet that there is a backlog.
	if n := scanned.Load(); n > 2*backlog {
		t.Errorf("for %d events, %d were read, and %d would be if each read everything", backlog, n, workers*backlog)
	}
}

// hooked calls a function for each event.
type hooked struct {
	name string
	hook func(context.Context) error
}

func (p hooked) Name() string                                           { return p.name }
func (p hooked) Handle(ctx context.Context, _ orchestrator.Event) error { return p.hook(ctx) }
