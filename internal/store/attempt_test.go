package store_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// What was decided is carried out only if nothing has changed that it was decided on. Each
// change comes between the two statements, and so early in another transaction that the
// second one has to wait for it.
func TestAttempt(t *testing.T) {
	const (
		set     = `UPDATE orchestrator_replica_sets SET reason = 'another' WHERE name = 'set'`
		joined  = `INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, wants, partitions, holds, presence_key, presence_number, generation, total, paused, projections) SELECT replica_set, 'new', joined_at, lease_us, lease_until, wants, '[]'::jsonb, 0, 0, 0, generation, total, paused, projections FROM orchestrator_workers WHERE id = 'b'`
		touched = `UPDATE orchestrator_replica_sets SET step_at = step_at WHERE name = 'set'`
	)
	leave := protocol.Request{Worker: "a", Lease: lease, Leave: true, Stopped: 2}
	stop := protocol.Request{Worker: "b", Lease: lease, Stopped: 2}
	for _, tt := range []struct {
		what    string
		request protocol.Request
		changes []string
		after   string // the group, if nothing has changed
	}{
		{"a leave", leave, nil, "generation 3 draining {b:0/1*}"},
		{"the set", leave, []string{set}, ""},
		{"a worker renews its lease", leave, []string{`UPDATE orchestrator_workers SET lease_until = lease_until + interval '1s' WHERE id = 'b'`}, ""},
		{"a worker has stopped", leave, []string{`UPDATE orchestrator_workers SET holds = 0 WHERE id = 'b'`}, ""},
		{"a worker is gone", leave, []string{`DELETE FROM orchestrator_workers WHERE id = 'b'`}, ""},
		{"a worker has joined", leave, []string{touched, joined}, ""},
		{"an activation: a projection belongs to another set", stop, []string{`UPDATE orchestrator_projections SET replica_set = 'other'`}, ""},
		{"an activation", stop, nil, "generation 3 active {b:0/1}"},
		{"an activation: a commit", stop, []string{`UPDATE orchestrator_checkpoints SET position = position + 1 WHERE partition = 1`}, ""},
		{"an activation: checkpoints of another set", stop, []string{`UPDATE orchestrator_checkpoints SET replica_set = 'other'`}, ""},
		{"an activation: an import", stop, []string{touched, `INSERT INTO orchestrator_projections VALUES ('q', 'set')`,
			`INSERT INTO orchestrator_checkpoints (replica_set, generation, total, projection, partition, position, updated_at) VALUES ('set', 0, 1, 'q', 0, 7, now())`}, ""},
		{"an activation: a worker has stopped", stop, []string{`UPDATE orchestrator_workers SET lease_until = lease_until + interval '1s' WHERE id = 'b'`}, ""},
	} {
		for _, when := range []string{"before it", "while it waits"} {
			t.Run(tt.what+" "+when, func(t *testing.T) {
				db := migrated(t)
				s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
				for _, id := range []protocol.WorkerID{"a", "b"} {
					if _, err := join(s, t, id, "p"); err != nil {
						t.Fatal(err)
					}
				}
				sync := func(r protocol.Request) protocol.Group {
					t.Helper()
					result, err := s.Sync(t.Context(), r, []string{"p"})
					if err != nil {
						t.Fatal(err)
					}
					return result.Group
				}
				sync(protocol.Request{Worker: "a", Lease: lease, Stopped: 1})
				if tt.request.Worker == "b" {
					sync(leave)
				}
				carry, err := s.Decide(t.Context(), tt.request, []string{"p"})
				if err != nil || carry == nil {
					t.Fatalf("not decided: %v", err)
				}
				if len(tt.changes) > 0 {
					tx := begin(t, db, tt.changes...)
					ended := make(chan error, 1)
					if when == "while it waits" {
						go func() {
							waiting(t, db, 1)
							ended <- tx.Commit()
						}()
					} else if ended <- tx.Commit(); err != nil {
						t.Fatal(err)
					}
					defer func() {
						if err := <-ended; err != nil {
							t.Error(err)
						}
					}()
				}
				before := tables(t, db)
				result, done, err := carry()
				if err != nil || done != (tt.changes == nil) {
					t.Fatalf("carried out: %t, %v", done, err)
				}
				if done {
					expect := sync(protocol.Request{Worker: "b", Lease: lease})
					if got := result.Group.String(); got != tt.after || expect.String() != tt.after {
						t.Errorf("it says %s, and the group is %s, want %s", got, expect, tt.after)
					}
				} else if diff := cmp.Diff(before, tables(t, db)); when == "before it" && diff != "" {
					t.Errorf("it was not carried out, and has changed (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// tables returns what stands in the tables that a decision changes.
func tables(t *testing.T, db *sql.DB) (all []string) {
	t.Helper()
	for _, table := range []string{"replica_sets", "workers", "projections", "checkpoints", "history"} {
		var text string
		if err := db.QueryRowContext(context.Background(), fmt.Sprintf(`SELECT coalesce(jsonb_agg(t ORDER BY t::text), '[]')::text FROM orchestrator_%s t`, table)).Scan(&text); err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	return all
}

// An import has the set locked when the second statement comes, which waits, and can't see
// what it adds. No partition of what is imported is dropped.
// A join is decided on what was foreseen, and its lease counts from then, if nothing has
// changed since, and not for long.
func TestForesee(t *testing.T) {
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := join(s, t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	joins := func(id protocol.WorkerID, f *store.Foresight) store.Result {
		t.Helper()
		slow, soon := protocol.Request{Lease: lease}, protocol.Request{Lease: lease, JoinWindow: time.Second}
		if !f.Fresh(now.Add(lease/10), slow) || f.Fresh(now.Add(lease/10+1), slow) || !f.Fresh(now.Add(time.Second/2), soon) || f.Fresh(now.Add(time.Second/2+1), soon) {
			t.Error("it is fresh for a tenth of a lease, and half of the join window")
		}
		r, err := s.SyncForeseen(t.Context(), protocol.Request{Worker: id, Join: true, Lease: lease}, []string{"p"}, f)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	f := s.Foresee(t.Context(), "b", now)
	if r := joins("b", f); !r.Since.Equal(now) || !r.View.Member {
		t.Errorf("nothing has changed, and b joins with %+v", r)
	}
	f = s.Foresee(t.Context(), "c", now)
	if r, err := s.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Heartbeat: true, Stopped: 1}, nil); err != nil || !r.View.Member {
		t.Fatal(r, err)
	}
	if r := joins("c", f); !r.Since.IsZero() || !r.View.Member || len(r.Group.Members) != 3 {
		t.Errorf("a has changed, and c joins with %+v", r)
	}
	if f := store.New(db, "nobody", store.Options{Bounds: store.BoundsOf(lease)}).Foresee(t.Context(), "d", now); f != nil || f.Fresh(now, protocol.Request{Lease: lease}) {
		t.Errorf("there is no set, and d foresees %+v", f)
	}
}

// A report whose reading fails is written down, and its connection is not used again: it
// may be within a transaction.
func TestReportClosesItsConnectionOnFailure(t *testing.T) {
	db := migrated(t)
	db.SetMaxOpenConns(1)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := join(s, t, "a", "p"); err != nil {
		t.Fatal(err)
	}
	backend := func() (pid int) {
		t.Helper()
		if err := db.QueryRow(`SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	if _, err := db.Exec(`ALTER TABLE orchestrator_checkpoints RENAME TO elsewhere`); err != nil {
		t.Fatal(err)
	}
	before := backend()
	if r, err := s.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Report: true, Stopped: 1}, []string{"p"}); err == nil {
		t.Fatalf("without a table it is answered with %+v", r)
	}
	if after := backend(); after == before {
		t.Error("the connection is used again")
	}
	var holds int64
	if err := db.QueryRow(`SELECT holds FROM orchestrator_workers WHERE id = 'a'`).Scan(&holds); err != nil || holds != 0 {
		t.Errorf("a holds %d, %v", holds, err)
	}
}

func TestAttemptSeesAnImport(t *testing.T) {
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	for _, id := range []protocol.WorkerID{"a", "b"} {
		if _, err := join(s, t, id, "q"); err != nil {
			t.Fatal(err)
		}
	}
	carry, err := s.Decide(t.Context(), protocol.Request{Worker: "a", Lease: lease, Stopped: 1}, []string{"q"})
	if err != nil || carry == nil {
		t.Fatalf("not decided: %v", err)
	}
	carried := make(chan bool, 1)
	err = s.Import(t.Context(), store.OldTable{}, func(i *store.Import) error {
		if err := i.Claim(t.Context(), "p"); err != nil {
			return err
		}
		go func() {
			_, done, err := carry()
			carried <- done || err != nil
		}()
		waiting(t, db, 1)
		return i.Write(t.Context(), "p", []protocol.Checkpoint{{Position: 7}, {Position: 5}, {Position: 9}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if <-carried {
		t.Error("carried out though there was an import")
	}
	result, err := s.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Stopped: 1}, []string{"q"})
	if err != nil || result.Group.Phase != protocol.Active {
		t.Fatalf("%s, %v", result.Group, err)
	}
	var rows, lowest int64
	if err := db.QueryRowContext(t.Context(), `SELECT count(*), min(position) FROM orchestrator_checkpoints WHERE projection = 'p' AND generation = 2`).Scan(&rows, &lowest); err != nil || rows != 2 || lowest != 5 {
		t.Errorf("%d checkpoints of p from position %d on, %v; want 2 from 5", rows, lowest, err)
	}
}
