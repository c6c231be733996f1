// Package stage is what the examples have in common: a schema with the library's tables and
// an events table, on the server that DATABASE_URL names or else on one that it starts; events
// to append; and workers as goroutines.
package stage

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// Main is main of an example: it runs the example until it ends or is interrupted, and
// exits with 1 after an error.
func Main(example string, run func(ctx context.Context, out io.Writer) error) {
	slog.SetLogLoggerLevel(slog.LevelWarn) // the example itself says what goes well
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", example, err)
		os.Exit(1)
	}
}

// Play calls the parts of an example, one after the other, with a database that Open makes
// and that is removed at the end.
func Play(ctx context.Context, out io.Writer, example, tables string, parts ...func(context.Context, *sql.DB, io.Writer) error) (err error) {
	s, err := Open(ctx, example, tables)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	s.DB.SetMaxIdleConns(20) // for each worker two for coordination, and two for each projection
	for _, part := range parts {
		if err := part(ctx, s.DB, out); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of setting up and of clearing away.
const (
	setUpMax = 30 * time.Second
	clearMax = 20 * time.Second
)

// A Stage is a schema on a PostgreSQL server.
type Stage struct {
	Source string // which server, in one line
	Hint   string // how to look at it
	URL    string // leads into the schema
	DB     *sql.DB

	server *embedpg.Server
	schema string
}

// Open makes a schema, named after the example, with an events table, the example's tables
// and the library's.
func Open(ctx context.Context, example, tables string) (_ *Stage, err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{})
	if err != nil {
		return nil, err
	}
	s := &Stage{
		server: server, Source: server.Source(),
		schema: example + "_" + strings.ToLower(rand.Text()[:8]),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
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
	if s.URL, s.Hint, err = inSchema(server.URL(database), s.schema); err != nil {
		return nil, err
	}
	if given != "" { // it may hold a password, which is not shown
		s.Hint = fmt.Sprintf(`psql "$DATABASE_URL", and there SET search_path TO %s`, s.schema)
	}
	connector, err := pq.NewConnector(s.URL)
	if err != nil {
		return nil, err
	}
	s.DB = sql.OpenDB(connector)

	ctx, cancel := context.WithTimeout(ctx, setUpMax)
	defer cancel()
	if _, err := s.DB.ExecContext(ctx, "CREATE SCHEMA "+s.schema); err != nil {
		return nil, fmt.Errorf("create schema %s: %w", s.schema, err)
	}
	if _, err := s.DB.ExecContext(ctx, eventtable.Layout+tables); err != nil {
		return nil, fmt.Errorf("create the tables of %s: %w", example, err)
	}
	return s, orchestrator.RunMigrations(s.DB)
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
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // psql takes a + for a plus
	return u.String(), fmt.Sprintf(`psql "%s"`, u), nil
}

// Close drops the schema, and stops the server if that was started here. No process may be
// using the schema.
func (s *Stage) Close() error {
	var err error
	if s.DB != nil {
		ctx, cancel := context.WithTimeout(context.Background(), clearMax)
		defer cancel()
		err = errors.Join(s.drop(ctx), s.DB.Close())
	}
	return errors.Join(err, s.server.Stop())
}

// drop tries again after a deadlock: a session whose process was killed may
// still be at its last statement.
func (s *Stage) drop(ctx context.Context) error {
	for {
		_, err := s.DB.ExecContext(ctx, "DROP SCHEMA IF EXISTS "+s.schema+" CASCADE")
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
