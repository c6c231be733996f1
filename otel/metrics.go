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

// metrics are those that are counted as things happen. What the workers reported last is
// asked for when metrics are collected (Telemetry.observe).
type metrics struct {
	consumed messagingconv.ClientConsumedMessages
	duration messagingconv.ProcessDuration

	generations, timeouts, stale, missedBeats     metric.Int64Counter
	processed, skipped, failures, fenced, dropped metric.Int64Counter
	coordination, beats, batches                  metric.Float64Histogram
}

// gauges are what comes from the reports.
type gauges struct {
	workers, state, generation, partitions metric.Int64ObservableGauge
	parked, lag, stalled                   metric.Int64ObservableGauge
	oldest, behind                         metric.Float64ObservableGauge
}

var (
	short = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	long  = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}
)

// An instruments makes instruments, and remembers what was wrong.
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

// measure makes the metrics. Those of the module prometheus have the same names here: where
// one of these is exported to Prometheus, dots become underscores, and the unit s and what
// counts get their suffixes.
func (t *Telemetry) measure(meter metric.Meter) error {
	i := &instruments{Meter: meter}
	t.metrics = metrics{
		consumed: made[messagingconv.ClientConsumedMessages](i)(messagingconv.NewClientConsumedMessages(meter)),
		duration: made[messagingconv.ProcessDuration](i)(messagingconv.NewProcessDuration(meter, metric.WithExplicitBucketBoundaries(short...))),

		generations: i.counter("generations", "{generation}", "Generations that workers of this process opened, by the reason; and of those that an order opened, the ones that they activated."),
		coordination: i.histogram("coordination_duration",
			"From the opening of a generation to its activation, of those that this process activated. Partitions are idle for that long at most.", long),
		timeouts:    i.counter("coordination_timeouts", "{timeout}", "Workers of this process whose handlers did not return in time, so that Run returned ErrCoordinationTimeout."),
		stale:       i.counter("stale_workers", "{worker}", "Workers, of any process, that this process removed because they seemed dead."),
		beats:       i.histogram("heartbeat_latency", "Round trips of heartbeats that succeeded.", short),
		missedBeats: i.counter("heartbeat_failures", "{failure}", "Heartbeats that failed."),
		processed:   i.counter("events_processed", "{event}", "Events that were handled and committed."),
		skipped:     i.counter("events_skipped", "{event}", "Events that were read and belong to other partitions."),
		failures:    i.counter("projection_errors", "{error}", "Calls of handlers that failed, retries included."),
		fenced:      i.counter("fenced_commits", "{commit}", "Commits that were refused, since another worker had taken over."),
		batches:     i.histogram("batch_duration", "From the first event of a batch in the handler to the commit.", short),
		dropped:     i.counter("observer_dropped", "{call}", "Things that happened and are in no other metric or batch span, since too many waited to be counted."),
	}
	g := gauges{
		workers:    i.gauge("workers", "{worker}", "Workers of this process that are members of the replica set."),
		state:      i.gauge("worker_state", "{worker}", "Workers of this process in each state: joining, standby, waiting, running, draining or suspended."),
		generation: i.gauge("generation", "{generation}", "The newest generation that a worker of this process runs; absent while none runs anything."),
		partitions: i.gauge("current_generation_partitions", "{partition}", "Partitions of the newest generation that a worker of this process runs; absent while none runs anything."),
		parked:     i.gauge("events_parked", "{event}", "Events that are set aside, in the partitions that this process runs."),
		oldest:     i.seconds("events_parked_oldest", "For how long the oldest of these is set aside; 0: there is none."),
		lag:        i.gauge("lag_events", "{event}", "Positions of the stream that are left to read or to handle; about one of current_generation_partitions is the partition's. Absent while it is not known."),
		behind:     i.seconds("lag", "For how long there has been something to handle that was not."),
		stalled:    i.gauge("stalled", "{partition}", "1 if there is something to read, and the partition has not moved for Config.StallAfter; else 0."),
	}
	if err := errors.Join(i.errs...); err != nil {
		return err
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error { t.observe(o, g); return nil },
		g.workers, g.state, g.generation, g.partitions, g.parked, g.oldest, g.lag, g.behind, g.stalled)
	return err
}

// states are those of workers, so that each has a value, and the one before has 0.
var states = []orchestrator.WorkerState{
	orchestrator.WorkerJoining, orchestrator.WorkerStandby, orchestrator.WorkerWaiting,
	orchestrator.WorkerRunning, orchestrator.WorkerDraining, orchestrator.WorkerSuspended,
}

// observe says what the workers of the process reported last. Who has left, and partitions
// that are run elsewhere, are in none.
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
		for projection, p := range s.parked() {
			with := metric.WithAttributes(group, keyProjection.String(projection))
			o.ObserveInt64(g.parked, int64(p.events), with)
			o.ObserveFloat64(g.oldest, p.seconds, with)
		}
		for at, l := range s.lanes {
			with := metric.WithAttributes(group, keyProjection.String(at.projection), semconv.MessagingDestinationPartitionID(strconv.Itoa(at.partition)))
			if l.Behind >= 0 {
				o.ObserveInt64(g.lag, l.Behind, with)
			}
			o.ObserveFloat64(g.behind, l.BehindSeconds, with)
			o.ObserveInt64(g.stalled, one(l.Stalled), with)
		}
	}
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
