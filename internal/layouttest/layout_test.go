// Package layouttest reads the events tables of public event stores while workers join and
// leave. Each table is written as its store writes it. No event may be lost, handled twice, or
// handled out of order. A table that can't be read without loss must be refused by name.
//
// The tables have the properties that matter: which sequence numbers the events, when a position
// is taken, what the aggregate is. They are not copies. docs/event-tables.md shows the layouts
// and the code that reads them. TestPage compares that code with the code here.
package layouttest

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A layout is an events table, the way in which its store appends to it, and the way in which
// Table reads it.
//
// SQL that appends may use {i}, the number of the stream; {stream}, a UUID for it; {version} of
// the event in its stream, from 1; {id}, a UUID for the event; and {data}, a JSON object.
type layout struct {
	name string
	ddl  string // what the store creates
	add  string // what the owner must add to make the table readable

	// take takes a position in a statement of its own, before the insert. Then insert runs at
	// the end of the transaction, with {position}. "": insert takes the position.
	take, insert string
	// serial: the store allows one appending transaction at a time.
	serial bool
	begin  string // default: BEGIN
	// table is locked for a moment, as CREATE INDEX does. "": no table is locked.
	table string
	// meanwhile runs once while workers run. The events that it appends are committed.
	meanwhile string

	events  string // selects position and aggregate of every event
	reader  reader
	refused string // part of Check's error; "": the layout is readable
	late    bool   // it is refused only when it contains events, which show the problem
}

// layouts are all tested layouts, in the order of the page.
var layouts = concat(pupsourcingLayouts, goLayouts, dotnetLayouts, jvmLayouts, jsLayouts, rubyLayouts, phpLayouts,
	pythonLayouts, rustLayouts, elixirLayouts, plainLayouts, namedLayouts, columnLayouts,
	refusedLayouts, refusedNamedLayouts)

func concat(lists ...[]layout) (all []layout) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func TestLayouts(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			if l.refused == "" {
				testReads(t, l)
			} else {
				testRefused(t, l)
			}
		})
	}
}

// newDatabase returns a database with the layout's tables and an empty read model.
func newDatabase(t *testing.T, l layout) (*sql.DB, string) {
	t.Helper()
	db, url := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	for _, ddl := range []string{`CREATE TABLE handled (id bigserial PRIMARY KEY, position bigint NOT NULL)`, l.ddl, l.add} {
		if _, err := db.ExecContext(t.Context(), ddl); err != nil {
			t.Fatalf("%v\n%s", err, ddl)
		}
	}
	return db, url
}

// testRefused shows that a layout is refused while it is empty, as in a first try, and when it
// contains events.
func testRefused(t *testing.T, l layout) {
	db, url := newDatabase(t, l)
	refused := func(when string) {
		t.Helper()
		if err := l.reader.check(t.Context(), db); err == nil {
			t.Errorf("%s: Check passes", when)
		} else if !strings.Contains(err.Error(), l.refused) {
			t.Errorf("%s: Check says %q, want something with %q", when, err, l.refused)
		}
	}
	if !l.late {
		refused("empty")
	}
	if l.insert != "" {
		w := newWriters(t, db, l)
		w.steps(10)
		w.end()
		refused("with events")
	}
	if err := l.reader.start(t, url).wait(); !errors.Is(err, orchestrator.ErrEventStore) {
		t.Errorf("Run returned %v, want ErrEventStore", err)
	}
}

// testReads appends in many ways, half before there are workers and half while they join and
// leave. It compares the handled events with the appended ones.
func testReads(t *testing.T, l layout) {
	db, url := newDatabase(t, l)
	if err := l.reader.check(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	w := newWriters(t, db, l)
	var workers []*worker
	start := func() *worker {
		worker := l.reader.start(t, url)
		workers = append(workers, worker)
		return worker
	}

	// A backlog. A transaction in the middle of it commits only after the workers have reached
	// it.
	w.steps(300)
	w.endOthers()
	w.hold(func(held *transaction) {
		w.steps(100)
		w.endOthers()
		start()
		start()
		w.looked(workers, held)
	})
	w.steps(20)
	third := start()
	w.workers(3)
	w.endOthers()
	w.caughtUp()
	w.hold(func(held *transaction) {
		w.step()
		w.endOthers()
		w.looked(workers, held)
	})
	w.steps(40)
	w.endOthers()
	w.exec(l.meanwhile)
	third.stop()
	w.lockQueue(workers)
	start()
	w.steps(100)
	w.end()
	w.caughtUp()

	filled := map[string]bool{}
	for _, worker := range workers {
		worker.stop()
		worker.filled(filled)
	}
	w.compare()
	for _, field := range l.reader.fields {
		if !filled[field] {
			t.Errorf("no event had a value in %s", field)
		}
	}
}

// A reader returns the Table of a layout, whatever the type of its events.
type reader struct {
	code   []string // the names of the layout's event type, if it has one, and of the function
	fields []string // fields of the event
	check  func(context.Context, *sql.DB) error
	start  func(t *testing.T, url string) *worker
}

// reads returns the reader of a layout. position returns the position of an event.
func reads[E any](table func(*sql.DB) (*orchestrator.Table[E], error), position func(E) int64) reader {
	name := runtime.FuncForPC(reflect.ValueOf(table).Pointer()).Name()
	r := reader{code: []string{name[strings.LastIndex(name, ".")+1:]}}
	event := reflect.TypeFor[E]()
	for i := range event.NumField() {
		r.fields = append(r.fields, event.Field(i).Name)
	}
	if strings.HasSuffix(event.PkgPath(), "layouttest") {
		r.code = []string{event.Name(), r.code[0]}
	}
	r.check = func(ctx context.Context, db *sql.DB) error {
		events, err := table(db)
		if err != nil {
			return err
		}
		return events.Check(ctx)
	}
	r.start = func(t *testing.T, url string) *worker {
		t.Helper()
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		events, err := table(db)
		if err != nil {
			t.Fatal(err)
		}
		o, err := orchestrator.New(orchestrator.Config[E]{
			DB: db, EventStore: events, ReplicaSet: "set", Partitions: 2,
			HeartbeatInterval: 50 * time.Millisecond, StaleWorkerTimeout: 30 * time.Second, CoordinationTimeout: 30 * time.Second,
			JoinWindow: 50 * time.Millisecond, PollInterval: 10 * time.Millisecond, BatchSize: 20,
			ReadAheadBytes: 32 << 10, // pages of a few events, so that a backlog is read in several pages

			Retry:  orchestrator.Retry{Min: 5 * time.Millisecond, Max: 100 * time.Millisecond},
			Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		if err != nil {
			t.Fatal(err)
		}
		p := &projection[E]{position: position, filled: make([]atomic.Bool, event.NumField())}
		ctx, cancel := context.WithCancel(context.Background())
		w := &worker{t: t, waiting: events.Waiting, filled: p.fieldsFilled, cancel: cancel, done: make(chan struct{})}
		go func() {
			defer close(w.done)
			w.err = o.Run(ctx, []orchestrator.Projection[E]{p})
		}()
		t.Cleanup(func() {
			w.stop()
			_ = db.Close()
		})
		return w
	}
	return r
}

// A worker is one program, with a pool and a Table of its own.
type worker struct {
	t       *testing.T
	waiting func() (orchestrator.Gap, bool)
	filled  func(map[string]bool) // records which fields had a value in some event
	cancel  context.CancelFunc
	done    chan struct{}
	err     error
}

// stop makes the worker leave.
func (w *worker) stop() {
	w.t.Helper()
	w.cancel()
	<-w.done
	if w.err != nil {
		w.t.Errorf("Run returned %v", w.err)
	}
}

// wait waits until Run returns by itself, and returns its error.
func (w *worker) wait() (err error) {
	select {
	case <-w.done:
		err, w.err = w.err, nil
		return err
	case <-time.After(time.Minute):
		return errors.New("nothing: it runs")
	}
}

// A projection records its events in the transaction of the checkpoint.
type projection[E any] struct {
	position func(E) int64
	filled   []atomic.Bool // the fields of E that were not zero in some event
}

func (*projection[E]) Name() string                    { return "handled" }
func (*projection[E]) Handle(context.Context, E) error { panic("not called: it is transactional") }

func (p *projection[E]) HandleTx(ctx context.Context, tx orchestrator.Tx, e E) error {
	for i := range p.filled {
		if !reflect.ValueOf(e).Field(i).IsZero() {
			p.filled[i].Store(true)
		}
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO handled (position) VALUES ($1)`, p.position(e))
	return err
}

func (p *projection[E]) fieldsFilled(fields map[string]bool) {
	for i := range p.filled {
		if p.filled[i].Load() {
			fields[reflect.TypeFor[E]().Field(i).Name] = true
		}
	}
}

// testWriter writes a log to the log of the test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}
