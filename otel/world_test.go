package orchestratorotel

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

func TestMain(m *testing.M) { os.Exit(testworld.Main(m)) }

type (
	aroundFunc = func(ctx context.Context, d orchestrator.Delivery, next func(context.Context) error) error
	projection = orchestrator.Projection[orchestrator.Event]
)

// A recorder records what a Telemetry emits, and has a tracer of its own.
type recorder struct {
	*Telemetry
	t      *testing.T
	spans  *tracetest.InMemoryExporter
	reader *sdkmetric.ManualReader
	tracer trace.Tracer
}

func recorderOf[E any](t *testing.T, metadata func(E) Metadata) *recorder {
	t.Helper()
	r := &recorder{t: t, spans: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(r.spans))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader))
	r.tracer = tracers.Tracer("test")
	var err error
	if r.Telemetry, err = New(Config[E]{TracerProvider: tracers, MeterProvider: meters, Metadata: metadata}); err != nil {
		t.Fatal(err)
	}
	return r
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	return recorderOf(t, EventMetadata)
}

// configure returns a configuration with the Telemetry and nothing else.
func (r *recorder) configure(w *testworld.World) orchestrator.Config[orchestrator.Event] {
	cfg := w.Config(w.DB, "set")
	cfg.Around, cfg.Observer = r.Around(), r.Observer()
	return cfg
}

// catchUp lets projections handle all events. After that the Observer has received all calls.
func catchUp(ctx context.Context, t *testing.T, cfg orchestrator.Config[orchestrator.Event], projections ...projection) {
	t.Helper()
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, testworld.Limit) // ends a broken test
	defer cancel()
	if err := o.CatchUp(ctx, projections); err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
}

// named returns the ended spans with a name, in order of their ends.
func (r *recorder) named(name string) (found tracetest.SpanStubs) {
	for _, s := range r.spans.GetSpans() {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

// show returns attributes as sorted lines of text.
func show(attributes []attribute.KeyValue) string {
	var lines []string
	for _, a := range attributes {
		lines = append(lines, string(a.Key)+"="+a.Value.String())
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// value returns an attribute, or "".
func value(attributes []attribute.KeyValue, key attribute.Key) string {
	for _, a := range attributes {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

// collect returns the metrics as text. For histograms, it is the number of values.
func (r *recorder) collect() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for name, m := range r.metricsByName() {
		put := func(set attribute.Set, value any) {
			out[name+"{"+strings.ReplaceAll(show(set.ToSlice()), "\n", " ")+"}"] = fmt.Sprint(value)
		}
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				put(p.Attributes, p.Value)
			}
		case metricdata.Gauge[int64]:
			for _, p := range data.DataPoints {
				put(p.Attributes, p.Value)
			}
		case metricdata.Gauge[float64]:
			for _, p := range data.DataPoints {
				put(p.Attributes, p.Value)
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				put(p.Attributes, p.Count)
			}
		default:
			r.t.Errorf("%s is a %T", name, data)
		}
	}
	return out
}

func (r *recorder) metricsByName() map[string]metricdata.Metrics {
	r.t.Helper()
	var all metricdata.ResourceMetrics
	if err := r.reader.Collect(r.t.Context(), &all); err != nil {
		r.t.Fatal(err)
	}
	found := map[string]metricdata.Metrics{}
	for _, of := range all.ScopeMetrics {
		if of.Scope.Name != scope || of.Scope.SchemaURL != semconv.SchemaURL {
			r.t.Errorf("the scope is %+v", of.Scope)
		}
		for _, m := range of.Metrics {
			found[m.Name] = m
		}
	}
	return found
}

// only returns the metrics whose text begins with a prefix, without the prefix.
func only(all map[string]string, begins string) map[string]string {
	found := map[string]string{}
	for name, value := range all {
		if rest, ok := strings.CutPrefix(name, begins); ok {
			found[rest] = value
		}
	}
	return found
}
