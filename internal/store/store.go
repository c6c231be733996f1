// Package store keeps the coordinator's state in PostgreSQL. It decides
// nothing: it locks and loads a group, has [protocol] decide, and saves.
package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A Store is one replica set in a database.
type Store struct {
	db  *sql.DB
	set string
	sql statements

	bounds Bounds
}

// Options of a Store.
type Options struct {
	Bounds Bounds
	// Clock is the SQL expression for the time; empty is clock_timestamp().
	// Tests put a clock of their own here.
	Clock string
}

// Bounds are set on the server's side, so that a process that is frozen in the
// middle of a transaction can't hold its locks for ever (L3).
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

// BoundsOf returns the bounds that go with a lease (StaleWorkerTimeout). Those
// of coordination are short beside it, so that nobody loses one over it.
func BoundsOf(lease time.Duration) Bounds {
	return Bounds{Idle: min(lease/4, 5*time.Second), Lock: min(lease/10, time.Second), Handler: lease}
}

// New returns the store of a replica set.
func New(db *sql.DB, set string, o Options) *Store {
	if o.Clock == "" {
		o.Clock = "clock_timestamp()"
	}
	return &Store{db: db, set: set, sql: newStatements(o.Clock, set, o.Bounds), bounds: o.Bounds}
}

// A Result is what a Sync has seen and done.
type Result struct {
	View     protocol.View
	Group    protocol.Group    // empty for a heartbeat
	Decision protocol.Decision // likewise
	// Of an activation: when the generation was opened, and who had to stop first.
	OpenedAt  time.Time
	WaitedFor []protocol.WorkerID
}

// A TakenError says that a projection belongs to another replica set.
type TakenError struct {
	Projection string
	ReplicaSet string
	Worker     protocol.WorkerID
	// Now is the database's time, and Over whether the worker's lease is over
	// by it. Then the worker is probably dead, and a caller that has watched
	// that clock for long enough will get the projection.
	Now  time.Time
	Over bool
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("projection %q belongs to replica set %q, where worker %s runs it; a projection belongs to one replica set at a time", e.Projection, e.ReplicaSet, e.Worker)
}

// A StreamError says that a worker which wants to join reads another event stream than
// the replica set.
type StreamError struct{ ReplicaSet, Stream, Other string }

func (e *StreamError) Error() string {
	return fmt.Sprintf("replica set %q reads the events of %s, and this worker would read those of %s, so the one's positions would be taken for the other's; "+
		"have all of its workers read the same table, or, if the events were moved with their positions and no worker runs any more: UPDATE orchestrator_replica_sets SET events_table = '' WHERE name = %s",
		e.ReplicaSet, e.Stream, e.Other, pq.QuoteLiteral(e.ReplicaSet))
}

// Sync carries out a worker's request. A heartbeat is one statement that
// touches the worker's own row, and a look one that touches nothing; everything else locks the set, runs
// [protocol.Step], and saves what it decided in the same transaction. If the
// reply is lost, sending the request again does no harm.
func (s *Store) Sync(ctx context.Context, r protocol.Request, projections []string) (Result, error) {
	if r.Heartbeat {
		return s.heartbeat(ctx, r)
	}
	var result Result
	err := s.transact(ctx, func(tx *sql.Tx) error {
		var err error
		result, err = s.step(ctx, tx, r, projections)
		return err
	})
	if errors.Is(err, errBusy) {
		return s.heartbeat(ctx, r)
	}
	return result, err
}

// errBusy says that somebody else has locked the set, or that there is none.
var errBusy = errors.New("the replica set is locked")

// heartbeat carries out a request that is one.
func (s *Store) heartbeat(ctx context.Context, r protocol.Request) (Result, error) {
	var v protocol.View
	var stepAt, leaseEnd sql.NullTime
	var generation, total, holds sql.NullInt64
	var partitions, paused sql.NullString
	var due bool
	worker := pq.QuoteLiteral(string(r.Worker))
	query := fmt.Sprintf(s.sql.look, worker)
	if !r.Look {
		query = fmt.Sprintf(s.sql.heartbeat, worker, r.Lease.Microseconds(), r.Stopped, r.Presence.Key, r.Presence.Number)
	}
	err := dbconn.QueryRow(ctx, s.db, query).Scan(&v.Now, &due, &stepAt, &leaseEnd, &generation, &total, &partitions, &paused, &holds)
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
	v.StepAt = stepAt.Time
	if leaseEnd.Valid && (v.StepAt.IsZero() || leaseEnd.Time.Before(v.StepAt)) {
		v.StepAt = leaseEnd.Time
	}
	if due {
		v.StepAt = v.Now
	}
	return Result{View: v}, nil
}

// Report keeps a worker's report, of JSON, if it is a member. Nobody decides anything
// by it. A text in it that the database's encoding can't hold is written in ASCII.
func (s *Store) Report(ctx context.Context, worker protocol.WorkerID, report []byte) error {
	return s.writeText(ctx, fmt.Sprintf("write the report of %s", worker), func(ascii bool) string {
		text := string(report)
		if ascii {
			text = asciiJSON(text)
		}
		return fmt.Sprintf(s.sql.report, pq.QuoteLiteral(string(worker)), pq.QuoteLiteral(text))
	})
}

// Unreport removes the report of a worker that has left.
func (s *Store) Unreport(ctx context.Context, worker protocol.WorkerID) error {
	return s.writeText(ctx, fmt.Sprintf("remove the report of %s", worker), func(bool) string {
		return fmt.Sprintf(s.sql.unreport, pq.QuoteLiteral(string(worker)))
	})
}

// writeText runs a statement, and once more with its texts in ASCII where the
// database can't hold them as they are: what is for people decides nothing.
func (s *Store) writeText(ctx context.Context, what string, query func(ascii bool) string) error {
	_, err := dbconn.Exec(ctx, s.db, query(false))
	if Unstorable(err) {
		_, err = dbconn.Exec(ctx, s.db, query(true))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// step takes one round trip for each of: BEGIN, the set's lock, the members'
// locks, the time, what is saved, and COMMIT; a join and a hand-over have their
// own beside these. Each lock has a statement of its own, because what a
// statement sees is from when it began: who waits for a lock and reads in one
// would read what was there before he had it.
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
	var now time.Time
	if now, before.Floor, err = s.timeAndFloor(ctx, tx); err != nil {
		return Result{}, err
	}
	if r.Join {
		took, err := s.claim(ctx, tx, projections, now, r.Watch)
		if err == nil && len(took) > 0 {
			before = before.Take(took)
			_, before.Floor, err = s.timeAndFloor(ctx, tx)
		}
		if err != nil {
			return Result{}, err
		}
	}

	if before.Refuses(r) {
		return Result{}, &StreamError{s.set, before.Stream, r.Stream}
	}
	if r.Order != nil {
		if err := s.checkOrder(ctx, tx, before, *r.Order); err != nil {
			return Result{}, err
		}
	}
	group, decision := protocol.Step(protocol.Apply(before, r, now), now, r.Watch)

	result := Result{View: group.View(r.Worker, now, decision), Group: group, Decision: decision}
	if err := s.save(ctx, tx, before.Members, &result, now, projections); err != nil {
		return Result{}, err
	}
	if decision.Activated {
		if err := s.handOver(ctx, tx, group, decision.Rewinds); err != nil {
			return Result{}, err
		}
	}
	return result, nil
}

func (s *Store) timeAndFloor(ctx context.Context, tx *sql.Tx) (now time.Time, floor int64, err error) {
	if err := tx.QueryRowContext(ctx, s.sql.timeAndFloor).Scan(&now, &floor); err != nil {
		return now, 0, fmt.Errorf("read the time and the generations of checkpoints: %w", Foreseen(err))
	}
	return now, floor, nil
}

// lockGroup locks the set's row, and creates it for the first worker.
func (s *Store) lockGroup(ctx context.Context, tx *sql.Tx, r protocol.Request) (protocol.Group, error) {
	var g protocol.Group
	var window int64
	var paused, rewinds string
	query := s.sql.lockGroup
	if r.Yield {
		query += " SKIP LOCKED"
	}
	load := func() error {
		row := RowOf("replica_sets", s.set).Scanned(tx.QueryRowContext(ctx, query).
			Scan(&g.Generation, &g.Phase, &g.Total, &g.Reason, &g.MaxPartitions, &window, &paused, &rewinds, &g.Stream))
		if row.Err != nil {
			return row.Err
		}
		row.AtLeast("generation", g.Generation, 0).Total(g.Total, 0).
			Range("max_partitions", int64(g.MaxPartitions), 0, protocol.Slots).Range("join_window_us", window, 0, maxMicroseconds)
		if g.Phase != protocol.Draining && g.Phase != protocol.Active {
			row.fail("phase", fmt.Errorf("is %q; it must be %q or %q", g.Phase, protocol.Draining, protocol.Active))
		}
		g.JoinWindow = time.Duration(window) * time.Microsecond
		g.Paused, g.Rewinds = Strings[string](row, "paused", paused), rewindsOf(row.Positions("rewinds", rewinds))
		return row.Err
	}
	err := load()
	if errors.Is(err, sql.ErrNoRows) && r.Yield {
		return g, errBusy
	}
	if errors.Is(err, sql.ErrNoRows) && r.Join {
		if _, err := tx.ExecContext(ctx, s.sql.createGroup); err != nil {
			return g, fmt.Errorf("create replica set %q: %w", s.set, err)
		}
		err = load()
	}
	if errors.Is(err, sql.ErrNoRows) {
		return protocol.Group{}, nil // nobody has ever joined
	}
	if err != nil {
		return g, fmt.Errorf("lock replica set %q: %w", s.set, Foreseen(err))
	}
	return g, nil
}

func (s *Store) lockMembers(ctx context.Context, tx *sql.Tx, total int) ([]protocol.Member, error) {
	rows, err := tx.QueryContext(ctx, s.sql.lockMembers)
	if err != nil {
		return nil, fmt.Errorf("lock the workers of %q: %w", s.set, err)
	}
	defer rows.Close()
	var members []protocol.Member
	owners := map[int]protocol.WorkerID{}
	for rows.Next() {
		var m protocol.Member
		var lease int64
		var partitions string
		err := rows.Scan(&m.ID, &m.Joined, &lease, &m.LeaseEnd, &m.Wants, &m.Drained, &partitions, &m.Holds, &m.Presence.Key, &m.Presence.Number)
		row := RowOf("workers", s.set, string(m.ID)).Scanned(err)
		if err == nil {
			row.Range("lease_us", lease, 1, maxMicroseconds).Range("wants", int64(m.Wants), 0, protocol.Slots).
				AtLeast("holds", m.Holds, 0).AtLeast("presence_number", int64(m.Presence.Number), 0).
				Time("joined_at", m.Joined).Time("lease_until", m.LeaseEnd)
			m.Partitions = row.Partitions("partitions", partitions, total)
		}
		for _, p := range m.Partitions {
			if other, taken := owners[p]; taken {
				row.fail("partitions", fmt.Errorf("is %s, and worker %s has partition %d as well", partitions, other, p))
			}
			owners[p] = m.ID
		}
		if row.Err != nil {
			return nil, fmt.Errorf("read a worker of %q: %w", s.set, row.Err)
		}
		m.Lease = time.Duration(lease) * time.Microsecond
		members = append(members, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the workers of %q: %w", s.set, err)
	}
	return members, nil
}

// memberRow is a worker as the statements take it.
type memberRow struct {
	ID         protocol.WorkerID `json:"id"`
	Joined     time.Time         `json:"joined_at"`
	Lease      int64             `json:"lease_us"`
	LeaseEnd   time.Time         `json:"lease_until"`
	Wants      int               `json:"wants"`
	Drained    bool              `json:"drained"`
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

// save writes the group and the members as far as they differ, and tells those
// who listen when there is a new generation, or one may start. Only the caller
// itself can be new, so its projections are the new row's.
func (s *Store) save(ctx context.Context, tx *sql.Tx, before []protocol.Member, r *Result, now time.Time, projections []string) error {
	g, d := r.Group, r.Decision
	old := make(map[protocol.WorkerID]bool, len(before))
	for _, m := range before {
		old[m.ID] = true
	}
	updated, added := []memberRow{}, []memberRow{} // not nil, which is null in JSON
	for _, m := range g.Members {
		row := memberRow{m.ID, m.Joined, m.Lease.Microseconds(), m.LeaseEnd, m.Wants, m.Drained, append([]int{}, m.Partitions...), m.Holds, m.Presence.Key, m.Presence.Number}
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
	var opened sql.NullTime
	var waitedFor sql.NullString
	var told any
	err := tx.QueryRowContext(ctx, fmt.Sprintf(s.sql.save,
		g.Generation, pq.QuoteLiteral(string(g.Phase)), g.Total, pq.QuoteLiteral(g.Reason), g.MaxPartitions, g.JoinWindow.Microseconds(),
		quoteTime(d.StepAt), quoteTime(now), d.Opened, d.Activated,
		quoteJSON(removed), quoteJSON(updated), quoteJSON(added), quoteJSON(projections),
		quoteJSON(append([]string{}, g.Paused...)), quoteJSON(encodeRewinds(g.Rewinds)),
		quoteJSON(layout(g)), quoteJSON(append([]protocol.WorkerID{}, d.WaitsFor...)), historyKept, pq.QuoteLiteral(g.Stream))).Scan(&opened, &waitedFor, &told)
	if err == nil && d.Activated {
		r.OpenedAt = now // in this very transaction, where no row is found
		if opened.Valid {
			r.OpenedAt = opened.Time
			row := RowOf("history", s.set, g.Generation)
			r.WaitedFor, err = Strings[protocol.WorkerID](row, "waited_for", waitedFor.String), row.Err
		}
	}
	if err != nil {
		return fmt.Errorf("save replica set %q: %w", s.set, err)
	}
	return nil
}

// historyKept is how many generations the history goes back.
const historyKept = 1000

// layout returns who has which partitions.
func layout(g protocol.Group) map[protocol.WorkerID][]int {
	members := map[protocol.WorkerID][]int{}
	for _, m := range g.Members {
		if len(m.Partitions) > 0 {
			members[m.ID] = m.Partitions
		}
	}
	return members
}

// claim makes the projections the set's own. One that belongs to another set
// is taken over, with its checkpoints, if nobody there runs it any more; these
// are returned.
//
// Its rows are locked in the order of names, and before the workers are
// looked up: two sets that claim the same projection at once come one after
// the other, and the second sees the worker of the first.
func (s *Store) claim(ctx context.Context, tx *sql.Tx, projections []string, now time.Time, watch protocol.Watch) (took []string, err error) {
	names := slices.Sorted(slices.Values(projections))
	if _, err := tx.ExecContext(ctx, s.sql.registerProjections, s.set, mustJSON(names)); err != nil {
		return nil, fmt.Errorf("register projections of %q: %w", s.set, err)
	}
	foreign, err := s.lockProjections(ctx, tx, names)
	if err != nil {
		return nil, fmt.Errorf("lock the projections of %q: %w", s.set, err)
	}
	if len(foreign) == 0 {
		return nil, nil
	}
	if err := s.checkTaken(ctx, tx, foreign, now, watch); err != nil {
		return nil, err
	}
	// What still runs in the other set can't commit any more: the fence names
	// the set. Nor can anybody here, before a generation of this set has taken
	// the rows over: no generation is negative. It will exceed the number that
	// they keep.
	for _, q := range []string{s.sql.takeProjections, s.sql.takeCheckpoints} {
		if _, err := tx.ExecContext(ctx, q, s.set, mustJSON(foreign)); err != nil {
			return nil, fmt.Errorf("take over projections %v: %w", foreign, err)
		}
	}
	return foreign, nil
}

// lockProjections locks the projections' rows, and returns those that belong
// to other sets.
func (s *Store) lockProjections(ctx context.Context, tx *sql.Tx, names []string) (foreign []string, err error) {
	rows, err := tx.QueryContext(ctx, s.sql.lockProjections, mustJSON(names))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, set string
		if err := rows.Scan(&name, &set); err != nil {
			return nil, err
		}
		if set != s.set {
			foreign = append(foreign, name)
		}
	}
	return foreign, rows.Err()
}

func (s *Store) checkTaken(ctx context.Context, tx *sql.Tx, foreign []string, now time.Time, watch protocol.Watch) error {
	rows, err := tx.QueryContext(ctx, s.sql.foreignWorkers, mustJSON(foreign))
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

func queryStrings(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]string, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
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

// mustJSON encodes a parameter. A list goes as JSON because drivers differ in
// how they take arrays.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: a parameter of type %T does not encode: %v", v, err))
	}
	return string(b)
}

// Coordination takes literals for parameters, as Store.Save does: a statement
// without parameters takes one round trip (with pgx, where that does not prepare).
func quoteJSON(v any) string { return pq.QuoteLiteral(mustJSON(v)) }

func quoteTime(t time.Time) string {
	if t.IsZero() {
		return "NULL"
	}
	return pq.QuoteLiteral(t.UTC().Format(time.RFC3339Nano))
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%dms", max(d.Milliseconds(), 1))
}

// Channel is the one that names of replica sets are sent on: there is a new
// generation, or one was activated.
const Channel = "pupsourcing_orchestrator"

// statements holds the SQL with the clock, the set and its bounds put in.
type statements struct {
	heartbeat, report, unreport, look           string // without parameters
	bound, lockGroup, createGroup               string // likewise
	lockMembers, timeAndFloor, save             string // likewise
	registerProjections, lockProjections        string
	foreignWorkers                              string
	takeProjections, takeCheckpoints            string
	ownProjections, lockCheckpoints             string // likewise
	handOver, saveCheckpoints                   string // likewise
	findCheckpoint, saveCheckpoint              string // likewise
	beginHandler, restore                       string // likewise
	parked, requested, park, unpark, drop, note string // the last four likewise, but for unpark
}

// boundSQL sets bounds for its transaction only.
const boundSQL = `SELECT set_config('idle_in_transaction_session_timeout', {idle}, true) || set_config('lock_timeout', {lock}, true)`

// A handler may do anything in its transaction, and what it does must not reach the
// library's own statements there, nor the next user of the connection.
const (
	// beginHandlerSQL bounds the transaction, and writes down who its user is and where
	// names are looked for. What is written down ends with the transaction: that it is
	// still there says that this is still the transaction that was begun.
	beginHandlerSQL = `
SELECT set_config('idle_in_transaction_session_timeout', {handler}, true),
       set_config('orchestrator.role', current_setting('role'), true),
       set_config('orchestrator.search_path', current_setting('search_path'), true)`

	// stillOpenSQL is whether it is.
	stillOpenSQL = `coalesce(pg_catalog.current_setting('orchestrator.role', true), '') <> ''`

	// restoreSQL goes before what the library writes in the transaction, in the same
	// message: privileges are checked, and names are looked for, before a statement
	// begins, so that it can't do that for itself. It bounds the time until COMMIT. What
	// the handler has set back by then holds beyond the transaction, as SET does: not
	// LOCAL, or a SET without that would come back at COMMIT.
	restoreSQL = `
SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', {idle}, true),
       CASE WHEN ` + stillOpenSQL + ` AND pg_catalog.current_setting('orchestrator.role') <> pg_catalog.current_setting('role')
            THEN pg_catalog.set_config('role', pg_catalog.current_setting('orchestrator.role'), false) END,
       CASE WHEN ` + stillOpenSQL + ` AND pg_catalog.current_setting('orchestrator.search_path') <> pg_catalog.current_setting('search_path')
            THEN pg_catalog.set_config('search_path', pg_catalog.current_setting('orchestrator.search_path'), false) END`
)

func newStatements(clock, set string, bounds Bounds) statements {
	put := strings.NewReplacer("{clock}", clock, "{set}", pq.QuoteLiteral(set), "{channel}", pq.QuoteLiteral(Channel),
		"{idle}", pq.QuoteLiteral(millis(bounds.Idle)), "{lock}", pq.QuoteLiteral(millis(bounds.Lock)),
		"{handler}", pq.QuoteLiteral(millis(bounds.Handler))).Replace
	// What fmt.Sprintf completes has its own % only where a set is named so.
	format := strings.NewReplacer("{clock}", clock, "{set}", strings.ReplaceAll(pq.QuoteLiteral(set), "%", "%%"),
		"{channel}", pq.QuoteLiteral(Channel)).Replace
	return statements{
		bound: put(boundSQL),

		// Everything that may start a worker comes from the row that the
		// UPDATE returns, in one piece. The rows of the set and of others are of
		// the statement's snapshot and may be older, if the UPDATE had to wait;
		// or in the case of two reports at once (protocol.Session).
		heartbeat: format(`
WITH beat AS (
    UPDATE orchestrator_workers
       SET lease_us = %[2]d, lease_until = {clock} + %[2]d * interval '1 microsecond',
           presence_key = CASE WHEN presence_number < %[5]d THEN %[4]d ELSE presence_key END,
           presence_number = greatest(presence_number, %[5]d), -- as in protocol.Apply
           holds = CASE WHEN holds <= %[3]d THEN 0 ELSE holds END
     WHERE replica_set = {set} AND id = %[1]s
 RETURNING generation, total, partitions, paused, holds)
` + viewSQL + `
  LEFT JOIN beat b ON true`),
		look: format(viewSQL + `
  LEFT JOIN orchestrator_workers b ON b.replica_set = {set} AND b.id = %[1]s`),
		// Apart from everything else: a lock on the reports, or one that can't be
		// written, holds nothing up. So whose worker is gone is removed by whoever
		// writes the next one.
		report: format(`
WITH gone AS (
    DELETE FROM orchestrator_reports r
     WHERE r.replica_set = {set} AND r.worker <> %[1]s
       AND NOT EXISTS (SELECT FROM orchestrator_workers w WHERE w.replica_set = r.replica_set AND w.id = r.worker))
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report)
SELECT w.replica_set, w.id, {clock}, %[2]s::jsonb FROM orchestrator_workers w WHERE w.replica_set = {set} AND w.id = %[1]s
    ON CONFLICT (replica_set, worker) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report`),
		unreport: format(`DELETE FROM orchestrator_reports WHERE replica_set = {set} AND worker = %[1]s`),

		// The bounds come with the first statement, and hold in it: the
		// subquery is run before a row is looked for.
		lockGroup: put(`
SELECT generation, phase, total, reason, max_partitions, join_window_us, paused, rewinds, events_table
  FROM orchestrator_replica_sets
 WHERE name = {set}
   AND (` + boundSQL + `) <> ''
   FOR UPDATE`),
		createGroup: put(`INSERT INTO orchestrator_replica_sets (name) VALUES ({set}) ON CONFLICT DO NOTHING`),
		lockMembers: put(`
SELECT id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number
  FROM orchestrator_workers WHERE replica_set = {set} ORDER BY seq FOR UPDATE`),
		timeAndFloor: put(`
SELECT {clock}, coalesce(max(abs(generation)), 0) FROM orchestrator_checkpoints WHERE replica_set = {set}`),

		// One statement for rows that are all locked by now. No row is in two
		// of its parts, which don't see each other. Who listens hears of it after
		// COMMIT; should others let the server's queue of notifications run full,
		// nobody does, rather than that nothing can be committed.
		save: format(`
WITH set AS (
    UPDATE orchestrator_replica_sets
       SET generation = %[1]d, phase = %[2]s, total = %[3]d, reason = %[4]s, max_partitions = %[5]d,
           join_window_us = %[6]d, step_at = %[7]s::timestamptz, paused = %[15]s::jsonb, rewinds = %[16]s::jsonb, events_table = %[20]s,
           opened_at = CASE WHEN %[9]t THEN %[8]s::timestamptz ELSE opened_at END,
           activated_at = CASE WHEN %[10]t THEN %[8]s::timestamptz WHEN %[9]t THEN NULL ELSE activated_at END
     WHERE name = {set}
       AND (generation, phase, total, reason, max_partitions, join_window_us, step_at, paused, rewinds, events_table)
           IS DISTINCT FROM (%[1]d, %[2]s, %[3]d, %[4]s, %[5]d, %[6]d, %[7]s::timestamptz, %[15]s::jsonb, %[16]s::jsonb, %[20]s)),
opened AS (
    INSERT INTO orchestrator_history (replica_set, generation, reason, total, members, opened_at, activated_at, waited_for)
    SELECT {set}, %[1]d, %[4]s, %[3]d, %[17]s::jsonb, %[8]s::timestamptz, CASE WHEN %[10]t THEN %[8]s::timestamptz END, %[18]s::jsonb
     WHERE %[9]t),
activated AS (
    UPDATE orchestrator_history SET activated_at = %[8]s::timestamptz
     WHERE replica_set = {set} AND generation = %[1]d AND %[10]t AND NOT %[9]t
 RETURNING opened_at, waited_for),
pruned AS (
    DELETE FROM orchestrator_history
     WHERE replica_set = {set} AND generation <= %[1]d - %[19]d AND %[9]t),
removed AS (
    DELETE FROM orchestrator_workers
     WHERE replica_set = {set} AND id IN (SELECT jsonb_array_elements_text(%[11]s::jsonb))),
updated AS (
    UPDATE orchestrator_workers w
       SET lease_us = x.lease_us, lease_until = x.lease_until, partitions = x.partitions, holds = x.holds,
           presence_key = x.presence_key, presence_number = x.presence_number, drained = x.drained,
           generation = %[1]d, total = %[3]d, paused = %[15]s::jsonb
      FROM jsonb_to_recordset(%[12]s::jsonb) AS x (id text, lease_us bigint, lease_until timestamptz, drained boolean, partitions jsonb,
                                                 holds bigint, presence_key integer, presence_number integer)
     WHERE w.replica_set = {set} AND w.id = x.id
       AND (w.lease_us, w.lease_until, w.drained, w.partitions, w.holds, w.presence_key, w.presence_number, w.generation, w.total, w.paused)
           IS DISTINCT FROM (x.lease_us, x.lease_until, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number, %[1]d, %[3]d, %[15]s::jsonb)),
added AS (
    INSERT INTO orchestrator_workers
           (replica_set, id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number,
            generation, total, paused, projections)
    SELECT {set}, x.id, x.joined_at, x.lease_us, x.lease_until, x.wants, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number,
           %[1]d, %[3]d, %[15]s::jsonb, %[14]s::jsonb
      FROM jsonb_to_recordset(%[13]s::jsonb)
           AS x (id text, joined_at timestamptz, lease_us bigint, lease_until timestamptz, wants integer, drained boolean, partitions jsonb,
                 holds bigint, presence_key integer, presence_number integer))
SELECT a.opened_at, a.waited_for,
       CASE WHEN (%[9]t OR %[10]t) AND pg_notification_queue_usage() < 0.5 THEN pg_notify({channel}, {set}) END
  FROM (SELECT) one LEFT JOIN activated a ON true`),

		registerProjections: `
INSERT INTO orchestrator_projections (name, replica_set)
SELECT name, $1 FROM jsonb_array_elements_text($2::jsonb) WITH ORDINALITY AS x (name, i) ORDER BY i
    ON CONFLICT DO NOTHING`,
		// All of them are locked, the set's own as well: another may be about
		// to take one.
		lockProjections: `
SELECT name, replica_set FROM orchestrator_projections
 WHERE name IN (SELECT jsonb_array_elements_text($1::jsonb)) ORDER BY name FOR UPDATE`,
		foreignWorkers: `
SELECT p.name, w.replica_set, w.id, w.lease_us, w.lease_until
  FROM orchestrator_projections p
  JOIN orchestrator_workers w ON w.replica_set = p.replica_set AND w.projections ? p.name
 WHERE p.name IN (SELECT jsonb_array_elements_text($1::jsonb))
 ORDER BY w.lease_until DESC, p.name, w.id
   FOR UPDATE OF w -- no heartbeat renews a lease between this look and the taking`,
		takeProjections: `
UPDATE orchestrator_projections SET replica_set = $1
 WHERE name IN (SELECT jsonb_array_elements_text($2::jsonb))`,
		takeCheckpoints: `
UPDATE orchestrator_checkpoints SET replica_set = $1, generation = -abs(generation)
 WHERE projection IN (SELECT jsonb_array_elements_text($2::jsonb))`,

		// Locked against a claim by another set, until the rows are written.
		ownProjections: put(`
SELECT name FROM orchestrator_projections WHERE replica_set = {set} ORDER BY name FOR SHARE`),
		// Whoever has written a checkpoint and not committed is waited for
		// here, so that the hand-over starts from what it commits. Whoever
		// comes later finds the new generation.
		lockCheckpoints: put(`
SELECT projection, partition, total, position, ahead
  FROM orchestrator_checkpoints WHERE replica_set = {set} ORDER BY projection, partition FOR UPDATE`),
		handOver: format(`
WITH dropped AS (DELETE FROM orchestrator_checkpoints WHERE replica_set = {set} AND partition >= %[2]d)` + saveCheckpointsSQL),
		saveCheckpoints: format(saveCheckpointsSQL),

		// On the primary only, as viewSQL.
		findCheckpoint: format(`
SELECT generation, position, ahead, %s FROM orchestrator_checkpoints c
 WHERE replica_set = {set} AND projection = %s AND partition = %d
   AND (SELECT pg_current_wal_lsn()) IS NOT NULL`),

		beginHandler:   put(beginHandlerSQL),
		restore:        put(restoreSQL),
		saveCheckpoint: format(saveCheckpointSQL),

		parked: parkedSQL, requested: requestsSQL,
		park:   format(parkSQL),
		unpark: put(unparkSQL),
		drop:   format(dropSQL),
		note:   format(noteSQL),
	}
}

// viewSQL is what a worker sees, but for b, which is its own row.
// It is of the primary only: a standby shows what was, however long ago. There
// pg_current_wal_lsn ends it with an error.
const viewSQL = `
SELECT CASE WHEN pg_current_wal_lsn() IS NOT NULL THEN {clock} END,
       coalesce(s.phase = 'draining' AND coalesce(b.holds, 0) = 0 AND NOT coalesce(o.held, false), false),
       s.step_at, o.lease_until, b.generation, b.total, b.partitions, b.paused, b.holds
  FROM (SELECT min(CASE WHEN lease_until > {clock} + lease_us * interval '1 microsecond'
                        THEN {clock} ELSE lease_until END) AS lease_until, -- as in protocol.Group.View
               bool_or(holds <> 0) AS held
          FROM orchestrator_workers WHERE replica_set = {set} AND id <> %[1]s) o
  LEFT JOIN orchestrator_replica_sets s ON s.name = {set}`

const saveCheckpointsSQL = `
INSERT INTO orchestrator_checkpoints
       (replica_set, generation, total, projection, partition, position, ahead, updated_at)
SELECT {set}, %[1]d, %[2]d, x.projection, x.partition, x.position, x.ahead, {clock}
  FROM jsonb_to_recordset(%[3]s::jsonb) AS x (projection text, partition integer, position bigint, ahead jsonb)
    ON CONFLICT (projection, partition) DO UPDATE
   SET generation = excluded.generation, total = excluded.total, position = excluded.position, ahead = excluded.ahead`

// saveCheckpointSQL is the fence. replica_set: the projection may have moved to
// another set, whose generations are other numbers. generation: a newer one
// may have been activated. position: an earlier commit whose reply was lost
// may have happened.
const saveCheckpointSQL = `
UPDATE orchestrator_checkpoints SET position = %d, ahead = %s, updated_at = {clock}
 WHERE replica_set = {set} AND projection = %s AND partition = %d AND generation = %d AND position = %d`
