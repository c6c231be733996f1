package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(workerEnv); spec != "" {
		os.Exit(workerMain(spec))
	}
	os.Exit(m.Run())
}

func TestSummarize(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		name    string
		samples []float64
		want    summary
	}{
		{"nothing", nil, summary{}},
		{"one is everything", []float64{7}, summary{1, 7, 7, 7, 7, 7}},
		{"an even number: the mean of the two in the middle", []float64{4, 1, 2, 10}, summary{4, 3, 1, 10, 10, 10}},
		{"an odd number, out of order", []float64{9, 1, 5}, summary{3, 5, 1, 9, 9, 9}},
		{"percentiles are samples", hundred, summary{100, 50.5, 1, 90, 99, 100}},
	} {
		if diff := cmp.Diff(c.want, summarize(c.samples)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestRatio shows that a repetition is compared with the one that it took turns with.
func TestRatio(t *testing.T) {
	got := newRow("b", "ms", []float64{10, 40, 90}).to(newRow("a", "ms", []float64{10, 20, 30})).Ratio
	if diff := cmp.Diff(&summary{3, 2, 1, 3, 3, 3}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLedger shows that a ledger detects lost, repeated and reordered events.
func TestLedger(t *testing.T) {
	event := func(position, version int64) *orchestrator.Event {
		return &orchestrator.Event{GlobalPosition: position, AggregateID: "a3", AggregateVersion: version}
	}
	for _, c := range []struct {
		name   string
		events []*orchestrator.Event
		ok     bool
	}{
		{"all, and one beyond", []*orchestrator.Event{event(1, 1), event(2, 2), event(3, 3), event(9, 4)}, true},
		{"repeated", []*orchestrator.Event{event(1, 1), event(1, 1), event(2, 2)}, false},
		{"out of order", []*orchestrator.Event{event(2, 2), event(1, 1), event(3, 3)}, false},
		{"lost in the middle", []*orchestrator.Event{event(1, 1), event(3, 3)}, false},
		{"lost at the end", []*orchestrator.Event{event(1, 1), event(2, 2)}, false},
	} {
		l := newLedger(8, 3, 1)
		for _, e := range c.events {
			l.note(e)
		}
		if err := l.complete(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestRun runs one trial as a user does.
func TestRun(t *testing.T) {
	var out, progress bytes.Buffer
	if status := run([]string{"-quick", "-json", "-only", "scoped"}, &out, &progress); status != 0 {
		t.Fatalf("exit status %d: %s", status, &progress)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	if len(r.Rows) != 2 || r.Rows[1].Ratio == nil || r.Rows[1].Ratio.Median <= 0 {
		t.Errorf("want a floor and a row that is compared with it, got %+v", r.Rows)
	}
}

// TestFleet runs a trial with workers in processes of their own, which join and leave, and
// checks their effects.
func TestFleet(t *testing.T) {
	server, err := embedpg.Start(t.Context(), embedpg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	b := &bench{server: server, options: options{quick: true}}
	if _, err := b.machine(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer b.close(context.Background())
	rows, err := rebalance{workers: 2, processes: true, load: true, heartbeat: 50 * time.Millisecond}.run(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || rows[1].Value.N < 2 || rows[1].Value.Low <= 0 {
		t.Errorf("want a floor and at least two changes, got %+v", rows)
	}
}

// TestRoundTrips shows that each kind of change is measured and compared with a bare round trip,
// which takes at least the delay of its packets.
func TestRoundTrips(t *testing.T) {
	server, err := embedpg.Start(t.Context(), embedpg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	b := &bench{server: server}
	defer b.close(context.Background())
	rows, err := roundtripsOf(t.Context(), b, 2, 1, []change{joining, leaving})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 3 || rows[0].Value.Low < 2 {
		t.Fatalf("want a floor of 2 ms at least, a join and a leave, got %+v", rows)
	}
	for _, r := range rows[1:] {
		if r.Ratio == nil || r.Ratio.Median <= 1 {
			t.Errorf("want more than one round trip, got %+v", r)
		}
	}
}

// TestTraceChange shows that a time line covers each change from its start to its end.
func TestTraceChange(t *testing.T) {
	var out, errs bytes.Buffer
	if status := run([]string{"-trace-change", "1ms"}, &out, &errs); status != 0 {
		t.Fatalf("exit status %d: %s", status, &errs)
	}
	for _, want := range []string{"== join:", "calls Run", "orchestrator_workers", "hears ", "== leave:", "is told to leave", "handles an event", "== join-cold:", "(connect)"} {
		if !bytes.Contains(out.Bytes(), []byte(want)) {
			t.Errorf("%q is missing in:\n%.3000s", want, &out)
		}
	}
}

// TestCharts shows that charts are well-formed and contain each requested row.
func TestCharts(t *testing.T) {
	floor := newRow("throughput/floor", eventsPerSecond, []float64{100})
	folder := t.TempDir()
	r := &result{Rows: []row{
		floor, newRow("throughput/library-1000", eventsPerSecond, []float64{90}).to(floor).goal("≥ 0.9", true),
		newRow("rebalance-2", milliseconds, []float64{5, 6, 40}), newRow("rebalance-10", milliseconds, []float64{9, 70}),
		newRow("failover", milliseconds, []float64{2000}),
	}}
	if err := r.charts(folder); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"throughput": "throughput/library-1000", "rebalance": "rebalance-10", "workers": "polyline", "failover": "failover",
	} {
		text, err := os.ReadFile(filepath.Join(folder, name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		checkXML(t, name, text)
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s does not show %s", name, want)
		}
	}
}

func checkXML(t *testing.T, name string, text []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		why    string
	}{
		{[]string{"-list"}, 0, "the list"},
		{[]string{"-h"}, 0, "the help"},
		{[]string{"-only", "nonsense"}, 2, "nothing would be measured"},
		{[]string{"-trace-change", "far"}, 2, "a round trip that is no time"},
		{[]string{"throughput"}, 2, "an argument that is none"},
	} {
		if got := run(c.args, io.Discard, io.Discard); got != c.status {
			t.Errorf("%s: bench %v has exit status %d, want %d", c.why, c.args, got, c.status)
		}
	}
}

// TestMarks shows that there is one mark for each partition.
func TestMarks(t *testing.T) {
	for _, n := range []int{1, 2, 10, 200} {
		chosen := map[int]bool{}
		for _, m := range marks(n) {
			if m <= 0 || m >= aggregateMax {
				t.Fatalf("%d partitions: aggregate %d", n, m)
			}
			chosen[m] = true
		}
		if len(chosen) != n {
			t.Errorf("%d partitions have %d aggregates", n, len(chosen))
		}
	}
}
