package sim

import "strings"

// A scope is the aggregate types that a projection is about, with spaces
// between them; "" is all.
type scope string

// aggregateTypes are all there are. None is a part of another.
var aggregateTypes = [...]string{"order", "parcel", "refund"}

// typeOf returns the type of an aggregate. It follows from the name, but not in
// the way in which the slot does.
func typeOf(aggregate string) string {
	last := 0
	if n := len(aggregate); n > 0 {
		last = int(aggregate[n-1])
	}
	return aggregateTypes[last%len(aggregateTypes)]
}

func (s scope) types() []string { return strings.Fields(string(s)) }

// includes reports whether the events of an aggregate are within the scope.
func (s scope) includes(aggregate string) bool {
	return s == "" || strings.Contains(string(s), typeOf(aggregate))
}
