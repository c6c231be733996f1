package orchestratorpgx_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/ops"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

// Over a pool, a read model is rebuilt and promoted with several statements.
func TestPromote(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`CREATE TABLE v1 (position bigint PRIMARY KEY, replay text); CREATE TABLE v2 (position bigint PRIMARY KEY, replay text)`)
	w.Append(10)
	version := func(name string, options ...orchestrator.ProjectionOption) orchestrator.Projection[orchestrator.Event] {
		return orchestratorpgx.Transactional(name, func(ctx context.Context, tx pgx.Tx, e orchestrator.Event) error {
			d, _ := orchestrator.DeliveryFrom(ctx)
			_, err := tx.Exec(ctx, `INSERT INTO `+name+` VALUES ($1, $2)`, e.GlobalPosition, string(d.Replay))
			return err
		}, options...)
	}
	cfg, err := orchestratorpgx.Config(w.pool, "set")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	v1, v2 := version("v1"), version("v2", orchestrator.WithRebuildOf("v1"))
	if err := o.CatchUp(t.Context(), []orchestrator.Projection[orchestrator.Event]{v1}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{v1, v2}) }()
	pgtest.Eventually(t, "v2 is built", func() bool { return w.Number(`SELECT count(*) FROM v2 WHERE replay = 'rebuild'`) == 10 })
	p, err := ops.Promote(t.Context(), orchestratorpgx.DB(w.pool), "v2", `CREATE VIEW model AS SELECT * FROM v2; COMMENT ON VIEW model IS 'v2'`)
	if err != nil || p.Replaced != "v1" {
		t.Fatalf("%+v, %v", p, err)
	}
	w.Append(5)
	pgtest.Eventually(t, "v2 goes on", func() bool { return w.Number(`SELECT count(*) FROM model WHERE replay = ''`) == 5 })
	if n := w.Number(`SELECT count(*) FROM v1`); n != 10 {
		t.Errorf("v1 has handled %d events", n)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
