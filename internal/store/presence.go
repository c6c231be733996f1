package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Presences: advisory locks that show that a worker is there. protocol/presence.go has the
// proof; here are its statements. A presence must never seem to be gone while its session has
// the lock.

// A Session is a session at the server that holds the lock of a presence.
type Session struct {
	store    *Store
	conn     *sql.Conn
	presence protocol.Presence
}

// The key of a presence is the process id of the backend that holds its lock, as a
// negative number: any role that can connect may take the lock in another session, but that
// does not count, and the next key can't be known beforehand. (Earlier
// programs took the lock under a random, positive key.)
//
// The session has the lock twice, so that it can release it once and take it again
// at any time, and so finds out whether it still had it: no other session is
// involved. A query of pg_locks would lock the lock table of all sessions.
var (
	// try: if another session has the lock, don't wait for it.
	attachSQL = sqltext.New(`
SELECT pid, pg_try_advisory_lock_shared(-pid, {number}) AND pg_try_advisory_lock_shared(-pid, {number})
  FROM (SELECT pg_backend_pid() AS pid OFFSET 0) own`)
	releaseSQL = sqltext.New(`SELECT pg_advisory_unlock_shared({key}, {number}) AND pg_advisory_unlock_shared({key}, {number})`)
	// presence_number: a statement that arrives late must not bring back an older number, as in
	// protocol.Apply. NOT vacant: nor give one to a place whose worker has left.
	publishSQL = sqltext.New(`
   UPDATE orchestrator_workers
      SET presence_key = CASE WHEN presence_number < {number} THEN {key} ELSE presence_key END,
          presence_number = greatest(presence_number, {number})
    WHERE replica_set = {set} AND id = {worker} AND NOT vacant
RETURNING CASE WHEN holds = generation THEN holds ELSE 0 END`)

	proveSQL   = sqltext.New(heldText + `, '[]', false, 0, 0, 0`)
	glimpseSQL = sqltext.New(heldText + `, coalesce(o.absent, '[]'), o.others = 0,
       coalesce(g.generation, 0), coalesce((date_part('epoch', (g.step_at - {clock})) * 1000000)::bigint, 0),
       coalesce((SELECT b.holds FROM orchestrator_workers b WHERE b.replica_set = {set} AND b.id = {worker}), 0)
  FROM (SELECT count(*) AS others, ` + absentText + ` AS absent
          FROM orchestrator_workers WHERE replica_set = {set} AND id <> {worker}) o
  LEFT JOIN orchestrator_replica_sets g ON g.name = {set}`)
)

// absentText lists the presences, among a replica set's workers, whose locks are free:
// such a lock can be taken. It is released when the statement's transaction ends, and its own
// worker never takes it again. (A query of pg_locks would stop the whole server's
// locking for a moment.)
//
// A session does not conflict with itself. Behind a pooler, workers may share one:
//  1. w1 and w2 attach, and both are led to one backend, which has both locks;
//  2. w1 checks there, and gets w2's lock: w2 seems to be gone, while its proofs go on.
//
// So the locks of this very backend count as held. A lock that another check tries at the same
// moment, or that another session has taken beside the worker's, seems
// to be held: that hides a crash, and invents none. A worker's own proof comes from its own
// session only. (CASE has a fixed order.)
const absentText = `jsonb_agg(jsonb_build_object('Worker', id, 'Presence', jsonb_build_object('Key', presence_key, 'Number', presence_number)))
               FILTER (WHERE CASE WHEN presence_number > 0 AND presence_key <> (-pg_backend_pid()) THEN pg_try_advisory_xact_lock(presence_key, presence_number) ELSE false END)`

// A pooler may hand out another session, or reset this one, and with it its
// locks, between two of its clients. (CASE has a fixed order, AND has none.)
const heldText = `
SELECT pg_backend_pid(),
       CASE WHEN pg_advisory_unlock_shared({key}, {number}) THEN pg_try_advisory_lock_shared({key}, {number}) ELSE false END`

func presenceValues(p protocol.Presence) sqltext.Values {
	return sqltext.Values{"key": p.Key, "number": p.Number}
}

// An Attachment is the result of Attach.
type Attachment struct {
	Session
	Key       int32
	Published protocol.Published
	RoundTrip time.Duration // how long the statement took that took the lock
}

// Attach takes the lock in a connection's session, and publishes that in the
// worker's row, if a worker is named and has one.
func (s *Store) Attach(ctx context.Context, conn *sql.Conn, a protocol.Attach) (at Attachment, err error) {
	var pid int32
	var taken bool
	sent := time.Now()
	err = s.row(ctx, conn, attachSQL, sqltext.Values{"number": a.Number}, &pid, &taken)
	if err == nil && !taken {
		err = fmt.Errorf("another session holds advisory lock (%d, %d)", -pid, a.Number)
	}
	if err != nil {
		return at, fmt.Errorf("take the liveness lock: %w", err)
	}
	at.RoundTrip, at.Key = time.Since(sent), -pid
	at.Session = Session{store: s, conn: conn, presence: protocol.Presence{Key: at.Key, Number: a.Number}}
	if a.Worker == "" {
		return at, nil
	}
	values := presenceValues(at.presence)
	values["worker"] = string(a.Worker)
	switch err := s.row(ctx, conn, publishSQL, values, &at.Published.Runs); {
	case errors.Is(err, sql.ErrNoRows):
		return at, nil
	case err != nil:
		return at, fmt.Errorf("publish the liveness lock: %w", err)
	}
	at.Published.Row = true
	return at, nil
}

// Release releases the lock. After an error the session may still have it.
func (s Session) Release(ctx context.Context) error {
	var released bool
	if err := s.store.row(ctx, s.conn, releaseSQL, presenceValues(s.presence), &released); err != nil {
		return fmt.Errorf("release the liveness lock: %w", err)
	}
	if !released {
		return errors.New("this session does not hold the liveness lock")
	}
	return nil
}

// Prove asks the session whether it is there. same is false if another session has
// answered, or the lock is gone: then a pooler shares sessions between processes, and a session
// tells nothing about one of them.
func (s Session) Prove(ctx context.Context) (same bool, err error) {
	same, _, err = s.ask(ctx, proveSQL, presenceValues(s.presence))
	return same, err
}

// By returns the session for another store, which has another clock.
func (s Session) By(other *Store) Session {
	s.store = other
	return s
}

// Glimpse is Prove, and also returns which presences of the replica set, except the worker's
// own, are gone, and what is new in the set.
func (s Session) Glimpse(ctx context.Context, worker protocol.WorkerID) (same bool, group protocol.Glimpse, err error) {
	values := presenceValues(s.presence)
	values["worker"] = string(worker)
	return s.ask(ctx, glimpseSQL, values)
}

func (s Session) ask(ctx context.Context, statement sqltext.Statement, values sqltext.Values) (same bool, group protocol.Glimpse, err error) {
	var pid int32
	var held bool
	var list string
	var stepIn int64 // µs
	if err = s.store.row(ctx, s.conn, statement, values, &pid, &held, &list, &group.Alone, &group.Generation, &stepIn, &group.Holds); err != nil {
		return false, group, fmt.Errorf("ask the liveness connection: %w", err)
	}
	if group.Absent, err = absentOf(list); err != nil {
		return false, group, err
	}
	group.StepIn = time.Duration(max(0, stepIn)) * time.Microsecond
	return -pid == s.presence.Key && held, group, nil
}

// absentOf reads what absentText has listed.
func absentOf(list string) (absent []protocol.Absence, err error) {
	if err = json.Unmarshal([]byte(list), &absent); err != nil {
		err = fmt.Errorf("read who is absent: %w", err)
	}
	return absent, err
}
