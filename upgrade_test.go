package orchestrator_test

import (
	"os"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Tables of version 1 are upgraded where they are, under a program of version 1
// that goes on: it beats, commits, and others of its kind join and leave. What it
// has done is where a program of today begins.
func TestUpgradeFromVersion1(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	w := &world{&testworld.World{T: t, DB: db, URL: url}}
	schema, script := readFile(t, "testdata/schema_v1.sql"), sections(readFile(t, "testdata/worker_v1.sql"))
	w.Exec(schema)
	w.Exec(eventtable.Layout)
	w.Exec(testworld.EffectsTable)
	w.Append(100)

	does := func(section string) {
		t.Helper()
		if script[section] == "" {
			t.Fatalf("no section %q", section)
		}
		w.Exec(script[section])
	}
	does("join")
	does("beat")
	does("commit the first 40")

	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	if v := w.Number(`SELECT version FROM orchestrator_schema`); v != 3 {
		t.Errorf("version %d, want 3", v)
	}
	does("beat")
	if n := w.Number(`SELECT count(*) FROM orchestrator_workers WHERE id = 'old' AND lease_until > clock_timestamp() AND partitions = '[0]'`); n != 1 {
		t.Error("the old program's worker is not there any more")
	}
	does("commit 20 more")
	if n := w.Number(`SELECT position FROM orchestrator_checkpoints`); n != 60 {
		t.Errorf("the old program has committed position %d, want 60", n)
	}
	does("leave")

	// Another of its kind, in the tables of today.
	w.Exec(strings.NewReplacer("'set'", "'other set'", `"transactional"`, `"other"`).Replace(script["join"]))
	if n := w.Number(`SELECT count(*) FROM orchestrator_workers WHERE replica_set = 'other set' AND paused = '[]' AND NOT drained`); n != 1 {
		t.Error("an old program can't join any more")
	}
	w.Exec(schema) // and an old program's migration, which changes nothing
	if v := w.Number(`SELECT version FROM orchestrator_schema`); v != 3 {
		t.Errorf("version 1's schema.sql has made it version %d", v)
	}

	testworld.Run(t, w.Config(db, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}

// Tables of version 2 are upgraded where they are, filled as they are, under a program
// of version 2 that goes on: it beats, reports, commits, parks, retries, leaves, and
// another of its kind joins. What it has done is where a program of today begins.
func TestUpgradeFromVersion2(t *testing.T) {
	t.Parallel()
	db, url := pgtest.Database(t)
	w := &world{&testworld.World{T: t, DB: db, URL: url}}
	schema, script := readFile(t, "testdata/schema_v2.sql"), sections(readFile(t, "testdata/worker_v2.sql"))
	w.Exec(schema)
	w.Exec(eventtable.Layout)
	w.Exec(testworld.EffectsTable)
	w.Append(100)
	does := func(section string) {
		t.Helper()
		if script[section] == "" {
			t.Fatalf("no section %q", section)
		}
		w.Exec(script[section])
	}
	does("join")
	does("beat")
	does("commit to 40")

	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	if v := w.Number(`SELECT version FROM orchestrator_schema`); v != 3 {
		t.Errorf("version %d, want 3", v)
	}
	if n := w.Number(`SELECT count(*) FROM pg_constraint WHERE conname LIKE 'orchestrator\_%\_valid' AND convalidated`); n < 30 {
		t.Errorf("%d rules for rows", n)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_park_orders`); n != 0 {
		t.Errorf("%d orders to park an event", n)
	}
	does("beat")
	does("commit to 60")
	does("park 61")
	does("note 61")
	status, err := ops.Status(t.Context(), db, "set")
	if err != nil || len(status.Partitions) != 1 || status.Partitions[0].Parked != 1 || status.Head != 100 {
		t.Errorf("status of an old program's set: %+v, %v", status, err)
	}
	does("handle 61")
	if n := w.Number(`SELECT position FROM orchestrator_checkpoints`); n != 61 {
		t.Errorf("the old program has committed position %d, want 61", n)
	}
	does("leave")
	if n := w.Reports(); n != 0 {
		t.Errorf("%d reports of nobody", n)
	}

	w.Exec(strings.NewReplacer("'set'", "'other set'", `"transactional"`, `"other"`).Replace(script["join"]))
	if n := w.Number(`SELECT count(*) FROM orchestrator_workers WHERE replica_set = 'other set'`); n != 1 {
		t.Error("an old program can't join any more")
	}
	w.Exec(schema) // and by an old program's hand
	if v := w.Number(`SELECT version FROM orchestrator_schema`); v != 3 {
		t.Errorf("version 2's schema.sql has made it version %d", v)
	}
	w.Exec(orchestrator.SchemaSQL())

	testworld.Run(t, w.Config(db, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}

// An upgrade wants the workers' table for itself, for a moment. Where somebody reads
// it in a long transaction, a backup say, it would wait, and every heartbeat would
// wait behind it, until all leases are over. So it gives up before that.
func TestUpgradeDoesNotHoldUpHeartbeats(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`UPDATE orchestrator_schema SET version = 1`)
	tx, err := w.Connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `SELECT FROM orchestrator_workers`); err != nil {
		t.Fatal(err)
	}
	if err := orchestrator.Migrate(untilWaiting(t, w.DB), w.DB); err == nil || !strings.Contains(err.Error(), "locks that are held by backend") {
		t.Errorf("Migrate returned %v, want who holds it up", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := orchestrator.RunMigrations(w.DB); err != nil {
		t.Error(err)
	}
}

func readFile(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sections returns the parts of a script by the names in their "-- #" lines.
func sections(text string) map[string]string {
	parts := map[string]string{}
	for _, part := range strings.Split(text, "\n-- # ")[1:] {
		name, body, _ := strings.Cut(part, "\n")
		parts[name] = body
	}
	return parts
}
