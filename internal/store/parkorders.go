package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Orders to park an event: protocol/lane_ordered.go says what a lane does about them.
//
// One that waits ends with the statement that parks its event, or by its lane's word, or,
// for whoever reads it, when the checkpoints say that its lane is past the event: a lane
// that gets on does not look at orders. And a day after it was given, so that none that was
// forgotten parks anything.

const (
	// pastText is whether nothing can come of an order o any more.
	pastText = `NOT EXISTS (SELECT FROM orchestrator_checkpoints c
                             WHERE c.projection = o.projection AND (o.slot IS NULL OR (o.slot % c.total) = c.partition) AND c.position < o.position)`
	// lateText is whether it was given long ago.
	lateText = `o.ordered_at < ({clock} - interval '1 day')`
	// parkOrderText is what has become of it; '': it waits.
	parkOrderText = `CASE WHEN o.ended_at IS NOT NULL THEN coalesce(o.outcome, '')
            WHEN ` + pastText + ` THEN {past} WHEN ` + lateText + ` THEN {late} ELSE '' END`

	// parkOrdersText ends a statement that reads rows of parked events.
	parkOrdersText = `
 UNION ALL
SELECT o.position, coalesce(o.slot, -1), '', 0, o.ordered_at, 'park', o.number
  FROM orchestrator_park_orders o
 WHERE o.projection = {projection} AND o.ended_at IS NULL AND (o.slot IS NULL OR (o.slot % {total}) = {partition}) AND NOT (` + lateText + `)
 ORDER BY 1`
)

// late is why nothing comes of an order that was not carried out for a day.
const late = "no worker has carried the order out for a day"

func outcomes(v sqltext.Values) sqltext.Values {
	v["past"], v["late"] = protocol.Past, late
	return v
}

var (
	locateSQL = sqltext.New(fenceSQL + `,
located AS (
    UPDATE orchestrator_park_orders o SET slot = {slot} FROM fence WHERE o.number = {number} AND o.projection = fence.projection)
SELECT count(*) FROM fence`)
	lapseSQL = sqltext.New(fenceSQL + `,
ended AS (
    UPDATE orchestrator_park_orders o SET ended_at = {clock}, outcome = {outcome}
      FROM fence WHERE o.number = {number} AND o.projection = fence.projection AND o.ended_at IS NULL)
SELECT count(*) FROM fence`)
)

// Locate has an order say of which slot its event is.
func (s *Store) Locate(ctx context.Context, l Lane, number int64, slot int) error {
	return s.fenced(ctx, fmt.Sprintf("note whose event order %d of %s is about", number, l), locateSQL, func(form) sqltext.Values {
		values := l.values()
		values["number"], values["slot"] = number, int32(slot)
		return values
	})
}

// Lapse ends an order, if it waits, with why nothing comes of it.
func (s *Store) Lapse(ctx context.Context, l Lane, number int64, why string) error {
	return s.fenced(ctx, fmt.Sprintf("end order %d of %s", number, l), lapseSQL, func(f form) sqltext.Values {
		values := l.values()
		values["number"], values["outcome"] = number, errorText(why, f != asIs)
		return values
	})
}

var (
	// What is known of a projection and a position, before an order is given. head: the
	// highest position that a worker of the set has reported; 0: none can tell.
	parkFactsSQL = sqltext.New(`
SELECT s.generation, coalesce(p.replica_set, ''),
       EXISTS (SELECT FROM orchestrator_parked e WHERE e.projection = {projection} AND e.position = {position}),
       coalesce((SELECT min(c.position) FROM orchestrator_checkpoints c WHERE c.projection = {projection}), -1),
       coalesce((SELECT max(c.position) FROM orchestrator_checkpoints c WHERE c.projection = {projection}), -1),
       coalesce((SELECT max((r.report ->> 'head')::bigint) FROM orchestrator_reports r
                   JOIN orchestrator_workers w ON w.replica_set = r.replica_set AND w.id = r.worker WHERE r.replica_set = {set}), 0)
  FROM orchestrator_replica_sets s
  LEFT JOIN orchestrator_projections p ON p.name = {projection}
 WHERE s.name = {set}`)
	sweepOrdersSQL = sqltext.New(`
UPDATE orchestrator_park_orders o SET ended_at = {clock}, outcome = ` + parkOrderText + `
 WHERE o.number = ANY (SELECT w.number FROM orchestrator_park_orders w WHERE w.ended_at IS NULL FOR UPDATE SKIP LOCKED)
   AND o.ended_at IS NULL AND (` + pastText + ` OR ` + lateText + `)`)
	forgetOrdersSQL = sqltext.New(`
DELETE FROM orchestrator_park_orders
 WHERE replica_set = {set} AND ended_at IS NOT NULL
   AND number < (SELECT min(k.number) FROM (
       SELECT number FROM orchestrator_park_orders WHERE replica_set = {set} ORDER BY number DESC LIMIT {limit}) k)`)
	orderParkSQL = sqltext.New(`
INSERT INTO orchestrator_park_orders (replica_set, generation, projection, position, ordered_by, ordered_at)
VALUES ({set}, {generation}, {projection}, {position}, {by}, {clock})
    ON CONFLICT (projection, position) WHERE ended_at IS NULL DO NOTHING
RETURNING number`)
	waitingOrderSQL = sqltext.New(`
SELECT number FROM orchestrator_park_orders WHERE projection = {projection} AND position = {position} AND ended_at IS NULL`)
)

// parkOrdersKept is about how many orders of a set are kept when they have ended.
const parkOrdersKept = 1000

// OrderPark gives an order to park the event at a position, and returns its number, or that
// of the one that waits already. It is refused, with ErrRejected, where nothing can come of
// it; for the rest the lane decides.
func (s *Store) OrderPark(ctx context.Context, projection string, position int64, by string) (number int64, err error) {
	values := sqltext.Values{"projection": projection, "position": position, "by": by, "limit": parkOrdersKept}
	var generation, first, last, head int64
	var set string
	var parked bool
	err = s.row(ctx, s.db, parkFactsSQL, values, &generation, &set, &parked, &first, &last, &head)
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && generation == 0:
		return 0, fmt.Errorf("%w: no worker of replica set %q has ever run", ErrRejected, s.set)
	case err != nil:
		return 0, fmt.Errorf("look where projection %q stands: %w", projection, err)
	}
	if problem := parkProblem(s.set, set, projection, position, parked, first, last, head); problem != "" {
		return 0, fmt.Errorf("%w: %s", ErrRejected, problem)
	}
	if _, err = s.exec(ctx, s.db, sweepOrdersSQL, outcomes(sqltext.Values{})); err == nil {
		_, err = s.exec(ctx, s.db, forgetOrdersSQL, values)
	}
	if err != nil {
		return 0, fmt.Errorf("end what is over of the orders to park: %w", err)
	}
	values["generation"] = generation
	for range 3 { // another one may be given, and end, between the two statements
		for _, statement := range []sqltext.Statement{waitingOrderSQL, orderParkSQL} {
			if err = s.row(ctx, s.db, statement, values, &number); !errors.Is(err, sql.ErrNoRows) {
				return number, err
			}
		}
	}
	return 0, err
}

// parkProblem says why nothing can come of an order; "": the lane decides.
func parkProblem(set, belongs, projection string, position int64, parked bool, first, last, head int64) string {
	switch {
	case belongs == "":
		return fmt.Sprintf("there is no projection %q", projection)
	case belongs != set:
		return fmt.Sprintf("projection %q belongs to replica set %q, and not to %q", projection, belongs, set)
	case parked:
		return fmt.Sprintf("event %d of projection %q is parked already", position, projection)
	case first < 0:
		return fmt.Sprintf("projection %q has not run yet", projection)
	case position <= first:
		return fmt.Sprintf("projection %q does not stand at position %d: it is past that, at %d", projection, position, first)
	case head > 0 && position > max(head, last):
		return fmt.Sprintf("projection %q does not stand at position %d: the event stream was last seen to end at %d", projection, position, head)
	}
	return ""
}

// A ParkOrder is a row for people. Outcome: "": it waits; "parked"; or why nothing came of it.
type ParkOrder struct {
	Number, Generation, Position int64
	ReplicaSet, Projection, By   string
	OrderedAt                    time.Time
	EndedAt                      *time.Time
	Outcome                      string
}

const parkOrderColumns = `
SELECT o.number, o.generation, o.position, o.replica_set, o.projection, o.ordered_by, o.ordered_at, o.ended_at, ` + parkOrderText + `
  FROM orchestrator_park_orders o`

var (
	parkOrderSQL = sqltext.New(parkOrderColumns + ` WHERE o.number = {number}`)
	// ParkOrdersSQL are those of a set, since a generation: the newest first.
	ParkOrdersSQL = sqltext.New(parkOrderColumns + ` WHERE o.replica_set = {set} AND o.generation >= {generation} ORDER BY o.number DESC LIMIT {limit}`)
	// WaitingOrdersSQL are those that may wait for a projection of a set, also from when it
	// was another set's: they go with the projection, as parked events do.
	WaitingOrdersSQL = sqltext.New(parkOrderColumns + `
  JOIN orchestrator_projections p ON p.name = o.projection
 WHERE p.replica_set = {set} AND o.ended_at IS NULL ORDER BY o.number`)
)

// ParkOrderValues completes the values of these statements.
func ParkOrderValues(v sqltext.Values) sqltext.Values { return outcomes(v) }

// ScanParkOrder reads a row of these statements.
func ScanParkOrder(scan func(...any) error) (o ParkOrder, err error) {
	err = scan(&o.Number, &o.Generation, &o.Position, &o.ReplicaSet, &o.Projection, &o.By, &o.OrderedAt, &o.EndedAt, &o.Outcome)
	row := RowOf("park_orders", o.Number).Scanned(err)
	if err == nil {
		row.AtLeast("position", o.Position, 0).Time("ordered_at", o.OrderedAt)
		if o.EndedAt != nil {
			row.Time("ended_at", *o.EndedAt)
		}
	}
	return o, row.Err
}

// ParkOrder returns what has become of an order, whichever set's; sql.ErrNoRows: there is
// none.
func (s *Store) ParkOrder(ctx context.Context, number int64) (ParkOrder, error) {
	values := outcomes(sqltext.Values{"number": number})
	return ScanParkOrder(func(to ...any) error { return s.row(ctx, s.db, parkOrderSQL, values, to...) })
}
