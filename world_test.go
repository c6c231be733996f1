package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		os.Exit(childMain(name))
	}
	// Most of a test here is waiting, for a lease or the server; a default of one test for
	// each core leaves the cores idle. Where a lease that is lost for the load would be
	// taken for a fault (failures, liveness, health), tests run one after another.
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	os.Exit(pgtest.Main(m))
}

// limit ends a broken test; nothing passes or fails by how long it takes.
const limit = time.Minute

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	pgtest.Eventually(t, what, condition)
}

const effectsTable = `
CREATE TABLE effects (
    id         bigserial PRIMARY KEY,
    projection text NOT NULL,
    position   bigint NOT NULL,
    aggregate  text NOT NULL,
    generation bigint NOT NULL,
    partition  int NOT NULL,
    total      int NOT NULL
)`

// A world is a database with the library's tables, an events table, and a
// table in which projections leave their effects.
type world struct {
	t   testing.TB
	db  *sql.DB
	url string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	db, url := pgtest.Database(t)
	return setUp(t, db, url)
}

func setUp(t testing.TB, db *sql.DB, url string) *world {
	t.Helper()
	w := &world{t: t, db: db, url: url}
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	w.exec(eventtable.Layout)
	w.exec(effectsTable)
	return w
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// number runs a query that returns one number.
func (w *world) number(query string, args ...any) int64 {
	w.t.Helper()
	var n sql.NullInt64
	if err := w.db.QueryRowContext(w.t.Context(), query, args...).Scan(&n); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	return n.Int64
}

const insertEvent = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'a' || i %% %[1]d, coalesce((SELECT max(aggregate_version) FROM events WHERE aggregate_id = 'a' || i %% %[1]d), 0) + 1 + i / %[1]d,
       gen_random_uuid(), 'happened', 'x'
  FROM generate_series(0, $1 - 1) AS i`

// append adds n events over 50 aggregates in one transaction.
func (w *world) append(n int) {
	w.t.Helper()
	w.exec(fmt.Sprintf(insertEvent, 50), n)
}

// config returns a configuration for tests. The lease is long: a loaded
// machine must not end it where a test counts on nobody being late.
func (w *world) config(db *sql.DB, set orchestrator.ReplicaSetName) orchestrator.Config[orchestrator.Event] {
	w.t.Helper()
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: set,
		HeartbeatInterval: 50 * time.Millisecond, StaleWorkerTimeout: 30 * time.Second, CoordinationTimeout: 30 * time.Second,
		JoinWindow: 20 * time.Millisecond, PollInterval: 20 * time.Millisecond,
		Retry:  orchestrator.Retry{Min: 5 * time.Millisecond, Max: 100 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(testWriter{w.t}, nil)),
	}
}

// testWriter sends a log to the test's.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(string(line[:len(line)-1]))
	return len(line), nil
}

// A running worker.
type running struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// run starts a worker. It ends with the test at the latest.
func run(t testing.TB, cfg orchestrator.Config[orchestrator.Event], projections ...orchestrator.Projection[orchestrator.Event]) *running {
	t.Helper()
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = o.Run(ctx, projections)
	}()
	t.Cleanup(r.kill)
	return r
}

// kill cancels the worker's context and waits for Run to return.
func (r *running) kill() {
	r.cancel()
	<-r.done
}

// stop is kill, and demands that Run returns ctx.Err().
func (r *running) stop() {
	r.t.Helper()
	r.kill()
	if r.err != nil {
		r.t.Fatalf("Run returned %v after a graceful stop", r.err)
	}
}

// failed waits for Run to return by itself, and returns its error.
func (r *running) failed() error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(limit):
		r.t.Fatal("Run did not return")
	}
	return r.err
}

// Projections that leave effects. A handler calls hook, if set, before it
// writes.
type effects struct {
	name string
	hook func(ctx context.Context, e orchestrator.Event) error
	log  *history
}

func (p effects) Name() string { return p.name }

// An execer is a database, or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (p effects) write(ctx context.Context, db execer, e orchestrator.Event) error {
	defer p.log.open(ctx, p.name, e)()
	if p.hook != nil {
		if err := p.hook(ctx, e); err != nil {
			return err
		}
	}
	a, ok := orchestrator.AssignmentFrom(ctx)
	if !ok {
		return errors.New("no assignment in the handler's context")
	}
	_, err := db.ExecContext(ctx, `
INSERT INTO effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, $4, $5, $6)`,
		p.name, e.GlobalPosition, e.AggregateID, a.Generation, a.Partition, a.TotalPartitions)
	return err
}

// plain writes through a connection of its own.
type plain struct {
	effects
	db *sql.DB
}

func (p plain) Handle(ctx context.Context, e orchestrator.Event) error { return p.write(ctx, p.db, e) }

// transactional writes through the lane's transaction.
type transactional struct{ effects }

func (p transactional) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a transactional projection")
}

func (p transactional) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	return p.write(ctx, tx, e)
}

// batched writes a batch through the lane's transaction.
type batched struct{ effects }

func (p batched) Handle(context.Context, orchestrator.Event) error {
	return errors.New("Handle was called for a batch projection")
}

func (p batched) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []orchestrator.Event) error {
	for _, e := range events {
		if err := p.write(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

// A history records when handlers were open, by a counter instead of a clock.
type history struct {
	mu      sync.Mutex
	counter int
	opened  []interval
}

type interval struct {
	projection string
	aggregate  string
	position   int64
	assignment orchestrator.Assignment
	start, end int // end 0: open
}

// open notes that a handler has begun and returns the call for its end. A nil
// history notes nothing.
func (h *history) open(ctx context.Context, projection string, e orchestrator.Event) (closed func()) {
	if h == nil {
		return func() {}
	}
	a, _ := orchestrator.AssignmentFrom(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counter++
	i := len(h.opened)
	h.opened = append(h.opened, interval{projection: projection, aggregate: e.AggregateID, position: e.GlobalPosition, assignment: a, start: h.counter})
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.counter++
		h.opened[i].end = h.counter
	}
}

// check goes over the history for S1, S4 and S6 as far as handlers show them.
func (h *history) check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	type key struct{ projection, aggregate string }
	last := map[key]interval{}
	totals := map[int64]int{}
	owners := map[string]orchestrator.Assignment{}
	for _, i := range h.opened { // in the order of their starts
		k := key{i.projection, i.aggregate}
		if before, ok := last[k]; ok && (before.end == 0 || before.end > i.start) {
			t.Errorf("S1: two handlers of %s are open for aggregate %s: %+v and %+v", i.projection, i.aggregate, before, i)
		}
		last[k] = i
		if total, ok := totals[i.assignment.Generation]; ok && total != i.assignment.TotalPartitions {
			t.Errorf("S6: generation %d has both %d and %d partitions", i.assignment.Generation, total, i.assignment.TotalPartitions)
		}
		totals[i.assignment.Generation] = i.assignment.TotalPartitions
		// An aggregate has one partition in a generation.
		o := fmt.Sprint(i.assignment.Generation, i.aggregate)
		if a, ok := owners[o]; ok && a != i.assignment {
			t.Errorf("S6: aggregate %s is in %+v and in %+v", i.aggregate, a, i.assignment)
		}
		owners[o] = i.assignment
	}
}

// checkEffects compares the effects of projections that must be exact with
// the events table: S2, S3, S4 and S5.
func (w *world) checkEffects(projections ...string) {
	w.t.Helper()
	for _, p := range projections {
		for _, c := range []struct{ promise, query string }{
			{"S2: lost", `SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM effects WHERE projection = $1 AND position = e.global_position)`},
			{"S3: duplicated", `SELECT count(*) FROM (SELECT 1 FROM effects WHERE projection = $1 GROUP BY position HAVING count(*) > 1) d`},
			{"S4: out of order", `SELECT count(*) FROM (SELECT position < lag(position) OVER (PARTITION BY aggregate ORDER BY id) AS wrong FROM effects WHERE projection = $1) o WHERE wrong`},
			{"S5: generation went back", `SELECT count(*) FROM (SELECT generation < lag(generation) OVER (PARTITION BY aggregate ORDER BY id) AS wrong FROM effects WHERE projection = $1) o WHERE wrong`},
		} {
			if n := w.number(c.query, p); n != 0 {
				w.t.Errorf("projection %s, %s: %d", p, c.promise, n)
			}
		}
	}
}

// handled returns how many events the projection has an effect of.
func (w *world) handled(projection string) int64 {
	return w.number(`SELECT count(DISTINCT position) FROM effects WHERE projection = $1`, projection)
}

// caughtUp waits until every event has an effect of every projection.
func (w *world) caughtUp(projections ...string) {
	w.t.Helper()
	for _, p := range projections {
		eventually(w.t, "projection "+p+" has caught up", func() bool {
			return w.handled(p) == w.number(`SELECT count(*) FROM events`)
		})
	}
}

// active waits until the replica set runs a number of partitions, and returns
// the generation.
func (w *world) active(set orchestrator.ReplicaSetName, total int) (generation int64) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("replica set %s runs %d partitions", set, total), func() bool {
		generation = w.number(`
SELECT coalesce(max(generation), 0) FROM orchestrator_replica_sets s
 WHERE name = $1 AND phase = 'active' AND total = $2
   AND total = (SELECT sum(jsonb_array_length(partitions)) FROM orchestrator_workers WHERE replica_set = s.name)`, set, total)
		return generation > 0
	})
	return generation
}

var exact = []string{"transactional", "batched"}

// all returns one projection of each kind.
func (w *world) all(db *sql.DB, h *history) []orchestrator.Projection[orchestrator.Event] {
	return []orchestrator.Projection[orchestrator.Event]{
		plain{effects{name: "plain", log: h}, db},
		transactional{effects{name: "transactional", log: h}},
		batched{effects{name: "batched", log: h}},
	}
}

var names = slices.Concat(exact, []string{"plain"})

// as opens the database as another role, with the password "secret".
func (w *world) as(role string) *sql.DB {
	w.t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = db.Close() })
	return db
}

// A watchedLog passes a log on and remembers it.
type watchedLog struct {
	to   io.Writer
	mu   sync.Mutex
	text strings.Builder
}

func (l *watchedLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	l.text.Write(line)
	l.mu.Unlock()
	return l.to.Write(line)
}

// wait waits for a line that contains text.
func (l *watchedLog) wait(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return strings.Contains(l.text.String(), text)
	})
}
