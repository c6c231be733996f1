package orchestratorotel

import (
	"context"
	"errors"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// process is messaging.operation.name of a handler's call.
const process = "process"

// Around returns the function for Config.Around of any number of Orchestrators. Each call
// of a handler is a span, which its context carries, and the beginning of a trace. A call
// that the library has interrupted has not failed: its span says by what.
//
// What is given as inner is called within the span, in order: functions of your own for
// Config.Around.
func (t *Telemetry) Around(inner ...func(ctx context.Context, d orchestrator.Delivery, next func(ctx context.Context) error) error) func(ctx context.Context, d orchestrator.Delivery, next func(ctx context.Context) error) error {
	return func(ctx context.Context, d orchestrator.Delivery, next func(context.Context) error) error {
		for i := len(inner) - 1; i >= 0; i-- {
			if around, within := inner[i], next; around != nil {
				next = func(ctx context.Context) error { return around(ctx, d, within) }
			}
		}
		return t.call(ctx, d, next)
	}
}

// errGone is what a call ends with that does not return: what is within it has panicked, or
// ended its goroutine.
var errGone = errors.New("it has panicked, or ended its goroutine")

// call makes the span of one call.
//
// It has no parent: what Run's context carries would be that of all calls for ever, and one
// that is not sampled would hide them all.
func (t *Telemetry) call(given context.Context, d orchestrator.Delivery, next func(context.Context) error) error {
	var events []event
	if t.events != nil {
		events = t.events(given)
	}
	ctx, span := t.tracer.Start(given, process+" "+d.Projection, trace.WithNewRoot(),
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(describe(attributesOf(d), events)...),
		trace.WithLinks(links(events)...))
	began, err := time.Now(), errGone
	defer func() { // End itself deferred would recover a panic, and panic anew from elsewhere
		t.ended(ctx, given, d, time.Since(began), err)
		span.End()
	}()
	err = next(ctx)
	return err
}

func attributesOf(d orchestrator.Delivery) []attribute.KeyValue {
	attributes := []attribute.KeyValue{
		system, semconv.MessagingOperationName(process), semconv.MessagingOperationTypeProcess,
		group(d.ReplicaSet), semconv.MessagingDestinationPartitionID(strconv.Itoa(d.Partition)),
		keyProjection.String(d.Projection), keyGeneration.Int64(d.Generation), keyTotalPartitions.Int(d.TotalPartitions),
		keyPosition.Int64(d.Position), keyAttempt.Int(d.Attempt),
	}
	if d.Events == 1 {
		attributes = append(attributes, messageID(d.Position))
	} else {
		attributes = append(attributes, semconv.MessagingBatchMessageCount(d.Events))
	}
	if d.Replay != orchestrator.NoReplay {
		attributes = append(attributes, keyReplay.String(string(d.Replay)))
	}
	return attributes
}

// ended completes the span of ctx, and counts the call. Whether it was interrupted is what
// the given context says, as to the library itself: ctx may have a deadline of its own.
func (t *Telemetry) ended(ctx, given context.Context, d orchestrator.Delivery, took time.Duration, err error) {
	of := call{d.ReplicaSet, d.Projection}
	if err == nil {
		t.count(ctx, d, took, t.outcome(of))
		return
	}
	span := trace.SpanFromContext(ctx)
	if given.Err() != nil {
		span.SetAttributes(keyInterruption.String(context.Cause(given).Error()))
		t.metrics.consumed.Inst().Add(ctx, int64(d.Events), t.outcome(of))
		return
	}
	kind := semconv.ErrorType(err)
	span.SetAttributes(kind)
	span.SetStatus(codes.Error, err.Error())
	if err != errGone {
		record(span, kind.Value.AsString(), err)
	}
	t.count(ctx, d, took, metric.WithAttributeSet(of.attributes(kind)))
}

// record is span.RecordError, with the type that the program's error has, and not the
// library's, and the stack of a panic.
func record(span trace.Span, kind string, err error) {
	attributes := []attribute.KeyValue{semconv.ExceptionType(kind), semconv.ExceptionMessage(err.Error())}
	if panicked := (*orchestrator.PanicError)(nil); errors.As(err, &panicked) {
		attributes = append(attributes, semconv.ExceptionStacktrace(string(panicked.Stack)))
	}
	span.AddEvent(semconv.ExceptionEventName, trace.WithAttributes(attributes...))
}

func (t *Telemetry) count(ctx context.Context, d orchestrator.Delivery, took time.Duration, with metric.MeasurementOption) {
	t.metrics.consumed.Inst().Add(ctx, int64(d.Events), with)
	t.metrics.duration.Inst().Record(ctx, took.Seconds(), with)
}

// A call is what the metrics of a call are counted by.
type call struct {
	set        orchestrator.ReplicaSetName
	projection string
}

func (c call) attributes(more ...attribute.KeyValue) attribute.Set {
	return attribute.NewSet(append(more, system, semconv.MessagingOperationName(process), group(c.set), keyProjection.String(c.projection))...)
}

// outcome returns the attributes of calls that did not fail: made once, since most do not.
func (t *Telemetry) outcome(of call) metric.MeasurementOption {
	if made, ok := t.outcomes.Load(of); ok {
		return made.(metric.MeasurementOption)
	}
	made := metric.WithAttributeSet(of.attributes())
	t.outcomes.Store(of, made)
	return made
}
