package pgx

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// notifier is an orchestrator.Notifier over pgx, in as few lines as possible. It is comparable,
// so the workers of a process share a connection.
type notifier struct{ url string }

func (n notifier) Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	conn, err := pgx.Connect(ctx, n.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, c := range channels {
		if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{c}.Sanitize()); err != nil {
			return err
		}
	}
	up()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		heard(n.Channel, n.Payload)
	}
}

// counted counts the events that it handles.
type counted struct{ events chan int64 }

func (counted) Name() string { return "counted" }

func (c counted) Handle(ctx context.Context, e orchestrator.Event) error {
	select {
	case c.events <- e.GlobalPosition:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The polling intervals are longer than the test: only notifications can make the workers read.
func TestNotifier(t *testing.T) {
	_, url := pgtest.Database(t)
	db, err := opener(pgx.QueryExecModeCacheStatement)(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(tables); err != nil {
		t.Fatal(err)
	}
	table, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: table, ReplicaSet: "set", JoinWindow: time.Millisecond,
		HeartbeatInterval: time.Hour, StaleWorkerTimeout: 3 * time.Hour,
		Notifier: notifier{url},
	})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan int64)
	start := func() *worker {
		ctx, cancel := context.WithCancel(context.Background())
		w := &worker{cancel, make(chan error, 1)}
		go func() { w.done <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{counted{events}}) }()
		t.Cleanup(cancel)
		return w
	}
	// handles waits until the set runs a number of partitions and has handled new events.
	handles := func(total int) {
		t.Helper()
		pgtest.Eventually(t, "the generation is active", func() bool {
			var n int
			err := db.QueryRow(`SELECT count(*) FROM orchestrator_replica_sets WHERE phase = 'active' AND total = $1`, total).Scan(&n)
			return err == nil && n == 1
		})
		if _, err := db.Exec(insertEvents); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			select {
			case <-events:
			case <-time.After(time.Minute):
				t.Fatal("events are not handled")
			}
		}
	}
	a := start()
	handles(1)
	b := start()
	handles(2)
	a.stop(t)
	handles(1)
	b.stop(t)
}
