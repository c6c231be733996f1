package ops_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Workers, partitions and positions of two healthy workers.
func TestStatus(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	for range 2 {
		testworld.Run(t, cfg, w.All(w.DB, nil)...)
	}
	generation := w.Active("set", 2)
	w.Append(100)
	w.CaughtUp(testworld.Names...)
	var s ops.ReplicaSetStatus
	pgtest.Eventually(t, "every lane has reported that it is at the end", func() bool {
		s, _ = w.Stand("set")
		return len(s.Partitions) == 6 && !slices.ContainsFunc(s.Partitions, func(p ops.PartitionStatus) bool {
			return p.Report == nil || p.Report.Position != 100 || p.Report.Behind != 0 || p.Report.State != "idle"
		}) && !slices.ContainsFunc(s.Workers, func(w ops.WorkerStatus) bool {
			return w.State != "running" // or, for a moment, "suspended"
		})
	})
	if s.ReplicaSet != "set" || s.Generation != generation || s.Phase != "active" || s.TotalPartitions != 2 || s.Reason == "" || s.Head != 100 || len(s.Waits) != 0 ||
		s.OpenedAt == nil || s.ActivatedAt == nil || s.ActivatedAt.Before(*s.OpenedAt) || s.At.Before(*s.ActivatedAt) ||
		s.PausedAll || len(s.Paused) != 0 || len(s.Rewinds) != 0 {
		t.Errorf("a calm set: %+v", s)
	}
	owners := map[string]bool{}
	for i, p := range s.Partitions {
		if want := []string{"batched", "plain", "transactional"}[i/2]; p.Projection != want || p.Partition != i%2 || p.TotalPartitions != 2 || p.Generation != generation {
			t.Errorf("row %d is %+v", i, p)
		}
		if r := p.Report; p.Paused || p.Parked != 0 || p.ParkedSince != nil || p.UpdatedAt.After(s.At) || p.ReportedAt == nil ||
			r.Projection != p.Projection || r.Partition != p.Partition || r.TotalPartitions != 2 || r.Since.IsZero() || r.Attempts != 0 || r.Stalled {
			t.Errorf("row %d is %+v, with the report %+v", i, p, p.Report)
		}
		owners[p.Worker] = true
	}
	if len(s.Workers) != 2 || len(owners) != 2 {
		t.Fatalf("%d workers, %d of whom have partitions", len(s.Workers), len(owners))
	}
	for _, worker := range s.Workers {
		if !owners[worker.Worker] || !worker.Alive || worker.Holds != generation || len(worker.Partitions) != 1 || worker.ReportedAt == nil ||
			worker.Drained || worker.Gap != nil || !worker.LeaseUntil.After(s.At) || worker.JoinedAt.After(s.At) || len(worker.Projections) != 3 {
			t.Errorf("worker %+v", worker)
		}
	}
	w.views(1, 2, 6)
}

// views reads every column of the views, as an operator with psql does, and checks the number of
// rows.
func (w *world) views(sets, workers, partitions int64) {
	w.T.Helper()
	for view, want := range map[string]int64{
		"orchestrator_status": sets, "orchestrator_status_workers": workers, "orchestrator_status_partitions": partitions,
	} {
		if n := w.Number(`SELECT count(row) FROM (SELECT row_to_json(v)::text AS row FROM ` + view + ` AS v) AS rows`); n != want {
			w.T.Errorf("%s has %d rows, want %d", view, n, want)
		}
	}
}

// still waits until a set has waits of a kind, and compares the only one with want. Its text
// must begin with text.
func (w *world) still(set orchestrator.ReplicaSetName, want ops.Wait, text string) {
	w.T.Helper()
	var found []ops.Wait
	pgtest.Eventually(w.T, fmt.Sprintf("the status of %s says %q", set, want.Kind), func() bool {
		_, waits := w.Stand(set)
		found = waits[want.Kind]
		return len(found) > 0
	})
	if !strings.HasPrefix(found[0].Text, text) {
		w.T.Errorf("it says %q, want %q", found[0].Text, text)
	}
	want.Text, want.Severity, want.Remedy = found[0].Text, found[0].Severity, found[0].Remedy // see TestWaits
	if diff := cmp.Diff([]ops.Wait{want}, found); diff != "" {
		w.T.Errorf("%s: (-want +got)\n%s", want.Kind, diff)
	}
}

// Each set is independent, and a set that has never run is an error.
func TestReplicaSets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sets := func() []orchestrator.ReplicaSetName {
		names, err := ops.ReplicaSets(t.Context(), w.DB)
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if names := sets(); len(names) != 0 {
		t.Errorf("no worker has ever run, and there are %q", names)
	}
	var workers []*testworld.Running
	for _, name := range []orchestrator.ReplicaSetName{"second", "first"} {
		workers = append(workers, testworld.Run(t, w.Config(w.DB, name), testworld.Effects{Projection: "of " + string(name)}.Transactional()))
		w.Active(name, 1)
	}
	if names := sets(); !slices.Equal(names, []orchestrator.ReplicaSetName{"first", "second"}) {
		t.Errorf("there are %q", names)
	}
	if s, _ := w.Stand("first"); len(s.Workers) != 1 || len(s.Partitions) != 1 || s.Partitions[0].Projection != "of first" {
		t.Errorf("the first has %+v and %+v", s.Workers, s.Partitions)
	}
	if _, err := ops.Status(t.Context(), w.DB, "third"); !errors.Is(err, ops.ErrNoReplicaSet) || !strings.Contains(err.Error(), `"third"`) {
		t.Errorf("a set that there is not: %v", err)
	}
	for _, r := range workers {
		r.Stop() // or they would try for a while to leave a set that is gone
	}
	w.Exec(`DROP TABLE orchestrator_checkpoints CASCADE`)
	if _, err := ops.Status(t.Context(), w.DB, "first"); err == nil || !strings.Contains(err.Error(), "orchestrator_checkpoints") || strings.Contains(err.Error(), "JSON") {
		t.Errorf("without a table: %v", err)
	}
}

// The rows that a crash leaves behind: without heartbeats, they stay. The status shows expired
// leases. It shows partitions without a worker once the generation is active, except of paused
// projections.
func TestStatusAfterACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation, phase, total) VALUES ('set', 5, 'draining', 2)`)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ('set', 'dead', now() - interval '1 hour', 1000000, now() - interval '1 minute', 5, 2, '[1]', 1, 0, 0, 4, '["p", "q"]')`)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
SELECT name, k, 'set', 5, 2, 0, now() FROM unnest('{p,q}'::text[]) AS name, generate_series(0, 1) AS k`)
	w.still("set", ops.Wait{Kind: "drain", Worker: "dead"},
		"worker dead has not stopped generation 4, and its lease has expired; generation 5 waits until it stops or is removed")
	w.Exec(`UPDATE orchestrator_replica_sets SET phase = 'active', paused = '["q"]'`)
	if _, waits := w.Stand("set"); len(waits["unowned"]) != 2 || waits["unowned"][0].Text != "projection p, partition 0 of 2: no worker has it" ||
		!strings.HasPrefix(waits["unowned"][1].Text, "projection p, partition 1 of 2: the lease of worker dead expired at ") {
		t.Errorf("partitions that nothing runs: %+v", waits)
	}
	if workers := w.Workers("set"); len(workers) != 1 || workers[0].Alive || workers[0].State != "" || workers[0].ReportedAt != nil {
		t.Errorf("the dead worker is %+v", workers)
	}
}

// While a generation drains, the status, the history and the view name the worker that it waits
// for. A handler that does not return is stalled.
func TestStatusOfAHandlerThatHangs(t *testing.T) {
	w := newWorld(t)
	in, out := make(chan struct{}, 1), make(chan struct{})
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = 50 * time.Millisecond
	testworld.Run(t, cfg, testworld.Effects{Projection: "hangs", Hook: func(context.Context, orchestrator.Event) error {
		in <- struct{}{}
		<-out
		return nil
	}}.Plain(w.DB))
	generation := w.Active("set", 1)
	worker := w.Workers("set")[0].Worker
	w.Append(1)
	<-in
	w.still("set", ops.Wait{Kind: "stalled", Worker: worker, Projection: "hangs", Partition: new(int)},
		"projection hangs, partition 0 of 1, on worker "+worker+": handling event 1 since ")
	testworld.Run(t, cfg, testworld.Effects{Projection: "hangs"}.Plain(w.DB))
	w.still("set", ops.Wait{Kind: "drain", Worker: worker, Projection: "hangs", Partition: new(int), Position: 1},
		fmt.Sprintf("worker %s is still handling event 1 of projection hangs (partition 0 of 1, for ", worker))
	s, _ := w.Stand("set")
	if p := s.Partitions[0]; p.Worker != worker || p.Report == nil || p.Report.Handling != 1 || p.ReportedAt == nil {
		t.Errorf("while it drains, the status says of the partition: %+v", p)
	}
	if n := w.Number(`SELECT handling FROM orchestrator_status_partitions WHERE worker = $1`, worker); n != 1 {
		t.Errorf("while it drains, the view says that it handles %d", n)
	}
	if s.Phase != "draining" || s.ActivatedAt != nil {
		t.Errorf("the phase is %s, activated at %v", s.Phase, s.ActivatedAt)
	}
	h, err := ops.History(t.Context(), w.DB, "set", 1)
	if err != nil || len(h) != 1 || h[0].Generation != generation+1 || h[0].ActivatedAt != nil || !slices.Equal(h[0].WaitedFor, []string{worker}) {
		t.Errorf("the history is %+v, %v", h, err)
	}
	const waits = `SELECT count(*) FROM orchestrator_status s JOIN orchestrator_status_workers w ON s.waits_for = ARRAY[w.worker] WHERE s.workers = 2 AND w.seq = 1`
	w.views(1, 2, 1)
	if w.Number(waits) != 1 {
		t.Error("orchestrator_status does not say that it waits for the first worker")
	}
	close(out)
	w.Active("set", 2)
	w.views(1, 2, 2)
	if w.Number(`SELECT count(*) FROM orchestrator_status WHERE waits_for IS NULL AND without_partitions = 0`) != 1 {
		t.Error("orchestrator_status still waits for a worker")
	}
	w.Calm("set")
}

// The status names the transaction that holds readers back, by its pid.
func TestStatusOfAGap(t *testing.T) {
	w := newWorld(t)
	w.Append(5)
	testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.CaughtUp("transactional")
	worker := w.Workers("set")[0].Worker
	tx, err := w.Connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var pid int
	if err := tx.QueryRowContext(t.Context(), fmt.Sprintf(testworld.InsertEvent, 7)+` RETURNING pg_backend_pid()`, 1).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', 'another', i, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, 2) AS i`)
	w.still("set", ops.Wait{Kind: "gap", Worker: worker, Position: 6, Backends: []int{pid}},
		fmt.Sprintf("an open transaction holds the readers back: backend %d (", pid))
	if _, waits := w.Stand("set"); len(waits["gap"]) == 1 {
		wait := waits["gap"][0]
		if want := fmt.Sprintf("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %d AND xact_start = '", pid); !strings.HasPrefix(wait.Remedy, want) {
			t.Errorf("the remedy is %q, want %q", wait.Remedy, want)
		}
		if n := w.Number(`SELECT count(*) FROM (` + strings.Replace(wait.Remedy, "pg_terminate_backend(pid)", "pid", 1) + `) AS found`); n != 1 {
			t.Errorf("the remedy %q finds %d sessions", wait.Remedy, n)
		}
		for _, want := range []string{"open for ", "idle in transaction", "may still commit an event at position 6; nothing after position 5 is handled"} {
			if !strings.Contains(wait.Text, want) {
				t.Errorf("%q does not say %q", wait.Text, want)
			}
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.CaughtUp("transactional")
	w.Calm("set")
	if n := w.Handled("transactional"); n != 7 {
		t.Errorf("%d events are handled, want 7", n)
	}
}

func TestStatusOfAPause(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional(), testworld.Effects{Projection: "batched"}.Batched())
	w.Active("set", 1)
	w.Ordered("set")(ops.Pause(ctx, w.DB, "set", "batched"))
	w.still("set", ops.Wait{Kind: "paused", Projection: "batched"}, "projection batched is paused by order")
	s, _ := w.Stand("set")
	for _, p := range s.Partitions {
		if p.Paused != (p.Projection == "batched") {
			t.Errorf("with one paused, %s: paused %v", p.Projection, p.Paused)
		}
	}
	w.Ordered("set")(ops.Resume(ctx, w.DB, "set", "batched"))
	w.Calm("set")
	w.Ordered("set")(ops.PauseAll(ctx, w.DB, "set"))
	w.still("set", ops.Wait{Kind: "paused"}, "the replica set is paused")
	if s, _ = w.Stand("set"); !s.PausedAll || len(s.Paused) != 0 || !s.Partitions[0].Paused || !s.Partitions[1].Paused {
		t.Errorf("the set is paused: all %v, %q, %+v", s.PausedAll, s.Paused, s.Partitions)
	}
}

// Parked events are counted on their partition, and in one wait. Both the worker that has parked
// them and a worker that finds them report the age of the oldest.
func TestStatusOfParkedEvents(t *testing.T) {
	w := newWorld(t)
	w.Append(100) // two of each aggregate
	var mended atomic.Bool
	hook := testworld.Failing(&mended, func(e orchestrator.Event) bool { return e.AggregateID == "a3" || e.AggregateID == "a4" })
	cfg := testworld.Parking(w.Config(w.DB, "set"), "transactional")
	r, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional", Hook: hook}.Transactional())
	l := testworld.Reported(t, s, "four are parked", "transactional", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool { return l.Parked == 4 })
	if l.ParkedSeconds <= 0 || l.ParkedSeconds > 3600 {
		t.Errorf("the oldest is parked for %v seconds", l.ParkedSeconds)
	}
	r.Stop()

	oldest := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	w.Exec(`UPDATE orchestrator_parked SET parked_at = $1 WHERE position = (SELECT max(position) FROM orchestrator_parked)`, oldest)
	var old []orchestrator.LaneReport
	finds := &testworld.Witness{}
	cfg.Observer = finds.Observer()
	for range 2 {
		testworld.Run(t, cfg, testworld.Effects{Projection: "transactional", Hook: hook}.Transactional())
	}
	generation := w.Active("set", 2)
	pgtest.Eventually(t, "both have reported, and one has found it", func() bool {
		old = nil
		reports := map[int]orchestrator.LaneReport{}
		for _, r := range testworld.Told[orchestrator.WorkerReport](finds) {
			for _, l := range r.Lanes {
				if r.Generation == generation {
					reports[l.Partition] = l
				}
			}
		}
		sum := 0
		for _, l := range reports {
			sum += l.Parked
			if l.ParkedSeconds > 365*24*3600 {
				old = append(old, l)
			}
		}
		return len(reports) == 2 && sum == 4
	})
	if len(old) != 1 {
		t.Errorf("of all partitions, %d have had one for years: %+v", len(old), old)
	}
	w.still("set", ops.Wait{Kind: "parked", Projection: "transactional"}, "projection transactional: 4 events are parked")
	status, _ := w.Stand("set")
	sum, since := 0, 0
	for _, p := range status.Partitions {
		sum += p.Parked
		if (p.ParkedSince != nil) != (p.Parked > 0) {
			t.Errorf("partition %d: %d parked, since %v", p.Partition, p.Parked, p.ParkedSince)
		} else if p.Parked > 0 && p.ParkedSince.Equal(oldest) {
			since++
		}
	}
	if sum != 4 || since != 1 {
		t.Errorf("%d are parked on all partitions, the oldest on %d", sum, since)
	}
	mended.Store(true)
	w.Retry("transactional", ops.ParkedSelector{All: true})
	w.Calm("set")
	if s, _ := w.Stand("set"); slices.ContainsFunc(s.Partitions, func(p ops.PartitionStatus) bool { return p.Parked != 0 || p.ParkedSince != nil }) {
		t.Errorf("none is parked: %+v", s.Partitions)
	}
}

// The status says in a sentence each: which worker a drain waits for, that a handler fails, that
// a projection is paused, and that events are parked.
func TestStatusSaysWhatIsStalled(t *testing.T) {
	w := newWorld(t)
	w.Append(10)
	cfg := w.Config(w.DB, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"parks": {Policy: orchestrator.ParkEvents, Attempts: 1}}
	in, out := make(chan struct{}, 1), make(chan struct{})
	fails := func(context.Context, orchestrator.Event) error { return errors.New("out of paper") }
	first := testworld.Run(t, cfg,
		testworld.Effects{Projection: "hangs", Hook: func(context.Context, orchestrator.Event) error {
			select {
			case in <- struct{}{}:
			default:
			}
			<-out
			return nil
		}}.Plain(w.DB),
		testworld.Effects{Projection: "fails", Hook: fails}.Transactional(),
		testworld.Effects{Projection: "parks", Hook: fails}.Transactional(),
	)
	<-in
	var waits map[ops.WaitKind][]ops.Wait
	pgtest.Eventually(t, "the failure and the parked events are shown", func() bool {
		_, waits = w.Stand("set")
		return len(waits["retry"]) == 1 && len(waits["parked"]) == 1 && strings.Contains(waits["parked"][0].Text, "10 events")
	})
	if retry := waits["retry"][0]; retry.Projection != "fails" || retry.Position != 1 || !strings.Contains(retry.Text, "out of paper") {
		t.Errorf("a handler that fails: %+v", retry)
	}
	s, _ := w.Stand("set")
	i := slices.IndexFunc(s.Partitions, func(p ops.PartitionStatus) bool { return p.Projection == "parks" })
	if p := s.Partitions[i]; p.Parked != 10 || p.ParkedSince == nil || p.ParkedSince.After(s.At) {
		t.Errorf("parked events: %+v", p)
	}
	pgtest.Eventually(t, "for how long is reported", func() bool {
		s, _ := w.Stand("set")
		p := s.Partitions[i]
		return p.Report != nil && p.Report.Parked == 10
	})
	name := w.Workers("set")[0].Worker
	if _, err := ops.Pause(t.Context(), w.DB, "set", "fails"); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the drain waits for the worker that hangs", func() bool {
		_, waits = w.Stand("set")
		return len(waits["drain"]) == 1 && len(waits["paused"]) == 1
	})
	if drain := waits["drain"][0]; drain.Worker != name || !strings.HasPrefix(drain.Text, fmt.Sprintf("worker %s is still handling event 1 of projection hangs (partition 0 of 1, for ", name)) || drain.Position != 1 {
		t.Errorf("a drain: %+v", drain)
	}
	close(out)
	w.Active("set", 1)
	first.Stop()
	if _, waits = w.Stand("set"); len(waits["unowned"]) != 2 { // a paused projection needs no worker
		t.Errorf("without workers: %+v", waits)
	}
}

// Workers' reports are shown unchanged.
func TestStatusOfReports(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation, total) VALUES ('set', 3, 1)`)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ('set', 'w', now(), 1, now() + interval '1 hour', 3, 1, '[0]', 1, 0, 0, 3, '["p"]')`)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, ahead, updated_at)
VALUES ('p', 0, 'set', 3, 1, 10, '[[1, 12], [2, 13]]', now())`)
	w.Exec(`
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report) VALUES ('set', 'w', now(), '{
  "state": "running", "generation": 3, "head": 9007199254740995, "gap": {"position": 12, "since": "2030-01-02T03:04:05Z", "backends": [4711, 4712]},
  "lanes": [{"projection": "p", "partition": 0, "position": 11, "behind": 5, "behind_seconds": 2.5, "state": "handling", "since": "2030-01-02T03:04:05Z", "handling": 12, "stalled": true}]}')`)
	s, waits := w.Stand("set")
	if s.Head != 9007199254740995 || len(s.Partitions) != 1 || s.Partitions[0].Report == nil {
		t.Fatalf("status %+v", s)
	}
	if r := s.Partitions[0].Report; r.Position != 11 || r.Behind != 5 || r.BehindSeconds != 2.5 || r.Handling != 12 || !r.Stalled || r.State != "handling" {
		t.Errorf("report %+v", r)
	}
	if len(waits["stalled"]) != 1 || waits["stalled"][0].Position != 11 || !strings.Contains(waits["stalled"][0].Text, "2030-01-02 03:04:05 UTC") {
		t.Errorf("a stall: %+v", waits["stalled"])
	}
	if len(waits["gap"]) != 1 || waits["gap"][0].Position != 12 || !slices.Equal(waits["gap"][0].Backends, []int{4711, 4712}) || !strings.Contains(waits["gap"][0].Text, "the transactions that held the readers back at position 12") {
		t.Errorf("a gap: %+v", waits["gap"])
	}
	// A report about an earlier generation is ignored.
	w.Exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{generation}', '2')`)
	if s, _ = w.Stand("set"); s.Partitions[0].Report != nil || s.Partitions[0].Worker != "w" {
		t.Errorf("an old report counts: %+v", s.Partitions[0])
	}
}

// The history shows when, why, how long and which workers, newest first, and is bounded.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	w.Exec(`
INSERT INTO orchestrator_history (replica_set, generation, reason, total, members, opened_at)
SELECT s, g, 'old', 1, '{}', now() FROM unnest(ARRAY['set', 'other']) AS s, generate_series(-1500, -1) AS g`)
	cfg := w.Config(w.DB, "set")
	first := testworld.Run(t, cfg, w.All(w.DB, nil)...)
	w.Active("set", 1)
	testworld.Run(t, cfg, w.All(w.DB, nil)...)
	w.Active("set", 2)
	records, err := ops.History(t.Context(), w.DB, "set", 3)
	if err != nil || len(records) != 3 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	workers := w.Workers("set")
	if r := records[0]; r.Generation != 2 || r.Reason != "1 joined" || r.TotalPartitions != 2 || len(r.Members) != 2 || r.ActivatedAt == nil || r.ActivatedAt.Before(r.OpenedAt) ||
		!slices.Equal(r.Members[workers[1].Worker], []int{1}) || !slices.Equal(r.WaitedFor, []string{workers[0].Worker}) {
		t.Errorf("the second generation: %+v", r)
	}
	if r := records[1]; r.Generation != 1 || r.Reason != "first worker" || len(r.WaitedFor) != 0 || r.ActivatedAt == nil {
		t.Errorf("the first generation: %+v", r)
	}
	if r := records[2]; r.Generation != -1 || r.Reason != "old" || r.ActivatedAt != nil {
		t.Errorf("one that was never active: %+v", r)
	}
	first.Stop()
	w.Active("set", 1)
	all, err := ops.History(t.Context(), w.DB, "set", 10000)
	if err != nil || len(all) != 999 || all[0].Generation != 3 || all[998].Generation != 3-999 { // there was no generation 0
		t.Errorf("%d generations are kept, %v", len(all), err)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_history WHERE replica_set = 'other'`); n != 1500 {
		t.Errorf("of another set %d generations are left", n)
	}
	for _, limit := range []int{0, -1} {
		if _, err := ops.History(t.Context(), w.DB, "set", limit); !errors.Is(err, orchestrator.ErrInvalidConfig) {
			t.Errorf("history of at most %d: %v", limit, err)
		}
		if _, err := ops.Parked(t.Context(), w.DB, "p", limit); !errors.Is(err, orchestrator.ErrInvalidConfig) {
			t.Errorf("parked events, at most %d: %v", limit, err)
		}
	}
	if records, err := ops.History(t.Context(), w.DB, "nobody", 10); err != nil || len(records) != 0 {
		t.Errorf("of a set that there is not: %v, %v", records, err)
	}
}

// A place whose time is over, and that no worker has taken over, is not said to wait.
func TestStatusOfAPlaceKeptNoLonger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.Config(w.DB, "set")
	cfg.ReplacementWindow = time.Hour
	leaves := testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Plain(w.DB))
	w.Active("set", 1)
	leaves.Stop()
	w.Exec(`UPDATE orchestrator_workers SET lease_until = clock_timestamp() - interval '1 minute' WHERE vacant`)
	s, waits := w.Stand("set")
	want := fmt.Sprintf("worker %s has left, and no replacement came; partition 0 waits for a worker to reassign it", s.Workers[0].Worker)
	if got := waits[ops.WaitVacant]; len(got) != 1 || got[0].Text != want {
		t.Errorf("waits %+v, want %q", got, want)
	}
}

// A vacant place is shown: which worker has left, how long the place is reserved, and the lag of
// its lanes. When it is taken, the history names the new worker.
func TestStatusOfAVacantPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := testworld.Effects{Projection: "p"}.Plain(w.DB)
	testworld.Run(t, w.Config(w.DB, "set"), p)
	w.Active("set", 1)
	cfg := w.Config(w.DB, "set")
	cfg.ReplacementWindow = time.Hour
	leaves := testworld.Run(t, cfg, p)
	generation := w.Active("set", 2)
	w.Append(100)
	w.CaughtUp("p")
	leaves.Stop()
	w.Append(100)
	var s ops.ReplicaSetStatus
	var waits map[ops.WaitKind][]ops.Wait
	pgtest.Eventually(t, "the other worker has seen the new events", func() bool {
		s, waits = w.Stand("set")
		return s.Head == 200
	})
	if len(s.Workers) != 2 || s.Workers[1].Alive || !s.Workers[1].Vacant || s.Workers[0].Vacant || len(s.Workers[1].Partitions) != 1 {
		t.Fatalf("workers %+v", s.Workers)
	}
	k, left := s.Workers[1].Partitions[0], s.Workers[1].Worker
	want := fmt.Sprintf("worker %s has left; partition %d waits up to 1h0m0s for its replacement", left, k)
	if got := waits[ops.WaitVacant]; len(got) != 1 || got[0].Worker != left || strings.NewReplacer("59m59s", "1h0m0s", "59m58s", "1h0m0s").Replace(got[0].Text) != want {
		t.Errorf("waits %+v, want %q", got, want)
	}
	lane := s.Partitions[k]
	if r := lane.Report; lane.Worker != left || r == nil || r.State != orchestrator.LaneVacant || r.Behind != 200-lane.Position || r.BehindSeconds < 0 || r.Position != lane.Position {
		t.Errorf("partition %d: %+v, %+v", k, lane, lane.Report)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_status_workers WHERE state = 'vacant' AND NOT alive`); n != 1 {
		t.Errorf("the view shows %d vacant places", n)
	}

	testworld.Run(t, cfg, p)
	w.CaughtUp("p")
	s, waits = w.Stand("set")
	if len(waits[ops.WaitVacant]) != 0 || s.Generation != generation {
		t.Errorf("after the place was taken: generation %d, %+v", s.Generation, waits)
	}
	history, err := ops.History(t.Context(), w.DB, "set", 1)
	if err != nil || len(history) != 1 || history[0].Generation != generation || history[0].Members[left] != nil || len(history[0].Members) != 2 {
		t.Errorf("history %+v, %v", history, err)
	}
}
