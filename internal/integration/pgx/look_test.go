package pgx

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// told receives the position of each event.
type told chan int64

func (told) Name() string { return "told" }

func (t told) Handle(_ context.Context, e orchestrator.Event) error {
	t <- e.GlobalPosition
	return nil
}

// By default pgx prepares and keeps each query with another text. So the poll for new events
// must have the same text at every position.
func TestPollIsPreparedOncePerSession(t *testing.T) {
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
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{DB: db, EventStore: events, ReplicaSet: "set", LeaseOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	handled, done := make(told), make(chan error, 1)
	go func() { done <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{handled}) }()
	const n = 20
	for i := range n {
		if _, err := db.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
VALUES ('c', 't', md5('1')::uuid, $1, gen_random_uuid(), 'x', 'x')`, i+1); err != nil {
			t.Fatal(err)
		}
		<-handled
	}
	cancel()
	<-done
	looks, sessions := 0, db.Stats().Idle
	var held []*sql.Conn
	for range sessions {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
		var here int
		if err := conn.QueryRowContext(t.Context(), `
SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT "global_position"%FETCH FIRST%'`).Scan(&here); err != nil {
			t.Fatal(err)
		}
		looks += here
	}
	for _, conn := range held {
		conn.Close()
	}
	// Run's check has three texts of its own.
	if most := 3 + sessions; looks == 0 || looks > most {
		t.Errorf("%d looks were prepared in %d sessions for %d events, want at most %d", looks, sessions, n, most)
	}
}
