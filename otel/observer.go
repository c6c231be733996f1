package orchestratorotel

import (
	"context"
	"reflect"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// Observer returns an Observer for Config.Observer of any number of Orchestrators. It also calls
// the functions of others, after its own.
func (t *Telemetry) Observer(others ...*orchestrator.Observer) *orchestrator.Observer {
	return merged(append([]*orchestrator.Observer{t.observer()}, others...))
}

// merged returns an Observer that calls the functions of all observers, in order.
func merged(observers []*orchestrator.Observer) *orchestrator.Observer {
	all := &orchestrator.Observer{}
	fields := reflect.ValueOf(all).Elem()
	for i := range fields.NumField() {
		var calls []reflect.Value
		for _, o := range observers {
			if o == nil {
				continue
			}
			if f := reflect.ValueOf(o).Elem().Field(i); !f.IsNil() {
				calls = append(calls, f)
			}
		}
		switch len(calls) {
		case 0: // stays nil, which costs nothing
		case 1:
			fields.Field(i).Set(calls[0])
		default:
			fields.Field(i).Set(reflect.MakeFunc(fields.Field(i).Type(), func(args []reflect.Value) []reflect.Value {
				for _, f := range calls {
					f.Call(args)
				}
				return nil
			}))
		}
	}
	return all
}

func (t *Telemetry) observer() *orchestrator.Observer {
	m, ctx := &t.metrics, context.Background()
	return &orchestrator.Observer{
		// Not when it is opened: a worker that joins opens its generation, and so does one that
		// leaves. The counter of a process that has just begun or ends at once shows no increase.
		GenerationActivated: func(e orchestrator.GenerationActivated) {
			m.generations.Add(ctx, 1, of(e.Source, keyReason.String(reason(e.Reason))))
			m.coordination.Record(ctx, e.Duration.Seconds(), of(e.Source))
		},
		WorkerJoined:  func(e orchestrator.WorkerJoined) { t.initialize(e.Source, nil) },
		WorkerLeft:    func(e orchestrator.WorkerLeft) { t.forget(e.Source) },
		WorkerExpired: func(e orchestrator.WorkerExpired) { m.stale.Add(ctx, 1, of(e.Source)) },
		Heartbeat: func(e orchestrator.Heartbeat) {
			if e.Err != nil {
				m.missedBeats.Add(ctx, 1, of(e.Source))
				return
			}
			m.beats.Record(ctx, e.Latency.Seconds(), of(e.Source))
		},
		CoordinationTimeout: func(e orchestrator.CoordinationTimeout) { m.timeouts.Add(ctx, 1, of(e.Source)) },
		BatchCommitted: func(e orchestrator.BatchCommitted) {
			with := of(e.Source, keyProjection.String(e.Projection))
			m.processed.Add(ctx, int64(e.Events), with)
			m.skipped.Add(ctx, int64(e.Skipped), with)
			m.batches.Record(ctx, e.Duration.Seconds(), with)
			if e.Events > 0 {
				t.batch(e)
			}
		},
		CommitRefused: func(e orchestrator.CommitRefused) {
			m.fenced.Add(ctx, 1, of(e.Source, keyProjection.String(e.Projection)))
		},
		HandlerFailed: func(e orchestrator.HandlerFailed) {
			m.failures.Add(ctx, 1, of(e.Source, keyProjection.String(e.Projection)))
		},
		Reported: func(r orchestrator.WorkerReport) {
			t.initialize(r.Source, r.Lanes)
			t.keep(r)
		},
		Dropped: func(n int) { m.dropped.Add(ctx, int64(n)) },
	}
}

// of returns the attributes of a replica set's metric.
func of(s orchestrator.Source, more ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributes(append(more, group(s.ReplicaSet))...)
}

// batch creates the span of a committed batch, which has ended already.
func (t *Telemetry) batch(e orchestrator.BatchCommitted) {
	_, span := t.tracer.Start(context.Background(), "batch "+e.Projection, trace.WithNewRoot(),
		trace.WithTimestamp(e.At.Add(-e.Duration)),
		trace.WithAttributes(
			system, semconv.MessagingOperationName("batch"),
			group(e.ReplicaSet), semconv.MessagingDestinationPartitionID(strconv.Itoa(e.Partition)),
			semconv.MessagingBatchMessageCount(e.Events),
			keyProjection.String(e.Projection), keyGeneration.Int64(e.Generation), keyTotalPartitions.Int(e.TotalPartitions),
			keyPosition.Int64(e.Position), keySkipped.Int(e.Skipped)))
	span.End(trace.WithTimestamp(e.At))
}

// initialize creates counters at 0. To a backend that compares values, a counter that first
// appears as 1 has not increased, so the first failure would be missed.
func (t *Telemetry) initialize(s orchestrator.Source, lanes []orchestrator.LaneReport) {
	m, ctx := &t.metrics, context.Background()
	for _, counter := range []metric.Int64Counter{m.timeouts, m.stale, m.missedBeats} {
		counter.Add(ctx, 0, of(s))
	}
	for _, why := range []string{"joined", "gone"} { // reasons that repeat without an operator
		m.generations.Add(ctx, 0, of(s, keyReason.String(why)))
	}
	for _, l := range lanes {
		with := of(s, keyProjection.String(l.Projection))
		for _, counter := range []metric.Int64Counter{m.processed, m.skipped, m.failures, m.fenced} {
			counter.Add(ctx, 0, with)
		}
	}
}

func (t *Telemetry) keep(r orchestrator.WorkerReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reports[workerOf(r.Source)] = r
}

func (t *Telemetry) forget(s orchestrator.Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.reports, workerOf(s))
}
