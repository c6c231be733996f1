package orchestrator

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Which version a projection follows is logged when it has changed, by whichever lane sees
// that first.
func TestVersionsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
	var v versions
	for _, seen := range [][2]string{
		{"users", ""}, // never anything else
		{"v2", "v1"}, {"v2", "v1"}, {"v3", "v1"},
		{"v2", ""}, {"v2", ""}, {"v3", "v2"}, {"v1", "v2"},
		{"v1", ""}, {"v2", "v1"}, // and back
	} {
		v.seen(log, seen[0], seen[1])
	}
	want := `msg="following the live version" projection=v2 live=v1
msg="following the live version" projection=v3 live=v1
msg="promoted to live version" projection=v2 replaced=v1
msg="following the live version" projection=v3 live=v2
msg="following the live version" projection=v1 live=v2
msg="promoted to live version" projection=v1 replaced=v2
msg="following the live version" projection=v2 live=v1
`
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
