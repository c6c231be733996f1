package orchestrator_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// The tables can be in a schema of any name, which no search path names: workers run,
// operators look and give orders, and a projection of the same name beside it, in the
// schema of the search path, is another one.
func TestNamedSchema(t *testing.T) {
	t.Parallel()
	const name = `Odd "Schema", é`
	w := newWorld(t) // has the tables in its search path as well
	in := orchestrator.InSchema(name)
	ctx := t.Context()
	for range 2 { // the second time there is nothing to do
		if err := orchestrator.Migrate(ctx, w.DB, in); err != nil {
			t.Fatal(err)
		}
	}
	w.Append(100)
	cfg := w.Config(w.DB, "set")
	cfg.Schema = name
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	last := w.Number(`SELECT max(global_position) FROM events`)
	if err := orchestrator.WaitFor(ctx, w.DB, "transactional", last, in); err != nil {
		t.Fatal(err)
	}
	s, err := ops.Status(ctx, w.DB, "set", in)
	if err != nil || len(s.Workers) != 1 || s.Partitions[0].Position != last {
		t.Errorf("the status is %+v, %v", s, err)
	}
	generation, err := ops.PauseAll(ctx, w.DB, "set", in)
	if err == nil {
		err = ops.AwaitGeneration(ctx, w.DB, "set", generation, in)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, body := testworld.StatusPage(t, ops.StatusHandler(w.DB, ops.TablesInSchema(name))); !strings.Contains(body, `"paused_all":true`) {
		t.Errorf("the page does not show that all is paused: %s", body)
	}
	for i, ask := range []func() error{
		func() error { _, err := ops.ReplicaSets(ctx, w.DB, in); return err },
		func() error { _, err := ops.History(ctx, w.DB, "set", 10, in); return err },
		func() error { _, err := ops.Parked(ctx, w.DB, "transactional", 10, in); return err },
		func() error {
			_, err := ops.RetryParked(ctx, w.DB, "transactional", ops.ParkedSelector{All: true}, in)
			return err
		},
		func() error {
			_, err := ops.DiscardParked(ctx, w.DB, "transactional", ops.ParkedSelector{All: true}, in)
			return err
		},
		func() error { _, err := ops.Rewind(ctx, w.DB, "set", "transactional", last, in); return err },
		func() error { _, err := ops.ResumeAll(ctx, w.DB, "set", in); return err },
		func() error { _, err := ops.Pause(ctx, w.DB, "set", "transactional", in); return err },
		func() error { _, err := ops.Resume(ctx, w.DB, "set", "transactional", in); return err },
	} {
		if err := ask(); err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	r.Stop()
	if n := w.Number(`SELECT count(*) FROM public.orchestrator_replica_sets`); n != 0 {
		t.Errorf("%d replica sets are in the schema of the search path", n)
	}
	if n := w.Handled("transactional"); n != 100 {
		t.Errorf("%d events are handled", n)
	}
	w.Exec(`CREATE TABLE old (key text PRIMARY KEY, position bigint); INSERT INTO old VALUES ('imported', 7)`)
	_, err = importer.Import(ctx, importer.Config{
		DB: w.DB, Schema: name, Projection: "imported", ReplicaSet: "set", Total: 1, Watch: 1,
		Old: importer.OldCheckpoints{Table: "old", KeyColumn: "key", PositionColumn: "position"},
	})
	if err != nil {
		t.Error(err)
	}
}

// A name that can't be a schema's is refused with the reason, everywhere.
func TestSchemaNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, want := range map[string]string{
		"$user": "belongs to the server", "pg_temp": "belongs to the server", "information_schema": "belongs to the server", strings.Repeat("é", 32): "has more than 63 bytes", "a\x00b": "contains a control character",
	} {
		cfg := w.Config(w.DB, "set")
		cfg.Schema = name
		_, err := orchestrator.New(cfg)
		checkInvalid(t, err, want)
		checkInvalid(t, orchestrator.Migrate(t.Context(), w.DB, orchestrator.InSchema(name)), want)
		if _, err := ops.Status(t.Context(), w.DB, "set", orchestrator.InSchema(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Status in schema %q: %v", name, err)
		}
	}
	if _, err := ops.Status(t.Context(), w.DB, "set", orchestrator.InSchema("nowhere")); !errors.Is(err, orchestrator.ErrSchema) || !strings.Contains(err.Error(), `"nowhere"`) {
		t.Errorf("Status in a schema that is not there: %v", err)
	}
	for why, call := range map[string]func(context.Context) error{
		"Status":  func(ctx context.Context) error { _, err := ops.Status(ctx, nil, "set"); return err },
		"Pause":   func(ctx context.Context) error { _, err := ops.Pause(ctx, nil, "set", "p"); return err },
		"Parked":  func(ctx context.Context) error { _, err := ops.Parked(ctx, nil, "p", 1); return err },
		"WaitFor": func(ctx context.Context) error { return orchestrator.WaitFor(ctx, nil, "p", 1) },
	} {
		if err := call(t.Context()); err == nil || !strings.Contains(err.Error(), "nil") {
			t.Errorf("%s of no database: %v", why, err)
		}
	}
}
