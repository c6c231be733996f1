package orchestratorotel

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

func attributeKey(key string) attribute.Key { return attribute.Key(key) }

// Other functions around handlers are called inside the span, in order.
func TestAroundOthers(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	w.Append(1)
	var order []string
	other := func(name string) aroundFunc {
		return func(ctx context.Context, d orchestrator.Delivery, next func(context.Context) error) error {
			if got := r.named("process orders"); len(got) != 0 || !trace.SpanFromContext(ctx).IsRecording() {
				t.Error("it is not within the span")
			}
			if events := orchestrator.EventsFrom[orchestrator.Event](ctx); len(events) != d.Events {
				t.Errorf("it gets %d events", len(events))
			}
			order = append(order, name)
			defer func() { order = append(order, "end of "+name) }()
			return next(ctx)
		}
	}
	cfg := r.configure(w)
	cfg.Around = r.Around(other("one"), nil, other("two"))
	catchUp(t.Context(), t, cfg, testworld.Effects{Projection: "orders", Hook: func(context.Context, orchestrator.Event) error {
		order = append(order, "handler")
		return nil
	}}.Transactional())
	if diff := cmp.Diff([]string{"one", "two", "handler", "end of two", "end of one"}, order); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// A handler that panics or ends its goroutine has a span with an error. The library's error for
// the panic still names the place.
func TestAroundPanics(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(){"panics": explode, "ends its goroutine": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, r := testworld.New(t), newRecorder(t)
			w.Append(1)
			calls := 0
			cfg, told := r.configure(w), &testworld.Witness{}
			cfg.Observer = told.Observer()
			cfg.Around = r.Around(func(ctx context.Context, _ orchestrator.Delivery, next func(context.Context) error) error {
				if calls++; calls == 1 {
					fail()
				}
				return next(ctx)
			})
			catchUp(t.Context(), t, cfg, testworld.Effects{Projection: "orders"}.Transactional())
			spans := r.named("process orders")
			if len(spans) != 2 || spans[0].Status.Code != codes.Error || spans[1].Status.Code != codes.Unset {
				t.Errorf("the spans are %+v", spans)
			}
			failed := testworld.Told[orchestrator.HandlerFailed](told)
			if name == "panics" && (len(failed) != 1 || !strings.Contains(failed[0].Err.Error(), "explode")) {
				t.Errorf("the observer gets %+v", failed)
			}
		})
	}
}

// Other Observers receive all calls too.
func TestObserverOthers(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	var told []string
	other := func(name string) *orchestrator.Observer {
		return testworld.Observe(func(event any) { told = append(told, fmt.Sprintf("%s: %T", name, event)) })
	}
	own := reflect.ValueOf(*r.Observer())
	one, nothing := other("one"), &orchestrator.Observer{}
	all := reflect.ValueOf(*r.Observer(one, nil, nothing, other("two")))
	for i := range all.NumField() {
		told = nil
		event := reflect.New(all.Field(i).Type().In(0)).Elem()
		all.Field(i).Call([]reflect.Value{event})
		want := []string{fmt.Sprintf("one: %T", event.Interface()), fmt.Sprintf("two: %T", event.Interface())}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("%s (-want +got):\n%s", all.Type().Field(i).Name, diff)
		}
	}
	if got := r.collect()[prefix+"heartbeat_latency{messaging.consumer.group.name=}"]; got != "1" {
		t.Errorf("%q heartbeats were counted, want 1", got)
	}
	if own.FieldByName("GapWaited").IsNil() == false || all.FieldByName("GapWaited").IsNil() {
		t.Error("Telemetry has a function that does nothing")
	}
}

// Without providers in Config, the global providers get the spans and the metrics.
func TestGlobalProviders(t *testing.T) {
	spans, reader := tracetest.NewInMemoryExporter(), sdkmetric.NewManualReader()
	tracers, meters := otel.GetTracerProvider(), otel.GetMeterProvider()
	defer func() { otel.SetTracerProvider(tracers); otel.SetMeterProvider(meters) }()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)))
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	telemetry, err := New(Config[orchestrator.Event]{})
	if err != nil {
		t.Fatal(err)
	}
	err = telemetry.Around()(t.Context(), orchestrator.Delivery{Projection: "orders", Events: 1}, func(context.Context) error { return nil })
	if err != nil {
		t.Error(err)
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil || len(all.ScopeMetrics) != 1 {
		t.Errorf("metrics %+v (%v)", all, err)
	}
	if got := spans.GetSpans(); len(got) != 1 || len(got[0].Links) != 0 {
		t.Errorf("spans %+v", got)
	}
}

// handled are the errors of OpenTelemetry's global error handler.
type handled struct {
	mu   sync.Mutex
	errs []string
}

func (h *handled) Handle(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errs = append(h.errs, err.Error())
}

func handling(t *testing.T) *handled {
	before, h := otel.GetErrorHandler(), &handled{}
	t.Cleanup(func() { otel.SetErrorHandler(before) })
	otel.SetErrorHandler(h)
	return h
}

// If Metadata panics or takes another type of events, no handler fails.
func TestMetadataFails(t *testing.T) {
	h := handling(t)
	w := testworld.New(t)
	w.Append(2)
	panics := recorderOf(t, func(orchestrator.Event) Metadata { panic("no metadata") })
	catchUp(t.Context(), t, panics.configure(w), testworld.Effects{Projection: "one"}.Transactional())
	other := recorderOf(t, func(*orchestrator.Event) Metadata { return Metadata{} })
	catchUp(t.Context(), t, other.configure(w), testworld.Effects{Projection: "two"}.Transactional())
	if n, m := len(panics.named("process one")), len(other.named("process two")); n != 2 || m != 2 || w.Handled("one")+w.Handled("two") != 4 {
		t.Errorf("%d and %d spans", n, m)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.errs) != 3 || !strings.Contains(h.errs[0], "no metadata") || !strings.Contains(h.errs[2], "*orchestrator.Event") {
		t.Errorf("it gets %q", h.errs)
	}
}

func TestTraceIDs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		uuid:                                   "0af7651916cd43dd8448eb211c80319c",
		strings.ToUpper(uuid):                  "0af7651916cd43dd8448eb211c80319c",
		"0af7651916cd43dd8448eb211c80319c":     "0af7651916cd43dd8448eb211c80319c",
		"Request-17":                           "Request-17", // a foreign id
		"00000000-0000-0000-0000-000000000000": "00000000-0000-0000-0000-000000000000",
		"":                                     "",
	} {
		if got := traceID(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{"", "nonsense", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c--01"} {
		if by := spanOf(text); by.IsValid() {
			t.Errorf("%q is the span %v", text, by)
		}
	}
	if Traceparent(t.Context()) != "" {
		t.Error("there is a span")
	}
}

// The SDK's treatment of a link without a span id is the reason why there is none.
func TestLinkWithoutSpan(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	id, err := trace.TraceIDFromHex(traceID(uuid))
	if err != nil {
		t.Fatal(err)
	}
	link := trace.Link{SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: id})}
	_, span := r.tracer.Start(t.Context(), "bare", trace.WithLinks(link))
	span.End()
	link.Attributes = []attribute.KeyValue{messageID(1)}
	_, span = r.tracer.Start(t.Context(), "described", trace.WithLinks(link))
	span.End()
	if bare := r.named("bare")[0].Links; len(bare) != 0 {
		t.Errorf("it is kept: %+v", bare)
	}
	if described := r.named("described")[0].Links; len(described) != 1 || described[0].SpanContext.IsValid() {
		t.Errorf("it is %+v", described)
	}
	events := []event{{position: 1, trace: id.String()}, {position: 2, trace: id.String()}}
	if got := links(events); len(got) != 0 {
		t.Errorf("the links are %+v", got)
	}
}

// Links and lists do not grow beyond the SDK's limit, however large the batch.
func TestListsAreBounded(t *testing.T) {
	t.Parallel()
	var events []event
	for i := range 2 * listMax {
		text := fmt.Sprintf("%032x", i+1)
		events = append(events, event{position: int64(i + 1), by: spanOf("00-" + text + "-b7ad6b7169203331-01"), trace: text})
	}
	found := links(events)
	if len(found) != listMax || value(found[0].Attributes, "messaging.message.id") != "1" {
		t.Errorf("%d links", len(found))
	}
	list := describe(nil, events)
	if len(list) != 1 || len(list[0].Value.AsStringSlice()) != listMax {
		t.Errorf("the attributes are %v", list)
	}
	if limit := sdktrace.NewSpanLimits().LinkCountLimit; limit != listMax {
		t.Errorf("the SDK keeps %d links", limit)
	}
}

// New returns an error if a metric can't be created.
func TestNewFails(t *testing.T) {
	t.Parallel()
	_, err := New(Config[orchestrator.Event]{MeterProvider: failing{sdkmetric.NewMeterProvider()}})
	if err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("New returned %v", err)
	}
}

var errNoSuchThing = errors.New("no such thing")

func sorted(names []string) []string { slices.Sort(names); return names }
