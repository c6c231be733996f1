// Package prometheus exports metrics of a process's workers to Prometheus. The folder also
// contains alert rules and a Grafana dashboard.
//
//	metrics := orchestratorprometheus.NewCollector()
//	prometheus.MustRegister(metrics)
//	cfg.Observer = metrics.Observer()
//
// The rules:
//
//   - One Collector serves all Orchestrators and replica sets of a process. Register it once.
//   - All names start with pupsourcing_orchestrator_. The README lists them.
//   - Counters and histograms are updated as things happen. Gauges show the workers' latest
//     reports, which are at most about a HeartbeatInterval old.
//   - A worker knows only itself. Sum over processes to get values of a replica set: each
//     generation is counted by the worker that activated it, and each partition by the worker
//     that has it.
//   - Labels are bounded. replica_set and projection come from the program, reason and state
//     from fixed lists. partition is only on lag_events, lag_seconds, stalled and beyond_end, for
//     the partitions that the process has. No label contains a worker, a position or an error.
//   - A paused projection keeps its series.
package prometheus

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Collector is a prometheus.Collector with the metrics of all Orchestrators of a process that
// have its Observer. Create it with NewCollector, and register it once.
type Collector struct {
	counters []prometheus.Collector

	generations *prometheus.CounterVec   // replica_set, reason
	took        *prometheus.HistogramVec // replica_set
	timeouts    *prometheus.CounterVec
	stale       *prometheus.CounterVec
	beats       *prometheus.HistogramVec
	missedBeats *prometheus.CounterVec
	processed   *prometheus.CounterVec // replica_set, projection
	skipped     *prometheus.CounterVec
	failures    *prometheus.CounterVec
	fenced      *prometheus.CounterVec
	batches     *prometheus.HistogramVec
	dropped     prometheus.Counter

	mu      sync.Mutex
	reports map[worker]orchestrator.WorkerReport // the latest of each worker
}

var (
	perSet        = []string{"replica_set"}
	perProjection = []string{"replica_set", "projection"}
	perPartition  = []string{"replica_set", "projection", "partition"}
)

// Gauges, which come from the workers' reports.
var (
	workers = gauge("workers", "Workers of this process that are members of the replica set.", perSet)
	state   = gauge("worker_state", "Workers of this process in each state: joining, standby, waiting, running, draining or suspended.",
		[]string{"replica_set", "state"})
	partitions = gauge("current_generation_partitions",
		"Partitions of the newest generation that a worker of this process runs. Absent if none runs.", perSet)
	leaseOnly = gauge("crash_detection_off",
		"Workers of this process whose crash is noticed only when their lease ends, although Config.LeaseOnly is not set. The log has the reason: fast crash detection is off.", perSet)
	gap     = gauge("gap_open_seconds", "How long readers of this process have waited at a missing position that an open transaction may still fill. 0: they do not wait.", perSet)
	parked  = gauge("events_parked", "Parked events (dead-letter queue) in the partitions that this process has.", perProjection)
	oldest  = gauge("events_parked_oldest_seconds", "Age of the oldest parked event. 0: there is none.", perProjection)
	paused  = gauge("paused_seconds", "How long the projection has been paused by an order. 0: it is not paused.", perProjection)
	rebuild = gauge("rebuild", "1 if another version of the projection is the live one (WithRebuildOf), else 0.", perProjection)
	lag     = gauge("lag_events",
		"Positions of the stream that are left to read or to handle. About one in current_generation_partitions belongs to the partition. Absent while unknown.", perPartition)
	seconds = gauge("lag_seconds", "Age of the oldest event that is not handled.", perPartition)
	stalled = gauge("stalled", "1 if there are events to read and the partition has made no progress for Config.StallAfter, else 0.", perPartition)
	beyond  = gauge("beyond_end", "1 if the partition stands beyond the end of the event stream, so that new events up to its position count as handled, else 0.", perPartition)
)

var states = []string{"joining", "standby", "waiting", "running", "draining", "suspended"}

func name(of string) string { return prometheus.BuildFQName("pupsourcing", "orchestrator", of) }

func gauge(of, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc(name(of), help, labels, nil)
}

// NewCollector returns a Collector. Register it, and set Config.Observer to its Observer.
func NewCollector() *Collector {
	c := &Collector{reports: map[worker]orchestrator.WorkerReport{}}
	counter := func(of, help string, labels ...string) *prometheus.CounterVec {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(of), Help: help}, labels)
		c.counters = append(c.counters, vec)
		return vec
	}
	histogram := func(of, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name(of), Help: help, Buckets: buckets}, labels)
		c.counters = append(c.counters, vec)
		return vec
	}
	c.generations = counter("generations_total", "Generations that workers of this process activated, by reason: rebalances that took effect.", "replica_set", "reason")
	c.took = histogram("coordination_duration_seconds",
		"Time from opening a generation to its activation, for generations that this process activated. Partitions are idle for at most this time.",
		[]float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}, perSet...)
	c.timeouts = counter("coordination_timeouts_total",
		"Calls of Run that returned ErrCoordinationTimeout, because a handler did not return in time.", perSet...)
	c.stale = counter("stale_workers_total", "Workers of any process that this process removed because they seemed dead.", perSet...)
	c.beats = histogram("heartbeat_latency_seconds", "Round-trip time of successful heartbeats.",
		[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, perSet...)
	c.missedBeats = counter("heartbeat_failures_total", "Heartbeats that failed.", perSet...)
	c.processed = counter("events_processed_total", "Events that were handled and committed.", perProjection...)
	c.skipped = counter("events_skipped_total", "Events that were read and belong to other partitions.", perProjection...)
	c.failures = counter("projection_errors_total", "Calls of handlers that failed, including retries.", perProjection...)
	c.fenced = counter("fenced_commits_total", "Commits that were refused because another worker had taken over.", perProjection...)
	c.batches = histogram("batch_duration_seconds", "Time from the first call of the handler for a batch to the commit.",
		[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}, perProjection...)
	c.dropped = prometheus.NewCounter(prometheus.CounterOpts{Name: name("observer_dropped_total"),
		Help: "Calls of the Observer that were dropped because its queue was full. They are missing from the other metrics."})
	c.counters = append(c.counters, c.dropped)
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, counter := range c.counters {
		counter.Describe(ch)
	}
	for _, desc := range []*prometheus.Desc{workers, state, partitions, leaseOnly, gap, parked, oldest, paused, rebuild, lag, seconds, stalled, beyond} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, counter := range c.counters {
		counter.Collect(ch)
	}
	c.mu.Lock()
	reports := maps.Clone(c.reports)
	c.mu.Unlock()

	set := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for name, s := range summarize(reports) {
		set(workers, float64(s.members), name)
		for _, word := range states {
			set(state, float64(s.states[word]), name, word)
		}
		if s.partitions > 0 {
			set(partitions, float64(s.partitions), name)
		}
		set(leaseOnly, float64(s.leaseOnly), name)
		set(gap, s.gap.Seconds(), name)
		for projection, p := range s.projections() {
			set(parked, float64(p.parked), name, projection)
			set(oldest, p.oldest, name, projection)
			set(paused, p.paused.Seconds(), name, projection)
			set(rebuild, one(p.rebuild), name, projection)
		}
		for at, l := range s.lanes {
			if l.Behind >= 0 {
				set(lag, float64(l.Behind), name, at.projection, at.number())
			}
			set(seconds, l.BehindSeconds, name, at.projection, at.number())
			set(stalled, one(l.Stalled), name, at.projection, at.number())
			set(beyond, one(l.State == orchestrator.LaneBeyond), name, at.projection, at.number())
		}
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
