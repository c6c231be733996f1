package eventtable

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// What is assumed of an events table. The reader's proof (protocol.Horizon) rests on these
// assumptions; a table for which one does not hold is refused by name, with what to do.

// Facts is what a server shows of an events table, and of what fills it. Assumptions are judged by
// nothing else.
type Facts struct {
	Epoch   protocol.Epoch `json:"epoch"`
	Standby bool           `json:"standby"`
	// Locked is true if the statement has found its own lock on the table in pg_locks. A server
	// that does not show that lock does not show those of writers either.
	Locked      bool   `json:"locked"`
	Version     string `json:"version"`
	Encoding    string `json:"encoding"` // in which the session gets texts
	Citus       bool   `json:"citus"`    // that extension is installed
	Distributed bool   `json:"-"`        // Citus keeps the table on other servers

	Name string `json:"name"` // with its schema
	Kind string `json:"kind"` // pg_class.relkind
	Type string `json:"type"` // of the position column
	// Unique is true if no two rows of the table can have the same position.
	Unique bool `json:"unique"`
	// High is the highest position, 0 if there is none; Below is true if there are positions
	// below 1.
	High  json.Number `json:"high"`
	Below bool        `json:"below"`

	// Odd are those of the tables that are read or written, and of their parts,
	// that are not plain, logged tables of this server with all rows visible.
	Odd       []Relation `json:"odd"`
	Missing   []string   `json:"missing"` // names in the configuration that do not exist
	Sequences []Sequence `json:"sequences"`

	Holders [][2]any `json:"holders"`

	// From the configuration.
	Views      bool `json:"-"` // Writers is set
	NoSequence bool `json:"-"`
}

// A Relation is a table, or something like it.
type Relation struct {
	Name        string `json:"name"`
	Kind        string `json:"kind"`
	Persistence string `json:"persistence"`
	Subscribed  bool   `json:"subscribed"` // logical replication writes it
	RowSecurity bool   `json:"row_security"`
}

// A Sequence is one that fills the position column.
type Sequence struct {
	Name      string `json:"name"`
	Cache     int64  `json:"cache"`
	Unlogged  bool   `json:"unlogged"`
	Increment int64  `json:"increment"`
	Start     int64  `json:"start"`
	Min       int64  `json:"min"`
	Cycle     bool   `json:"cycle"`
	// Default: a column's default takes numbers from it.
	Default  bool   `json:"default"`
	Readable bool   `json:"readable"` // the role may see Last
	Last     *int64 `json:"last"`     // the last number that was taken; nil: none
}

// given returns the last number that the sequence has given out.
func (s Sequence) given() int64 {
	if s.Last != nil {
		return *s.Last
	}
	return max(0, s.Start-s.Increment)
}

// An Assumption is something that the reader's proof rests on. Broken returns what is wrong
// with a table for which it does not hold, and what to do; it returns ""
// if it holds, or if the role may not see whether it does.
type Assumption struct {
	Name   string
	Broken func(*Facts) string
}

// Assumptions is everything that is assumed of an events table. The first broken one is
// reported, so those that explain others come first.
var Assumptions = []Assumption{
	{"primary", func(f *Facts) string {
		if f.Standby {
			return "the server is a standby; events can be read without loss on the primary only, which shows the transactions that append"
		}
		return ""
	}},
	{"PostgreSQL", func(f *Facts) string {
		if other := Lookalike(f.Version); other != "" {
			return fmt.Sprintf("the server is %s, which gives out positions and shows locks in another way than PostgreSQL, so events would be lost; write an EventStore of your own for it", other)
		}
		return ""
	}},
	{"locks", func(f *Facts) string {
		if !f.Locked {
			return "the server does not show in pg_locks the lock that this very statement holds, so it would not show those of writers either; events can be read without loss from PostgreSQL itself only"
		}
		return ""
	}},
	{"one encoding", func(f *Facts) string {
		if f.Encoding != "UTF8" {
			return fmt.Sprintf("the session's client_encoding is %s, and the partition of an event is decided by the bytes of its aggregate id, which others get in UTF8; connect with client_encoding=UTF8", f.Encoding)
		}
		return ""
	}},
	{"names", func(f *Facts) string {
		if len(f.Missing) > 0 {
			return fmt.Sprintf("there is no %s, which TableConfig names in Writers or Sequence; give the name as SQL has it, with its schema", strings.Join(f.Missing, " and no "))
		}
		return ""
	}},
	{"table", func(f *Facts) string {
		switch {
		case f.Kind == "r" || f.Kind == "p" || f.Views && f.Kind == "v":
			return ""
		case f.Kind == "v":
			return "it is a view, and an insert does not lock that, so events would be lost; name the table itself, or name the tables from which the view takes its events in TableConfig.Writers"
		case f.Kind == "f":
			return "it is a foreign table, and writers are not seen here but at its server, so events would be lost; read the table itself, there"
		case f.Kind == "m":
			return "it is a materialized view, which shows events in no order of their own, so events would be lost; name the table itself"
		}
		return "it is not a table"
	}},
	{"tables of this server", func(f *Facts) string {
		for _, r := range f.Odd {
			switch {
			case r.Subscribed:
				return fmt.Sprintf("logical replication writes %s, in the order of the publisher's commits and not of positions, so events would be lost; read the publisher's table", r.Name)
			case r.Persistence == "t":
				return fmt.Sprintf("%s is a temporary table, which other sessions don't see; name the schema of the events table in TableConfig.Schema", r.Name)
			case r.Persistence == "u":
				return fmt.Sprintf("%s is unlogged: a crash of the server empties it and its positions begin anew, so events would be lost; ALTER TABLE %[1]s SET LOGGED", r.Name)
			case r.Kind != "r" && r.Kind != "p" && !(f.Views && r.Name == f.Name):
				return fmt.Sprintf("%s is not a table of this server, which does not show its writers, so events would be lost; take it out of the events table, or read it on its own server", r.Name)
			}
		}
		for _, s := range f.Sequences {
			if s.Unlogged {
				return fmt.Sprintf("sequence %s is unlogged: after a crash of the server it gives out its positions again, so events would be lost; ALTER SEQUENCE %[1]s SET LOGGED", s.Name)
			}
		}
		return ""
	}},
	{"not distributed", func(f *Facts) string {
		if f.Distributed {
			return "Citus keeps it on other servers, where its writers are not seen, so events would be lost; keep the events in a table of this server alone"
		}
		return ""
	}},
	{"all rows", func(f *Facts) string {
		for _, r := range f.Odd {
			if r.RowSecurity {
				return fmt.Sprintf("row-level security applies to this role (or, of a view, to its owner) on %s, and events that it hides would be lost; give that role BYPASSRLS, or a policy for all rows and then ALTER TABLE %[1]s DISABLE ROW LEVEL SECURITY", r.Name)
			}
		}
		return ""
	}},
	{"whole numbers", func(f *Facts) string {
		switch f.Type {
		case "smallint", "integer", "bigint":
			return ""
		}
		return fmt.Sprintf("its position column has type %s; positions are integers (smallint, integer, bigint)", f.Type)
	}},
	{"a sequence", func(f *Facts) string {
		if len(f.Sequences) > 0 || f.NoSequence {
			return ""
		}
		which := "no sequence is linked to its position column"
		if f.Kind == "v" {
			which = "it is a view, and it is not known which sequence fills its position column"
		}
		return which + ", so transactions that have taken a position and not committed can't be seen; name the sequence that writers take positions from in TableConfig.Sequence, or, if they take each inside the INSERT itself or under a lock that they hold to the end of the transaction, set TableConfig.NoSequence"
	}},
	{"one sequence", func(f *Facts) string {
		if len(f.Sequences) > 1 {
			var names []string
			for _, s := range f.Sequences {
				names = append(names, s.Name)
			}
			return fmt.Sprintf("its positions come from several sequences (%s), so a later event may have a lower position, and would be lost; let one sequence fill them all, or have one Table for each part", strings.Join(names, ", "))
		}
		return ""
	}},
	{"unique positions", func(f *Facts) string {
		if len(f.Sequences) == 0 && !f.Unique && f.Kind != "v" {
			return "nothing keeps two events from having the same position, and one of them would be lost; add a unique index on the position column alone (it does not cover tables that inherit from this one)"
		}
		return ""
	}},
	{"positions from 1", func(f *Facts) string {
		if f.Below {
			return "it has events at positions below 1, which are never read; move them above 0"
		}
		for _, s := range f.Sequences {
			if s.Increment > 0 && min(s.Start, s.Min) < 1 {
				return fmt.Sprintf("sequence %s can give out positions below 1 (START %d, MINVALUE %d), and events there are never read; ALTER SEQUENCE %[1]s MINVALUE 1 START 1, and RESTART if it is at 0", s.Name, s.Start, s.Min)
			}
		}
		return ""
	}},
	{"ascending", func(f *Facts) string {
		for _, s := range f.Sequences {
			switch {
			case s.Increment < 1:
				return fmt.Sprintf("sequence %s counts down (INCREMENT %d), and later events have lower positions, so they would be lost; positions must ascend", s.Name, s.Increment)
			case s.Cycle:
				return fmt.Sprintf("sequence %s begins anew at its end (CYCLE), and events after that would be lost; ALTER SEQUENCE %[1]s NO CYCLE", s.Name)
			}
		}
		return ""
	}},
	{"no cache", func(f *Facts) string {
		for _, s := range f.Sequences {
			if s.Cache > 1 {
				return fmt.Sprintf("sequence %s has CACHE %d, so a session may use an old position in a new transaction, and events would be lost; ALTER SEQUENCE %s CACHE 1, and let the writers reconnect",
					s.Name, s.Cache, s.Name)
			}
		}
		return ""
	}},
	// Taken one by one, 1, 51, 101, … are as good as 1, 2, 3. But a program that takes
	// blocks (Hibernate's pooled optimizers do, by default) uses the positions between
	// them later, in any transaction.
	{"no blocks", func(f *Facts) string {
		high := f.Highest()
		for _, s := range f.Sequences {
			if s.Increment > 1 && (!s.Default || high > 0 && (high-s.Start)%s.Increment != 0) {
				return fmt.Sprintf("sequence %s has INCREMENT %d, and programs seem to take the positions between by themselves, each a block at a time, so a later event may have a lower position, and would be lost; have them take one at a time (in Hibernate allocationSize = 1), and ALTER SEQUENCE %[1]s INCREMENT 1", s.Name, s.Increment)
			}
		}
		return ""
	}},
	{"the sequence leads", func(f *Facts) string {
		high := f.Highest()
		for _, s := range f.Sequences {
			if s.Readable && s.Increment > 0 && high > s.given() {
				return fmt.Sprintf("there is an event at position %d, and sequence %s is only at %d: positions that it will give out would lie below events that are there, and be lost; take out what was inserted with a position of its own, or, as after a restore, SELECT setval('%[2]s', %[1]d)",
					high, s.Name, s.given())
			}
		}
		return ""
	}},
}

// Highest returns the highest position.
func (f *Facts) Highest() int64 {
	high, _ := f.High.Int64() // no integer: that is refused
	return high
}

// Given returns the last position that was given out, as far as the role can see.
func (f *Facts) Given() int64 {
	given := f.Highest()
	for _, s := range f.Sequences {
		if s.Readable {
			given = max(given, s.given())
		}
	}
	return given
}

// Judge returns what is wrong with a table for which an assumption does not hold; "" if all
// hold.
func (f *Facts) Judge() string {
	for _, a := range Assumptions {
		if why := a.Broken(f); why != "" {
			return why
		}
	}
	return ""
}

// Lookalike returns the product that a version() names, if that is not PostgreSQL
// although it speaks its protocol: its positions, locks or transactions work in another way. It
// returns "" for PostgreSQL.
func Lookalike(version string) string {
	for _, name := range []string{"CockroachDB", "YugabyteDB", "-YB-", "Redshift", "Greenplum", "Cloudberry", "Materialize", "CrateDB", "QuestDB", "RisingWave", "Spanner", "openGauss", "GaussDB", "DSQL"} {
		if strings.Contains(strings.ToLower(version), strings.ToLower(name)) {
			return strings.Trim(name, "-")
		}
	}
	return ""
}

// Ask returns the facts, and the transactions that may still make an event visible below the
// highest position that was visible before. It takes one round trip.
func (t Table) Ask(ctx context.Context, db *sql.DB) (f Facts, holders []protocol.Holder, err error) {
	var text []byte
	query, args := t.bind(sqltext.LibPQ(db), factsSQL, nil)
	err = dbconn.QueryRow(ctx, db, query, args...).Scan(&text)
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err == nil && f.Citus {
		f.Distributed, err = t.distributed(ctx, db)
	}
	if err != nil {
		return f, nil, fmt.Errorf("ask what is assumed of %s: %w", t.Name, err)
	}
	f.Views, f.NoSequence = len(t.config.Writers) > 0, t.config.NoSequence
	for _, h := range f.Holders {
		name, _ := h[0].(string)
		backend, _ := h[1].(float64)
		holders = append(holders, protocol.Holder{Transaction: name, Backend: int(backend)})
	}
	return f, holders, nil
}

// distributed reports whether Citus keeps the table, or a part of it, on other
// servers, so that this one does not show its writers. Call it only if Citus is installed.
func (t Table) distributed(ctx context.Context, db *sql.DB) (distributed bool, err error) {
	query, args := t.bind(sqltext.LibPQ(db), distributedSQL, nil)
	err = dbconn.QueryRow(ctx, db, query, args...).Scan(&distributed)
	return distributed, err
}

// Identity returns a name for the table that is the same for all workers that read it in the
// same way: its schema and name, and, if they are not the default ones, the columns of the
// position and of the aggregate id. With another column, an event would be in another
// partition.
func (t Table) Identity(ctx context.Context, db *sql.DB) (table string, err error) {
	query, args := t.bind(sqltext.LibPQ(db), identitySQL, nil)
	if err = dbconn.QueryRow(ctx, db, query, args...).Scan(&table); err != nil {
		return "", fmt.Errorf("identify %s: %w", t.Name, err)
	}
	if c := t.config; c.Position != DefaultPosition || c.Aggregate != DefaultAggregate {
		table += fmt.Sprintf(" (%s, %s)", c.Position, c.Aggregate)
	}
	return table, nil
}

// Database returns a name for the database that a connection leads to: its own name, and
// the server's identifier if the role may see that.
func Database(ctx context.Context, db *sql.DB) (name string, err error) {
	query, _ := sqltext.Names{Literals: true}.Bind(databaseSQL, nil)
	if err := dbconn.QueryRow(ctx, db, query).Scan(&name); err != nil {
		return "", fmt.Errorf("identify the database: %w", err)
	}
	var system string
	query, _ = sqltext.Names{Literals: true}.Bind(systemSQL, nil)
	if dbconn.QueryRow(ctx, db, query).Scan(&system) == nil {
		name += " on server " + system
	}
	return name, nil
}

var (
	distributedSQL = sqltext.New(treeText + `SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid::oid = ANY (SELECT oid FROM tree))`)
	identitySQL    = sqltext.New(`
SELECT format('%I.%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {name}::regclass::oid`)
	databaseSQL = sqltext.New(`SELECT current_database()::text`)
	systemSQL   = sqltext.New(`SELECT system_identifier::text FROM pg_control_system()`)
)

// treeText is the beginning of a query about the tables whose writers fill the events
// table: that itself and those that are named, with all of their parts (tree), and what
// they are partitions of (above).
const treeText = `
WITH RECURSIVE root (oid) AS (
     SELECT to_regclass(root)::oid FROM jsonb_array_elements_text({roots}) AS root)
, tree (oid) AS (
     SELECT oid FROM root
      UNION
     SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
, above (oid) AS (SELECT a.relid FROM root, pg_partition_ancestors(root.oid) AS a)
`

// runText names the run of the server: pg_is_in_recovery, since a standby that takes
// over goes on; the start; and, where that is cheap to ask, what a crash that the
// server survives sets back.
const runText = `CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END,
       (date_part('epoch', pg_postmaster_start_time()) * 1000000)::bigint,
       CASE WHEN current_setting('server_version_num')::int >= 150000
            THEN (date_part('epoch', pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint END, current_database()`

// epochText names the epoch in which a statement runs: the run of the server, the table and its
// file, the role and whether row-level security applies to it, since that may hide events (a
// SET ROLE that was left behind, a policy that comes later), the encoding, and the file of the
// sequence whose oid is given. RESTART gives the sequence another
// file, and so does TRUNCATE … RESTART IDENTITY. It comes with each page, so it
// reads no table, and takes the server next to no time.
func epochText(sequence string) string {
	return `concat_ws('|', ` + sequence + `, coalesce(pg_relation_filenode(` + sequence + `), 0),
       {name}::regclass::oid, coalesce(pg_relation_filenode({name}::regclass), 0), current_user,
       row_security_active({name}::regclass::oid), ` + encodingText + `, ` + runText + `)`
}

// encodingText names the encoding in which the session gets texts. A database in
// SQL_ASCII has bytes, and they are not converted.
const encodingText = `CASE WHEN getdatabaseencoding() = 'SQL_ASCII' THEN 'UTF8' ELSE pg_client_encoding()::text END`

// elsewhere is in the error of a statement that finds itself in another epoch.
const elsewhere = "the horizon of the events is elsewhere, and not at backend "

// hereText is an expression that is true in an epoch, if the stream reaches a position
// there (0 is any), and otherwise makes the statement fail. It
// is evaluated once, even if no row matches. It closes this race: a reader asks for the epoch, its
// next statement runs on another server after a failover, and passes a gap there.
var hereText = `(SELECT CASE WHEN ` + epochText(`split_part({epoch}, '|', 1)::oid`) + ` = {epoch}
             AND ({reaches} = 0 OR EXISTS (SELECT FROM {table} WHERE {position} >= {reaches}))
        THEN true ELSE ('` + elsewhere + `' || pg_backend_pid()::text)::boolean END)`

// factsSQL is the statement of Ask.
var factsSQL = sqltext.New(treeText + `
, col AS (
     SELECT a.attrelid, a.attnum, f.oid AS def
       FROM tree JOIN pg_attribute a ON a.attrelid = tree.oid AND a.attname = {position_name}::name AND NOT a.attisdropped
       LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum)
, filler AS (
     SELECT oid, bool_or(inserted) AS inserted FROM (
            SELECT d.objid AS oid, d.deptype = 'i' AS inserted, false AS named FROM col JOIN pg_depend d
                ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = col.attrelid AND d.refobjsubid = col.attnum
               AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = ANY ('{a,i}')
            UNION ALL
            SELECT d.refobjid, true, false FROM col JOIN pg_depend d
                ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = col.def AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype = ANY ('{a,n}')
            UNION ALL
            SELECT CASE WHEN {sequence} <> '' THEN to_regclass({sequence})::oid END, false, true) x
      WHERE oid = ANY (SELECT seqrelid FROM pg_sequence) GROUP BY oid
     -- a view's column is not its tables' column of that name
     HAVING bool_or(named) OR (SELECT relkind FROM pg_class WHERE oid = to_regclass({name})::oid) <> 'v')
, held AS MATERIALIZED (
     SELECT relation, mode, granted, virtualtransaction, pid FROM pg_locks
      WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
-- Writers lock the table, a part of it, what it is a part of (and the part only once the row
-- is there, with its position), or the sequence. A transaction that waits for such a lock
-- may have its position already. A transaction that attaches a table as a part is not seen to
-- have done so before COMMIT: it has locked the one table, as ATTACH does, and written to
-- another. (Not VACUUM, ANALYZE or CREATE INDEX: these write to indexes and catalogs.)
, holder AS (
     SELECT virtualtransaction, pid FROM held
      WHERE mode = 'RowExclusiveLock' AND (relation = ANY (SELECT oid FROM tree) OR relation = ANY (SELECT oid FROM above) OR relation = ANY (SELECT oid FROM filler))
      UNION
     SELECT h.virtualtransaction, h.pid FROM held h
      WHERE h.mode = ANY ('{ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}')
        AND h.granted AND h.relation = ANY (SELECT oid FROM tree)
        AND EXISTS (
            SELECT FROM held o WHERE o.virtualtransaction = h.virtualtransaction AND o.mode = 'RowExclusiveLock'
               AND NOT EXISTS (
                   SELECT FROM pg_class c WHERE c.oid = o.relation
                      AND (c.relkind <> ALL ('{r,p}') OR c.relnamespace = ANY (ARRAY['pg_catalog'::regnamespace::oid, 'pg_toast'::regnamespace::oid])))))
SELECT json_build_object(
       'epoch', ` + epochText(`(SELECT coalesce(min(oid::bigint), 0)::oid FROM filler)`) + `, 'standby', pg_is_in_recovery(),
       'locked', EXISTS (SELECT FROM held WHERE pid = pg_backend_pid() AND relation = t.oid AND mode = 'AccessShareLock' AND granted),
       'version', version(), 'encoding', ` + encodingText + `, 'citus', to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL,
       'name', t.oid::regclass::text, 'kind', t.relkind,
       'type', (SELECT format_type(CASE WHEN y.typtype = 'd' THEN y.typbasetype ELSE y.oid END, NULL)
                  FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
                 WHERE a.attrelid = t.oid AND a.attname = {position_name}::name AND NOT a.attisdropped),
       'unique', EXISTS (
            SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
             WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1
               AND a.attname = {position_name}::name)
          -- chunks of a hypertable are covered
          AND NOT EXISTS (
            SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE i.inhparent = t.oid AND t.relkind = 'r' AND n.nspname <> '_timescaledb_internal'),
       'high', (SELECT coalesce(max({position}), 0) FROM {table}),
       'below', EXISTS (SELECT FROM {table} WHERE {position} < 1),
       'odd', (SELECT json_agg(o) FROM (
            SELECT c.oid::regclass::text AS name, c.relkind AS kind, c.relpersistence AS persistence,
                   EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid OR s.srrelid = ANY (SELECT oid FROM above)) AS subscribed,
                   c.relrowsecurity AND CASE WHEN t.relkind = 'v'
                        AND NOT EXISTS (SELECT FROM unnest(t.reloptions) AS o WHERE o = ANY ('{security_invoker=true,security_invoker=on}'))
                        THEN NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE oid = t.relowner)
                             AND (c.relforcerowsecurity OR NOT pg_has_role(t.relowner, c.relowner, 'USAGE'))
                        ELSE row_security_active(c.oid) END AS row_security
              FROM pg_class c WHERE c.oid = t.oid OR c.oid = ANY (SELECT oid FROM tree)) o
             WHERE kind <> ALL ('{r,p}') OR persistence <> 'p' OR subscribed OR row_security),
       'missing', (SELECT json_agg(wanted) FROM jsonb_array_elements_text({wanted}) AS wanted
             WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass(wanted)::oid AND (c.relkind = 'S') = (wanted = {sequence}))),
       'sequences', (SELECT json_agg(json_build_object(
            'name', s.seqrelid::regclass::text, 'cache', s.seqcache, 'increment', s.seqincrement, 'start', s.seqstart, 'min', s.seqmin,
            'unlogged', (SELECT relpersistence <> 'p' FROM pg_class WHERE oid = f.oid), 'cycle', s.seqcycle, 'default', f.inserted, 'readable', has_sequence_privilege(f.oid, 'SELECT, USAGE'),
            'last', CASE WHEN has_sequence_privilege(f.oid, 'SELECT, USAGE') THEN pg_sequence_last_value(f.oid) END) ORDER BY f.oid)
              FROM filler f JOIN pg_sequence s ON s.seqrelid = f.oid),
       'holders', (SELECT json_agg(json_build_array(virtualtransaction, coalesce(pid, 0)))
              FROM holder WHERE pid IS NULL OR pid <> pg_backend_pid()))
  FROM pg_class t WHERE t.oid = to_regclass({name})::oid`)
