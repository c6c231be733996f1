package ops_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// When the generation of a pause is active, no handler of the projection runs, and none starts
// until it is resumed, also after a restart and a rebalance. The other projections go on.
func TestPause(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &testworld.History{}
	cfg := w.Config(w.DB, "set")
	var handling atomic.Int64
	counted := testworld.Effects{Projection: "transactional", Log: h, Hook: func(context.Context, orchestrator.Event) error {
		handling.Add(1)
		handling.Add(-1)
		return nil
	}}.Transactional()
	projections := []orchestrator.Projection[orchestrator.Event]{counted, testworld.Effects{Projection: "batched", Log: h}.Batched()}
	first := testworld.Run(t, cfg, projections...)
	testworld.Run(t, cfg, projections...)
	w.Active("set", 2)
	w.Append(100)
	w.Ordered("set")(ops.Pause(ctx, w.DB, "set", "transactional"))
	before := w.Handled("transactional")
	if n := handling.Load(); n != 0 {
		t.Errorf("%d handlers of the paused projection run", n)
	}
	w.Append(100)
	w.CaughtUp("batched")
	first.Stop()
	w.Active("set", 1)
	testworld.Run(t, cfg, projections...)
	w.Active("set", 2)
	w.Append(100)
	w.CaughtUp("batched")
	if after := w.Handled("transactional"); after != before {
		t.Errorf("a paused projection has handled %d events, and then %d", before, after)
	}
	s, err := ops.Status(ctx, w.DB, "set")
	if err != nil || len(s.Paused) != 1 || s.Paused[0] != "transactional" || s.PausedAll {
		t.Errorf("status: paused %v, all %v, %v", s.Paused, s.PausedAll, err)
	}
	w.Ordered("set")(ops.Resume(ctx, w.DB, "set", "transactional"))
	w.CaughtUp("transactional", "batched")
	w.CheckEffects("transactional", "batched")
	h.Check(t)
}

// A paused set has members and partitions, and handles nothing. New workers can join it.
func TestPauseAll(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &testworld.History{}
	cfg := w.Config(w.DB, "set")
	first := testworld.Run(t, cfg, w.All(w.DB, h)...)
	w.Active("set", 1)
	w.Append(50)
	w.CaughtUp(testworld.Names...)
	w.Ordered("set")(ops.PauseAll(ctx, w.DB, "set"))
	w.Append(50)
	testworld.Run(t, cfg, w.All(w.DB, h)...)
	generation := w.Active("set", 2)
	if n := w.Handled("batched"); n != 50 {
		t.Errorf("a set that is paused has handled %d events, and 50 were there before", n)
	}
	if _, err := ops.Resume(ctx, w.DB, "set", "batched"); !errors.Is(err, ops.ErrRejected) {
		t.Errorf("resume one of a set that is paused: %v", err)
	}
	first.Stop() // there are no lanes to wait for
	w.Active("set", 1)
	again, err := ops.PauseAll(ctx, w.DB, "set")
	if now := w.Generation(); err != nil || again != now || again <= generation {
		t.Errorf("to pause again opened generation %d, now %d, %v", again, now, err)
	}
	w.Ordered("set")(ops.ResumeAll(ctx, w.DB, "set"))
	w.CaughtUp(testworld.Names...)
	w.CheckEffects(testworld.Exact...)
	h.Check(t)
}

// A rewind under load repeats exactly the events after the position. Transactions in flight when
// it was ordered commit before it, or not at all.
func TestRewind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, h := t.Context(), &testworld.History{}
	cfg := w.Config(w.DB, "set")
	for range 2 {
		testworld.Run(t, cfg, w.All(w.DB, h)...)
	}
	w.Active("set", 2)
	w.Append(400)
	for _, position := range []int64{0, 123} {
		pgtest.Eventually(t, "some events are handled", func() bool { return w.Handled("batched") > 150 })
		generation, err := ops.Rewind(ctx, w.DB, "set", "batched", position)
		w.Ordered("set")(generation, err)
		w.CaughtUp(testworld.Names...)
		pgtest.Eventually(t, "batched has replayed all", func() bool {
			return w.Number(`SELECT count(*) FROM effects WHERE projection = 'batched' AND generation >= $1`, generation) ==
				w.Number(`SELECT count(*) FROM events WHERE global_position > $1`, position)
		})
		if n := w.Number(`SELECT count(*) FROM effects WHERE projection = 'batched' AND generation >= $1 AND position <= $2`, generation, position); n != 0 {
			t.Errorf("%d events up to %d were replayed", n, position)
		}
		w.Exec(`DELETE FROM effects WHERE projection = 'batched' AND generation < $1`, generation)
		w.Exec(`INSERT INTO effects (projection, position, aggregate, generation, partition, total, id)
			SELECT 'batched', global_position, aggregate_id, 0, 0, 1, -100000 + global_position FROM events WHERE global_position <= $1`, position)
		w.CheckEffects(testworld.Exact...) // those of the other projections as well
	}
	h.Check(t)
}

// Forward, without a worker: the next worker starts from the position.
func TestRewindWithoutWorkers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	w.Append(50)
	first := testworld.Run(t, cfg, w.All(w.DB, nil)...)
	w.CaughtUp(testworld.Names...)
	first.Stop()
	w.Append(100)
	if _, err := ops.Rewind(t.Context(), w.DB, "set", "batched", 120); err != nil {
		t.Fatal(err)
	}
	s, err := ops.Status(t.Context(), w.DB, "set")
	if err != nil || s.Rewinds["batched"] != 120 {
		t.Errorf("status: rewinds %v, %v", s.Rewinds, err)
	}
	testworld.Run(t, cfg, w.All(w.DB, nil)...)
	w.CaughtUp("transactional")
	if err := orchestrator.WaitFor(t.Context(), w.DB, "batched", 150); err != nil {
		t.Fatal(err)
	}
	if n := w.Number(`SELECT count(*) FROM effects WHERE projection = 'batched' AND position > 50`); n != 30 {
		t.Errorf("%d events were handled after a rewind from 50 to 120 of 150", n)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_replica_sets WHERE rewinds <> '{}'`); n != 0 {
		t.Error("the rewind is still due")
	}
}

// A drained worker has no partitions, keeps its place among the members, and gets partitions
// again.
func TestDrainWorker(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &testworld.History{}
	cfg := w.Config(w.DB, "set")
	testworld.Run(t, cfg, w.All(w.DB, h)...)
	w.Active("set", 1)
	second := testworld.Run(t, cfg, w.All(w.DB, h)...)
	w.Active("set", 2)
	w.Append(200)
	name := w.Workers("set")[0].Worker
	w.Ordered("set")(ops.DrainWorker(ctx, w.DB, "set", name))
	w.Append(200)
	w.CaughtUp(testworld.Names...)
	workers := w.Workers("set")
	if len(workers) != 2 || !workers[0].Drained || len(workers[0].Partitions) != 0 || len(workers[1].Partitions) != 1 {
		t.Errorf("after the first was drained: %+v", workers)
	}
	if _, err := ops.DrainWorker(ctx, w.DB, "set", workers[1].Worker); !errors.Is(err, ops.ErrRejected) || !strings.Contains(err.Error(), "last") {
		t.Errorf("drain the last worker: %v", err)
	}
	// No worker is left that could have partitions, so none are handed over.
	second.Stop()
	w.Append(100)
	w.Ordered("set")(ops.UndrainWorker(ctx, w.DB, "set", name))
	w.CaughtUp(testworld.Names...)
	w.CheckEffects(testworld.Exact...)
	h.Check(t)
}

func TestOrdersThatAreRejected(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if _, err := ops.Pause(ctx, w.DB, "set", "batched"); !errors.Is(err, ops.ErrRejected) {
		t.Errorf("pause in a set that has never run: %v", err)
	}
	if _, err := ops.Status(ctx, w.DB, "set"); !errors.Is(err, ops.ErrNoReplicaSet) {
		t.Errorf("status of a set that has never run: %v", err)
	}
	cfg := w.Config(w.DB, "set")
	testworld.Run(t, cfg, w.All(w.DB, nil)...)
	generation := w.Active("set", 1)
	cfg.ReplicaSet = "other"
	testworld.Run(t, cfg, testworld.Effects{Projection: "foreign"}.Plain(w.DB))
	w.Active("other", 1)
	for what, order := range map[string]func() (int64, error){
		"no projection":     func() (int64, error) { return ops.Resume(ctx, w.DB, "set", "nobody") },
		"of another set":    func() (int64, error) { return ops.Pause(ctx, w.DB, "set", "foreign") },
		"no worker":         func() (int64, error) { return ops.DrainWorker(ctx, w.DB, "set", "nobody") },
		"the last worker":   func() (int64, error) { return ops.DrainWorker(ctx, w.DB, "set", w.Workers("set")[0].Worker) },
		"negative position": func() (int64, error) { return ops.Rewind(ctx, w.DB, "set", "batched", -1) },
		"rewind of all":     func() (int64, error) { return ops.Rewind(ctx, w.DB, "set", "", 1) },
		"rewind of no name": func() (int64, error) { return ops.Rewind(ctx, w.DB, "set", "no\nbody", 1) },
		"rewind of another": func() (int64, error) { return ops.Rewind(ctx, w.DB, "set", "foreign", 1) },
	} {
		if _, err := order(); !errors.Is(err, ops.ErrRejected) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if g, err := ops.Resume(ctx, w.DB, "set", "batched"); err != nil || g != generation {
		t.Errorf("resume what runs: generation %d, before it %d, %v", g, generation, err)
	}
	w.Exec(`DROP TABLE orchestrator_schema`)
	if _, err := ops.Pause(ctx, w.DB, "set", "batched"); !errors.Is(err, orchestrator.ErrSchema) {
		t.Errorf("without the tables: %v", err)
	}
}

// A projection that has never run can be paused and rewound: it starts at that position. HasRun
// distinguishes it from one that has run, so that mistyped names are noticed.
func TestOrderBeforeTheFirstRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, h := t.Context(), &testworld.History{}
	w.Append(10)
	first := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "batched", Log: h}.Batched())
	w.CaughtUp("batched")
	first.Stop()
	for name, want := range map[string]bool{"batched": true, "plain": false} {
		if has, err := ops.HasRun(ctx, w.DB, name); err != nil || has != want {
			t.Errorf("%s has run: %t, %v", name, has, err)
		}
	}
	if _, err := ops.HasRun(ctx, w.DB, "\n"); !errors.Is(err, ops.ErrRejected) {
		t.Errorf("a name that can't be one: %v", err)
	}
	if _, err := ops.Rewind(ctx, w.DB, "set", "plain", 7); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Pause(ctx, w.DB, "set", "transactional"); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Resume(ctx, w.DB, "set", "nobody"); !errors.Is(err, ops.ErrRejected) {
		t.Errorf("resume of nobody: %v", err)
	}
	testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	w.CaughtUp("batched")
	pgtest.Eventually(t, "plain has handled 3 events", func() bool { return w.Handled("plain") == 3 })
	if n := w.Number(`SELECT count(*) FROM effects WHERE projection = 'transactional' OR projection = 'plain' AND position <= 7`); n != 0 {
		t.Errorf("%d events were handled that should not be", n)
	}
	w.Ordered("set")(ops.Resume(ctx, w.DB, "set", "transactional"))
	w.CaughtUp("transactional")
}
