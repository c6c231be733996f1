package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/getpup/pupsourcing/es/migrations"
	"github.com/getpup/pupsourcing/es/projection"
	"github.com/google/uuid"

	root "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	orchestrator "github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const effectsTable = `
CREATE TABLE effects (
    id         bigserial PRIMARY KEY,
    projection text NOT NULL,
    position   bigint NOT NULL,
    aggregate  text NOT NULL,
    generation bigint NOT NULL
)`

// A world is a database with pupsourcing's tables, the library's tables, and one for the effects
// of projections.
type world struct {
	t     *testing.T
	db    *sql.DB
	table string // name of the events table
	store *postgres.Store
}

func newWorld(t *testing.T, table string) *world {
	t.Helper()
	db, _ := pgtest.Database(t)
	cfg := migrations.DefaultConfig()
	cfg.OutputFolder, cfg.EventsTable = t.TempDir(), table
	if err := migrations.GeneratePostgres(&cfg); err != nil {
		t.Fatal(err)
	}
	layout, err := os.ReadFile(filepath.Join(cfg.OutputFolder, cfg.OutputFilename))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, db: db, table: table, store: postgres.NewStore(postgres.NewStoreConfig(postgres.WithEventsTable(table)))}
	w.exec(string(layout))
	w.exec(effectsTable)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// number runs a query that returns one number.
func (w *world) number(query string, args ...any) (n int64) {
	w.t.Helper()
	if err := w.db.QueryRowContext(w.t.Context(), query, args...).Scan(&n); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (w *world) begin() *sql.Tx {
	w.t.Helper()
	tx, err := w.db.BeginTx(context.Background(), nil) // without the test's context, which ends before cleanups
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = tx.Rollback() }) // does nothing after a commit
	return tx
}

// event returns an event to append. Every second one has all optional fields.
func event(boundedContext, aggregateType, id string, i int) es.Event {
	e := es.Event{
		BoundedContext: boundedContext, AggregateType: aggregateType, AggregateID: id,
		EventID: uuid.New(), EventType: "happened", EventVersion: 1 + i%3, Payload: []byte{byte(i), 0, 255},
		CreatedAt: time.Now(),
	}
	if i%2 == 0 {
		e.TraceID = es.NullString{String: "trace", Valid: true}
		e.CorrelationID = es.NullString{String: "correlation", Valid: true}
		e.CausationID = es.NullString{String: "causation", Valid: true}
		e.Metadata = []byte(`{"a": 1}`)
	}
	return e
}

// appendTo appends n events to an aggregate, through pupsourcing's store.
func (w *world) appendTo(tx es.DBTX, boundedContext, aggregateType, id string, n int) es.AppendResult {
	w.t.Helper()
	var events []es.Event
	for i := range n {
		events = append(events, event(boundedContext, aggregateType, id, i))
	}
	result, err := w.store.Append(w.t.Context(), tx, es.Any(), events)
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

// append appends n events, one to each aggregate in turn.
func (w *world) append(n int) {
	w.t.Helper()
	tx := w.begin()
	for i := range n {
		w.appendTo(tx, "shop", "order", fmt.Sprint("order-", i%40), 1)
	}
	if err := tx.Commit(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) events() int64 { return w.number(`SELECT count(*) FROM ` + w.table) }

// config returns a configuration for tests. The lease is long: a loaded machine must not end it.
func (w *world) config() orchestrator.Config {
	return orchestrator.Config{
		DB: w.db, EventStore: w.store, EventsTable: w.table, ReplicaSet: "set", BatchSize: 20,
		HeartbeatInterval: 50 * time.Millisecond, JoinWindow: 20 * time.Millisecond, PollInterval: 20 * time.Millisecond,
		Retry:  orchestrator.Retry{Min: 5 * time.Millisecond, Max: 100 * time.Millisecond},
		Logger: testLogger{w.t},
	}
}

// active waits until the replica set runs a number of partitions.
func (w *world) active(total int) {
	w.t.Helper()
	pgtest.Eventually(w.t, fmt.Sprintf("%d partitions run", total), func() bool {
		return w.number(`SELECT count(*) FROM orchestrator_replica_sets WHERE phase = 'active' AND total = $1`, total) == 1
	})
}

// handled returns how many events the projection has handled.
func (w *world) handled(projection string) int64 {
	w.t.Helper()
	return w.number(`SELECT count(DISTINCT position) FROM effects WHERE projection = $1`, projection)
}

func (w *world) caughtUp(projections ...string) {
	w.t.Helper()
	for _, p := range projections {
		pgtest.Eventually(w.t, p+" has caught up", func() bool { return w.handled(p) == w.events() })
	}
}

// checkEffects compares the effects of exact projections with the events table.
func (w *world) checkEffects(projections ...string) {
	w.t.Helper()
	for _, p := range projections {
		for promise, query := range map[string]string{
			"S2: lost":                  `SELECT count(*) FROM ` + w.table + ` e WHERE NOT EXISTS (SELECT 1 FROM effects WHERE projection = $1 AND position = e.global_position AND aggregate = e.aggregate_id)`,
			"S3: duplicated":            `SELECT count(*) FROM (SELECT 1 FROM effects WHERE projection = $1 GROUP BY position HAVING count(*) > 1) d`,
			"S4: out of order":          `SELECT count(*) FROM (SELECT position < lag(position) OVER (PARTITION BY aggregate ORDER BY id) AS wrong FROM effects WHERE projection = $1) o WHERE wrong`,
			"S5: generation went back":  `SELECT count(*) FROM (SELECT generation < lag(generation) OVER (PARTITION BY aggregate ORDER BY id) AS wrong FROM effects WHERE projection = $1) o WHERE wrong`,
			"handled what is not there": `SELECT count(*) FROM effects f WHERE projection = $1 AND NOT EXISTS (SELECT 1 FROM ` + w.table + ` WHERE global_position = f.position)`,
		} {
			if n := w.number(query, p); n != 0 {
				w.t.Errorf("projection %s, %s: %d", p, promise, n)
			}
		}
	}
}

// A running worker.
type running struct {
	t            *testing.T
	orchestrator *orchestrator.Orchestrator
	cancel       context.CancelFunc
	done         chan struct{}
	err          error
}

// run starts a worker. It ends at the end of the test at the latest.
func run(t *testing.T, cfg orchestrator.Config, projections ...projection.Projection) *running {
	t.Helper()
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, orchestrator: o, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = o.Run(ctx, projections)
	}()
	t.Cleanup(func() { cancel(); <-r.done })
	return r
}

// stop ends the worker, and fails the test if Run does not return nil.
func (r *running) stop() {
	r.t.Helper()
	r.cancel()
	<-r.done
	if r.err != nil {
		r.t.Fatalf("Run returned %v after a graceful stop", r.err)
	}
}

// waiting waits until the worker's readers wait at a gap.
func (r *running) waiting() (gap orchestrator.Gap) {
	r.t.Helper()
	pgtest.Eventually(r.t, "readers wait at a gap", func() (waiting bool) {
		gap, waiting = r.orchestrator.Waiting()
		return waiting
	})
	return gap
}

// An execer is a database or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Projections that leave effects.
type effects string

func (p effects) Name() string { return string(p) }

func (p effects) write(ctx context.Context, db execer, e es.PersistedEvent) error {
	a, ok := root.DeliveryFrom(ctx)
	if !ok {
		return errors.New("no assignment in the handler's context")
	}
	_, err := db.ExecContext(ctx, `INSERT INTO effects (projection, position, aggregate, generation) VALUES ($1, $2, $3, $4)`,
		string(p), e.GlobalPosition, e.AggregateID, a.Generation)
	return err
}

// plain has pupsourcing's Handle. Up to v1.1 it writes through a connection of its own.
type plain struct {
	effects
	db *sql.DB
}

// transactional writes in the transaction that commits the checkpoint.
type transactional struct {
	effects
	uncalled
}

func (p transactional) HandleTx(ctx context.Context, tx orchestrator.Tx, e es.PersistedEvent) error {
	return p.write(ctx, tx, e)
}

// batched writes a batch in that transaction.
type batched struct {
	effects
	uncalled
}

func (p batched) HandleBatch(ctx context.Context, tx orchestrator.Tx, events []es.PersistedEvent) error {
	for _, e := range events {
		if err := p.write(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

var (
	_ orchestrator.TransactionalProjection = transactional{}
	_ orchestrator.BatchProjection         = batched{}
)

// scoped projections get a part of the stream.
type scoped struct {
	projection.Projection
	types, contexts []string
}

func (s scoped) AggregateTypes() []string  { return s.types }
func (s scoped) BoundedContexts() []string { return s.contexts }

var _ projection.ScopedProjection = scoped{}

// scopedTransactional is scoped and transactional.
type scopedTransactional struct {
	transactional
	types, contexts []string
}

func (s scopedTransactional) AggregateTypes() []string  { return s.types }
func (s scopedTransactional) BoundedContexts() []string { return s.contexts }

// testLogger writes a log to the log of the test.
type testLogger struct{ t *testing.T }

func (l testLogger) Debug(_ context.Context, msg string, keyvals ...any) {
	l.t.Log("DEBUG", msg, keyvals)
}
func (l testLogger) Info(_ context.Context, msg string, keyvals ...any) {
	l.t.Log("INFO", msg, keyvals)
}
func (l testLogger) Error(_ context.Context, msg string, keyvals ...any) {
	l.t.Log("ERROR", msg, keyvals)
}
