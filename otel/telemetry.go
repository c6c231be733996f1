// Package orchestratorotel traces and measures workers with OpenTelemetry. There is a span for
// each call of a handler, linked to the spans that appended its events, a span for each
// committed batch, and metrics.
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
// The rules:
//
//   - Create one Telemetry per process, with [New], and use it for all Orchestrators.
//   - Attributes and metrics follow the semantic conventions for messaging (v1.43.0) where these
//     have a name: the replica set is the consumer group. All other names start with
//     pupsourcing.orchestrator. The README lists them.
//   - A span of a handler starts a new trace. It has links to the traces of its events.
//   - A panic in Config.Metadata does not fail a handler.
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

// Config configures a Telemetry. E is the type of the events, as in orchestrator.Config; for
// pkg/orchestrator it is es.PersistedEvent. All fields are optional.
type Config[E any] struct {
	// TracerProvider gets the spans. To create no spans, set it to
	// noop.NewTracerProvider(). Default: otel.GetTracerProvider().
	TracerProvider trace.TracerProvider
	// MeterProvider gets the metrics. Default: otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
	// Metadata returns what an event knows about the trace that appended it. It is called
	// by several goroutines and must not modify the event. If it panics, the error goes to
	// otel.Handle, and the event counts as one without metadata. For orchestrator.Event use
	// EventMetadata. Default: nil, spans have no links.
	Metadata func(event E) Metadata
}

// Telemetry creates the spans and metrics of all Orchestrators of a process whose Config has
// its Around and its Observer. Create one per process, with New: two on the same
// MeterProvider would report the same gauges.
type Telemetry struct {
	tracer   trace.Tracer
	events   func(context.Context) []event // events of the call; nil: Config.Metadata is nil
	metrics  metrics
	outcomes sync.Map // attributes of calls without an error: call → metric.MeasurementOption

	mu      sync.Mutex
	reports map[worker]orchestrator.WorkerReport // the latest of each worker
}

// New returns a Telemetry. It returns an error if the MeterProvider refuses a metric.
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

// The attributes of this module.
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

// system is the attribute messaging.system of all spans and metrics.
var system = semconv.MessagingSystemKey.String("pupsourcing")

func group(set orchestrator.ReplicaSetName) attribute.KeyValue {
	return semconv.MessagingConsumerGroupName(string(set))
}
