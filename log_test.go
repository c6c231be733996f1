package orchestrator

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// Durations and lists are the same texts in every handler, and a key without a value is
// left out.
func TestLogValues(t *testing.T) {
	t.Parallel()
	var name atomic.Value
	name.Store("w1")
	for format, want := range map[string]string{
		"text": `level=WARN msg=said worker=w1 waited=2m10.5s workers="w2, w3" error=no attempt=0`,
		"json": `{"level":"WARN","msg":"said","worker":"w1","waited":"2m10.5s","workers":"w2, w3","error":"no","attempt":0}`,
	} {
		var out bytes.Buffer
		o := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}
		var to slog.Handler = slog.NewTextHandler(&out, o)
		if format == "json" {
			to = slog.NewJSONHandler(&out, o)
		}
		var none []protocol.WorkerID
		slog.New(namedLog{redact.Handler(to), &name}).WarnContext(context.Background(), "said",
			"waited", 130*time.Second+499*time.Millisecond, "workers", list([]protocol.WorkerID{"w2", "w3"}), "error", errors.New("no"), "attempt", 0,
			"duration", time.Duration(0), "waits_for", list(none), "cause", error(nil))
		if got := strings.TrimSpace(out.String()); got != want {
			t.Errorf("%s:\n got %s\nwant %s", format, got, want)
		}
	}
}
