package store

import (
	"cmp"
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

// Promotions and the end of projections. A projection takes the place of the live one in one
// transaction, together with the program's own SQL, behind the same locks as any other change of
// the replica set. It must never do so while a commit of the live one can still come.

// A ProjectionVersion is one version of a projection, and its state.
type ProjectionVersion struct {
	Name, ReplicaSet string
	Follows          string // the live version; "" if this is the live one
	Followed         bool   // another one that is not retired follows it
	Replaced         bool   // a retired one follows it
	Retired          bool
	Stream           string
	Workers          []string // whose programs have it
	protocol.Standing
}

var (
	versionsSQL = sqltext.New(`
SELECT l.name, l.replica_set, coalesce(l.follows, ''), l.retired, coalesce(s.events_table, ''),
       EXISTS (SELECT FROM orchestrator_projections o WHERE o.follows = l.name AND NOT o.retired),
       EXISTS (SELECT FROM orchestrator_projections o WHERE o.follows = l.name AND o.retired),
       coalesce(s.paused ? l.name OR s.paused ? '', false),
       coalesce(s.holds ? l.name, false),
       coalesce(s.rewinds ? l.name, false),
       coalesce(` + stoppedText + `, false),
       coalesce((SELECT jsonb_agg(w.id ORDER BY w.seq) FROM orchestrator_workers w
                  WHERE w.replica_set = l.replica_set AND w.projections ? l.name AND NOT w.vacant), '[]'),
       coalesce((SELECT jsonb_agg(jsonb_build_object('partition', c.partition, 'total', c.total, 'position', c.position, 'ahead', c.ahead) ORDER BY c.partition)
                   FROM orchestrator_checkpoints c WHERE c.projection = l.name), '[]')
  FROM orchestrator_projections l LEFT JOIN orchestrator_replica_sets s ON s.name = l.replica_set
 WHERE l.name = ANY (SELECT jsonb_array_elements_text({names}))` + onPrimary)

	parkedAloneSQL = sqltext.New(`
SELECT count(*), coalesce(min(p.position), 0) FROM orchestrator_parked p
 WHERE p.projection = {projection} AND NOT EXISTS (
       SELECT FROM orchestrator_parked o WHERE o.projection = {live} AND o.position = p.position)`)
	countParkedSQL = sqltext.New(`SELECT count(*) FROM orchestrator_parked WHERE projection = {projection}`)

	// In the order in which workers lock: sets, projections, checkpoints. FOR UPDATE of the set: no
	// generation is opened or activated before the promotion has committed.
	lockSetsSQL = sqltext.New(`
SELECT paused, holds, name FROM orchestrator_replica_sets
 WHERE name = ANY (SELECT jsonb_array_elements_text({names})) ORDER BY name FOR UPDATE`)
	lockLayoutsSQL = sqltext.New(`
SELECT partition FROM orchestrator_checkpoints
 WHERE projection = ANY (SELECT jsonb_array_elements_text({names})) ORDER BY projection, partition FOR UPDATE`)

	promoteSQL = sqltext.New(`
UPDATE orchestrator_projections
   SET follows = CASE WHEN name <> {projection} THEN {projection} END,
       replaced = (name = {live} OR (replaced AND name <> {projection}))
 WHERE name = {projection} OR name = {live} OR follows = {live}`)
	stayPausedSQL = sqltext.New(`
UPDATE orchestrator_replica_sets SET paused = {paused}, holds = {holds}, rewinds = (rewinds - {live}) WHERE name = {of}`)
	// A commit of the live one that is still under way can't match: no generation is negative.
	fenceProjectionSQL = sqltext.New(`
UPDATE orchestrator_checkpoints SET generation = -abs(generation) WHERE projection = {live}`)

	retireSQL            = sqltext.New(`UPDATE orchestrator_projections SET retired = true WHERE name = {live}`)
	dropParkedOfSQL      = sqltext.New(`DELETE FROM orchestrator_parked WHERE projection = {live}`)
	dropCheckpointsOfSQL = sqltext.New(`DELETE FROM orchestrator_checkpoints WHERE projection = {live}`)
)

// Versions returns the state of projections, by name. One that does not exist is not in the
// result.
func Versions(ctx context.Context, t Tables, names ...string) (map[string]*ProjectionVersion, error) {
	return New(t.DB, "", Options{Schema: t.Schema}).versions(ctx, t.DB, names)
}

func (s *Store) versions(ctx context.Context, q dbconn.Querier, names []string) (map[string]*ProjectionVersion, error) {
	all := map[string]*ProjectionVersion{}
	rows, err := s.query(ctx, q, versionsSQL, sqltext.Values{"names": sqltext.JSON{Value: names}})
	if err != nil {
		return nil, fmt.Errorf("look for projections %v: %w", names, err)
	}
	defer rows.Close()
	for rows.Next() {
		var v ProjectionVersion
		var workers, checkpoints string
		err := rows.Scan(&v.Name, &v.ReplicaSet, &v.Follows, &v.Retired, &v.Stream, &v.Followed, &v.Replaced, &v.Paused, &v.Held, &v.Rewinding, &v.Stopped, &workers, &checkpoints)
		if err == nil {
			row := RowOf("workers", v.ReplicaSet)
			v.Workers, err = Strings[string](row, "id", workers), row.Err
		}
		if err == nil {
			v.Checkpoints, err = layoutOf(v.Name, checkpoints)
		}
		if err != nil {
			return nil, fmt.Errorf("look for projections %v: %w", names, err)
		}
		all[v.Name] = &v
	}
	return all, rows.Err()
}

// A NotYetError is returned if a projection can't take the place of the live one at this
// moment. Trying again may help.
type NotYetError struct{ Why string }

func (e *NotYetError) Error() string { return e.Why }

// Ready returns what keeps a projection from taking the place of the live one; nil if nothing
// does, except perhaps parked events.
func Ready(next, live *ProjectionVersion) error {
	notYet := func(why string, args ...any) error { return &NotYetError{fmt.Sprintf(why, args...)} }
	switch why, lacks := protocol.Ready(next.Standing, live.Standing); why {
	case protocol.LiveRuns:
		return notYet("%s is not held any more", live.Name)
	case protocol.LiveGoesOn:
		return notYet("%s has not stopped on all workers of replica set %s (%s)", live.Name, live.ReplicaSet, strings.Join(live.Workers, ", "))
	case protocol.LiveRewinding:
		return notYet("a rewind of %s is due first", live.Name)
	case protocol.NextRewinding:
		return notYet("a rewind of %s is due first", next.Name)
	case protocol.NextAhead:
		return notYet("%s is ahead of %s, by %d positions, since one of them was rewound: let %[2]s get there, or rewind %[1]s as well", next.Name, live.Name, lacks)
	case protocol.NextLacks:
		return notYet("%s is %d positions behind %s", next.Name, lacks, live.Name)
	}
	return nil
}

// Promote lets a projection take the place of the live one that it follows, together with
// SQL of the program's own. The live one is held, and stays paused. It returns how many
// events of the live one are parked; and a NotYetError, or ErrRejected, where nothing was
// changed.
func Promote(ctx context.Context, t Tables, projection, live, script string) (parked int, err error) {
	return New(t.DB, "", Options{Schema: t.Schema}).Promote(ctx, projection, live, script)
}

// Promote is Promote with the store's bounds, if it has any.
func (s *Store) Promote(ctx context.Context, projection, live, script string) (parked int, err error) {
	names := []string{projection, live}
	err = promotion(ctx, s, script, func(tx *dbconn.Tx) error {
		all, sets, err := s.lockVersions(ctx, tx, names)
		if err != nil {
			return err
		}
		next, old := all[projection], all[live]
		switch {
		case next == nil || old == nil || next.Follows != live || old.Follows != "":
			return fmt.Errorf("%w: %q does not follow %q any more", ErrRejected, projection, live)
		case sets[old.ReplicaSet] == nil || sets[next.ReplicaSet] == nil:
			return &NotYetError{"another replica set has taken one of them over"}
		}
		if err := Ready(next, old); err != nil {
			return err
		}
		var alone int
		var first int64
		values := sqltext.Values{"projection": projection, "live": live}
		if err := s.row(ctx, tx, parkedAloneSQL, values, &alone, &first); err != nil {
			return fmt.Errorf("look for parked events: %w", err)
		}
		if alone > 0 {
			return fmt.Errorf("%w: %d events are parked of %q that %q has handled, the first at position %d: readers would see the read model go back; retry or discard them first", ErrRejected, alone, projection, live, first)
		}
		if err := s.row(ctx, tx, countParkedSQL, sqltext.Values{"projection": live}, &parked); err != nil {
			return fmt.Errorf("look for parked events: %w", err)
		}
		set := sets[old.ReplicaSet]
		i, is := slices.BinarySearch(set.Paused, live)
		if !is {
			set.Paused = slices.Insert(set.Paused, i, live)
		}
		if err := s.stayPaused(ctx, tx, set, old.ReplicaSet, live); err != nil {
			return err
		}
		for _, statement := range []sqltext.Statement{promoteSQL, fenceProjectionSQL} {
			if _, err := s.exec(ctx, tx, statement, values); err != nil {
				return fmt.Errorf("write that %q is live: %w", projection, err)
			}
		}
		return nil
	})
	return parked, err
}

// stayPaused writes what is paused in a set that is locked, and removes holds and rewinds of the
// projection.
func (s *Store) stayPaused(ctx context.Context, tx *dbconn.Tx, g *protocol.Group, set, projection string) error {
	g.Holds = slices.DeleteFunc(g.Holds, func(h protocol.Hold) bool { return h.Projection == projection })
	_, err := s.exec(ctx, tx, stayPausedSQL, sqltext.Values{
		"paused": sqltext.JSON{Value: append([]string{}, g.Paused...)}, "holds": sqltext.JSON{Value: encodeHolds(g.Holds)}, "live": projection, "of": set,
	})
	if err != nil {
		return fmt.Errorf("write what is paused in replica set %q: %w", set, err)
	}
	return nil
}

// lockVersions locks the projections, their replica sets and their checkpoints, and returns
// their state: no other transaction changes any of it before this one ends.
func (s *Store) lockVersions(ctx context.Context, tx *dbconn.Tx, names []string) (map[string]*ProjectionVersion, map[string]*protocol.Group, error) {
	all, err := s.versions(ctx, tx, names)
	if err != nil {
		return nil, nil, err
	}
	var of []string
	for _, v := range all {
		of = append(of, v.ReplicaSet)
	}
	sets := map[string]*protocol.Group{}
	rows, err := s.query(ctx, tx, lockSetsSQL, sqltext.Values{"names": sqltext.JSON{Value: append([]string{}, of...)}})
	if err != nil {
		return nil, nil, fmt.Errorf("lock the replica sets of %v: %w", names, err)
	}
	defer rows.Close()
	for rows.Next() {
		var paused, holds, name string
		if err := rows.Scan(&paused, &holds, &name); err != nil {
			return nil, nil, err
		}
		row := RowOf("replica_sets", name)
		sets[name] = &protocol.Group{Paused: Strings[string](row, "paused", paused), Holds: holdsOf(row.Positions("holds", holds))}
		if row.Err != nil {
			return nil, nil, row.Err
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, nil, fmt.Errorf("lock the replica sets of %v: %w", names, err)
	}
	sorted := slices.Sorted(slices.Values(names))
	for _, statement := range []sqltext.Statement{lockProjectionsSQL, lockLayoutsSQL} {
		if _, err := s.exec(ctx, tx, statement, sqltext.Values{"names": sqltext.JSON{Value: sorted}}); err != nil {
			return nil, nil, fmt.Errorf("lock projections %v: %w", names, err)
		}
	}
	// Once more, in a statement of its own: it sees what was committed while this transaction has
	// waited for locks.
	all, err = s.versions(ctx, tx, names)
	return all, sets, err
}

// promotion runs the program's own SQL, and then f, in one transaction. The SQL comes first: while
// it waits, no lock of the library's is held.
func promotion(ctx context.Context, s *Store, script string, f func(*dbconn.Tx) error) error {
	tx, err := dbconn.Begin(ctx, s.db, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	return tx.During(ctx, func() error {
		bounds := sqltext.Values{"idle": millis(cmp.Or(s.bounds.Idle, promotionIdle)), "lock": millis(cmp.Or(s.bounds.Lock, promotionLock))}
		if _, err := s.exec(ctx, tx, boundTransactionSQL, bounds); err != nil {
			return fmt.Errorf("bound the transaction: %w", err)
		}
		if script != "" {
			if err := RunScript(ctx, tx, script); err != nil {
				return &ScriptError{err}
			}
			if _, err := s.exec(ctx, tx, boundTransactionSQL, bounds); err != nil { // the SQL may have set others
				return fmt.Errorf("bound the transaction: %w", err)
			}
		}
		if err := f(tx); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return &UnclearError{err}
		}
		return nil
	})
}

const (
	promotionIdle = protocol.HoldFor / 2
	promotionLock = 3 * time.Second
)

// A ScriptError is the error of the program's own SQL.
type ScriptError struct{ Err error }

func (e *ScriptError) Error() string {
	if errors.Is(e.Err, ErrScriptEnds) {
		return fmt.Sprintf("the SQL %v", e.Err)
	}
	return fmt.Sprintf("the SQL failed: %v (nothing of it has happened)", e.Err)
}

// Unwrap returns the database's error.
func (e *ScriptError) Unwrap() error { return e.Err }

// An UnclearError is returned if it is not known whether a transaction has committed.
type UnclearError struct{ Err error }

func (e *UnclearError) Error() string {
	return fmt.Sprintf("commit, which may have happened or not: %v", e.Err)
}

// Unwrap returns the database's error.
func (e *UnclearError) Unwrap() error { return e.Err }

// Retire deletes the checkpoints and parked events of a projection that no worker runs and no
// other one follows, and marks it as retired.
func Retire(ctx context.Context, t Tables, projection string) error {
	return New(t.DB, "", Options{Schema: t.Schema}).Retire(ctx, projection)
}

// Retire is Retire with the store's bounds, if it has any.
func (s *Store) Retire(ctx context.Context, projection string) error {
	return promotion(ctx, s, "", func(tx *dbconn.Tx) error {
		all, sets, err := s.lockVersions(ctx, tx, []string{projection})
		if err != nil {
			return err
		}
		v := all[projection]
		switch {
		case v == nil:
			return fmt.Errorf("%w: there is no projection %q", ErrRejected, projection)
		case v.Retired:
			return nil
		case v.Followed:
			return fmt.Errorf("%w: %q is the live version, and others follow it; promote one of them first, or retire them", ErrRejected, projection)
		case len(v.Workers) > 0:
			return fmt.Errorf("%w: worker %s of replica set %q still has projection %q; remove it from the program first", ErrRejected, v.Workers[0], v.ReplicaSet, projection)
		}
		if set := sets[v.ReplicaSet]; set != nil {
			set.Paused = slices.DeleteFunc(set.Paused, func(name string) bool { return name == projection })
			if err := s.stayPaused(ctx, tx, set, v.ReplicaSet, projection); err != nil {
				return err
			}
		}
		for _, statement := range []sqltext.Statement{dropParkedOfSQL, dropCheckpointsOfSQL, retireSQL} {
			if _, err := s.exec(ctx, tx, statement, sqltext.Values{"live": projection}); err != nil {
				return fmt.Errorf("remove what is left of projection %q: %w", projection, err)
			}
		}
		return nil
	})
}
