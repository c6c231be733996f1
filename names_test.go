package orchestrator_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A scope with a name that no event can have would match nothing, silently.
func TestScopesThatMatchNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"a\x00b", "a\xffb"} {
		for field, p := range map[string]orchestrator.Projection[orchestrator.Event]{
			"AggregateTypes()[1]":  scopedNames{testworld.Effects{Projection: "p"}, []string{"thing", name}, nil, nil},
			"BoundedContexts()[0]": scopedNames{testworld.Effects{Projection: "p"}, nil, []string{name}, nil},
			"EventTypes()[0]":      scopedNames{testworld.Effects{Projection: "p"}, nil, nil, []string{name}},
		} {
			err := testworld.Run(t, w.Config(w.DB, "set"), p).Failed()
			if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), field) {
				t.Errorf("%q: %v, want ErrInvalidConfig and %s", name, err, field)
			}
		}
	}
	if n := w.Sets(); n != 0 {
		t.Error("a worker that was refused has joined")
	}
}

type scopedNames struct {
	testworld.Effects
	types, contexts, events []string
}

func (p scopedNames) Handle(context.Context, orchestrator.Event) error { return nil }
func (p scopedNames) AggregateTypes() []string                         { return p.types }
func (p scopedNames) BoundedContexts() []string                        { return p.contexts }
func (p scopedNames) EventTypes() []string                             { return p.events }
