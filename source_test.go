package orchestrator

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The parts of a scope that a type may say: each alone, and both.
type (
	unscoped   struct{}
	byIdentity struct{ unscoped }
	byType     struct{ unscoped }
	byBoth     struct{ byIdentity }
)

func (unscoped) Name() string                        { return "p" }
func (unscoped) Handle(context.Context, Event) error { return nil }
func (byIdentity) AggregateTypes() []string          { return []string{"Order"} }
func (byIdentity) BoundedContexts() []string         { return []string{"sales"} }
func (byType) EventTypes() []string                  { return []string{"Paid"} }
func (byBoth) EventTypes() []string                  { return []string{"Placed"} }

// A projection's scope is what its methods say. An option of With replaces all of it.
func TestScopeOfAProjection(t *testing.T) {
	t.Parallel()
	paid := WithScope(Scope{EventTypes: []string{"Paid"}})
	for _, test := range []struct {
		why  string
		p    Projection[Event]
		want Scope
	}{
		{"it says nothing", unscoped{}, Scope{}},
		{"pupsourcing's two methods", byIdentity{}, Scope{AggregateTypes: []string{"Order"}, BoundedContexts: []string{"sales"}}},
		{"the event types alone", byType{}, Scope{EventTypes: []string{"Paid"}}},
		{"all three", byBoth{}, Scope{AggregateTypes: []string{"Order"}, BoundedContexts: []string{"sales"}, EventTypes: []string{"Placed"}}},
		{"With keeps it", With[Event](byBoth{}, WithBatchSize(7)), Scope{AggregateTypes: []string{"Order"}, BoundedContexts: []string{"sales"}, EventTypes: []string{"Placed"}}},
		{"an option of With replaces it", With[Event](byBoth{}, paid), Scope{EventTypes: []string{"Paid"}}},
		{"With keeps a function's", With(Plain("p", unscoped{}.Handle, paid), WithBatchSize(7)), Scope{EventTypes: []string{"Paid"}}},
		{"a function's", Batch("p", func(context.Context, Tx, []Event) error { return nil }, paid), Scope{EventTypes: []string{"Paid"}}},
	} {
		got, err := scopeOf[Event](nothing{}, test.p, "p")
		if err != nil {
			t.Errorf("%s: %v", test.why, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.why, diff)
		}
	}
}

// What of an event is missing counts only where nothing else leaves it out.
func TestScopeIncludes(t *testing.T) {
	t.Parallel()
	all, paid := Scope{}, Scope{EventTypes: []string{"Paid", "Refunded"}}
	three := Scope{AggregateTypes: []string{"Order"}, BoundedContexts: []string{"sales"}, EventTypes: []string{"Paid"}}
	for _, test := range []struct {
		why                  string
		scope                Scope
		aggregate, bound, of string
		want                 bool
	}{
		{"everything", all, "Order", "sales", "Paid", true},
		{"one of the types", paid, "Order", "sales", "Refunded", true},
		{"another type", paid, "Order", "sales", "Placed", false},
		{"all three fit", three, "Order", "sales", "Paid", true},
		{"all but the event type", three, "Order", "sales", "Placed", false},
		{"all but the context", three, "Order", "billing", "Paid", false},
		{"all but the aggregate type", three, "User", "sales", "Paid", false},
	} {
		if got := test.scope.Includes(test.aggregate, test.bound, test.of); got != test.want {
			t.Errorf("%s: %t", test.why, got)
		}
		out, err := leavesOut(test.scope, &Record[Event]{AggregateType: test.aggregate, BoundedContext: test.bound, EventType: test.of}, false)
		if err != nil || out == test.want {
			t.Errorf("%s: it is left out: %t, %v", test.why, out, err)
		}
	}
}
