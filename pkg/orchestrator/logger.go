package orchestrator

import (
	"context"
	"log/slog"
	"slices"

	"github.com/getpup/pupsourcing/es"
)

// InfoErrorLogger is an es.Logger without Debug.
type InfoErrorLogger interface {
	Info(ctx context.Context, msg string, keyvals ...any)
	Error(ctx context.Context, msg string, keyvals ...any)
}

// WithoutDebug returns an es.Logger over a logger that has only Info and Error. Debug messages
// are dropped.
func WithoutDebug(l InfoErrorLogger) es.Logger { return withoutDebug{l} }

type withoutDebug struct{ InfoErrorLogger }

func (withoutDebug) Debug(context.Context, string, ...any) {}

// A handler is a slog.Handler that writes to an es.Logger. Groups become prefixes of keys:
// group.key. The logger adds the time.
type handler struct {
	logger  es.Logger
	prefix  string // of the open groups
	keyvals []any
}

// Enabled returns true: the logger decides, and has no method to ask it.
func (handler) Enabled(context.Context, slog.Level) bool { return true }

// Handle logs at the lowest of the logger's three levels that is at least the record's level:
// a warning becomes an error. If the record's level is none of the three, Handle adds it as an
// attribute.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	log := h.logger.Error
	switch {
	case r.Level <= slog.LevelDebug:
		log = h.logger.Debug
	case r.Level <= slog.LevelInfo:
		log = h.logger.Info
	}
	keyvals := slices.Clip(h.keyvals)
	switch r.Level {
	case slog.LevelDebug, slog.LevelInfo, slog.LevelError:
	default:
		keyvals = append(keyvals, slog.LevelKey, r.Level.String())
	}
	r.Attrs(func(a slog.Attr) bool {
		keyvals = flatten(keyvals, h.prefix, a)
		return true
	})
	log(ctx, r.Message, keyvals...)
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.keyvals = slices.Clip(h.keyvals)
	for _, a := range attrs {
		h.keyvals = flatten(h.keyvals, h.prefix, a)
	}
	return h
}

func (h handler) WithGroup(name string) slog.Handler {
	h.prefix = within(h.prefix, name)
	return h
}

// flatten appends the keys and values of an attribute.
func flatten(keyvals []any, prefix string, a slog.Attr) []any {
	a.Value = a.Value.Resolve()
	switch {
	case a.Equal(slog.Attr{}): // slog.Handler must ignore it
	case a.Value.Kind() == slog.KindGroup:
		for _, member := range a.Value.Group() {
			keyvals = flatten(keyvals, within(prefix, a.Key), member)
		}
	default:
		keyvals = append(keyvals, prefix+a.Key, a.Value.Any())
	}
	return keyvals
}

// within returns the prefix inside a group. A group without a name adds nothing.
func within(prefix, group string) string {
	if group == "" {
		return prefix
	}
	return prefix + group + "."
}
