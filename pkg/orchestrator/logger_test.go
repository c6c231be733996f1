package orchestrator

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/getpup/pupsourcing/es"
	"github.com/google/go-cmp/cmp"
)

// recorder keeps the lines that it gets.
type recorder struct{ lines []line }

type line struct {
	Level, Msg string
	Keyvals    []any
}

func (r *recorder) Debug(_ context.Context, msg string, keyvals ...any) { r.add("debug", msg, keyvals) }
func (r *recorder) Info(_ context.Context, msg string, keyvals ...any)  { r.add("info", msg, keyvals) }
func (r *recorder) Error(_ context.Context, msg string, keyvals ...any) { r.add("error", msg, keyvals) }

func (r *recorder) add(level, msg string, keyvals []any) {
	r.lines = append(r.lines, line{level, msg, slices.Clone(keyvals)})
}

func TestLoggerLines(t *testing.T) {
	r := &recorder{}
	log := slog.New(handler{logger: r}).With("worker", "w1")
	err := fmt.Errorf("broken")
	log.Debug("a", "n", 1)
	log.Info("b")
	log.Warn("c", "error", err)
	log.Error("d", slog.Group("at", "position", int64(7), slog.Group("in", "partition", 2)))
	log.WithGroup("lane").With("name", "users").WithGroup("").Info("e", "after", time.Second)
	log.Log(t.Context(), slog.LevelDebug-2, "f")
	log.Log(t.Context(), slog.LevelDebug+1, "g")
	log.Log(t.Context(), slog.LevelError+4, "h")
	want := []line{
		{"debug", "a", []any{"worker", "w1", "n", int64(1)}},
		{"info", "b", []any{"worker", "w1"}},
		{"error", "c", []any{"worker", "w1", "level", "WARN", "error", err}},
		{"error", "d", []any{"worker", "w1", "at.position", int64(7), "at.in.partition", int64(2)}},
		{"info", "e", []any{"worker", "w1", "lane.name", "users", "lane.after", time.Second}},
		{"debug", "f", []any{"worker", "w1", "level", "DEBUG-2"}},
		{"info", "g", []any{"worker", "w1", "level", "DEBUG+1"}},
		{"error", "h", []any{"worker", "w1", "level", "ERROR+4"}},
	}
	if diff := cmp.Diff(want, r.lines, cmp.Comparer(func(a, b error) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Loggers derived from the same logger do not share attributes.
func TestLoggersAreApart(t *testing.T) {
	r := &recorder{}
	log := slog.New(handler{logger: r}).With("a", 1).With("b", 2).With("c", 3)
	x, y := log.With("x", 0), log.With("y", 0)
	x.Info("x", "last", "x")
	y.Info("y", "last", "y")
	x.Info("x")
	var got []string
	for _, l := range r.lines {
		got = append(got, fmt.Sprint(l.Keyvals))
	}
	want := []string{"[a 1 b 2 c 3 x 0 last x]", "[a 1 b 2 c 3 y 0 last y]", "[a 1 b 2 c 3 x 0]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The handler passes the standard library's tests.
func TestHandler(t *testing.T) {
	var r *recorder
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		if strings.HasSuffix(t.Name(), "/zero-time") {
			t.Skip("the time is the logger's own")
		}
		r = &recorder{}
		return handler{logger: r}
	}, func(t *testing.T) map[string]any {
		if len(r.lines) != 1 {
			t.Fatalf("%d lines, want one", len(r.lines))
		}
		l := r.lines[0]
		result := map[string]any{slog.TimeKey: time.Now(), slog.LevelKey: l.Level, slog.MessageKey: l.Msg}
		for i := 0; i < len(l.Keyvals); i += 2 {
			at := result
			path := strings.Split(l.Keyvals[i].(string), ".")
			for _, group := range path[:len(path)-1] {
				if at[group] == nil {
					at[group] = map[string]any{}
				}
				at = at[group].(map[string]any)
			}
			at[path[len(path)-1]] = l.Keyvals[i+1]
		}
		return result
	})
}

// twoLevels has no Debug.
type twoLevels struct{ r *recorder }

func (l twoLevels) Info(ctx context.Context, msg string, keyvals ...any) {
	l.r.Info(ctx, msg, keyvals...)
}
func (l twoLevels) Error(ctx context.Context, msg string, keyvals ...any) {
	l.r.Error(ctx, msg, keyvals...)
}

func TestWithoutDebug(t *testing.T) {
	r := &recorder{}
	var l es.Logger = WithoutDebug(twoLevels{r})
	l.Debug(t.Context(), "a")
	l.Info(t.Context(), "b", "k", 1)
	l.Error(t.Context(), "c")
	want := []line{{"info", "b", []any{"k", 1}}, {"error", "c", nil}}
	if diff := cmp.Diff(want, r.lines); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
