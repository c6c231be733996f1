package orchestratorpgx_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

type (
	event   = orchestrator.Event
	handler = func(ctx context.Context, tx pgx.Tx, e event) error
)

// config returns a configuration for tests over the pool.
func (w world) config(set orchestrator.ReplicaSetName) orchestrator.Config[event] {
	w.T.Helper()
	cfg, err := orchestratorpgx.Config(w.pool, set)
	if err != nil {
		w.T.Fatal(err)
	}
	quick := w.Config(w.DB, set)
	quick.DB, quick.EventStore, quick.Notifier = cfg.DB, cfg.EventStore, cfg.Notifier
	return quick
}

// caughtUp lets one worker handle all events, and returns the result of CatchUp.
func (w world) caughtUp(set orchestrator.ReplicaSetName, projections ...orchestrator.Projection[event]) error {
	w.T.Helper()
	cfg := w.config(set)
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		w.T.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.T.Context(), testworld.Limit)
	defer cancel()
	return o.CatchUp(ctx, projections)
}

// insert inserts the effect of an event.
func insert(ctx context.Context, tx pgx.Tx, projection string, e event) error {
	a, _ := orchestrator.DeliveryFrom(ctx)
	_, err := tx.Exec(ctx, `INSERT INTO effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, $4, $5, $6)`,
		projection, e.GlobalPosition, e.AggregateID, a.Generation, a.Partition, a.TotalPartitions)
	return err
}

var effectColumns = []string{"projection", "position", "aggregate", "generation", "partition", "total"}

func effects(ctx context.Context, projection string, events ...event) (rows [][]any) {
	a, _ := orchestrator.DeliveryFrom(ctx)
	for _, e := range events {
		rows = append(rows, []any{projection, e.GlobalPosition, e.AggregateID, a.Generation, a.Partition, a.TotalPartitions})
	}
	return rows
}

// copying and sending return projections that write with functions that only pgx has.
func copying(name string) orchestrator.Projection[event] {
	return orchestratorpgx.Batch(name, func(ctx context.Context, tx pgx.Tx, events []event) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"effects"}, effectColumns, pgx.CopyFromRows(effects(ctx, name, events...)))
		return err
	})
}

func sending(name string) orchestrator.Projection[event] {
	return orchestratorpgx.Batch(name, func(ctx context.Context, tx pgx.Tx, events []event) error {
		b := &pgx.Batch{}
		for _, row := range effects(ctx, name, events...) {
			b.Queue(`INSERT INTO effects (projection, position, aggregate, generation, partition, total) VALUES ($1, $2, $3, $4, $5, $6)`, row...)
		}
		return tx.SendBatch(ctx, b).Close()
	})
}

// nesting returns a projection that writes events one by one, in nested transactions. It writes
// some of them twice and rolls the first one back.
func nesting(name string) orchestrator.Projection[event] {
	return orchestratorpgx.Transactional(name, func(ctx context.Context, tx pgx.Tx, e event) error {
		for _, commits := range []bool{e.GlobalPosition%3 == 0, e.GlobalPosition%3 != 0} {
			nested, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			if err := insert(ctx, nested, name, e); err != nil {
				return err
			}
			if commits {
				err = nested.Commit(ctx)
			} else {
				err = nested.Rollback(ctx)
			}
			if err != nil {
				return err
			}
		}
		return pgx.BeginFunc(ctx, tx, func(pgx.Tx) error { return nil })
	})
}

var exact = []string{"copying", "sending", "nesting"}

func all() []orchestrator.Projection[event] {
	return []orchestrator.Projection[event]{copying("copying"), sending("sending"), nesting("nesting")}
}

// All methods of a pgx.Tx work in a handler.
func TestHandlerHasAllOfPgx(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(50)
	everything := orchestratorpgx.Transactional("everything", func(ctx context.Context, tx pgx.Tx, e event) error {
		if _, err := tx.Prepare(ctx, "greeting", `SELECT 'hello ' || $1::text`); err != nil {
			return err
		}
		var greeting string
		if err := tx.QueryRow(ctx, "greeting", e.AggregateID).Scan(&greeting); err != nil || greeting != "hello "+e.AggregateID {
			return fmt.Errorf("%q, %v", greeting, err)
		}
		rows, err := tx.Query(ctx, `SELECT generate_series(1, 3)`)
		if err != nil {
			return err
		}
		numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil || len(numbers) != 3 {
			return fmt.Errorf("%v, %v", numbers, err)
		}
		objects := tx.LargeObjects()
		id, err := objects.Create(ctx, 0)
		if err != nil {
			return err
		}
		object, err := objects.Open(ctx, id, pgx.LargeObjectModeRead|pgx.LargeObjectModeWrite)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(object, "text"); err != nil {
			return err
		}
		if err := object.Close(); err != nil {
			return err
		}
		var pid uint32
		if err := tx.Conn().QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil || pid != tx.Conn().PgConn().PID() {
			return fmt.Errorf("%d, %v", pid, err)
		}
		return insert(ctx, tx, "everything", e)
	})
	if err := w.caughtUp("set", everything); err != nil {
		t.Fatal(err)
	}
	if err := w.caughtUp("more", all()...); err != nil {
		t.Fatal(err)
	}
	w.CheckEffects(append(exact, "everything")...)
	if n := w.Number(`SELECT count(*) FROM pg_largeobject_metadata`); n != 50 {
		t.Errorf("%d large objects, want 50", n)
	}
}

// If a handler ends its transaction or leaves something open, that is its failure: the error
// names it, nothing of the batch is committed, and the checkpoint does not move past the event.
func TestHandlerMisuse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(3)
	const ends = "a handler can't end its transaction, which commits with the checkpoint"
	exec := func(query string) handler {
		return func(ctx context.Context, tx pgx.Tx, _ event) error { _, err := tx.Exec(ctx, query); return err }
	}
	ignored := func(h handler) handler {
		return func(ctx context.Context, tx pgx.Tx, e event) error { _ = h(ctx, tx, e); return nil }
	}
	for name, c := range map[string]struct {
		do   handler
		want string
	}{
		"Commit":            {func(ctx context.Context, tx pgx.Tx, _ event) error { return tx.Commit(ctx) }, "Commit: " + ends},
		"Rollback":          {func(ctx context.Context, tx pgx.Tx, _ event) error { return tx.Rollback(ctx) }, "Rollback: " + ends},
		"Commit, ignored":   {ignored(func(ctx context.Context, tx pgx.Tx, _ event) error { return tx.Commit(ctx) }), "Commit: " + ends},
		"deferred Rollback": {func(ctx context.Context, tx pgx.Tx, _ event) error { defer tx.Rollback(ctx); return nil }, "Rollback: " + ends},
		"COMMIT":            {exec("COMMIT"), "COMMIT: " + ends},
		"a nested one's COMMIT": {func(ctx context.Context, tx pgx.Tx, e event) error {
			n, _ := tx.Begin(ctx)
			return exec("commit")(ctx, n, e)
		}, "COMMIT: " + ends},
		"END, queried": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			rows, err := tx.Query(ctx, "END")
			rows.Close()
			return err
		}, "END: " + ends},
		"ABORT, of a row": {func(ctx context.Context, tx pgx.Tx, _ event) error { return tx.QueryRow(ctx, "ABORT").Scan() }, "ABORT: " + ends},
		"ROLLBACK, prepared": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.Prepare(ctx, "r", "ROLLBACK")
			return err
		}, "ROLLBACK: " + ends},
		"COMMIT, in a batch": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			b := &pgx.Batch{}
			b.Queue("SELECT 1")
			b.Queue("COMMIT")
			return tx.SendBatch(ctx, b).Close()
		}, "COMMIT: " + ends},
		"a batch with a transaction of its own": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			b := &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.Queue("SELECT 1")
			return tx.SendBatch(ctx, b).Close()
		}, "Batch.BeginTx cannot be used within a transaction"},
		"COMMIT by the connection": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.Conn().Exec(ctx, "COMMIT")
			return err
		}, "the handler has ended its transaction, by tx.Conn()"},
		"ROLLBACK and BEGIN by the connection": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.Conn().Exec(ctx, "ROLLBACK; BEGIN")
			return err
		}, "the handler has ended its transaction"},
		"a transaction of the connection": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			other, err := tx.Conn().Begin(ctx)
			if err != nil {
				return err
			}
			return other.Commit(ctx)
		}, "the handler has ended its transaction, by tx.Conn()"},
		"rows left open": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.Query(ctx, "SELECT generate_series(1, 1000)")
			return err
		}, "left rows, or the results of a batch, open"},
		"results left open": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			b := &pgx.Batch{}
			b.Queue("SELECT 1")
			tx.SendBatch(ctx, b)
			return nil
		}, "left rows, or the results of a batch, open"},
		"a row left open": {func(ctx context.Context, tx pgx.Tx, _ event) error { tx.QueryRow(ctx, "SELECT 1"); return nil }, "left rows, or the results of a batch, open"},
		"rows of the connection left open": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.Conn().Query(ctx, "SELECT generate_series(1, 1000)")
			return err
		}, "the connection is busy"},
		"a statement that fails, ignored": {ignored(exec("SELECT 1 / 0")), "current transaction is aborted"},
		"a panic":                         {func(context.Context, pgx.Tx, event) error { panic("oh") }, "panic: oh (pgx_test.TestHandlerMisuse"},
		"a panic with rows open": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, _ = tx.Query(ctx, "SELECT generate_series(1, 1000)")
			panic("oh")
		}, "panic: oh"},
		"an end of its goroutine": {func(context.Context, pgx.Tx, event) error { runtime.Goexit(); return nil }, "runtime.Goexit"},
		"a source that panics": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"effects"}, effectColumns, pgx.CopyFromFunc(func() ([]any, error) { panic("oh") }))
			return err
		}, "panic: oh"},
		"a source that ends its goroutine": {func(ctx context.Context, tx pgx.Tx, _ event) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"effects"}, effectColumns, pgx.CopyFromFunc(func() ([]any, error) { runtime.Goexit(); return nil, nil }))
			return err
		}, "the source of CopyFrom has ended its goroutine"},
		"an error": {func(context.Context, pgx.Tx, event) error { return errors.New("no") }, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			p := orchestratorpgx.Transactional(name, func(ctx context.Context, tx pgx.Tx, e event) error {
				if err := insert(ctx, tx, name, e); err != nil {
					return err
				}
				if e.GlobalPosition == 2 {
					return c.do(ctx, tx, e)
				}
				return nil
			})
			err := w.caughtUp(orchestrator.ReplicaSetName(name), p)
			var failed *orchestrator.HandlerError
			if !errors.As(err, &failed) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("CatchUp returned %v, want %q", err, c.want)
			}
			if failed.Position != 2 {
				t.Errorf("position %d is at fault, want 2", failed.Position)
			}
			if at := w.Number(`SELECT max(position) FROM orchestrator_checkpoints WHERE projection = $1`, name); at != 1 {
				t.Errorf("the checkpoint is at %d, want 1", at)
			}
			if n := w.Number(`SELECT count(*) FROM effects WHERE projection = $1 AND position > 2`, name); n != 0 {
				t.Errorf("%d effects of what comes after the event", n)
			}
			w.released()
		})
	}
}

// released waits until all connections are back in the pool.
func (w world) released() {
	w.T.Helper()
	pgtest.Eventually(w.T, "all connections are back in the pool", func() bool { return w.pool.Stat().AcquiredConns() == 0 })
}

// A handler's transaction can't be used after the handler has returned.
func TestHandlerThatKeepsItsTransaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(2)
	var kept pgx.Tx
	var late error
	p := orchestratorpgx.Transactional("keeps", func(ctx context.Context, tx pgx.Tx, e event) error {
		if kept != nil {
			_, late = kept.Exec(ctx, "SELECT 1")
		}
		kept = tx
		return insert(ctx, tx, "keeps", e)
	})
	if err := w.caughtUp("set", p); err != nil {
		t.Fatal(err)
	}
	if late == nil || !strings.Contains(late.Error(), "the handler has returned") {
		t.Errorf("a transaction that was kept says %v", late)
	}
	w.CheckEffects("keeps")
}

// A nil handler is refused, as in the root package.
func TestNilHandler(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, p := range []orchestrator.Projection[event]{
		orchestratorpgx.Transactional[event]("p", nil), orchestratorpgx.Batch[event]("p", nil),
	} {
		if err := w.caughtUp("set", p); !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), "nil handler") {
			t.Errorf("CatchUp returned %v", err)
		}
	}
}

// Over a database of another driver, a handler of this package fails and says why.
func TestHandlerOverAnotherDriver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = o.CatchUp(t.Context(), []orchestrator.Projection[event]{copying("copying")})
	if err == nil || !strings.Contains(err.Error(), "Config.DB has the driver of *pq.conn") {
		t.Errorf("CatchUp returned %v", err)
	}
}
