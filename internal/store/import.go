package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Import: the way over from processors that were run without this library. Old checkpoints are
// only read, under a lock; protocol.IdleCheck decides when they can be taken.

// An OldTable is a table of checkpoints that are not the library's own. The
// names are not quoted.
type OldTable struct {
	Schema, Table, Key, Position string // an empty schema is the search path
}

// Name is the table's, quoted.
func (o OldTable) Name() string {
	if o.Schema == "" {
		return sqltext.Quote(o.Table)
	}
	return sqltext.Quote(o.Schema) + "." + sqltext.Quote(o.Table)
}

// values are what statements need of the table.
func (o OldTable) values() sqltext.Values {
	return sqltext.Values{"table": sqltext.SQL(o.Name()), "name": o.Name(), "key": sqltext.Ident(o.Key), "at": sqltext.Ident(o.Position)}
}

var (
	// SKIP LOCKED: a row that another transaction has locked is left out, and not waited for.
	lockOldSQL = sqltext.New(`
SELECT {key}::text, {at}::bigint FROM {table}
 WHERE {key}::text = ANY (SELECT jsonb_array_elements_text({keys})) ORDER BY 1 FOR UPDATE SKIP LOCKED`)
	listOldSQL = sqltext.New(`
SELECT {key}::text FROM {table} WHERE {key}::text = ANY (SELECT jsonb_array_elements_text({keys})) ORDER BY 1`)
)

// An OldRow is one old checkpoint.
type OldRow struct {
	Key      string
	Position sql.NullInt64
}

// An Import is a transaction that makes old checkpoints a projection's own.
type Import struct {
	store *Store
	tx    *sql.Tx
	old   OldTable
}

// Import runs f in a transaction, which is committed if f returns nil.
func (s *Store) Import(ctx context.Context, old OldTable, f func(*Import) error) error {
	if old.Schema == "" {
		schema, _, err := sqltext.Find(ctx, s.db, old.Table)
		if err != nil {
			return err
		}
		old.Schema = schema // or the server says that there is no such table
	}
	return s.transact(ctx, func(tx *sql.Tx) error {
		if _, err := s.exec(ctx, tx, boundTransactionSQL, nil); err != nil {
			return fmt.Errorf("bound the transaction: %w", err)
		}
		return f(&Import{s, tx, old})
	})
}

// Lock locks the rows of the old table with the keys, and returns them. busy
// are the keys of rows that another transaction has locked.
func (i *Import) Lock(ctx context.Context, keys []string) (rows []OldRow, busy []string, err error) {
	values := i.old.values()
	values["keys"] = sqltext.JSON{Value: keys}
	locked, err := i.store.query(ctx, i.tx, lockOldSQL, values)
	if err != nil {
		return nil, nil, fmt.Errorf("lock the checkpoints in %s: %w", i.old.Name(), err)
	}
	defer locked.Close()
	have := map[string]int{}
	for locked.Next() {
		var r OldRow
		if err := locked.Scan(&r.Key, &r.Position); err != nil {
			return nil, nil, fmt.Errorf("read a checkpoint in %s: %w", i.old.Name(), err)
		}
		rows = append(rows, r)
		have[r.Key]++
	}
	if err := locked.Err(); err != nil {
		return nil, nil, fmt.Errorf("lock the checkpoints in %s: %w", i.old.Name(), err)
	}
	all, err := i.store.strings(ctx, i.tx, listOldSQL, values)
	if err != nil {
		return nil, nil, fmt.Errorf("list the checkpoints in %s: %w", i.old.Name(), err)
	}
	for _, key := range all {
		if have[key]--; have[key] < 0 {
			busy = append(busy, key)
		}
	}
	return rows, busy, nil
}

// usersSQL lists the transactions that have read or written a table, prepared
// ones included, and which of them wait for this one.
var usersSQL = sqltext.New(`
SELECT virtualtransaction, coalesce(pid, 0), coalesce(pg_backend_pid() = ANY (pg_blocking_pids(pid)), false)
  FROM (SELECT DISTINCT virtualtransaction, pid
          FROM pg_locks
         WHERE locktype = 'relation' AND granted
           AND mode = ANY ('{AccessShareLock,RowShareLock,RowExclusiveLock}')
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND relation = {name}::regclass::oid AND (pid IS NULL OR pid <> pg_backend_pid())) AS users
 ORDER BY 1`)

// Users returns the transactions that use the old table.
func (i *Import) Users(ctx context.Context) ([]protocol.User, error) {
	rows, err := i.store.query(ctx, i.tx, usersSQL, i.old.values())
	if err != nil {
		return nil, fmt.Errorf("list who uses %s: %w", i.old.Name(), err)
	}
	defer rows.Close()
	var users []protocol.User
	for rows.Next() {
		var u protocol.User
		if err := rows.Scan(&u.Transaction, &u.Backend, &u.Blocked); err != nil {
			return nil, fmt.Errorf("list who uses %s: %w", i.old.Name(), err)
		}
		users = append(users, u)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list who uses %s: %w", i.old.Name(), err)
	}
	return users, nil
}

// Owner returns the replica set under which the projection has checkpoints, ""
// if it has none.
func (i *Import) Owner(ctx context.Context, projection string) (set string, err error) {
	err = i.store.row(ctx, i.tx, ownerSQL, sqltext.Values{"projection": projection}, &set)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("look for checkpoints of projection %q: %w", projection, err)
	}
	return set, nil
}

var ownerSQL = sqltext.New(`SELECT replica_set FROM orchestrator_checkpoints WHERE projection = {projection} LIMIT 1`)

// Claim makes the projection the set's own.
//
// The set is locked as for any other change to it. The projection's row is not
// enough: if it is new, no other transaction sees it:
//  1. a worker that activates a generation lists the set's projections;
//  2. the import adds this one, with its checkpoints, and commits;
//  3. the worker drops the partitions that its generation lacks, of this
//     projection as well, and their positions are lost.
func (i *Import) Claim(ctx context.Context, projection string) error {
	if _, err := i.store.lockGroup(ctx, i.tx, protocol.Request{Join: true}); err != nil {
		return err
	}
	if _, err := i.store.exec(ctx, i.tx, touchGroupSQL, nil); err != nil {
		return fmt.Errorf("lock replica set %q: %w", i.store.set, err)
	}
	// No worker is declared dead here, with an empty Watch: that takes a worker that has
	// watched the database's clock for the length of a lease.
	now, err := i.store.timeAndFloor(ctx, i.tx, &protocol.Group{})
	if err == nil {
		_, _, err = i.store.claim(ctx, i.tx, []string{projection}, now, protocol.Watch{})
	}
	return err
}

// touchGroupSQL gives the set's row another version. A worker that has read the set
// without a lock notices that: see attempt.
var touchGroupSQL = sqltext.New(`UPDATE orchestrator_replica_sets SET name = name WHERE name = {set}`)

// Write writes the checkpoints of a projection that has none, and is claimed.
func (i *Import) Write(ctx context.Context, projection string, checkpoints []protocol.Checkpoint) error {
	var rows []checkpointRow
	for k, c := range checkpoints {
		rows = append(rows, checkpointRow{projection, k, c.Position, encodeMarks(c.Ahead)})
	}
	if err := i.store.writeFirst(ctx, i.tx, rows); err != nil {
		return fmt.Errorf("projection %q: %w", projection, err)
	}
	return nil
}

// A Segment is the checkpoint of one segment of a consumer, as github.com/pupsourcing/core
// keeps it.
type Segment struct {
	ID, Total int64
	Owner     string // the worker that has claimed it; "": none
	Position  int64
}

// A processor moves the checkpoint only as the owner of the segment. A segment
// without an owner can be claimed only with a lock on its row (FOR UPDATE SKIP LOCKED), so no
// processor claims one that is locked here.
var (
	lockSegmentsSQL = sqltext.New(`
SELECT segment_id::bigint, total_segments::bigint, coalesce(owner_id::text, ''), checkpoint::bigint FROM {table}
 WHERE consumer_name::text = {projection} ORDER BY segment_id FOR UPDATE SKIP LOCKED`)
	listSegmentsSQL = sqltext.New(`SELECT segment_id::text FROM {table} WHERE consumer_name::text = {projection} ORDER BY segment_id`)
)

// LockSegments locks the rows of a consumer's segments, and returns them. busy are the ids of
// those that another transaction has locked.
func (i *Import) LockSegments(ctx context.Context, consumer string) (segments []Segment, busy []string, err error) {
	values := sqltext.Values{"table": sqltext.SQL(i.old.Name()), "projection": consumer}
	rows, err := i.store.query(ctx, i.tx, lockSegmentsSQL, values)
	if err != nil {
		return nil, nil, fmt.Errorf("lock the segments in %s: %w", i.old.Name(), err)
	}
	defer rows.Close()
	have := map[string]bool{}
	for rows.Next() {
		var s Segment
		if err := rows.Scan(&s.ID, &s.Total, &s.Owner, &s.Position); err != nil {
			return nil, nil, fmt.Errorf("read a segment in %s: %w", i.old.Name(), err)
		}
		segments = append(segments, s)
		have[fmt.Sprint(s.ID)] = true
	}
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("lock the segments in %s: %w", i.old.Name(), err)
	}
	all, err := i.store.strings(ctx, i.tx, listSegmentsSQL, values)
	if err != nil {
		return nil, nil, fmt.Errorf("list the segments in %s: %w", i.old.Name(), err)
	}
	return segments, slices.DeleteFunc(all, func(id string) bool { return have[id] }), nil
}

var segmentWorkersSQL = sqltext.New(`
SELECT worker_id::text, last_heartbeat::timestamptz, {clock}::timestamptz FROM {table}
 WHERE consumer_name::text = {projection} ORDER BY last_heartbeat DESC LIMIT 1`)

// SegmentWorker returns the worker with the latest heartbeat among those
// that are registered for a consumer, and how long ago that was; "" if none is registered.
func (i *Import) SegmentWorker(ctx context.Context, workers OldTable, consumer string) (worker string, ago time.Duration, err error) {
	var beat, now time.Time
	if workers.Schema == "" {
		if workers.Schema, _, err = sqltext.Find(ctx, i.tx, workers.Table); err != nil {
			return "", 0, err
		}
	}
	err = i.store.row(ctx, i.tx, segmentWorkersSQL, sqltext.Values{"table": sqltext.SQL(workers.Name()), "projection": consumer}, &worker, &beat, &now)
	if errors.Is(err, sql.ErrNoRows) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, fmt.Errorf("look for workers in %s: %w", workers.Name(), err)
	}
	return worker, now.Sub(beat), nil
}
