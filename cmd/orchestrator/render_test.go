package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func ago(d time.Duration) *time.Time {
	t := now.Add(-d)
	return &t
}

func draining() ops.ReplicaSetStatus {
	one := 1
	return ops.ReplicaSetStatus{
		ReplicaSet: "main", At: now, Generation: 7, Phase: "draining", TotalPartitions: 2, Reason: "1 joined",
		OpenedAt: ago(12345 * time.Millisecond), Rewinds: map[string]int64{"totals": 40},
		Workers: []ops.WorkerStatus{
			{Worker: "host-1-aaa", Alive: true, LeaseUntil: now.Add(28 * time.Second), Partitions: []int{0, 1, 2, 5}, State: "running", Holds: 6},
			{Worker: "host-2-bbb", Alive: false, LeaseUntil: now.Add(-90 * time.Second)},
			{Worker: "host-3-ccc", Alive: true, LeaseUntil: now.Add(time.Second), Drained: true, State: "standby"},
			{Worker: "host-4-ddd", Alive: true, LeaseUntil: now.Add(time.Second)},
		},
		Partitions: []ops.PartitionStatus{
			{Projection: "totals", Partition: 0, TotalPartitions: 2, Worker: "host-1-aaa", Position: 100, Report: &orchestrator.LaneReport{
				Position: 120, Behind: 3, BehindSeconds: 0.25, State: "handling",
			}},
			{Projection: "totals", Partition: 1, TotalPartitions: 2, Worker: "host-1-aaa", Position: 90, Parked: 2, Report: &orchestrator.LaneReport{
				Position: 80, Behind: -1, State: "retrying", Stalled: true,
			}},
			{Projection: "users\x1b[2J", Partition: 1, TotalPartitions: 2, Position: 9, Paused: true},
		},
		Waits: []ops.Wait{{Kind: "drain", Text: "worker host-1-aaa has not stopped generation 6 yet; generation 7 waits for it"}, {Kind: "retry", Partition: &one, Text: "it\nfails"}},
	}
}

func TestRender(t *testing.T) {
	want := strings.TrimPrefix(`
main: generation 7 draining for 12s, 2 partitions (1 joined)
  ! worker host-1-aaa has not stopped generation 6 yet; generation 7 waits for it
  ! it fails
  ! rewind of totals to position 40 is pending: it takes effect when the next generation is activated

  WORKER      STATE    PARTITIONS  LEASE
  host-1-aaa  running  0-2,5       28s
  host-2-bbb  expired  -           -1m30s
  host-3-ccc  drained  -           1s
  host-4-ddd  -        -           1s

  PROJECTION      PARTITION  WORKER      POSITION  BEHIND  FOR    STATE
  totals          0/2        host-1-aaa  120       3       250ms  handling
  totals          1/2        host-1-aaa  90        -       -      retrying, stalled, 2 parked
  users\u001b[2J  1/2        -           9         -       -      paused
`, "\n")
	if diff := cmp.Diff(want, render(draining())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := renderAll(nil); got != "No worker of any replica set has run yet.\n" {
		t.Errorf("without a set: %q", got)
	}
	s := ops.ReplicaSetStatus{ReplicaSet: "empty", At: now, Generation: 1, Phase: "active", TotalPartitions: 1, Reason: "first worker", ActivatedAt: ago(50 * time.Hour)}
	if got, want := render(s), "empty: generation 1 active for 2d, 1 partition (first worker)\n\n  no workers\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRenderHistory(t *testing.T) {
	got := renderHistory([]ops.GenerationRecord{
		{Generation: 9, Reason: "1 gone", TotalPartitions: 2, OpenedAt: now},
		{Generation: 8, Reason: "2 joined", TotalPartitions: 3, OpenedAt: now, Members: map[string][]int{"a": {0}, "b": {1, 2}}, WaitedFor: []string{"a", "b"}},
		{Generation: 7, Reason: "first worker", TotalPartitions: 1, OpenedAt: *ago(time.Second), ActivatedAt: &now, Members: map[string][]int{"a": {0}}},
	})
	want := strings.TrimPrefix(`
  GENERATION  OPENED               ACTIVE AFTER  PARTITIONS  WORKERS  REASON        WAITED FOR
  9           2030-01-02 03:04:05  draining      2           0        1 gone        -
  8           2030-01-02 03:04:05  never         3           2        2 joined      a b
  7           2030-01-02 03:04:04  1s            1           1        first worker  -
`, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1234 * time.Nanosecond: "1µs", 1234567 * time.Nanosecond: "1ms", 1234 * time.Millisecond: "1.2s",
		61 * time.Second: "1m1s", 3*time.Hour + 61*time.Second: "3h1m", 49 * time.Hour: "2d", -61 * time.Second: "-1m1s",
	} {
		if got := span(d); got != want {
			t.Errorf("%d ns: %s, want %s", d, got, want)
		}
	}
}

// A frame has no more lines and columns than the screen, and clears the rest of the screen.
func TestFrame(t *testing.T) {
	got := frame(now, "one\ntwo is long\nthree\nfour\n", 24, 5)
	want := "\x1b[H" + "2030-01-02 03:04:05 UTC…" + "\x1b[K\r\n" + "\x1b[K\r\n" + "one\x1b[K\r\n" + "two is long\x1b[K\r\n" + "… 2 more lines\x1b[K\x1b[J"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// In a pipe, only changes are printed.
func TestChanges(t *testing.T) {
	var out strings.Builder
	show := changes(&out)
	show(now, "a for 1s\n", "a")
	show(now, "a for 2s\n", "a")
	show(now, "b for 1s\n", "b")
	show(now, "can't look\n", "")
	show(now, "can't look\n", "")
	const at = "2030-01-02T03:04:05Z\n"
	if diff := cmp.Diff(at+"a for 1s\n\n"+at+"b for 1s\n\n"+at+"can't look\n\n", out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	later := draining()
	later.At = later.At.Add(time.Hour)
	if gist([]ops.ReplicaSetStatus{draining()}) != gist([]ops.ReplicaSetStatus{later}) {
		t.Error("the time alone is news")
	}
	later.Partitions[0].Position++
	if gist([]ops.ReplicaSetStatus{draining()}) == gist([]ops.ReplicaSetStatus{later}) {
		t.Error("a position that has moved is no news")
	}
}
