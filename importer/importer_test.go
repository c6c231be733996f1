package importer_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

func TestMain(m *testing.M) { os.Exit(testworld.Main(m)) }

// A world is a testworld.World with checkpoints of hand-run processors.
type world struct{ *testworld.World }

const handRunTable = `
CREATE TABLE projection_checkpoints (
    projection_name      text        PRIMARY KEY,
    last_global_position bigint      NOT NULL DEFAULT 0,
    updated_at           timestamptz NOT NULL DEFAULT now()
)`

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{testworld.New(t)}
	w.Exec(handRunTable)
	return w
}

func handRunKey(projection string, k, n int) string {
	if n == 1 {
		return projection
	}
	return fmt.Sprintf("%s_p%d", projection, k)
}

// handRun is a hand-run processor of partition k of n. It handles its events from its checkpoint
// up to a position.
func (w *world) handRun(projection string, k, n int, to int64) {
	w.T.Helper()
	for w.handRunBatch(projection, k, n, to) > 0 {
	}
}

// handRunBatch runs one transaction of it, and returns how many events it read.
func (w *world) handRunBatch(projection string, k, n int, to int64) int {
	w.T.Helper()
	const batch = 40
	ctx := w.T.Context()
	tx, err := w.DB.BeginTx(ctx, nil)
	if err != nil {
		w.T.Fatal(err)
	}
	defer tx.Rollback()
	rows, err := tx.QueryContext(ctx, `
SELECT global_position, aggregate_id FROM events
 WHERE global_position > coalesce((SELECT last_global_position FROM projection_checkpoints WHERE projection_name = $1), 0)
   AND global_position <= $2
 ORDER BY global_position LIMIT $3`, handRunKey(projection, k, n), to, batch)
	if err != nil {
		w.T.Fatal(err)
	}
	defer rows.Close()
	var own []orchestrator.Event
	var position int64
	seen := 0
	for ; rows.Next(); seen++ {
		var e orchestrator.Event
		if err := rows.Scan(&e.GlobalPosition, &e.AggregateID); err != nil {
			w.T.Fatal(err)
		}
		position = e.GlobalPosition
		h := fnv.New32a()
		h.Write([]byte(e.AggregateID))
		if int(h.Sum32())%n == k {
			own = append(own, e)
		}
	}
	if err := rows.Err(); err != nil {
		w.T.Fatal(err)
	}
	if seen == 0 {
		return 0
	}
	for _, e := range own {
		_, err := tx.ExecContext(ctx, `
INSERT INTO effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, 0, $4, $5)`,
			projection, e.GlobalPosition, e.AggregateID, k, n)
		if err != nil {
			w.T.Fatal(err)
		}
	}
	_, err = tx.ExecContext(ctx, `
INSERT INTO projection_checkpoints (projection_name, last_global_position) VALUES ($1, $2)
    ON CONFLICT (projection_name) DO UPDATE SET last_global_position = excluded.last_global_position, updated_at = now()`,
		handRunKey(projection, k, n), position)
	if err != nil {
		w.T.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		w.T.Fatal(err)
	}
	return seen
}

// handRunTo runs each partition up to a position of its own.
func (w *world) handRunTo(projection string, positions ...int64) {
	w.T.Helper()
	for k, to := range positions {
		w.handRun(projection, k, len(positions), to)
	}
}

// old sets the old checkpoints: key, position, ….
func (w *world) old(checkpoints ...any) {
	w.T.Helper()
	for i := 0; i < len(checkpoints); i += 2 {
		w.Exec(`INSERT INTO projection_checkpoints (projection_name, last_global_position) VALUES ($1, $2)`, checkpoints[i], checkpoints[i+1])
	}
}

func (w *world) importing(projection string, total int) importer.Config {
	return importer.Config{DB: w.DB, Projection: projection, ReplicaSet: "set", Total: total, Watch: time.Millisecond}
}

func mustImport(t testing.TB, cfg importer.Config) importer.Result {
	t.Helper()
	got, err := importer.Import(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(got)
	return got
}

// state returns everything that a failed import must not change.
func (w *world) state() string {
	w.T.Helper()
	var s strings.Builder
	for _, table := range []string{
		"orchestrator_replica_sets", "orchestrator_projections", "orchestrator_checkpoints", "projection_checkpoints",
	} {
		var rows string
		err := w.DB.QueryRowContext(w.T.Context(), `SELECT coalesce(string_agg(r::text, E'\n' ORDER BY r::text), '') FROM `+table+` r`).Scan(&rows)
		if err != nil {
			w.T.Fatal(err)
		}
		fmt.Fprintf(&s, "%s:\n%s\n", table, rows)
	}
	return s.String()
}

// Hand-run partitions at different positions are imported, and workers whose number changes go
// on. Nothing is lost. Nothing is repeated if the total divides 5040; otherwise only events
// above the lowest position are.
func TestImport(t *testing.T) {
	t.Parallel()
	for _, total := range []int{1, 2, 3, 4, 7, 16, 11, 13} {
		t.Run(fmt.Sprint(total), func(t *testing.T) {
			w := newWorld(t)
			w.Append(600)
			positions := make([]int64, total)
			for k := range positions {
				positions[k] = int64(60 + k*211%500)
			}
			w.handRunTo("transactional", positions...)

			got := mustImport(t, w.importing("transactional", total))
			want := importer.Result{Projection: "transactional", ReplicaSet: "set", Lowest: 60, Exact: 5040%total == 0}
			for k, p := range positions {
				part := importer.Partition{Key: handRunKey("transactional", k, total), Position: p, Start: p}
				if !want.Exact {
					part.Start = 60
				}
				want.Partitions = append(want.Partitions, part)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("imported (-want +got):\n%s", diff)
			}

			h := &testworld.History{}
			start := func() *testworld.Running {
				return testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional", Log: h}.Transactional())
			}
			first := start()
			if g := w.Active("set", 1); g != 1 {
				t.Errorf("the first generation is %d", g)
			}
			start()
			start()
			w.Append(150)
			w.Active("set", 3)
			w.Append(150)
			first.Stop()
			w.Active("set", 2)
			w.Append(150)
			w.CaughtUp("transactional")
			h.Check(t)

			if want.Exact {
				w.CheckEffects("transactional")
			} else if n := w.Number(`SELECT count(*) FROM (SELECT FROM effects GROUP BY position HAVING count(*) > 1 AND position <= 60) d`); n != 0 {
				t.Errorf("%d events up to the lowest position are repeated", n)
			}
		})
	}
}

// The set runs another projection, with fewer partitions than are imported. The imported
// projection starts with the next generation.
func TestImportIntoARunningSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(500)
	w.handRunTo("transactional", 400, 100, 300)
	other := testworld.Effects{Projection: "batched"}.Batched()
	first := testworld.Run(t, w.Config(w.DB, "set"), other)
	w.Active("set", 1)

	mustImport(t, w.importing("transactional", 3))

	testworld.Run(t, w.Config(w.DB, "set"), other, testworld.Effects{Projection: "transactional"}.Transactional())
	if g := w.Active("set", 2); g != 2 {
		t.Errorf("the next generation is %d, want 2", g)
	}
	first.Stop()
	w.Append(100)
	w.CaughtUp(testworld.Exact...)
	w.CheckEffects(testworld.Exact...)
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	type import_ = importer.Config
	invalid, old := orchestrator.ErrInvalidConfig, importer.ErrOldCheckpoints
	for _, tt := range []struct {
		why    string
		rows   []any
		total  int
		change func(*import_)
		want   error
		says   []string
	}{
		{"no database", nil, 1, func(c *import_) { c.DB = nil }, invalid, []string{"importer.Config.DB"}},
		{"no projection", nil, 1, func(c *import_) { c.Projection = "" }, invalid, []string{"importer.Config.Projection", "is empty"}},
		{"no set", nil, 1, func(c *import_) { c.ReplicaSet = " " }, invalid, []string{"importer.Config.ReplicaSet", "is empty"}},
		{"no total", nil, 0, nil, invalid, []string{"importer.Config.Total is 0"}},
		{"too many", nil, 5041, nil, invalid, []string{"importer.Config.Total is 5041", "5040"}},
		{"a negative watch", nil, 1, func(c *import_) { c.Watch = -1 }, invalid, []string{"importer.Config.Watch is -1ns"}},
		{"a table's odd name", nil, 1, func(c *import_) { c.Old.Table = "a\x00" }, invalid, []string{"importer.Config.Old.Table"}},
		{"a schema's odd name", nil, 1, func(c *import_) { c.Old.Schema = " " }, invalid, []string{"importer.Config.Old.Schema"}},
		{"no key", nil, 2, func(c *import_) { c.Old.Key = func(string, int, int) string { return "" } }, invalid, []string{"importer.Config.Old.Key", "partition 0 of 2"}},
		{"one key for two", nil, 2, func(c *import_) { c.Old.Key = func(string, int, int) string { return "x" } }, invalid, []string{"importer.Config.Old.Key", "partition 0 and partition 1"}},

		{"nothing there", nil, 1, nil, old, []string{`no row "p";`, `"projection_checkpoints"`, "importer.Config.Total 1"}},
		{"nothing at all of three", nil, 3, nil, old, []string{`no row "p_p0", "p_p1", "p_p2"`}},
		{"two missing", []any{"p_p0", 1, "p_p2", 1}, 4, nil, old, []string{`no row "p_p1", "p_p3"`}},
		{"too high a total", []any{"p_p0", 1, "p_p1", 1}, 3, nil, old, []string{`no row "p_p2"`, "seems to be 2"}},
		{"too low a total", []any{"p_p0", 1, "p_p1", 1, "p_p2", 1, "p_p3", 1}, 3, nil, old, []string{`a row "p_p3" as well`, "seems to be 4"}},
		{"one far beyond", []any{"p_p0", 1, "p_p1", 1, "p_p5039", 1}, 2, nil, old, []string{`a row "p_p5039" as well`}},
		{"run alone, in fact", []any{"p", 5}, 2, nil, old, []string{`no row "p_p0", "p_p1"`, `a row "p" as well`, "seems to be 1"}},
		{"alone, in fact two", []any{"p_p0", 1, "p_p1", 1}, 1, nil, old, []string{`no row "p";`, `a row "p_p0", "p_p1" as well`, "seems to be 2"}},
		{"first alone, then two", []any{"p", 5, "p_p0", 9, "p_p1", 8}, 1, nil, old, []string{`a row "p_p0", "p_p1" as well`, "seems to be 2"}},
		{"first two, then alone", []any{"p", 50, "p_p0", 9, "p_p1", 8}, 2, nil, old, []string{`a row "p" as well`, "seems to be 1"}},
		{"negative", []any{"p_p0", 1, "p_p1", -7}, 2, nil, old, []string{`row "p_p1" has position -7`}},
		{"no position", []any{"p_p0", nil, "p_p1", 1}, 2, nil, old, []string{`row "p_p0" has no position`}},
		{"twice", []any{"p_p0", 1, "p_p1", 1, "p_p0", 2}, 2, nil, old, []string{`two rows "p_p0"`}},

		{"no such table", nil, 1, func(c *import_) { c.Old.Table = "nowhere" }, nil, []string{`"nowhere"`, `projection "p"`}},
		{"no such column", nil, 1, func(c *import_) { c.Old.PositionColumn = "nothing" }, nil, []string{"nothing"}},
	} {
		t.Run(tt.why, func(t *testing.T) {
			w := newWorld(t)
			w.Exec(`ALTER TABLE projection_checkpoints DROP CONSTRAINT projection_checkpoints_pkey, ALTER last_global_position DROP NOT NULL`)
			w.old(tt.rows...)
			cfg := w.importing("p", tt.total)
			if tt.change != nil {
				tt.change(&cfg)
			}
			w.refused(cfg, tt.want, tt.says...)
		})
	}
}

// refused fails the test unless Import returns an error with the given texts and changes
// nothing.
func (w *world) refused(cfg importer.Config, want error, says ...string) {
	w.T.Helper()
	before := w.state()
	_, err := importer.Import(w.T.Context(), cfg)
	if err == nil || want != nil && !errors.Is(err, want) {
		w.T.Fatalf("%v, want %v", err, want)
	}
	w.T.Log(err)
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			w.T.Errorf("the error does not say %q: %v", s, err)
		}
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		w.T.Errorf("changed (-before +after):\n%s", diff)
	}
}

func TestImportNeedsTheSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`DROP TABLE orchestrator_schema`)
	if _, err := importer.Import(t.Context(), w.importing("p", 1)); !errors.Is(err, orchestrator.ErrSchema) {
		t.Errorf("%v, want ErrSchema", err)
	}
}

func TestImportTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.old("p_p0", 7, "p_p1", 5)
	mustImport(t, w.importing("p", 2))
	w.Exec(`UPDATE projection_checkpoints SET last_global_position = 9`)
	w.refused(w.importing("p", 2), importer.ErrCheckpointsExist, `replica set "set"`)
}

// Workers have run the projection before the import. The remedy in the error works.
func TestImportAfterWorkersHaveStarted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	w.old("transactional", 60)
	p := testworld.Effects{Projection: "transactional"}.Transactional()
	r := testworld.Run(t, w.Config(w.DB, "set"), p)
	w.CaughtUp("transactional")
	w.refused(w.importing("transactional", 1), importer.ErrCheckpointsExist, "stop them, undo", "delete its rows")

	r.Stop()
	w.Exec(`DELETE FROM effects WHERE position > 60`)
	w.Exec(`DELETE FROM orchestrator_checkpoints WHERE projection = 'transactional'`)
	mustImport(t, w.importing("transactional", 1))
	testworld.Run(t, w.Config(w.DB, "set"), p)
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}

// Another set has the projection, with a worker that runs it or has died.
func TestImportTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.old("p", 1)
	w.Exec(`INSERT INTO orchestrator_projections VALUES ('p', 'other')`)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ('other', 'w1', now(), 1000000, now() + interval '1 day', 1, 1, '[0]', 1, 0, 0, 1, '["p"]')`)
	w.refused(w.importing("p", 1), orchestrator.ErrProjectionTaken, `replica set "other", where worker w1 runs it`)
	w.Exec(`UPDATE orchestrator_workers SET lease_until = now() - interval '1 day'`)
	w.refused(w.importing("p", 1), orchestrator.ErrProjectionTaken, "its lease has expired", "delete its row")
	w.Exec(`DELETE FROM orchestrator_workers`)
	mustImport(t, w.importing("p", 1))
}

func TestImportDryRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.old("p_p0", 7, "p_p1", 5)
	cfg := w.importing("p", 2)
	cfg.DryRun = true
	before := w.state()
	dry := mustImport(t, cfg)
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
	cfg.DryRun = false
	wet := mustImport(t, cfg)
	dry.DryRun = false
	if diff := cmp.Diff(dry, wet); diff != "" {
		t.Errorf("the dry run said something else (-dry +wet):\n%s", diff)
	}
}

// Any table works.
func TestImportFromAnotherTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`CREATE SCHEMA "Legacy"`)
	w.Exec(`CREATE TABLE "Legacy"."the positions" ("Part" integer, "at" numeric)`)
	w.Exec(`INSERT INTO "Legacy"."the positions" VALUES (100, 7), (101, 0), (102, 12)`)
	cfg := w.importing("p", 2)
	cfg.Old = importer.OldCheckpoints{
		Schema: "Legacy", Table: "the positions", KeyColumn: "Part", PositionColumn: "at",
		Key: func(_ string, partition, total int) string {
			if total != 2 { // the other rows belong to other projections
				return ""
			}
			return fmt.Sprint(100 + partition)
		},
	}
	got := mustImport(t, cfg)
	want := []importer.Partition{{Key: "100", Position: 7, Start: 7}, {Key: "101", Position: 0, Start: 0}}
	if diff := cmp.Diff(want, got.Partitions); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A processor is about to commit its checkpoint.
func TestImportMeetsALockedRow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.old("p_p0", 7, "p_p1", 5)
	tx, err := w.DB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `UPDATE projection_checkpoints SET last_global_position = 8 WHERE projection_name = 'p_p1'`); err != nil {
		t.Fatal(err)
	}
	w.refused(w.importing("p", 2), importer.ErrStillMoving, `has "p_p1" in`)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := mustImport(t, w.importing("p", 2)); got.Partitions[1].Position != 8 {
		t.Errorf("imported %d, want the 8 that was committed", got.Partitions[1].Position)
	}
}

// A processor moves during the watch: the import gives way.
func TestImportMeetsAMovingProcessor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(100)
	w.handRunTo("p", 40, 40)
	cfg := w.importing("p", 2)
	cfg.Watch = 2 * testworld.Limit
	refused := make(chan error)
	go func() {
		_, err := importer.Import(t.Context(), cfg)
		refused <- err
	}()
	w.importWatches()
	w.handRun("p", 1, 2, 100)
	if err := <-refused; !errors.Is(err, importer.ErrStillMoving) || !strings.Contains(err.Error(), "waits to move") {
		t.Errorf("%v, want ErrStillMoving", err)
	}
	if n := w.Number(`SELECT last_global_position FROM projection_checkpoints WHERE projection_name = 'p_p1'`); n != 100 {
		t.Errorf("the processor got to %d, want 100", n)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_checkpoints`); n != 0 {
		t.Errorf("%d checkpoints were imported", n)
	}
}

// A processor has read its checkpoint and is in the middle of a batch that takes longer than the
// watch: it has locked no row and moves nothing.
func TestImportMeetsALongBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.old("p", 7)
	tx, err := w.DB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var backend int
	err = tx.QueryRowContext(t.Context(), `SELECT pg_backend_pid() FROM projection_checkpoints WHERE projection_name = 'p'`).Scan(&backend)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.importing("p", 1), importer.ErrStillMoving, fmt.Sprintf("backend %d has read", backend))
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	mustImport(t, w.importing("p", 1))
}

// importWatches waits until an import has locked the rows and watches.
func (w *world) importWatches() {
	w.T.Helper()
	pgtest.Eventually(w.T, "the import watches", func() bool {
		return w.Number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%pg_blocking_pids%'`) > 0
	})
}

// The context ends during the watch.
func TestImportCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.old("p", 7)
	cfg := w.importing("p", 1)
	cfg.Watch = 2 * testworld.Limit
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := importer.Import(ctx, cfg)
		done <- err
	}()
	w.importWatches()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// A worker joins during the import: it starts from the imported positions, or the import is
// refused because the worker has started at zero.
func TestImportRacesWithAWorker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(40)
	outcomes := map[string]int{}
	for i := range 12 {
		p := fmt.Sprintf("p%d", i)
		set := orchestrator.ReplicaSetName("set-" + p)
		w.old(p, 30)
		var r *testworld.Running
		var err error
		var both sync.WaitGroup
		both.Go(func() {
			cfg := w.importing(p, 1)
			cfg.ReplicaSet = set
			for err = context.DeadlineExceeded; err != nil && !errors.Is(err, importer.ErrCheckpointsExist); {
				_, err = importer.Import(t.Context(), cfg)
			}
		})
		both.Go(func() { r = testworld.Run(t, w.Config(w.DB, set), testworld.Effects{Projection: p}.Transactional()) })
		both.Wait()
		want := int64(40)
		if err == nil {
			want = 10
			outcomes["imported"]++
		} else {
			outcomes["refused"]++
		}
		pgtest.Eventually(t, "the last event is handled", func() bool {
			return w.Number(`SELECT count(*) FROM effects WHERE projection = $1 AND position = 40`, p) == 1
		})
		r.Stop()
		if n := w.Number(`SELECT count(*) FROM effects WHERE projection = $1`, p); n != want {
			t.Errorf("import: %v; the worker handled %d events, want %d", err, n, want)
		}
	}
	t.Log(outcomes)
}

// wayBack returns the README's SQL for going back, for a projection and a total.
func wayBack(t *testing.T, projection string, total int) string {
	t.Helper()
	page, err := os.ReadFile("../docs/pupsourcing.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	const arguments = `'user_count' AS name, 1 AS processors`
	for _, b := range blocks {
		if strings.Contains(b[1], arguments) {
			return strings.Replace(b[1], arguments, fmt.Sprintf(`'%s' AS name, %d AS processors`, projection, total), 1)
		}
	}
	t.Fatalf("no SQL in docs/pupsourcing.md with %s", arguments)
	return ""
}

func (w *world) oldPositions(projection string, total int) (positions []int64) {
	w.T.Helper()
	for k := range total {
		positions = append(positions, w.Number(`SELECT last_global_position FROM projection_checkpoints WHERE projection_name = $1`, handRunKey(projection, k, total)))
	}
	return positions
}

// From three hand-run partitions to a worker that has handled nothing yet, whose one checkpoint
// has marks, and back: exact for three and six partitions, the lowest position for one and
// eleven.
func TestImportAndBackWithMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(200)
	w.handRunTo("p", 70, 40, 90)
	mustImport(t, w.importing("p", 3))
	w.Exec(`DELETE FROM projection_checkpoints`)
	w.Exec(wayBack(t, "p", 3))
	if got, want := w.oldPositions("p", 3), []int64{70, 40, 90}; !cmp.Equal(got, want) {
		t.Errorf("back to 3 at once: %v, want %v", got, want)
	}
	met := make(chan struct{}, 1)
	r := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error {
		select {
		case met <- struct{}{}:
		default:
		}
		return errors.New("not yet")
	}}.Transactional())
	<-met
	r.Stop()
	if n := w.Number(`SELECT count(*) FROM orchestrator_checkpoints WHERE jsonb_typeof(ahead) = 'array'`); n != 1 {
		t.Fatalf("%d checkpoints with marks, want 1", n)
	}
	for _, tt := range []struct {
		total int
		want  []int64
	}{
		{1, []int64{40}}, {3, []int64{70, 40, 90}}, {6, []int64{70, 40, 90, 70, 40, 90}},
		{11, []int64{40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40}},
	} {
		w.Exec(`DELETE FROM projection_checkpoints`)
		w.Exec(wayBack(t, "p", tt.total))
		if got := w.oldPositions("p", tt.total); !cmp.Equal(got, tt.want) {
			t.Errorf("back to %d: %v, want %v", tt.total, got, tt.want)
		}
		if n := w.Number(`SELECT count(*) FROM projection_checkpoints`); n != int64(tt.total) {
			t.Errorf("back to %d: %d rows", tt.total, n)
		}
	}
}

// Workers leave their partitions far apart, and hand-run processors go on. Nothing is lost.
// Nothing is repeated except above the lowest position, and nothing at all if the totals allow
// that.
func TestImportAndBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(600)
	w.handRunTo("p", 100, 50)
	mustImport(t, w.importing("p", 2))
	// Partition 1 of 2 is stuck above position 200, and so is a worker that is alone.
	var stuck atomic.Bool
	p := testworld.Effects{Projection: "p", Hook: func(ctx context.Context, e orchestrator.Event) error {
		switch a, _ := orchestrator.DeliveryFrom(ctx); {
		case a.TotalPartitions == 1:
			return errors.New("alone")
		case a.Partition == 1 && e.GlobalPosition > 200:
			stuck.Store(true)
			return errors.New("stuck")
		}
		return nil
	}}.Transactional()
	a, b := testworld.Run(t, w.Config(w.DB, "set"), p), testworld.Run(t, w.Config(w.DB, "set"), p)
	pgtest.Eventually(t, "partition 0 is done and partition 1 is stuck", func() bool {
		return stuck.Load() && w.Number(`SELECT max(position) FROM orchestrator_checkpoints WHERE total = 2 AND partition = 0`) == 600
	})
	a.Stop()
	b.Stop()
	lowest := w.Number(`SELECT min(position) FROM orchestrator_checkpoints WHERE projection = 'p'`)

	w.Append(50)
	w.Exec(`CREATE TABLE ours AS SELECT * FROM effects`)
	for _, tt := range []struct {
		total int
		exact bool
	}{{1, false}, {2, true}, {3, false}, {4, true}} {
		w.Exec(`TRUNCATE effects, projection_checkpoints`)
		w.Exec(`INSERT INTO effects SELECT * FROM ours`)
		w.Exec(wayBack(t, "p", tt.total))
		for k := range tt.total {
			w.handRun("p", k, tt.total, 650)
		}
		repeated := w.Number(`SELECT count(*) FROM (SELECT FROM effects GROUP BY position HAVING count(*) > 1) d`)
		below := w.Number(`SELECT count(*) FROM (SELECT FROM effects GROUP BY position HAVING count(*) > 1 AND position <= $1) d`, lowest)
		if lost := 650 - w.Handled("p"); lost != 0 || below != 0 || tt.exact != (repeated == 0) {
			t.Errorf("back to %d: %d lost, %d repeated, %d of them up to position %d", tt.total, lost, repeated, below, lowest)
		}
	}
}
