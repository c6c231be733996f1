package importer_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// segmentTables have the columns of the tables of github.com/pupsourcing/core.
const segmentTables = `
CREATE TABLE consumer_segments (
	consumer_name text NOT NULL, segment_id int NOT NULL, total_segments int NOT NULL,
	owner_id text, checkpoint bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (consumer_name, segment_id));
CREATE TABLE consumer_workers (
	consumer_name text NOT NULL, worker_id text NOT NULL, last_heartbeat timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (consumer_name, worker_id));
CREATE TABLE handled (position bigint, aggregate text, segment int)`

// A segmentWorld is a database with such tables.
type segmentWorld struct {
	t  *testing.T
	db *sql.DB
}

func newSegmentWorld(t *testing.T) *segmentWorld {
	t.Helper()
	db, _ := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	w := &segmentWorld{t, db}
	w.exec(segmentTables)
	return w
}

func (w *segmentWorld) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *segmentWorld) number(query string) (n int64) {
	w.t.Helper()
	if err := w.db.QueryRowContext(w.t.Context(), query).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// segments inserts unclaimed segments of a consumer at positions.
func (w *segmentWorld) segments(consumer string, positions ...int64) {
	w.t.Helper()
	for k, p := range positions {
		w.exec(`INSERT INTO consumer_segments VALUES ($1, $2, $3, NULL, $4)`, consumer, k, len(positions), p)
	}
}

func (w *segmentWorld) importing(total int) importer.Config {
	return importer.Config{DB: w.db, Projection: "orders", ReplicaSet: "set", Total: total, Segments: &importer.Segments{}, Watch: time.Millisecond}
}

// Segments at different positions are imported, and workers go on: nothing is lost and nothing
// is handled twice. So both use the same hash.
func TestSegments(t *testing.T) {
	t.Parallel()
	const total, events = 16, 800
	w := newSegmentWorld(t)
	w.exec(`CREATE TABLE events (
		global_position bigserial PRIMARY KEY, bounded_context text NOT NULL, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
		aggregate_version bigint NOT NULL, event_id uuid NOT NULL UNIQUE, event_type text NOT NULL, event_version int NOT NULL DEFAULT 1,
		payload bytea NOT NULL, trace_id text, correlation_id text, causation_id text, metadata jsonb,
		created_at timestamptz NOT NULL DEFAULT now())`)
	w.exec(`INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
		SELECT 'shop', 'order', 'order-' || i % 97, 1 + i / 97, gen_random_uuid(), 'placed', 'x' FROM generate_series(1, $1) i`, events)
	positions := make([]int64, total)
	for k := range positions {
		positions[k] = int64(100 + k*211%500)
	}
	positions[3] = 0 // this segment has handled nothing
	w.segments("orders", positions...)
	w.segments("others", 7, 9)
	rows, err := w.db.QueryContext(t.Context(), `SELECT global_position, aggregate_id FROM events`)
	if err != nil {
		t.Fatal(err)
	}
	type event struct {
		position  int64
		aggregate string
	}
	var all []event
	for rows.Next() {
		var e event
		if err := rows.Scan(&e.position, &e.aggregate); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for _, e := range all { // as the old processors have
		h := fnv.New32a()
		h.Write([]byte(e.aggregate))
		if k := int(h.Sum32()) % total; e.position <= positions[k] {
			w.exec(`INSERT INTO handled VALUES ($1, $2, $3)`, e.position, e.aggregate, k)
		}
	}

	dry := w.importing(total)
	dry.DryRun = true
	if _, err := importer.Import(t.Context(), dry); err != nil {
		t.Fatal(err)
	}
	got, err := importer.Import(t.Context(), w.importing(total))
	if err != nil {
		t.Fatal(err)
	}
	want := importer.Result{Projection: "orders", ReplicaSet: "set", Exact: true}
	for k, p := range positions {
		want.Partitions = append(want.Partitions, importer.Partition{Key: fmt.Sprintf("orders, segment %d", k), Position: p, Start: p})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("imported (-want +got):\n%s", diff)
	}

	table, err := orchestrator.NewEventTable(w.db, "")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{DB: w.db, EventStore: table, ReplicaSet: "set", Partitions: 3})
	if err != nil {
		t.Fatal(err)
	}
	orders := orchestrator.Transactional("orders", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO handled VALUES ($1, $2)`, e.GlobalPosition, e.AggregateID)
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := o.CatchUp(ctx, []orchestrator.Projection[orchestrator.Event]{orders}); err != nil {
		t.Fatal(err)
	}
	if n := w.number(`SELECT count(DISTINCT position) FROM handled`); n != events {
		t.Errorf("%d of %d events are handled", n, events)
	}
	if n := w.number(`SELECT count(*) FROM (SELECT FROM handled GROUP BY position HAVING count(*) > 1) d`); n != 0 {
		t.Errorf("%d events are handled twice", n)
	}
}

// A strategy is a function that implements PartitionStrategy.
type strategy func(id string, partition, total int) bool

func (s strategy) ShouldProcess(id string, partition, total int) bool { return s(id, partition, total) }

func hashed(id string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(id))
	return h.Sum32()
}

// What can't be imported is refused by name, and nothing is changed.
func TestSegmentsRefused(t *testing.T) {
	t.Parallel()
	old, moving, invalid := importer.ErrOldCheckpoints, importer.ErrStillMoving, orchestrator.ErrInvalidConfig
	for _, tt := range []struct {
		why    string
		total  int
		setUp  string // in addition to four segments of "orders"
		change func(*importer.Config)
		want   error
		says   []string
	}{
		{"another total", 8, "", nil, old, []string{"have a total of 4", "no segment 4, 5, 6, 7", "importer.Config.Total 8"}},
		{"a lower total", 2, "", nil, old, []string{"have a total of 4", "a segment 2, 3 as well"}},
		{"different totals", 8, `INSERT INTO consumer_segments SELECT 'orders', k, 8, NULL, 0 FROM generate_series(4, 7) k`, nil, old,
			[]string{"have different totals, 4 8", "ran with 8 at the end", "set total_segments"}},
		{"one of another total", 4, `UPDATE consumer_segments SET total_segments = 3 WHERE segment_id = 2`, nil, old, []string{"have different totals, 3 4"}},
		{"one is missing", 4, `DELETE FROM consumer_segments WHERE segment_id = 2`, nil, old, []string{"no segment 2 ("}},
		{"none is there", 4, `DELETE FROM consumer_segments`, nil, old, []string{`no segments of consumer "orders"`}},
		{"negative", 4, `UPDATE consumer_segments SET checkpoint = -1 WHERE segment_id = 1`, nil, old, []string{"segment 1 is negative"}},
		{"owned", 4, `UPDATE consumer_segments SET owner_id = 'w7' WHERE segment_id = 1`, nil, moving, []string{`segment 1 is owned by worker "w7"`, "SET owner_id = NULL"}},
		{"a worker without a segment", 4, `INSERT INTO consumer_workers VALUES ('orders', 'w7', now() - interval '20 seconds')`, nil, moving,
			[]string{`worker "w7"`, "sent a heartbeat 20s ago", "last heartbeat is 30s old"}},
		{"no table of segments", 4, `DROP TABLE consumer_segments`, nil, nil, []string{`"consumer_segments"`}},
		{"no table of workers", 4, `DROP TABLE consumer_workers`, nil, nil, []string{`"consumer_workers"`}},
		{"no number of segments", 0, "", nil, invalid, []string{"importer.Config.Total is 0"}},
		{"Old as well", 4, "", func(c *importer.Config) { c.Old.Table = "t" }, invalid, []string{"importer.Config.Segments is set, and so is Old"}},
		{"an odd name", 4, "", func(c *importer.Config) { c.Segments.Table = "a\x00" }, invalid, []string{"importer.Config.Segments.Table"}},
		{"another hash", 4, "", func(c *importer.Config) {
			c.Strategy = strategy(func(id string, k, n int) bool { return len(id)%n == k })
		}, invalid, []string{"importer.Config.Strategy", "FNV-1a"}},
		{"a signed hash", 4, "", func(c *importer.Config) {
			c.Strategy = strategy(func(id string, k, n int) bool { return int(int32(hashed(id)))%n == k })
		}, invalid, []string{"importer.Config.Strategy", "FNV-1a"}},
		{"an aggregate in all partitions", 4, "", func(c *importer.Config) {
			c.Strategy = strategy(func(id string, k, n int) bool { return id == "aggregate-5" || int(hashed(id))%n == k })
		}, invalid, []string{"importer.Config.Strategy", `"aggregate-5"`}},
		{"a strategy that panics", 4, "", func(c *importer.Config) {
			c.Strategy = strategy(func(string, int, int) bool { panic("odd") })
		}, invalid, []string{"importer.Config.Strategy panicked: odd"}},
	} {
		t.Run(tt.why, func(t *testing.T) {
			t.Parallel()
			w := newSegmentWorld(t)
			w.segments("orders", 5, 9, 0, 7)
			if tt.setUp != "" {
				w.exec(tt.setUp)
			}
			cfg := w.importing(tt.total)
			if tt.change != nil {
				tt.change(&cfg)
			}
			w.refused(cfg, tt.want, tt.says...)
		})
	}
}

func (w *segmentWorld) refused(cfg importer.Config, want error, says ...string) {
	w.t.Helper()
	_, err := importer.Import(w.t.Context(), cfg)
	w.isRefusal(err, want, says...)
}

// refusedDuring is refused for an import during which something happens.
func (w *segmentWorld) refusedDuring(happens func(), cfg importer.Config, want error, says ...string) {
	w.t.Helper()
	refused := make(chan error, 1)
	go func() {
		_, err := importer.Import(w.t.Context(), cfg)
		refused <- err
	}()
	pgtest.Eventually(w.t, "the import watches", func() bool {
		return w.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%pg_blocking_pids%'`) > 0
	})
	happens()
	w.isRefusal(<-refused, want, says...)
}

func (w *segmentWorld) isRefusal(err, want error, says ...string) {
	w.t.Helper()
	if err == nil || want != nil && !errors.Is(err, want) {
		w.t.Fatalf("%v, want %v", err, want)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			w.t.Errorf("the error does not say %q: %v", s, err)
		}
	}
	if n := w.number(`SELECT (SELECT count(*) FROM orchestrator_checkpoints) + (SELECT count(*) FROM orchestrator_projections)`); n != 0 {
		w.t.Errorf("%d rows were written", n)
	}
}

// What can be imported: an equivalent strategy, dead workers, and other names.
func TestSegmentsAccepted(t *testing.T) {
	t.Parallel()
	w := newSegmentWorld(t)
	w.segments("orders", 5, 9, 0, 7)
	w.exec(`INSERT INTO consumer_workers VALUES ('orders', 'dead', now() - interval '40 seconds'), ('others', 'alive', now())`)
	w.exec(`CREATE SCHEMA old`)
	w.exec(`ALTER TABLE consumer_segments SET SCHEMA old`)
	w.exec(`ALTER TABLE old.consumer_segments RENAME TO "Segments"`)
	w.exec(`ALTER TABLE consumer_workers SET SCHEMA old`)
	cfg := w.importing(4)
	cfg.Segments = &importer.Segments{Schema: "old", Table: "Segments"}
	cfg.Strategy = strategy(func(id string, k, n int) bool { return n <= 1 || int(hashed(id))%n == k })
	got, err := importer.Import(t.Context(), cfg)
	if err != nil || !got.Exact || got.Lowest != 0 || len(got.Partitions) != 4 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := importer.Import(t.Context(), cfg); !errors.Is(err, importer.ErrCheckpointsExist) {
		t.Errorf("a second time: %v", err)
	}
}

// Running processors are detected: one in the middle of a batch, one that commits during the
// watch, one that has a segment locked, one that starts.
func TestSegmentsThatMove(t *testing.T) {
	t.Parallel()
	begin := func(w *segmentWorld, query string) *sql.Tx {
		w.t.Helper()
		tx, err := w.db.BeginTx(w.t.Context(), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = tx.Rollback() })
		if query != "" {
			if _, err := tx.ExecContext(w.t.Context(), query); err != nil {
				w.t.Fatal(err)
			}
		}
		return tx
	}
	const move = `UPDATE consumer_segments SET checkpoint = 12 WHERE consumer_name = 'orders' AND segment_id = 1`
	t.Run("in the midst of a batch", func(t *testing.T) {
		t.Parallel()
		w := newSegmentWorld(t)
		w.segments("orders", 5, 9)
		begin(w, `SELECT checkpoint FROM consumer_segments WHERE consumer_name = 'orders' AND segment_id = 1`)
		w.refused(w.importing(2), importer.ErrStillMoving, "middle of a batch")
	})
	t.Run("has a row locked", func(t *testing.T) {
		t.Parallel()
		w := newSegmentWorld(t)
		w.segments("orders", 5, 9)
		begin(w, move)
		w.refused(w.importing(2), importer.ErrStillMoving, `has "1" in`)
	})
	t.Run("commits during the watch", func(t *testing.T) {
		t.Parallel()
		w := newSegmentWorld(t)
		w.segments("orders", 5, 9)
		cfg := w.importing(2)
		cfg.Watch = time.Hour
		tx := begin(w, "")
		w.refusedDuring(func() {
			_, _ = tx.ExecContext(w.t.Context(), move) // waits for the import
			_ = tx.Rollback()
		}, cfg, importer.ErrStillMoving, "waits to move a checkpoint")
	})
	t.Run("registers during the watch", func(t *testing.T) {
		t.Parallel()
		w := newSegmentWorld(t)
		w.segments("orders", 5, 9)
		cfg := w.importing(2)
		cfg.Watch = 2 * time.Second
		w.refusedDuring(func() { w.exec(`INSERT INTO consumer_workers VALUES ('orders', 'late')`) }, cfg, importer.ErrStillMoving, `worker "late"`)
	})
}

// The single checkpoint of a consumer of eventsalsa/worker, as in docs/successors.md.
func TestOneCheckpointOfAConsumer(t *testing.T) {
	t.Parallel()
	w := newSegmentWorld(t)
	w.exec(`CREATE TABLE consumer_checkpoints (
		consumer_name text PRIMARY KEY, last_position bigint NOT NULL DEFAULT 0,
		created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())`)
	w.exec(`INSERT INTO consumer_checkpoints VALUES ('orders', 811), ('others', 4)`)
	cfg := w.importing(1)
	cfg.Segments, cfg.Old = nil, importer.OldCheckpoints{Table: "consumer_checkpoints", KeyColumn: "consumer_name", PositionColumn: "last_position"}
	got, err := importer.Import(t.Context(), cfg)
	if err != nil || !got.Exact || got.Lowest != 811 {
		t.Errorf("%+v, %v", got, err)
	}
	cfg.Projection = "new"
	if _, err := importer.Import(t.Context(), cfg); !errors.Is(err, importer.ErrOldCheckpoints) {
		t.Errorf("of a consumer without a checkpoint: %v", err)
	}
}
