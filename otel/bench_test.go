package orchestratorotel

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// BenchmarkAround measures what Around adds to each call of a handler.
func BenchmarkAround(b *testing.B) {
	for name, cfg := range map[string]Config[orchestrator.Event]{
		"none":    {TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: noop.NewMeterProvider()},
		"metrics": {TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))},
		"dropped": {TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())), MeterProvider: noop.NewMeterProvider()},
		"sampled": {TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample())), MeterProvider: noop.NewMeterProvider()},
	} {
		b.Run(name, func(b *testing.B) {
			telemetry, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			around, next := telemetry.Around(), func(ctx context.Context) error { _ = trace.SpanFromContext(ctx); return nil }
			d := orchestrator.Delivery{Projection: "orders", Events: 1, Assignment: orchestrator.Assignment{ReplicaSet: "set", TotalPartitions: 4}, Position: 4711}
			b.ReportAllocs()
			for b.Loop() {
				_ = around(b.Context(), d, next)
			}
		})
	}
}
