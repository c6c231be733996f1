package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A Session is one at the server that holds the lock of a presence.
type Session struct {
	conn     *sql.Conn
	pid      int
	presence protocol.Presence
}

// None of these statements has parameters: see Save.
const (
	attachSQL  = `SELECT pg_backend_pid() FROM (SELECT pg_advisory_lock_shared(%d, %d)) locked`
	releaseSQL = `SELECT pg_advisory_unlock_shared(%d, %d)`
	// As in protocol.Apply.
	publishSQL = `
   UPDATE orchestrator_workers
      SET presence_key = CASE WHEN presence_number < %[4]d THEN %[3]d ELSE presence_key END,
          presence_number = greatest(presence_number, %[4]d)
    WHERE replica_set = %[1]s AND id = %[2]s
RETURNING CASE WHEN holds = generation THEN holds ELSE 0 END`
	// A pooler may reset a session, and with it its locks, between two of its clients,
	// and hand out the same one again.
	heldSQL = `
SELECT pg_backend_pid(), EXISTS (
       SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND pid = pg_backend_pid() AND classid = %d::oid AND objid = %d::oid)`
	proveSQL = heldSQL + `, '[]'`
	lookSQL  = heldSQL + `, coalesce(jsonb_agg(jsonb_build_object('Worker', id, 'Presence', jsonb_build_object('Key', presence_key, 'Number', presence_number))), '[]')
  FROM orchestrator_workers w
 WHERE replica_set = %s AND id <> %s AND presence_number > 0
   AND NOT EXISTS (
       SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid = presence_key::oid AND objid = presence_number::oid
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`
)

// Attach has a connection's session hold the lock, and publishes that in the
// worker's row, if there is one.
func Attach(ctx context.Context, conn *sql.Conn, set string, a protocol.Attach) (s Session, p protocol.Published, err error) {
	s = Session{conn: conn, presence: a.Presence}
	if err := conn.QueryRowContext(ctx, fmt.Sprintf(attachSQL, a.Presence.Key, a.Presence.Number)).Scan(&s.pid); err != nil {
		return s, p, fmt.Errorf("hold the lock that shows that the worker is there: %w", err)
	}
	query := fmt.Sprintf(publishSQL, pq.QuoteLiteral(set), pq.QuoteLiteral(string(a.Worker)), a.Presence.Key, a.Presence.Number)
	switch err := conn.QueryRowContext(ctx, query).Scan(&p.Runs); {
	case errors.Is(err, sql.ErrNoRows):
		return s, p, nil
	case err != nil:
		return s, p, fmt.Errorf("publish the lock that shows that the worker is there: %w", err)
	}
	p.Row = true
	return s, p, nil
}

// Release lets the lock go. An error says that the session may still have it.
func (s Session) Release(ctx context.Context) error {
	var released bool
	if err := s.conn.QueryRowContext(ctx, fmt.Sprintf(releaseSQL, s.presence.Key, s.presence.Number)).Scan(&released); err != nil {
		return fmt.Errorf("let go of the lock that shows that the worker is there: %w", err)
	}
	if !released {
		return errors.New("the lock that shows that the worker is there is not this session's")
	}
	return nil
}

// Prove asks the session whether it is there. same is false if another has
// answered, or the lock is gone: then a pooler hands sessions out, and one tells
// nothing about a process.
func (s Session) Prove(ctx context.Context) (same bool, err error) {
	same, _, err = s.ask(ctx, fmt.Sprintf(proveSQL, s.presence.Key, s.presence.Number))
	return same, err
}

// Look is Prove, and finds out which presences of the replica set are not there,
// but for the worker's own.
func (s Session) Look(ctx context.Context, set string, worker protocol.WorkerID) (same bool, absent []protocol.Absence, err error) {
	return s.ask(ctx, fmt.Sprintf(lookSQL, s.presence.Key, s.presence.Number, pq.QuoteLiteral(set), pq.QuoteLiteral(string(worker))))
}

func (s Session) ask(ctx context.Context, query string) (same bool, absent []protocol.Absence, err error) {
	var pid int
	var held bool
	var list string
	if err := s.conn.QueryRowContext(ctx, query).Scan(&pid, &held, &list); err != nil {
		return false, nil, fmt.Errorf("ask the worker's own session: %w", err)
	}
	if err := json.Unmarshal([]byte(list), &absent); err != nil {
		return false, nil, fmt.Errorf("read who is absent: %w", err)
	}
	return pid == s.pid && held, absent, nil
}
