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

// process is the messaging.operation.name of a call of a handler.
const process = "process"

// Around returns a function for Config.Around of any number of Orchestrators. It creates a span
// for each call of a handler, which starts a new trace, and passes it in the handler's context.
// If the library interrupts a call, the span is not an error, and an attribute holds the cause.
//
// inner are functions of your own for Config.Around. They are called inside the span, the
// first one outermost.
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

// errGone is the error of a call that does not return, because it panicked or ended its
// goroutine.
var errGone = errors.New("the handler panicked, or ended its goroutine")

// call creates the span of one call.
//
// The span has no parent. A span in Run's context would be the parent of all calls for the life
// of the worker, and if it were not sampled, no call would be.
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
	defer func() { // a deferred span.End would recover a panic and raise it again with another stack
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

// ended completes the span of ctx and counts the call. The call was interrupted if the given
// context has ended, as for the library itself: ctx may have a deadline of its own.
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

// record does what span.RecordError does, but with the type of the program's own error, and with
// the stack of a panic.
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

// A call identifies the metrics of a call.
type call struct {
	set        orchestrator.ReplicaSetName
	projection string
}

func (c call) attributes(more ...attribute.KeyValue) attribute.Set {
	return attribute.NewSet(append(more, system, semconv.MessagingOperationName(process), group(c.set), keyProjection.String(c.projection))...)
}

// outcome returns the attributes of calls that did not fail. They are cached.
func (t *Telemetry) outcome(of call) metric.MeasurementOption {
	if made, ok := t.outcomes.Load(of); ok {
		return made.(metric.MeasurementOption)
	}
	made := metric.WithAttributeSet(of.attributes())
	t.outcomes.Store(of, made)
	return made
}
