package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

var errExists = errors.New("has checkpoints already")

// importInto imports projection p, with three checkpoints, as ImportCheckpoints
// does once it has the old ones.
func importInto(s *store.Store, t *testing.T) error {
	return s.Import(t.Context(), store.OldTable{}, func(i *store.Import) error {
		if err := i.Claim(t.Context(), "p"); err != nil {
			return err
		}
		set, err := i.Owner(t.Context(), "p")
		if err != nil {
			return err
		}
		if set != "" {
			return errExists
		}
		return i.Write(t.Context(), "p", []protocol.Checkpoint{{Position: 7}, {Position: 5}, {Position: 9}})
	})
}

// Whatever re-partitions the set meanwhile, the import waits for it, and the
// other way about; whoever is second sees what the first has done. The order is
// that in which they queue for the set's row.
func TestImportAndJoinQueue(t *testing.T) {
	for _, tt := range []struct {
		why       string
		joinFirst bool
		err       error
		lowest    int64
	}{
		{"the worker starts from what was imported", false, nil, 5},
		{"the import finds that the worker has started", true, errExists, 0},
	} {
		t.Run(tt.why, func(t *testing.T) {
			db := migrated(t)
			patient := store.BoundsOf(lease)
			patient.Lock = time.Minute // a slow machine is no reason to give up
			s := store.New(db, "set", store.Options{Bounds: patient})
			if _, err := db.ExecContext(t.Context(), `INSERT INTO orchestrator_replica_sets (name) VALUES ('set')`); err != nil {
				t.Fatal(err)
			}
			holder := begin(t, db, `SELECT FROM orchestrator_replica_sets WHERE name = 'set' FOR UPDATE`)

			imported, joined := make(chan error, 1), make(chan error, 1)
			steps := []func(){
				func() { imported <- importInto(s, t) },
				func() {
					_, err := join(s, t, "w", "p")
					joined <- err
				},
			}
			if tt.joinFirst {
				steps[0], steps[1] = steps[1], steps[0]
			}
			for n, step := range steps {
				go step()
				waiting(t, db, n+1)
			}
			if err := holder.Rollback(); err != nil {
				t.Fatal(err)
			}
			if err := <-imported; !errors.Is(err, tt.err) {
				t.Errorf("import: %v, want %v", err, tt.err)
			}
			if err := <-joined; err != nil {
				t.Errorf("join: %v", err)
			}
			found, err := s.Find(t.Context(), store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Partition: 0, Total: 1}})
			if err != nil || found.Generation != 1 || found.Checkpoint.Position != tt.lowest {
				t.Errorf("the worker finds %+v, %v; want position %d under generation 1", found, err, tt.lowest)
			}
		})
	}
}

// No generation that runs, nor any that ran, has the imported rows.
func TestImportedRowsCantBeCommitted(t *testing.T) {
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := join(s, t, "w", "other"); err != nil {
		t.Fatal(err)
	}
	if err := importInto(s, t); err != nil {
		t.Fatal(err)
	}
	for generation := int64(1); generation <= 2; generation++ {
		tx, err := s.BeginHandler(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l := store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: generation, Partition: 0, Total: 3}}
		err = s.Commit(t.Context(), tx.Tx, l, protocol.Checkpoint{Position: 7}, protocol.Checkpoint{Position: 8})
		_ = tx.Rollback()
		if !errors.Is(err, store.ErrSuperseded) {
			t.Errorf("commit under generation %d: %v, want ErrSuperseded", generation, err)
		}
	}
}

// Who uses a table, and who waits.
func TestImportUsers(t *testing.T) {
	db := migrated(t)
	if _, err := db.ExecContext(t.Context(), `
CREATE TABLE old (key text, position bigint); INSERT INTO old VALUES ('a', 1), ('b', NULL), ('c', 3)`); err != nil {
		t.Fatal(err)
	}
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	busy := begin(t, db, `UPDATE old SET position = 4 WHERE key = 'c'`)
	begin(t, db, `SELECT FROM old`)
	err := s.Import(t.Context(), store.OldTable{Table: "old", Key: "key", Position: "position"}, func(i *store.Import) error {
		rows, locked, err := i.Lock(t.Context(), []string{"a", "b", "c", "d"})
		if err != nil {
			return err
		}
		want := []store.OldRow{{Key: "a"}, {Key: "b"}}
		want[0].Position.Int64, want[0].Position.Valid = 1, true
		if diff := cmp.Diff(want, rows); diff != "" {
			t.Errorf("rows (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"c"}, locked); diff != "" {
			t.Errorf("locked (-want +got):\n%s", diff)
		}
		go busy.ExecContext(t.Context(), `UPDATE old SET position = 5 WHERE key = 'a'`)
		waiting(t, db, 1)
		users, err := i.Users(t.Context())
		if err != nil {
			return err
		}
		blocked := 0
		for _, u := range users {
			if u.Blocked {
				blocked++
			}
		}
		if len(users) != 2 || blocked != 1 {
			t.Errorf("users %+v, want two, of which one is blocked", users)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
