package orchestratortest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/orchestratortest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// The examples run as well.
func TestExample(t *testing.T) {
	t.Run("balances", testBalances)
	t.Run("mailer", testMailer)
}

// Each test has a database of its own with the library's tables, also in parallel. It is gone
// when the test has ended, even if clients are connected.
func TestDatabases(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var names []string
	var left []*sql.DB
	t.Run("in parallel", func(t *testing.T) {
		for i := range 4 {
			t.Run("same name", func(t *testing.T) {
				t.Parallel()
				db := orchestratortest.DB(t)
				if i%2 == 1 {
					var err error
					if db, err = sql.Open("postgres", orchestratortest.URL(t)); err != nil {
						t.Fatal(err)
					}
				}
				var name string
				if err := db.QueryRowContext(t.Context(), `SELECT current_database() FROM (SELECT count(*) FROM orchestrator_checkpoints) c`).Scan(&name); err != nil {
					t.Fatal(err)
				}
				if _, err := db.ExecContext(t.Context(), `CREATE TABLE mine ()`); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				names, left = append(names, name), append(left, db)
			})
		}
	})
	for _, db := range left {
		db.Close()
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != 4 {
		t.Errorf("the databases are %q, want 4", names)
	}
	for _, name := range names {
		var there bool
		if err := orchestratortest.DB(t).QueryRowContext(t.Context(), `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&there); err != nil || there {
			t.Errorf("%s after its test: there %v, %v; want it dropped", name, there, err)
		}
	}
}

const childEnv = "ORCHESTRATORTEST_CHILD"

// Without a database, a test fails and says what to do.
func TestNoDatabase(t *testing.T) {
	t.Parallel()
	if os.Getenv(childEnv) != "" {
		orchestratortest.DB(t)
		t.Log("went on")
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	child := exec.Command(os.Args[0], "-test.run=^TestNoDatabase$", "-test.v")
	child.Env = append(os.Environ(), childEnv+"=1", "DATABASE_URL=postgres://u:secret@"+nobody+"/d")
	out, err := child.CombinedOutput()
	if err == nil || strings.Contains(string(out), "went on") || strings.Contains(string(out), "secret") {
		t.Errorf("the test ended with %v:\n%s", err, out)
	}
	for _, want := range []string{"DATABASE_URL", nobody, "What to do: start that server, correct DATABASE_URL, or unset it"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

// Events become records with the same values, and know their positions.
func TestEvents(t *testing.T) {
	t.Parallel()
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got := orchestratortest.Events(orchestrator.Event{GlobalPosition: 7, BoundedContext: "c", AggregateType: "t", AggregateID: "a", CreatedAt: made, EventType: "x"})
	want := []orchestrator.Record[orchestrator.Event]{{Position: 7, BoundedContext: "c", AggregateType: "t", AggregateID: "a", EventType: "x", Time: made,
		Event: orchestrator.Event{GlobalPosition: 7, BoundedContext: "c", AggregateType: "t", AggregateID: "a", CreatedAt: made, EventType: "x"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	db := orchestratortest.DB(t)
	var positions []int64
	p := orchestrator.Plain("p", func(_ context.Context, e orchestrator.Event) error {
		positions = append(positions, e.GlobalPosition)
		return nil
	})
	events := []orchestrator.Event{{AggregateID: "a"}, {AggregateID: "b", GlobalPosition: 5}, {AggregateID: "a"}}
	orchestratortest.Run(t, db, p, orchestratortest.Events(events...)...)
	orchestratortest.Run(t, db, p, orchestratortest.Events(events[0])...)
	if want := []int64{1, 5, 6, 7}; !slices.Equal(positions, want) || events[0].GlobalPosition != 0 {
		t.Errorf("the positions are %v, want %v; the caller's are %+v", positions, want, events)
	}
}

type record = orchestrator.Record[string]

// of returns records of one aggregate, without positions.
func of(events ...string) (records []record) {
	for _, e := range events {
		records = append(records, record{AggregateID: "a", Event: e})
	}
	return records
}

// words returns a database with a table for what handlers get.
func words(t *testing.T) *sql.DB {
	t.Helper()
	db := orchestratortest.DB(t)
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE words (id serial, word text)`); err != nil {
		t.Fatal(err)
	}
	return db
}

// written returns the committed words.
func written(t *testing.T, db *sql.DB) (all []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT word FROM words ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var word string
		if err := rows.Scan(&word); err != nil {
			t.Fatal(err)
		}
		all = append(all, word)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// write is a transactional handler.
func write(ctx context.Context, tx orchestrator.Tx, word string) error { return insert(ctx, tx, word) }

// insert writes to a database or a transaction.
func insert(ctx context.Context, db interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, word string) error {
	_, err := db.ExecContext(ctx, `INSERT INTO words (word) VALUES ($1)`, word)
	return err
}

// Each kind gets the events in order, with a delivery, and the writes are committed when Run
// returns. A second Run goes on.
func TestRun(t *testing.T) {
	t.Parallel()
	assigned := func(ctx context.Context) error {
		if a, ok := orchestrator.DeliveryFrom(ctx); !ok || a.TotalPartitions != 1 {
			return fmt.Errorf("the assignment is %+v, %v", a, ok)
		}
		return nil
	}
	for kind, made := range map[string]func(db *sql.DB) orchestrator.Projection[string]{
		"plain": func(db *sql.DB) orchestrator.Projection[string] {
			return orchestrator.Plain("p", func(ctx context.Context, word string) error {
				return errors.Join(assigned(ctx), insert(ctx, db, word))
			})
		},
		"transactional": func(*sql.DB) orchestrator.Projection[string] {
			return orchestrator.Transactional("p", func(ctx context.Context, tx orchestrator.Tx, word string) error {
				return errors.Join(assigned(ctx), write(ctx, tx, word))
			})
		},
		"a rebuild of what is not here": func(*sql.DB) orchestrator.Projection[string] {
			return orchestrator.Transactional("p", func(ctx context.Context, tx orchestrator.Tx, word string) error {
				return errors.Join(assigned(ctx), write(ctx, tx, word))
			}, orchestrator.WithRebuildOf("live"))
		},
		"batch": func(*sql.DB) orchestrator.Projection[string] {
			return orchestrator.Batch("p", func(ctx context.Context, tx orchestrator.Tx, words []string) error {
				return errors.Join(assigned(ctx), write(ctx, tx, strings.Join(words, " ")))
			})
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			db := words(t)
			p := made(db)
			orchestratortest.Run(t, db, p)
			orchestratortest.Run(t, db, p, of("one", "two")...)
			orchestratortest.Run(t, db, p, of("three")...)
			want := []string{"one", "two", "three"}
			if kind == "batch" {
				want = []string{"one two", "three"}
			}
			if diff := cmp.Diff(want, written(t, db)); diff != "" {
				t.Errorf("handled (-want +got):\n%s", diff)
			}
			if err := orchestrator.WaitFor(t.Context(), db, "p", 3); err != nil {
				t.Errorf("the checkpoint: %v", err)
			}
		})
	}
}

// Two projections in one database are independent.
func TestRunTwoProjections(t *testing.T) {
	t.Parallel()
	db := words(t)
	a, b := orchestrator.Transactional("a", write), orchestrator.Transactional("b", write)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { orchestratortest.Run(t, db, a, of("1", "2", "3")...) })
		both.Go(func() { orchestratortest.Run(t, db, b, of("1", "2", "3")...) })
		both.Wait()
	}
	got := written(t, db)
	slices.Sort(got)
	if want := strings.Fields("1 1 1 1 2 2 2 2 3 3 3 3"); !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
}

// Events outside of the scope are skipped.
func TestRunScoped(t *testing.T) {
	t.Parallel()
	db := words(t)
	p := orchestrator.Transactional("p", write, orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"Order"}}))
	for range 2 {
		orchestratortest.Run(t, db, p,
			record{AggregateID: "a", AggregateType: "Order", Event: "order"}, record{AggregateID: "b", AggregateType: "User", Event: "user"})
	}
	if got := written(t, db); !slices.Equal(got, []string{"order", "order"}) {
		t.Errorf("handled %q", got)
	}
}

// A refusal records the expected end of a test.
type refusal struct {
	testing.TB
	text string
}

func (r *refusal) Helper() {}

func (r *refusal) Fatalf(format string, args ...any) { r.text = fmt.Sprintf(format, args...) }

// refused fails the test unless Run ends its test with a text that contains all parts.
func refused(t *testing.T, db *sql.DB, p orchestrator.Projection[string], events []record, parts ...string) {
	t.Helper()
	r := &refusal{TB: t}
	orchestratortest.Run(r, db, p, events...)
	for _, part := range append(parts, "orchestratortest: ") {
		if !strings.Contains(r.text, part) {
			t.Errorf("Run says %q, want %q", r.text, part)
		}
	}
}

// The first event at which the handler fails ends Run, however it fails and whatever the
// projection's rule, with the error, the position and the name. Events before it are committed.
func TestRunFails(t *testing.T) {
	t.Parallel()
	broken := func() error { return errors.New("out of paper") }
	for why, c := range map[string]struct {
		fail func() error
		rule *orchestrator.FailureRule
		says string
	}{
		"an error":            {broken, nil, "out of paper"},
		"a panic":             {func() error { panic("out of paper") }, nil, "panic: out of paper"},
		"a goroutine's end":   {func() error { runtime.Goexit(); return nil }, nil, "t.FailNow"},
		"a cancelled context": {func() error { return fmt.Errorf("out of paper: %w", context.Canceled) }, nil, "out of paper"},

		"under RetryForever":  {broken, &orchestrator.FailureRule{Policy: orchestrator.RetryForever}, "out of paper"},
		"under ParkEvents":    {broken, &orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 50}, "out of paper"},
		"parked at once":      {broken, &orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 1}, "out of paper"},
		"under StopOnFailure": {broken, &orchestrator.FailureRule{Policy: orchestrator.StopOnFailure, Attempts: 50}, "out of paper"},
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			db := words(t)
			var options []orchestrator.ProjectionOption
			if c.rule != nil {
				options = append(options, orchestrator.WithFailureRule(*c.rule))
			}
			calls := map[string]int{}
			bad := func(word string) error {
				if calls[word]++; word == "bad" {
					return c.fail()
				}
				return nil
			}
			handle := func(ctx context.Context, tx orchestrator.Tx, word string) error {
				if err := bad(word); err != nil {
					return err
				}
				return write(ctx, tx, word)
			}
			for _, p := range []orchestrator.Projection[string]{
				orchestrator.Plain("plain", func(ctx context.Context, word string) error {
					if err := bad(word); err != nil {
						return err
					}
					return insert(ctx, db, word)
				}, options...),
				orchestrator.Transactional("transactional", handle, options...),
				orchestrator.Batch("batch", func(ctx context.Context, tx orchestrator.Tx, words []string) error {
					for _, word := range words {
						if err := handle(ctx, tx, word); err != nil {
							return err
						}
					}
					return nil
				}, options...),
			} {
				clear(calls)
				refused(t, db, p, of("good", "bad", "never"), fmt.Sprintf("projection %q failed at position 2 ", p.Name()), c.says)
				if calls["bad"] > 10 || calls["never"] > 0 {
					t.Errorf("%s was called %v times", p.Name(), calls)
				}
			}
			if got := written(t, db); !slices.Equal(got, []string{"good", "good", "good"}) {
				t.Errorf("committed %q", got)
			}
		})
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	db := words(t)
	p := orchestrator.Transactional("p", write)
	at := func(positions ...int64) (records []record) {
		for _, position := range positions {
			records = append(records, record{Position: position, AggregateID: "a", Event: fmt.Sprint(position)})
		}
		return records
	}
	orchestratortest.Run(t, db, p, at(0, 10, 0, 20)...)
	refused(t, db, p, at(20), `"p"`, "events[0] has position 20, which must be above 20")
	refused(t, db, p, at(0, 25, 25), `"p"`, "events[2] has position 25, which must be above 25, the position of events[1]")
	refused(t, db, p, at(30, 29), "events[1] has position 29, which must be above 30, the position of events[0]")
	refused(t, db, p, at(30, -1), "events[1] has position -1")
	if got := written(t, db); !slices.Equal(got, []string{"0", "10", "0", "20"}) {
		t.Errorf("handled %q", got)
	}
	if err := orchestrator.WaitFor(t.Context(), db, "p", 20); err != nil {
		t.Error(err)
	}
	refused(t, nil, p, nil, "db is nil")
	refused(t, db, nil, nil, "nil")
	refused(t, db, orchestrator.Transactional("", write), of("x"), "name", "is empty")
	refused(t, db, orchestrator.Transactional[string]("p", nil), of("x"), "nil handler")
	refused(t, db, p, []record{{AggregateID: "a", Err: errors.New("not JSON")}}, "position 21", "not JSON")
	if _, err := db.ExecContext(t.Context(), `DROP TABLE orchestrator_checkpoints CASCADE`); err != nil {
		t.Fatal(err)
	}
	refused(t, db, p, of("x"), "orchestrator_checkpoints")
}

// A Store feeds an Orchestrator while it runs.
func TestStore(t *testing.T) {
	t.Parallel()
	db := words(t)
	var events orchestratortest.Store[string]
	o, err := orchestrator.New(orchestrator.Config[string]{
		DB: db, EventStore: &events, ReplicaSet: "set", BatchSize: 2, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx, []orchestrator.Projection[string]{orchestrator.Transactional("p", write)}) }()
	if err := events.Append(of("1", "2", "3", "4", "5")...); err != nil {
		t.Fatal(err)
	}
	if err := orchestrator.WaitFor(t.Context(), db, "p", 5); err != nil {
		t.Fatal(err)
	}
	if err := events.Append(record{Position: 100, AggregateID: "b", Event: "100"}, record{AggregateID: "c", Event: "101"}); err != nil {
		t.Fatal(err)
	}
	page, err := events.Read(t.Context(), orchestrator.ReadRequest{After: 2, Limit: 2})
	if err != nil || len(page.Records) != 2 || page.Records[0].Event != "3" || page.Records[1].Event != "4" {
		t.Errorf("the two events above position 2 are %+v, %v", page.Records, err)
	}
	head, err := events.Head(t.Context())
	if err != nil || head != 101 {
		t.Errorf("the stream ends at %d, %v", head, err)
	}
	if err := orchestrator.WaitFor(t.Context(), db, "p", head); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, want := written(t, db), strings.Fields("1 2 3 4 5 100 101"); !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
	if err := events.Append(record{Position: 101}); err == nil || !strings.Contains(err.Error(), "position 101, which must be above 101") {
		t.Errorf("Append of a position that does not ascend: %v", err)
	}
}
