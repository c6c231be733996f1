package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// stand returns the status of a set, and by kind what it says stands still.
func (w *world) stand(set orchestrator.ReplicaSetName) (s orchestrator.ReplicaSetStatus, waits map[string][]orchestrator.Wait) {
	w.t.Helper()
	s, err := orchestrator.Status(w.t.Context(), w.db, set)
	if err != nil {
		w.t.Fatal(err)
	}
	waits = map[string][]orchestrator.Wait{}
	for _, wait := range s.Waits {
		waits[wait.Kind] = append(waits[wait.Kind], wait)
	}
	return s, waits
}

// Who runs what, and how far, of two workers to whom nothing happens.
func TestStatus(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(w.db, "set")
	for range 2 {
		run(t, cfg, w.all(w.db, nil)...)
	}
	generation := w.active("set", 2)
	w.append(100)
	w.caughtUp(names...)
	var s orchestrator.ReplicaSetStatus
	eventually(t, "every lane has reported that it is at the end", func() bool {
		s, _ = w.stand("set")
		return len(s.Partitions) == 6 && !slices.ContainsFunc(s.Partitions, func(p orchestrator.PartitionStatus) bool {
			return p.Report == nil || p.Report.Position != 100 || p.Report.Behind != 0
		})
	})
	if s.Generation != generation || s.Phase != "active" || s.TotalPartitions != 2 || s.Head != 100 || s.OpenedAt == nil || s.ActivatedAt == nil || len(s.Waits) != 0 {
		t.Errorf("a calm set: %+v", s)
	}
	owners := map[string]bool{}
	for i, p := range s.Partitions {
		if want := []string{"batched", "plain", "transactional"}[i/2]; p.Projection != want || p.Partition != i%2 || p.TotalPartitions != 2 || p.Generation != generation {
			t.Errorf("row %d is %+v", i, p)
		}
		owners[p.Worker] = true
	}
	if len(s.Workers) != 2 || len(owners) != 2 {
		t.Fatalf("%d workers, %d of whom have partitions", len(s.Workers), len(owners))
	}
	for _, worker := range s.Workers {
		if !owners[worker.Worker] || !worker.Alive || worker.Holds != generation || len(worker.Partitions) != 1 || worker.State != "running" || worker.ReportedAt == nil {
			t.Errorf("worker %+v", worker)
		}
	}
	if sets, err := orchestrator.ReplicaSets(t.Context(), w.db); err != nil || !slices.Equal(sets, []orchestrator.ReplicaSetName{"set"}) {
		t.Errorf("replica sets %v, %v", sets, err)
	}
	// As people with psql see it.
	for view, want := range map[string]int64{"orchestrator_status": 1, "orchestrator_status_workers": 2, "orchestrator_status_partitions": 6} {
		if n := w.number(`SELECT count(*) FROM ` + view); n != want {
			t.Errorf("%s has %d rows, want %d", view, n, want)
		}
	}
}

// A drain names the worker that is in the way; a handler that fails, a pause, and
// parked events are told each in a sentence.
func TestStatusSaysWhatStandsStill(t *testing.T) {
	w := newWorld(t)
	w.append(10)
	cfg := w.config(w.db, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"parks": {Policy: orchestrator.ParkEvents, Attempts: 1}}
	in, out := make(chan struct{}, 1), make(chan struct{})
	fails := func(context.Context, orchestrator.Event) error { return errors.New("out of paper") }
	first := run(t, cfg,
		plain{effects{name: "hangs", hook: func(context.Context, orchestrator.Event) error {
			select {
			case in <- struct{}{}:
			default:
			}
			<-out
			return nil
		}}, w.db},
		transactional{effects{name: "fails", hook: fails}},
		transactional{effects{name: "parks", hook: fails}},
	)
	<-in
	var waits map[string][]orchestrator.Wait
	eventually(t, "what fails and what is parked is told", func() bool {
		_, waits = w.stand("set")
		return len(waits["retry"]) == 1 && len(waits["parked"]) == 1 && strings.Contains(waits["parked"][0].Text, "10 events")
	})
	if retry := waits["retry"][0]; retry.Projection != "fails" || retry.Position != 1 || !strings.Contains(retry.Text, "out of paper") {
		t.Errorf("a handler that fails: %+v", retry)
	}
	s, _ := w.stand("set")
	i := slices.IndexFunc(s.Partitions, func(p orchestrator.PartitionStatus) bool { return p.Projection == "parks" })
	if p := s.Partitions[i]; p.Parked != 10 || p.ParkedSince == nil || p.ParkedSince.After(s.At) {
		t.Errorf("parked events: %+v", p)
	}
	eventually(t, "for how long is reported", func() bool {
		s, _ := w.stand("set")
		p := s.Partitions[i]
		return p.Report != nil && p.Report.Parked == 10
	})
	name := w.workers("set")[0].Worker
	if _, err := orchestrator.Pause(t.Context(), w.db, "set", "fails"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the drain waits for the worker that hangs", func() bool {
		_, waits = w.stand("set")
		return len(waits["drain"]) == 1 && len(waits["paused"]) == 1
	})
	if drain := waits["drain"][0]; drain.Worker != name || drain.Text != fmt.Sprintf("generation 2 waits for worker %s to stop generation 1", name) {
		t.Errorf("a drain: %+v", drain)
	}
	close(out)
	w.active("set", 1)
	first.stop()
	if _, waits = w.stand("set"); len(waits["unowned"]) != 2 { // what is paused needs no owner
		t.Errorf("with nobody there: %+v", waits)
	}
}

// What workers have reported is told as they said it.
func TestStatusOfReports(t *testing.T) {
	w := newWorld(t)
	w.exec(`INSERT INTO orchestrator_replica_sets (name, generation, total) VALUES ('set', 3, 1)`)
	w.exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ('set', 'w', now(), 1, now() + interval '1 hour', 3, 1, '[0]', 1, 0, 0, 3, '["p"]')`)
	w.exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, ahead, updated_at)
VALUES ('p', 0, 'set', 3, 1, 10, '[[1, 12], [2, 13]]', now())`)
	w.exec(`
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report) VALUES ('set', 'w', now(), '{
  "state": "running", "generation": 3, "head": 9007199254740995, "gap": {"position": 12, "since": "2030-01-02T03:04:05Z", "backends": [4711, 4712]},
  "lanes": [{"projection": "p", "partition": 0, "position": 11, "behind": 5, "behind_seconds": 2.5, "state": "handling", "since": "2030-01-02T03:04:05Z", "handling": 12, "stalled": true}]}')`)
	s, waits := w.stand("set")
	if s.Head != 9007199254740995 || len(s.Partitions) != 1 || s.Partitions[0].Report == nil {
		t.Fatalf("status %+v", s)
	}
	if r := s.Partitions[0].Report; r.Position != 11 || r.Behind != 5 || r.BehindSeconds != 2.5 || r.Handling != 12 || !r.Stalled || r.State != "handling" {
		t.Errorf("report %+v", r)
	}
	if len(waits["stalled"]) != 1 || waits["stalled"][0].Position != 11 || !strings.Contains(waits["stalled"][0].Text, "2030-01-02 03:04:05 UTC") {
		t.Errorf("a stall: %+v", waits["stalled"])
	}
	if len(waits["gap"]) != 1 || waits["gap"][0].Position != 12 || !slices.Equal(waits["gap"][0].Backends, []int{4711, 4712}) || !strings.Contains(waits["gap"][0].Text, "4711 4712") {
		t.Errorf("a gap: %+v", waits["gap"])
	}
	// A report about an earlier generation says nothing of this one.
	w.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{generation}', '2')`)
	if s, _ = w.stand("set"); s.Partitions[0].Report != nil || s.Partitions[0].Worker != "w" {
		t.Errorf("an old report counts: %+v", s.Partitions[0])
	}
}

// The history says when, why, how long and who, the newest first, and is bounded.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	w.exec(`
INSERT INTO orchestrator_history (replica_set, generation, reason, total, members, opened_at)
SELECT s, g, 'old', 1, '{}', now() FROM unnest(ARRAY['set', 'other']) AS s, generate_series(-1500, -1) AS g`)
	cfg := w.config(w.db, "set")
	first := run(t, cfg, w.all(w.db, nil)...)
	w.active("set", 1)
	run(t, cfg, w.all(w.db, nil)...)
	w.active("set", 2)
	records, err := orchestrator.History(t.Context(), w.db, "set", 2)
	if err != nil || len(records) != 2 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	workers := w.workers("set")
	if r := records[0]; r.Generation != 2 || r.Reason != "1 joined" || r.TotalPartitions != 2 || len(r.Members) != 2 || r.ActivatedAt == nil || r.ActivatedAt.Before(r.OpenedAt) ||
		!slices.Equal(r.Members[workers[1].Worker], []int{1}) || !slices.Equal(r.WaitedFor, []string{workers[0].Worker}) {
		t.Errorf("the second generation: %+v", r)
	}
	if r := records[1]; r.Generation != 1 || r.Reason != "first worker" || len(r.WaitedFor) != 0 || r.ActivatedAt == nil {
		t.Errorf("the first generation: %+v", r)
	}
	first.stop()
	if n := w.number(`SELECT count(*) FROM orchestrator_history WHERE replica_set = 'set'`); n > 1000 {
		t.Errorf("%d generations are kept", n)
	}
	if n := w.number(`SELECT count(*) FROM orchestrator_history WHERE replica_set = 'other'`); n != 1500 {
		t.Errorf("of another set %d generations are left", n)
	}
	if records, err := orchestrator.History(t.Context(), w.db, "nobody", 10); err != nil || len(records) != 0 {
		t.Errorf("of a set that there is not: %v, %v", records, err)
	}
}
