package ops_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// A stage is a replica set as rows: each worker has the partition of its number, of
// projections p and q.
func (w *world) stage(workers int) {
	w.T.Helper()
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation, total, opened_at) VALUES ('set', 7, $1, now())`, workers)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
SELECT 'set', 'w' || i, now(), 30000000, now() + interval '30 s', 7, $1, jsonb_build_array(i), 1, 0, 0, 7, '["p", "q"]' FROM generate_series(0, $1 - 1) AS i`, workers)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
SELECT p, i, 'set', 7, $1, 10, now() FROM unnest(ARRAY['p', 'q']) AS p, generate_series(0, $1 - 1) AS i`, workers)
	w.Exec(`INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set'), ('q', 'set')`)
	w.Exec(`
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report)
SELECT 'set', 'w' || i, now(), jsonb_build_object('generation', 7, 'state', 'running', 'head', 50, 'lanes', (
       SELECT jsonb_agg(jsonb_build_object('projection', p, 'partition', i, 'position', 10, 'behind', 40, 'behind_seconds', 0.5, 'state', 'idle', 'since', now()))
         FROM unnest(ARRAY['p', 'q']) AS p))
  FROM generate_series(0, $1 - 1) AS i`, workers)
}

// lanes changes what all workers report of a projection.
func (w *world) lanes(projection, change string) {
	w.T.Helper()
	w.Exec(`
UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes}', (
       SELECT jsonb_agg(CASE WHEN l ->> 'projection' = $1 THEN l || $2::jsonb ELSE l END) FROM jsonb_array_elements(report -> 'lanes') AS l))`, projection, change)
}

// gapOf has all workers report, now, a gap that a process holds open.
func (w *world) gapOf(pid int) {
	w.T.Helper()
	w.Exec(`
UPDATE orchestrator_reports SET reported_at = clock_timestamp(),
       report = report || jsonb_build_object('gap', jsonb_build_object('position', 11, 'since', now() - interval '5 min', 'backends', jsonb_build_array($1::int)))`, pid)
}

// What is wrong, how urgent it is and what ends it, the most urgent first.
func TestWaits(t *testing.T) {
	t.Parallel()
	gap := func(w *world) { // that an open transaction of pid PID holds open
		w.T.Helper()
		tx, err := w.DB.BeginTx(w.T.Context(), nil)
		if err != nil {
			w.T.Fatal(err)
		}
		w.T.Cleanup(func() { _ = tx.Rollback() })
		var pid int
		if err := tx.QueryRowContext(w.T.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			w.T.Fatal(err)
		}
		w.gapOf(pid)
	}
	for name, test := range map[string]struct {
		change func(w *world)
		want   []string // kind severity remedy effects: text…
	}{
		"calm": {func(w *world) {}, nil},
		"a gap is one cause, and the stalls behind it are its effects": {func(w *world) {
			gap(w)
			w.lanes("p", `{"stalled": true}`)
			w.lanes("q", `{"stalled": true, "state": "handling", "handling": 11}`)
		}, []string{
			"gap critical [SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = PID AND xact_start = …] 3: an open transaction holds the readers back: backend PID (",
			"stalled critical [] 0: projection q, partition 0 of 3, on worker w0: handling event 11 since ",
			"stalled critical [] 0: projection q, partition 1 of 3",
			"stalled critical [] 0: projection q, partition 2 of 3",
		}},
		"a gap that nothing waits at is a warning": {gap, []string{"gap warning [SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = PID AND xact_start = …] 0: an open transaction"}},
		"a gap whose transactions have ended":      {func(w *world) { w.gapOf(1) }, []string{"gap info [] 0: the transactions that held the readers back at position 11, since "}},
		"a gap whose transactions have ended explains no stall": {func(w *world) {
			w.gapOf(1)
			w.Exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,0,stalled}', 'true') WHERE worker = 'w1'`)
		}, []string{
			"stalled critical [] 0: projection p, partition 1 of 3, on worker w1: stalled at position 10 since ", "gap info [] 0: the transactions that held",
		}},
		"a gap of a worker that is gone": {func(w *world) {
			gap(w)
			w.Exec(`UPDATE orchestrator_reports SET report = report - 'gap' WHERE worker <> 'w0'`)
			w.Exec(`UPDATE orchestrator_workers SET lease_until = now() - interval '6 s' WHERE id = 'w0'`)
		}, []string{
			"unowned critical [] 0: projection p, partition 0 of 3: the lease of worker w0 expired at ", "unowned critical [] 0: projection q, partition 0 of 3: the lease of worker w0 expired at ",
		}},
		"a gap of a prepared transaction": {func(w *world) { w.gapOf(0) }, []string{"gap warning [SELECT gid, prepared, owner FROM pg_prepared_xacts ORDER BY prepared] 0: an open transaction holds the readers back: a prepared transaction may"}},
		"a stall that is not the gap's": {func(w *world) {
			gap(w)
			w.Exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,0}', (report #> '{lanes,0}') || '{"stalled": true, "state": "full"}') WHERE worker = 'w1'`)
		}, []string{
			"stalled critical [] 0: projection p, partition 1 of 3, on worker w1: stalled at position 10 since ", "gap warning [SELECT pg_terminate_backend(pid)",
		}},
		"the only worker is dead": {func(w *world) {
			w.Exec(`UPDATE orchestrator_workers SET lease_until = now() - interval '6 s'`)
			w.Exec(`UPDATE orchestrator_replica_sets SET paused = '["q"]'`)
		}, []string{
			"unowned critical [] 0: projection p, partition 0 of 3: the lease of worker w0 expired at ",
			"unowned critical [] 0: projection p, partition 1 of 3: the lease of worker w1 expired at ",
			"unowned critical [] 0: projection p, partition 2 of 3: the lease of worker w2 expired at ",
			"paused info [orchestrator resume set q] 0: projection q is paused by order, 40 positions behind",
		}},
		"no worker is left to end a rebalance": {func(w *world) {
			w.Exec(`UPDATE orchestrator_replica_sets SET generation = 8, phase = 'draining', paused = '["q"]'`)
			w.Exec(`DELETE FROM orchestrator_workers`)
		}, []string{
			"unowned critical [] 0: projection p, partition 0 of 3: no worker has it",
			"unowned critical [] 0: projection p, partition 1 of 3: no worker has it",
			"unowned critical [] 0: projection p, partition 2 of 3: no worker has it",
			"paused info [orchestrator resume set q] 0: projection q is paused by order",
		}},
		"a worker that no longer reports": {func(w *world) {
			w.Exec(`UPDATE orchestrator_workers SET joined_at = now() - interval '1 day'`)
			w.Exec(`UPDATE orchestrator_reports SET reported_at = now() - interval '1 hour' WHERE worker = 'w1'`)
		}, []string{"silent warning [] 0: worker w1 sends heartbeats and has not reported for 1h0m0s: what it does is not known"}},
		"a failing handler is a warning, and critical when it stalls": {func(w *world) {
			w.lanes("p", `{"error": "out of paper", "attempts": 3, "state": "retrying"}`)
			w.Exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,0,stalled}', 'true') WHERE worker = 'w2'`)
		}, []string{
			"retry critical [] 0: projection p, partition 2 of 3, on worker w2: retrying after attempt 3: out of paper",
			"retry warning [] 0: projection p, partition 0 of 3",
			"retry warning [] 0: projection p, partition 1 of 3",
		}},
		"an interruption is no failure": {func(w *world) { w.lanes("p", `{"interruption": "database unreachable"}`) }, []string{
			"interrupted warning [] 0: projection p, partition 0 of 3", "interrupted warning [] 0: projection p, partition 1 of 3", "interrupted warning [] 0: projection p, partition 2 of 3",
		}},
		"a paused projection keeps its lag": {func(w *world) { w.Exec(`UPDATE orchestrator_replica_sets SET paused = '["q"]'`) },
			[]string{"paused info [orchestrator resume set q] 0: projection q is paused by order, 40 positions behind"}},
		"a paused projection beyond the end is not well": {func(w *world) {
			w.Exec(`UPDATE orchestrator_replica_sets SET paused = '["q"]'`)
			w.Exec(`UPDATE orchestrator_checkpoints SET position = 1000, updated_at = now() - interval '1 min' WHERE projection = 'q' AND partition = 1`)
		}, []string{
			"beyond warning [] 0: projection q, partition 1 of 3: it is paused at position 1000, and no worker has seen the event stream beyond position 50",
			"paused info [orchestrator resume set q] 0: projection q is paused by order, 40 positions behind",
		}},
		"a name that a shell would run is quoted": {func(w *world) {
			w.Exec(`UPDATE orchestrator_replica_sets SET paused = $1`, `["$(rm -rf ~); it's\n"]`)
		}, []string{"paused info [orchestrator resume set '$(rm -rf ~); it'\\''s\n'] 0: projection $(rm -rf ~); it's"}},
		"a paused set": {func(w *world) { w.Exec(`UPDATE orchestrator_replica_sets SET paused = '[""]'`) }, []string{"paused info [orchestrator resume set] 0: the replica set is paused by order"}},
		"no worker runs a partition": {func(w *world) { w.Exec(`DELETE FROM orchestrator_workers WHERE id = 'w1'`) }, []string{
			"unowned critical [] 0: projection p, partition 1 of 3: no worker has it", "unowned critical [] 0: projection q, partition 1 of 3: no worker has it",
		}},
		"no program has a projection": {func(w *world) { w.Exec(`UPDATE orchestrator_workers SET projections = '["p"]'`) },
			[]string{"absent warning [] 0: projection q is in no running program: its events are not handled"}},
		"a worker without a heartbeat": {func(w *world) {
			w.Exec(`UPDATE orchestrator_workers SET lease_until = now() + interval '10 s' WHERE id = 'w0'`)
		},
			[]string{"silent warning [] 0: worker w0 has sent no heartbeat for 20s: it can't reach the database, or hangs; the others take over in 10s"}},
		"fast crash detection is off": {func(w *world) {
			w.Exec(`UPDATE orchestrator_reports SET report = report || '{"lease_only": "the pool has two connections"}' WHERE worker = 'w0'`)
		}, []string{"lease_only info [] 0: worker w0 has no fast crash detection, a crash is noticed when its lease is over: the pool has two connections"}},
		"a place that waits for a replacement": {func(w *world) { w.Exec(`UPDATE orchestrator_workers SET vacant = true WHERE id = 'w0'`) },
			[]string{"vacant info [orchestrator drain set w0] 0: worker w0 has left; partition 0 waits up to 30s for its replacement"}},
		"a place that nothing replaced": {func(w *world) {
			w.Exec(`UPDATE orchestrator_workers SET vacant = true, lease_until = now() - interval '1 min' WHERE id = 'w0'`)
		}, []string{"vacant warning [] 0: worker w0 has left, and no replacement came; partition 0 waits for a worker to reassign it"}},
		"a rebalance says what it waits for, and is a warning when it takes long": {func(w *world) {
			w.Exec(`UPDATE orchestrator_replica_sets SET generation = 8, phase = 'draining', opened_at = now() - interval '1 min'`)
			w.Exec(`UPDATE orchestrator_workers SET generation = 8, holds = CASE id WHEN 'w0' THEN 7 ELSE 0 END`)
			w.lanes("p", `{"state": "handling", "handling": 300}`)
		}, []string{"drain warning [] 0: worker w0 is still handling event 300 of projection p (partition 0 of 3, for 0s); generation 8 waits for it"}},
		"parked events": {func(w *world) {
			w.Exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('p', 5, 1, 'a', 'x', 1, now())`)
		}, []string{"parked warning [orchestrator park list p] 0: projection p: 1 event is parked"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stage(3)
			test.change(w)
			s, err := ops.Status(t.Context(), w.DB, "set")
			if err != nil {
				t.Fatal(err)
			}
			for i, wait := range s.Waits {
				text := fmt.Sprintf("%s %s [%s] %d: %s", wait.Kind, wait.Severity, wait.Remedy, len(wait.Effects), wait.Text)
				text = regexp.MustCompile(`xact_start = '[^']*'`).ReplaceAllString(text, "xact_start = …")
				if len(wait.Backends) == 1 && wait.Backends[0] > 1 {
					text = strings.ReplaceAll(text, fmt.Sprint(wait.Backends[0]), "PID")
				}
				if i >= len(test.want) || !strings.HasPrefix(text, test.want[i]) {
					t.Errorf("wait %d is %q", i, text)
				}
			}
			if len(s.Waits) != len(test.want) {
				t.Errorf("%d waits, want %d", len(s.Waits), len(test.want))
			}
		})
	}
}

// While a worker stops, its lanes keep the report of what they have in hand; of those that
// have stopped already the checkpoint tells how far behind they are.
func TestFactsStayWhileItDrains(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stage(2)
	w.lanes("p", `{"state": "handling", "handling": 300, "stalled": true, "behind_seconds": 97}`)
	w.Exec(`UPDATE orchestrator_replica_sets SET generation = 8, phase = 'draining'`)
	w.Exec(`UPDATE orchestrator_workers SET generation = 8, partitions = CASE id WHEN 'w0' THEN '[1]'::jsonb ELSE '[0]' END, holds = CASE id WHEN 'w0' THEN 7 ELSE 0 END`)
	s, err := ops.Status(t.Context(), w.DB, "set")
	if err != nil {
		t.Fatal(err)
	}
	type facts struct {
		Worker           string
		State            orchestrator.LaneState
		Handling, Behind int64
		Seconds          float64
	}
	var got []facts
	for _, p := range s.Partitions {
		if p.Report == nil {
			t.Fatalf("nothing is known of %+v", p)
		}
		got = append(got, facts{p.Worker, p.Report.State, p.Report.Handling, p.Report.Behind, p.Report.BehindSeconds})
	}
	want := []facts{
		{"w0", "handling", 300, 40, 97}, {"", "stopped", 0, 40, -1}, // p
		{"w0", "idle", 0, 40, 0.5}, {"", "stopped", 0, 40, -1}, // q
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}
