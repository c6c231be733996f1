// Package store keeps the coordinator's state in PostgreSQL, and moves checkpoints. It decides
// nothing: it loads a group, lets [protocol] decide, and saves the result.
//
// It promises that a result is saved only if nothing that the decision was based on has changed,
// that a checkpoint moves only under its lane's own generation (the fence: the WHERE of its
// UPDATE), and that every transaction is bounded on the server's side (Bounds). It must never
// read the state of coordination on a standby, and never let a session's search_path decide what a name
// means (package sqltext).
//
// Rows are locked in one order everywhere, so that no two transactions wait for each other:
// the replica set, its workers, projections by name, checkpoints by projection and partition.
// (A claim by another replica set locks projections before that set's workers.)
package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// A Store is one replica set in a database.
type Store struct {
	db       *sql.DB
	set      string
	schema   string
	clock    string
	bounds   Bounds
	starts   Starts // nil: all at the beginning
	rebuilds map[string]string

	names atomic.Pointer[sqltext.Names] // nil: not known yet
}

// Options of a Store.
type Options struct {
	Bounds Bounds
	// Schema is where the tables are; empty is the schema that the search path leads
	// to (sqltext.Find), which is looked up once, and kept.
	Schema string
	// Clock is the SQL expression for the time; empty is clock_timestamp().
	// Tests use a clock of their own.
	Clock string
	// Starts returns where projections without a checkpoint start; nil is at the beginning.
	Starts Starts
	// Rebuilds maps each projection that is rebuilt beside a live one to the name of the
	// live one.
	Rebuilds map[string]string
}

// Bounds are set on the server's side, so that a process that is frozen in the
// middle of a transaction can't hold its locks without end (L3).
type Bounds struct {
	// Idle is how long a coordination or commit transaction may wait for its
	// client before the server ends it. A worker that freezes with a
	// checkpoint locked delays an activation by that at most.
	Idle time.Duration
	// Lock is how long a coordination transaction may wait for a lock.
	Lock time.Duration
	// Handler is how long a handler's transaction may wait for the handler.
	Handler time.Duration
}

// BoundsOf returns the bounds for a lease (StaleWorkerTimeout). Those
// of coordination are short beside it, so that waiting for one costs no worker its lease.
func BoundsOf(lease time.Duration) Bounds {
	return Bounds{Idle: min(lease/4, 5*time.Second), Lock: min(lease/10, time.Second), Handler: lease}
}

// New returns the store of a replica set.
func New(db *sql.DB, set string, o Options) *Store {
	return &Store{db: db, set: set, schema: o.Schema, clock: o.Clock, bounds: o.Bounds, starts: o.Starts, rebuilds: o.Rebuilds}
}

// ErrSettings is returned by CheckSettings.
var ErrSettings = errors.New("a setting of the connection does not work")

var settingsSQL = sqltext.New(`
SELECT name, reset_val, setting FROM pg_settings
 WHERE name = ANY ('{client_encoding,DateStyle,default_transaction_read_only}') ORDER BY name`)

// CheckSettings returns ErrSettings for settings under which a worker loses events or can't
// work. What counts is what sessions begin with, and not what was SET since.
func (s *Store) CheckSettings(ctx context.Context) error {
	query, args := sqltext.Names{Literals: true}.Bind(settingsSQL, nil)
	rows, err := dbconn.Query(ctx, s.db, query, args...)
	if err != nil {
		return fmt.Errorf("read the connection's settings: %w", err)
	}
	defer rows.Close()
	var dates string // other than ISO
	for rows.Next() {
		var name, began, now string
		if err := rows.Scan(&name, &began, &now); err != nil {
			return fmt.Errorf("read the connection's settings: %w", err)
		}
		if name == "DateStyle" && !strings.HasPrefix(now, "ISO") {
			dates = now
		}
		if why := refused(name, began); why != "" && refused(name, now) != "" {
			return fmt.Errorf("%w: %s is %s: %s", ErrSettings, name, began, why)
		}
	}
	err = rows.Err()
	_ = rows.Close() // the pool may have no other connection
	if err != nil || dates == "" {
		return err
	}
	// A driver that reads times in binary works with any DateStyle.
	var now time.Time
	if err := s.row(ctx, s.db, clockSQL, nil, &now); err != nil && State(err) == "" && !Passing(err) && ctx.Err() == nil {
		return fmt.Errorf("%w: DateStyle is %s: the driver can't read times in it; put DateStyle=ISO into the connection string: %w", ErrSettings, dates, err)
	}
	return nil
}

var clockSQL = sqltext.New(`SELECT {clock}`)

// refused returns why a setting does not work, and what to do; "" is that it does.
func refused(name, value string) string {
	switch {
	case name == "client_encoding" && value != "UTF8":
		return "this worker would read aggregate ids as other bytes than other workers, and no worker would handle their events; put client_encoding=UTF8 into the connection string"
	case name == "default_transaction_read_only" && value == "on":
		return "a worker has to write; remove the setting from the connection string, or ALTER ROLE or ALTER DATABASE … SET default_transaction_read_only = off"
	}
	return ""
}

// resolve finds out where the tables are, once: a store keeps using those that it
// began with. It asks on the connection at hand, since a pool may have no other.
func (s *Store) resolve(ctx context.Context, q dbconn.Querier) (sqltext.Names, error) {
	if n := s.names.Load(); n != nil {
		return *n, nil
	}
	n, err := locateOf(ctx, s.db, q, s.schema)
	if err != nil {
		return n, err
	}
	n.Clock = s.clock
	s.names.CompareAndSwap(nil, &n)
	return *s.names.Load(), nil
}

// bind returns a statement as it is sent, with the store's own values put in
// beside the others.
func (s *Store) bind(ctx context.Context, q dbconn.Querier, statement sqltext.Statement, values sqltext.Values) (query string, args []any, err error) {
	names, err := s.namesFor(ctx, q, statement)
	if err != nil {
		return "", nil, err
	}
	query, args = names.Bind(statement, s.values(values))
	return query, args, nil
}

// text is bind without arguments, whatever the driver: for what may be several
// statements, which all drivers send as they are then, and prepare none.
func (s *Store) text(ctx context.Context, q dbconn.Querier, statement sqltext.Statement, values sqltext.Values) (query string, err error) {
	names, err := s.namesFor(ctx, q, statement)
	if err != nil {
		return "", err
	}
	names.Literals = true
	query, _ = names.Bind(statement, s.values(values))
	return query, nil
}

func (s *Store) namesFor(ctx context.Context, q dbconn.Querier, statement sqltext.Statement) (sqltext.Names, error) {
	if statement.HasTables() {
		return s.resolve(ctx, q)
	}
	return sqltext.Names{Clock: s.clock, Literals: sqltext.LibPQ(s.db)}, nil
}

func (s *Store) values(values sqltext.Values) sqltext.Values {
	all := sqltext.Values{
		"set": s.set, "channel": Channel,
		"idle": millis(s.bounds.Idle), "lock": millis(s.bounds.Lock), "handler": millis(s.bounds.Handler),
	}
	maps.Copy(all, values)
	return all
}

func (s *Store) exec(ctx context.Context, q dbconn.Querier, statement sqltext.Statement, values sqltext.Values) (sql.Result, error) {
	query, args, err := s.bind(ctx, q, statement, values)
	if err != nil {
		return nil, err
	}
	result, err := dbconn.ExecOn(ctx, q, query, args...)
	if roleLeft(ctx, q, err) {
		return dbconn.ExecOn(ctx, q, query, args...)
	}
	return result, err
}

func (s *Store) query(ctx context.Context, q dbconn.Querier, statement sqltext.Statement, values sqltext.Values) (dbconn.Scanner, error) {
	query, args, err := s.bind(ctx, q, statement, values)
	if err != nil {
		return nil, err
	}
	rows, err := dbconn.QueryOn(ctx, q, query, args...)
	if roleLeft(ctx, q, err) {
		return dbconn.QueryOn(ctx, q, query, args...)
	}
	return rows, err
}

// row runs a query, and scans its only row.
func (s *Store) row(ctx context.Context, q dbconn.Querier, statement sqltext.Statement, values sqltext.Values, dest ...any) error {
	query, args, err := s.bind(ctx, q, statement, values)
	if err != nil {
		return err
	}
	err = dbconn.ScanOn(ctx, q, query, args, dest...)
	if roleLeft(ctx, q, err) {
		return dbconn.ScanOn(ctx, q, query, args, dest...)
	}
	return err
}

// roleLeft reports whether a statement was refused, perhaps, because a connection of the pool
// was left with another role (SET ROLE): that connection is closed by now, and the statement may
// be tried again.
func roleLeft(ctx context.Context, q dbconn.Querier, err error) bool {
	db, pool := q.(*sql.DB)
	return pool && Denied(err) && DropStandbys(ctx, db) > 0
}

// Tables is where the library's tables are: in which database, and in which schema of
// it; an empty schema is the one to which the search path leads.
type Tables struct {
	DB     *sql.DB
	Schema string
}

// TablesOf returns where the tables are, by the options that a function was given.
func TablesOf[O ~func(*Tables)](db *sql.DB, options []O) Tables {
	t := Tables{DB: db}
	for _, o := range options {
		if o != nil {
			o(&t)
		}
	}
	return t
}

// Locate returns the schema of the tables, for statements. If it is empty it is
// looked up, and stays the same for as long as the database is open: later changes of
// its sessions' search paths have no effect.
func (t Tables) Locate(ctx context.Context) (sqltext.Names, error) {
	return locateOf(ctx, t.DB, t.DB, t.Schema)
}

// SchemaProblem returns what is wrong with the name of a schema; "" if it can be one.
func SchemaProblem(name string) string {
	switch problem := NameProblem(name); {
	case problem != "":
		return problem
	case len(name) > 63:
		return fmt.Sprintf("%q has more than 63 bytes", name)
	case strings.HasPrefix(name, "pg_") || name == "information_schema" || name == "$user":
		return fmt.Sprintf("%q belongs to the server or to one session; choose another schema", name)
	}
	return ""
}

// located are the schemas that were looked up, by database and by what was asked for.
var located = struct {
	sync.Mutex
	of map[weak.Pointer[sql.DB]]map[string]string
}{of: map[weak.Pointer[sql.DB]]map[string]string{}}

func locateOf(ctx context.Context, db *sql.DB, q dbconn.Querier, schema string) (sqltext.Names, error) {
	key := weak.Make(db)
	located.Lock()
	known, ok := located.of[key][schema]
	located.Unlock()
	if ok {
		return sqltext.Names{Schema: known, Literals: sqltext.LibPQ(db)}, nil
	}
	n, err := locate(ctx, q, schema)
	if err == nil && schema != "" {
		err = present(ctx, q, n)
	}
	if err != nil {
		return n, err
	}
	n.Literals = sqltext.LibPQ(db)
	located.Lock()
	defer located.Unlock()
	of := located.of[key]
	if of == nil {
		of = map[string]string{}
		located.of[key] = of
		runtime.AddCleanup(db, func(key weak.Pointer[sql.DB]) {
			located.Lock()
			defer located.Unlock()
			delete(located.of, key)
		}, key)
	}
	if first, ok := of[schema]; ok {
		n.Schema = first
	}
	of[schema] = n.Schema
	return n, nil
}

var presentSQL = sqltext.New(`
SELECT EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = {in}::name AND c.relname = 'orchestrator_schema'::name)`)

// present returns ErrSchema if a schema that was named does not have the tables.
func present(ctx context.Context, q dbconn.Querier, n sqltext.Names) error {
	var is bool
	query, args := n.Bind(presentSQL, sqltext.Values{"in": n.Schema})
	if err := dbconn.ScanOn(ctx, q, query, args, &is); err != nil {
		return fmt.Errorf("look for the tables in schema %q: %w", n.Schema, err)
	}
	if !is {
		return fmt.Errorf("%w: there is no table orchestrator_schema in schema %q; call Migrate with InSchema(%[2]q), or apply schema.sql there", ErrSchema, n.Schema)
	}
	return nil
}

var errNoTables = fmt.Errorf("%w: no table orchestrator_schema on the search path; call RunMigrations(db) or apply schema.sql", ErrSchema)

func locate(ctx context.Context, db dbconn.Querier, schema string) (sqltext.Names, error) {
	n := sqltext.Names{Schema: schema, Literals: true}
	if schema != "" {
		if problem := SchemaProblem(schema); problem != "" {
			return n, fmt.Errorf("%w: the name of the schema %s", ErrSchema, problem)
		}
		return n, nil
	}
	schema, temporary, err := sqltext.Find(ctx, db, "orchestrator_schema")
	switch ambiguous := (*sqltext.AmbiguousError)(nil); {
	case errors.As(err, &ambiguous):
		return n, fmt.Errorf("%w: %w", ErrSchema, err)
	case err != nil:
		return n, err
	case schema == "" && temporary:
		return n, fmt.Errorf("%w: orchestrator_schema is a temporary table of one session (pg_temp); drop it, and call RunMigrations(db) or apply schema.sql", ErrSchema)
	case schema == "":
		return n, errNoTables
	}
	n.Schema = schema
	return n, nil
}

// A Result is what a Sync has read and done.
type Result struct {
	View     protocol.View
	Group    protocol.Group    // empty for a heartbeat
	Decision protocol.Decision // empty for a heartbeat
	// Since is when Foresee was called, if the decision is based on what that has read: the
	// lease counts from then.
	Since time.Time
	// Checkpoints are those that lanes of the view's generation start from, as far as they
	// were asked for and are there: what Load returns.
	Checkpoints map[Lane]protocol.Found
	// Of an activation: when the generation was opened, and which workers had to stop first.
	OpenedAt  time.Time
	WaitedFor []protocol.WorkerID
}

// A TakenError is returned if a worker of another replica set runs one of the projections.
type TakenError struct {
	Projection string
	ReplicaSet string
	Worker     protocol.WorkerID
	// Now is the database's time, and Over is whether the worker's lease is over
	// by it. Then the worker is probably dead, and a caller that has watched
	// that clock for long enough will get the projection.
	Now  time.Time
	Over bool
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("projection %q belongs to replica set %q, where worker %s runs it; a projection belongs to one replica set at a time", e.Projection, e.ReplicaSet, e.Worker)
}

// Facts are what FactsOf says of it.
func (e *TakenError) Facts() protocol.Facts {
	return protocol.Facts{Failed: true, Taken: true, Over: e.Over}
}

// A StreamError is returned to a worker that joins and reads another event stream than
// the replica set.
type StreamError struct{ ReplicaSet, Stream, Other string }

func (e *StreamError) Error() string {
	return fmt.Sprintf("replica set %q reads the events of %s, but this worker reads those of %s: a position of one would be taken for a position of the other; "+
		"let all of its workers read the same table, or, if the events were moved with their positions and no worker runs any more: UPDATE orchestrator_replica_sets SET events_table = '' WHERE name = %s",
		e.ReplicaSet, e.Stream, e.Other, sqltext.QuoteLiteral(e.ReplicaSet))
}

// Facts are what FactsOf says of it.
func (e *StreamError) Facts() protocol.Facts { return protocol.Facts{Failed: true, Stranger: true} }

// Sync carries out a worker's request. A heartbeat is one statement that
// writes the worker's own row, or nothing if it is ReadOnly. Everything else reads
// the set, runs [protocol.Step], and saves what that decided if nothing has changed (attempt),
// or does all of that in a transaction that has locked the set (step). If the
// answer is lost, sending the request again does no harm.
func (s *Store) Sync(ctx context.Context, r protocol.Request, projections []string) (Result, error) {
	return s.SyncForeseen(ctx, r, projections, nil)
}

// SyncForeseen is Sync of a join. The decision is based on f if that is not nil and nothing has
// changed since.
func (s *Store) SyncForeseen(ctx context.Context, r protocol.Request, projections []string, f *Foresight) (Result, error) {
	if r.Heartbeat {
		return s.heartbeat(ctx, r)
	}
	for n := range attempts {
		a, err := s.attempt(ctx, r, projections, f, r.Report && n == 0)
		f = nil
		if err != nil {
			return Result{}, err
		}
		if a == nil {
			break
		}
		if done, err := a.carry(ctx, s); done || err != nil {
			return a.result, err
		}
	}
	var result Result
	err := s.transact(ctx, func(tx *sql.Tx) (err error) {
		result, err = s.step(ctx, tx, r, projections)
		return err
	})
	if errors.Is(err, errBusy) {
		return s.heartbeat(ctx, r)
	}
	return result, err
}

// errBusy means that another transaction has locked the set, or that there is none.
var errBusy = errors.New("the replica set is locked")

// heartbeat carries out a heartbeat.
func (s *Store) heartbeat(ctx context.Context, r protocol.Request) (Result, error) {
	var v protocol.View
	var stepAt, leaseEnd sql.NullTime
	var generation, total, holds sql.NullInt64
	var partitions, paused sql.NullString
	var absent string
	var due bool
	var found sql.NullString
	statement, values := readOnlySQL, sqltext.Values{"worker": string(r.Worker)}
	switch {
	case r.Load:
		statement = loadingReadOnlySQL
	case !r.ReadOnly:
		if statement = heartbeatSQL; r.Others {
			statement = othersHeartbeatSQL
		}
		maps.Copy(values, beatOf(r))
	}
	err := s.row(ctx, s.db, statement, values,
		&v.Now, &due, &stepAt, &leaseEnd, &generation, &total, &partitions, &paused, &holds, &absent, &v.Others.Alone, &found)
	row := RowOf("workers", s.set, "of this worker or another").Scanned(err)
	if err == nil {
		row = RowOf("workers", s.set, string(r.Worker))
	}
	v.Member = holds.Valid
	v.Generation, v.Total, v.Holds = generation.Int64, int(total.Int64), holds.Int64
	if v.Member && err == nil {
		row.AtLeast("generation", v.Generation, 0).AtLeast("holds", v.Holds, 0).Total(v.Total, 0)
		v.Partitions, v.Paused = row.Partitions("partitions", partitions.String, v.Total), Strings[string](row, "paused", paused.String)
	}
	if row.Err != nil {
		return Result{}, fmt.Errorf("heartbeat of %s: %w", r.Worker, Foreseen(row.Err))
	}
	if !r.Others {
		v.Others = protocol.Others{}
	} else if v.Others.Absent, err = absentOf(absent); err != nil {
		return Result{}, fmt.Errorf("heartbeat of %s: %w", r.Worker, err)
	}
	v.StepAt = stepAt.Time
	if leaseEnd.Valid && (v.StepAt.IsZero() || leaseEnd.Time.Before(v.StepAt)) {
		v.StepAt = leaseEnd.Time
	}
	if due {
		v.StepAt = v.Now
	}
	return Result{View: v, Checkpoints: shown(v, found.String)}, nil
}

// shown returns the checkpoints that a heartbeat has shown. An invalid one is left to
// Load, whose error names what is wrong with it.
func shown(v protocol.View, text string) map[Lane]protocol.Found {
	var rows []struct {
		Projection string
		Partition  int
		Position   int64
		Ahead      json.RawMessage
		NoneParked bool
		Follows    bool
	}
	if text == "" || json.Unmarshal([]byte(text), &rows) != nil {
		return nil
	}
	all := map[Lane]protocol.Found{}
	for _, r := range rows {
		l := Lane{r.Projection, protocol.Assignment{Generation: v.Generation, Partition: r.Partition, Total: v.Total}}
		ahead := sql.NullString{String: string(r.Ahead), Valid: r.Ahead != nil}
		if c, err := checkpointOf(r.Projection, r.Partition, v.Total, protocol.Checkpoint{Position: r.Position}, ahead, nil); err == nil {
			all[l] = protocol.Found{Generation: v.Generation, Checkpoint: c, Exists: true, NoneParked: r.NoneParked, Follows: r.Follows}
		}
	}
	return all
}

// beatOf returns the values with which a worker's own row is written.
func beatOf(r protocol.Request) sqltext.Values {
	return sqltext.Values{"lease": r.Lease.Microseconds(), "stopped": r.Stopped, "key": r.Presence.Key, "number": r.Presence.Number}
}

// Report writes a worker's report, of JSON, if it is a member. No decision depends on a
// report. A text in it that the database's encoding can't hold is written in ASCII.
func (s *Store) Report(ctx context.Context, worker protocol.WorkerID, report []byte) error {
	return s.writeText(ctx, fmt.Sprintf("write the report of %s", worker), reportSQL, func(ascii bool) sqltext.Values {
		text := string(report)
		if ascii {
			text = asciiJSON(text)
		}
		return sqltext.Values{"worker": string(worker), "report": sqltext.JSON{Value: json.RawMessage(text)}}
	})
}

// Unreport removes the report of a worker that has left.
func (s *Store) Unreport(ctx context.Context, worker protocol.WorkerID) error {
	return s.writeText(ctx, fmt.Sprintf("remove the report of %s", worker), unreportSQL, func(bool) sqltext.Values {
		return sqltext.Values{"worker": string(worker)}
	})
}

// writeText runs a statement, and once more with its texts in ASCII if the
// database can't hold them as they are.
func (s *Store) writeText(ctx context.Context, what string, statement sqltext.Statement, values func(ascii bool) sqltext.Values) error {
	_, err := s.exec(ctx, s.db, statement, values(false))
	if Unstorable(err) {
		_, err = s.exec(ctx, s.db, statement, values(true))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// step carries out a request in a transaction. It takes one round trip for each of: BEGIN, the
// set's lock, the members' locks, the time, the save, and COMMIT; a join and a hand-over take
// more. Each lock has a statement of its own, because a statement sees what was committed when it
// began: one that waits for a lock and reads would read what was there before it had the lock.
func (s *Store) step(ctx context.Context, tx *sql.Tx, r protocol.Request, projections []string) (Result, error) {
	before, err := s.lockGroup(ctx, tx, r)
	if err != nil {
		return Result{}, err
	}
	// The members' rows are locked with the set's, so no heartbeat can renew
	// a lease between the reading and the removal of a worker.
	if before.Members, err = s.lockMembers(ctx, tx, before.Total); err != nil {
		return Result{}, err
	}
	now, err := s.timeAndFloor(ctx, tx, &before)
	if err != nil {
		return Result{}, err
	}
	if r.Join {
		took, added, err := s.claim(ctx, tx, projections, now, r.Watch)
		if before = before.Take(took); err == nil && (len(took) > 0 || added) {
			_, err = s.timeAndFloor(ctx, tx, &before)
		}
		if err != nil {
			return Result{}, err
		}
	}

	if before.Refuses(r) {
		return Result{}, &StreamError{s.set, before.Stream, r.Stream}
	}
	if r.Join {
		if err := s.begin(ctx, tx, projections, r.Stream); err != nil {
			return Result{}, err
		}
	}
	if r.Order != nil {
		if err := s.checkOrder(ctx, tx, before, *r.Order); err != nil {
			return Result{}, err
		}
	}
	group, decision := protocol.Step(protocol.Apply(before, r, now), now, r.Watch)

	result := Result{View: group.View(r.Worker, now, decision), Group: group, Decision: decision}
	if err := s.save(ctx, tx, before.Members, &result, now, projections, r.Join); err != nil {
		return Result{}, err
	}
	if decision.Activated {
		if err := s.handOver(ctx, tx, group, decision.Rewinds); err != nil {
			return Result{}, err
		}
	}
	return result, nil
}

func (s *Store) timeAndFloor(ctx context.Context, tx *sql.Tx, g *protocol.Group) (now time.Time, err error) {
	values := sqltext.Values{"generation": g.Generation}
	if err := s.row(ctx, tx, timeAndFloorSQL, values, &now, &g.Floor, &g.Uncovered); err != nil {
		return now, fmt.Errorf("read the time and the generations of checkpoints: %w", Foreseen(err))
	}
	return now, nil
}

// lockGroup locks the set's row, and creates it for the first worker.
func (s *Store) lockGroup(ctx context.Context, tx *sql.Tx, r protocol.Request) (protocol.Group, error) {
	var g protocol.Group
	var window int64
	var paused, rewinds, holds string
	statement := lockGroupSQL
	if r.Yield {
		statement = lockGroupOrYieldSQL
	}
	load := func() error {
		err := RowOf("replica_sets", s.set).Scanned(s.row(ctx, tx, statement, nil,
			&g.Generation, &g.Phase, &g.Total, &g.Reason, &g.MaxPartitions, &window, &paused, &rewinds, &holds, &g.Stream)).Err
		if err == nil {
			err = s.complete(&g, window, paused, rewinds, holds)
		}
		return err
	}
	err := load()
	if errors.Is(err, sql.ErrNoRows) && r.Yield {
		return g, errBusy
	}
	if errors.Is(err, sql.ErrNoRows) && r.Join {
		if _, err := s.exec(ctx, tx, createGroupSQL, nil); err != nil {
			return g, fmt.Errorf("create replica set %q: %w", s.set, err)
		}
		err = load()
	}
	if errors.Is(err, sql.ErrNoRows) {
		return protocol.Group{}, nil // no worker has ever joined
	}
	if err != nil {
		return g, fmt.Errorf("lock replica set %q: %w", s.set, Foreseen(err))
	}
	return g, nil
}

// complete checks what was read of the set's row, and decodes the rest of its columns.
func (s *Store) complete(g *protocol.Group, window int64, paused, rewinds, holds string) error {
	row := RowOf("replica_sets", s.set).AtLeast("generation", g.Generation, 0).Total(g.Total, 0).
		Range("max_partitions", int64(g.MaxPartitions), 0, protocol.Slots).Range("join_window_us", window, 0, maxMicroseconds)
	if g.Phase != protocol.Draining && g.Phase != protocol.Active {
		row.fail("phase", fmt.Errorf("is %q; it must be %q or %q", g.Phase, protocol.Draining, protocol.Active))
	}
	g.JoinWindow = time.Duration(window) * time.Microsecond
	g.Paused, g.Rewinds = Strings[string](row, "paused", paused), rewindsOf(row.Positions("rewinds", rewinds))
	g.Holds = holdsOf(row.Positions("holds", holds))
	return row.Err
}

func (s *Store) lockMembers(ctx context.Context, tx *sql.Tx, total int) ([]protocol.Member, error) {
	rows, err := s.query(ctx, tx, lockMembersSQL, nil)
	if err != nil {
		return nil, fmt.Errorf("lock the workers of %q: %w", s.set, err)
	}
	defer rows.Close()
	var members []protocol.Member
	owners := map[int]protocol.WorkerID{}
	for rows.Next() {
		var r memberRow
		var partitions string
		err := rows.Scan(&r.ID, &r.Joined, &r.Lease, &r.LeaseEnd, &r.Wants, &r.Drained, &r.Vacant, &partitions, &r.Holds, &r.Key, &r.Number)
		m, err := s.member(r, partitions, total, owners, err)
		if err != nil {
			return nil, fmt.Errorf("read a worker of %q: %w", s.set, err)
		}
		members = append(members, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the workers of %q: %w", s.set, err)
	}
	return members, nil
}

// member returns the worker of a row that was scanned. owners are the workers of the partitions
// that were read so far.
func (s *Store) member(r memberRow, partitions string, total int, owners map[int]protocol.WorkerID, scanned error) (protocol.Member, error) {
	m := protocol.Member{
		ID: r.ID, Joined: r.Joined, Lease: time.Duration(r.Lease) * time.Microsecond, LeaseEnd: r.LeaseEnd,
		Wants: r.Wants, Drained: r.Drained, Vacant: r.Vacant, Holds: r.Holds, Presence: protocol.Presence{Key: r.Key, Number: r.Number},
	}
	row := RowOf("workers", s.set, string(m.ID)).Scanned(scanned)
	if scanned == nil {
		row.Range("lease_us", r.Lease, 1, maxMicroseconds).Range("wants", int64(m.Wants), 0, protocol.Slots).
			AtLeast("holds", m.Holds, 0).AtLeast("presence_number", int64(m.Presence.Number), 0).
			Time("joined_at", m.Joined).Time("lease_until", m.LeaseEnd)
		m.Partitions = row.Partitions("partitions", partitions, total)
	}
	for _, p := range m.Partitions {
		if other, taken := owners[p]; taken {
			row.fail("partitions", fmt.Errorf("is %s, but worker %s also has partition %d", partitions, other, p))
		}
		owners[p] = m.ID
	}
	return m, row.Err
}

// memberRow is a worker as the statements take it.
type memberRow struct {
	ID         protocol.WorkerID `json:"id"`
	Joined     time.Time         `json:"joined_at"`
	Lease      int64             `json:"lease_us"`
	LeaseEnd   time.Time         `json:"lease_until"`
	Wants      int               `json:"wants"`
	Drained    bool              `json:"drained"`
	Vacant     bool              `json:"vacant"`
	Partitions []int             `json:"partitions"`
	Holds      int64             `json:"holds"`
	Key        int32             `json:"presence_key"`
	Number     int32             `json:"presence_number"`
}

// Rewinds are stored as {"name": position, ...}.
func encodeRewinds(rewinds []protocol.Rewind) map[string]int64 {
	positions := map[string]int64{}
	for _, r := range rewinds {
		positions[r.Projection] = r.Position
	}
	return positions
}

func rewindsOf(positions map[string]int64) (rewinds []protocol.Rewind) {
	for _, projection := range slices.Sorted(maps.Keys(positions)) {
		rewinds = append(rewinds, protocol.Rewind{Projection: projection, Position: positions[projection]})
	}
	return rewinds
}

// Holds are stored as {"name": microseconds since 1970, ...}.
func encodeHolds(holds []protocol.Hold) map[string]int64 {
	until := map[string]int64{}
	for _, h := range holds {
		until[h.Projection] = h.Until.UnixMicro()
	}
	return until
}

func holdsOf(until map[string]int64) (holds []protocol.Hold) {
	for _, projection := range slices.Sorted(maps.Keys(until)) {
		holds = append(holds, protocol.Hold{Projection: projection, Until: time.UnixMicro(until[projection]).UTC()})
	}
	return holds
}

// save writes the group and the members as far as they differ, and notifies the listeners
// of a new generation, an activation, or a place that was taken. Only the caller
// itself can be new, so its projections are those of the new row.
func (s *Store) save(ctx context.Context, tx *sql.Tx, before []protocol.Member, r *Result, now time.Time, projections []string, join bool) error {
	_, _, err := s.saveRow(ctx, tx, saveSQL, s.saved(before, *r, now, projections, join), r, now)
	return err
}

// saved returns the values with which a result is saved.
func (s *Store) saved(before []protocol.Member, r Result, now time.Time, projections []string, join bool) sqltext.Values {
	g, d := r.Group, r.Decision
	old := make(map[protocol.WorkerID]bool, len(before))
	for _, m := range before {
		old[m.ID] = true
	}
	updated, added := []memberRow{}, []memberRow{} // not nil, which is null in JSON
	for _, m := range g.Members {
		row := memberRow{m.ID, m.Joined, m.Lease.Microseconds(), m.LeaseEnd, m.Wants, m.Drained, m.Vacant, append([]int{}, m.Partitions...), m.Holds, m.Presence.Key, m.Presence.Number}
		if old[m.ID] {
			updated = append(updated, row)
			delete(old, m.ID)
		} else {
			added = append(added, row)
		}
	}
	removed := []protocol.WorkerID{}
	for _, m := range before {
		if old[m.ID] {
			removed = append(removed, m.ID)
		}
	}
	return sqltext.Values{
		"generation": g.Generation, "phase": string(g.Phase), "total": int32(g.Total), "reason": g.Reason,
		"max_partitions": int32(g.MaxPartitions), "join_window": g.JoinWindow.Microseconds(),
		"step_at": d.StepAt, "now": now, "opened": d.Opened, "activated": d.Activated, "given": len(d.Taken) > 0,
		"removed": sqltext.JSON{Value: removed}, "updated": sqltext.JSON{Value: updated}, "added": sqltext.JSON{Value: added},
		"projections": sqltext.JSON{Value: projections},
		"paused":      sqltext.JSON{Value: append([]string{}, g.Paused...)}, "rewinds": sqltext.JSON{Value: encodeRewinds(g.Rewinds)},
		"holds":   sqltext.JSON{Value: encodeHolds(g.Holds)},
		"members": sqltext.JSON{Value: layout(g)}, "waited_for": sqltext.JSON{Value: append([]protocol.WorkerID{}, d.WaitsFor...)},
		"forgotten": g.Generation - historyKept, "stream": g.Stream, "joins": join,
	}
}

// saveRow saves a result, and reports whether it has locked the set, and saved. It completes the
// result by what only the database knows.
func (s *Store) saveRow(ctx context.Context, q dbconn.Querier, statement sqltext.Statement, values sqltext.Values, r *Result, now time.Time) (locked, saved bool, err error) {
	var opened sql.NullTime
	var waitedFor sql.NullString
	var told any
	err = s.row(ctx, q, statement, values, &locked, &saved, &opened, &waitedFor, &told)
	if err == nil && saved && r.Decision.Activated {
		r.OpenedAt = now // in this very transaction, where no row is found
		if opened.Valid {
			r.OpenedAt = opened.Time
			row := RowOf("history", s.set, r.Group.Generation)
			r.WaitedFor, err = Strings[protocol.WorkerID](row, "waited_for", waitedFor.String), row.Err
		}
	}
	if err != nil {
		return false, false, fmt.Errorf("save replica set %q: %w", s.set, err)
	}
	return locked, saved, nil
}

// historyKept is how many generations the history goes back.
const historyKept = 1000

// layout returns the partitions of each worker.
func layout(g protocol.Group) map[protocol.WorkerID][]int {
	members := map[protocol.WorkerID][]int{}
	for _, m := range g.Members {
		if len(m.Partitions) > 0 {
			members[m.ID] = m.Partitions
		}
	}
	return members
}

// claim makes the projections the set's own. A projection that belongs to another set
// is taken over, with its checkpoints, if no worker there runs it any more. claim returns
// those that it took, and whether it has added projections that were in no set.
//
// The projections' rows are locked in the order of names, and before the workers are
// read: of two sets that claim the same projection at once, the second
// sees the worker of the first.
func (s *Store) claim(ctx context.Context, tx *sql.Tx, projections []string, now time.Time, watch protocol.Watch) (took []string, added bool, err error) {
	names := slices.Sorted(slices.Values(projections))
	registered, err := s.exec(ctx, tx, registerProjectionsSQL, sqltext.Values{"names": sqltext.JSON{Value: names}})
	if err != nil {
		return nil, false, fmt.Errorf("register projections of %q: %w", s.set, err)
	}
	n, err := registered.RowsAffected()
	if err != nil {
		return nil, false, fmt.Errorf("register projections of %q: %w", s.set, err)
	}
	foreign, err := s.lockProjections(ctx, tx, names)
	if err != nil {
		return nil, false, fmt.Errorf("lock the projections of %q: %w", s.set, err)
	}
	if len(foreign) == 0 {
		return nil, n > 0, nil
	}
	if err := s.checkTaken(ctx, tx, foreign, now, watch); err != nil {
		return nil, false, err
	}
	// What still runs in the other set can't commit any more: the fence names
	// the set. Nor can a lane of this set, before a generation of it has taken
	// the rows over: no generation is negative. That generation will exceed the number
	// that they keep (protocol.Group.Floor).
	for _, statement := range []sqltext.Statement{takeProjectionsSQL, takeCheckpointsSQL} {
		if _, err := s.exec(ctx, tx, statement, sqltext.Values{"names": sqltext.JSON{Value: foreign}}); err != nil {
			return nil, false, fmt.Errorf("take over projections %v: %w", foreign, err)
		}
	}
	return foreign, n > 0, nil
}

// lockProjections locks the projections' rows, and returns those that belong
// to other sets.
func (s *Store) lockProjections(ctx context.Context, tx *sql.Tx, names []string) (foreign []string, err error) {
	rows, err := s.query(ctx, tx, lockProjectionsSQL, sqltext.Values{"names": sqltext.JSON{Value: names}})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, set string
		var retired bool
		if err := rows.Scan(&name, &set, &retired); err != nil {
			return nil, err
		}
		if retired {
			return nil, &RetiredError{name}
		}
		if set != s.set {
			foreign = append(foreign, name)
		}
	}
	return foreign, rows.Err()
}

func (s *Store) checkTaken(ctx context.Context, tx *sql.Tx, foreign []string, now time.Time, watch protocol.Watch) error {
	rows, err := s.query(ctx, tx, foreignWorkersSQL, sqltext.Values{"names": sqltext.JSON{Value: foreign}})
	if err != nil {
		return fmt.Errorf("look for workers in other replica sets: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		taken := &TakenError{Now: now}
		var m protocol.Member
		var lease int64
		err := rows.Scan(&taken.Projection, &taken.ReplicaSet, &m.ID, &lease, &m.LeaseEnd)
		row := RowOf("workers", taken.ReplicaSet, string(m.ID)).Scanned(err)
		if err == nil {
			row.Range("lease_us", lease, 1, maxMicroseconds).Time("lease_until", m.LeaseEnd)
		}
		if row.Err != nil {
			return fmt.Errorf("read a worker of another replica set: %w", row.Err)
		}
		m.Lease = time.Duration(lease) * time.Microsecond
		if !m.Expired(now, watch) {
			taken.Worker, taken.Over = m.ID, !now.Before(m.LeaseEnd)
			return taken
		}
	}
	return rows.Err()
}

// transact runs f in a transaction, which the server bounds from its first
// statement on (lockGroup).
func (s *Store) transact(ctx context.Context, f func(*sql.Tx) error) error {
	err := s.transactOnce(ctx, f)
	if roleLeft(ctx, s.db, err) {
		return s.transactOnce(ctx, f)
	}
	return err
}

func (s *Store) transactOnce(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := dbconn.Begin(ctx, s.db, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := f(tx.Tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (s *Store) strings(ctx context.Context, tx *sql.Tx, statement sqltext.Statement, values sqltext.Values) ([]string, error) {
	rows, err := s.query(ctx, tx, statement, values)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%dms", max(d.Milliseconds(), 1))
}

// Channel is the channel of notifications. The payload is the name of a replica set that has a
// new generation, or in which one was activated, or a place was taken.
const Channel = "pupsourcing_orchestrator"

// None of the statements is sent under a name that varies: see sqltext.Names.

// boundSQL sets bounds for its transaction only, before anything else in it. It saves a round
// trip: it is a condition of the first statement, and is evaluated for a row before that row is
// locked, so the bounds already hold for the wait for that lock.
const boundSQL = `set_config('idle_in_transaction_session_timeout', {idle}, true) || set_config('lock_timeout', {lock}, true)`

var boundTransactionSQL = sqltext.New(`SELECT ` + boundSQL)

// A handler may do anything in its transaction, and that must not affect the
// library's own statements there, nor the next user of the connection.
var (
	// beginHandlerSQL bounds the transaction, and stores its role and search_path in
	// settings that end with the transaction. So while they are set, this is still the
	// transaction that was begun.
	beginHandlerSQL = sqltext.New(`
SELECT set_config('idle_in_transaction_session_timeout', {handler}, true),
       set_config('orchestrator.role', current_setting('role'), true),
       set_config('orchestrator.search_path', current_setting('search_path'), true)`)

	stillOpenSQL = sqltext.New(`SELECT ` + stillOpenText)
	restoreSQL   = sqltext.New(restoreText)
)

const (
	// stillOpenText is true if this is still the transaction that BeginHandler has begun. It
	// closes this race: a handler ends the transaction by a statement of its own, and the
	// checkpoint would move in a new one, without what the handler wrote.
	stillOpenText = `coalesce(current_setting('orchestrator.role', true), '') <> ''`

	// restoreText comes before what the library writes in the transaction, in the same
	// message: privileges are checked before a statement begins, so that statement can't
	// do it itself. It bounds the time until COMMIT, and sets role and search_path back.
	// That holds beyond the transaction: with SET LOCAL, a plain SET of the handler
	// would come back at COMMIT.
	restoreText = `
SELECT set_config('idle_in_transaction_session_timeout', {idle}, true),
       CASE WHEN ` + stillOpenText + ` AND current_setting('orchestrator.role') <> current_setting('role')
            THEN set_config('role', current_setting('orchestrator.role'), false) END,
       CASE WHEN ` + stillOpenText + ` AND current_setting('orchestrator.search_path') <> current_setting('search_path')
            THEN set_config('search_path', current_setting('orchestrator.search_path'), false) END`
)

// Everything that lets a worker start its partitions comes from the row that the UPDATE
// returns, in one piece. The rows of the set and of other workers are of the statement's
// snapshot and may be older, if the UPDATE had to wait, or if two workers report at
// once (protocol.Session).
var (
	heartbeatSQL = sqltext.New(beatSQL + fmt.Sprintf(viewSQL, "NULL", "NULL") + `
  LEFT JOIN beat b ON true`)
	// A statement of its own, so that heartbeats work where the check of other workers'
	// presences is not allowed.
	othersHeartbeatSQL = sqltext.New(beatSQL + fmt.Sprintf(viewSQL, "NULL", absentText) + `
  LEFT JOIN beat b ON true`)
	readOnlySQL        = sqltext.New(fmt.Sprintf(viewSQL, "NULL", "NULL") + ownText)
	loadingReadOnlySQL = sqltext.New(fmt.Sprintf(viewSQL, shownText, "NULL") + ownText)
)

var (
	// Apart from everything else: a lock on the reports, or a report that can't be
	// written, delays nothing. So a report whose worker is gone is removed by the worker
	// that writes the next report.
	reportSQL = sqltext.New(`
WITH gone AS (
    DELETE FROM orchestrator_reports r
     WHERE r.replica_set = {set} AND r.worker <> {worker}
       AND NOT EXISTS (SELECT FROM orchestrator_workers w WHERE w.replica_set = r.replica_set AND w.id = r.worker))
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report)
SELECT w.replica_set, w.id, {clock}, {report} FROM orchestrator_workers w WHERE w.replica_set = {set} AND w.id = {worker}
    ON CONFLICT (replica_set, worker) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report`)
	unreportSQL = sqltext.New(`DELETE FROM orchestrator_reports WHERE replica_set = {set} AND worker = {worker}`)
)

// beatText writes a worker's own row.
//   - NOT vacant: a request that arrives after the worker has left was sent before. It must not
//     renew the vacancy's window.
//   - presence_number: a request that arrives late must not bring back the number of a session
//     that is gone.
//   - holds: a report about an older generation, delivered twice, must not end the hold of one
//     that was activated since.
const beatText = `
    UPDATE orchestrator_workers
       SET lease_us = {lease}, lease_until = {clock} + ({lease} * interval '1 microsecond'),
           presence_key = CASE WHEN presence_number < {number} THEN {key} ELSE presence_key END,
           presence_number = greatest(presence_number, {number}), -- as in protocol.Apply
           holds = CASE WHEN holds <= {stopped} THEN 0 ELSE holds END
     WHERE replica_set = {set} AND id = {worker} AND NOT vacant`

const beatSQL = `
WITH beat AS (` + beatText + `
 RETURNING generation, total, partitions, paused, holds)`

const ownText = `
  LEFT JOIN orchestrator_workers b ON b.replica_set = {set} AND b.id = {worker} AND NOT b.vacant`

// shownText lists the checkpoints of the worker's partitions, if it may start them. The
// conditions on generation and total leave out rows of an assignment that is not the worker's.
var shownText = `CASE WHEN b.holds = b.generation AND b.total > 0 THEN
       (SELECT jsonb_agg(jsonb_build_object('Projection', projection, 'Partition', partition, 'Position', position, 'Ahead', ahead,
                                            'NoneParked', ` + fmt.Sprintf(noneParkedText, "b.total") + `,
                                            'Follows', ` + followsText + `))
          FROM orchestrator_checkpoints c
         WHERE replica_set = {set} AND generation = b.generation AND total = b.total AND b.partitions @> to_jsonb(partition)) END`

// viewSQL selects what a worker sees. b is its own row, which the statement around it joins; the
// first %s is the checkpoints that it may start from, the second the absent workers.
// It works on the primary only, since a standby shows what was true any time ago:
// pg_current_wal_lsn fails there.
const viewSQL = `
SELECT CASE WHEN pg_current_wal_lsn() IS NOT NULL THEN {clock} END,
       coalesce(s.phase = 'draining' AND coalesce(b.holds, 0) = 0 AND NOT coalesce(o.held, false), false),
       s.step_at, o.lease_until, b.generation, b.total, b.partitions, b.paused, b.holds, coalesce(o.absent, '[]'), o.others = 0, %s
  FROM (SELECT min(CASE WHEN lease_until > ({clock} + (lease_us * interval '1 microsecond'))
                        THEN {clock} ELSE lease_until END) FILTER (WHERE id <> {worker}) AS lease_until, -- as in protocol.Group.View
               bool_or(holds <> 0 AND NOT vacant) FILTER (WHERE id <> {worker}) AS held, count(*) FILTER (WHERE id <> {worker}) AS others,
               %s AS absent
          FROM orchestrator_workers WHERE replica_set = {set}) o
  LEFT JOIN orchestrator_replica_sets s ON s.name = {set}`

// uncoveredText is Group.Uncovered for the generation %s. It asks for any checkpoint of a
// projection: an activation writes those of all partitions, or none.
const uncoveredText = `EXISTS (
           SELECT FROM orchestrator_projections q
            WHERE q.replica_set = {set} AND NOT q.retired
              AND NOT EXISTS (SELECT FROM orchestrator_checkpoints k
                               WHERE k.projection = q.name AND k.replica_set = {set} AND k.generation = %s))`

const lockGroupText = `
SELECT generation, phase, total, reason, max_partitions, join_window_us, paused, rewinds, holds, events_table
  FROM orchestrator_replica_sets
 WHERE name = {set}
   AND (` + boundSQL + `) <> ''
   FOR UPDATE`

var (
	lockGroupSQL        = sqltext.New(lockGroupText)
	lockGroupOrYieldSQL = sqltext.New(lockGroupText + ` SKIP LOCKED`)

	createGroupSQL = sqltext.New(`INSERT INTO orchestrator_replica_sets (name) VALUES ({set}) ON CONFLICT DO NOTHING`)
	lockMembersSQL = sqltext.New(`
SELECT id, joined_at, lease_us, lease_until, wants, drained, vacant, partitions, holds, presence_key, presence_number
  FROM orchestrator_workers WHERE replica_set = {set} ORDER BY seq FOR UPDATE`)
	timeAndFloorSQL = sqltext.New(`
SELECT {clock}, coalesce(max(abs(generation)), 0), ` + fmt.Sprintf(uncoveredText, "{generation}") + ` FROM orchestrator_checkpoints WHERE replica_set = {set}`)
)

// saveSQL is one statement for rows that are all locked by now. No row is in two
// of its parts, which don't see each other's changes. Listeners are notified at
// COMMIT, unless the server's queue of notifications is half full: if it ran full, no
// transaction with a notification could commit.
var saveSQL = sqltext.New(`WITH ` + onlyIf(`true`, saveText+fmt.Sprintf(savedText, "true")))

// onlyIf puts a condition into a text; each of its parts is carried out only if that is true.
func onlyIf(condition, text string) string { return strings.ReplaceAll(text, "$if", condition) }

const saveText = `
set AS (
    UPDATE orchestrator_replica_sets
       SET generation = {generation}, phase = {phase}, total = {total}, reason = {reason}, max_partitions = {max_partitions},
           join_window_us = {join_window}, step_at = {step_at}, paused = {paused}, rewinds = {rewinds}, holds = {holds}, events_table = {stream},
           opened_at = CASE WHEN {opened} THEN {now} ELSE opened_at END,
           activated_at = CASE WHEN {activated} THEN {now} WHEN {opened} THEN NULL ELSE activated_at END
     WHERE name = {set} AND $if
       AND ({joins} OR -- a join changes the row's version, which those who have read the set compare: see attempt
            NOT record_eq(ROW (generation, phase, total, reason, max_partitions, join_window_us, step_at, paused, rewinds, holds, events_table),
                          ROW ({generation}, {phase}, {total}, {reason}, {max_partitions}, {join_window}, {step_at}, {paused}, {rewinds}, {holds}, {stream})))),
opened AS (
    INSERT INTO orchestrator_history (replica_set, generation, reason, total, members, opened_at, activated_at, waited_for)
    SELECT {set}, {generation}, {reason}, {total}, {members}, {now}, CASE WHEN {activated} THEN {now} END, {waited_for}
     WHERE {opened} AND $if),
activated AS (
    UPDATE orchestrator_history SET activated_at = {now}, members = CASE WHEN {given} THEN {members} ELSE members END
     WHERE replica_set = {set} AND generation = {generation} AND {activated} AND NOT {opened} AND $if
 RETURNING opened_at, waited_for),
given AS (
    UPDATE orchestrator_history SET members = {members}
     WHERE replica_set = {set} AND generation = {generation} AND {given} AND NOT {activated} AND NOT {opened} AND $if),
pruned AS (
    DELETE FROM orchestrator_history
     WHERE replica_set = {set} AND generation <= {forgotten} AND {opened} AND $if),
removed AS (
    DELETE FROM orchestrator_workers
     WHERE replica_set = {set} AND id = ANY (SELECT jsonb_array_elements_text({removed})) AND $if),
updated AS (
    UPDATE orchestrator_workers w
       SET lease_us = x.lease_us, lease_until = x.lease_until, partitions = x.partitions, holds = x.holds,
           presence_key = x.presence_key, presence_number = x.presence_number, drained = x.drained, vacant = x.vacant,
           generation = {generation}, total = {total}, paused = CASE WHEN w.generation = {generation} THEN w.paused ELSE {paused} END
      FROM jsonb_to_recordset({updated}) AS x (id text, lease_us bigint, lease_until timestamptz, drained boolean, vacant boolean, partitions jsonb,
                                              holds bigint, presence_key integer, presence_number integer)
     WHERE w.replica_set = {set} AND w.id = x.id AND $if
       AND NOT record_eq(
           ROW (w.lease_us, w.lease_until, w.drained, w.vacant, w.partitions, w.holds, w.presence_key, w.presence_number, w.generation, w.total, w.paused),
           ROW (x.lease_us, x.lease_until, x.drained, x.vacant, x.partitions, x.holds, x.presence_key, x.presence_number, {generation}, {total}, CASE WHEN w.generation = {generation} THEN w.paused ELSE {paused} END))),
added AS (
    INSERT INTO orchestrator_workers
           (replica_set, id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number,
            generation, total, paused, projections)
    SELECT {set}, x.id, x.joined_at, x.lease_us, x.lease_until, x.wants, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number,
           {generation}, {total}, {paused}, {projections}
      FROM jsonb_to_recordset({added})
           AS x (id text, joined_at timestamptz, lease_us bigint, lease_until timestamptz, wants integer, drained boolean, partitions jsonb,
                 holds bigint, presence_key integer, presence_number integer)
     WHERE $if)`

const savedText = `
SELECT %s, $if, a.opened_at, a.waited_for,
       CASE WHEN $if AND ({opened} OR {activated} OR {given}) AND pg_notification_queue_usage() < 0.5 THEN pg_notify({channel}, {set}) END
  FROM (SELECT) one LEFT JOIN activated a ON true`

var (
	registerProjectionsSQL = sqltext.New(`
INSERT INTO orchestrator_projections (name, replica_set)
SELECT name, {set} FROM jsonb_array_elements_text({names}) WITH ORDINALITY AS x (name, i) ORDER BY i
    ON CONFLICT DO NOTHING`)
	// All of them are locked, the set's own as well: another set may be about
	// to take one.
	lockProjectionsSQL = sqltext.New(`
SELECT name, replica_set, retired FROM orchestrator_projections
 WHERE name = ANY (SELECT jsonb_array_elements_text({names})) ORDER BY name FOR UPDATE`)
	foreignWorkersSQL = sqltext.New(`
SELECT p.name, w.replica_set, w.id, w.lease_us, w.lease_until
  FROM orchestrator_projections p
  JOIN orchestrator_workers w ON w.replica_set = p.replica_set AND w.projections ? p.name AND NOT w.vacant
 WHERE p.name = ANY (SELECT jsonb_array_elements_text({names}))
 ORDER BY w.lease_until DESC, p.name, w.id
   FOR UPDATE OF w -- no heartbeat renews a lease between this reading and the takeover`)
	takeProjectionsSQL = sqltext.New(`
UPDATE orchestrator_projections SET replica_set = {set}
 WHERE name = ANY (SELECT jsonb_array_elements_text({names}))`)
	takeCheckpointsSQL = sqltext.New(`
UPDATE orchestrator_checkpoints SET replica_set = {set}, generation = -abs(generation)
 WHERE projection = ANY (SELECT jsonb_array_elements_text({names}))`)

	// FOR SHARE: no other set can claim one until the rows are written.
	ownProjectionsSQL = sqltext.New(`
SELECT name FROM orchestrator_projections WHERE replica_set = {set} AND NOT retired ORDER BY name FOR SHARE`)
	// FOR UPDATE waits for each transaction that has moved a checkpoint and not committed,
	// so that the hand-over starts from what it commits. A later one finds the new
	// generation, and matches nothing.
	lockCheckpointsSQL = sqltext.New(`
SELECT projection, partition, total, position, ahead
  FROM orchestrator_checkpoints WHERE replica_set = {set} ORDER BY projection, partition FOR UPDATE`)
	handOverSQL        = sqltext.New(`WITH ` + onlyIf(`true`, droppedText+saveCheckpointsText))
	saveCheckpointsSQL = sqltext.New(onlyIf(`true`, saveCheckpointsText))
)

const droppedText = `dropped AS (DELETE FROM orchestrator_checkpoints WHERE replica_set = {set} AND partition >= {total} AND $if)`

const saveCheckpointsText = `
INSERT INTO orchestrator_checkpoints
       (replica_set, generation, total, projection, partition, position, ahead, updated_at)
SELECT {set}, {generation}, {total}, x.projection, x.partition, x.position, x.ahead, {clock}
  FROM jsonb_to_recordset({rows}) AS x (projection text, partition integer, position bigint, ahead jsonb) WHERE $if
    ON CONFLICT (projection, partition) DO UPDATE
   SET generation = excluded.generation, total = excluded.total, position = excluded.position, ahead = excluded.ahead`

var (
	saveCheckpointSQL = moveStatement{sqltext.New(moveText), sqltext.New(markText)}
	commitSQL         = moveStatement{
		sqltext.New(restoreText + `;` + moveText + ` AND ` + stillOpenText),
		sqltext.New(restoreText + `;` + markText + ` AND ` + stillOpenText),
	}
)

// moveText moves a checkpoint. Its WHERE is the fence:
//   - replica_set: another set may have taken the projection, and counts its generations by
//     itself;
//   - generation: a newer one may have been activated, and handed the partition to another
//     worker;
//   - position: an earlier commit whose answer was lost may have happened.
const moveText = `
UPDATE orchestrator_checkpoints SET position = {to}, ahead = CASE WHEN {keeps} THEN ahead END, updated_at = {clock}
 WHERE replica_set = {set} AND projection = {projection} AND partition = {partition} AND generation = {generation} AND position = {from}`

// markText is moveText for a move that changes marks, as when a follower reaches a live
// version that is stopped. The position may stay then, so the fence compares the marks as well.
const markText = `
UPDATE orchestrator_checkpoints SET position = {to}, ahead = {ahead}, updated_at = {clock}
 WHERE replica_set = {set} AND projection = {projection} AND partition = {partition} AND generation = {generation} AND position = {from}
   AND coalesce(ahead, '[]') = {ahead_from}`

// A moveStatement moves a checkpoint: move if its marks stay or go, mark if they change.
type moveStatement struct{ move, mark sqltext.Statement }

// of returns the statement for a move of the lane's checkpoint, and its values.
func (m moveStatement) of(l Lane, from, to protocol.Checkpoint) (sqltext.Statement, sqltext.Values) {
	v := l.values()
	v["from"], v["to"] = from.Position, to.Position
	if len(to.Ahead) == 0 || slices.Equal(from.Ahead, to.Ahead) {
		v["keeps"] = len(to.Ahead) > 0
		return m.move, v
	}
	v["ahead"], v["ahead_from"] = sqltext.JSON{Value: encodeMarks(to.Ahead)}, sqltext.JSON{Value: []int{}}
	if len(from.Ahead) > 0 {
		v["ahead_from"] = sqltext.JSON{Value: encodeMarks(from.Ahead)}
	}
	return m.mark, v
}
