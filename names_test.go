package orchestrator_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A name that nothing can have is refused where it enters, with what is wrong with
// it, and not taken for a database that is away; whatever the driver.
func TestNamesThatEnter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`INSERT INTO orchestrator_replica_sets (name, generation) VALUES ('set', 1)`)
	ctx, db := t.Context(), w.db
	for what, name := range map[string]string{"NUL": "a\x00b", "invalid UTF-8": "a\xffb", "a control character": "a\nb", "too long": strings.Repeat("x", 201)} {
		set := orchestrator.ReplicaSetName(name)
		all := orchestrator.ParkedSelector{All: true}
		refused := func(call string, want, err error) {
			t.Helper()
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "name") {
				t.Errorf("%s with a name with %s: %v, want %v, and what is wrong with the name", call, what, err, want)
			}
		}
		one := func(_ any, err error) error { return err }
		refused("Pause", orchestrator.ErrOrder, one(orchestrator.Pause(ctx, db, set, "p")))
		refused("Pause of a projection", orchestrator.ErrOrder, one(orchestrator.Pause(ctx, db, "set", name)))
		refused("Resume", orchestrator.ErrOrder, one(orchestrator.Resume(ctx, db, "set", name)))
		refused("Rewind", orchestrator.ErrOrder, one(orchestrator.Rewind(ctx, db, "set", name, 0)))
		refused("DrainWorker", orchestrator.ErrOrder, one(orchestrator.DrainWorker(ctx, db, "set", name)))
		refused("UndrainWorker", orchestrator.ErrOrder, one(orchestrator.UndrainWorker(ctx, db, "set", name)))
		refused("AwaitGeneration", orchestrator.ErrNoReplicaSet, orchestrator.AwaitGeneration(ctx, db, set, 1))
		refused("Status", orchestrator.ErrNoReplicaSet, one(orchestrator.Status(ctx, db, set)))
		refused("History", orchestrator.ErrNoReplicaSet, one(orchestrator.History(ctx, db, set, 1)))
		refused("Parked", orchestrator.ErrNoProjection, one(orchestrator.Parked(ctx, db, name, 1)))
		refused("RetryParked", orchestrator.ErrNoProjection, one(orchestrator.RetryParked(ctx, db, name, all)))
		refused("DiscardParked", orchestrator.ErrNoProjection, one(orchestrator.DiscardParked(ctx, db, name, all)))
		refused("WaitFor", orchestrator.ErrInvalidConfig, orchestrator.WaitFor(ctx, db, name, 1))
	}
	page := orchestrator.StatusHandler(db, orchestrator.AllowActions())
	for _, body := range []string{
		`{"action": "pause", "replica_set": "a\u0000b", "projection": "p"}`, `{"action": "pause", "replica_set": "set", "projection": "a\u0000b"}`,
		`{"action": "drain", "replica_set": "set", "worker": "a\u0000b"}`, `{"action": "retry", "projection": "a\u0000b", "position": 1}`,
	} {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		answer := httptest.NewRecorder()
		page.ServeHTTP(answer, r)
		if answer.Code != http.StatusConflict {
			t.Errorf("%s: %d %s, want 409", body, answer.Code, answer.Body)
		}
	}
}

// A scope with a name that no event can have would match nothing, silently.
func TestScopesThatMatchNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"a\x00b", "a\xffb"} {
		for field, p := range map[string]orchestrator.Projection[orchestrator.Event]{
			"AggregateTypes()[1]":  scopedNames{effects{name: "p"}, []string{"thing", name}, nil},
			"BoundedContexts()[0]": scopedNames{effects{name: "p"}, nil, []string{name}},
		} {
			err := run(t, w.config(w.db, "set"), p).failed()
			if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), field) {
				t.Errorf("%q: %v, want ErrInvalidConfig and %s", name, err, field)
			}
		}
	}
	if n := w.number(`SELECT count(*) FROM orchestrator_replica_sets`); n != 0 {
		t.Error("a worker that was refused has joined")
	}
}

type scopedNames struct {
	effects
	types, contexts []string
}

func (p scopedNames) Handle(context.Context, orchestrator.Event) error { return nil }
func (p scopedNames) AggregateTypes() []string                         { return p.types }
func (p scopedNames) BoundedContexts() []string                        { return p.contexts }
