package orchestratorotel

import (
	"context"
	"errors"
	"maps"
	"strconv"

	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// metrics are counted as things happen. Gauges are computed from the latest reports when
// metrics are collected (Telemetry.observe).
type metrics struct {
	consumed messagingconv.ClientConsumedMessages
	duration messagingconv.ProcessDuration

	generations, timeouts, stale, missedBeats     metric.Int64Counter
	processed, skipped, failures, fenced, dropped metric.Int64Counter
	coordination, beats, batches                  metric.Float64Histogram
}

// gauges are computed from the workers' reports.
type gauges struct {
	workers, state, generation, partitions, leaseOnly metric.Int64ObservableGauge
	parked, rebuild, lag, stalled, beyond             metric.Int64ObservableGauge
	gap, oldest, paused, behind                       metric.Float64ObservableGauge
}

var (
	short = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	long  = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}
)

// An instruments creates instruments and collects errors.
type instruments struct {
	metric.Meter
	errs []error
}

func made[T any](i *instruments) func(T, error) T {
	return func(one T, err error) T {
		i.errs = append(i.errs, err)
		return one
	}
}

func (i *instruments) counter(of, unit, text string) metric.Int64Counter {
	return made[metric.Int64Counter](i)(i.Int64Counter(prefix+of, metric.WithUnit(unit), metric.WithDescription(text)))
}

func (i *instruments) histogram(of, text string, bounds []float64) metric.Float64Histogram {
	return made[metric.Float64Histogram](i)(i.Float64Histogram(prefix+of, metric.WithUnit("s"), metric.WithDescription(text),
		metric.WithExplicitBucketBoundaries(bounds...)))
}

func (i *instruments) gauge(of, unit, text string) metric.Int64ObservableGauge {
	return made[metric.Int64ObservableGauge](i)(i.Int64ObservableGauge(prefix+of, metric.WithUnit(unit), metric.WithDescription(text)))
}

func (i *instruments) seconds(of, text string) metric.Float64ObservableGauge {
	return made[metric.Float64ObservableGauge](i)(i.Float64ObservableGauge(prefix+of, metric.WithUnit("s"), metric.WithDescription(text)))
}

// measure creates the metrics. They have the names of the module prometheus: an export to
// Prometheus turns dots into underscores and adds the suffixes for seconds and counters.
func (t *Telemetry) measure(meter metric.Meter) error {
	i := &instruments{Meter: meter}
	t.metrics = metrics{
		consumed: made[messagingconv.ClientConsumedMessages](i)(messagingconv.NewClientConsumedMessages(meter)),
		duration: made[messagingconv.ProcessDuration](i)(messagingconv.NewProcessDuration(meter, metric.WithExplicitBucketBoundaries(short...))),

		generations: i.counter("generations", "{generation}", "Generations that workers of this process activated, by reason: rebalances that took effect."),
		coordination: i.histogram("coordination_duration",
			"Time from opening a generation to its activation, for generations that this process activated. Partitions are idle for at most this time.", long),
		timeouts:    i.counter("coordination_timeouts", "{timeout}", "Calls of Run that returned ErrCoordinationTimeout, because a handler did not return in time."),
		stale:       i.counter("stale_workers", "{worker}", "Workers of any process that this process removed because they seemed dead."),
		beats:       i.histogram("heartbeat_latency", "Round-trip time of successful heartbeats.", short),
		missedBeats: i.counter("heartbeat_failures", "{failure}", "Heartbeats that failed."),
		processed:   i.counter("events_processed", "{event}", "Events that were handled and committed."),
		skipped:     i.counter("events_skipped", "{event}", "Events that were read and belong to other partitions."),
		failures:    i.counter("projection_errors", "{error}", "Calls of handlers that failed, including retries."),
		fenced:      i.counter("fenced_commits", "{commit}", "Commits that were refused because another worker had taken over."),
		batches:     i.histogram("batch_duration", "Time from the first call of the handler for a batch to the commit.", short),
		dropped:     i.counter("observer_dropped", "{call}", "Calls of the Observer that were dropped because its queue was full. They are missing from the other metrics and from batch spans."),
	}
	g := gauges{
		workers:    i.gauge("workers", "{worker}", "Workers of this process that are members of the replica set."),
		state:      i.gauge("worker_state", "{worker}", "Workers of this process in each state: joining, standby, waiting, running, draining or suspended."),
		generation: i.gauge("generation", "{generation}", "Newest generation that a worker of this process runs. Absent if none runs."),
		partitions: i.gauge("current_generation_partitions", "{partition}", "Partitions of the newest generation that a worker of this process runs. Absent if none runs."),
		leaseOnly:  i.gauge("crash_detection_off", "{worker}", "Workers of this process whose crash is noticed only when their lease ends, although Config.LeaseOnly is not set. The log has the reason: fast crash detection is off."),
		gap:        i.seconds("gap_open", "How long readers of this process have waited at a missing position that an open transaction may still fill. 0: they do not wait."),
		parked:     i.gauge("events_parked", "{event}", "Parked events (dead-letter queue) in the partitions that this process has."),
		oldest:     i.seconds("events_parked_oldest", "Age of the oldest parked event. 0: there is none."),
		paused:     i.seconds("paused", "How long the projection has been paused by an order. 0: it is not paused."),
		rebuild:    i.gauge("rebuild", "{projection}", "1 if another version of the projection is the live one (WithRebuildOf), else 0."),
		lag:        i.gauge("lag_events", "{event}", "Positions of the stream that are left to read or to handle. About one in current_generation_partitions belongs to the partition. Absent while unknown."),
		behind:     i.seconds("lag", "Age of the oldest event that is not handled."),
		stalled:    i.gauge("stalled", "{partition}", "1 if there are events to read and the partition has made no progress for Config.StallAfter, else 0."),
		beyond:     i.gauge("beyond_end", "{partition}", "1 if the partition stands beyond the end of the event stream, so that new events up to its position count as handled, else 0."),
	}
	if err := errors.Join(i.errs...); err != nil {
		return err
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error { t.observe(o, g); return nil },
		g.workers, g.state, g.generation, g.partitions, g.leaseOnly, g.gap,
		g.parked, g.oldest, g.paused, g.rebuild, g.lag, g.behind, g.stalled, g.beyond)
	return err
}

// states are all states of workers. Each gets a value, so that a state that ended has 0.
var states = []orchestrator.WorkerState{
	orchestrator.WorkerJoining, orchestrator.WorkerStandby, orchestrator.WorkerWaiting,
	orchestrator.WorkerRunning, orchestrator.WorkerDraining, orchestrator.WorkerSuspended,
}

// observe reports the gauges from the latest reports of the process's workers. Workers that
// have left, and partitions that run elsewhere, have no values.
func (t *Telemetry) observe(o metric.Observer, g gauges) {
	t.mu.Lock()
	reports := maps.Clone(t.reports)
	t.mu.Unlock()
	for set, s := range summarize(reports) {
		group := group(set)
		o.ObserveInt64(g.workers, int64(s.members), metric.WithAttributes(group))
		for _, state := range states {
			o.ObserveInt64(g.state, int64(s.states[state]), metric.WithAttributes(group, keyState.String(string(state))))
		}
		if s.partitions > 0 {
			o.ObserveInt64(g.generation, s.generation, metric.WithAttributes(group))
			o.ObserveInt64(g.partitions, int64(s.partitions), metric.WithAttributes(group))
		}
		o.ObserveInt64(g.leaseOnly, int64(s.leaseOnly), metric.WithAttributes(group))
		o.ObserveFloat64(g.gap, s.gap.Seconds(), metric.WithAttributes(group))
		for projection, p := range s.projections() {
			with := metric.WithAttributes(group, keyProjection.String(projection))
			o.ObserveInt64(g.parked, int64(p.parked), with)
			o.ObserveFloat64(g.oldest, p.oldest, with)
			o.ObserveFloat64(g.paused, p.paused.Seconds(), with)
			o.ObserveInt64(g.rebuild, one(p.rebuild), with)
		}
		for at, l := range s.lanes {
			with := metric.WithAttributes(group, keyProjection.String(at.projection), semconv.MessagingDestinationPartitionID(strconv.Itoa(at.partition)))
			if l.Behind >= 0 {
				o.ObserveInt64(g.lag, l.Behind, with)
			}
			o.ObserveFloat64(g.behind, l.BehindSeconds, with)
			o.ObserveInt64(g.stalled, one(l.Stalled), with)
			o.ObserveInt64(g.beyond, one(l.State == orchestrator.LaneBeyond), with)
		}
	}
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
