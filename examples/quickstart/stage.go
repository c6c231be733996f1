package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// tables are what the demo needs beside the library's own tables.
var tables = eventtable.Layout + `
-- What the projections did, a row for each event that they handled. No
-- constraint says that an event has one effect only: a second one is to be
-- found, and not to be hidden behind an error.
CREATE TABLE effects (
    seq               bigserial   PRIMARY KEY, -- the order in which they were written
    projection        text        NOT NULL,
    position          bigint      NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    worker            text        NOT NULL,
    generation        bigint      NOT NULL,
    partition         integer     NOT NULL,
    total             integer     NOT NULL,
    began             timestamptz NOT NULL,
    ended             timestamptz NOT NULL
);

-- Which worker was frozen, the generation that it ran, and when it was woken.
CREATE TABLE freezes (
    worker     text        NOT NULL,
    generation bigint      NOT NULL,
    woken_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);`

// Bounds of setting up and of clearing away.
const (
	setUpMax = 30 * time.Second
	clearMax = 20 * time.Second
)

// A stage is a schema on a PostgreSQL server.
type stage struct {
	source string // which server, in one line
	hint   string // how to look at it
	url    string // leads into the schema
	db     *sql.DB

	server *embedpg.Server
	schema string
}

// openStage makes a schema with all tables, on the server that DATABASE_URL
// names or else on one that it starts.
func openStage(ctx context.Context) (_ *stage, err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{})
	if err != nil {
		return nil, err
	}
	s := &stage{
		server: server, source: server.Source(),
		schema: "quickstart_" + strings.ToLower(rand.Text()[:8]),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	database := "postgres"
	given := os.Getenv("DATABASE_URL")
	if given != "" {
		u, err := url.Parse(given)
		if err != nil {
			return nil, errors.New("DATABASE_URL can't be parsed") // err may hold a password
		}
		database = strings.TrimPrefix(u.Path, "/")
	}
	if s.url, s.hint, err = inSchema(server.URL(database), s.schema); err != nil {
		return nil, err
	}
	if given != "" { // whoever set it knows the password, the terminal need not
		s.hint = fmt.Sprintf(`psql "$DATABASE_URL", and there SET search_path TO %s`, s.schema)
	}
	connector, err := pq.NewConnector(s.url)
	if err != nil {
		return nil, err
	}
	s.db = sql.OpenDB(connector)
	s.db.SetMaxIdleConns(writerCount + 4)

	ctx, cancel := context.WithTimeout(ctx, setUpMax)
	defer cancel()
	if _, err := s.db.ExecContext(ctx, "CREATE SCHEMA "+s.schema); err != nil {
		return nil, fmt.Errorf("create schema %s: %w", s.schema, err)
	}
	if _, err := s.db.ExecContext(ctx, tables); err != nil {
		return nil, fmt.Errorf("create the demo's tables: %w", err)
	}
	return s, orchestrator.RunMigrations(s.db)
}

// inSchema adds the schema to a database's URL, and returns it for lib/pq and
// as a command line of psql.
func inSchema(database, schema string) (forPQ, forPsql string, err error) {
	u, err := url.Parse(database)
	if err != nil {
		return "", "", errors.New("the database's URL can't be parsed") // err may hold a password
	}
	q := u.Query()
	q.Set("options", strings.TrimSpace(q.Get("options")+" -csearch_path="+schema))
	encode := func() string {
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // psql takes a + for a plus
		return u.String()
	}
	forPsql = fmt.Sprintf(`psql "%s"`, encode())
	// Statements with parameters take one round trip instead of two.
	q.Set("binary_parameters", "yes")
	return encode(), forPsql, nil
}

// close drops the schema and ends the server, if that was started here. No
// process uses the schema any more.
func (s *stage) close() error {
	var err error
	if s.db != nil {
		ctx, cancel := context.WithTimeout(context.Background(), clearMax)
		defer cancel()
		err = errors.Join(s.drop(ctx), s.db.Close())
	}
	return errors.Join(err, s.server.Stop())
}

// drop tries again after a deadlock: a session whose process was killed may
// still be at its last statement.
func (s *stage) drop(ctx context.Context) error {
	for {
		_, err := s.db.ExecContext(ctx, "DROP SCHEMA IF EXISTS "+s.schema+" CASCADE")
		if err == nil {
			return nil
		}
		var failed *pq.Error
		if !errors.As(err, &failed) || failed.Code != deadlockDetected {
			return fmt.Errorf("drop schema %s: %w", s.schema, err)
		}
	}
}

const deadlockDetected = "40P01"
