package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

var schemaVersionSQL = sqltext.New(`SELECT coalesce(max(version), 0) FROM orchestrator_schema`)

// tables returns where the library's tables are, and their version.
func (c *call) tables(ctx context.Context) (schema string, version int, err error) {
	names, err := store.Tables{DB: c.db, Schema: c.schema}.Locate(ctx)
	if err != nil {
		return "", 0, err
	}
	query, args := names.Bind(schemaVersionSQL, nil)
	if err := c.db.QueryRowContext(ctx, query, args...).Scan(&version); err != nil {
		return "", 0, err
	}
	return names.Schema, version, nil
}

// versionTimeout bounds how long version waits for a database.
const versionTimeout = 5 * time.Second

// version prints versions. A database that can't be reached is no failure.
func version(ctx context.Context, c *call) error {
	module := "(unknown version)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		module = info.Main.Version
	}
	fmt.Fprintf(c.stdout, "orchestrator %s, %s\n", module, runtime.Version())
	fmt.Fprintf(c.stdout, "tables: needs version %d; %s\n", store.Version, c.tablesFound(ctx))
	return nil
}

func (c *call) tablesFound(ctx context.Context) string {
	if c.db == nil {
		return "no database is named (DATABASE_URL)"
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	schema, version, err := c.tables(ctx)
	switch {
	case err != nil:
		hint := ""
		if errors.Is(err, store.ErrSchema) {
			hint = "; or run: orchestrator migrate"
		}
		return fmt.Sprintf("those of the database can't be read: %s%s", strings.TrimPrefix(redact.Error(err).Error(), "orchestrator: "), hint)
	case version < store.Version:
		return fmt.Sprintf("schema %q has version %d; to upgrade it: orchestrator migrate", schema, version)
	}
	return fmt.Sprintf("schema %q has version %d", schema, version)
}

// migrate creates or upgrades the tables, and prints which.
func migrate(ctx context.Context, c *call) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("not migrated after %s", c.timeout))
	defer cancel()
	_, before, missing := c.tables(ctx)
	if err := orchestrator.Migrate(ctx, c.db, c.in); err != nil {
		return err
	}
	schema, after, err := c.tables(ctx)
	switch {
	case err != nil:
		return err
	case missing != nil:
		fmt.Fprintf(c.stdout, "created the tables in schema %q, version %d\n", schema, after)
	case before != after:
		fmt.Fprintf(c.stdout, "upgraded the tables in schema %q from version %d to %d\n", schema, before, after)
	default:
		fmt.Fprintf(c.stdout, "nothing to do: the tables in schema %q have version %d\n", schema, after)
	}
	return nil
}
