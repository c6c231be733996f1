package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Open opens a database by its URL, with the driver to test.
type Open func(url string) (*sql.DB, error)

// clockSQL is a clock that only moves on request. It is exact: PostgreSQL has microseconds, and
// so have all sums of these.
const clockSQL = `
CREATE TABLE test_clock (time timestamptz NOT NULL);
INSERT INTO test_clock VALUES ('2001-02-03 04:05:06.789012Z');
CREATE FUNCTION test_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT time FROM test_clock'`

// Postgres returns a function that creates worlds for Run: schemas of one database.
func Postgres(t *testing.T, open Open) func(t *testing.T) World {
	_, base := pgtest.Database(t)
	var schemas atomic.Int64
	return func(t *testing.T) World {
		schema := fmt.Sprintf("world%d", schemas.Add(1))
		db := openSchema(t, open, base, schema)
		if _, err := db.ExecContext(t.Context(), "CREATE SCHEMA "+schema); err != nil {
			t.Fatal(err)
		}
		for _, script := range []string{orchestrator.SchemaSQL(), clockSQL} {
			if _, err := db.ExecContext(t.Context(), script); err != nil {
				t.Fatal(err)
			}
		}
		return &postgres{t: t, db: db}
	}
}

func openSchema(t *testing.T, open Open, base, schema string) *sql.DB {
	t.Helper()
	return openWith(t, open, base, "search_path", schema)
}

// openWith opens a database with a setting of the session.
func openWith(t *testing.T, open Open, base, setting, value string) *sql.DB {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(setting, value)
	u.RawQuery = q.Encode()
	db, err := open(u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

type postgres struct {
	t  *testing.T
	db *sql.DB
}

func (p *postgres) Open(set string, lease time.Duration) Store {
	return postgresStore{db: p.db, Store: store.New(p.db, set, store.Options{Bounds: store.BoundsOf(lease), Clock: "test_now()", Rebuilds: Rebuilds})}
}

func (p *postgres) Advance(d time.Duration) {
	p.t.Helper()
	_, err := p.db.ExecContext(p.t.Context(), `UPDATE test_clock SET time = time + $1::bigint * interval '1 microsecond'`, d.Microseconds())
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *postgres) Waiting() (n int) {
	p.t.Helper()
	err := p.db.QueryRowContext(p.t.Context(),
		`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *postgres) Delete(projection string, partitions ...int) {
	p.t.Helper()
	for _, k := range partitions {
		res, err := p.db.ExecContext(p.t.Context(),
			`DELETE FROM orchestrator_checkpoints WHERE projection = $1 AND partition = $2`, projection, k)
		if err != nil {
			p.t.Fatal(err)
		}
		if n, err := res.RowsAffected(); n != 1 || err != nil {
			p.t.Fatalf("deleted %d rows of projection %s partition %d: %v", n, projection, k, err)
		}
	}
}

type postgresStore struct {
	*store.Store
	db *sql.DB
}

func (s postgresStore) Write(ctx context.Context, l store.Lane, from, to protocol.Checkpoint) (Tx, error) {
	tx, err := s.BeginHandler(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Commit(ctx, tx.Tx, l, from, to); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

func (s postgresStore) Take(ctx context.Context, l store.Lane, position int64) (Tx, error) {
	tx, err := s.BeginHandler(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Unpark(ctx, tx.Tx, l, position); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

func (s postgresStore) Outcome(ctx context.Context, number int64) (string, error) {
	o, err := s.ParkOrder(ctx, number)
	return o.Outcome, err
}

func (s postgresStore) Request(ctx context.Context, projection string, position int64, r protocol.ParkRequest) (int, error) {
	return store.AskParked(ctx, store.Tables{DB: s.db}, projection, store.ParkedSelection{Positions: []int64{position}}, r)
}
