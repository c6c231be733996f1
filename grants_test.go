package orchestrator_test

import (
	"context"
	"crypto/md5"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// granted is a world in which grants.sql was applied: nobody but the owner has
// any privilege that it does not give.
type granted struct {
	*world
	database string // all databases of a server share the roles
}

func grant(t testing.TB) granted {
	t.Helper()
	w := newWorld(t)
	script, err := os.ReadFile("grants.sql")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := strings.TrimPrefix(u.Path, "/")
	g := granted{w, database}
	t.Cleanup(func() {
		for _, role := range []string{"worker", "operator", "monitor"} {
			for _, name := range []string{g.loginName(role), g.role(role)} {
				for _, s := range []string{"DROP OWNED BY " + pq.QuoteIdentifier(name), "DROP ROLE " + pq.QuoteIdentifier(name)} {
					if _, err := w.DB.ExecContext(context.Background(), s); err != nil {
						t.Errorf("%s: %v", s, err)
					}
				}
			}
		}
	})
	w.Exec(`REVOKE ALL ON SCHEMA public FROM public`)
	for range 2 { // it is idempotent
		w.Exec(string(script))
	}
	for _, role := range []string{"worker", "operator", "monitor"} {
		w.Exec(`CREATE ROLE ` + pq.QuoteIdentifier(g.loginName(role)) + ` LOGIN PASSWORD 'secret' IN ROLE ` + pq.QuoteIdentifier(g.role(role)))
	}
	w.Exec(`GRANT SELECT, INSERT ON effects TO ` + pq.QuoteIdentifier(g.role("worker"))) // the projections' own
	w.Exec(`GRANT USAGE ON SEQUENCE effects_id_seq TO ` + pq.QuoteIdentifier(g.role("worker")))
	return g
}

// role returns the name that grants.sql gives a role.
func (g granted) role(kind string) string {
	name := "orchestrator_" + kind + "_" + g.database
	if len(name) > 63 {
		name = fmt.Sprintf("orchestrator_%s_%x", kind, md5.Sum([]byte(g.database)))
	}
	return name
}

func (g granted) loginName(kind string) string {
	return fmt.Sprintf("login_%s_%x", kind, md5.Sum([]byte(g.database)))
}

// login returns the world as one role sees it.
func (g granted) login(role string) *world {
	g.T.Helper()
	u, err := url.Parse(g.URL)
	if err != nil {
		g.T.Fatal(err)
	}
	u.User = url.UserPassword(g.loginName(role), "secret")
	return &world{&testworld.World{T: g.T, DB: g.As(g.loginName(role)), URL: u.String()}}
}

// expectRefused demands that each statement is refused for want of a privilege.
func expectRefused(t testing.TB, who string, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := db.ExecContext(t.Context(), s)
		var refused *pq.Error
		if !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("%s: %s: %v; want that it is refused", who, s, err)
		}
	}
}

// With the privileges of grants.sql, workers do all that they do: migrate where
// nothing is to be done, join, notice a crash at once, wait at a gap and name who
// holds it open, hear hints; and can't touch anything else.
func TestGrantsOfAWorker(t *testing.T) {
	t.Parallel()
	g := grant(t)
	w := g.login("worker")
	if err := orchestrator.RunMigrations(w.DB); err != nil {
		t.Fatal(err)
	}
	g.Append(300)

	// A heartbeat comes once an hour: what happens, happens by hints and by the
	// sessions that show who is there.
	c := startChild(w, "hang in the middle of a batch, with a long lease")
	c.says("hanging")
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout, cfg.CoordinationTimeout = time.Hour, time.Hour
	cfg.Notifier = notifier(t, w.URL)
	testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional())
	pgtest.Eventually(t, "both are there", func() bool {
		return g.Proving() == 2
	})
	c.signal(syscall.SIGKILL)
	<-c.done
	g.Active("set", 1)
	g.CaughtUp("transactional")

	// Another role's transaction holds a position: it is waited for, and named.
	owner := g.Connect()
	tx, err := owner.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var position int64
	var pid int
	const insert = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('test', 'thing', $1, 1, gen_random_uuid(), 'happened', 'x') RETURNING global_position, pg_backend_pid()`
	if err := tx.QueryRowContext(t.Context(), insert, "slow").Scan(&position, &pid); err != nil {
		t.Fatal(err)
	}
	g.Exec(insert, "fast")
	table := cfg.EventStore.(*orchestrator.Table[orchestrator.Event])
	pgtest.Eventually(t, "the reader says what it waits for", func() bool {
		gap, waiting := table.Waiting()
		return waiting && gap.Position == position && len(gap.Backends) == 1 && gap.Backends[0] == pid
	})
	if n := g.Number(`SELECT count(*) FROM effects WHERE position >= $1`, position); n != 0 {
		t.Errorf("%d events were handled behind the gap", n)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	g.CaughtUp("transactional")
	g.CheckEffects("transactional")

	expectRefused(t, "worker", w.DB,
		`DROP TABLE orchestrator_workers`,
		`ALTER TABLE orchestrator_checkpoints ADD COLUMN mine int`,
		`TRUNCATE orchestrator_checkpoints`,
		`CREATE TABLE mine ()`,
		`UPDATE orchestrator_schema SET version = 99`,
		`DELETE FROM orchestrator_replica_sets`, // and with it the number that fences
		`INSERT INTO events SELECT * FROM events`,
		`UPDATE events SET payload = ''`,
		`DELETE FROM events`)
}

// An operator gives orders, also to a set that has no worker, and reads no event.
func TestGrantsOfAnOperator(t *testing.T) {
	t.Parallel()
	g := grant(t)
	g.Append(100)
	worker := g.login("worker")
	a := testworld.Run(t, worker.Config(worker.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	testworld.Run(t, worker.Config(worker.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	g.Active("set", 2)
	g.CaughtUp("transactional")

	db := g.login("operator").DB
	var drained string
	if err := g.DB.QueryRowContext(t.Context(), `SELECT id FROM orchestrator_workers ORDER BY seq LIMIT 1`).Scan(&drained); err != nil {
		t.Fatal(err)
	}
	const set = orchestrator.ReplicaSetName("set")
	for _, o := range []struct {
		name string
		give func() (int64, error)
	}{
		{"pause", func() (int64, error) { return ops.Pause(t.Context(), db, set, "transactional") }},
		{"rewind", func() (int64, error) { return ops.Rewind(t.Context(), db, set, "transactional", 0) }},
		{"drain", func() (int64, error) { return ops.DrainWorker(t.Context(), db, set, drained) }},
		{"undrain", func() (int64, error) { return ops.UndrainWorker(t.Context(), db, set, drained) }},
		{"resume", func() (int64, error) { return ops.Resume(t.Context(), db, set, "transactional") }},
	} {
		generation, err := o.give()
		if err == nil {
			err = ops.AwaitGeneration(t.Context(), db, set, generation)
		}
		if err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
	}
	a.Stop()
	g.Exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('other', 1, 0, 'a', '', 0, now())`)
	g.Exec(`INSERT INTO orchestrator_projections (name, replica_set) VALUES ('other', 'set')`)
	for name, ask := range map[string]func(context.Context, *sql.DB, string, ops.ParkedSelector, ...orchestrator.TablesOption) (int, error){
		"retry": ops.RetryParked, "discard": ops.DiscardParked,
	} {
		if n, err := ask(t.Context(), db, "other", ops.ParkedSelector{All: true}); n != 1 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	paused, err := ops.Pause(t.Context(), db, set, "transactional")
	if err == nil { // else the event may be handled before
		err = ops.AwaitGeneration(t.Context(), db, set, paused)
	}
	if err != nil {
		t.Fatal(err)
	}
	g.Append(1)
	last := g.Number(`SELECT max(global_position) FROM events`)
	pgtest.Eventually(t, "a worker has seen the event", func() bool {
		s, err := ops.Status(t.Context(), g.DB, set)
		return err == nil && s.Head == last
	})
	if _, err := ops.Park(t.Context(), db, set, "transactional", last, "operator"); err != nil {
		t.Errorf("park: %v", err)
	}
	expectLooks(t, db)
	expectRefused(t, "operator", db,
		`SELECT 1 FROM events`,
		`DROP TABLE orchestrator_workers`,
		`UPDATE orchestrator_schema SET version = 99`,
		`DELETE FROM orchestrator_replica_sets`,
		`SELECT 1 FROM effects`)
}

// expectLooks has a login see what there is to see of the replica set "set" and its
// projection "other", in Go and on the status page.
func expectLooks(t *testing.T, db *sql.DB) {
	t.Helper()
	_, status := ops.Status(t.Context(), db, "set")
	_, history := ops.History(t.Context(), db, "set", 10)
	_, sets := ops.ReplicaSets(t.Context(), db)
	_, parked := ops.Parked(t.Context(), db, "other", 10)
	if err := errors.Join(status, history, sets, parked); err != nil {
		t.Error(err)
	}
	if code, body := testworld.StatusPage(t, ops.StatusHandler(db)); code != 200 {
		t.Errorf("the status page: %d %s", code, body)
	}
}

// Roles are those of one database: a login of one can do nothing in another on the
// same server, though it can connect.
func TestGrantsEndAtTheDatabase(t *testing.T) {
	t.Parallel()
	a, b := grant(t), grant(t)
	b.Append(3)
	b.Exec(`INSERT INTO orchestrator_replica_sets (name) VALUES ('set')`)
	u, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"worker", "operator", "monitor"} {
		u.User = url.UserPassword(a.loginName(role), "secret")
		db, err := sql.Open("postgres", u.String())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, table := range append(tables(t, b.DB, "public"), "events", "orchestrator_status") {
			_, err := db.ExecContext(t.Context(), `SELECT FROM public.`+table)
			if err == nil || !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("the %s of another database reads %s: %v", role, table, err)
			}
		}
	}
}

// A monitor reads every table of the library, and changes none.
func TestGrantsOfAMonitor(t *testing.T) {
	t.Parallel()
	g := grant(t)
	db := g.login("monitor").DB
	all := tables(t, g.DB, "public")
	if len(all) < 8 {
		t.Fatalf("only the tables %v", all)
	}
	for _, name := range append(all, "orchestrator_status", "orchestrator_status_workers", "orchestrator_status_partitions") {
		if _, err := db.ExecContext(t.Context(), `SELECT * FROM `+name); err != nil {
			t.Errorf("read %s: %v", name, err)
		}
	}
	for _, name := range all {
		expectRefused(t, "monitor", db, `DELETE FROM `+name, `INSERT INTO `+name+` DEFAULT VALUES`,
			`SELECT 1 FROM `+name+` FOR UPDATE`)
	}
	g.Exec(`INSERT INTO orchestrator_replica_sets (name) VALUES ('set')`)
	g.Exec(`INSERT INTO orchestrator_projections (name, replica_set) VALUES ('other', 'set')`)
	expectLooks(t, db)
	if _, err := ops.Pause(t.Context(), db, "set", "other"); err == nil {
		t.Error("a monitor has paused a projection")
	}
	expectRefused(t, "monitor", db, `SELECT 1 FROM events`, `DROP VIEW orchestrator_status`)
}
