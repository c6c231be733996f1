package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// startsAt has every new projection start at a position, and remembers who was asked for.
type startsAt struct {
	position int64
	asked    []string
	during   func() error // is called meanwhile
}

func (s *startsAt) positions(_ context.Context, projections []string) (map[string]int64, error) {
	s.asked = append(s.asked, projections...)
	if s.during != nil {
		if err := s.during(); err != nil {
			return nil, err
		}
	}
	positions := map[string]int64{}
	for _, p := range projections {
		positions[p] = s.position
	}
	return positions, nil
}

func (s *startsAt) store(db *sql.DB, set string) *store.Store {
	return store.New(db, set, store.Options{Bounds: store.BoundsOf(lease), Starts: s.positions})
}

// standing are the checkpoints of a projection: "generation/total: position".
func standing(t *testing.T, db *sql.DB, projection string) (all []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT generation, total, position FROM orchestrator_checkpoints WHERE projection = $1 ORDER BY partition`, projection)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var generation, total, position int64
		if err := rows.Scan(&generation, &total, &position); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%d/%d: %d", generation, total, position))
	}
	return all
}

func expectStanding(t *testing.T, db *sql.DB, projection string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, standing(t, db, projection)); diff != "" {
		t.Errorf("checkpoints of %s (-want +got):\n%s", projection, diff)
	}
}

// What a projection is asked for it is asked for once, by the first that comes with it; and
// then it is handed over.
func TestStarts(t *testing.T) {
	db := migrated(t)
	first, second := &startsAt{position: 7}, &startsAt{position: 9}
	for _, j := range []struct {
		starts      *startsAt
		worker      protocol.WorkerID
		projections []string
	}{{first, "a", []string{"p"}}, {second, "b", []string{"q", "p"}}, {first, "c", []string{"p", "q"}}} {
		if _, err := join(j.starts.store(db, "set"), t, j.worker, j.projections...); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([][]string{{"p"}, {"q"}}, [][]string{first.asked, second.asked}); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	expectStanding(t, db, "p", "1/1: 7")
	expectStanding(t, db, "q", "0/1: 9")
	s := first.store(db, "set")
	if _, err := s.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Stopped: 2}, []string{"p"}); err != nil {
		t.Fatal(err)
	}
	expectStanding(t, db, "q", "3/3: 9", "3/3: 9", "3/3: 9")

	// Another set takes it over with its checkpoints, and asks for nothing.
	for _, w := range []protocol.WorkerID{"a", "b", "c"} {
		if _, err := s.Sync(t.Context(), protocol.Request{Worker: w, Lease: lease, Leave: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	other := &startsAt{position: 100}
	if _, err := join(other.store(db, "other"), t, "d", "q"); err != nil {
		t.Fatal(err)
	}
	expectStanding(t, db, "q", "6/1: 9")
	if len(other.asked) > 0 {
		t.Errorf("asked for %v, which has run", other.asked)
	}
}

// While it is asked for, nobody else can come with the projection.
func TestStartsUnderTheLock(t *testing.T) {
	db := migrated(t)
	starts := &startsAt{position: 7}
	starts.during = func() error {
		tx := begin(t, db, `SET LOCAL lock_timeout = '10ms'`)
		defer tx.Rollback()
		_, err := tx.ExecContext(t.Context(), `INSERT INTO orchestrator_projections VALUES ('p', 'other')`)
		if !store.LockTimeout(err) {
			t.Errorf("another set registers it meanwhile: %v", err)
		}
		return nil
	}
	if _, err := join(starts.store(db, "set"), t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	if len(starts.asked) != 1 {
		t.Errorf("asked for %v", starts.asked)
	}
}

// If it can't be found out, the join has failed, and nothing of it is there.
func TestStartsFail(t *testing.T) {
	db := migrated(t)
	broken := errors.New("the event store is broken")
	starts := &startsAt{position: 7, during: func() error { return broken }}
	_, err := join(starts.store(db, "set"), t, "a", "p")
	if failed := (*store.StartError)(nil); !errors.As(err, &failed) || !errors.Is(err, broken) || !strings.Contains(err.Error(), "where a new projection starts (p)") {
		t.Errorf("the join ends with %v", err)
	}
	expectNothing(t, db, "p")
	starts.position, starts.during = 8, nil
	if _, err := join(starts.store(db, "set"), t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	expectStanding(t, db, "p", "1/1: 8")
}

func expectNothing(t *testing.T, db *sql.DB, projection string) {
	t.Helper()
	for _, table := range []string{"orchestrator_projections WHERE name", "orchestrator_checkpoints WHERE projection"} {
		var n int
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table+` = $1`, projection).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s = %s: %d rows, %v", table, projection, n, err)
		}
	}
}

// A projection that an earlier version has registered, and that has never run, has no
// checkpoint: it starts where the first that comes with it says. What is read without a
// lock says so as well.
func TestStartsOfWhatWasOnlyRegistered(t *testing.T) {
	db := migrated(t)
	starts := &startsAt{position: 7}
	s := starts.store(db, "set")
	if _, err := join(s, t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO orchestrator_projections VALUES ('q', 'set')`); err != nil {
		t.Fatal(err)
	}
	if _, err := join(s, t, "b", "p", "q"); err != nil {
		t.Fatal(err)
	}
	expectStanding(t, db, "q", "0/1: 7")
}

// Whenever the connection of a join ends, either nothing has happened, and the next join
// decides; or all of it has, and the next one asks for nothing.
func TestStartsCrash(t *testing.T) {
	admin, url := pgtest.Database(t)
	if err := orchestrator.RunMigrations(admin); err != nil {
		t.Fatal(err)
	}
	db, faults := testworld.Faulty(t, url)
	kill := func() {
		if _, err := admin.ExecContext(t.Context(), `
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'`); err != nil {
			t.Error(err)
		}
	}
	at, killed := 0, false
	faults.OnQuery(func(string) {
		if at--; at == 0 {
			killed = true
			kill()
		}
	})
	join := func(starts *startsAt, n int, projection string) error {
		_, err := starts.store(db, "set").Sync(t.Context(), protocol.Request{Worker: protocol.WorkerID(fmt.Sprint("w", n)), Lease: lease, Join: true}, []string{projection})
		return err
	}
	if err := join(&startsAt{}, 0, "first"); err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		projection := fmt.Sprint("p", n)
		at, killed = n, false
		err := join(&startsAt{position: 1000, during: func() error {
			if at--; at == 0 {
				killed = true
				kill()
			}
			return nil
		}}, n, projection)
		if at = 0; !killed {
			if err != nil || n < 8 {
				t.Fatalf("after %d statements the join is over: %v", n, err)
			}
			break
		}
		if err == nil {
			// It was killed where no transaction was open, which hurts nobody.
			expectStanding(t, admin, projection, "0/1: 1000")
			continue
		}
		expectNothing(t, admin, projection)
		if err := join(&startsAt{position: int64(n)}, n, projection); err != nil {
			t.Fatal(err)
		}
		expectStanding(t, admin, projection, fmt.Sprintf("0/1: %d", n))
	}

	for _, sent := range []bool{false, true} {
		projection := fmt.Sprint("commit sent ", sent)
		faults.OnCommit(func(do func() error) error {
			if sent {
				_ = do()
			}
			return testworld.ErrLost
		})
		if err := join(&startsAt{position: 5}, 1000, projection); err == nil {
			t.Fatal("the reply was not lost")
		}
		faults.OnCommit(func(do func() error) error { return do() })
		again := &startsAt{position: 6}
		pgtest.Eventually(t, "the server has noticed", func() bool { return join(again, 1000, projection) == nil })
		want := map[bool]string{false: "0/1: 6", true: "0/1: 5"}[sent]
		expectStanding(t, admin, projection, want)
		if sent && len(again.asked) > 0 {
			t.Errorf("asked for %v again", again.asked)
		}
	}
}
