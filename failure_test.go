package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Eight workers come and go at random while events are appended out of order
// and rolled back. What they did is checked against S1 to S6; that they catch
// up in the end is L1.
func TestManyWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := &testworld.History{}
	const workers, rounds = 8, 3

	ctx, stopAppending := context.WithCancel(t.Context())
	var appending sync.WaitGroup
	for a := range 4 {
		appending.Go(func() { appendUntil(ctx, w, a) })
	}

	var coming sync.WaitGroup
	for i := range workers {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		coming.Go(func() {
			for range rounds {
				before := w.Handled("plain")
				cfg := w.Config(w.DB, "set")
				cfg.LeaseOnly = true // a machine too loaded for proofs would have handlers cancelled, and the plain one repeat events
				r := testworld.Run(t, cfg, w.All(w.DB, h)...)
				quota := int64(20 + random.IntN(200))
				pgtest.Eventually(t, "the group has handled a few more", func() bool { return w.Handled("plain") >= before+quota })
				r.Stop()
			}
		})
	}
	coming.Wait()
	stopAppending()
	appending.Wait()

	last := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	w.CaughtUp(testworld.Names...)
	last.Stop()
	h.Check(t)
	w.CheckEffects(testworld.Names...)
	t.Logf("events %d, generations %d, handler calls %d", w.Number(`SELECT count(*) FROM events`),
		w.Generation(), h.Calls())
}

// appendUntil appends events of the aggregates of writer a, in transactions of
// which some stay open while others commit, and some are rolled back.
func appendUntil(ctx context.Context, w *world, a int) {
	random := rand.New(rand.NewPCG(uint64(a), 2))
	version := 0
	for ctx.Err() == nil {
		tx, err := w.DB.Begin()
		if err != nil {
			w.T.Error(err)
			return
		}
		committed := version
		for range 1 + random.IntN(5) {
			committed++
			_, err := tx.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', $1, $2, gen_random_uuid(), 'happened', 'x')`, fmt.Sprintf("w%d-%d", a, committed%7), committed)
			if err != nil {
				w.T.Error(err)
			}
		}
		// The server keeps the transaction open for a while: others commit
		// higher positions meanwhile.
		if _, err := tx.Exec(`SELECT pg_sleep($1)`, 0.03*random.Float64()); err != nil {
			w.T.Error(err)
		}
		if random.IntN(4) == 0 {
			err = tx.Rollback()
		} else {
			version = committed
			err = tx.Commit()
		}
		if err != nil {
			w.T.Error(err)
		}
	}
}

// A process is killed in the middle of a batch: what it did of it is rolled
// back and done by its successor.
func TestSIGKILLInTheMiddleOfABatch(t *testing.T) {
	w := newWorld(t)
	w.Append(1000)
	c := startChild(w, "hang in the middle of a batch")
	c.says("hanging")
	committed := w.Handled("transactional")
	if committed == 0 || committed >= 250 {
		t.Fatalf("%d events are committed; the child should be in the middle of a later batch", committed)
	}
	c.signal(syscall.SIGKILL)
	<-c.done

	testworld.Run(t, w.childConfig(), testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
	w.Active("set", 1)
}

// childConfig is what children use, for a worker in this process.
func (w *world) childConfig() orchestrator.Config[orchestrator.Event] {
	cfg := w.Config(w.DB, "set")
	theirs := childConfig
	theirs.DB, theirs.EventStore, theirs.Logger = cfg.DB, cfg.EventStore, cfg.Logger
	return theirs
}

// A process is frozen between its checkpoint write and COMMIT, for longer than
// its lease: it holds a lock that the activation needs. The server ends its
// transaction; the others go on; awake again, it can't commit, and comes back
// as a new incarnation.
func TestFrozenBetweenCheckpointAndCommit(t *testing.T) {
	w := newWorld(t)
	w.Append(1000)
	c := startChild(w, "freeze before COMMIT")
	c.says("running")
	c.frozen()
	before := w.Active("set", 1)

	other := testworld.Run(t, w.childConfig(), testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	after := w.Active("set", 1)
	if after <= before {
		t.Fatalf("generation %d follows generation %d", after, before)
	}
	c.thaw()
	w.Active("set", 2)
	if n := w.Number(`SELECT count(*) FROM orchestrator_workers WHERE id LIKE '%-' || $1 || '-%~_'`, fmt.Sprint(c.cmd.Process.Pid)); n != 1 {
		t.Errorf("%d workers are later incarnations of the one that was frozen, want 1", n)
	}
	w.Append(500)
	w.CaughtUp("transactional")
	c.signal(syscall.SIGTERM)
	c.says("ended: <nil>")
	other.Stop()
	w.CheckEffects("transactional")
}

// The reply to COMMIT is lost: after the commit happened, and before it
// reached the server. Nothing is lost, and nothing is done twice, not even by
// the plain projection when its commit did happen.
func TestLostCommitReply(t *testing.T) {
	for _, happened := range []bool{true, false} {
		t.Run(fmt.Sprintf("happened=%t", happened), func(t *testing.T) {
			w := newWorld(t)
			db, f := testworld.Faulty(t, w.URL)
			var lost atomic.Int64
			f.OnCommit(func(do func() error) error {
				if lost.Add(1)%3 != 0 {
					return do()
				}
				if happened {
					if err := do(); err != nil {
						return err
					}
				}
				return testworld.ErrLost
			})
			cfg := w.Config(db, "set")
			cfg.BatchSize = 10
			h := &testworld.History{}
			r := testworld.Run(t, cfg, w.All(w.DB, h)...)
			w.Append(500)
			w.CaughtUp(testworld.Names...)
			r.Stop()
			h.Check(t)
			// Undone commits of the plain projection are tried again without
			// its events being handled again.
			w.CheckEffects(testworld.Names...)
			if lost.Load() < 30 {
				t.Errorf("only %d commits", lost.Load())
			}
		})
	}
}

// The server restarts: nobody's Run ends, and work goes on.
func TestServerRestart(t *testing.T) {
	s, err := embedpg.Start(t.Context(), embedpg.Options{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	w := newWorldOn(t, s)
	h := &testworld.History{}
	a := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	b := testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...)
	w.Active("set", 2)
	w.Append(500)
	pgtest.Eventually(t, "work has begun", func() bool { return w.Handled("transactional") > 0 })
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the server is back", func() bool { return w.DB.PingContext(t.Context()) == nil })
	w.Append(500)
	w.CaughtUp(testworld.Names...)
	w.Active("set", 2)
	a.Stop()
	b.Stop()
	h.Check(t)
	w.CheckEffects(testworld.Exact...)
}

func newWorldOn(t testing.TB, s *embedpg.Server) *world {
	t.Helper()
	db, url := pgtest.DatabaseOn(t, s)
	return &world{testworld.SetUp(t, db, url)}
}

// Every connection is terminated, again and again.
func TestConnectionsTerminated(t *testing.T) {
	w := newWorld(t)
	h := &testworld.History{}
	var workers []*testworld.Running
	for range 3 {
		workers = append(workers, testworld.Run(t, w.Config(w.DB, "set"), w.All(w.DB, h)...))
	}
	w.Active("set", 3)
	admin := w.Connect()
	for range 10 {
		before := w.Handled("batched")
		w.Append(100)
		pgtest.Eventually(t, "something was handled", func() bool { return w.Handled("batched") > before })
		if _, err := admin.ExecContext(t.Context(), `
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		pgtest.Eventually(t, "the test's own connections work", func() bool { return w.DB.PingContext(t.Context()) == nil })
	}
	w.CaughtUp(testworld.Names...)
	for _, r := range workers {
		r.Stop()
	}
	h.Check(t)
	w.CheckEffects(testworld.Exact...)
}

// A transaction takes a position, others commit higher ones, and it commits
// last: its event is neither passed nor out of order.
func TestSlowTransactionBehindTheReader(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	r := testworld.Run(t, cfg, w.All(w.DB, nil)...)
	w.Append(50)
	w.CaughtUp(testworld.Names...)

	slow := w.Connect()
	tx, err := slow.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var position int64
	var pid int
	if err := tx.QueryRowContext(t.Context(), fmt.Sprintf(testworld.InsertEvent, 50)+` RETURNING global_position, pg_backend_pid()`, 1).Scan(&position, &pid); err != nil {
		t.Fatal(err)
	}
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', 'another', 1, gen_random_uuid(), 'happened', 'x')`)

	table := cfg.EventStore.(*orchestrator.Table[orchestrator.Event])
	pgtest.Eventually(t, "the reader says what it waits for", func() bool {
		gap, waiting := table.Waiting()
		return waiting && gap.Position == position && len(gap.Backends) == 1 && gap.Backends[0] == pid
	})
	if n := w.Number(`SELECT count(*) FROM effects WHERE position >= $1`, position); n != 0 {
		t.Errorf("%d events were handled behind the gap", n)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	w.CaughtUp(testworld.Names...)
	r.Stop()
	w.CheckEffects(testworld.Names...)
	if _, waiting := table.Waiting(); waiting {
		t.Error("the reader still waits")
	}
}

// Two replica sets claim the same projection: the second is told who has it.
// When the first has left, the projection moves over with its progress.
func TestTwoReplicaSetsClaimOneProjection(t *testing.T) {
	w := newWorld(t)
	a := testworld.Run(t, w.Config(w.DB, "first"), w.All(w.DB, nil)...)
	b := testworld.Run(t, w.Config(w.DB, "first"), w.All(w.DB, nil)...)
	w.Append(200)
	w.CaughtUp(testworld.Names...)
	w.Active("first", 2)

	err := testworld.Run(t, w.Config(w.DB, "second"), testworld.Effects{Projection: "transactional"}.Transactional()).Failed()
	if !errors.Is(err, orchestrator.ErrProjectionTaken) || !strings.Contains(err.Error(), `"transactional"`) || !strings.Contains(err.Error(), `"first"`) {
		t.Errorf("Run returned %v; want ErrProjectionTaken, with the projection and the replica set", err)
	}

	a.Stop()
	b.Stop()
	w.Append(200)
	c := testworld.Run(t, w.Config(w.DB, "second"), w.All(w.DB, nil)...)
	w.CaughtUp(testworld.Names...)
	c.Stop()
	w.CheckEffects(testworld.Names...)
}

// A handler fails or panics for a while. Its projection keeps its place; the
// others go on.
func TestFailingHandlerIsRetried(t *testing.T) {
	for _, kind := range []string{"plain", "transactional", "batched"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.Append(100)
			bad := w.Number(`SELECT min(global_position) + 42 FROM events`)
			var healed atomic.Bool
			var calls atomic.Int64
			hook := func(_ context.Context, e orchestrator.Event) error {
				if e.GlobalPosition != bad || healed.Load() {
					return nil
				}
				if calls.Add(1)%2 == 0 {
					panic("boom")
				}
				return errors.New("no")
			}
			projections := map[string]orchestrator.Projection[orchestrator.Event]{
				"plain":         testworld.Effects{Projection: "plain", Hook: hook}.Plain(w.DB),
				"transactional": testworld.Effects{Projection: "transactional", Hook: hook}.Transactional(),
				"batched":       testworld.Effects{Projection: "batched", Hook: hook}.Batched(),
			}
			r := testworld.Run(t, w.Config(w.DB, "set"), projections[kind], testworld.Effects{Projection: "other"}.Transactional())
			w.CaughtUp("other")
			pgtest.Eventually(t, "the handler was tried a few times", func() bool { return calls.Load() >= 5 })
			// Everything before the bad event is committed, and nothing after.
			pgtest.Eventually(t, "the lane stands before the bad event", func() bool {
				return w.Number(`SELECT max(position) FROM effects WHERE projection = $1`, kind) == bad-1
			})
			if n := w.Handled(kind); n != 42 {
				t.Errorf("%d events are handled, want 42", n)
			}
			healed.Store(true)
			w.CaughtUp(kind)
			r.Stop()
			w.CheckEffects(kind, "other")
		})
	}
}

// Under StopOnFailure, Run commits what precedes the event, leaves, and says
// what failed.
func TestStopOnFailure(t *testing.T) {
	no := errors.New("no")
	for _, kind := range []string{"plain", "transactional", "batched"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.Append(100)
			bad := w.Number(`SELECT min(global_position) + 42 FROM events`)
			hook := func(_ context.Context, e orchestrator.Event) error {
				if e.GlobalPosition == bad {
					return no
				}
				return nil
			}
			projections := map[string]orchestrator.Projection[orchestrator.Event]{
				"plain":         testworld.Effects{Projection: "plain", Hook: hook}.Plain(w.DB),
				"transactional": testworld.Effects{Projection: "transactional", Hook: hook}.Transactional(),
				"batched":       testworld.Effects{Projection: "batched", Hook: hook}.Batched(),
			}
			cfg := w.Config(w.DB, "set")
			cfg.OnFailure = orchestrator.StopOnFailure
			r, s := w.Seen(t, cfg, projections[kind])
			err := r.Failed()
			var failure *orchestrator.HandlerError
			if !errors.As(err, &failure) || !errors.Is(err, no) || failure.Projection != kind || failure.Position != bad {
				t.Fatalf("Run returned %v; want a HandlerError of %s at %d", err, kind, bad)
			}
			final := func(e orchestrator.HandlerFailed) bool { return e.Final }
			if failed := testworld.Told[orchestrator.HandlerFailed](s); len(failed) == 0 || slices.IndexFunc(failed, final) != len(failed)-1 || failed[len(failed)-1].RetryIn != 0 {
				t.Errorf("the observer is told of the failures %+v; want the last to be the only one that is final", failed)
			}
			if n := w.Handled(kind); n != 42 {
				t.Errorf("%d events are handled, want the 42 before", n)
			}
			if n := w.Members(); n != 0 {
				t.Errorf("%d workers are left behind", n)
			}
		})
	}
}

// A handler ignores that it should stop. Its Run returns and says where it
// hangs; the others wait for its lease to end, and not longer.
func TestHandlerThatNeverReturns(t *testing.T) {
	w := newWorld(t)
	w.Append(100)
	stuck := w.Number(`SELECT min(global_position) + 42 FROM events`)
	release := make(chan struct{})
	defer close(release)
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout, cfg.CoordinationTimeout = 6*time.Second, time.Second
	var cause atomic.Value
	hangs := make(chan struct{})
	a := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == stuck {
			close(hangs)
			<-ctx.Done()
			cause.Store(context.Cause(ctx))
			<-release
		}
		return nil
	}}.Transactional())
	<-hangs // or the other's generation would come first, and nobody would ask it to stop
	testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	err := a.Failed()
	if !errors.Is(err, orchestrator.ErrCoordinationTimeout) || !strings.Contains(err.Error(), fmt.Sprintf(`"transactional", partition 0, at position %d`, stuck)) {
		t.Errorf("Run returned %v; want ErrCoordinationTimeout, with the projection and position %d", err, stuck)
	}
	if err, _ := cause.Load().(error); !errors.Is(err, orchestrator.ErrGenerationSuperseded) {
		t.Errorf("the handler's context ended for %v", err)
	}
	w.CaughtUp("transactional")
	w.CheckEffects("transactional")
}

// Run is cancelled while a handler works: the event in hand is finished and
// committed, the batch is not, and the membership is given up at once.
func TestGracefulStopFinishesTheEventInHand(t *testing.T) {
	w := newWorld(t)
	w.Append(100)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	third := w.Number(`SELECT min(global_position) + 2 FROM events`)
	cfg := w.Config(w.DB, "set")
	noticed := &testworld.Log{To: t.Output()}
	cfg.Logger = slog.New(slog.NewTextHandler(noticed, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == third {
			once.Do(func() { close(entered) })
			<-release
			return ctx.Err() // not cancelled: the grace period is long
		}
		return nil
	}}.Transactional())
	<-entered
	r.Cancel()
	noticed.Wait(t, "finishing the events in hand")
	close(release)
	r.Stop()
	if n := w.Handled("transactional"); n != 3 {
		t.Errorf("%d events are committed, want the 3 that were begun", n)
	}
	if n := w.Members(); n != 0 {
		t.Errorf("%d workers are left behind", n)
	}
	w.checkEffectsSoFar("transactional")
}

// checkEffectsSoFar is checkEffects without S2: some events are still ahead.
func (w *world) checkEffectsSoFar(projection string) {
	w.T.Helper()
	if n := w.Number(`SELECT count(*) - count(DISTINCT position) FROM effects WHERE projection = $1`, projection); n != 0 {
		w.T.Errorf("%d duplicates", n)
	}
}

// Every connection falls silent, without a reset, while new ones work: as
// after a failover, or behind a firewall that has forgotten them. Nobody waits
// for the kernel to notice: not with a read, a heartbeat or a BEGIN, not with a
// COMMIT, and not when it is time to leave.
func TestConnectionsFallSilent(t *testing.T) {
	w := newWorld(t)
	link := newLink(t, w.URL)
	db, f := testworld.Faulty(t, link.url)
	cfg := w.Config(db, "set")
	cfg.StaleWorkerTimeout = 6 * time.Second
	// One projection, so that no handler's own statement is under way.
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	w.Append(300)
	w.CaughtUp("transactional")

	link.silence()
	w.Append(300)
	w.CaughtUp("transactional")

	var once sync.Once
	f.OnCommit(func(do func() error) error {
		once.Do(link.silence)
		return do()
	})
	w.Append(300)
	w.CaughtUp("transactional")

	link.silence()
	r.Stop()
	w.CheckEffects("transactional")
}

// A link passes connections on to the database.
type link struct {
	url string
	mu  sync.Mutex
	// quiet is closed to silence the connections that are open.
	quiet chan struct{}
}

func newLink(t testing.TB, to string) *link {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	l := &link{quiet: make(chan struct{})}
	target := u.Host
	u.Host = listener.Addr().String()
	q := u.Query()
	q.Set("connect_timeout", "2") // or a driver that is connecting when it falls silent waits for ever
	u.RawQuery = q.Encode()
	l.url = u.String()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			t.Cleanup(func() { _, _ = client.Close(), server.Close() })
			l.mu.Lock()
			quiet := l.quiet
			l.mu.Unlock()
			go pass(server, client, quiet)
			go pass(client, server, quiet)
		}
	}()
	return l
}

// pass copies until one side ends or the link falls silent; then it leaves
// both sides open, and says nothing.
func pass(to, from net.Conn, quiet <-chan struct{}) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		select {
		case <-quiet:
			return
		default:
		}
		if err == nil {
			_, err = to.Write(buffer[:n])
		}
		if err != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}

func (l *link) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.quiet)
	l.quiet = make(chan struct{})
}

// Handlers that leave their transaction idle, each for a moment, must not add
// up to a transaction that the server ends, again and again.
func TestQuietHandlersInALongBatch(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout = 400 * time.Millisecond
	cfg.BatchSize = 1000
	w.Append(60)
	r := testworld.Run(t, cfg, quiet{})
	pgtest.Eventually(t, "all events are passed", func() bool {
		return w.Reached() >= w.Number(`SELECT max(global_position) FROM events`)
	})
	r.Stop()
}

// quiet takes 20ms for an event, and does nothing with its transaction.
type quiet struct{ named }

func (quiet) Name() string { return "quiet" }

func (quiet) HandleTx(ctx context.Context, _ orchestrator.Tx, _ orchestrator.Event) error {
	select {
	case <-time.After(20 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// What a handler wrote is refused only at COMMIT, by a deferred trigger. That
// is the handler's failure, whatever SQLSTATE it has.
func TestRefusedAtCommit(t *testing.T) {
	for _, state := range []string{"P0001", "22012", "23514"} {
		for _, policy := range []orchestrator.FailurePolicy{orchestrator.RetryForever, orchestrator.StopOnFailure} {
			t.Run(fmt.Sprintf("%s, policy %d", state, policy), func(t *testing.T) {
				w := newWorld(t)
				w.Append(20)
				bad := w.Number(`SELECT min(global_position) + 12 FROM events`)
				w.Exec(fmt.Sprintf(`
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.position = %d THEN RAISE EXCEPTION 'no' USING ERRCODE = '%s'; END IF;
    RETURN NULL;
END $$`, bad, state))
				w.Exec(`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
				cfg := w.Config(w.DB, "set")
				cfg.OnFailure = policy
				r := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
				if policy == orchestrator.StopOnFailure {
					var failure *orchestrator.HandlerError
					if err := r.Failed(); !errors.As(err, &failure) || failure.Position != bad {
						t.Errorf("Run returned %v; want a HandlerError at %d", err, bad)
					}
				}
				pgtest.Eventually(t, "the lane stands before the bad event", func() bool { return w.Handled("transactional") == 12 })
				if policy == orchestrator.RetryForever {
					w.Exec(`DROP TRIGGER refuse ON effects`)
					w.CaughtUp("transactional")
					r.Stop()
					w.CheckEffects("transactional")
				}
			})
		}
	}
}

// Connections fall silent again and again, in a pool that has as many as the README
// counts: two for coordination, one to read, and one for each projection. Each time all
// of them are in use by calls that get no answer, a handler's own among them; and each
// time there are others soon.
func TestSilentConnectionsOfASmallPool(t *testing.T) {
	for _, leaseOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("lease only %t", leaseOnly), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			link := newLink(t, w.URL)
			// One that falls silent while it is opened is the driver's own to give up.
			db := reopen(t, link.url, "connect_timeout", "2")
			db.SetMaxOpenConns(5)
			cfg := w.Config(db, "set")
			cfg.StaleWorkerTimeout, cfg.LeaseOnly = 6*time.Second, leaseOnly
			var silent atomic.Bool
			r := testworld.Run(t, cfg, testworld.Effects{Projection: "plain"}.Plain(w.DB), testworld.Effects{Projection: "transactional", Hook: func(context.Context, orchestrator.Event) error {
				// The handler's own statement is on such a connection as well. By the
				// lease alone nobody could tell it from one that takes long.
				if !leaseOnly && silent.CompareAndSwap(true, false) {
					link.silence()
				}
				return nil
			}}.Transactional())
			for range 3 {
				w.Append(100)
				w.CaughtUp("plain", "transactional")
				silent.Store(true)
				link.silence()
			}
			w.Append(100)
			w.CaughtUp("plain", "transactional")
			r.Stop()
			w.CheckEffects("transactional")
			pgtest.Eventually(t, "no connection is in use", func() bool { return db.Stats().InUse == 0 })
		})
	}
}

// Who calls a function of the library with a context gets an answer when that ends, also
// on a connection that has fallen silent; and the pool gets its connection back.
func TestFunctionsEndWithTheirContext(t *testing.T) {
	w := newWorld(t)
	w.Append(1)
	testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "plain"}.Plain(w.DB))
	w.CaughtUp("plain")
	for name, call := range map[string]func(context.Context, *sql.DB) error{
		"Status": func(ctx context.Context, db *sql.DB) error { _, err := ops.Status(ctx, db, "set"); return err },
		"History": func(ctx context.Context, db *sql.DB) error {
			_, err := ops.History(ctx, db, "set", 10)
			return err
		},
		"ReplicaSets": func(ctx context.Context, db *sql.DB) error {
			_, err := ops.ReplicaSets(ctx, db)
			return err
		},
		"Pause": func(ctx context.Context, db *sql.DB) error {
			_, err := ops.Pause(ctx, db, "set", "plain")
			return err
		},
		"AwaitGeneration": func(ctx context.Context, db *sql.DB) error { return ops.AwaitGeneration(ctx, db, "set", 1) },
		"WaitFor":         func(ctx context.Context, db *sql.DB) error { return orchestrator.WaitFor(ctx, db, "plain", 1) },
		"Parked": func(ctx context.Context, db *sql.DB) error {
			_, err := ops.Parked(ctx, db, "plain", 10)
			return err
		},
		"RetryParked": func(ctx context.Context, db *sql.DB) error {
			_, err := ops.RetryParked(ctx, db, "plain", ops.ParkedSelector{All: true})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			link := newLink(t, w.URL)
			db, err := sql.Open("postgres", link.url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			db.SetMaxOpenConns(1)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			link.silence()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := call(ctx, db); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it returned %v, want the end of the context", err)
			}
			if err := db.PingContext(t.Context()); err != nil {
				t.Errorf("the pool: %v", err)
			}
			pgtest.Eventually(t, "no connection is in use", func() bool { return db.Stats().InUse == 0 })
		})
	}
}
