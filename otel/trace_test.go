package orchestratorotel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

const uuid = "0af76519-16cd-43dd-8448-eb211c80319c"

// appended appends an event inside a span and stores the span's context with it.
func (r *recorder) appended(w *testworld.World) trace.SpanContext {
	w.T.Helper()
	ctx, span := r.tracer.Start(context.Background(), "append")
	defer span.End()
	w.Append(1)
	w.Exec(`UPDATE events SET metadata = jsonb_build_object('traceparent', $1::text)
	         WHERE global_position = (SELECT max(global_position) FROM events)`, Traceparent(ctx))
	return span.SpanContext()
}

// The span of a call is linked to the span that appended the event, starts a new trace whatever
// Run's context has, and is the parent of the handler's spans.
func TestSpanOfAHandler(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	by := r.appended(w)
	w.Exec(`UPDATE events SET trace_id = $1, correlation_id = 'order-17', causation_id = 'cart-4'`, uuid)

	startup, span := r.tracer.Start(t.Context(), "startup")
	defer span.End()
	catchUp(startup, t, r.configure(w), testworld.Effects{Projection: "orders", Hook: func(ctx context.Context, _ orchestrator.Event) error {
		_, child := r.tracer.Start(ctx, "child")
		child.End()
		return nil
	}}.Transactional())

	spans, children := r.named("process orders"), r.named("child")
	if len(spans) != 1 || len(children) != 1 {
		t.Fatalf("%d spans of the handler, %d in it", len(spans), len(children))
	}
	s := spans[0]
	generation := w.Generation()
	if diff := cmp.Diff(fmt.Sprintf(`messaging.consumer.group.name=set
messaging.destination.partition.id=0
messaging.message.conversation_id=order-17
messaging.message.id=1
messaging.operation.name=process
messaging.operation.type=process
messaging.system=pupsourcing
pupsourcing.orchestrator.attempt=1
pupsourcing.orchestrator.event.causation_id=cart-4
pupsourcing.orchestrator.event.trace_id=%s
pupsourcing.orchestrator.generation=%d
pupsourcing.orchestrator.position=1
pupsourcing.orchestrator.projection=orders
pupsourcing.orchestrator.total_partitions=1`, strings.ReplaceAll(uuid, "-", ""), generation), show(s.Attributes)); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if s.SpanKind != trace.SpanKindConsumer || s.Status.Code != codes.Unset || s.InstrumentationScope.Name != scope || s.InstrumentationScope.SchemaURL != semconv.SchemaURL {
		t.Errorf("kind %v, status %v, scope %v", s.SpanKind, s.Status, s.InstrumentationScope)
	}
	if s.Parent.IsValid() {
		t.Errorf("it has a parent: %v", s.Parent)
	}
	if len(s.Links) != 1 || !s.Links[0].SpanContext.Equal(by.WithRemote(true)) || len(s.Links[0].Attributes) != 0 {
		t.Errorf("its links are %+v, want one to %+v", s.Links, by)
	}
	if !children[0].Parent.Equal(s.SpanContext) {
		t.Errorf("the parent of the child is %v, want %v", children[0].Parent, s.SpanContext)
	}
}

// A call with several events has a link to each span that appended some, and lists of their ids.
// The batch has a span with the times of the Observer's call.
func TestBatch(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	first := r.appended(w)
	w.Append(3)
	w.Exec(`UPDATE events SET metadata = (SELECT metadata FROM events WHERE global_position = 1) WHERE global_position = 2`)
	w.Exec(`UPDATE events SET trace_id = $1, metadata = '["no object"]' WHERE global_position = 3`, strings.ToUpper(uuid))
	w.Exec(`UPDATE events SET correlation_id = 'c' || global_position / 3, causation_id = 'x' WHERE global_position < 4`)
	second := r.appended(w)

	told := &testworld.Witness{}
	cfg := r.configure(w)
	cfg.Observer = r.Observer(told.Observer())
	catchUp(t.Context(), t, cfg, orchestrator.PlainBatch("orders", func(context.Context, []orchestrator.Event) error { return nil }))

	spans := r.named("process orders")
	if len(spans) != 1 {
		t.Fatalf("%d spans of the handler", len(spans))
	}
	s := spans[0]
	want := map[string]string{
		"messaging.batch.message_count":                  "5",
		"messaging.message.id":                           "",
		"messaging.message.conversation_id":              "",
		"pupsourcing.orchestrator.position":              "1",
		"pupsourcing.orchestrator.event.trace_id":        "",
		"pupsourcing.orchestrator.event.trace_ids":       fmt.Sprintf(`["%s","%s","%s"]`, first.TraceID(), strings.ReplaceAll(uuid, "-", ""), second.TraceID()),
		"pupsourcing.orchestrator.event.correlation_ids": `["c0","c1"]`,
		"pupsourcing.orchestrator.event.causation_ids":   `["x"]`,
	}
	got := map[string]string{}
	for key := range want {
		got[key] = value(s.Attributes, attributeKey(key))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	var links []string
	for _, l := range s.Links {
		links = append(links, l.SpanContext.TraceID().String()+"/"+l.SpanContext.SpanID().String()+" "+show(l.Attributes))
	}
	if diff := cmp.Diff([]string{
		first.TraceID().String() + "/" + first.SpanID().String() + " messaging.message.id=1",
		second.TraceID().String() + "/" + second.SpanID().String() + " messaging.message.id=5",
	}, links); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}

	for _, n := range only(r.collect(), "messaging.client.consumed.messages") {
		if n != "5" {
			t.Errorf("%s events are counted", n)
		}
	}

	batches, commits := r.named("batch orders"), testworld.Told[orchestrator.BatchCommitted](told)
	if len(batches) != 1 || len(commits) != 1 {
		t.Fatalf("%d batches, of %d", len(batches), len(commits))
	}
	b, c := batches[0], commits[0]
	if !b.EndTime.Equal(c.At) || b.EndTime.Sub(b.StartTime) != c.Duration || c.Duration <= 0 {
		t.Errorf("it lasts from %v to %v; the Observer got %v, at %v", b.StartTime, b.EndTime, c.Duration, c.At)
	}
	if b.Parent.IsValid() || b.SpanKind != trace.SpanKindInternal || b.Status.Code != codes.Unset {
		t.Errorf("parent %v, kind %v, status %v", b.Parent, b.SpanKind, b.Status)
	}
	if diff := cmp.Diff(fmt.Sprintf(`messaging.batch.message_count=5
messaging.consumer.group.name=set
messaging.destination.partition.id=0
messaging.operation.name=batch
messaging.system=pupsourcing
pupsourcing.orchestrator.generation=%d
pupsourcing.orchestrator.position=5
pupsourcing.orchestrator.projection=orders
pupsourcing.orchestrator.skipped=0
pupsourcing.orchestrator.total_partitions=1`, w.Generation()), show(b.Attributes)); diff != "" {
		t.Errorf("attributes of the batch (-want +got):\n%s", diff)
	}
}

// A checkpoint that moves past events of other partitions is not a batch.
func TestNothingHandledIsNoBatch(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	o := r.Observer()
	o.BatchCommitted(orchestrator.BatchCommitted{Skipped: 7, Lane: orchestrator.Lane{Projection: "orders"}})
	if spans := r.spans.GetSpans(); len(spans) != 0 {
		t.Errorf("it has the span %s", spans[0].Name)
	}
}

// The span of a failed call has the error, the type of the program's own error and, after a
// panic, the stack. A retry has a span of its own.
func TestSpanOfAFailedCall(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	w.Append(2)
	var calls atomic.Int64
	catchUp(t.Context(), t, r.configure(w), testworld.Effects{Projection: "orders", Hook: func(context.Context, orchestrator.Event) error {
		switch calls.Add(1) {
		case 1:
			return fmt.Errorf("not yet: %w", context.DeadlineExceeded)
		case 2:
			explode()
		}
		return nil
	}}.Transactional())

	type call struct{ Attempt, Position, Status, ErrorType, Exception, Message string }
	var got []call
	var stack string
	for _, s := range r.named("process orders") {
		c := call{value(s.Attributes, keyAttempt), value(s.Attributes, keyPosition), s.Status.Code.String(), value(s.Attributes, semconv.ErrorTypeKey), "", s.Status.Description}
		for _, e := range s.Events {
			if e.Name != semconv.ExceptionEventName || value(e.Attributes, semconv.ExceptionMessageKey) != s.Status.Description {
				t.Errorf("it has the event %+v", e)
			}
			c.Exception += value(e.Attributes, semconv.ExceptionTypeKey)
			stack += value(e.Attributes, semconv.ExceptionStacktraceKey)
		}
		c.Message, _, _ = strings.Cut(c.Message, " (")
		got = append(got, c)
	}
	if diff := cmp.Diff([]call{
		{"1", "1", "Error", "context.deadlineExceededError", "context.deadlineExceededError", "not yet: context deadline exceeded"},
		{"2", "1", "Error", "*orchestrator.PanicError", "*orchestrator.PanicError", "panic: boom"},
		{"3", "1", "Unset", "", "", ""},
		{"1", "2", "Unset", "", "", ""},
	}, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if !strings.Contains(stack, "explode") {
		t.Errorf("the stack is %q", stack)
	}
	const about = "messaging.consumer.group.name=set messaging.operation.name=process messaging.system=pupsourcing pupsourcing.orchestrator.projection=orders}"
	counts := map[string]string{
		"{" + about: "2",
		"{error.type=*orchestrator.PanicError " + about:      "1",
		"{error.type=context.deadlineExceededError " + about: "1",
	}
	for _, metric := range []string{"messaging.process.duration", "messaging.client.consumed.messages"} {
		if diff := cmp.Diff(counts, only(r.collect(), metric)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", metric, diff)
		}
	}
	if m := r.metricsByName()["messaging.process.duration"]; m.Unit != "s" {
		t.Errorf("its unit is %q", m.Unit)
	}
}

func explode() { panic("boom") }

// A call that the library has interrupted has not failed, and its duration is not measured.
func TestSpanOfAnInterruptedCall(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	w.Append(1)
	in := make(chan struct{}, 1)
	cfg := r.configure(w)
	cfg.OnFailure, cfg.CoordinationTimeout, cfg.LeaseOnly = orchestrator.StopOnFailure, time.Second, true
	running := testworld.Run(t, cfg, testworld.Effects{Projection: "orders", Hook: func(ctx context.Context, _ orchestrator.Event) error {
		in <- struct{}{}
		<-ctx.Done()
		return errors.New("it could not be done")
	}}.Transactional())
	<-in
	running.Stop()

	spans := r.named("process orders")
	if len(spans) != 1 {
		t.Fatalf("%d spans", len(spans))
	}
	s := spans[0]
	if s.Status.Code != codes.Unset || len(s.Events) != 0 || value(s.Attributes, semconv.ErrorTypeKey) != "" {
		t.Errorf("status %v, events %v, attributes %s", s.Status, s.Events, show(s.Attributes))
	}
	if got, want := value(s.Attributes, keyInterruption), orchestrator.ErrGenerationSuperseded.Error(); got != want {
		t.Errorf("it was interrupted by %q, want %q", got, want)
	}
	all := r.collect()
	if timed := only(all, "messaging.process.duration"); len(timed) != 0 {
		t.Errorf("it was timed: %v", timed)
	}
	consumed := only(all, "messaging.client.consumed.messages")
	if n := consumed["{messaging.consumer.group.name=set messaging.operation.name=process messaging.system=pupsourcing pupsourcing.orchestrator.projection=orders}"]; n != "1" || len(consumed) != 1 {
		t.Errorf("counted: %v", consumed)
	}
	for name, n := range only(all, prefix+"projection_errors") {
		if n != "0" {
			t.Errorf("%s failures: %s", n, name)
		}
	}
	if n := len(r.named("batch orders")); n != 0 {
		t.Errorf("%d batches", n)
	}
}

// A handler that exceeds its own deadline has failed.
func TestOwnDeadlineIsAFailure(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	err := r.Around()(t.Context(), orchestrator.Delivery{Projection: "orders", Events: 1}, func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx.Err()
	})
	if s := r.named("process orders")[0]; !errors.Is(err, context.Canceled) || s.Status.Code != codes.Error {
		t.Errorf("it has returned %v, and the status is %v", err, s.Status)
	}
}

// The retry of a parked event is a replay.
func TestReplay(t *testing.T) {
	t.Parallel()
	w, r := testworld.New(t), newRecorder(t)
	w.Append(1)
	var mended atomic.Bool
	cfg := r.configure(w)
	cfg.Failures = map[string]orchestrator.FailureRule{"orders": {Policy: orchestrator.ParkEvents, Attempts: 1}}
	running := testworld.Run(t, cfg, testworld.Effects{Projection: "orders", Hook: testworld.Failing(&mended, func(orchestrator.Event) bool { return true })}.Transactional())
	pgtest.Eventually(t, "the event is parked", func() bool { positions, _ := w.Parked("orders"); return len(positions) == 1 })
	mended.Store(true)
	w.Retry("orders", ops.ParkedSelector{All: true})
	pgtest.Eventually(t, "it is handled", func() bool { return w.Handled("orders") == 1 })
	running.Stop()
	var got []string
	for _, s := range r.named("process orders") {
		got = append(got, s.Status.Code.String()+" "+value(s.Attributes, keyReplay))
	}
	if diff := cmp.Diff([]string{"Error ", "Unset parked"}, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}
