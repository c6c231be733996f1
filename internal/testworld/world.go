// Package testworld runs workers for the tests of this module: it provides a database with an
// events table, projections that record what they have handled, and checks of the promises. Only
// tests import it.
//
//	w := testworld.New(t)
//	testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "p"}.Transactional())
//	w.Append(100)
//	w.CaughtUp("p")
//	w.CheckEffects("p")
//
// The parts:
//
//	World    the database, what is in it, and what its workers have made of it
//	Running  a worker
//	Effects  a projection, of each kind; History, when its handlers were open
//	Witness  an Observer that remembers; Log, a log that does
//	Faults   a connection that loses COMMITs; Outage, a server that is away
package testworld

import (
	"database/sql"
	"flag"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// Main runs the tests and then ends their common server:
//
//	func TestMain(m *testing.M) { os.Exit(testworld.Main(m)) }
func Main(m *testing.M) int {
	// Most tests here wait, for a lease or for the server. The default, one test per core,
	// leaves cores idle. Tests in which a lease lost under load would look like a bug (failures,
	// liveness, health) are not parallel.
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	return pgtest.Main(m)
}

// Limit ends a broken test. It is not a limit for slow tests.
const Limit = time.Minute

// EffectsTable is the table that projections write into.
const EffectsTable = `
CREATE TABLE effects (
    id         bigserial PRIMARY KEY,
    projection text NOT NULL,
    position   bigint NOT NULL,
    aggregate  text NOT NULL,
    generation bigint NOT NULL,
    partition  int NOT NULL,
    total      int NOT NULL
)`

// A World is a database with the library's tables, an events table, and a table for the effects
// of projections.
type World struct {
	T   testing.TB
	DB  *sql.DB
	URL string
}

// New returns a world in a new database, which is dropped when the test ends.
func New(t testing.TB) *World {
	t.Helper()
	db, url := pgtest.Database(t)
	return SetUp(t, db, url)
}

// SetUp turns a database of the caller into a world.
func SetUp(t testing.TB, db *sql.DB, url string) *World {
	t.Helper()
	w := &World{T: t, DB: db, URL: url}
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	w.Exec(eventtable.Layout)
	w.Exec(EffectsTable)
	return w
}

// Exec runs a statement, and fails the test if it fails.
func (w *World) Exec(query string, args ...any) {
	w.T.Helper()
	if _, err := w.DB.ExecContext(w.T.Context(), query, args...); err != nil {
		w.T.Fatalf("%s: %v", query, err)
	}
}

// Number runs a query that returns one number.
func (w *World) Number(query string, args ...any) int64 {
	w.T.Helper()
	var n sql.NullInt64
	if err := w.DB.QueryRowContext(w.T.Context(), query, args...).Scan(&n); err != nil {
		w.T.Fatalf("%s: %v", query, err)
	}
	return n.Int64
}

// InsertEvent inserts $1 events. Its verb is the number of aggregates.
const InsertEvent = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'a' || i %% %[1]d, coalesce((SELECT max(aggregate_version) FROM events WHERE aggregate_id = 'a' || i %% %[1]d), 0) + 1 + i / %[1]d,
       gen_random_uuid(), 'happened', 'x'
  FROM generate_series(0, $1 - 1) AS i`

// Append adds n events of 50 aggregates in one transaction.
func (w *World) Append(n int) {
	w.T.Helper()
	w.Exec(fmt.Sprintf(InsertEvent, 50), n)
}

// Config returns a configuration for tests. The lease is long: a loaded machine must not end it
// in tests that don't expect that.
func (w *World) Config(db *sql.DB, set orchestrator.ReplicaSetName) orchestrator.Config[orchestrator.Event] {
	w.T.Helper()
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		w.T.Fatal(err)
	}
	return orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: set,
		HeartbeatInterval: 50 * time.Millisecond, StaleWorkerTimeout: 30 * time.Second, CoordinationTimeout: 30 * time.Second,
		JoinWindow: 20 * time.Millisecond, PollInterval: 20 * time.Millisecond,
		Retry:  orchestrator.Retry{Min: 5 * time.Millisecond, Max: 100 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(w.T.Output(), nil)),
	}
}

// CheckEffects checks the effects of projections that must be exact against the events table:
// promises S2, S3, S4 and S5.
func (w *World) CheckEffects(projections ...string) {
	w.T.Helper()
	for _, p := range projections {
		for _, c := range []struct{ promise, query string }{
			{"S2: lost", `SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM effects WHERE projection = $1 AND position = e.global_position)`},
			{"S3: duplicated", `SELECT count(*) FROM (SELECT 1 FROM effects WHERE projection = $1 GROUP BY position HAVING count(*) > 1) d`},
			{"S4: out of order", `SELECT count(*) FROM (SELECT position < lag(position) OVER (PARTITION BY aggregate ORDER BY id) AS wrong FROM effects WHERE projection = $1) o WHERE wrong`},
			{"S5: generation went back", `SELECT count(*) FROM (SELECT generation < lag(generation) OVER (PARTITION BY aggregate ORDER BY id) AS wrong FROM effects WHERE projection = $1) o WHERE wrong`},
		} {
			if n := w.Number(c.query, p); n != 0 {
				w.T.Errorf("projection %s, %s: %d", p, c.promise, n)
			}
		}
	}
}

// Handled returns how many events the projection has handled.
func (w *World) Handled(projection string) int64 {
	return w.Number(`SELECT count(DISTINCT position) FROM effects WHERE projection = $1`, projection)
}

// CaughtUp waits until the projections have handled all events.
func (w *World) CaughtUp(projections ...string) {
	w.T.Helper()
	for _, p := range projections {
		pgtest.Eventually(w.T, "projection "+p+" has caught up", func() bool {
			return w.Handled(p) == w.Number(`SELECT count(*) FROM events`)
		})
	}
}

// Active waits until the replica set runs total partitions, and returns the generation.
func (w *World) Active(set orchestrator.ReplicaSetName, total int) (generation int64) {
	w.T.Helper()
	pgtest.Eventually(w.T, fmt.Sprintf("replica set %s runs %d partitions", set, total), func() bool {
		generation = w.Number(`
SELECT coalesce(max(generation), 0) FROM orchestrator_replica_sets s
 WHERE name = $1 AND phase = 'active' AND total = $2
   AND total = (SELECT sum(jsonb_array_length(partitions)) FROM orchestrator_workers WHERE replica_set = s.name)`, set, total)
		return generation > 0
	})
	return generation
}

// Exact are the projections of All whose effects must be exact.
var Exact = []string{"transactional", "batched"}

// All returns one projection of each kind.
func (w *World) All(db *sql.DB, h *History) []orchestrator.Projection[orchestrator.Event] {
	return []orchestrator.Projection[orchestrator.Event]{
		Effects{Projection: "plain", Log: h}.Plain(db),
		Effects{Projection: "transactional", Log: h}.Transactional(),
		Effects{Projection: "batched", Log: h}.Batched(),
	}
}

// Names are the names of the projections of All.
var Names = slices.Concat(Exact, []string{"plain"})

// As opens the database as another role, with the password "secret".
func (w *World) As(role string) *sql.DB {
	w.T.Helper()
	u, err := url.Parse(w.URL)
	if err != nil {
		w.T.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = db.Close() })
	return db
}

// Connect opens a database with connections of its own.
func (w *World) Connect() *sql.DB {
	w.T.Helper()
	db, err := sql.Open("postgres", w.URL)
	if err != nil {
		w.T.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	w.T.Cleanup(func() { _ = db.Close() })
	return db
}

// OfAggregate returns the positions of an aggregate's events.
func (w *World) OfAggregate(aggregate string) []int64 {
	w.T.Helper()
	return w.Positions(`SELECT global_position FROM events WHERE aggregate_id = $1 ORDER BY 1`, aggregate)
}

// Positions returns the positions that a query returns.
func (w *World) Positions(query string, args ...any) (out []int64) {
	w.T.Helper()
	rows, err := w.DB.QueryContext(w.T.Context(), query, args...)
	if err != nil {
		w.T.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var p int64
		if err := rows.Scan(&p); err != nil {
			w.T.Fatal(err)
		}
		out = append(out, p)
	}
	if err := rows.Err(); err != nil {
		w.T.Fatal(err)
	}
	return out
}

// Members returns the number of workers in all replica sets.
func (w *World) Members() int64 {
	w.T.Helper()
	return w.Number(`SELECT count(*) FROM orchestrator_workers`)
}

// Proving returns how many workers keep a connection for fast crash detection.
func (w *World) Proving() int64 {
	w.T.Helper()
	return w.Number(`SELECT count(*) FROM orchestrator_workers WHERE presence_number > 0`)
}

// Sets returns how many replica sets have ever had a worker.
func (w *World) Sets() int64 {
	w.T.Helper()
	return w.Number(`SELECT count(*) FROM orchestrator_replica_sets`)
}

// Generation returns the generation of the only replica set.
func (w *World) Generation() int64 {
	w.T.Helper()
	return w.Number(`SELECT generation FROM orchestrator_replica_sets`)
}

// Reached returns the lowest position of all checkpoints, or 0 if there are none.
func (w *World) Reached() int64 {
	w.T.Helper()
	return w.Number(`SELECT min(position) FROM orchestrator_checkpoints`)
}

// Reports returns the number of workers' reports.
func (w *World) Reports() int64 {
	w.T.Helper()
	return w.Number(`SELECT count(*) FROM orchestrator_reports`)
}
