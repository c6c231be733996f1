package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func ago(d time.Duration) *time.Time {
	t := now.Add(-d)
	return &t
}

const evil = "x\x1b]0;title\x07\x1b[2J\u202e\u2066\u2028\u200f\u0085\U000e0001y"

// troubled is the status of a replica set with all that can be wrong, and of one that is well.
func troubled() []ops.ReplicaSetStatus {
	zero, one, two := 0, 1, 2
	report := func(state orchestrator.LaneState, behind int64, seconds, rate float64, stalled bool) *orchestrator.LaneReport {
		return &orchestrator.LaneReport{Position: 1000 - max(behind, 0), Behind: behind, BehindSeconds: seconds, State: state, PerSecond: rate, Stalled: stalled}
	}
	const worker = "shop-workers-5d9f7c6b54-x2x9k-1-k3f9a0qz"
	bad := ops.ReplicaSetStatus{
		ReplicaSet: "main", At: now, Generation: 7, Phase: ops.PhaseDraining, TotalPartitions: 3, Reason: "1 joined",
		OpenedAt: ago(12345 * time.Millisecond), Rewinds: map[string]int64{"totals": 40},
		ParkOrders: []ops.ParkOrder{{Number: 1, Projection: "search", Position: 812, By: "ann@laptop", OrderedAt: now}},
		Workers: []ops.WorkerStatus{
			{Worker: worker, Alive: true, LeaseUntil: now.Add(28 * time.Second), Partitions: []int{0, 1, 2, 5}, State: "running", Holds: 6},
			{Worker: "host-2-bbb", LeaseUntil: now.Add(-90 * time.Second)},
			{Worker: "host-3-ccc", Alive: true, LeaseUntil: now.Add(time.Second), Drained: true, State: "standby"},
			{Worker: "host-4-ddd", Alive: true, LeaseUntil: now.Add(time.Second)},
			{Worker: "host-5-eee", Alive: true, LeaseUntil: now.Add(time.Second), State: "running"},
		},
		Partitions: []ops.PartitionStatus{
			{Projection: "calm", Partition: 0, TotalPartitions: 1, Worker: "host-5-eee", Position: 1000, Report: report("idle", 0, 0, 120.4, false)},
			{Projection: "invoices", Partition: 0, TotalPartitions: 2, Worker: "host-5-eee", Position: 899, Report: report("idle", 101, 720, 0, true)},
			{Projection: "invoices", Partition: 1, TotalPartitions: 2, Worker: worker, Position: 899, Report: report("idle", 101, 719, 0, true)},
			{Projection: "mail", Partition: 0, TotalPartitions: 1, Position: 40, Paused: true, Parked: 3, Report: report("paused", 960, -1, 0, false)},
			{Projection: "search", Partition: 0, TotalPartitions: 3, Worker: worker, Position: 811, Report: report("retrying", 189, 550, 0, true)},
			{Projection: "search", Partition: 1, TotalPartitions: 3, Worker: worker, Position: 990, Report: report("handling", 10, 0.25, 31, false)},
			{Projection: "search", Partition: 2, TotalPartitions: 3, Worker: "host-5-eee", Position: 1000, Report: report("idle", -1, -1, 2.5, false), Parked: 2},
			{Projection: "totals", Partition: 0, TotalPartitions: 1, Worker: "host-4-ddd", Position: 9},
			{Projection: "受注" + evil, Partition: 0, TotalPartitions: 1, Worker: "host-4-ddd", Position: 9, Report: report("handling", 5, 0.004, 0, false)},
		},
		Waits: []ops.Wait{
			{Kind: ops.WaitGap, Severity: ops.SeverityCritical, Position: 900, Backends: []int{4711}, Remedy: "SELECT pg_terminate_backend(4711)",
				Text: "an open transaction holds the readers back: backend 4711 (application nightly-report, user bob, open for 12m0s, idle in transaction) may still commit an event at position 900; nothing after position 899 is handled, since 2030-01-02 02:52:05 UTC (12m0s ago)",
				Effects: []ops.Wait{
					{Kind: ops.WaitStalled, Severity: ops.SeverityCritical, Projection: "invoices", Partition: &zero, Worker: "host-5-eee", Text: "projection invoices, partition 0 of 2, on worker host-5-eee: stalled at position 899 since 2030-01-02 02:52:05 UTC (12m0s ago) (idle)"},
					{Kind: ops.WaitStalled, Severity: ops.SeverityCritical, Projection: "invoices", Partition: &one, Worker: worker, Text: "projection invoices, partition 1 of 2, on worker " + worker + ": stalled at position 899 since 2030-01-02 02:52:05 UTC (12m0s ago) (idle)"},
				}},
			{Kind: ops.WaitRetry, Severity: ops.SeverityCritical, Projection: "search", Partition: &zero, Worker: worker, Position: 812,
				Text: "projection search, partition 0 of 3, on worker " + worker + ": retrying after attempt 7: index is read-only:\nPUT https://search.example/orders/_doc/812: 503 " + strings.Repeat("unavailable ", 40)},
		},
	}
	for range 5 {
		bad.Waits = append(bad.Waits, ops.Wait{Kind: ops.WaitRetry, Severity: ops.SeverityWarning, Projection: "totals", Partition: &two, Worker: "host-4-ddd",
			Text: "projection totals, partition 2 of 3, on worker host-4-ddd: database after attempt 1: connection refused"})
	}
	bad.Waits = append(bad.Waits,
		ops.Wait{Kind: ops.WaitParked, Severity: ops.SeverityWarning, Projection: "search", Remedy: "orchestrator park list search", Text: "projection search: 2 events are parked"},
		ops.Wait{Kind: ops.WaitAbsent, Severity: ops.SeverityWarning, Projection: "x; rm -rf 'a'" + evil, Remedy: "orchestrator retire 'x; rm -rf '\\''a'\\''" + evil + "'", Text: "projection x; rm -rf 'a'" + evil + " is in no running program: its events are not handled"},
		ops.Wait{Kind: ops.WaitPaused, Severity: ops.SeverityInfo, Projection: "mail", Remedy: "orchestrator resume main mail", Text: "projection mail is paused by order, 960 positions behind"},
	)
	good := ops.ReplicaSetStatus{
		ReplicaSet: "audit", At: now, Generation: 1, Phase: ops.PhaseActive, TotalPartitions: 1, Reason: "first worker", ActivatedAt: ago(50 * time.Hour),
		Workers:    []ops.WorkerStatus{{Worker: "host-6-fff", Alive: true, LeaseUntil: now.Add(time.Second), Partitions: []int{0}, State: "running"}},
		Partitions: []ops.PartitionStatus{{Projection: "log", TotalPartitions: 1, Worker: "host-6-fff", Position: 1000, Report: report("idle", 0, 0, 0, false)}},
		Rebuilds:   []ops.RebuildStatus{{Projection: "log_v1", State: ops.RebuildReplaced, Text: "log_v1 was replaced by log"}},
	}
	return []ops.ReplicaSetStatus{good, bad}
}

var update = flag.Bool("update", false, "rewrite the files in testdata")

// golden compares a text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(string(want), "\r", ""), got); diff != "" {
		t.Errorf("%s: -want +got:\n%s", name, diff)
	}
}

// What status prints, on terminals of two widths and in a pipe.
func TestRender(t *testing.T) {
	for name, v := range map[string]view{
		"status-80.txt": {width: 80}, "status-200.txt": {width: 200}, "status-pipe.txt": {},
		"details-80.txt": {width: 80, verbose: true}, "details-200.txt": {width: 200, verbose: true},
	} {
		lines := v.all(troubled())
		golden(t, name, paint(lines, false))
		for _, l := range lines {
			if n := columns(l.paint(false)); v.width > 0 && n > v.width && !strings.Contains(l.paint(false), "→") {
				t.Errorf("%s: a line has %d columns: %s", name, n, l.paint(false))
			}
		}
	}
	if got := paint(view{}.all(nil), false); got != "No worker of any replica set has run yet.\n" {
		t.Errorf("without a set: %q", got)
	}
	empty := ops.ReplicaSetStatus{ReplicaSet: "empty", At: now, Generation: 1, Phase: "active", TotalPartitions: 1, Reason: "first worker", ActivatedAt: ago(50 * time.Hour)}
	if got, want := paint(view{}.set(empty), false), "empty: generation 1 active for 2d, 1 partition (first worker)\n\n  no workers\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Colours are all that they add, and no other control character is printed.
func TestColours(t *testing.T) {
	lines := view{width: 80, verbose: true}.all(troubled())
	coloured := paint(lines, true)
	for _, want := range []string{"\x1b[31;1m  !! \x1b[0m", "\x1b[33;1m   ! \x1b[0m", "\x1b[31;1mretrying, stalled\x1b[0m"} {
		if !strings.Contains(coloured, want) {
			t.Errorf("there is no %q in\n%s", want, coloured)
		}
	}
	without := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(coloured, "")
	if diff := cmp.Diff(paint(lines, false), without); diff != "" {
		t.Errorf("without colours: -want +got:\n%s", diff)
	}
	if i := strings.IndexFunc(without, func(r rune) bool { return r != '\n' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }); i >= 0 {
		t.Errorf("prints %q", without[i:])
	}
}

// The screens of watch: the first and the last page, in three sizes.
func TestFrame(t *testing.T) {
	p := pager{view: view{watched: true, by: byWorst}, reading: reading{at: now, sets: troubled()}, keys: true}
	screen := func(width, height int) string {
		t.Helper()
		p.width, p.height = width, height
		frame := p.frame()
		if len(frame) != height {
			t.Errorf("%d × %d: the frame has %d lines", width, height, len(frame))
		}
		for _, l := range frame {
			if n := columns(l.paint(false)); n > width {
				t.Errorf("%d × %d: a line has %d columns: %s", width, height, n, l.paint(false))
			}
		}
		return paint(frame, false)
	}
	press := func(keys ...terminal.Key) {
		for _, k := range keys {
			if !p.press(k) {
				t.Errorf("%q ends it", k)
			}
		}
	}
	golden(t, "watch-80x24-first.txt", screen(80, 24))
	press(terminal.PageDown, terminal.Down, 'j', terminal.Up)
	golden(t, "watch-80x24-scrolled.txt", screen(80, 24))
	press('v', terminal.End)
	golden(t, "watch-80x24-last.txt", screen(80, 24))
	golden(t, "watch-200x50.txt", screen(200, 50))
	screen(20, 5)
	press('v', terminal.Home, 'k')
	if p.top != 0 {
		t.Errorf("above the first line: %d", p.top)
	}
	p.take(reading{at: now, err: errors.New("connection refused" + evil)})
	if got := screen(80, 24); !strings.HasPrefix(got, "can't read the status since 2030-01-02 03:04:05 UTC: connection refused") || !strings.Contains(got, "main: generation 7") {
		t.Errorf("after a reading that failed:\n%s", got)
	}
	if p.press('q') {
		t.Error("q does not end it")
	}
	got := draw([]line{text("one"), {{"two" + evil, red}}}, true)
	if want := "\x1b[Hone\x1b[K\r\n\x1b[31;1mtwo" + safe(evil) + "\x1b[0m\x1b[K\x1b[J"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Keys sort projections.
func TestSort(t *testing.T) {
	order := func(by sorting) string {
		s := troubled()[1]
		list := summaries(s)
		slices.SortStableFunc(list, view{by: by}.compare)
		var names []string
		for _, p := range list {
			names = append(names, strings.TrimSuffix(p.projection, evil))
		}
		return strings.Join(names, " ")
	}
	for by, want := range map[sorting]string{
		byWorst:  "search invoices totals mail 受注 calm",
		byName:   "calm invoices mail search totals 受注",
		byBehind: "mail search invoices 受注 calm totals",
		byParked: "mail search calm invoices totals 受注",
	} {
		if got := order(by); got != want {
			t.Errorf("by %s: got %s, want %s", by, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text  string
		width int
		want  []string
	}{
		{"", 10, []string{""}},
		{"one two three", 0, []string{"one two three"}},
		{"one two three", 7, []string{"one two", "three"}},
		{"one\ntwo", 7, []string{"one two"}},
		{"abcdefghij k", 4, []string{"abcd", "efgh", "ij k"}},
		{"受注受注", 5, []string{"受注", "受注"}},
		{"a\x1b[2Jb", 5, []string{`a\u00`, "1b[2J", "b"}}, // escaped before it is measured
	} {
		if diff := cmp.Diff(tt.want, wrap(tt.text, tt.width)); diff != "" {
			t.Errorf("%q, %d: -want +got:\n%s", tt.text, tt.width, diff)
		}
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
		if got := elapsed(d); got != want {
			t.Errorf("%d ns: %s, want %s", d, got, want)
		}
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
	later := troubled()[1]
	later.At = later.At.Add(time.Hour)
	if gist([]ops.ReplicaSetStatus{troubled()[1]}) != gist([]ops.ReplicaSetStatus{later}) {
		t.Error("the time alone is news")
	}
	later.Partitions[0].Position++
	if gist([]ops.ReplicaSetStatus{troubled()[1]}) == gist([]ops.ReplicaSetStatus{later}) {
		t.Error("a position that has moved is no news")
	}
}
