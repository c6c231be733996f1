package embedpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	"github.com/lib/pq"
)

// nameMax is PostgreSQL's limit. It silently shortens longer names.
const nameMax = 63

// CreateDatabase creates an empty database. It returns the URL of the database and a function
// that drops it, even if clients are still connected.
func (s *Server) CreateDatabase(ctx context.Context, name string) (string, func(context.Context) error, error) {
	if name == "" || len(name) > nameMax {
		return "", nil, fmt.Errorf("create database %q: the name must have 1 to %d bytes", name, nameMax)
	}

	// No client can be connected to template0. With template1, the default, one open
	// connection makes CREATE DATABASE fail with "is being accessed by other users".
	err := s.exec(ctx, s.base, "CREATE DATABASE "+pq.QuoteIdentifier(name)+" TEMPLATE template0")
	if err != nil {
		err = fmt.Errorf("create database %s: %w", name, err)
		if failed := (*pq.Error)(nil); errors.As(err, &failed) && failed.Code == insufficientPrivilege && s.variable != "" {
			err = fmt.Errorf("%w\nWhat to do: ALTER ROLE %s CREATEDB, or unset %s to start a new server", err, pq.QuoteIdentifier(s.base.User.Username()), s.variable)
		}
		return "", nil, err
	}
	drop := func(ctx context.Context) error {
		if err := s.drop(ctx, name); err != nil {
			return fmt.Errorf("drop database %s: %w", name, err)
		}
		return nil
	}
	return s.URL(name), drop, nil
}

// drop uses FORCE because connections of a killed or suspended client may still be there.
func (s *Server) drop(ctx context.Context, name string) error {
	statement := "DROP DATABASE IF EXISTS " + pq.QuoteIdentifier(name) + " WITH (FORCE)"
	err := s.exec(ctx, s.base, statement)

	// FORCE does not end prepared transactions.
	if failed := (*pq.Error)(nil); errors.As(err, &failed) && failed.Code == objectInUse {
		if err := s.rollbackPrepared(ctx, name); err != nil {
			return err
		}
		err = s.exec(ctx, s.base, statement)
	}
	return err
}

const (
	objectInUse           = "55006"
	insufficientPrivilege = "42501"
)

// rollbackPrepared connects to the database itself, as ROLLBACK PREPARED requires.
func (s *Server) rollbackPrepared(ctx context.Context, name string) error {
	u := s.base
	u.Path, u.RawPath = "/"+name, ""

	var gids []string
	err := s.with(u, func(db *sql.DB) error {
		return db.QueryRowContext(ctx,
			`SELECT coalesce(array_agg(gid), '{}') FROM pg_prepared_xacts WHERE database = current_database()`,
		).Scan(pq.Array(&gids))
	})
	for _, gid := range gids {
		err = errors.Join(err, s.exec(ctx, u, "ROLLBACK PREPARED "+pq.QuoteLiteral(gid)))
	}
	return err
}

func (s *Server) version(ctx context.Context) (version string, err error) {
	err = s.with(s.base, func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SHOW server_version").Scan(&version)
	})
	return version, err
}

func (s *Server) exec(ctx context.Context, u url.URL, statement string) error {
	return s.with(u, func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, statement)
		return err
	})
}

// with opens a new connection each time. A pool would keep connections that Restart ends, and
// goroutines that a leak check finds.
func (s *Server) with(u url.URL, do func(*sql.DB) error) error {
	connector, err := pq.NewConnector(u.String())
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	return errors.Join(do(db), db.Close())
}
