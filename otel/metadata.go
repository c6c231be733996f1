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

// How a span finds the spans that appended its events. A link needs the id of a span beside
// that of its trace. The SDK drops one without, or, where it has attributes, keeps it with a
// span id of zeros (TestLinkWithoutSpan), which nobody can follow. So an event that knows its
// trace alone is not linked; the id of the trace is an attribute, always.

// Metadata is what an event knows of the trace that appended it. Fields that are empty are
// left out.
type Metadata struct {
	// Traceparent is the span that appended the event, as in the header of W3C Trace
	// Context: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01". See Traceparent.
	// The span of the handler is linked to it.
	Traceparent string
	// TraceID is the id of its trace, where the event does not know the span: 32 hexadecimal
	// digits, or a UUID, which is the same with hyphens. Anything else is taken as it is.
	// Default: the one of Traceparent.
	TraceID string
	// CorrelationID and CausationID are taken as they are.
	CorrelationID, CausationID string
}

// Traceparent returns the span of ctx as the header of W3C Trace Context has it, to be
// stored with the events that are appended in it. It is "" if there is none.
func Traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceparent]
}

const traceparent = "traceparent"

// EventMetadata returns what an event in pupsourcing's layout knows: its columns trace_id,
// correlation_id and causation_id, and "traceparent" in the JSON object in its column
// metadata.
func EventMetadata(e orchestrator.Event) Metadata {
	var stored struct {
		Traceparent string `json:"traceparent"`
	}
	if len(e.Metadata) > 0 {
		_ = json.Unmarshal(e.Metadata, &stored) // whatever else that may be is not ours
	}
	return Metadata{
		Traceparent: stored.Traceparent,
		TraceID:     e.TraceID.String, CorrelationID: e.CorrelationID.String, CausationID: e.CausationID.String,
	}
}

// An event is what the span of a call is to know of one of its events.
type event struct {
	position               int64
	by                     trace.SpanContext // that appended it; invalid: not known
	trace                  string
	correlation, causation string
}

// eventsOf returns the events of the call that ctx was made for.
func eventsOf[E any](ctx context.Context, metadata func(E) Metadata, other *sync.Once) []event {
	records := orchestrator.EventsFrom[E](ctx)
	if len(records) == 0 {
		other.Do(func() {
			otel.Handle(fmt.Errorf("orchestratorotel: the events of the Orchestrator are not of the type %v, which Config.Metadata takes: their spans are not linked", reflect.TypeFor[E]()))
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

// harmless calls the program's function. What only traces need must not fail a delivery.
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

// traceID returns the id of a trace as backends have it, so that it can be searched for.
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

// listMax is how many links a span has at most, and how many ids a list in an attribute:
// what the SDK keeps of links by default.
const listMax = 128

// links returns a link for each span that appended some of the events, of the first
// listMax. Where there are several events, it names the first one of the span's.
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

// describe appends what the events know, of one as it is, of several as lists.
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

// messageID is how an event is named: by its position, which is unique.
func messageID(position int64) attribute.KeyValue {
	return semconv.MessagingMessageID(strconv.FormatInt(position, 10))
}
