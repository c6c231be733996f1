package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// The life of two workers, as their observers have it.
func TestObserverOfGenerations(t *testing.T) {
	w := newWorld(t)
	w.Append(300)
	ra, a := w.Seen(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 1)
	w.CaughtUp("transactional")
	alone := testworld.Awaited(t, a, "the first activation", testworld.Any[orchestrator.GenerationActivated])
	if alone.ReplicaSet != "set" || alone.Worker == "" || alone.At.IsZero() || alone.Generation != 1 || alone.Reason != "first worker" ||
		alone.TotalPartitions != 1 || alone.Duration != 0 || len(alone.WaitedFor) != 0 {
		t.Errorf("the first activation is %+v", alone)
	}
	rb, b := w.Seen(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 2)
	w.Append(300)
	w.CaughtUp("transactional")
	w.checkpointsSettled()
	rb.Stop()
	w.Active("set", 1)
	testworld.Awaited(t, a, "its third start", func(s orchestrator.PartitionsChanged) bool { return s.Generation == 3 })
	ra.Stop() // and all has been told

	both := []*testworld.Witness{a, b}
	opened := testworld.Told[orchestrator.GenerationOpened](both...)
	activated := testworld.Told[orchestrator.GenerationActivated](both...)
	if len(opened) != 3 || len(activated) != 3 {
		t.Fatalf("of three generations, %d are told to be opened, %d activated", len(opened), len(activated))
	}
	for _, e := range opened {
		if e.Generation == 2 && (e.Reason != "1 joined" || e.TotalPartitions != 2 || !slices.Equal(e.WaitsFor, []string{alone.Worker})) {
			t.Errorf("opened %+v", e)
		}
	}
	for _, e := range activated {
		if e.Generation == 2 && (e.Reason != "1 joined" || e.TotalPartitions != 2 || e.Duration <= 0 || !slices.Equal(e.WaitedFor, []string{alone.Worker})) {
			t.Errorf("activated %+v", e)
		}
	}
	for _, test := range []struct {
		what      string
		got, want any
	}{
		{"a's joins", len(testworld.Told[orchestrator.WorkerJoined](a)), 1},
		{"b's joins", len(testworld.Told[orchestrator.WorkerJoined](b)), 1},
		{"a's starts and stops", ran(a), []string{"1: [0]", "1: []", "2: [0]", "2: []", "3: [0]", "3: []"}},
		{"what superseded a", generations(testworld.Told[orchestrator.GenerationSuperseded](a)), []int64{1, 2}},
		{"what superseded b, which left", generations(testworld.Told[orchestrator.GenerationSuperseded](b)), []int64(nil)},
		{"what was wrong", len(failedBeats(both...)) + len(testworld.Told[orchestrator.LeaseLost](both...)) + len(testworld.Told[orchestrator.CommitRefused](both...)), 0},
	} {
		if !reflect.DeepEqual(test.got, test.want) {
			t.Errorf("%s: %v, want %v", test.what, test.got, test.want)
		}
	}
	if s := testworld.Told[orchestrator.PartitionsChanged](b)[0]; s.Generation != 2 || !slices.Equal(s.Partitions, []int{1}) || s.TotalPartitions != 2 {
		t.Errorf("b started %+v", s)
	}
	for _, s := range both {
		all := testworld.Told[any](s)
		last, _ := all[len(all)-1].(orchestrator.WorkerLeft)
		if last.Worker == "" || last.Err != nil {
			t.Errorf("the last that was told is %+v", last)
		}
	}
	if beats := testworld.Told[orchestrator.Heartbeat](a); len(beats) == 0 || beats[0].Latency <= 0 {
		t.Errorf("heartbeats %v", beats)
	}
	handled := 0
	positions := map[orchestrator.Lane]int64{}
	for _, c := range testworld.Told[orchestrator.BatchCommitted](both...) {
		if c.Position <= positions[c.Lane] || c.Duration < 0 || c.Events == 0 && c.Skipped == 0 || c.Events > 100 || c.Projection != "transactional" {
			t.Errorf("after position %d: %+v", positions[c.Lane], c)
		}
		handled, positions[c.Lane] = handled+c.Events, c.Position
	}
	if handled != 600 {
		t.Errorf("batches of %d events were committed, of 600", handled)
	}
}

func generations(events []orchestrator.GenerationSuperseded) (numbers []int64) {
	for _, e := range events {
		numbers = append(numbers, e.Generation)
	}
	return numbers
}

// A handler that fails is told of with each attempt.
func TestObserverOfFailures(t *testing.T) {
	w := newWorld(t)
	w.Append(10)
	odd := errors.New("odd")
	failures := 0
	_, s := w.Seen(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 4 && failures < 3 {
			failures++
			return odd
		}
		return nil
	}}.Transactional())
	w.CaughtUp("transactional")
	testworld.Awaited(t, s, "all that is committed", func(e orchestrator.BatchCommitted) bool { return e.Position == 10 })
	failed := testworld.Told[orchestrator.HandlerFailed](s)
	if len(failed) != 3 {
		t.Fatalf("told of %d failures, want 3", len(failed))
	}
	for i, f := range failed {
		want := orchestrator.HandlerFailed{
			Source: f.Source, Lane: orchestrator.Lane{Projection: "transactional", Generation: 1, TotalPartitions: 1},
			Position: 4, Attempt: i + 1, RetryIn: f.RetryIn, Err: odd,
		}
		if f.Err, want.Err = nil, nil; f != want || f.RetryIn <= 0 {
			t.Errorf("failure %d is %+v", i+1, f)
		}
	}
}

// Events that are gone past, and a partition that stands still.
func TestObserverOfPolicies(t *testing.T) {
	w := newWorld(t)
	w.Append(60) // of 50 aggregates: the second of position 4's is 54
	odd := errors.New("odd")
	fails := func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 4 {
			return odd
		}
		return nil
	}
	cfg := w.Config(w.DB, "set")
	cfg.StallAfter = time.Second
	cfg.Failures = map[string]orchestrator.FailureRule{
		// once in a batch, and twice alone
		"parks": {Policy: orchestrator.ParkEvents, Attempts: 2},
	}
	_, s := w.Seen(t, cfg, testworld.Effects{Projection: "parks", Hook: fails}.Transactional(), testworld.Effects{Projection: "retries", Hook: fails}.Transactional())
	first := testworld.Awaited(t, s, "what is parked", testworld.Any[orchestrator.EventParked])
	behind := testworld.Awaited(t, s, "what waits behind it", func(e orchestrator.EventParked) bool { return e.Position == 54 })
	var attempts []int
	for _, f := range testworld.Told[orchestrator.HandlerFailed](s) {
		if f.Projection != "parks" {
			continue
		}
		attempts = append(attempts, f.Attempt)
		if f.Position != 4 || !errors.Is(f.Err, odd) || f.Final != (f.Attempt == 3) || f.Final != (f.RetryIn == 0) {
			t.Errorf("failed %+v", f)
		}
	}
	if !slices.Equal(attempts, []int{1, 2, 3}) {
		t.Errorf("told of the attempts %v", attempts)
	}
	if first.Position != 4 || first.Attempts != 3 || !errors.Is(first.Err, odd) || first.AggregateID != "a3" || first.Projection != "parks" {
		t.Errorf("parked %+v", first)
	}
	if behind.Attempts != 0 || behind.Err != nil || behind.AggregateID != "a3" {
		t.Errorf("parked behind it %+v", behind)
	}
	testworld.Awaited(t, s, "the last commit", func(e orchestrator.BatchCommitted) bool { return e.Projection == "parks" && e.Position == 60 })
	l := testworld.Reported(t, s, "how many are parked", "parks", 0, func(_ orchestrator.WorkerReport, l orchestrator.LaneReport) bool {
		return l.Parked == 2 && l.Behind == 0
	})
	if l.Stalled || l.ParkedSeconds <= 0 {
		t.Errorf("reported %+v", l)
	}
	handled := 0
	for _, c := range testworld.Told[orchestrator.BatchCommitted](s) {
		if c.Projection == "parks" {
			handled += c.Events
		}
	}
	if handled != 58 {
		t.Errorf("batches of %d events were committed, of 60 of which two are parked", handled)
	}
	w.Retry("parks", ops.ParkedSelector{Positions: []int64{4}})
	testworld.Awaited(t, s, "the retry, which fails", func(e orchestrator.HandlerFailed) bool {
		return e.Projection == "parks" && e.Position == 4 && e.Attempt == 4 && e.Final && e.RetryIn == 0 && errors.Is(e.Err, odd)
	})
	testworld.Awaited(t, s, "a failure after which it is called again", func(e orchestrator.HandlerFailed) bool {
		return e.Projection == "retries" && e.Position == 4 && e.Attempt == 3 && !e.Final && e.RetryIn > 0
	})
	stalled := testworld.Awaited(t, s, "the stall", func(e orchestrator.Stalled) bool { return e.Projection == "retries" && e.Position == 3 && !e.Over })
	if stalled.Reason == "" || stalled.For < cfg.StallAfter { // the reason is that it fails, or that it is tried again just now
		t.Errorf("stalled %+v", stalled)
	}
}

// A commit that the fence refuses, and the worker that comes back for it.
func TestObserverOfARefusal(t *testing.T) {
	w := newWorld(t)
	w.Append(10)
	cfg := w.Config(w.DB, "set")
	refused := false
	_, s := w.Seen(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(ctx context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 10 && !refused {
			refused = true
			_, err := w.DB.ExecContext(ctx, `UPDATE orchestrator_checkpoints SET generation = 0`)
			return err
		}
		return nil
	}}.Transactional())
	w.CaughtUp("transactional")
	got := testworld.Awaited(t, s, "a refusal", testworld.Any[orchestrator.CommitRefused])
	if got.Position != 10 || got.Generation != 1 || got.Projection != "transactional" {
		t.Errorf("refused %+v", got)
	}
	testworld.Awaited(t, s, "another incarnation", func(e orchestrator.WorkerJoined) bool { return e.Worker == got.Worker+"~2" })
}

// A worker that can't reach the database says so, and that it has lost its lease.
func TestObserverOfALostLease(t *testing.T) {
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout, cfg.LeaseOnly = 500*time.Millisecond, true
	hangs := make(chan struct{})
	var once sync.Once
	_, s := w.Seen(t, cfg, testworld.Effects{Projection: "plain", Hook: func(ctx context.Context, _ orchestrator.Event) error {
		once.Do(func() {
			close(hangs)
			<-ctx.Done()
		})
		return ctx.Err()
	}}.Plain(w.DB))
	<-hangs
	tx, err := w.Connect().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE orchestrator_workers`); err != nil {
		t.Fatal(err)
	}
	failed := testworld.Awaited(t, s, "a heartbeat without an answer", func(e orchestrator.Heartbeat) bool { return e.Err != nil })
	if failed.Latency <= 0 {
		t.Errorf("failed: %+v", failed)
	}
	lost := testworld.Awaited(t, s, "the lease", testworld.Any[orchestrator.LeaseLost])
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	testworld.Awaited(t, s, "another incarnation", func(e orchestrator.WorkerJoined) bool { return strings.HasPrefix(e.Worker, lost.Worker+"~") })
	w.CaughtUp("plain")
}

// A handler that does not stop delays the others, and ends its own worker.
func TestObserverOfATimeout(t *testing.T) {
	w := newWorld(t)
	w.Append(10)
	cfg := w.Config(w.DB, "set")
	cfg.CoordinationTimeout = time.Second
	hangs, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	ra, a := w.Seen(t, cfg, testworld.Effects{Projection: "transactional", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 4 {
			close(hangs)
			<-release
		}
		return nil
	}}.Transactional())
	<-hangs
	_, b := w.Seen(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	delayed := testworld.Awaited(t, b, "a delay", testworld.Any[orchestrator.GenerationDelayed])
	err := ra.Failed()
	timeout := testworld.Awaited(t, a, "the timeout", testworld.Any[orchestrator.CoordinationTimeout])
	if want := []string{`projection "transactional", partition 0, at position 4`}; timeout.Generation != 1 || !slices.Equal(timeout.Handlers, want) {
		t.Errorf("timeout %+v, want of generation 1 and %q", timeout, want)
	}
	if delayed.Generation != 2 || !slices.Equal(delayed.WaitsFor, []string{timeout.Worker}) || delayed.Waited <= 0 {
		t.Errorf("delayed %+v", delayed)
	}
	if left := testworld.Awaited(t, a, "the end", testworld.Any[orchestrator.WorkerLeft]); !errors.Is(left.Err, orchestrator.ErrCoordinationTimeout) || left.Err.Error() != err.Error() {
		t.Errorf("left with %v, and Run returned %v", left.Err, err)
	}
}

// A worker whose lease is over is removed, by one that says so; what was reported
// of it goes with it.
func TestObserverOfAnExpiry(t *testing.T) {
	w := newWorld(t)
	_, s := w.Seen(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
	w.Active("set", 1)
	w.Exec(`INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report) VALUES ('set', 'dead', now(), '{}')`)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
SELECT 'set', 'dead', now(), 1000, now(), generation, total, '[]', 1, 0, 0, 0, '[]' FROM orchestrator_replica_sets`)
	testworld.Awaited(t, s, "the dead worker", func(e orchestrator.WorkerExpired) bool { return e.Expired == "dead" })
	pgtest.Eventually(t, "its report is gone", func() bool { return w.Number(`SELECT count(*) FROM orchestrator_reports WHERE worker = 'dead'`) == 0 })
}

// Nothing depends on an observer: not when it panics, not when it ends its
// goroutine, and not when it blocks for ever.
func TestBadObservers(t *testing.T) {
	gate := make(chan struct{})
	defer close(gate)
	for name, bad := range map[string]func(any){
		"panics":  func(any) { panic("no") },
		"goexits": func(any) { runtime.Goexit() },
		"blocks":  func(any) { <-gate },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			h := &testworld.History{}
			noticed := &testworld.Log{To: t.Output()}
			cfg := w.Config(w.DB, "set")
			cfg.Observer, cfg.Logger = testworld.Observe(bad), slog.New(slog.NewTextHandler(noticed, nil))
			w.Append(300)
			a := testworld.Run(t, cfg, w.All(w.DB, h)...)
			w.Active("set", 1)
			b := testworld.Run(t, cfg, w.All(w.DB, h)...)
			w.Active("set", 2)
			w.Append(300)
			w.CaughtUp(testworld.Names...)
			a.Stop()
			w.Active("set", 1)
			w.Append(300)
			w.CaughtUp(testworld.Names...)
			b.Stop()
			h.Check(t)
			w.CheckEffects(testworld.Names...)
			said := noticed.Count("observer panicked")
			if want := 2; name != "blocks" && said != want || name == "blocks" && said != 0 {
				t.Errorf("it is said %d times that an observer has panicked, by two workers", said)
			}
		})
	}
}

// failedBeats are the exchanges with the database that failed.
func failedBeats(witnesses ...*testworld.Witness) []orchestrator.Heartbeat {
	return slices.DeleteFunc(testworld.Told[orchestrator.Heartbeat](witnesses...), func(e orchestrator.Heartbeat) bool { return e.Err == nil })
}

// ran says which partitions ran, under which generation.
func ran(s *testworld.Witness) (lines []string) {
	for _, e := range testworld.Told[orchestrator.PartitionsChanged](s) {
		lines = append(lines, fmt.Sprintf("%d: %v", e.Generation, e.Partitions))
	}
	return lines
}
