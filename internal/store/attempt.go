package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// A request without a transaction: optimistic concurrency.
//
// An attempt is a request that was decided on what one statement has read, and is carried
// out by another one if nothing of that has changed: two round trips instead of the six to
// ten of a transaction. It must never save a decision if a row that it was based on has changed.
//
// The second statement locks the same rows as step, in the same order, and compares their
// versions (xmin) with those that were read:
//   - a row that was changed, or deleted, has another version, or none;
//   - a row that was added can't be seen by the statement, if it has waited for a lock.
//     But a transaction that adds a worker, a projection or a checkpoint changes the set's row. (A
//     join by an earlier program may not: its worker has no partition, and the next Step
//     sees it.)
//
// The version of the set's row names the run of the server as well: a failover between the
// two may lead to another server, on which transactions have the same numbers.
//
// Projections are locked only where the decision is about them, for a join or an activation:
// a claim by another set locks projections first, and then this set's workers.
//
// The time of the decision is that of the reading. A lease that was over by then, and has
// not been renewed, still is.
//
// If something has changed, the request is decided again, and the last time in a transaction: a
// heartbeat is a change, and with many workers there is one at any time.
type attempt struct {
	result    Result
	now       time.Time
	seen      bool   // there is nothing to carry out
	yielded   Result // of a request that yields, if another one has locked the set
	statement sqltext.Statement
	values    sqltext.Values
}

const attempts = 3

// attempt decides on a request. A report is committed before the set is read: of two workers
// that report at the same moment, the one that reads later sees that the other has stopped.
// It returns nil for what only step does: the first worker,
// projections that are not the set's or have no checkpoint yet, orders and rewinds, and invalid
// rows, which step's error names.
func (s *Store) attempt(ctx context.Context, r protocol.Request, projections []string, f *Foresight, reports bool) (_ *attempt, err error) {
	if r.Order != nil {
		return nil, nil
	}
	var read reading
	var since time.Time
	whole := true
	if f != nil {
		read, since = f.reading, f.sent
	} else {
		read, whole, err = s.readGroup(ctx, r, reports)
	}
	if err != nil || !whole || read.group.Refuses(r) {
		return nil, err
	}
	if r.Join && slices.ContainsFunc(projections, func(p string) bool { return !slices.Contains(read.begun, p) }) {
		return nil, nil
	}
	applied := protocol.Apply(read.group, r, read.now)
	group, decision := protocol.Step(applied, read.now, r.Watch)
	if decision.Activated && !read.still || len(decision.Rewinds) > 0 {
		return nil, nil
	}
	a := &attempt{result: Result{View: group.View(r.Worker, read.now, decision), Group: group, Decision: decision, Since: since}, now: read.now}
	if read.group.Spares(r, group) && read.stepAt.Equal(decision.StepAt.Round(time.Microsecond)) {
		a.seen, a.result.View.ReadOnly = true, !r.Report
		return a, nil
	}
	yields := r.Yields()
	a.yielded = Result{View: applied.View(r.Worker, read.now, protocol.Decision{StepAt: read.now})}
	a.yielded.View.ReadOnly, a.yielded.View.Busy = !r.Report, true
	a.statement = saveIfSQL[ifSaved{decision.Activated, r.Join, yields}]
	a.values = s.saved(read.group.Members, a.result, read.now, projections, r.Join)
	a.values["version"] = sqltext.JSON{Value: read.version}
	if decision.Activated {
		rows := handedOver(read.projections, read.checkpoints, nil, group.Total)
		a.values["rows"], a.values["checkpoints"] = sqltext.JSON{Value: rows}, sqltext.JSON{Value: read.checkpointVersion}
	}
	return a, nil
}

// carry carries the attempt out, unless something has changed. A request that
// yields is done if another one has locked the set: that one most likely does the same.
func (a *attempt) carry(ctx context.Context, s *Store) (done bool, err error) {
	if a.seen {
		return true, nil
	}
	locked, done, err := s.saveRow(ctx, s.db, a.statement, a.values, &a.result, a.now)
	switch {
	case Unserializable(err) || Deadlock(err): // the default isolation may be a higher one than that of step
		return false, nil
	case err == nil && !done && !locked:
		a.result, done = a.yielded, true
	}
	return done, err
}

// A reading is a replica set as one statement has seen it.
type reading struct {
	group       protocol.Group
	now, stepAt time.Time
	projections []string
	// begun are those of projections that have a checkpoint, and for which it is known
	// whether they follow another one.
	begun                      []string
	version, checkpointVersion json.RawMessage
	// still is true if no worker but the one that reads holds a generation. Then the
	// checkpoints, by projection and partition, are read as well.
	still       bool
	checkpoints map[string][]protocol.Checkpoint
}

// A Foresight is what Foresee has read of a set.
type Foresight struct {
	reading
	sent time.Time
}

// Fresh reports whether a join may be based on it at the time now. The lease counts from
// the reading, so the worker counts it from before the reading (Result.Since).
func (f *Foresight) Fresh(now time.Time, join protocol.Request) bool {
	return f != nil && join.MayForesee(now.Sub(f.sent))
}

// Foresee reads the set, at the time now, for the join that a worker is about to send,
// while it waits for something else; nil if it can't. The error of the join names the reason then.
func (s *Store) Foresee(ctx context.Context, worker protocol.WorkerID, now time.Time) *Foresight {
	read, whole, err := s.readGroup(ctx, protocol.Request{Worker: worker}, false)
	if err != nil || !whole {
		return nil
	}
	return &Foresight{read, now}
}

// readGroup reads the set. whole is false if there is none, or if a row is invalid:
// step's error names that.
func (s *Store) readGroup(ctx context.Context, q protocol.Request, reports bool) (r reading, whole bool, err error) {
	var window int64
	var stepAt sql.NullTime
	var paused, rewinds, holds, projections, begun, members, version string
	var checkpoints, checkpointVersion sql.NullString
	g := &r.group
	values := sqltext.Values{"worker": string(q.Worker), "rebuilds": sqltext.JSON{Value: slices.AppendSeq([]string{}, maps.Keys(s.rebuilds))}}
	ask := func(dest ...any) error { return s.row(ctx, s.db, readGroupSQL, values, dest...) }
	if reports {
		maps.Copy(values, beatOf(q))
		ask = func(dest ...any) error { return s.reportAndRead(ctx, values, dest...) }
	}
	err = ask(&r.now, &g.Generation, &g.Phase, &g.Total, &g.Reason, &g.MaxPartitions, &window, &paused, &rewinds, &holds, &g.Stream, &stepAt, &g.Floor, &g.Uncovered,
		&projections, &begun, &members, &version, &r.still, &checkpoints, &checkpointVersion)
	if errors.Is(err, sql.ErrNoRows) || reports && State(err) != "" { // step reports, or says why not
		return r, false, nil
	}
	var bad *RowError
	if err = RowOf("replica_sets", s.set).Scanned(err).Err; Unserializable(err) || errors.As(err, &bad) {
		return r, false, nil
	}
	if err != nil {
		return r, false, Foreseen(err)
	}
	var all []struct {
		memberRow
		Partitions json.RawMessage `json:"partitions"`
	}
	problem := errors.Join(s.complete(g, window, paused, rewinds, holds),
		json.Unmarshal([]byte(members), &all), json.Unmarshal([]byte(projections), &r.projections), json.Unmarshal([]byte(begun), &r.begun))
	owners := map[int]protocol.WorkerID{}
	for _, row := range all {
		m, err := s.member(row.memberRow, string(row.Partitions), g.Total, owners, nil)
		problem = errors.Join(problem, err)
		g.Members = append(g.Members, m)
	}
	r.stepAt = stepAt.Time
	r.version, r.checkpointVersion = json.RawMessage(version), json.RawMessage(checkpointVersion.String)
	if r.still && problem == nil {
		r.checkpoints, problem = checkpointsOf(checkpoints.String)
	}
	return r, problem == nil, nil
}

// reportAndRead writes a worker's own row, and then reads the set. With lib/pq it is one
// message. After an error the connection may be inside a transaction, if a cancel has
// come between BEGIN and COMMIT, so it is closed.
func (s *Store) reportAndRead(ctx context.Context, values sqltext.Values, dest ...any) error {
	if !sqltext.LibPQ(s.db) {
		if _, err := s.exec(ctx, s.db, reportBeatSQL, values); err != nil {
			return err
		}
		return s.row(ctx, s.db, readGroupSQL, values, dest...)
	}
	c, err := dbconn.Take(ctx, s.db)
	if err != nil {
		return err
	}
	err = c.During(ctx, func() error { return s.row(ctx, c, reportAndReadSQL, values, dest...) })
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		c.Discard()
		return err
	}
	return errors.Join(err, c.Close())
}

// checkpointsOf reads checkpoints that are sorted by projection and partition.
func checkpointsOf(text string) (map[string][]protocol.Checkpoint, error) {
	var rows []struct {
		Projection       string
		Partition, Total int
		Position         int64
		Ahead            json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, err
	}
	var l layouts
	for _, r := range rows {
		ahead := sql.NullString{String: string(r.Ahead), Valid: r.Ahead != nil}
		c, err := checkpointOf(r.Projection, r.Partition, r.Total, protocol.Checkpoint{Position: r.Position}, ahead, nil)
		if err := errors.Join(err, l.add(r.Projection, r.Partition, r.Total, c)); err != nil {
			return nil, err
		}
	}
	return l.complete()
}

var (
	reportBeatSQL = sqltext.New(beatText)
	// BEGIN and COMMIT end the implicit transaction of the first statement, so that the report
	// is committed before the set is read. If it fails, no transaction stays open.
	reportAndReadSQL = sqltext.New(beatText + `; BEGIN; COMMIT;` + readGroupText)
	readGroupSQL     = sqltext.New(readGroupText)

	saveIfSQL = saveIfs()
)

var readGroupText = `
SELECT CASE WHEN pg_current_wal_lsn() IS NOT NULL THEN {clock} END,
       s.generation, s.phase, s.total, s.reason, s.max_partitions, s.join_window_us, s.paused, s.rewinds, s.holds, s.events_table, s.step_at, f.floor, ` + fmt.Sprintf(uncoveredText, "s.generation") + `,
       p.names, p.begun, m.rows, jsonb_build_array(s.version, m.versions, p.versions), m.still, c.rows, c.versions
  FROM (SELECT *, ` + versionText + ` AS version FROM orchestrator_replica_sets WHERE name = {set}) s
 CROSS JOIN
       (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'id', id, 'joined_at', joined_at, 'lease_us', lease_us, 'lease_until', lease_until, 'wants', wants, 'drained', drained, 'vacant', vacant,
                   'partitions', partitions, 'holds', holds, 'presence_key', presence_key, 'presence_number', presence_number) ORDER BY seq), '[]') AS rows,
               coalesce(jsonb_agg(xmin::text ORDER BY seq), '[]') AS versions,
               coalesce(bool_and(holds = 0 OR vacant OR id = {worker}), true) AS still
          FROM orchestrator_workers WHERE replica_set = {set}) m
 CROSS JOIN
       (SELECT coalesce(jsonb_agg(name ORDER BY name) FILTER (WHERE NOT retired), '[]') AS names, coalesce(jsonb_agg(xmin::text ORDER BY name), '[]') AS versions,
               coalesce(jsonb_agg(name ORDER BY name) FILTER (WHERE NOT retired AND coalesce(follows <> '', NOT ({rebuilds} ? name)) AND EXISTS (
                   SELECT FROM orchestrator_checkpoints k WHERE k.projection = q.name)), '[]') AS begun
          FROM orchestrator_projections q WHERE replica_set = {set}) p
 CROSS JOIN
       (SELECT coalesce(max(abs(generation)), 0) AS floor FROM orchestrator_checkpoints WHERE replica_set = {set}) f
  LEFT JOIN LATERAL
       (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'Projection', projection, 'Partition', partition, 'Total', total, 'Position', position, 'Ahead', ahead) ORDER BY projection, partition), '[]') AS rows,
               coalesce(jsonb_agg(xmin::text ORDER BY projection, partition), '[]') AS versions
          FROM orchestrator_checkpoints WHERE replica_set = {set}) c ON m.still`

// ifSaved selects the statement that saves a decision.
type ifSaved struct{ activates, joins, yields bool }

func saveIfs() map[ifSaved]sqltext.Statement {
	all := map[ifSaved]sqltext.Statement{}
	for i := range 8 {
		how := ifSaved{i&1 != 0, i&2 != 0, i&4 != 0}
		wait, same, last, hand := "", "", "same_m", ""
		if how.yields {
			wait = "SKIP LOCKED"
		}
		if how.joins || how.activates {
			same, last = sameProjectionsText, "same_p"
		}
		if how.activates {
			same, last, hand = same+sameCheckpointsText, "same_c", handedText
		}
		all[how] = sqltext.New(`WITH ` + fmt.Sprintf(sameText, wait) + same + onlyIf(`(SELECT ok FROM `+last+`)`, saveText+hand+fmt.Sprintf(savedText, `EXISTS (SELECT FROM s)`)))
	}
	return all
}

// sameText locks the rows that were read, and compares their versions. Each part reads rows only
// if the one before it has found no change, and so begins when that is complete: rows are locked
// in step's order.
const (
	sameText = `
s AS MATERIALIZED (
    SELECT ` + versionText + ` AS version FROM orchestrator_replica_sets WHERE name = {set} AND (` + boundSQL + `) <> '' FOR UPDATE %s),
same_s AS MATERIALIZED (SELECT coalesce((SELECT version FROM s) = ({version} ->> 0), false) AS ok),
m AS MATERIALIZED (
    SELECT seq, xmin::text AS version FROM orchestrator_workers
     WHERE replica_set = {set} AND (SELECT ok FROM same_s) ORDER BY seq FOR UPDATE),
same_m AS MATERIALIZED (SELECT o.ok AND coalesce((SELECT jsonb_agg(version ORDER BY seq) FROM m), '[]') = ({version} -> 1) AS ok FROM same_s o),`
	sameProjectionsText = `
p AS MATERIALIZED (
    SELECT name, xmin::text AS version FROM orchestrator_projections
     WHERE replica_set = {set} AND (SELECT ok FROM same_m) ORDER BY name FOR SHARE),
same_p AS MATERIALIZED (SELECT o.ok AND coalesce((SELECT jsonb_agg(version ORDER BY name) FROM p), '[]') = ({version} -> 2) AS ok FROM same_m o),`
	sameCheckpointsText = `
c AS MATERIALIZED (
    SELECT projection, partition, xmin::text AS version FROM orchestrator_checkpoints
     WHERE replica_set = {set} AND (SELECT ok FROM same_p) ORDER BY projection, partition FOR UPDATE),
same_c AS MATERIALIZED (SELECT o.ok AND coalesce((SELECT jsonb_agg(version ORDER BY projection, partition) FROM c), '[]') = {checkpoints} AS ok FROM same_p o),`
	handedText = `,
` + droppedText + `,
handed AS (` + saveCheckpointsText + `)`

	versionText = `concat_ws(' ', xmin::text, (date_part('epoch', pg_postmaster_start_time()) * 1000000)::bigint)`
)
