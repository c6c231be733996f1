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
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Version is the version of schema.sql that this package needs.
const Version = 3

// Whether the library's tables are there, new enough, and the library's own. Nothing here
// creates or alters a table: schema.sql does that.

// ErrSchema is returned by Check if the tables are missing, too old, or not the
// library's. Call Migrate or RunMigrations, or apply schema.sql.
var ErrSchema = errors.New("orchestrator: schema is missing or outdated")

// columns are the columns of schema.sql that this package uses.
var columns = map[string][]string{
	"orchestrator_schema":       {"version"},
	"orchestrator_replica_sets": {"name", "generation", "phase", "total", "reason", "opened_at", "activated_at", "step_at", "max_partitions", "join_window_us", "paused", "rewinds", "holds"},
	"orchestrator_workers": {"replica_set", "id", "seq", "joined_at", "lease_us", "lease_until", "generation", "total", "partitions", "wants",
		"presence_key", "presence_number", "holds", "projections", "paused", "drained", "vacant"},
	"orchestrator_reports":     {"replica_set", "worker", "reported_at", "report"},
	"orchestrator_projections": {"name", "replica_set", "follows", "retired", "replaced"},
	"orchestrator_checkpoints": {"projection", "partition", "replica_set", "generation", "total", "position", "ahead", "updated_at"},
	"orchestrator_history":     {"replica_set", "generation", "reason", "total", "members", "opened_at", "activated_at", "waited_for"},
	"orchestrator_parked":      {"projection", "position", "slot", "aggregate_id", "error", "attempts", "parked_at", "request"},
	"orchestrator_park_orders": {"number", "replica_set", "generation", "projection", "position", "slot", "ordered_by", "ordered_at", "ended_at", "outcome"},
}

// Check returns ErrSchema unless the tables are there, new enough, and the library's.
func (s *Store) Check(ctx context.Context) error {
	c, err := dbconn.Take(ctx, s.db)
	if err != nil {
		return fmt.Errorf("look for the schema: %w", err)
	}
	defer c.Close()
	return c.During(ctx, func() error {
		names, err := s.resolve(ctx, c)
		if err != nil {
			return err
		}
		return checkSchema(ctx, c, names)
	})
}

var (
	versionSQL = sqltext.New(`SELECT coalesce(max(version), 0) FROM orchestrator_schema`)
	columnsSQL = sqltext.New(`
SELECT c.relname::text, a.attname::text
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE n.nspname = {in}::name AND c.relkind = ANY ('{r,p}')`)

	// A role that controls the schema (superuser, owner of the schema or the database) must
	// not use tables of a role that does not: they may have triggers, which would run with the
	// power of the first role.
	strangerSQL = sqltext.New(`
SELECT format('%I is owned by the role %I', c.relname::text, o.rolname::text)
  FROM pg_class c
  JOIN pg_roles o ON o.oid = c.relowner
  JOIN pg_roles me ON me.rolname = CURRENT_USER
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_database d ON d.datname = current_database()
 WHERE n.nspname = {in}::name
   AND starts_with(c.relname::text, 'orchestrator_') AND c.relkind = ANY ('{r,p,v}')
   AND (me.rolsuper OR me.oid = n.nspowner OR me.oid = d.datdba)
   AND NOT (o.rolsuper OR o.oid = me.oid OR o.oid = n.nspowner OR o.oid = d.datdba)
   AND (me.rolsuper OR NOT pg_has_role(me.oid, o.oid, 'USAGE'))
 ORDER BY 1 LIMIT 1`)
)

// CheckSchema returns ErrSchema unless the tables in a schema (empty: the one to which the
// search path leads) are there, new enough, and the library's.
func CheckSchema(ctx context.Context, db dbconn.Querier, schema string) error {
	names, err := locate(ctx, db, schema)
	if err != nil {
		return err
	}
	return checkSchema(ctx, db, names)
}

func checkSchema(ctx context.Context, db dbconn.Querier, names sqltext.Names) error {
	have, err := tableColumns(ctx, db, names.Schema)
	if err != nil {
		return fmt.Errorf("read the columns of the tables: %w", err)
	}
	if len(have["orchestrator_schema"]) == 0 {
		return fmt.Errorf("%w: there is no table orchestrator_schema in schema %q; call RunMigrations(db) or apply schema.sql", ErrSchema, names.Schema)
	}
	if err := foreignTable(have, "orchestrator_schema"); err != nil {
		return err
	}
	var version int
	query, args := names.Bind(versionSQL, nil)
	if err := db.QueryRowContext(ctx, query, args...).Scan(&version); err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if version < Version {
		return fmt.Errorf("%w: in schema %q it has version %d and this program needs %d; call RunMigrations(db) or apply schema.sql", ErrSchema, names.Schema, version, Version)
	}
	for table := range columns {
		if err := foreignTable(have, table); err != nil {
			return err
		}
	}
	return nil
}

var (
	hasSchemaSQL = sqltext.New(`SELECT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = {in}::name)`)
	usePathSQL   = sqltext.New(`SELECT set_config('search_path', {in}, true)`)
)

// A schema that is named need not be on any search path. A role that may create schemas can
// have made it, with tables in it and triggers on them, for a role with more power to use.
var schemaOwnerSQL = sqltext.New(`
SELECT o.rolname::text
  FROM pg_namespace n
  JOIN pg_roles o ON o.oid = n.nspowner
  JOIN pg_roles me ON me.rolname = CURRENT_USER
  JOIN pg_database d ON d.datname = current_database()
 WHERE n.nspname = {in}::name AND (me.rolsuper OR me.oid = d.datdba)
   AND NOT (o.rolsuper OR o.oid = me.oid OR o.oid = d.datdba OR o.rolname = 'pg_database_owner'::name)
   AND (me.rolsuper OR NOT pg_has_role(me.oid, o.oid, 'USAGE'))`)

// OwnedByStranger returns an error for a schema whose owner the current role should not
// trust.
func OwnedByStranger(ctx context.Context, db dbconn.Querier, schema string) error {
	var owner string
	query, args := sqltext.Names{Literals: true}.Bind(schemaOwnerSQL, sqltext.Values{"in": schema})
	switch err := db.QueryRowContext(ctx, query, args...).Scan(&owner); {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("read the owner of schema %q: %w", schema, err)
	}
	return fmt.Errorf("%w: schema %q is owned by the role %q, which is neither the current role, nor a superuser, nor the owner of the database; "+
		"if it is yours, migrate as that role; if not, choose another schema", ErrSchema, schema, owner)
}

// UseSchema makes a schema the search path of a transaction, and creates it if there is
// none of that name.
func UseSchema(ctx context.Context, tx dbconn.Querier, schema string) error {
	n := sqltext.Names{Literals: true}
	var there bool
	query, args := n.Bind(hasSchemaSQL, sqltext.Values{"in": schema})
	if err := tx.QueryRowContext(ctx, query, args...).Scan(&there); err != nil {
		return fmt.Errorf("look for schema %q: %w", schema, err)
	}
	if !there {
		if _, err := tx.ExecContext(ctx, "CREATE SCHEMA "+sqltext.Quote(schema)); err != nil {
			return fmt.Errorf("create schema %q: %w", schema, err)
		}
	}
	query, args = n.Bind(usePathSQL, sqltext.Values{"in": sqltext.Quote(schema)})
	if _, err := tx.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("use schema %q: %w", schema, err)
	}
	return nil
}

// Stranger returns an error for tables whose owner the current role should not
// trust.
func Stranger(ctx context.Context, db dbconn.Querier, schema string) error {
	names, err := locate(ctx, db, schema)
	if err != nil {
		return err
	}
	var what string
	query, args := names.Bind(strangerSQL, sqltext.Values{"in": names.Schema})
	err = db.QueryRowContext(ctx, query, args...).Scan(&what)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("read the owners of the tables: %w", err)
	}
	return fmt.Errorf("%w: %s, which is neither the current role, nor a superuser, nor the owner of the schema or the database; "+
		"if the tables are yours, migrate as their owner; if not, drop them, or choose another schema (Config.Schema, InSchema)", ErrSchema, what)
}

// foreignTable returns ErrSchema if a table is not the library's: it is missing, or lacks a column.
func foreignTable(have map[string][]string, table string) error {
	const what = "another program has made it; choose another schema (Config.Schema, InSchema), and migrate there"
	if len(have[table]) == 0 {
		return fmt.Errorf("%w: there is a table orchestrator_schema, but no table %s: %s", ErrSchema, table, what)
	}
	for _, column := range columns[table] {
		if !slices.Contains(have[table], column) {
			return fmt.Errorf("%w: table %s is not one of pupsourcing-orchestrator: it has no column %s; %s", ErrSchema, table, column, what)
		}
	}
	return nil
}

// tableColumns returns the columns of the tables in a schema.
func tableColumns(ctx context.Context, db dbconn.Querier, schema string) (map[string][]string, error) {
	query, args := sqltext.Names{Literals: true}.Bind(columnsSQL, sqltext.Values{"in": schema})
	rows, err := db.QueryContext(ctx, query, args...)
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

// holdersSQL lists the sessions that hold the advisory lock of migrations, or a lock on one of the
// tables, those with the oldest transaction first.
var holdersSQL = sqltext.New(`
SELECT DISTINCT coalesce(l.pid, 0), coalesce(a.usename::text, ''), coalesce(a.application_name, ''),
       coalesce(date_part('epoch', clock_timestamp() - coalesce(a.xact_start, a.state_change, a.backend_start)), '-1'::double precision)
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.granted AND (l.pid IS NULL OR l.pid <> pg_backend_pid())
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND (l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint = {high} AND l.objid::bigint = {low}
        OR l.locktype = 'relation' AND l.relation = ANY (
           SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = ANY ('{r,p}')
              AND (starts_with(c.relname::text, 'orchestrator_') OR {any} AND n.nspname <> 'pg_catalog'::name)))
 ORDER BY 4 DESC LIMIT 5`)

var encodingSQL = sqltext.New(`SELECT current_setting('server_encoding')`)

// Holders returns the sessions that block a migration whose advisory lock has this key, the one
// with the oldest transaction first; "" if there are none (any more). With anyTable, a lock on
// any table counts.
func Holders(ctx context.Context, db dbconn.Querier, key int64, anyTable bool) (string, error) {
	query, args := sqltext.Names{Literals: true}.Bind(holdersSQL, sqltext.Values{"high": key >> 32, "low": key & 0xffffffff, "any": anyTable})
	rows, err := db.QueryContext(ctx, query, args...)
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

// Holds returns an error if the database can't store a text, since its encoding lacks one of the
// characters. Every database can store ASCII.
func Holds(ctx context.Context, db dbconn.Querier, text string) error {
	if protocol.ASCII(text) == text {
		return nil
	}
	err := dbconn.ScanOn(ctx, db, `SELECT $1::pg_catalog.text`, []any{text}, new(string))
	if !Unstorable(err) {
		return err
	}
	var encoding string
	query, _ := sqltext.Names{Literals: true}.Bind(encodingSQL, nil)
	if err := dbconn.ScanOn(ctx, db, query, nil, &encoding); err != nil {
		return err
	}
	return fmt.Errorf("%q can't be stored in a database whose encoding is %s: %w", text, encoding, err)
}

// Unstorable reports whether a value was refused for what it is (class 22), such as a
// text with a character that the database's encoding lacks. (0A000: in a database of
// SQL_ASCII, JSON's escapes are a feature that is not supported.)
func Unstorable(err error) bool {
	s := State(err)
	return len(s) == 5 && s[:2] == "22" || s == "0A000"
}
