package orchestratorotel

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// failing is a MeterProvider whose meters create no histograms.
type failing struct{ metric.MeterProvider }

func (f failing) Meter(name string, options ...metric.MeterOption) metric.Meter {
	return failingMeter{f.MeterProvider.Meter(name, options...)}
}

type failingMeter struct{ metric.Meter }

func (failingMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errNoSuchThing
}

func source(set orchestrator.ReplicaSetName, worker string) orchestrator.Source {
	return orchestrator.Source{ReplicaSet: set, Worker: worker, At: time.Unix(1, 0)}
}

// report returns the report of a worker that runs one projection on some partitions.
func report(worker string, generation int64, total int, partitions ...int) orchestrator.WorkerReport {
	r := orchestrator.WorkerReport{Source: source("main", worker), State: orchestrator.WorkerRunning, Generation: generation, Partitions: partitions}
	if len(partitions) == 0 {
		r.State = orchestrator.WorkerStandby
	}
	for _, k := range partitions {
		r.Lanes = append(r.Lanes, orchestrator.LaneReport{Projection: "orders", Partition: k, TotalPartitions: total, Behind: 10 * generation})
	}
	return r
}

// gaugesOf returns the gauges, without the prefix and with short labels.
func (r *recorder) gaugesOf(names ...string) map[string]string {
	short := strings.NewReplacer("messaging.consumer.group.name=", "", "messaging.destination.partition.id=", "", prefix+"projection=", "", prefix+"state=", "")
	found, all := map[string]string{}, r.collect()
	for _, name := range names {
		for rest, value := range only(all, prefix+name+"{") {
			found[short.Replace(name+" "+strings.TrimSuffix(rest, "}"))] = value
		}
	}
	return found
}

func (r *recorder) said(what string, want map[string]string, names ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.gaugesOf(names...)); diff != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestGauges(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	o := r.Observer()
	one := report("w1", 4, 3, 0, 2)
	one.Lanes[0].BehindSeconds, one.Lanes[0].Stalled, one.Lanes[0].Parked = 1.5, true, 2
	one.Lanes[0].ParkedSeconds, one.Lanes[1].ParkedSeconds = 7, 30
	one.Lanes[1].Behind, one.Lanes[1].Parked = -1, 3
	o.Reported(one)
	o.Reported(report("w2", 0, 0))
	joining := report("w3", 3, 5, 1) // it has lost its lease
	joining.State = orchestrator.WorkerJoining
	o.Reported(joining)
	other := report("w1", 7, 1, 0) // another set in the same process
	other.ReplicaSet, other.Lanes[0].Projection = "reports", "search"
	o.Reported(other)
	idle := report("w1", 0, 0) // and a standby of a third set
	idle.ReplicaSet = "idle"
	o.Reported(idle)
	r.said("the reports", map[string]string{
		"workers idle": "1", "worker_state idle joining": "0", "worker_state idle standby": "1", "worker_state idle waiting": "0",
		"worker_state idle running": "0", "worker_state idle draining": "0", "worker_state idle suspended": "0",
		"workers main": "2", "workers reports": "1",
		"worker_state main joining": "1", "worker_state main standby": "1", "worker_state main waiting": "0",
		"worker_state main running": "1", "worker_state main draining": "0", "worker_state main suspended": "0",
		"worker_state reports joining": "0", "worker_state reports standby": "0", "worker_state reports waiting": "0",
		"worker_state reports running": "1", "worker_state reports draining": "0", "worker_state reports suspended": "0",
		"generation main": "4", "generation reports": "7",
		"current_generation_partitions main": "3", "current_generation_partitions reports": "1",
		"events_parked main orders": "5", "events_parked reports search": "0",
		"events_parked_oldest main orders": "30", "events_parked_oldest reports search": "0",
		"lag_events main 0 orders": "40", "lag_events main 1 orders": "30", "lag_events reports 0 search": "70",
		"lag main 0 orders": "1.5", "lag main 1 orders": "0", "lag main 2 orders": "0", "lag reports 0 search": "0",
		"stalled main 0 orders": "1", "stalled main 1 orders": "0", "stalled main 2 orders": "0", "stalled reports 0 search": "0",
	}, "workers", "worker_state", "generation", "current_generation_partitions", "events_parked", "events_parked_oldest", "lag_events", "lag", "stalled")
}

// What stands still by order, for a transaction, or beyond the end of the stream; and whose
// crash would be noticed late.
func TestGaugesOfWhatIsNotRight(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	one := report("w1", 4, 3, 0, 2)
	one.LeaseOnly = "the pool has no connection to spare for it"
	one.Gap = &orchestrator.GapReport{Position: 12, Since: one.At.Add(-40 * time.Second)}
	one.Lanes[0].State, one.Lanes[1].Rebuild = orchestrator.LaneBeyond, true
	one.Lanes = append(one.Lanes, orchestrator.LaneReport{Projection: "search", Partition: 1, TotalPartitions: 3,
		State: orchestrator.LanePaused, Since: one.At.Add(-time.Hour), Behind: 70, BehindSeconds: 5, Parked: 2, ParkedSeconds: 9})
	r.Observer().Reported(one)
	r.said("the report", map[string]string{
		"crash_detection_off main": "1", "gap_open main": "40", "current_generation_partitions main": "3",
		"beyond_end main 0 orders": "1", "beyond_end main 2 orders": "0", "beyond_end main 1 search": "0",
		"paused main orders": "0", "paused main search": "3600", "rebuild main orders": "1", "rebuild main search": "0",
		"events_parked main orders": "0", "events_parked main search": "2",
		"lag_events main 0 orders": "40", "lag_events main 2 orders": "40", "lag_events main 1 search": "70",
	}, "crash_detection_off", "gap_open", "current_generation_partitions", "beyond_end", "paused", "rebuild", "events_parked", "lag_events")
}

// Partitions that run no more have no values. If two workers report a partition, the newer
// generation counts.
func TestGaugesOfEndedPartitions(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	o := r.Observer()
	lag := func(what string, want map[string]string) { t.Helper(); r.said(what, want, "lag_events") }

	o.Reported(report("w1", 1, 2, 0, 1))
	lag("one worker", map[string]string{"lag_events main 0 orders": "10", "lag_events main 1 orders": "10"})
	o.Reported(report("w2", 3, 2, 0))
	lag("two reports of one partition", map[string]string{"lag_events main 0 orders": "30", "lag_events main 1 orders": "10"})
	o.Reported(report("w1~2", 4, 2, 1))
	lag("a new incarnation", map[string]string{"lag_events main 0 orders": "30", "lag_events main 1 orders": "40"})
	o.WorkerLeft(orchestrator.WorkerLeft{Source: source("main", "w2")})
	lag("one has left", map[string]string{"lag_events main 1 orders": "40"})
	o.WorkerLeft(orchestrator.WorkerLeft{Source: source("main", "w1~2")})
	r.said("all have left", map[string]string{}, "workers", "worker_state", "generation", "lag_events", "lag", "stalled", "events_parked")
}

// The metrics of a worker that runs against PostgreSQL.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	w.Append(40)
	var failed atomic.Bool
	running := testworld.Run(t, r.configure(w), testworld.Effects{Projection: "orders", Hook: func(context.Context, orchestrator.Event) error {
		if !failed.Swap(true) {
			return errors.New("not yet")
		}
		return nil
	}}.Batched())
	pgtest.Eventually(t, "all is handled, and that is reported", func() bool {
		all := r.collect()
		return all[prefix+"events_processed{messaging.consumer.group.name=set pupsourcing.orchestrator.projection=orders}"] == "40" &&
			all[prefix+"lag_events{messaging.consumer.group.name=set messaging.destination.partition.id=0 pupsourcing.orchestrator.projection=orders}"] == "0"
	})
	const set, of = "{messaging.consumer.group.name=set}", "{messaging.consumer.group.name=set pupsourcing.orchestrator.projection=orders}"
	all := r.collect()
	for name, want := range map[string]string{
		"events_skipped" + of: "0", "projection_errors" + of: "1", "fenced_commits" + of: "0",
		"generations{messaging.consumer.group.name=set pupsourcing.orchestrator.reason=first worker}": "1",
		"generations{messaging.consumer.group.name=set pupsourcing.orchestrator.reason=joined}":       "0",
		"coordination_duration" + set: "1", "coordination_timeouts" + set: "0", "stale_workers" + set: "0", "heartbeat_failures" + set: "0",
		"workers" + set: "1", "current_generation_partitions" + set: "1",
	} {
		if got := all[prefix+name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"batch_duration" + of, "heartbeat_latency" + set} {
		if got := all[prefix+name]; got == "" || got == "0" {
			t.Errorf("%s has %q", name, got)
		}
	}
	// The failed call had all events. After that the batch was halved.
	if got := only(all, "messaging.client.consumed.messages{error.type=*errors.errorString "); len(got) != 1 {
		t.Errorf("failed calls: %v", got)
	}
	running.Stop()
	if left := r.gaugesOf("workers", "generation", "lag"); len(left) != 0 {
		t.Errorf("of a worker that has left, there is still %v", left)
	}
}

// tellAll calls all functions of an Observer.
func tellAll(o *orchestrator.Observer) {
	s, l := source("main", "w1"), orchestrator.Lane{Projection: "orders"}
	o.GenerationActivated(orchestrator.GenerationActivated{Source: s, Reason: "1 joined"})
	o.GenerationActivated(orchestrator.GenerationActivated{Source: s, Reason: "pause of orders"})
	o.WorkerJoined(orchestrator.WorkerJoined{Source: s})
	o.WorkerExpired(orchestrator.WorkerExpired{Source: s})
	o.Heartbeat(orchestrator.Heartbeat{Source: s})
	o.Heartbeat(orchestrator.Heartbeat{Source: s, Err: errNoSuchThing})
	o.CoordinationTimeout(orchestrator.CoordinationTimeout{Source: s})
	o.BatchCommitted(orchestrator.BatchCommitted{Source: s, Lane: l, Events: 3, Skipped: 4})
	o.CommitRefused(orchestrator.CommitRefused{Source: s, Lane: l})
	o.HandlerFailed(orchestrator.HandlerFailed{Source: s, Lane: l})
	o.Reported(report("w1", 1, 1, 0))
	o.Dropped(5)
}

func TestCounters(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	tellAll(r.Observer())
	const set, of = "{messaging.consumer.group.name=main}", "{messaging.consumer.group.name=main pupsourcing.orchestrator.projection=orders}"
	got := r.collect()
	for name, want := range map[string]string{
		"generations{messaging.consumer.group.name=main pupsourcing.orchestrator.reason=joined}": "1",
		"generations{messaging.consumer.group.name=main pupsourcing.orchestrator.reason=gone}":   "0",
		"generations{messaging.consumer.group.name=main pupsourcing.orchestrator.reason=pause}":  "1",
		"coordination_duration" + set: "2", "coordination_timeouts" + set: "1", "stale_workers" + set: "1",
		"heartbeat_latency" + set: "1", "heartbeat_failures" + set: "1",
		"events_processed" + of: "3", "events_skipped" + of: "4", "batch_duration" + of: "1",
		"fenced_commits" + of: "1", "projection_errors" + of: "1", "observer_dropped{}": "5",
	} {
		if got[prefix+name] != want {
			t.Errorf("%s is %q, want %q", name, got[prefix+name], want)
		}
	}
}

// Exported to Prometheus, metrics have the names of the module prometheus. The README lists all
// metrics.
func TestNames(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	tellAll(r.Observer())
	_ = r.Around()(t.Context(), orchestrator.Delivery{Projection: "orders", Events: 1}, func(context.Context) error { return nil })
	var exported, names []string
	for name, m := range r.metricsByName() {
		names = append(names, strings.TrimPrefix(name, prefix))
		name, ok := strings.CutPrefix(name, prefix)
		if !ok || name == "generation" { // the module prometheus does not have these
			continue
		}
		if m.Unit == "s" {
			name += "_seconds"
		}
		if _, counts := m.Data.(metricdata.Sum[int64]); counts {
			name += "_total"
		}
		exported = append(exported, name)
	}
	if diff := cmp.Diff(sorted(documented(t, "../prometheus/README.md")), sorted(exported)); diff != "" {
		t.Errorf("names in Prometheus (-module prometheus +here):\n%s", diff)
	}
	if diff := cmp.Diff(sorted(documented(t, "README.md")), sorted(names)); diff != "" {
		t.Errorf("names (-README +here):\n%s", diff)
	}
}

// documented returns the names in the first column of the table of metrics.
func documented(t *testing.T, file string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Metrics\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|").FindAllStringSubmatch(section, -1) {
		names = append(names, match[1])
	}
	return names
}

// The program in the README is the example.
func TestProgram(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(readme), "```go\n")
	program, _, _ = strings.Cut(program, "```\n")
	want := strings.NewReplacer("package orchestratorotel_test", "package main", "func Example()", "func main()").Replace(string(example))
	if diff := cmp.Diff(want, program); diff != "" {
		t.Errorf("the program (-example +README):\n%s", diff)
	}
}

func TestReason(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"first worker": "first worker", "2 joined": "joined", "1 joined, 3 gone": "joined,gone",
		"1 above MaxPartitions": "above MaxPartitions", "rewind of orders": "rewind",
		"w1 joined": "other", "": "other", "something of orders": "other",
	} {
		if got := reason(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}
