package main

import (
	"context"
	"database/sql"
	"os"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// TestMain is also main of the workers, which are this binary, started again, and of the
// process that panics in TestTerminalIsRestored.
func TestMain(m *testing.M) {
	if name := os.Getenv(workerEnv); name != "" {
		os.Exit(runWorker(name))
	}
	os.Exit(pgtest.Main(m))
}

// sound is a run in which all went well. In generation 1, w1 has everything;
// in generation 2 it has aggregate a, and at the same time w2 has b. Second 4
// lies between the two.
const sound = `
INSERT INTO events (global_position, aggregate_id, aggregate_version, bounded_context, aggregate_type, event_id, event_type, payload)
SELECT position, aggregate, version, 'shop', 'order', gen_random_uuid(), 'order changed', ''
  FROM (VALUES (1, 'a', 1), (2, 'b', 1), (4, 'a', 2), (5, 'b', 2), (6, 'a', 3)) AS e (position, aggregate, version);

INSERT INTO effects (projection, position, aggregate_id, aggregate_version, worker, generation, partition, total, began, ended)
SELECT p, position, aggregate, version, worker, generation, partition, total,
       '2030-01-01'::timestamptz + began * interval '1 second', '2030-01-01'::timestamptz + ended * interval '1 second'
  FROM (VALUES (1, 'a', 1, 'w1', 1, 0, 1, 0, 1),
               (2, 'b', 1, 'w1', 1, 0, 1, 1, 3),
               (4, 'a', 2, 'w1', 2, 0, 2, 5, 7),
               (5, 'b', 2, 'w2', 2, 1, 2, 5, 8),
               (6, 'a', 3, 'w1', 2, 0, 2, 7, 9))
       AS f (position, aggregate, version, worker, generation, partition, total, began, ended),
       unnest(ARRAY['plain', 'transactional', 'batch']) AS p;`

// late makes the handler of the event at 2 end in generation 2.
const late = `UPDATE effects SET ended = '2030-01-01 00:00:06Z' WHERE projection = $1 AND position = 2`

// Each fault is put into each projection in turn. It must show in its own
// number, and in no other projection's.
func TestVerifyFindsEachFault(t *testing.T) {
	db, _ := pgtest.Database(t)
	for _, test := range []struct {
		name string
		sql  []string // $1 is the projection
		want finding
	}{
		{name: "nothing wrong"},
		{
			name: "an event without effect",
			sql:  []string{`DELETE FROM effects WHERE projection = $1 AND position = 5`},
			want: finding{effects: -1, lost: 1},
		},
		{
			name: "an effect that names another aggregate than its event",
			sql:  []string{`UPDATE effects SET aggregate_id = 'c' WHERE projection = $1 AND position = 4`},
			want: finding{lost: 1},
		},
		{
			name: "an event with two effects",
			sql: []string{`
INSERT INTO effects (projection, position, aggregate_id, aggregate_version, worker, generation, partition, total, began, ended)
SELECT projection, position, aggregate_id, aggregate_version, worker, generation, partition, total, began, ended
  FROM effects WHERE projection = $1 AND position = 6`},
			want: finding{effects: 1, duplicated: 1},
		},
		{
			name: "an aggregate's event before an earlier one",
			sql:  []string{`UPDATE effects SET seq = -seq WHERE projection = $1 AND position = 6`},
			want: finding{outOfOrder: 2}, // versions 3, 1, 2: two come too late
		},
		{
			name: "one partition at two workers",
			sql:  []string{`UPDATE effects SET partition = 0 WHERE projection = $1 AND position = 5`},
			want: finding{overlaps: 1},
		},
		{
			name: "a handler of an older generation that is still open, on all slots",
			sql:  []string{late},
			want: finding{overlaps: 2},
		},
		{
			name: "the same, on half of the slots",
			sql:  []string{late, `UPDATE effects SET total = 4 WHERE projection = $1 AND generation = 1`},
			want: finding{overlaps: 1}, // 0/4 has slots in common with 0/2, and none with 1/2
		},
	} {
		for _, projection := range projectionNames {
			t.Run(test.name+"/"+projection, func(t *testing.T) {
				tx := soundRun(t, db)
				for _, statement := range test.sql {
					mustExec(t, tx, statement, projection)
				}
				for _, got := range mustVerify(t, tx).findings {
					want := finding{effects: 5}
					if got.projection == projection {
						want = test.want
						want.effects += 5
					}
					want.projection = got.projection
					if got != want {
						t.Errorf("got %+v, want %+v", got, want)
					}
				}
			})
		}
	}
}

// The call that a frozen worker had in hand may end late where no transaction commits it,
// and only that call.
func TestVerifyExcusesTheCallInHand(t *testing.T) {
	db, _ := pgtest.Database(t)
	const woken = `INSERT INTO freezes (worker, generation, woken_at) VALUES ('w1', 1, '2030-01-01 00:00:05.5Z')`
	const another = `
INSERT INTO effects (projection, position, aggregate_id, aggregate_version, worker, generation, partition, total, began, ended)
SELECT projection, position, aggregate_id, aggregate_version, worker, generation, partition, total, ended, ended + interval '1 second'
  FROM effects WHERE projection = $1 AND position = 2`
	for _, test := range []struct {
		name, projection string
		sql              []string
		want             int64
	}{
		{"the call in hand", "plain", []string{late}, 0},
		{"a call that was begun after it", "plain", []string{late, another}, 2},
		{"a transaction that was committed all the same", "transactional", []string{late}, 2},
		{"a batch that was committed all the same", "batch", []string{late}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			tx := soundRun(t, db)
			mustExec(t, tx, woken)
			for _, statement := range test.sql {
				mustExec(t, tx, statement, test.projection)
			}
			if got := mustVerify(t, tx).summary().Overlaps; got != test.want {
				t.Errorf("overlaps: got %d, want %d", got, test.want)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	of := func(f finding) verdict {
		f.effects = 10
		return verdict{events: 10, generations: 3, findings: []finding{f}}
	}
	for _, test := range []struct {
		name    string
		verdict verdict
		wrong   bool
	}{
		{"all well", of(finding{projection: "batch"}), false},
		{"lost", of(finding{projection: "plain", lost: 1}), true},
		{"given to the plain projection again", of(finding{projection: "plain", duplicated: 1}), false},
		{"duplicated", of(finding{projection: "transactional", duplicated: 1}), true},
		{"out of order", of(finding{projection: "plain", outOfOrder: 1}), true},
		{"overlaps", of(finding{projection: "plain", overlaps: 1}), true},
		{"no events at all", verdict{findings: []finding{{projection: "batch"}}}, true},
	} {
		if err := test.verdict.err(); (err != nil) != test.wrong {
			t.Errorf("%s: got error %v", test.name, err)
		}
	}
}

// soundRun returns a transaction in which there are the demo's tables, with a
// sound run in them.
func soundRun(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	mustExec(t, tx, eventtable.Layout+tables)
	mustExec(t, tx, sound)
	return tx
}

// mustExec runs a statement, which must do something if it has arguments.
func mustExec(t *testing.T, tx *sql.Tx, statement string, args ...any) {
	t.Helper()
	result, err := tx.Exec(statement, args...)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if n, err := result.RowsAffected(); len(args) > 0 && (err != nil || n == 0) {
		t.Fatalf("%s: %d rows affected, %v", statement, n, err)
	}
}

func mustVerify(t *testing.T, tx *sql.Tx) verdict {
	t.Helper()
	v, err := verify(context.Background(), tx)
	if err != nil {
		t.Fatal(err)
	}
	if v.events != 5 {
		t.Fatalf("got %d events, want 5", v.events)
	}
	return v
}
