package orchestrator

import (
	"context"
	"database/sql"
	_ "embed" // schema.sql
	"errors"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Creating and upgrading the library's tables. The other statements are in internal/store.

//go:embed schema.sql
var schemaSQL string

// SchemaSQL returns the text of schema.sql, for migration tools. It is one idempotent
// statement, which also upgrades older tables.
func SchemaSQL() string { return schemaSQL }

// TablesOption is an option of functions that use the library's tables: InSchema.
type TablesOption func(*store.Tables)

// MigrateOption is an option of Migrate: InSchema or WithSQL.
type MigrateOption interface{ forMigrate(*migration) }

func (o TablesOption) forMigrate(m *migration) {
	if o != nil {
		o(&m.tables)
	}
}

type sqlOption string

func (o sqlOption) forMigrate(m *migration) { m.scripts = append(m.scripts, string(o)) }

// WithSQL makes Migrate run SQL of the program's own, such as CREATE TABLE IF NOT EXISTS for
// its read models. Every call of Migrate runs it, after the library's own migration, so it
// must be idempotent. Only one Migrate at a time runs in a database, so copies of a program
// that start together take turns. Several WithSQL are run in their order.
//
// A text may have several statements. All texts are one READ COMMITTED transaction, apart
// from the library's migration: all of it is applied, or nothing. So a text can't contain
// COMMIT or ROLLBACK, nor what PostgreSQL refuses in a transaction, such as CREATE INDEX
// CONCURRENTLY or VACUUM. InSchema does not change the search path for it. The connection is
// closed afterwards, with everything that the text has SET.
//
// Migrate waits up to 30s in all for locks that the text needs, a second at a time, and
// starts the text anew each time. The text may take 5 minutes. Other copies wait for it for
// 30s only, so run what takes longer, such as filling a large table, elsewhere.
func WithSQL(text string) MigrateOption { return sqlOption(text) }

// InSchema names the PostgreSQL schema of the library's tables, like Config.Schema for
// workers. Default: the schema that the search path leads to.
func InSchema(name string) TablesOption {
	return func(t *store.Tables) { t.Schema = name }
}

// inSchema is InSchema of a name that may be empty.
func inSchema(name string) TablesOption {
	if name == "" {
		return nil
	}
	return InSchema(name)
}

// migrationLock is the key of the advisory lock that migrations take:
// "orchestr" in ASCII.
const migrationLock = 0x6f72636865737472

// migrationPatience is how long Migrate waits for locks, and migrationWait how long in one
// try: meanwhile, statements that only read the table wait behind it. Between two tries they
// go on.
var migrationPatience = 30 * time.Second

const (
	migrationWait  = time.Second
	migrationPause = 500 * time.Millisecond
	// migrationMax is the timeout of one try, for a connection that has become silent.
	migrationMax = 5 * time.Minute
)

// RunMigrations is Migrate with a background context and no options.
func RunMigrations(db *sql.DB) error { return Migrate(context.Background(), db) }

// Migrate creates or upgrades the library's tables. If they are there and new enough, it
// changes nothing, so a program may call it at each start, in many processes at once. It
// needs the right to create tables only when there is something to do.
//
// If another session holds a lock that it needs, Migrate retries for 30s and then returns
// an error that names the server process, its user and its application_name. Other sessions
// wait behind it for about a second at most.
//
// Migrate creates the tables in the schema of InSchema, which it creates if it is missing.
// Without InSchema, it uses the schema of the search path that has the tables, or else the
// first one. Tables of the same names are refused if they have other columns, or if their
// owner is neither the current role, nor a superuser, nor the owner of the schema or the
// database. If another role owns the schema of InSchema, Migrate refuses to run as a superuser
// or as the owner of the database: run it as the schema's owner. When Migrate refuses, it has
// changed nothing.
//
// WithSQL adds SQL of the program's own. If that fails, the error says so: the library's
// tables are migrated, and none of the SQL was applied.
func Migrate(ctx context.Context, db *sql.DB, options ...MigrateOption) (err error) {
	defer func() { err = redact.Error(err) }()
	if db == nil {
		return fmt.Errorf("%w: Migrate: db is nil", ErrInvalidConfig)
	}
	var m migration
	for _, o := range options {
		if o != nil {
			o.forMigrate(&m)
		}
	}
	m.tables.DB = db
	if err := m.check(); err != nil {
		return fmt.Errorf("%w: Migrate: %w", ErrInvalidConfig, err)
	}
	began := time.Now()
	if err := patiently(ctx, db, began, func() error { return migrate(ctx, db, m.tables.Schema) }); err != nil || len(m.scripts) == 0 {
		return err
	}
	return patiently(ctx, db, began, func() error { return m.runScripts(ctx, db) })
}

// patiently repeats a try that waits for locks, until migrationPatience has passed since
// began.
func patiently(ctx context.Context, db *sql.DB, began time.Time, try func() error) error {
	for {
		err := try()
		if err == nil || ctx.Err() == nil && !store.LockTimeout(err) && !store.Deadlock(err) {
			return err
		}
		if time.Since(began) > migrationPatience || !calls.Sleep(ctx, migrationPause) {
			return errors.Join(ctx.Err(), heldUp(ctx, db, time.Since(began), err))
		}
	}
}

// A migration has the options of Migrate.
type migration struct {
	tables  store.Tables
	scripts []string // of WithSQL
}

func (m *migration) check() error {
	if problem := store.SchemaProblem(m.tables.Schema); problem != "" && m.tables.Schema != "" {
		return fmt.Errorf("the name of the schema %s", problem)
	}
	for i, text := range m.scripts {
		switch word := sqltext.EndsTransaction(text); {
		case word != "":
			return fmt.Errorf("%s contains %s, but it runs in a transaction, which it must not end", m.script(i), word)
		case sqltext.FirstWord(text) == "":
			return fmt.Errorf("%s contains no statement", m.script(i))
		}
	}
	return nil
}

// script returns the name of a text of WithSQL, with its number if there are several. The text
// is never quoted: a CREATE ROLE has a password.
func (m *migration) script(i int) string {
	if len(m.scripts) == 1 {
		return "the SQL of WithSQL"
	}
	return fmt.Sprintf("the SQL of WithSQL number %d (of %d)", i+1, len(m.scripts))
}

// runScripts runs the SQL of the program. It has a transaction of its own: every heartbeat
// waits for what the library's migration locks exclusively, and the program's SQL may take
// long. It takes the lock of migrations, so no other one runs at the same time.
func (m *migration) runScripts(ctx context.Context, db *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, migrationMax)
	defer cancel()
	return transact(ctx, db, &sql.TxOptions{Isolation: sql.LevelReadCommitted}, func(tx *dbconn.Tx) error {
		if err := lockMigrations(ctx, tx); err != nil {
			return err
		}
		for i, text := range m.scripts {
			if err := store.RunScript(ctx, tx, text); err != nil {
				return &scriptError{m.script(i), err}
			}
		}
		return nil
	})
}

// A scriptError is an error of the program's own SQL.
type scriptError struct {
	script string
	err    error
}

func (e *scriptError) Error() string {
	switch {
	case errors.Is(e.err, store.ErrScriptEnds):
		return fmt.Sprintf("%s %v", e.script, e.err)
	case store.State(e.err) == "25001":
		return fmt.Sprintf("%s failed: %v (it runs in a transaction: run such a statement elsewhere; none of the SQL was applied, and the library's tables are migrated)", e.script, e.err)
	}
	return fmt.Sprintf("%s failed: %v (none of it was applied, and the library's tables are migrated)", e.script, e.err)
}

func (e *scriptError) Unwrap() error { return e.err }

// heldUp adds to an error the sessions that hold the locks that a migration waits for. For
// the program's own SQL, whose tables are not known, these are the holders of any lock.
func heldUp(ctx context.Context, db *sql.DB, waited time.Duration, err error) error {
	held, script := "are held by", (*scriptError)(nil)
	anyTable := errors.As(err, &script)
	if anyTable {
		held = "are held by one of"
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	var holders string
	c, unknown := dbconn.Take(ctx, db)
	if unknown == nil {
		unknown = c.During(ctx, func() (err error) {
			holders, err = store.Holders(ctx, c, migrationLock, anyTable)
			return err
		})
		_ = c.Close()
	}
	if unknown != nil {
		return fmt.Errorf("%w (the holders of the locks could not be read: %w)", err, unknown)
	}
	if holders == "" {
		return err
	}
	return fmt.Errorf("migrate: waited %s for locks that %s %s; wait for these sessions, or end them with pg_terminate_backend, and try again: %w",
		waited.Round(100*time.Millisecond), held, holders, err)
}

// migrate applies schema.sql, if there is something to do.
func migrate(ctx context.Context, db *sql.DB, schema string) error {
	ctx, cancel := context.WithTimeout(ctx, migrationMax)
	defer cancel()
	var stranger error
	err := transact(ctx, db, &sql.TxOptions{ReadOnly: true}, func(tx *dbconn.Tx) error {
		err := store.CheckSchema(ctx, tx, schema)
		if err == nil {
			stranger = strangers(ctx, tx, schema)
		}
		return err
	})
	switch {
	case stranger != nil:
		return fmt.Errorf("migrate: %w", stranger)
	case err == nil, store.LockTimeout(err), ctx.Err() != nil:
		return err
	}
	return transact(ctx, db, &sql.TxOptions{Isolation: sql.LevelReadCommitted}, func(tx *dbconn.Tx) error { return apply(ctx, tx, schema) })
}

// strangers returns an error if the tables, or the schema that was named for them, belong to a
// role that the current role should not trust.
func strangers(ctx context.Context, tx *dbconn.Tx, schema string) error {
	if schema != "" {
		if err := store.OwnedByStranger(ctx, tx, schema); err != nil {
			return err
		}
	}
	return store.Stranger(ctx, tx, schema)
}

// transact calls f in a transaction with timeouts. Until f has set the search path, functions
// are named with their schema: a role that may create one in a schema of the path could
// otherwise have it called here.
func transact(ctx context.Context, db *sql.DB, o *sql.TxOptions, f func(*dbconn.Tx) error) error {
	tx, err := dbconn.Begin(ctx, db, o)
	if err != nil {
		return fmt.Errorf("migrate: begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	return tx.During(ctx, func() error {
		// A process that is frozen in here must not keep all others from starting.
		_, err := tx.ExecContext(ctx, fmt.Sprintf(`
SELECT pg_catalog.set_config('idle_in_transaction_session_timeout'::text, '10s'::text, true),
       pg_catalog.set_config('lock_timeout'::text, '%dms'::text, true)`, migrationWait.Milliseconds()))
		if err != nil {
			return fmt.Errorf("migrate: set timeouts: %w", err)
		}
		if err := f(tx); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("migrate: commit: %w", err)
		}
		return nil
	})
}

// apply applies schema.sql, which decides where on the search path the tables go, and refuses
// those that are not the library's.
func apply(ctx context.Context, tx *dbconn.Tx, schema string) error {
	if err := lockMigrations(ctx, tx); err != nil {
		return err
	}
	if schema != "" {
		if err := store.OwnedByStranger(ctx, tx, schema); err != nil {
			return err
		}
		if err := store.UseSchema(ctx, tx, schema); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, schemaSQL); err != nil {
		return fmt.Errorf("apply schema.sql: %w", explained(err))
	}
	return store.CheckSchema(ctx, tx, schema)
}

// lockMigrations waits for other migrations, since CREATE TABLE IF NOT EXISTS is not safe
// against itself.
func lockMigrations(ctx context.Context, tx *dbconn.Tx) error {
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`SELECT pg_catalog.pg_advisory_xact_lock('%d'::bigint)`, int64(migrationLock))); err != nil {
		return fmt.Errorf("wait for other migrations: %w", err)
	}
	return nil
}

// explained adds to an error of schema.sql its HINT, which drivers leave out of the text.
func explained(err error) error {
	hint := ""
	switch store.State(err) {
	case "42P07":
		hint = "another program created it; nothing was changed; rename or drop it, or choose another schema (InSchema, Config.Schema)"
	case "42501":
		hint = "nothing was changed; if the message names the owner of a table: migrate as the owner if the tables are yours, else drop them or choose another schema (InSchema, Config.Schema)"
	case "23514":
		hint = "nothing was changed; correct or delete the row, and try again"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// bounded is calls.Within for a call that may be the program's own code: see safely.
func bounded[T any](ctx context.Context, d time.Duration, call func(context.Context) (T, error), late func(T)) (T, error) {
	return calls.Within(ctx, d, func(ctx context.Context) (value T, err error) {
		err = safely("the call", func() (err error) {
			value, err = call(ctx)
			return err
		})
		return value, err
	}, late)
}

// boundedDo is bounded for a call that returns nothing.
func boundedDo(ctx context.Context, d time.Duration, call func(context.Context) error) error {
	_, err := bounded(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }, nil)
	return err
}
