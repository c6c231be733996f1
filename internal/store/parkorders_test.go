package store

import (
	"strings"
	"testing"
)

// An order to park an event that can't have an effect is refused, with the reason that an
// operator can act on.
func TestParkProblem(t *testing.T) {
	for _, tt := range []struct {
		why               string
		belongs           string
		position          int64
		retired, parked   bool
		first, last, head int64
		want              string
	}{
		{why: "no worker has brought it", want: `there is no projection "p"`},
		{why: "it is another set's", belongs: "other", want: `belongs to replica set "other", not to "set"`},
		// Its checkpoints are gone: it has run, and will not again.
		{why: "it was retired", belongs: "set", retired: true, first: -1, last: -1, want: "was retired"},
		{why: "it has the row", belongs: "set", parked: true, first: 5, position: 5, want: "already parked"},
		{why: "it has no checkpoint", belongs: "set", first: -1, last: -1, want: "has not run yet"},
		{why: "every partition is past it", belongs: "set", first: 7, last: 9, position: 7, want: "it is past that, at 7"},
		{why: "the stream ends before", belongs: "set", first: 7, last: 9, head: 10, position: 11, want: "end at 10"},
		{why: "it may be there", belongs: "set", first: 7, last: 9, head: 10, position: 8},
		{why: "no worker knows the end", belongs: "set", first: 7, last: 9, position: 11},
	} {
		got := parkProblem("set", tt.belongs, "p", tt.position, tt.retired, tt.parked, tt.first, tt.last, tt.head)
		if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", tt.why, got, tt.want)
		}
	}
}
