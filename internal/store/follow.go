package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Which projection follows which. A projection follows another one from the transaction in which
// the first worker joins with it, before any generation runs it; or from the one in which the
// other takes its place. See protocol.Followed. One that has run by itself must never become a
// follower: what it has handled, it has handled as new.

// A FollowError is returned if a projection can't be rebuilt beside another one.
type FollowError struct {
	Projection, Live string
	Why              string
}

func (e *FollowError) Error() string {
	return fmt.Sprintf("projection %q can't be a rebuild of %q: %s", e.Projection, e.Live, e.Why)
}

// Facts are what FactsOf says of it.
func (e *FollowError) Facts() protocol.Facts { return protocol.Facts{Failed: true, Stranger: true} }

// A RetiredError is returned to a worker that joins with a retired projection.
type RetiredError struct{ Projection string }

func (e *RetiredError) Error() string {
	return fmt.Sprintf("projection %q was retired, and its checkpoints are gone: it would start over, and handle every event again as a new one; give the projection another name, or leave it out", e.Projection)
}

// Facts are what FactsOf says of it.
func (e *RetiredError) Facts() protocol.Facts { return protocol.Facts{Failed: true, Stranger: true} }

// followsText is true if the projection of checkpoint c follows another one.
const followsText = `coalesce((SELECT coalesce(q.follows, '') <> '' FROM orchestrator_projections q WHERE q.name = c.projection), false)`

// stoppedText is true if no worker of replica set s runs projection l, nor will before
// that is resumed: it is paused, and each worker that holds a generation holds the newest one,
// which does not run it. Without the condition on workers, one that has not stopped yet could
// still commit after the follower has taken over.
const stoppedText = `(s.paused ? l.name OR s.paused ? '') AND NOT EXISTS (
          SELECT FROM orchestrator_workers w
           WHERE w.replica_set = s.name AND w.holds <> 0 AND NOT w.vacant
             AND NOT (w.holds = w.generation AND (w.paused ? l.name OR w.paused ? '')))`

var (
	followedSQL = sqltext.New(`
SELECT coalesce(p.follows, ''), coalesce((
       SELECT jsonb_agg(jsonb_build_object('partition', c.partition, 'total', c.total, 'position', c.position, 'ahead', c.ahead) ORDER BY c.partition)
         FROM orchestrator_checkpoints c WHERE c.projection = p.follows), '[]'),
       coalesce((
       SELECT ` + stoppedText + `
         FROM orchestrator_projections l JOIN orchestrator_replica_sets s ON s.name = l.replica_set
        WHERE l.name = p.follows), false)
  FROM orchestrator_projections p WHERE p.name = {projection}` + onPrimary)

	// Locked, so that it is not retired, nor replaced, at the same moment.
	liveSQL = sqltext.New(`
SELECT coalesce(l.follows, ''), l.retired, s.events_table,
       EXISTS (SELECT FROM orchestrator_checkpoints c WHERE c.projection = l.name AND c.generation <> 0)
  FROM orchestrator_projections l JOIN orchestrator_replica_sets s ON s.name = l.replica_set
 WHERE l.name = {live} FOR SHARE OF l`)
	newRebuildsSQL = sqltext.New(`
SELECT p.name FROM orchestrator_projections p
 WHERE p.name = ANY (SELECT jsonb_array_elements_text({names}))
   AND CASE WHEN p.follows IS NOT NULL THEN p.follows = ''
            ELSE NOT EXISTS (SELECT FROM orchestrator_checkpoints c WHERE c.projection = p.name AND c.generation <> 0) END
 ORDER BY p.name`)
	independentSQL = sqltext.New(`
SELECT p.name FROM orchestrator_projections p JOIN jsonb_to_recordset({rebuilds}) AS x (name text, live text) ON x.name = p.name
 WHERE p.follows IS NULL AND NOT p.retired
   AND EXISTS (SELECT FROM orchestrator_checkpoints c WHERE c.projection = p.name AND c.generation <> 0)
   AND EXISTS (SELECT FROM orchestrator_projections l WHERE l.name = x.live AND NOT l.retired AND coalesce(l.follows, '') <> p.name)
 ORDER BY p.name LIMIT 1`)
	followSQL = sqltext.New(`UPDATE orchestrator_projections SET follows = {live} WHERE name = {projection}`)
)

// Followed returns how far the live version of a projection is, in one statement: the
// checkpoints are of one snapshot.
func (s *Store) Followed(ctx context.Context, projection string) (protocol.Followed, error) {
	var f protocol.Followed
	var rows string
	err := s.row(ctx, s.db, followedSQL, sqltext.Values{"projection": projection}, &f.Version, &rows, &f.Final)
	if err == nil {
		f.Live = f.Version == ""
		f.Checkpoints, err = layoutOf(f.Version, rows)
	}
	if err != nil {
		return protocol.Followed{}, fmt.Errorf("read how far the live version of projection %s is: %w", projection, err)
	}
	return f, nil
}

// layoutOf returns the checkpoints of a projection from JSON.
func layoutOf(projection, text string) ([]protocol.Checkpoint, error) {
	var rows []struct {
		Partition, Total int
		Position         int64
		Ahead            json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, fmt.Errorf("checkpoints of projection %s: %w", projection, err)
	}
	var l layouts
	for _, r := range rows {
		ahead := sql.NullString{String: string(r.Ahead), Valid: len(r.Ahead) > 0 && string(r.Ahead) != "null"}
		c, err := checkpointOf(projection, r.Partition, r.Total, protocol.Checkpoint{Position: r.Position}, ahead, nil)
		if err == nil {
			err = l.add(projection, r.Partition, r.Total, c)
		}
		if err != nil {
			return nil, err
		}
	}
	all, err := l.complete()
	return all[projection], err
}

// beginRebuilds makes each projection that is a rebuild, and that no worker has brought before,
// follow the projection that it rebuilds. It may have a checkpoint already: an operator has set it to a position.
func (s *Store) beginRebuilds(ctx context.Context, tx *sql.Tx, names []string, stream string) error {
	ordered, err := s.strings(ctx, tx, orderedSQL, sqltext.Values{"names": sqltext.JSON{Value: names}})
	if err != nil {
		return fmt.Errorf("look for orders about %v: %w", names, err)
	}
	for _, name := range ordered {
		if s.rebuilds[name] != "" {
			continue
		}
		if _, err := s.exec(ctx, tx, claimSQL, sqltext.Values{"projection": name}); err != nil {
			return fmt.Errorf("write that projection %q follows no other one: %w", name, err)
		}
	}
	rebuilds := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return s.rebuilds[name] == "" })
	if len(rebuilds) == 0 {
		return nil
	}
	fresh, err := s.strings(ctx, tx, newRebuildsSQL, sqltext.Values{"names": sqltext.JSON{Value: rebuilds}})
	if err != nil {
		return fmt.Errorf("look for rebuilds that begin: %w", err)
	}
	for _, name := range fresh {
		if err := s.follow(ctx, tx, name, s.rebuilds[name], stream); err != nil {
			return err
		}
	}
	return s.checkRebuilds(ctx, tx)
}

// checkRebuilds returns a FollowError if one of the rebuilds has run as a projection of
// its own.
func (s *Store) checkRebuilds(ctx context.Context, tx *sql.Tx) error {
	type row struct {
		Name string `json:"name"`
		Live string `json:"live"`
	}
	var rows []row
	for name, live := range s.rebuilds {
		rows = append(rows, row{name, live})
	}
	var name string
	err := s.row(ctx, tx, independentSQL, sqltext.Values{"rebuilds": sqltext.JSON{Value: rows}}, &name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for what rebuilds follow: %w", err)
	}
	return &FollowError{name, s.rebuilds[name], "it has checkpoints as a projection of its own, which follows no other one; give the rebuild another name, or leave RebuildOf out"}
}

// follow makes a projection that starts follow the live one that it rebuilds.
func (s *Store) follow(ctx context.Context, tx *sql.Tx, projection, live, stream string) error {
	refuse := func(why string, args ...any) error {
		return &FollowError{projection, live, fmt.Sprintf(why, args...)}
	}
	var follows, other string
	var retired, has bool
	err := s.row(ctx, tx, liveSQL, sqltext.Values{"live": live}, &follows, &retired, &other, &has)
	switch {
	case errors.Is(err, sql.ErrNoRows) || err == nil && !has && !retired:
		return refuse("projection %q has never run with these tables; start it first, or, if there is nothing to replace, leave RebuildOf out", live)
	case err != nil:
		return fmt.Errorf("look for projection %q: %w", live, err)
	case retired:
		return refuse("%q was retired; leave RebuildOf out", live)
	case follows != "":
		return refuse("%q is not the live version, %q is", live, follows)
	case other != "" && stream != "" && other != stream:
		return refuse("%q reads the events of %s, but this one would read those of %s", live, other, stream)
	}
	if _, err := s.exec(ctx, tx, followSQL, sqltext.Values{"projection": projection, "live": live}); err != nil {
		return fmt.Errorf("make projection %q follow %q: %w", projection, live, err)
	}
	return nil
}

// Misnamed reports whether an error is a FollowError or a RetiredError.
func Misnamed(err error) bool {
	var follow *FollowError
	var retired *RetiredError
	return errors.As(err, &follow) || errors.As(err, &retired)
}
