package orchestratorpgx_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
	"github.com/getpup/pupsourcing-orchestrator/ops"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// Workers join and leave while events are appended out of order and rolled back, and the server
// repeatedly ends all of their connections. Nothing is lost, and the writes through pgx's
// transactions happen once.
func TestManyWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for a := range 3 {
		busy.Go(func() { appendUntil(ctx, w, a) })
	}
	admin := w.Connect()
	busy.Go(func() {
		for ctx.Err() == nil {
			_, err := admin.Exec(`
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'workers'`)
			if err != nil {
				t.Error(err)
			}
			// Every time they have got something done: on a slow machine nothing would be,
			// were they cut off by the clock.
			for before := w.Handled("copying"); ctx.Err() == nil && w.Handled("copying") == before; {
				wait(ctx, 200*time.Millisecond)
			}
		}
	})
	workers := world{w.World, newPool(t, w.URL+"&application_name=workers", 20)}
	var coming sync.WaitGroup
	for i := range 4 {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		coming.Go(func() {
			for range 2 {
				before := w.Handled("copying")
				cfg := workers.config("set")
				cfg.LeaseOnly = true // a machine too loaded for crash detection would make no progress
				r := testworld.Run(t, cfg, all()...)
				quota := int64(20 + random.IntN(100))
				pgtest.Eventually(t, "the group has handled a few more", func() bool { return w.Handled("copying") >= before+quota })
				r.Stop()
			}
		})
	}
	coming.Wait()
	stop()
	busy.Wait()
	last := testworld.Run(t, workers.config("set"), all()...)
	w.CaughtUp(exact...)
	last.Stop()
	w.CheckEffects(exact...)
	t.Logf("%d events, generation %d", w.Number(`SELECT count(*) FROM events`), w.Generation())
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// appendUntil appends events of a writer's own aggregates. Some of its transactions stay open
// while others commit, and some are rolled back.
func appendUntil(ctx context.Context, w world, a int) {
	random := rand.New(rand.NewPCG(uint64(a), 2))
	version := 0
	for ctx.Err() == nil {
		next := version
		err := pgx.BeginFunc(context.Background(), w.pool, func(tx pgx.Tx) error {
			for range 1 + random.IntN(5) {
				next++
				if _, err := tx.Exec(context.Background(), `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', $1, $2, gen_random_uuid(), 'happened', 'x')`, fmt.Sprintf("w%d-%d", a, next%7), next); err != nil {
					return err
				}
			}
			// The server keeps the transaction open, and others commit higher positions
			// meanwhile.
			if _, err := tx.Exec(context.Background(), `SELECT pg_sleep($1)`, 0.1*random.Float64()); err != nil {
				return err
			}
			if random.IntN(4) == 0 {
				return errRolledBack
			}
			return nil
		})
		switch err {
		case nil:
			version = next
		case errRolledBack:
		default:
			w.T.Error(err)
			return
		}
	}
}

var errRolledBack = fmt.Errorf("rolled back")

// A process is killed in the middle of a COPY. Its part of the batch is lost. Its successor
// repeats it, within the time of crash detection.
func TestSIGKILLInTheMiddleOfACopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1000)
	c := startChild(t, w.URL)
	c.says(t, "hanging")
	if n := w.Handled("copying"); n == 0 || n >= 1000 {
		t.Fatalf("%d events are committed; the child should be in the middle", n)
	}
	if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testworld.Run(t, w.config("set"), copying("copying"))
	w.CaughtUp("copying")
	w.CheckEffects("copying")
}

// Connections become silent in the middle of calls, without a reset. The worker notices by its
// dedicated connection, and goes on with other connections. What was committed was committed
// once.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	between, err := wire.To(w.URL, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := world{w.World, newPool(t, between.URL, 20)}
	t.Cleanup(between.Close) // before the pool, which waits for an answer when it closes a connection
	cfg := far.config("set")
	cfg.StaleWorkerTimeout, cfg.BatchSize = 6*time.Second, 10
	testworld.Run(t, cfg, all()...)
	for range 2 {
		w.Append(100)
		before := w.Handled("copying")
		pgtest.Eventually(t, "some are handled", func() bool { return w.Handled("copying") > before })
		between.Silence()
		w.Append(50)
	}
	w.CaughtUp(exact...)
	w.CheckEffects(exact...)
}

// rowsRead counts the statements that read the rows of some positions.
type rowsRead struct{ n atomic.Int64 }

func (r *rowsRead) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.Contains(q.SQL, `"payload"`) && strings.Contains(q.SQL, `::bigint[]`) {
		r.n.Add(1)
	}
	return ctx
}

func (r *rowsRead) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Several workers each read their own part of a backlog, and no part is left out.
func TestReadsBySlot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var read rowsRead
	w.pool = newPool(t, w.URL, 20, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &read })
	for i := range 3 {
		cfg := w.config("set") // each worker reads for itself
		cfg.BatchSize = 500
		testworld.Run(t, cfg, copying("copying"))
		w.Active("set", i+1)
	}
	before := read.n.Load()
	w.Append(15_000)
	w.CaughtUp("copying")
	w.CheckEffects("copying")
	if n := w.Number(`SELECT count(DISTINCT partition) FROM effects WHERE total = 3`); n != 3 {
		t.Errorf("%d of 3 partitions have handled events", n)
	}
	if read.n.Load() == before {
		t.Error("no worker has read the rows of its own slots")
	}
}

// The server applies the scope. An event that can't be read stops only its own aggregate until
// it is repaired.
func TestScopesAndBadRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(500)
	w.Exec(`UPDATE events SET aggregate_type = 'rare' WHERE global_position % 7 = 0`)
	w.Exec(`UPDATE events SET created_at = 'infinity' WHERE global_position IN (98, 101)`) // time.Time can't hold that
	scoped := orchestratorpgx.Transactional("scoped", func(ctx context.Context, tx pgx.Tx, e event) error {
		if e.AggregateType != "rare" {
			return fmt.Errorf("an event of type %q", e.AggregateType)
		}
		return insert(ctx, tx, "scoped", e)
	}, orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"rare"}}))
	cfg := w.config("set")
	cfg.Failures = map[string]orchestrator.FailureRule{}
	for _, name := range []string{"scoped", "copying"} {
		cfg.Failures[name] = orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 1}
	}
	testworld.Run(t, cfg, scoped, copying("copying"))
	for name, all := range map[string]int64{"scoped": 71, "copying": 500} {
		pgtest.Eventually(t, name+" has handled what can be read", func() bool {
			parked := w.Number(`SELECT count(*) FROM orchestrator_parked WHERE projection = $1`, name)
			return parked > 0 && w.Handled(name)+parked == all
		})
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_parked WHERE position IN (98, 101) AND error LIKE '%created_at%'`); n != 3 {
		t.Errorf("%d events were parked for their rows, want 98 twice and 101 once", n)
	}
	w.Exec(`UPDATE events SET created_at = now() WHERE global_position IN (98, 101)`)
	for _, name := range []string{"scoped", "copying"} {
		if _, err := ops.RetryParked(t.Context(), w.DB, name, ops.ParkedSelector{All: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.CaughtUp("copying")
	w.CheckEffects("copying")
	pgtest.Eventually(t, "the scoped one has all of its events", func() bool { return w.Handled("scoped") == 71 })
}
