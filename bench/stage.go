package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	_ "github.com/lib/pq" // the driver "postgres"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// A bench is one run of this program.
type bench struct {
	options
	server    *embedpg.Server
	databases []*database
	stream    *database // with events, for all trials that only read
	names     int
}

// fresh returns an unused name.
func (b *bench) fresh(prefix string) string {
	b.names++
	return fmt.Sprintf("%s%d", prefix, b.names)
}

func (b *bench) close(ctx context.Context) error {
	var errs []error
	for _, d := range b.databases {
		errs = append(errs, d.db.Close(), d.drop(ctx))
	}
	return errors.Join(errs...)
}

// A database has the library's tables, an events table, and tables of the benchmark.
type database struct {
	name   string
	url    string
	db     *sql.DB // for preparation, observation and checks
	drop   func(context.Context) error
	events int64 // number of events at the start
}

const tables = `
CREATE TABLE handrun_checkpoints (
    projection text, partition int, position bigint NOT NULL, PRIMARY KEY (projection, partition)
);
CREATE TABLE effects (
    id bigserial PRIMARY KEY, projection text NOT NULL, aggregate text NOT NULL, version bigint NOT NULL
);
CREATE TABLE commits (n bigint NOT NULL);
INSERT INTO commits VALUES (0)`

// eventsChannel is the channel that a trigger notifies on every append, as in the documentation.
const eventsChannel = "events_appended"

const notifying = `
CREATE FUNCTION events_appended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY events_appended; RETURN NULL; END $$;
CREATE TRIGGER events_appended AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION events_appended()`

// empty returns a new database without events.
func (b *bench) empty(ctx context.Context) (*database, error) {
	d := &database{}
	var err error
	d.name = fmt.Sprintf("bench_%d_%s", time.Now().UnixNano(), b.fresh("d"))
	if d.url, d.drop, err = b.server.CreateDatabase(ctx, d.name); err != nil {
		return nil, err
	}
	if d.db, err = d.pool("bench"); err != nil {
		return nil, err
	}
	b.databases = append(b.databases, d)
	if err := orchestrator.RunMigrations(d.db); err != nil {
		return nil, err
	}
	_, err = d.db.ExecContext(ctx, eventtable.Layout+";"+tables)
	return d, err
}

// poolSize is large enough for each user of a pool. All pools have this size.
const poolSize = 20

// pool opens the database as the documentation advises: idle connections are kept.
func (d *database) pool(application string) (*sql.DB, error) { return d.open(application, nil) }

// poolerPool opens the database with the setting of lib/pq for transaction poolers: one round
// trip instead of two, and bytes as text.
func (d *database) poolerPool(application string) (*sql.DB, error) {
	return d.open(application, map[string]string{"binary_parameters": "yes"})
}

func (d *database) open(application string, options map[string]string) (*sql.DB, error) {
	u, err := url.Parse(d.url)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	for option, value := range options {
		q.Set(option, value)
	}
	q.Set("application_name", application)
	u.RawQuery = q.Encode()
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(poolSize)
	db.SetMaxIdleConns(poolSize)
	return db, nil
}

// aggregates is the number of aggregates. Every hundredth is of the type "rare".
const aggregates = 1000

// fill appends events of 1 KB, one to each aggregate in turn.
const fill = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, correlation_id, metadata)
SELECT 'bench', CASE WHEN i % 100 = 7 THEN 'rare' ELSE 'thing' END, 'a' || i % $2, i / $2 + 1,
       gen_random_uuid(), 'happened', decode(repeat(md5(i::text), 64), 'hex'), md5(i::text), '{"user": "u1"}'
  FROM generate_series(0, $1::bigint - 1) AS i`

// full returns the database with the stream.
func (b *bench) full(ctx context.Context) (*database, error) {
	if b.stream != nil {
		return b.stream, nil
	}
	d, err := b.empty(ctx)
	if err != nil {
		return nil, err
	}
	d.events = 200_000
	if b.quick {
		d.events = 60_000
	}
	if _, err := d.db.ExecContext(ctx, fill, d.events, aggregates); err != nil {
		return nil, fmt.Errorf("append %d events: %w", d.events, err)
	}
	for _, q := range []string{`VACUUM ANALYZE events`, `CHECKPOINT`} {
		if _, err := d.db.ExecContext(ctx, q); err != nil {
			return nil, fmt.Errorf("%s: %w", q, err)
		}
	}
	b.stream = d
	return d, nil
}

// checkEffects checks that the projection has an effect of each event, once and in order per
// aggregate, and that the number of effects is want.
func (d *database) checkEffects(ctx context.Context, projection string, want int64) error {
	var n, wrong int64
	err := d.db.QueryRowContext(ctx, `
SELECT count(*), count(*) FILTER (WHERE version <> before + 1)
  FROM (SELECT version, lag(version, 1, 0::bigint) OVER (PARTITION BY aggregate ORDER BY id) AS before
          FROM effects WHERE projection = $1) e`, projection).Scan(&n, &wrong)
	switch {
	case err != nil:
		return fmt.Errorf("check %s: %w", projection, err)
	case n != want || wrong != 0:
		return fmt.Errorf("%s: events lost, repeated or out of order: %d effects, want %d; %d do not follow their predecessor", projection, n, want, wrong)
	}
	return nil
}
