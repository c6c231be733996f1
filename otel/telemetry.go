// Package orchestratorotel traces and measures workers with OpenTelemetry: a span for
// each call of a handler, linked to the spans that appended its events, a span for each
// batch that was committed, and metrics.
//
//	telemetry, err := orchestratorotel.New(orchestratorotel.Config[orchestrator.Event]{
//		Metadata: orchestratorotel.EventMetadata,
//	})
//	if err != nil {
//		return err
//	}
//	cfg.Around = telemetry.Around()     // the spans of handlers
//	cfg.Observer = telemetry.Observer() // the spans of batches, and most metrics
//
// Attributes and metrics follow the semantic conventions for messaging (v1.43.0) where
// these have a word for it: the replica set is the consumer group. All other names start
// with pupsourcing.orchestrator. The README lists them.
package orchestratorotel

import (
	"context"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// scope is the instrumentation scope of all spans and metrics.
const scope = "github.com/getpup/pupsourcing-orchestrator/otel"

// Config says where spans and metrics go. Its E is that of the orchestrator's Config: for
// pkg/orchestrator, es.PersistedEvent.
type Config[E any] struct {
	// TracerProvider gets the spans. For none, set it to noop.NewTracerProvider().
	// Default: the global one, otel.GetTracerProvider().
	TracerProvider trace.TracerProvider
	// MeterProvider gets the metrics. Default: the global one, otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
	// Metadata says what an event knows of the trace that appended it. It must not modify
	// the event, and is called by several goroutines. Where it panics, the event is taken to
	// know nothing, and otel.Handle is told. For orchestrator.Event there is EventMetadata.
	// Default: none, so no span is linked to another.
	Metadata func(event E) Metadata
}

// A Telemetry makes the spans and metrics of all Orchestrators of a process whose Config
// has its Around and its Observer. Create one with New: two on the same MeterProvider
// would report the same gauges.
type Telemetry struct {
	tracer   trace.Tracer
	events   func(context.Context) []event // of the call; nil: Config has no Metadata
	metrics  metrics
	outcomes sync.Map // of calls that succeeded, call -> metric.MeasurementOption

	mu      sync.Mutex
	reports map[worker]orchestrator.WorkerReport // the last one of each
}

// New returns a Telemetry that has seen nothing yet. The error is what the MeterProvider
// says of a metric.
func New[E any](cfg Config[E]) (*Telemetry, error) {
	if cfg.TracerProvider == nil {
		cfg.TracerProvider = otel.GetTracerProvider()
	}
	if cfg.MeterProvider == nil {
		cfg.MeterProvider = otel.GetMeterProvider()
	}
	t := &Telemetry{
		tracer:  cfg.TracerProvider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		reports: map[worker]orchestrator.WorkerReport{},
	}
	if cfg.Metadata != nil {
		var other sync.Once
		t.events = func(ctx context.Context) []event { return eventsOf(ctx, cfg.Metadata, &other) }
	}
	meter := cfg.MeterProvider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	if err := t.measure(meter); err != nil {
		return nil, fmt.Errorf("orchestratorotel: %w", err)
	}
	return t, nil
}

// The attributes that are ours.
const (
	prefix = "pupsourcing.orchestrator."

	keyProjection      = attribute.Key(prefix + "projection")
	keyGeneration      = attribute.Key(prefix + "generation")
	keyTotalPartitions = attribute.Key(prefix + "total_partitions")
	keyPosition        = attribute.Key(prefix + "position")
	keyAttempt         = attribute.Key(prefix + "attempt")
	keyReplay          = attribute.Key(prefix + "replay")
	keyInterruption    = attribute.Key(prefix + "interruption")
	keySkipped         = attribute.Key(prefix + "skipped")
	keyReason          = attribute.Key(prefix + "reason")
	keyState           = attribute.Key(prefix + "state")

	keyTraceID        = attribute.Key(prefix + "event.trace_id")
	keyCausationID    = attribute.Key(prefix + "event.causation_id")
	keyTraceIDs       = attribute.Key(prefix + "event.trace_ids")
	keyCorrelationIDs = attribute.Key(prefix + "event.correlation_ids")
	keyCausationIDs   = attribute.Key(prefix + "event.causation_ids")
)

// system is messaging.system of all spans and metrics.
var system = semconv.MessagingSystemKey.String("pupsourcing")

func group(set orchestrator.ReplicaSetName) attribute.KeyValue {
	return semconv.MessagingConsumerGroupName(string(set))
}
