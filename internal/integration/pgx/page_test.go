package pgx

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// A countedConn counts what it receives.
type countedConn struct {
	net.Conn
	received *atomic.Int64
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

// In each mode, the received bytes are about those of the handled events, also when large events
// follow small ones. If an event can't be read, even by the driver, only this event is not
// handled.
func TestPages(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			_, url := pgtest.Database(t)
			config, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = mode
			var received atomic.Int64
			config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
				return countedConn{conn, &received}, err
			}
			db := stdlib.OpenDB(*config)
			defer db.Close()
			if err := orchestrator.RunMigrations(db); err != nil {
				t.Fatal(err)
			}
			const small, large, size, bad = 5000, 200, 200_000, 5100
			for _, statement := range []string{
				eventtable.Layout,
				fmt.Sprintf(insertSized, small, "''"),
				fmt.Sprintf(insertSized, large, fmt.Sprintf("decode(repeat('ab', %d), 'hex')", size)),
				fmt.Sprintf(`UPDATE events SET created_at = 'infinity' WHERE global_position = %d`, bad), // time.Time can't hold that
			} {
				if _, err := db.Exec(statement); err != nil {
					t.Fatal(err)
				}
			}
			events, err := orchestrator.NewEventTable(db, "")
			if err != nil {
				t.Fatal(err)
			}
			var handled atomic.Int64
			o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
				DB: db, EventStore: events, ReplicaSet: "set", JoinWindow: time.Millisecond, ReadAheadBytes: 6 << 20, OnFailure: orchestrator.ParkEvents,
				Failures: map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 1}},
				Logger:   slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{counts{&handled}}) }()
			var parked []ops.ParkedEvent
			pgtest.Eventually(t, "all is handled but one, and that is parked", func() bool {
				parked, _ = ops.Parked(t.Context(), db, "p", 10)
				return handled.Load() == small+large-1 && len(parked) == 1 && parked[0].Position == bad
			})
			cancel()
			<-ended
			wire := int64(large * size)
			if mode != pgx.QueryExecModeCacheStatement {
				wire *= 2 // bytes come in hex
			}
			if got := received.Load(); got > wire*3/2+30<<20 {
				t.Errorf("%d MB were received for %d MB", got>>20, wire>>20)
			}
		})
	}
}

const insertSized = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', gen_random_uuid(), 1, gen_random_uuid(), 'happened', %[2]s FROM generate_series(1, %[1]d)`

type counts struct{ n *atomic.Int64 }

func (counts) Name() string { return "p" }

func (c counts) Handle(context.Context, orchestrator.Event) error {
	c.n.Add(1)
	return nil
}
