package orchestratorotel

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A link needs the id of a trace and the id of a span. The SDK drops a link without a span id,
// or, if the link has attributes, keeps it with a span id of zeros (TestLinkWithoutSpan), which
// leads nowhere. So an event that knows only its trace gets no link. The id of the trace is
// always an attribute.

// Metadata is what an event knows about the trace that appended it. Empty fields are left out.
type Metadata struct {
	// Traceparent is the span that appended the event, in the form of the header of W3C
	// Trace Context: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01". The
	// handler's span is linked to it. See the function Traceparent.
	Traceparent string
	// TraceID is the id of the trace, for events that do not know the span: 32 hexadecimal
	// digits or a UUID. Other texts are used unchanged. Default: the trace of Traceparent.
	TraceID string
	// CorrelationID and CausationID become attributes, unchanged.
	CorrelationID, CausationID string
}

// Traceparent returns the span of ctx in the form of the header of W3C Trace Context, or "" if
// ctx has no span. Store it with the events that you append.
func Traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceparent]
}

const traceparent = "traceparent"

// EventMetadata returns the metadata of an event in pupsourcing's layout. It uses the columns
// trace_id, correlation_id and causation_id, and the field "traceparent" of the JSON object in
// the column metadata.
func EventMetadata(e orchestrator.Event) Metadata {
	var stored struct {
		Traceparent string `json:"traceparent"`
	}
	if len(e.Metadata) > 0 {
		_ = json.Unmarshal(e.Metadata, &stored) // the column may hold something else
	}
	return Metadata{
		Traceparent: stored.Traceparent,
		TraceID:     e.TraceID.String, CorrelationID: e.CorrelationID.String, CausationID: e.CausationID.String,
	}
}

// An event is what the span of a call records about one of its events.
type event struct {
	position               int64
	by                     trace.SpanContext // the span that appended it; invalid: unknown
	trace                  string
	correlation, causation string
}

// eventsOf returns the events of the call of ctx.
func eventsOf[E any](ctx context.Context, metadata func(E) Metadata, other *sync.Once) []event {
	records := orchestrator.EventsFrom[E](ctx)
	if len(records) == 0 {
		other.Do(func() {
			otel.Handle(fmt.Errorf("orchestratorotel: the events of the Orchestrator are not of the type %v, which Config.Metadata takes: spans have no links", reflect.TypeFor[E]()))
		})
		return nil
	}
	events := make([]event, len(records))
	for i := range records {
		m := harmless(metadata, records[i].Event)
		e := event{
			position: records[i].Position, by: spanOf(m.Traceparent),
			trace: traceID(m.TraceID), correlation: m.CorrelationID, causation: m.CausationID,
		}
		if e.trace == "" && e.by.IsValid() {
			e.trace = e.by.TraceID().String()
		}
		events[i] = e
	}
	return events
}

// harmless calls Config.Metadata and recovers panics: tracing must not fail a handler.
func harmless[E any](metadata func(E) Metadata, e E) (m Metadata) {
	defer func() {
		if v := recover(); v != nil {
			m = Metadata{}
			otel.Handle(fmt.Errorf("orchestratorotel: Config.Metadata panicked: %v", v))
		}
	}()
	return metadata(e)
}

func spanOf(text string) trace.SpanContext {
	if text == "" {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{traceparent: text})
	return trace.SpanContextFromContext(ctx)
}

// traceID returns the id of a trace in the form of tracing backends, so that a search finds it.
func traceID(text string) string {
	digits := text
	if len(text) == 36 && text[8] == '-' && text[13] == '-' && text[18] == '-' && text[23] == '-' {
		digits = strings.ReplaceAll(text, "-", "")
	}
	if id, err := trace.TraceIDFromHex(strings.ToLower(digits)); err == nil {
		return id.String()
	}
	return text
}

// listMax is the most links of a span, and the most ids in a list attribute. It is the SDK's
// default limit for links.
const listMax = 128

// links returns a link to each span that appended some of the events, at most listMax. If there
// are several events, a link names the first event of its span.
func links(events []event) (links []trace.Link) {
	type id struct {
		trace.TraceID
		trace.SpanID
	}
	seen := map[id]bool{}
	for _, e := range events {
		by := id{e.by.TraceID(), e.by.SpanID()}
		if !e.by.IsValid() || len(links) == listMax || seen[by] {
			continue
		}
		seen[by] = true
		link := trace.Link{SpanContext: e.by}
		if len(events) > 1 {
			link.Attributes = []attribute.KeyValue{messageID(e.position)}
		}
		links = append(links, link)
	}
	return links
}

// describe appends the attributes of the events: values for one event, lists for several.
func describe(attributes []attribute.KeyValue, events []event) []attribute.KeyValue {
	text := func(key attribute.Key, value string) {
		if value != "" {
			attributes = append(attributes, key.String(value))
		}
	}
	list := func(key attribute.Key, value func(event) string) {
		var values []string
		seen := map[string]bool{"": true}
		for _, e := range events {
			if v := value(e); !seen[v] && len(values) < listMax {
				seen[v] = true
				values = append(values, v)
			}
		}
		if len(values) > 0 {
			attributes = append(attributes, key.StringSlice(values))
		}
	}
	if len(events) == 1 {
		text(keyTraceID, events[0].trace)
		text(semconv.MessagingMessageConversationIDKey, events[0].correlation)
		text(keyCausationID, events[0].causation)
		return attributes
	}
	list(keyTraceIDs, func(e event) string { return e.trace })
	list(keyCorrelationIDs, func(e event) string { return e.correlation })
	list(keyCausationIDs, func(e event) string { return e.causation })
	return attributes
}

// messageID names an event by its position, which is unique.
func messageID(position int64) attribute.KeyValue {
	return semconv.MessagingMessageID(strconv.FormatInt(position, 10))
}
