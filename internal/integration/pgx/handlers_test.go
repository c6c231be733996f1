package pgx

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// does is a projection that misuses its transaction at the first event of aggregate version 1,
// and then writes.
type does struct {
	name string
	do   func(ctx context.Context, tx orchestrator.Tx) error
}

func (p does) Name() string { return p.name }

func (does) Handle(context.Context, orchestrator.Event) error { return errors.New("not called") }

func (p does) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if e.AggregateVersion == 1 {
		if err := p.do(ctx, tx); err != nil {
			return err
		}
	}
	return effect(ctx, p.name, tx, e)
}

func does1(query string) func(context.Context, orchestrator.Tx) error {
	return func(ctx context.Context, tx orchestrator.Tx) error {
		_, err := tx.ExecContext(ctx, query)
		return err
	}
}

// itself is an error that wraps itself.
type itself struct{}

func (itself) Error() string     { return "itself" }
func (e itself) Unwrap() []error { return []error{e} }

// Whatever a handler does with its transaction through pgx, only that event fails.
func TestHandlersThatMisbehave(t *testing.T) {
	const other = "nothing"
	rows := func(ctx context.Context, tx orchestrator.Tx) error {
		r, err := tx.QueryContext(ctx, `SELECT generate_series(1, 10000)`)
		if err == nil {
			r.Next()
		}
		return err
	}
	deadline := func(ctx context.Context, tx orchestrator.Tx) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		_, err := tx.ExecContext(ctx, `SELECT pg_sleep(60)`)
		return err
	}
	nothing := func(context.Context, orchestrator.Tx) error { return nil }
	raw := func(do func(context.Context, *pgx.Conn) error) func(context.Context, orchestrator.Tx) error {
		return func(ctx context.Context, tx orchestrator.Tx) error {
			return tx.Raw(func(conn any) error { return do(ctx, conn.(*stdlib.Conn).Conn()) })
		}
	}
	copies := raw(func(ctx context.Context, conn *pgx.Conn) error {
		n, err := conn.CopyFrom(ctx, pgx.Identifier{"copied"}, []string{"n"}, pgx.CopyFromRows([][]any{{1}, {2}}))
		if err == nil && n != 2 {
			err = fmt.Errorf("%d rows were copied", n)
		}
		return err
	})
	leavesRows := raw(func(ctx context.Context, conn *pgx.Conn) error {
		r, err := conn.Query(ctx, `SELECT generate_series(1, 10000)`)
		if err == nil {
			r.Next()
		}
		return err
	})
	commits := raw(func(ctx context.Context, conn *pgx.Conn) error { _, err := conn.Exec(ctx, `COMMIT; BEGIN`); return err })
	panics := raw(func(context.Context, *pgx.Conn) error { panic("in Raw") })
	hostile := raw(func(context.Context, *pgx.Conn) error { return itself{} })
	swallows := func(ctx context.Context, tx orchestrator.Tx) error {
		_ = tx.Raw(func(conn any) error {
			_, _ = conn.(*stdlib.Conn).Conn().Query(ctx, `SELECT generate_series(1, 10000)`)
			return errors.New("swallowed")
		})
		return nil
	}
	late := func(ctx context.Context, tx orchestrator.Tx) error {
		begun := make(chan struct{})
		go tx.Raw(func(any) error {
			close(begun)
			<-t.Context().Done()
			return nil
		})
		<-begun
		return nil
	}
	exits := raw(func(context.Context, *pgx.Conn) error { runtime.Goexit(); return nil })
	within := func(ctx context.Context, tx orchestrator.Tx) error {
		return tx.Raw(func(any) error { return tx.QueryRowContext(ctx, `SELECT 1`).Scan(new(int)) })
	}
	misdeeds := map[string]struct {
		do   func(context.Context, orchestrator.Tx) error
		want string // the error; "": none
	}{
		"rollback":     {does1(`ROLLBACK`), "can't end its transaction"},
		"unseen":       {does1(`SELECT 1; END; BEGIN`), "has ended its transaction"},
		"rows":         {rows, "rows of a query open"},
		"deadline":     {deadline, "deadline"},
		"timeout":      {does1(`SET LOCAL statement_timeout = '1ms'; SELECT pg_sleep(60)`), "statement timeout"},
		"typed nil":    {func(context.Context, orchestrator.Tx) error { return (*pgconn.PgError)(nil) }, "typed nil *pgconn.PgError"},
		"search path":  {does1(`SET search_path = pg_catalog, public`), ""},
		"raw copies":   {copies, ""},
		"raw rows":     {leavesRows, "busy"},
		"raw commits":  {commits, "has ended its transaction"},
		"raw panics":   {panics, "in Raw"},
		"raw hostile":  {hostile, "itself"},
		"raw swallows": {swallows, "busy"},
		"raw is late":  {late, "Tx.Raw is under way"},
		"raw exits":    {exits, "ended its goroutine"},
		"within raw":   {within, "Tx.Raw is under way"},
		other:          {nothing, ""},
	}
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			_, url := pgtest.Database(t)
			db, err := opener(mode)(url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			if err := orchestrator.RunMigrations(db); err != nil {
				t.Fatal(err)
			}
			for _, q := range []string{tables, insertEvents, `CREATE TABLE copied (n int)`} {
				if _, err := db.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			events, err := orchestrator.NewEventTable(db, "")
			if err != nil {
				t.Fatal(err)
			}
			var projections []orchestrator.Projection[orchestrator.Event]
			failures := map[string]orchestrator.FailureRule{}
			for name, m := range misdeeds {
				projections = append(projections, does{name, m.do})
				failures[name] = orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 2}
			}
			o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
				DB: db, EventStore: events, ReplicaSet: "set", BatchSize: 1, Failures: failures,
				Retry: orchestrator.Retry{Min: 5 * time.Millisecond, Max: 100 * time.Millisecond},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- o.Run(ctx, projections) }()
			for name, m := range misdeeds {
				pgtest.Eventually(t, name+" has gone on", func() bool {
					var handled, parked, total int
					err := db.QueryRow(`
SELECT (SELECT count(DISTINCT position) FROM effects WHERE projection = $1), (SELECT count(*) FROM orchestrator_parked WHERE projection = $1), (SELECT count(*) FROM events)`,
						name).Scan(&handled, &parked, &total)
					if err != nil {
						t.Fatal(err)
					}
					return handled+parked == total && (parked > 0) == (m.want != "")
				})
				if parked, err := ops.Parked(t.Context(), db, name, 1); err != nil || m.want != "" && !strings.Contains(parked[0].Error, m.want) {
					t.Errorf("%s has parked %+v, %v; want %q", name, parked, err, m.want)
				}
			}
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}
