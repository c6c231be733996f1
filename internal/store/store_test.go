package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"testing"
	"time"

	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func open(url string) (*sql.DB, error) { return sql.Open("postgres", url) }

func TestStore(t *testing.T) { storetest.Run(t, storetest.Postgres(t, open)) }

func TestErrors(t *testing.T) { storetest.Errors(t, open) }

func TestHandlers(t *testing.T) { storetest.Handlers(t, open) }

const lease = time.Minute

func migrated(t *testing.T) *sql.DB {
	t.Helper()
	db, _ := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	return db
}

func begin(t *testing.T, db *sql.DB, statements ...string) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	for _, s := range statements {
		if _, err := tx.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	return tx
}

// waiting waits until n sessions wait for a lock. The limit only ends a broken
// test.
func waiting(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for got := -1; got < n; {
		err := db.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&got)
		if err != nil {
			t.Fatalf("waited in vain for %d sessions to wait: %d do: %v", n, got, err)
		}
		<-tick.C
	}
}

func join(s *store.Store, t *testing.T, id protocol.WorkerID, projections ...string) (store.Result, error) {
	for {
		r, err := s.Sync(t.Context(), protocol.Request{Worker: id, Lease: lease, Join: true}, projections)
		if err == nil || !store.PassingState(err) {
			return r, err
		}
	}
}

// Somebody who holds a lock for ever, and not in a transaction of the store's
// with a bound, makes requests fail one by one; they hold no locks meanwhile.
func TestLockTimeout(t *testing.T) {
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(2 * time.Second)})
	sync := func(r protocol.Request) (store.Result, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r.Lease = lease
		return s.Sync(ctx, r, []string{"p"})
	}
	if _, err := sync(protocol.Request{Worker: "a", Join: true}); err != nil {
		t.Fatal(err)
	}
	for _, lock := range []string{
		`SELECT * FROM orchestrator_replica_sets FOR UPDATE`,
		`SELECT * FROM orchestrator_workers FOR UPDATE`,
		`SELECT * FROM orchestrator_projections FOR UPDATE`,
		`SELECT * FROM orchestrator_checkpoints FOR UPDATE`,
	} {
		tx := begin(t, db, lock)
		for range 2 {
			if _, err := sync(protocol.Request{Worker: "a~2", Join: true}); !store.LockTimeout(err) {
				t.Fatalf("a request against %s: %v, want a lock timeout", lock, err)
			}
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if r, err := sync(protocol.Request{Worker: "a"}); err != nil || r.Group.Generation != 1 || !r.View.May() {
			t.Errorf("after %s: %+v, %v", lock, r, err)
		}
	}
}

// A handler that freezes in its transaction loses it, and the locks that it
// has with it.
func TestBeginHandler(t *testing.T) {
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(50 * time.Millisecond)})
	tx, err := s.BeginHandler(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE orchestrator_schema`); err != nil {
		t.Fatal(err)
	}
	begin(t, db, `SET LOCAL lock_timeout = '60s'`, `LOCK TABLE orchestrator_schema`) // it has to wait, and gets it
	if _, err := tx.ExecContext(t.Context(), `SELECT 1`); !store.Passing(err) {
		t.Errorf("the frozen handler: %v", err)
	}
}

// The bounds are those of their transactions, not of the sessions, which the
// program uses for itself as well.
func TestBoundsAreLocal(t *testing.T) {
	db := migrated(t)
	db.SetMaxOpenConns(1)
	settings := func() (v string) {
		t.Helper()
		err := db.QueryRowContext(t.Context(), `SELECT current_setting('idle_in_transaction_session_timeout') || ' ' || current_setting('lock_timeout')`).Scan(&v)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	want := settings()
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := join(s, t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	if got := settings(); got != want {
		t.Errorf("after a request: %s, want %s", got, want)
	}
	tx, err := s.BeginHandler(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Total: 1}}
	if err := s.Commit(t.Context(), tx.Tx, l, protocol.Checkpoint{}, protocol.Checkpoint{Position: 1}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := settings(); got != want {
		t.Errorf("after a commit: %s, want %s", got, want)
	}
}

// Two sets want a projection at once, of which one has it and nobody who runs
// it. The rows of projections are locked before workers are looked for, own
// ones as well as foreign ones; otherwise both get it:
//
//  1. p belongs to set one, where nobody runs it any more;
//  2. w1 joins set one with p, and is about to add itself to the workers;
//  3. w2 joins set two with p, sees no worker of set one that runs it, takes it;
//  4. both commit.
func TestClaimOfOwn(t *testing.T) {
	db := migrated(t)
	one := store.New(db, "one", store.Options{Bounds: store.BoundsOf(lease)})
	two := store.New(db, "two", store.Options{Bounds: store.BoundsOf(lease)})
	for _, id := range []protocol.WorkerID{"w0", "w"} {
		if _, err := join(one, t, id, map[protocol.WorkerID]string{"w0": "other", "w": "p"}[id]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := one.Sync(t.Context(), protocol.Request{Worker: "w", Lease: lease, Leave: true}, nil); err != nil {
		t.Fatal(err)
	}

	// Readers get through, whoever adds a worker waits.
	gate := begin(t, db, `LOCK TABLE orchestrator_workers IN SHARE MODE`)
	type outcome struct {
		set string
		err error
	}
	outcomes := make(chan outcome, 2)
	claim := func(s *store.Store, set string, id protocol.WorkerID) {
		_, err := join(s, t, id, "p")
		outcomes <- outcome{set, err}
	}
	go claim(one, "one", "w1")
	waiting(t, db, 1)
	go claim(two, "two", "w2")
	waiting(t, db, 2)
	if err := gate.Rollback(); err != nil {
		t.Fatal(err)
	}
	first, second := <-outcomes, <-outcomes
	if (first.err == nil) == (second.err == nil) {
		t.Errorf("want one of them to get the projection: %+v and %+v", first, second)
	}
	for _, o := range []outcome{first, second} {
		if o.err != nil && !isTaken(o.err) {
			t.Errorf("set %s: %v", o.set, o.err)
		}
	}
}

func isTaken(err error) bool {
	var taken *store.TakenError
	return errors.As(err, &taken)
}

// A program and the tables: missing, without a version, older, equal, newer.
func TestCheck(t *testing.T) {
	db, _ := pgtest.Database(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if err := s.Check(t.Context()); !errors.Is(err, store.ErrSchema) {
		t.Errorf("no tables: %v", err)
	}
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	for version, ok := range map[int]bool{store.Version - 1: false, store.Version: true, store.Version + 1: true} {
		if _, err := db.ExecContext(t.Context(), `UPDATE orchestrator_schema SET version = $1`, version); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context()); (err == nil) != ok || !ok && !errors.Is(err, store.ErrSchema) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// A pool of one connection is enough to find out that the driver can't read times.
func TestSettingsOnOneConnection(t *testing.T) {
	_, base := pgtest.Database(t)
	db := one(t, base, "", `SET DateStyle = German`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // ends a broken test
	defer cancel()
	if err := store.New(db, "set", store.Options{}).CheckSettings(ctx); !errors.Is(err, store.ErrSettings) {
		t.Errorf("times in the style of German: %v", err)
	}
}
