package ops_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// An invalid name is refused at every entry, with the reason, and does not look like an
// unreachable database, with any driver.
func TestNamesAreChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation) VALUES ('set', 1)`)
	ctx, db := t.Context(), w.DB
	for what, name := range map[string]string{"NUL": "a\x00b", "invalid UTF-8": "a\xffb", "a control character": "a\nb", "too long": strings.Repeat("x", 201)} {
		set := orchestrator.ReplicaSetName(name)
		all := ops.ParkedSelector{All: true}
		refused := func(call string, want, err error) {
			t.Helper()
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "name") {
				t.Errorf("%s with a name with %s: %v, want %v, and what is wrong with the name", call, what, err, want)
			}
		}
		one := func(_ any, err error) error { return err }
		refused("Pause", ops.ErrRejected, one(ops.Pause(ctx, db, set, "p")))
		refused("Pause of a projection", ops.ErrRejected, one(ops.Pause(ctx, db, "set", name)))
		refused("Resume", ops.ErrRejected, one(ops.Resume(ctx, db, "set", name)))
		refused("Rewind", ops.ErrRejected, one(ops.Rewind(ctx, db, "set", name, 0)))
		refused("DrainWorker", ops.ErrRejected, one(ops.DrainWorker(ctx, db, "set", name)))
		refused("UndrainWorker", ops.ErrRejected, one(ops.UndrainWorker(ctx, db, "set", name)))
		refused("Park", ops.ErrRejected, one(ops.Park(ctx, db, set, "p", 1, "ann")))
		refused("Park of a projection", ops.ErrRejected, one(ops.Park(ctx, db, "set", name, 1, "ann")))
		refused("Park by", ops.ErrRejected, one(ops.Park(ctx, db, "set", "p", 1, name)))
		refused("AwaitGeneration", ops.ErrNoReplicaSet, ops.AwaitGeneration(ctx, db, set, 1))
		refused("Status", ops.ErrNoReplicaSet, one(ops.Status(ctx, db, set)))
		refused("History", ops.ErrNoReplicaSet, one(ops.History(ctx, db, set, 1)))
		refused("Parked", ops.ErrNoProjection, one(ops.Parked(ctx, db, name, 1)))
		refused("RetryParked", ops.ErrNoProjection, one(ops.RetryParked(ctx, db, name, all)))
		refused("DiscardParked", ops.ErrNoProjection, one(ops.DiscardParked(ctx, db, name, all)))
		refused("WaitFor", orchestrator.ErrInvalidConfig, orchestrator.WaitFor(ctx, db, name, 1))
	}
	page := ops.StatusHandler(db, ops.AllowActions())
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
