package prometheus

import "strings"

// reason turns the reason for a generation, which is a text with numbers and
// names, into a label of few values: an order's kind, what has changed ("joined",
// or "joined,gone"), "first worker", or "other".
func reason(text string) string {
	if text == "first worker" {
		return text
	}
	// An order comes alone, and names a projection or a worker: "pause of orders".
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
	changes = map[string]bool{"joined": true, "gone": true, "above the limit": true, "below the limit": true}
)
