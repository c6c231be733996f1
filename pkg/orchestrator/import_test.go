package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/getpup/pupsourcing/es/projection"
	"github.com/google/go-cmp/cmp"

	root "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// handRun is a projection of a processor: its handler writes outside of the transaction that
// moves the checkpoint.
type handRun struct {
	effects
	db *sql.DB
}

func (p handRun) handle(ctx context.Context, e es.PersistedEvent) error {
	return p.write(root.ContextWithDelivery(ctx, root.Delivery{}), p.db, e)
}

func checkpoint(projection string, k, total int) string {
	if total == 1 {
		return projection
	}
	return fmt.Sprintf("%s_p%d", projection, k)
}

// process starts a processor of pupsourcing for partition k of total.
func (w *world) process(projectionName string, k, total int) *running {
	config := projection.DefaultProcessorConfig()
	config.BatchSize, config.PollInterval = 20, 5*time.Millisecond
	config.PartitionKey, config.TotalPartitions = k, total
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: w.t, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = postgres.NewProcessor(w.db, w.store, &config).Run(ctx, handRun{effects(projectionName), w.db})
	}()
	w.t.Cleanup(func() { cancel(); <-r.done })
	return r
}

// handRun lets a processor handle all events, ends it, and returns its position.
func (w *world) handRun(projection string, k, total int) int64 {
	w.t.Helper()
	r := w.process(projection, k, total)
	last := w.number(`SELECT max(global_position) FROM events`)
	pgtest.Eventually(w.t, fmt.Sprintf("processor %d of %d has caught up", k, total), func() bool {
		return w.number(`SELECT count(*) FROM projection_checkpoints WHERE projection_name = $1 AND last_global_position = $2`,
			checkpoint(projection, k, total), last) == 1
	})
	// The processor is idle, so its end interrupts no handler. Its error depends on where the
	// end reaches it.
	r.cancel()
	<-r.done
	return last
}

// The new workers handle no event that the processors have handled, each up to a position of its
// own, and all other events.
func TestImport(t *testing.T) {
	for _, total := range []int{1, 3, 4} {
		t.Run(fmt.Sprint(total), func(t *testing.T) {
			w := newWorld(t, "events")
			want := importer.Result{Projection: "transactional", ReplicaSet: "set", Exact: true}
			for k := total - 1; k >= 0; k-- {
				w.append(90)
				at := w.handRun("transactional", k, total)
				want.Partitions = append([]importer.Partition{{Key: checkpoint("transactional", k, total), Position: at, Start: at}}, want.Partitions...)
			}
			want.Lowest = want.Partitions[total-1].Position
			w.append(90)
			got, err := importer.Import(t.Context(), importer.Config{
				DB: w.db, Projection: "transactional", ReplicaSet: "set", Total: total, Watch: time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("imported (-want +got):\n%s", diff)
			}

			first := run(t, w.config(), transactional{effects: "transactional"})
			w.active(1)
			w.append(90)
			run(t, w.config(), transactional{effects: "transactional"})
			w.active(2)
			w.append(90)
			first.stop()
			w.append(90)
			w.caughtUp("transactional")
			w.checkEffects("transactional")
		})
	}
}

// An event that a processor has skipped because its transaction committed late counts as
// handled: the import can't know it. The documentation says so.
func TestImportAfterALateCommit(t *testing.T) {
	w := newWorld(t, "events")
	w.append(5)
	late := w.begin()
	w.appendTo(late, "shop", "order", "late", 1)
	w.append(5)
	w.handRun("transactional", 0, 1)
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	w.append(5)
	w.handRun("transactional", 0, 1)
	_, err := importer.Import(t.Context(), importer.Config{
		DB: w.db, Projection: "transactional", ReplicaSet: "set", Total: 1, Watch: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, w.config(), transactional{effects: "transactional"})
	w.append(5)
	pgtest.Eventually(t, "the worker has caught up", func() bool {
		return w.number(`SELECT count(*) FROM orchestrator_checkpoints WHERE position = (SELECT max(global_position) FROM events)`) == 1
	})
	if events, handled := w.events(), w.handled("transactional"); events != 21 || handled != 20 {
		t.Errorf("of %d events, %d are handled, want all 21 but the late one", events, handled)
	}
}

// A processor in the middle of a batch is detected by the rows that pupsourcing locks.
func TestImportSeesAProcessor(t *testing.T) {
	w := newWorld(t, "events")
	w.append(50)
	w.handRun("transactional", 0, 1)
	w.append(50)
	held := w.begin() // the processor's handler will wait for it
	if _, err := held.ExecContext(t.Context(), `LOCK TABLE effects`); err != nil {
		t.Fatal(err)
	}
	r := w.process("transactional", 0, 1)
	pgtest.Eventually(t, "the processor is in its handler", func() bool {
		return w.number(`SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'effects'::regclass`) == 1
	})
	_, err := importer.Import(t.Context(), importer.Config{
		DB: w.db, Projection: "transactional", ReplicaSet: "set", Total: 1, Watch: 50 * time.Millisecond,
	})
	if !errors.Is(err, importer.ErrStillMoving) {
		t.Errorf("%v, want ErrStillMoving", err)
	}
	if err := held.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.caughtUp("transactional")
	r.cancel()
	<-r.done
}

// Checkpoints in another table, which a store can be configured to use.
func TestImportFromAnotherTable(t *testing.T) {
	w := newWorld(t, "events")
	w.exec(`ALTER TABLE projection_checkpoints RENAME TO ShopCheckpoints`)
	w.store = postgres.NewStore(postgres.NewStoreConfig(postgres.WithCheckpointsTable("ShopCheckpoints")))
	w.exec(`INSERT INTO ShopCheckpoints (projection_name, last_global_position) VALUES ('p', 7)`)
	got, err := importer.Import(t.Context(), importer.Config{
		DB: w.db, Projection: "p", ReplicaSet: "set", Total: 1, Watch: time.Millisecond,
		Old: importer.OldCheckpoints{Table: "shopcheckpoints"},
	})
	if err != nil || got.Lowest != 7 {
		t.Errorf("%v, %v", got, err)
	}
}
