package prometheus

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

func source(set orchestrator.ReplicaSetName, worker string) orchestrator.Source {
	return orchestrator.Source{ReplicaSet: set, Worker: worker, At: time.Unix(1, 0)}
}

// report returns the report of a worker that runs one projection on some partitions.
func report(worker string, generation int64, total int, partitions ...int) orchestrator.WorkerReport {
	r := orchestrator.WorkerReport{Source: source("main", worker), State: "running", Generation: generation, Partitions: partitions}
	if len(partitions) == 0 {
		r.State = "standby"
	}
	for _, k := range partitions {
		r.Lanes = append(r.Lanes, orchestrator.LaneReport{
			Projection: "orders", Partition: k, TotalPartitions: total, Behind: 10 * generation, State: "handling"})
	}
	return r
}

// compare checks the metrics with these names, given without the prefix.
func compare(t *testing.T, c *Collector, names, want string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	var full []string
	for _, n := range strings.Fields(names) {
		full = append(full, name(n))
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), full...); err != nil {
		t.Error(err)
	}
}

// lanes returns lag_events as "partition=value …".
func lanes(t *testing.T, c *Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range families {
		if f.GetName() != name("lag_events") {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "partition" {
					found = append(found, l.GetValue()+"="+strconv.FormatFloat(m.GetGauge().GetValue(), 'f', -1, 64))
				}
			}
		}
	}
	return strings.Join(found, " ")
}

func TestLanesThatAreNotRunAnyMoreAreGone(t *testing.T) {
	c := NewCollector()
	o := c.Observer()
	check := func(what, want string) {
		t.Helper()
		if got := lanes(t, c); got != want {
			t.Errorf("%s: lag_events is %q, want %q", what, got, want)
		}
	}

	o.Reported(report("w1", 1, 2, 0, 1))
	check("one worker", "0=10 1=10")

	o.Reported(report("w1", 2, 2, 0))
	check("after a re-partition", "0=20")

	// The second worker starts partition 0 before its former worker reports again. The same
	// series twice would fail the whole scrape.
	o.Reported(report("w2", 3, 2, 0))
	check("two reports of one lane", "0=30")
	o.Reported(report("w1", 3, 2, 1))
	check("the first one again", "0=30 1=30")

	o.Reported(report("w1~2", 4, 2, 1))
	check("a new incarnation", "0=30 1=40")
	o.Reported(report("w1~2", 5, 1))
	check("a standby", "0=30")

	o.WorkerLeft(orchestrator.WorkerLeft{Source: source("main", "w2")})
	check("one has left", "")
	o.WorkerLeft(orchestrator.WorkerLeft{Source: source("main", "w1~2")})
	compare(t, c, "workers worker_state current_generation_partitions crash_detection_off gap_open_seconds lag_seconds stalled beyond_end events_parked paused_seconds rebuild", "")
}

func TestGauges(t *testing.T) {
	c := NewCollector()
	o := c.Observer()
	r := report("w1", 4, 3, 0, 2)
	r.Lanes[0].BehindSeconds, r.Lanes[0].Stalled, r.Lanes[0].Parked = 1.5, true, 2
	r.Lanes[0].ParkedSeconds, r.Lanes[1].ParkedSeconds = 7, 30
	r.Lanes[1].Behind, r.Lanes[1].Parked = -1, 3
	o.Reported(r)
	o.Reported(report("w2", 0, 0))
	joining := report("w3", 3, 5, 1) // it has lost its lease
	joining.State = "joining"
	o.Reported(joining)
	other := report("w1", 7, 1, 0) // another set in the same process
	other.ReplicaSet, other.Lanes[0].Projection = "reports", "search"
	o.Reported(other)

	compare(t, c, "workers worker_state current_generation_partitions lag_events lag_seconds stalled events_parked events_parked_oldest_seconds", `
# HELP pupsourcing_orchestrator_current_generation_partitions Partitions of the newest generation that a worker of this process runs. Absent if none runs.
# TYPE pupsourcing_orchestrator_current_generation_partitions gauge
pupsourcing_orchestrator_current_generation_partitions{replica_set="main"} 3
pupsourcing_orchestrator_current_generation_partitions{replica_set="reports"} 1
# HELP pupsourcing_orchestrator_events_parked Parked events (dead-letter queue) in the partitions that this process has.
# TYPE pupsourcing_orchestrator_events_parked gauge
pupsourcing_orchestrator_events_parked{projection="orders",replica_set="main"} 5
pupsourcing_orchestrator_events_parked{projection="search",replica_set="reports"} 0
# HELP pupsourcing_orchestrator_events_parked_oldest_seconds Age of the oldest parked event. 0: there is none.
# TYPE pupsourcing_orchestrator_events_parked_oldest_seconds gauge
pupsourcing_orchestrator_events_parked_oldest_seconds{projection="orders",replica_set="main"} 30
pupsourcing_orchestrator_events_parked_oldest_seconds{projection="search",replica_set="reports"} 0
# HELP pupsourcing_orchestrator_lag_events Positions of the stream that are left to read or to handle. About one in current_generation_partitions belongs to the partition. Absent while unknown.
# TYPE pupsourcing_orchestrator_lag_events gauge
pupsourcing_orchestrator_lag_events{partition="0",projection="orders",replica_set="main"} 40
pupsourcing_orchestrator_lag_events{partition="1",projection="orders",replica_set="main"} 30
pupsourcing_orchestrator_lag_events{partition="0",projection="search",replica_set="reports"} 70
# HELP pupsourcing_orchestrator_lag_seconds Age of the oldest event that is not handled.
# TYPE pupsourcing_orchestrator_lag_seconds gauge
pupsourcing_orchestrator_lag_seconds{partition="0",projection="orders",replica_set="main"} 1.5
pupsourcing_orchestrator_lag_seconds{partition="1",projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_lag_seconds{partition="2",projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_lag_seconds{partition="0",projection="search",replica_set="reports"} 0
# HELP pupsourcing_orchestrator_stalled 1 if there are events to read and the partition has made no progress for Config.StallAfter, else 0.
# TYPE pupsourcing_orchestrator_stalled gauge
pupsourcing_orchestrator_stalled{partition="0",projection="orders",replica_set="main"} 1
pupsourcing_orchestrator_stalled{partition="1",projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_stalled{partition="2",projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_stalled{partition="0",projection="search",replica_set="reports"} 0
# HELP pupsourcing_orchestrator_worker_state Workers of this process in each state: joining, standby, waiting, running, draining or suspended.
# TYPE pupsourcing_orchestrator_worker_state gauge
pupsourcing_orchestrator_worker_state{replica_set="main",state="draining"} 0
pupsourcing_orchestrator_worker_state{replica_set="main",state="joining"} 1
pupsourcing_orchestrator_worker_state{replica_set="main",state="running"} 1
pupsourcing_orchestrator_worker_state{replica_set="main",state="standby"} 1
pupsourcing_orchestrator_worker_state{replica_set="main",state="suspended"} 0
pupsourcing_orchestrator_worker_state{replica_set="main",state="waiting"} 0
pupsourcing_orchestrator_worker_state{replica_set="reports",state="draining"} 0
pupsourcing_orchestrator_worker_state{replica_set="reports",state="joining"} 0
pupsourcing_orchestrator_worker_state{replica_set="reports",state="running"} 1
pupsourcing_orchestrator_worker_state{replica_set="reports",state="standby"} 0
pupsourcing_orchestrator_worker_state{replica_set="reports",state="suspended"} 0
pupsourcing_orchestrator_worker_state{replica_set="reports",state="waiting"} 0
# HELP pupsourcing_orchestrator_workers Workers of this process that are members of the replica set.
# TYPE pupsourcing_orchestrator_workers gauge
pupsourcing_orchestrator_workers{replica_set="main"} 2
pupsourcing_orchestrator_workers{replica_set="reports"} 1
`)
}

// What stands still by order, for a transaction, or beyond the end of the stream; and whose
// crash would be noticed late.
func TestGaugesOfWhatIsNotRight(t *testing.T) {
	c := NewCollector()
	o := c.Observer()
	r := report("w1", 4, 3, 0, 2)
	r.LeaseOnly = "the pool has no connection to spare for it"
	r.Gap = &orchestrator.GapReport{Position: 12, Since: r.At.Add(-40 * time.Second)}
	paused := orchestrator.LaneReport{Projection: "search", TotalPartitions: 3, State: orchestrator.LanePaused, Since: r.At.Add(-time.Hour), Behind: 70, BehindSeconds: 5, Parked: 2, ParkedSeconds: 9}
	r.Lanes[0].State = orchestrator.LaneBeyond
	r.Lanes[1].Rebuild = true
	r.Lanes = append(r.Lanes, paused)
	o.Reported(r)
	also := report("w2", 4, 3)
	also.Gap = &orchestrator.GapReport{Position: 12, Since: r.At.Add(-50 * time.Second)}
	paused.Partition, paused.Since = 1, r.At.Add(time.Second) // by a clock that is ahead
	also.Lanes = append(also.Lanes, paused)
	o.Reported(also)
	ahead := report("w1", 1, 1)
	ahead.ReplicaSet, ahead.Lanes = "reports", []orchestrator.LaneReport{paused}
	o.Reported(ahead)
	compare(t, c, "crash_detection_off gap_open_seconds paused_seconds rebuild beyond_end events_parked events_parked_oldest_seconds lag_events lag_seconds current_generation_partitions", `
# HELP pupsourcing_orchestrator_beyond_end 1 if the partition stands beyond the end of the event stream, so that new events up to its position count as handled, else 0.
# TYPE pupsourcing_orchestrator_beyond_end gauge
pupsourcing_orchestrator_beyond_end{partition="0",projection="orders",replica_set="main"} 1
pupsourcing_orchestrator_beyond_end{partition="0",projection="search",replica_set="main"} 0
pupsourcing_orchestrator_beyond_end{partition="1",projection="search",replica_set="main"} 0
pupsourcing_orchestrator_beyond_end{partition="1",projection="search",replica_set="reports"} 0
pupsourcing_orchestrator_beyond_end{partition="2",projection="orders",replica_set="main"} 0
# HELP pupsourcing_orchestrator_crash_detection_off Workers of this process whose crash is noticed only when their lease ends, although Config.LeaseOnly is not set. The log has the reason: fast crash detection is off.
# TYPE pupsourcing_orchestrator_crash_detection_off gauge
pupsourcing_orchestrator_crash_detection_off{replica_set="main"} 1
pupsourcing_orchestrator_crash_detection_off{replica_set="reports"} 0
# HELP pupsourcing_orchestrator_current_generation_partitions Partitions of the newest generation that a worker of this process runs. Absent if none runs.
# TYPE pupsourcing_orchestrator_current_generation_partitions gauge
pupsourcing_orchestrator_current_generation_partitions{replica_set="main"} 3
pupsourcing_orchestrator_current_generation_partitions{replica_set="reports"} 3
# HELP pupsourcing_orchestrator_events_parked Parked events (dead-letter queue) in the partitions that this process has.
# TYPE pupsourcing_orchestrator_events_parked gauge
pupsourcing_orchestrator_events_parked{projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_events_parked{projection="search",replica_set="main"} 4
pupsourcing_orchestrator_events_parked{projection="search",replica_set="reports"} 2
# HELP pupsourcing_orchestrator_events_parked_oldest_seconds Age of the oldest parked event. 0: there is none.
# TYPE pupsourcing_orchestrator_events_parked_oldest_seconds gauge
pupsourcing_orchestrator_events_parked_oldest_seconds{projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_events_parked_oldest_seconds{projection="search",replica_set="main"} 9
pupsourcing_orchestrator_events_parked_oldest_seconds{projection="search",replica_set="reports"} 9
# HELP pupsourcing_orchestrator_gap_open_seconds How long readers of this process have waited at a missing position that an open transaction may still fill. 0: they do not wait.
# TYPE pupsourcing_orchestrator_gap_open_seconds gauge
pupsourcing_orchestrator_gap_open_seconds{replica_set="main"} 50
pupsourcing_orchestrator_gap_open_seconds{replica_set="reports"} 0
# HELP pupsourcing_orchestrator_lag_events Positions of the stream that are left to read or to handle. About one in current_generation_partitions belongs to the partition. Absent while unknown.
# TYPE pupsourcing_orchestrator_lag_events gauge
pupsourcing_orchestrator_lag_events{partition="0",projection="orders",replica_set="main"} 40
pupsourcing_orchestrator_lag_events{partition="0",projection="search",replica_set="main"} 70
pupsourcing_orchestrator_lag_events{partition="1",projection="search",replica_set="main"} 70
pupsourcing_orchestrator_lag_events{partition="1",projection="search",replica_set="reports"} 70
pupsourcing_orchestrator_lag_events{partition="2",projection="orders",replica_set="main"} 40
# HELP pupsourcing_orchestrator_lag_seconds Age of the oldest event that is not handled.
# TYPE pupsourcing_orchestrator_lag_seconds gauge
pupsourcing_orchestrator_lag_seconds{partition="0",projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_lag_seconds{partition="0",projection="search",replica_set="main"} 5
pupsourcing_orchestrator_lag_seconds{partition="1",projection="search",replica_set="main"} 5
pupsourcing_orchestrator_lag_seconds{partition="1",projection="search",replica_set="reports"} 5
pupsourcing_orchestrator_lag_seconds{partition="2",projection="orders",replica_set="main"} 0
# HELP pupsourcing_orchestrator_paused_seconds How long the projection has been paused by an order. 0: it is not paused.
# TYPE pupsourcing_orchestrator_paused_seconds gauge
pupsourcing_orchestrator_paused_seconds{projection="orders",replica_set="main"} 0
pupsourcing_orchestrator_paused_seconds{projection="search",replica_set="main"} 3600
pupsourcing_orchestrator_paused_seconds{projection="search",replica_set="reports"} 0.001
# HELP pupsourcing_orchestrator_rebuild 1 if another version of the projection is the live one (WithRebuildOf), else 0.
# TYPE pupsourcing_orchestrator_rebuild gauge
pupsourcing_orchestrator_rebuild{projection="orders",replica_set="main"} 1
pupsourcing_orchestrator_rebuild{projection="search",replica_set="main"} 0
pupsourcing_orchestrator_rebuild{projection="search",replica_set="reports"} 0
`)
}

// A counter that first appears as 1 has not increased, to Prometheus.
func TestFailuresAreCountedFromZero(t *testing.T) {
	c := NewCollector()
	o := c.Observer()
	o.WorkerJoined(orchestrator.WorkerJoined{Source: source("main", "w1")})
	o.Reported(report("w1", 1, 1, 0))
	for names, want := range map[string]int{
		"coordination_timeouts_total heartbeat_failures_total stale_workers_total projection_errors_total fenced_commits_total " +
			"events_processed_total events_skipped_total observer_dropped_total": 8,
		"generations_total": 2,
	} {
		for _, n := range strings.Fields(names) {
			want -= testutil.CollectAndCount(c, name(n))
		}
		if want != 0 {
			t.Errorf("%d series of %s are missing", want, names)
		}
	}
}

// Labels have bounded values: restarts, errors, orders and positions add no series.
func TestSeriesAreBounded(t *testing.T) {
	c := NewCollector()
	feed(c.Observer(), "w1", "rewind of orders to 1", errors.New("first"))
	want := testutil.CollectAndCount(c)
	c.Observer().WorkerLeft(orchestrator.WorkerLeft{Source: source("main", "w1")})
	feed(c.Observer(), "w2", "rewind of orders to 2", errors.New("second"))
	if got := testutil.CollectAndCount(c); got != want {
		t.Errorf("%d series, were %d", got, want)
	}
}

// Each worker calls the observer on a goroutine of its own, and scrapes come at any time.
func TestWorkersAtTheSameTime(t *testing.T) {
	c := NewCollector()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	var busy sync.WaitGroup
	for _, w := range []string{"w1", "w2", "w3"} {
		busy.Go(func() {
			for range 100 {
				feed(c.Observer(), w, "1 joined", errors.New("failed"))
				c.Observer().WorkerLeft(orchestrator.WorkerLeft{Source: source("main", w)})
			}
		})
	}
	for range 50 {
		if _, err := registry.Gather(); err != nil {
			t.Error(err)
		}
	}
	busy.Wait()
	if got := testutil.ToFloat64(c.processed.WithLabelValues("main", "orders")); got != 300*7 {
		t.Errorf("%v events counted, want %d", got, 300*7)
	}
}

// feed makes everything happen once.
func feed(o *orchestrator.Observer, worker, reason string, err error) {
	s := source("main", worker)
	lane := orchestrator.Lane{Projection: "orders", Generation: 1, Partition: 0, TotalPartitions: 2}
	o.WorkerJoined(orchestrator.WorkerJoined{Source: s})
	o.GenerationActivated(orchestrator.GenerationActivated{Source: s, Generation: 1, Reason: reason, Duration: 30 * time.Millisecond})
	o.Heartbeat(orchestrator.Heartbeat{Source: s, Latency: 2 * time.Millisecond})
	o.Heartbeat(orchestrator.Heartbeat{Source: s, Latency: time.Second, Err: err})
	o.BatchCommitted(orchestrator.BatchCommitted{Source: s, Lane: lane, Events: 7, Skipped: 5, Position: 12, Duration: 20 * time.Millisecond})
	o.HandlerFailed(orchestrator.HandlerFailed{Source: s, Lane: lane, Err: err})
	o.CommitRefused(orchestrator.CommitRefused{Source: s, Lane: lane})
	o.WorkerExpired(orchestrator.WorkerExpired{Source: s, Expired: "w9"})
	o.CoordinationTimeout(orchestrator.CoordinationTimeout{Source: s})
	o.Reported(report(worker, 1, 2, 0))
	o.Dropped(1)
}
