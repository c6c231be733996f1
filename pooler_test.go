package orchestrator_test

import (
	"log/slog"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// What README says of a pooler: everything works but LISTEN, which must lead to the
// server itself, and the sessions that show who is there. Each worker finds that
// out, says so, and goes by leases.
func TestBehindPgBouncer(t *testing.T) {
	w := newWorld(t)
	pooled := testworld.PgBouncer(t, w.URL, "transaction")
	// Otherwise lib/pq asks for what it has prepared, unnamed, on another connection.
	db := reopen(t, pooled, "binary_parameters", "yes")
	for _, c := range []struct {
		set    orchestrator.ReplicaSetName
		listen string
	}{{"polls", pooled}, {"hears", w.URL}} {
		t.Run(string(c.set), func(t *testing.T) {
			log := &testworld.Log{To: t.Output()}
			cfg := w.Config(db, c.set)
			cfg.Notifier = notifier(t, c.listen)
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
			if c.listen == w.URL {
				cfg.HeartbeatInterval, cfg.StaleWorkerTimeout = time.Hour, 3*time.Hour
			}
			h := &testworld.History{}
			name := "transactional " + string(c.set)
			plainName := "plain " + string(c.set)
			for i := range 3 {
				testworld.Run(t, cfg, testworld.Effects{Projection: name, Log: h}.Transactional(), testworld.Effects{Projection: plainName, Log: h}.Plain(db))
				w.Active(c.set, i+1)
			}
			for range 3 {
				w.Append(300)
				w.CaughtUp(name, plainName)
			}
			log.Wait(t, "a connection pooler shares database sessions")
			w.Active(c.set, 3)
			h.Check(t)
			w.CheckEffects(name)
		})
	}
}
