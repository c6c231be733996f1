package prometheus

import "strings"

// reason turns the reason of a generation, which contains numbers and names, into one of a few
// values: the kind of an order, what has changed ("joined", or "joined,gone"), "first worker",
// or "other".
func reason(text string) string {
	if text == "first worker" {
		return text
	}
	// An order is the only reason, and names a projection or a worker: "pause of orders".
	kind, _, order := strings.Cut(text, " of ")
	if order && orders[kind] {
		return kind
	}
	var parts []string
	for part := range strings.SplitSeq(text, ", ") {
		number, what, _ := strings.Cut(part, " ")
		if strings.Trim(number, "0123456789") != "" || !changes[what] {
			return "other"
		}
		parts = append(parts, what)
	}
	return strings.Join(parts, ",")
}

var (
	orders  = map[string]bool{"pause": true, "resume": true, "rewind": true, "drain": true, "undrain": true, "hold": true, "release": true}
	changes = map[string]bool{"joined": true, "gone": true, "above MaxPartitions": true, "below MaxPartitions": true}
)
