package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// scoped projections get a part of the stream.
type (
	scope struct{ types, contexts, events []string }

	scopedTransactional struct {
		testworld.Transactional
		scope
	}
	scopedBatched struct {
		testworld.Batched
		scope
	}
	scopedNamed struct {
		named
		scope
	}
)

func (s scope) AggregateTypes() []string  { return s.types }
func (s scope) BoundedContexts() []string { return s.contexts }
func (s scope) EventTypes() []string      { return s.events }

const insertScoped = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT (ARRAY['sales', 'identity', 'billing'])[1 + i %% 3], (ARRAY['Order', 'User''s \'])[1 + i %% 2], '%[1]s' || i %% 30, i, gen_random_uuid(),
       (ARRAY['Placed', 'Paid', 'User''s \', ''])[1 + i %% 4], 'x'
  FROM generate_series(1, $1) AS i`

// Each projection gets what is within its scope, and nothing else, while
// workers come and go and a writer leaves gaps.
func TestScopedProjections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	scopes := map[string]scope{
		"orders":          {types: []string{"Order"}},
		"sales":           {contexts: []string{"sales"}},
		"orders in sales": {types: []string{"Order"}, contexts: []string{"sales", "billing"}},
		"users":           {types: []string{`User's \`}}, // to be quoted
		"nothing":         {types: []string{"Invoice"}},
		"paid":            {events: []string{"Paid", `User's \`}},
		"placed orders":   {types: []string{"Order"}, events: []string{"Placed", "Paid"}},
		"all three":       {types: []string{"Order"}, contexts: []string{"sales", "billing"}, events: []string{"User's \\"}},
		"nothing such":    {events: []string{"Refunded"}},
		"of no type":      {events: []string{""}},
		"everything":      {},
	}
	var projections []orchestrator.Projection[orchestrator.Event]
	for name, s := range scopes {
		if name == "sales" {
			projections = append(projections, scopedBatched{testworld.Effects{Projection: name}.Batched(), s})
		} else {
			projections = append(projections, scopedTransactional{testworld.Effects{Projection: name}.Transactional(), s})
		}
	}
	cfg := w.Config(w.DB, "set")
	cfg.BatchSize = 7
	w.Exec(fmt.Sprintf(insertScoped, "a"), 500)
	first := testworld.Run(t, cfg, projections...)
	w.Active("set", 1)
	open, err := w.DB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback()
	if _, err := open.ExecContext(t.Context(), fmt.Sprintf(insertScoped, "late"), 60); err != nil {
		t.Fatal(err)
	}
	w.Exec(fmt.Sprintf(insertScoped, "b"), 500)
	second := testworld.Run(t, cfg, projections...)
	w.Active("set", 2)
	if err := open.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Exec(fmt.Sprintf(insertScoped, "c"), 300)
	last := w.Number(`SELECT max(global_position) FROM events`)
	pgtest.Eventually(t, "all checkpoints have passed everything", func() bool {
		return w.Reached() >= last
	})
	first.Stop()
	second.Stop()
	for name, s := range scopes {
		const within = `($1 = '' OR aggregate_type = ANY (string_to_array($1, ','))) AND ($2 = '' OR bounded_context = ANY (string_to_array($2, ',')))
			AND ($3::text[] = '{}' OR event_type = ANY ($3::text[]))`
		types, contexts, events := strings.Join(s.types, ","), strings.Join(s.contexts, ","), pq.StringArray(s.events)
		if events == nil {
			events = pq.StringArray{}
		}
		want := w.Number(`SELECT count(*) FROM events WHERE `+within, types, contexts, events)
		if name == "everything" && want != 1360 || (want == 0) != strings.HasPrefix(name, "nothing") {
			t.Errorf("the test counts %d events as %s", want, name)
		}
		if got := w.Number(`SELECT count(*) FROM effects WHERE projection = $1`, name); got != want {
			t.Errorf("projection %q has handled %d events, want %d", name, got, want)
		}
		if n := w.Number(`SELECT count(*) FROM effects f JOIN events e ON e.global_position = f.position WHERE NOT (`+within+`) AND f.projection = $4`,
			types, contexts, events, name); n != 0 {
			t.Errorf("projection %q has handled %d events that are out of its scope", name, n)
		}
	}
	w.CheckEffects("everything")
}

// A scope that the event store can't read is refused before anything begins.
func TestScopeThatCannotBeRead(t *testing.T) {
	t.Parallel()
	ofOrders := scopedNamed{named("orders"), scope{types: []string{"Order"}}}
	sales := scopedNamed{named("sales"), scope{contexts: []string{"sales"}}}
	paid := scopedNamed{named("paid"), scope{events: []string{"Paid"}}}
	bare, err := orchestrator.NewTable(unused(t), orchestrator.TableConfig[orchestrator.Event]{
		Columns: []string{"a"},
		Fields:  func(e *orchestrator.Event, dest []any) []any { return append(dest, &e.AggregateID) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		why    string
		events orchestrator.EventStore[orchestrator.Event]
		p      projection
		want   string
	}{
		{"a table without a column for types", bare, ofOrders, `orchestrator: invalid configuration: TableConfig.AggregateTypeColumn is empty, but the scope of projection "orders" has AggregateTypes: name their column, or remove them from the scope`},
		{"a table without a column for contexts", bare, sales, `TableConfig.BoundedContextColumn is empty, but the scope of projection "sales" has BoundedContexts`},
		{"a table without a column for event types", bare, paid, `TableConfig.EventTypeColumn is empty, but the scope of projection "paid" has EventTypes`},
		{"the same, by an option", bare, orchestrator.With(projection(named("paid")), orchestrator.WithScope(orchestrator.Scope{EventTypes: []string{"Paid"}})),
			`TableConfig.EventTypeColumn is empty, but the scope of projection "paid" has EventTypes`},
	} {
		t.Run(test.why, func(t *testing.T) {
			cfg := valid(t)
			cfg.EventStore = test.events
			o, err := orchestrator.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			checkInvalid(t, o.Run(t.Context(), []projection{named("other"), test.p}), test.want)
		})
	}
}

// A listStore is an event store in memory, which returns at most cap events in a page,
// and ignores the scope.
type listStore struct {
	records []orchestrator.Record[orchestrator.Event]
	cap     int
	asked   atomic.Int64 // the highest position after which it was read
}

func (s *listStore) Read(_ context.Context, r orchestrator.ReadRequest) (p orchestrator.Page[orchestrator.Event], err error) {
	s.asked.Store(max(s.asked.Load(), r.After))
	for _, e := range s.records {
		switch {
		case e.Position <= r.After:
		case len(p.Records) == min(r.Limit, s.cap):
			p.More = true
			return p, nil
		default:
			p.Records = append(p.Records, e)
		}
	}
	return p, nil
}

// orders returns a store of 200 events, every other of which is of an order, and placed.
func orders() *listStore {
	events := &listStore{cap: 3}
	for i := int64(1); i <= 200; i++ {
		e := orchestrator.Record[orchestrator.Event]{Position: i, AggregateID: fmt.Sprint("a", i%7), AggregateType: []string{"Order", "User"}[i%2], EventType: []string{"Placed", "Seen"}[i%2]}
		e.Event.GlobalPosition = i
		events.records = append(events.records, e)
	}
	return events
}

// A store that ignores the scope serves a scoped projection all the same, alone and
// beside one that wants everything.
func TestStoreThatIgnoresScope(t *testing.T) {
	t.Parallel()
	for why, beside := range map[string][]projection{"alone": nil, "beside one that wants everything": {testworld.Effects{Projection: "all"}.Transactional()}} {
		t.Run(why, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.Config(w.DB, "set")
			cfg.EventStore = orders()
			r := testworld.Run(t, cfg, append(beside,
				scopedTransactional{testworld.Effects{Projection: "orders"}.Transactional(), scope{types: []string{"Order"}}},
				scopedTransactional{testworld.Effects{Projection: "placed"}.Transactional(), scope{events: []string{"Placed"}}})...)
			pgtest.Eventually(t, "all is passed", func() bool {
				return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position < 199`) == 0 && w.Handled("orders") == 100 && w.Handled("placed") == 100
			})
			r.Stop()
			if n := w.Number(`SELECT count(*) FROM effects WHERE projection <> 'all' AND position % 2 = 1`); n != 0 {
				t.Errorf("%d events out of scope were handled", n)
			}
			if n := w.Handled("all"); n != int64(200*len(beside)) {
				t.Errorf("the one that wants everything has handled %d", n)
			}
		})
	}
}

// A page that its store keeps short is not taken for the end of the stream: what follows
// is read ahead while the first event is handled.
func TestShortPagesAreReadAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	events, read := orders(), make(chan struct{})
	cfg := w.Config(w.DB, "set")
	cfg.EventStore = events
	testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error {
		<-read
		return nil
	}}.Transactional())
	pgtest.Eventually(t, "what follows the first page is read", func() bool { return events.asked.Load() >= 3 })
	close(read)
	pgtest.Eventually(t, "all is handled", func() bool { return w.Handled("p") == 200 })
}

// An event that does not say what a scope is about is an error, and not left out.
func TestScopeOfEventsThatDoNotSay(t *testing.T) {
	t.Parallel()
	e := orchestrator.Record[orchestrator.Event]{Position: 7, AggregateID: "a", BoundedContext: "sales"}
	e.Event.EventType = "Placed" // the library can't know that
	for why, beside := range map[string][]projection{"alone": nil, "beside one that wants everything": {testworld.Effects{Projection: "all"}.Transactional()}} {
		t.Run(why, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.Config(w.DB, "set")
			cfg.EventStore = &listStore{records: []orchestrator.Record[orchestrator.Event]{e}, cap: 10}
			var log lockedBuffer
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			r := testworld.Run(t, cfg, append(beside,
				scopedTransactional{testworld.Effects{Projection: "orders"}.Transactional(), scope{types: []string{"Order"}}},
				scopedTransactional{testworld.Effects{Projection: "placed"}.Transactional(), scope{events: []string{"Placed"}}},
				scopedTransactional{testworld.Effects{Projection: "identity"}.Transactional(), scope{contexts: []string{"identity"}, events: []string{"Placed"}}})...)
			pgtest.Eventually(t, "the log says so", func() bool {
				return strings.Contains(log.String(), "position 7 has no Record.AggregateType") && strings.Contains(log.String(), "position 7 has no Record.EventType")
			})
			pgtest.Eventually(t, "what is out of scope by what it says is passed", func() bool {
				return w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'identity' AND position = 7`) == 1
			})
			r.Stop()
			if n := w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE projection IN ('orders', 'placed') AND position > 0`); n != 0 {
				t.Error("it was passed")
			}
			if n := w.Number(`SELECT count(*) FROM effects WHERE projection <> 'all'`); n != 0 {
				t.Errorf("%d were handled", n)
			}
		})
	}
}

// What a reader of a part has passed, it has seen: gaps are waited for, though
// a page shows none.
func TestTableScopedGap(t *testing.T) {
	t.Parallel()
	kinds := []string{"y", "z"}
	t.Run("of aggregate types", func(t *testing.T) {
		testScopedGap(t, func(c *orchestrator.TableConfig[int64]) { c.AggregateTypeColumn = "kind" }, orchestrator.Scope{AggregateTypes: kinds})
	})
	t.Run("of event types", func(t *testing.T) {
		testScopedGap(t, func(c *orchestrator.TableConfig[int64]) { c.EventTypeColumn = "kind" }, orchestrator.Scope{EventTypes: kinds})
	})
}

func testScopedGap(t *testing.T, column func(*orchestrator.TableConfig[int64]), scope orchestrator.Scope) {
	s := newStream(t, `CREATE TABLE events (global_position bigserial PRIMARY KEY, aggregate_id text NOT NULL DEFAULT 'a', kind text NOT NULL DEFAULT 'x')`)
	table := s.table(column)
	expect := func(why string, after int64, limit int, passed int64, want ...int64) {
		t.Helper()
		page, err := table.Read(t.Context(), orchestrator.ReadRequest{After: after, Limit: limit, Scope: scope})
		if err != nil {
			t.Fatal(err)
		}
		var positions []int64
		for _, r := range page.Records {
			positions = append(positions, r.Position)
		}
		if !slices.Equal(positions, want) || page.Through != passed {
			t.Errorf("%s: read after %d: %v, through %d; want %v, %d", why, after, positions, page.Through, want, passed)
		}
	}
	insert := func(kind string) { execute(t, s.db, `INSERT INTO events (kind) VALUES ('`+kind+`')`) }

	expect("nothing there", 0, 10, 0)
	insert("x")
	expect("nothing of it", 0, 10, 1)
	expect("and no more", 1, 10, 1)
	insert("y")
	open := s.begin(`INSERT INTO events (kind) VALUES ('z') RETURNING global_position`) // 3
	insert("y")
	insert("x")
	expect("up to the gap", 0, 10, 2, 2)
	expectWaiting(t, "the open one", table, 3, open.backend)
	expect("at the gap", 2, 10, 2)
	open.exec(`COMMIT`)
	expect("a page that is full ends at its last event", 0, 2, 3, 2, 3)
	expect("it was waited for", 2, 10, 5, 3, 4)

	dead := s.begin(`INSERT INTO events (kind) VALUES ('y') RETURNING global_position`) // 6
	insert("x")
	expect("nothing but a gap and what follows it", 5, 10, 5)
	dead.exec(`ROLLBACK`)
	expect("there is to be no event", 5, 10, 7)
}

// A projection that wants one event in ten thousand does not commit for each
// page that it reads.
func TestOutOfScopeCostsNoCommits(t *testing.T) {
	t.Parallel()
	for why, s := range map[string]scope{"by aggregate type": {types: []string{"rare"}}, "by event type": {events: []string{"rare"}}} {
		t.Run(why, func(t *testing.T) {
			w := newWorld(t)
			w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', kind, 'a' || i % 100, i, gen_random_uuid(), kind, 'x'
  FROM (SELECT i, CASE i % 10000 WHEN 0 THEN 'rare' ELSE 'common' END AS kind FROM generate_series(1, 40000) AS i) e ORDER BY i`)
			db, f := testworld.Faulty(t, w.URL)
			cfg := w.Config(db, "set")
			var seen int
			r := testworld.Run(t, cfg, scopedTransactional{testworld.Effects{Projection: "rare", Hook: func(context.Context, orchestrator.Event) error {
				seen++
				return nil
			}}.Transactional(), s})
			pgtest.Eventually(t, "it has passed everything", func() bool {
				return w.Reached() == 40000
			})
			r.Stop()
			if n := f.Commits.Load(); seen != 4 || n > 15 {
				t.Errorf("%d events were handled, with %d commits", seen, n)
			} else {
				t.Logf("%d of 40000 events were handled, with %d commits", seen, n)
			}
		})
	}
}

// pagesStore is an event store of fixed pages: pages says what there is above a position.
type pagesStore struct {
	pages func(r orchestrator.ReadRequest) orchestrator.Page[orchestrator.Event]
}

func (s *pagesStore) Read(_ context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	return s.pages(r), nil
}

// What a store says beside a full page is not believed: the events that did not fit follow.
func TestFullPageThatSaysTooMuch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := orders()
	all.cap = 1000
	cfg := w.Config(w.DB, "set")
	cfg.EventStore = &pagesStore{func(r orchestrator.ReadRequest) orchestrator.Page[orchestrator.Event] {
		page, _ := all.Read(context.Background(), r)
		page.Through = 200 // the end of the stream
		return page
	}}
	cfg.BatchSize = 7
	testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Transactional())
	pgtest.Eventually(t, "all is handled", func() bool { return w.Handled("p") == 200 })
}

// A store that returns nothing and says that there is more is said to, and is asked again.
func TestStoreThatSaysMoreOfNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.EventStore = &pagesStore{func(orchestrator.ReadRequest) orchestrator.Page[orchestrator.Event] {
		return orchestrator.Page[orchestrator.Event]{More: true}
	}}
	log := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Transactional())
	log.Wait(t, "returned no event above position 0, but says that there is more")
}

// An event whose type is empty is out of a scope of types, also where a Table is embedded
// and a projection of everything stands beside.
func TestEmptyTypeInATable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(30)
	w.Exec(`UPDATE events SET aggregate_type = '' WHERE global_position = 7`)
	for set, embed := range map[orchestrator.ReplicaSetName]bool{"plain": false, "embedded": true} {
		table, err := orchestrator.NewEventTable(w.DB, "")
		if err != nil {
			t.Fatal(err)
		}
		cfg := w.Config(w.DB, set)
		if cfg.EventStore = table; embed {
			cfg.EventStore = &struct {
				*orchestrator.Table[orchestrator.Event]
			}{table}
		}
		all, things := string(set)+" all", string(set)+" things"
		testworld.Run(t, cfg, testworld.Effects{Projection: all}.Transactional(),
			orchestrator.Transactional(things, func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
				_, err := tx.ExecContext(ctx, `INSERT INTO effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, 0, 0, 1)`, things, e.GlobalPosition, e.AggregateID)
				return err
			}, orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"thing"}})))
		pgtest.Eventually(t, "all is handled", func() bool { return w.Handled(all) == 30 && w.Handled(things) == 29 })
	}
}

// An event that was parked before its projection had a scope, and is out of it, is not
// handled when it is retried, also where the store ignores scopes.
func TestParkedEventOutOfScope(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.EventStore = orders() // odd positions are of users
	fails := testworld.Effects{Projection: "p", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 3 {
			return errors.New("no")
		}
		return nil
	}}
	cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 1}}
	first := testworld.Run(t, cfg, fails.Transactional())
	pgtest.Eventually(t, "it is parked", func() bool { return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position = 3`) == 1 })
	first.Stop()
	cfg.EventStore = orders()
	second := testworld.Run(t, cfg, orchestrator.Transactional("p", func(context.Context, orchestrator.Tx, orchestrator.Event) error { return nil },
		orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"Order"}})))
	w.Retry("p", ops.ParkedSelector{Positions: []int64{3}})
	pgtest.Eventually(t, "the request is dropped, and says why", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position = 3 AND request IS NULL AND error LIKE 'the event store has no event at this position%'`) == 1
	})
	second.Stop()
}

// A parked event that a narrower scope leaves out can't be retried, and holds back what
// comes later of its aggregate, until it is discarded.
func TestParkedEventOfAnotherType(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'order', 'a', i, gen_random_uuid(), CASE i % 2 WHEN 0 THEN 'Paid' ELSE 'Placed' END, 'x' FROM generate_series(1, 6) AS i`)
	var mended atomic.Bool
	p := testworld.Effects{Projection: "p", Hook: testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.GlobalPosition == 3 })}
	cfg := testworld.Parking(w.Config(w.DB, "set"), "p")
	first := testworld.Run(t, cfg, p.Transactional())
	parked := func(want ...int64) func() bool {
		return func() bool {
			got, _ := w.Parked("p")
			return slices.Equal(got, want)
		}
	}
	pgtest.Eventually(t, "it is parked, and what comes later of its aggregate", parked(3, 4, 5, 6))
	first.Stop()

	mended.Store(true)
	testworld.Run(t, cfg, scopedTransactional{p.Transactional(), scope{events: []string{"Paid"}}})
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'order', 'a', i, gen_random_uuid(), CASE i % 2 WHEN 0 THEN 'Paid' ELSE 'Placed' END, 'x' FROM generate_series(7, 8) AS i`)
	pgtest.Eventually(t, "what is out of scope is not parked behind it", parked(3, 4, 5, 6, 8))
	w.Retry("p", ops.ParkedSelector{AggregateID: "a"})
	pgtest.Eventually(t, "the request is dropped, and says why", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position = 3 AND request IS NULL AND error LIKE '%out of the projection''s scope'`) == 1
	})
	if n := w.Handled("p"); n != 2 {
		t.Errorf("%d events are handled, though an earlier one of their aggregate is parked", n)
	}
	w.Retry("p", ops.ParkedSelector{AggregateID: "a"})
	if _, err := ops.DiscardParked(t.Context(), w.DB, "p", ops.ParkedSelector{Positions: []int64{3, 5}}); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the rest is handled", func() bool { return parked()() && w.Handled("p") == 5 })
	if got := w.Positions(`SELECT position FROM effects WHERE projection = 'p' ORDER BY position`); !slices.Equal(got, []int64{1, 2, 4, 6, 8}) {
		t.Errorf("%v are handled", got)
	}
}
