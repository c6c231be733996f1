package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Version is the version of schema.sql that this package needs.
const Version = 3

// ErrSchema is returned by Check when the tables are missing, too old, or not the
// library's.
var ErrSchema = errors.New("orchestrator: schema is missing or outdated")

// columns are those of schema.sql that this package uses.
var columns = map[string][]string{
	"orchestrator_schema":       {"version"},
	"orchestrator_replica_sets": {"name", "generation", "phase", "total", "reason", "opened_at", "activated_at", "step_at", "max_partitions", "join_window_us", "paused", "rewinds"},
	"orchestrator_workers": {"replica_set", "id", "seq", "joined_at", "lease_us", "lease_until", "generation", "total", "partitions", "wants",
		"presence_key", "presence_number", "holds", "projections", "paused", "drained"},
	"orchestrator_reports":     {"replica_set", "worker", "reported_at", "report"},
	"orchestrator_projections": {"name", "replica_set"},
	"orchestrator_checkpoints": {"projection", "partition", "replica_set", "generation", "total", "position", "ahead", "updated_at"},
	"orchestrator_history":     {"replica_set", "generation", "reason", "total", "members", "opened_at", "activated_at", "waited_for"},
	"orchestrator_parked":      {"projection", "position", "slot", "aggregate_id", "error", "attempts", "parked_at", "request"},
}

// A Querier is a database, or a transaction.
type Querier interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// Check makes sure that the tables are there, new enough, and the library's.
func (s *Store) Check(ctx context.Context) error {
	c, err := dbconn.Take(ctx, s.db)
	if err != nil {
		return fmt.Errorf("look for the schema: %w", err)
	}
	defer c.Close()
	return c.During(ctx, func() error { return CheckSchema(ctx, c) })
}

// In these statements, functions are named with their schema, and operators have
// operands of exactly their types: see schema.sql.
const (
	schemaThereSQL = `SELECT pg_catalog.to_regclass('orchestrator_schema'::text) IS NOT NULL`
	versionSQL     = `SELECT coalesce(pg_catalog.max(version), 0) FROM orchestrator_schema`
	columnsSQL     = `
SELECT c.relname::text, a.attname::text
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0::smallint AND NOT a.attisdropped
 WHERE c.relnamespace = (SELECT k.relnamespace FROM pg_catalog.pg_class k WHERE k.oid = pg_catalog.to_regclass('orchestrator_schema'::text)::oid)
   AND c.relkind IN ('r'::"char", 'p'::"char")`

	// Who has power over the schema anyway does not trust tables of somebody who
	// has not: they may have triggers, which would run as the former.
	strangerSQL = `
SELECT pg_catalog.format('%I is owned by the role %I'::text, VARIADIC ARRAY[c.relname::text, o.rolname::text])
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
  JOIN pg_catalog.pg_roles me ON me.rolname = CURRENT_USER
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
 WHERE c.relnamespace = (SELECT k.relnamespace FROM pg_catalog.pg_class k WHERE k.oid = pg_catalog.to_regclass('orchestrator_schema'::text)::oid)
   AND pg_catalog.starts_with(c.relname::text, 'orchestrator_'::text) AND c.relkind IN ('r'::"char", 'p'::"char", 'v'::"char")
   AND (me.rolsuper OR me.oid = n.nspowner OR me.oid = d.datdba)
   AND NOT (o.rolsuper OR o.oid = me.oid OR o.oid = n.nspowner OR o.oid = d.datdba)
   AND (me.rolsuper OR NOT pg_catalog.pg_has_role(me.oid, o.oid, 'USAGE'::text))
 ORDER BY 1 LIMIT 1`
)

// CheckSchema makes sure that the tables on the search path are there, new enough,
// and the library's.
func CheckSchema(ctx context.Context, db Querier) error {
	var exists bool
	if err := db.QueryRowContext(ctx, schemaThereSQL).Scan(&exists); err != nil {
		return fmt.Errorf("look for the schema: %w", err)
	}
	if !exists {
		return fmt.Errorf("%w: no table orchestrator_schema on the search path; call RunMigrations(db) or apply schema.sql", ErrSchema)
	}
	have, err := tableColumns(ctx, db)
	if err != nil {
		return fmt.Errorf("look at the tables of the schema: %w", err)
	}
	if err := foreignTable(have, "orchestrator_schema"); err != nil {
		return err
	}
	var version int
	if err := db.QueryRowContext(ctx, versionSQL).Scan(&version); err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if version < Version {
		return fmt.Errorf("%w: it has version %d and this program needs %d; call RunMigrations(db) or apply schema.sql", ErrSchema, version, Version)
	}
	for table := range columns {
		if err := foreignTable(have, table); err != nil {
			return err
		}
	}
	return nil
}

// Stranger returns an error for tables whose owner the current role should not
// trust.
func Stranger(ctx context.Context, db Querier) error {
	var what string
	err := db.QueryRowContext(ctx, strangerSQL).Scan(&what)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look who owns the tables: %w", err)
	}
	return fmt.Errorf("%w: %s, which is neither the current role, nor a superuser, nor the owner of the schema or the database; "+
		"if the tables are yours, migrate as their owner; if not, drop them, or put another schema first in the search path", ErrSchema, what)
}

func foreignTable(have map[string][]string, table string) error {
	const what = "another program has made it; put another schema first in the search path, and call RunMigrations(db) or apply schema.sql"
	if len(have[table]) == 0 {
		return fmt.Errorf("%w: there is a table orchestrator_schema, and beside it no table %s: %s", ErrSchema, table, what)
	}
	for _, column := range columns[table] {
		if !slices.Contains(have[table], column) {
			return fmt.Errorf("%w: table %s is not one of pupsourcing-orchestrator: it has no column %s; %s", ErrSchema, table, column, what)
		}
	}
	return nil
}

// tableColumns returns the columns of the tables in the schema that
// orchestrator_schema is in.
func tableColumns(ctx context.Context, db Querier) (map[string][]string, error) {
	rows, err := db.QueryContext(ctx, columnsSQL)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	have := map[string][]string{}
	for rows.Next() {
		var table, column string
		if err := rows.Scan(&table, &column); err != nil {
			return nil, err
		}
		have[table] = append(have[table], column)
	}
	return have, rows.Err()
}

// holdersSQL lists who holds the lock of migrations, or a lock on one of the
// tables.
const holdersSQL = `
SELECT DISTINCT coalesce(l.pid, 0), coalesce(a.usename::text, ''::text), coalesce(a.application_name, ''::text),
       coalesce(pg_catalog.date_part('epoch'::text, pg_catalog.clock_timestamp() - coalesce(a.xact_start, a.state_change, a.backend_start)), '-1'::double precision)
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.granted AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
   AND (l.locktype = 'advisory'::text AND l.objsubid = 1::smallint AND l.classid::bigint = $1::bigint AND l.objid::bigint = $2::bigint
        OR l.locktype = 'relation'::text AND l.relation IN (
           SELECT c.oid FROM pg_catalog.pg_class c
            WHERE pg_catalog.starts_with(c.relname::text, 'orchestrator_'::text) AND c.relkind IN ('r'::"char", 'p'::"char")))
 ORDER BY 4 DESC LIMIT 5`

// Holders says who holds up a migration, whose advisory lock has this key; "" is
// nobody, or nobody any more.
func Holders(ctx context.Context, db Querier, key int64) (string, error) {
	rows, err := db.QueryContext(ctx, holdersSQL, key>>32, key&0xffffffff)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var holders []string
	for rows.Next() {
		var pid int
		var user, program string
		var seconds float64
		if err := rows.Scan(&pid, &user, &program, &seconds); err != nil {
			return "", err
		}
		who := "a prepared transaction (see pg_prepared_xacts)"
		if pid != 0 {
			who = fmt.Sprintf("backend %d (user %q, application_name %q", pid, user, program)
			if seconds >= 0 {
				who += fmt.Sprintf(", for %s", time.Duration(seconds*float64(time.Second)).Round(100*time.Millisecond))
			}
			who += ")"
		}
		holders = append(holders, who)
	}
	return strings.Join(holders, ", "), rows.Err()
}

// Holds returns an error if the database can't hold a text: its encoding has not
// all characters. ASCII passes everywhere.
func Holds(ctx context.Context, db Querier, text string) error {
	if protocol.ASCII(text) == text {
		return nil
	}
	err := db.QueryRowContext(ctx, `SELECT $1::text`, text).Scan(new(string))
	if !Unstorable(err) {
		return err
	}
	var encoding string
	if err := db.QueryRowContext(ctx, `SELECT pg_catalog.current_setting('server_encoding'::text)`).Scan(&encoding); err != nil {
		return err
	}
	return fmt.Errorf("%q can't be stored in a database whose encoding is %s: %w", text, encoding, err)
}

// Unstorable reports whether a value was refused for what it is (class 22): as a
// text of which the database's encoding has not all characters is. In a database of
// SQL_ASCII, JSON's escapes are a feature that is not supported.
func Unstorable(err error) bool {
	s := State(err)
	return len(s) == 5 && s[:2] == "22" || s == "0A000"
}
