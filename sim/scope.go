package sim

import (
	"slices"
	"strings"
)

// A scope is the aggregate types of a projection, separated by spaces, and its event types
// after a slash: "order refund/moved". "" is everything.
type scope string

// aggregateTypes and eventTypes are all types.
var (
	aggregateTypes = [...]string{"order", "parcel", "refund"}
	eventTypes     = [...]string{"made", "moved"}
)

// typeOf returns the type of an aggregate. It follows from the name, but not in the same
// way as the slot.
func typeOf(aggregate string) string {
	last := 0
	if n := len(aggregate); n > 0 {
		last = int(aggregate[n-1])
	}
	return aggregateTypes[last%len(aggregateTypes)]
}

// eventTypeOf returns the type of the event at a position. An aggregate has events of all
// types.
func eventTypeOf(position int64) string { return eventTypes[position/2%int64(len(eventTypes))] }

func (s scope) types() []string {
	types, _, _ := strings.Cut(string(s), "/")
	return strings.Fields(types)
}

func (s scope) eventTypes() []string {
	_, types, _ := strings.Cut(string(s), "/")
	return strings.Fields(types)
}

// includes reports whether an event is within the scope.
func (s scope) includes(e event) bool {
	types, eventTypes := s.types(), s.eventTypes()
	return (len(types) == 0 || slices.Contains(types, typeOf(e.aggregate))) &&
		(len(eventTypes) == 0 || slices.Contains(eventTypes, eventTypeOf(e.position)))
}
