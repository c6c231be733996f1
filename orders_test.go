package orchestrator_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// ordered fails the test if an order was refused, and waits until its generation
// is active.
func (w *world) ordered(set orchestrator.ReplicaSetName) func(generation int64, err error) {
	return func(generation int64, err error) {
		w.t.Helper()
		if err == nil {
			err = ops.AwaitGeneration(w.t.Context(), w.db, set, generation)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// workers returns the set's workers in join order.
func (w *world) workers(set orchestrator.ReplicaSetName) []ops.WorkerStatus {
	w.t.Helper()
	s, err := ops.Status(w.t.Context(), w.db, set)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.Workers
}

// When the generation of a pause is active, no handler of the projection runs, and
// none begins until it is resumed; a restart and a re-partition change nothing
// about that. The others go on.
func TestPause(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &history{}
	cfg := w.config(w.db, "set")
	var handling atomic.Int64
	counted := transactional{effects{name: "transactional", log: h, hook: func(context.Context, orchestrator.Event) error {
		handling.Add(1)
		handling.Add(-1)
		return nil
	}}}
	projections := []orchestrator.Projection[orchestrator.Event]{counted, batched{effects{name: "batched", log: h}}}
	first := run(t, cfg, projections...)
	run(t, cfg, projections...)
	w.active("set", 2)
	w.append(100)
	w.ordered("set")(ops.Pause(ctx, w.db, "set", "transactional"))
	before := w.handled("transactional")
	if n := handling.Load(); n != 0 {
		t.Errorf("%d handlers of the paused projection run", n)
	}
	w.append(100)
	w.caughtUp("batched")
	first.stop()
	w.active("set", 1)
	run(t, cfg, projections...)
	w.active("set", 2)
	w.append(100)
	w.caughtUp("batched")
	if after := w.handled("transactional"); after != before {
		t.Errorf("a paused projection has handled %d events, and then %d", before, after)
	}
	s, err := ops.Status(ctx, w.db, "set")
	if err != nil || len(s.Paused) != 1 || s.Paused[0] != "transactional" || s.PausedAll {
		t.Errorf("status: paused %v, all %v, %v", s.Paused, s.PausedAll, err)
	}
	w.ordered("set")(ops.Resume(ctx, w.db, "set", "transactional"))
	w.caughtUp("transactional", "batched")
	w.checkEffects("transactional", "batched")
	h.check(t)
}

// A set that is paused has members, and partitions, and handles nothing; new
// workers can join it.
func TestPauseAll(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &history{}
	cfg := w.config(w.db, "set")
	first := run(t, cfg, w.all(w.db, h)...)
	w.active("set", 1)
	w.append(50)
	w.caughtUp(names...)
	w.ordered("set")(ops.PauseAll(ctx, w.db, "set"))
	w.append(50)
	run(t, cfg, w.all(w.db, h)...)
	generation := w.active("set", 2)
	if n := w.handled("batched"); n != 50 {
		t.Errorf("a set that is paused has handled %d events, and 50 were there before", n)
	}
	if _, err := ops.Resume(ctx, w.db, "set", "batched"); !errors.Is(err, ops.ErrOrder) {
		t.Errorf("resume one of a set that is paused: %v", err)
	}
	first.stop() // nobody waits for lanes that were never started
	w.active("set", 1)
	again, err := ops.PauseAll(ctx, w.db, "set")
	if now := w.number(`SELECT generation FROM orchestrator_replica_sets`); err != nil || again != now || again <= generation {
		t.Errorf("to pause again opened generation %d, now %d, %v", again, now, err)
	}
	w.ordered("set")(ops.ResumeAll(ctx, w.db, "set"))
	w.caughtUp(names...)
	w.checkEffects(exact...)
	h.check(t)
}

// A rewind under load replays exactly what is above the position: what was in
// flight when it was ordered is committed before it, or not at all.
func TestRewind(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &history{}
	cfg := w.config(w.db, "set")
	for range 2 {
		run(t, cfg, w.all(w.db, h)...)
	}
	w.active("set", 2)
	w.append(400)
	for _, position := range []int64{0, 123} {
		eventually(t, "some events are handled", func() bool { return w.handled("batched") > 150 })
		generation, err := ops.Rewind(ctx, w.db, "set", "batched", position)
		w.ordered("set")(generation, err)
		w.caughtUp(names...)
		eventually(t, "batched has replayed all", func() bool {
			return w.number(`SELECT count(*) FROM effects WHERE projection = 'batched' AND generation >= $1`, generation) ==
				w.number(`SELECT count(*) FROM events WHERE global_position > $1`, position)
		})
		if n := w.number(`SELECT count(*) FROM effects WHERE projection = 'batched' AND generation >= $1 AND position <= $2`, generation, position); n != 0 {
			t.Errorf("%d events up to %d were replayed", n, position)
		}
		w.exec(`DELETE FROM effects WHERE projection = 'batched' AND generation < $1`, generation)
		w.exec(`INSERT INTO effects (projection, position, aggregate, generation, partition, total, id)
			SELECT 'batched', global_position, aggregate_id, 0, 0, 1, -100000 + global_position FROM events WHERE global_position <= $1`, position)
		w.checkEffects(exact...) // the others' too
	}
	h.check(t)
}

// Forward, and with nobody there: the next worker starts from the position.
func TestRewindWithoutWorkers(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(w.db, "set")
	w.append(50)
	first := run(t, cfg, w.all(w.db, nil)...)
	w.caughtUp(names...)
	first.stop()
	w.append(100)
	if _, err := ops.Rewind(t.Context(), w.db, "set", "batched", 120); err != nil {
		t.Fatal(err)
	}
	s, err := ops.Status(t.Context(), w.db, "set")
	if err != nil || s.Rewinds["batched"] != 120 {
		t.Errorf("status: rewinds %v, %v", s.Rewinds, err)
	}
	run(t, cfg, w.all(w.db, nil)...)
	w.caughtUp("transactional")
	if err := orchestrator.WaitFor(t.Context(), w.db, "batched", 150); err != nil {
		t.Fatal(err)
	}
	if n := w.number(`SELECT count(*) FROM effects WHERE projection = 'batched' AND position > 50`); n != 30 {
		t.Errorf("%d events were handled after a rewind from 50 to 120 of 150", n)
	}
	if n := w.number(`SELECT count(*) FROM orchestrator_replica_sets WHERE rewinds <> '{}'`); n != 0 {
		t.Error("the rewind is still due")
	}
}

// A worker that is drained has no partitions, keeps its place, and gets some again.
func TestDrainWorker(t *testing.T) {
	w := newWorld(t)
	ctx, h := t.Context(), &history{}
	cfg := w.config(w.db, "set")
	run(t, cfg, w.all(w.db, h)...)
	w.active("set", 1)
	second := run(t, cfg, w.all(w.db, h)...)
	w.active("set", 2)
	w.append(200)
	name := w.workers("set")[0].Worker
	w.ordered("set")(ops.DrainWorker(ctx, w.db, "set", name))
	w.append(200)
	w.caughtUp(names...)
	workers := w.workers("set")
	if len(workers) != 2 || !workers[0].Drained || len(workers[0].Partitions) != 0 || len(workers[1].Partitions) != 1 {
		t.Errorf("after the first was drained: %+v", workers)
	}
	if _, err := ops.DrainWorker(ctx, w.db, "set", workers[1].Worker); !errors.Is(err, ops.ErrOrder) || !strings.Contains(err.Error(), "last") {
		t.Errorf("drain the last worker: %v", err)
	}
	// Nobody is left that could have partitions: nothing is handed over to nobody.
	second.stop()
	w.append(100)
	w.ordered("set")(ops.UndrainWorker(ctx, w.db, "set", name))
	w.caughtUp(names...)
	w.checkEffects(exact...)
	h.check(t)
}

func TestOrdersThatCannotBe(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if _, err := ops.Pause(ctx, w.db, "set", "batched"); !errors.Is(err, ops.ErrOrder) {
		t.Errorf("pause in a set that has never run: %v", err)
	}
	if _, err := ops.Status(ctx, w.db, "set"); !errors.Is(err, ops.ErrNoReplicaSet) {
		t.Errorf("status of a set that has never run: %v", err)
	}
	cfg := w.config(w.db, "set")
	run(t, cfg, w.all(w.db, nil)...)
	generation := w.active("set", 1)
	cfg.ReplicaSet = "other"
	run(t, cfg, plain{effects{name: "foreign"}, w.db})
	w.active("other", 1)
	for what, order := range map[string]func() (int64, error){
		"no projection":      func() (int64, error) { return ops.Pause(ctx, w.db, "set", "nobody") },
		"of another set":     func() (int64, error) { return ops.Pause(ctx, w.db, "set", "foreign") },
		"no worker":          func() (int64, error) { return ops.DrainWorker(ctx, w.db, "set", "nobody") },
		"the last worker":    func() (int64, error) { return ops.DrainWorker(ctx, w.db, "set", w.workers("set")[0].Worker) },
		"negative position":  func() (int64, error) { return ops.Rewind(ctx, w.db, "set", "batched", -1) },
		"rewind of all":      func() (int64, error) { return ops.Rewind(ctx, w.db, "set", "", 1) },
		"rewind of a nobody": func() (int64, error) { return ops.Rewind(ctx, w.db, "set", "nobody", 1) },
	} {
		if _, err := order(); !errors.Is(err, ops.ErrOrder) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if g, err := ops.Resume(ctx, w.db, "set", "batched"); err != nil || g != generation {
		t.Errorf("resume what runs: generation %d, before it %d, %v", g, generation, err)
	}
	w.exec(`DROP TABLE orchestrator_schema`)
	if _, err := ops.Pause(ctx, w.db, "set", "batched"); !errors.Is(err, orchestrator.ErrSchema) {
		t.Errorf("without the tables: %v", err)
	}
}
