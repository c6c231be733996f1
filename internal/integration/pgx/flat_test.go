package pgx

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// prepared returns the statements that the idle sessions of a pool have prepared.
func prepared(t *testing.T, db *sql.DB) map[string]bool {
	t.Helper()
	texts := map[string]bool{}
	var held []*sql.Conn
	for range db.Stats().Idle {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
		rows, err := conn.QueryContext(t.Context(), `SELECT statement FROM pg_prepared_statements`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var text string
			if err := rows.Scan(&text); err != nil {
				t.Fatal(err)
			}
			texts[text] = true
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range held {
		conn.Close()
	}
	return texts
}

// nothing is a transactional projection that writes nothing.
type nothing struct{ told }

func (nothing) Name() string { return "nothing" }

func (nothing) HandleTx(context.Context, orchestrator.Tx, orchestrator.Event) error { return nil }

// By default pgx prepares and keeps each statement with another text, which takes memory of the
// server. So the number of texts must not grow, however often a worker sends heartbeats, reports
// and commits.
func TestPreparedStatementsDoNotGrow(t *testing.T) {
	_, url := pgtest.Database(t)
	db, err := opener(pgx.QueryExecModeCacheStatement)(url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxIdleConns(20)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(tables); err != nil {
		t.Fatal(err)
	}
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: "set", HeartbeatInterval: 10 * time.Millisecond, StaleWorkerTimeout: 20 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	handled, done := make(told), make(chan error, 1)
	go func() { done <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{handled, nothing{told(nil)}}) }()
	const n = 300
	for i := range n {
		if _, err := db.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('shop', 't', md5($1::bigint::text)::uuid, $1, gen_random_uuid(), 'x', decode(md5('x'), 'hex'))`, i+1); err != nil {
			t.Fatal(err)
		}
		<-handled
		if _, err := ops.Status(ctx, db, "set"); err != nil {
			t.Fatal(err)
		}
		if _, err := ops.History(ctx, db, "set", i+1); err != nil {
			t.Fatal(err)
		}
		if err := orchestrator.WaitFor(ctx, db, "told", int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	texts := prepared(t, db)
	if len(texts) < 5 || len(texts) > 60 {
		for text := range texts {
			t.Log(text)
		}
		t.Errorf("%d texts are prepared after %d events, want some and at most 60", len(texts), n)
	}
	t.Logf("%d texts are prepared after %d events", len(texts), n)
}
