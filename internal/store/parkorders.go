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

// Orders to park an event. protocol/lane_ordered.go has what a lane does about them.
//
// An order ends with the statement that parks its event, or when its lane ends it, or,
// for every reader, once the checkpoints show that its lane is past the event: a lane
// that makes progress does not load orders. It also ends a day after it was given, so that a
// forgotten order parks nothing.

const (
	// pastText is true if every lane that may have the event of order o is past it. Without
	// the condition on the slot, one partition that lags would keep the order open.
	pastText = `NOT EXISTS (SELECT FROM orchestrator_checkpoints c
                             WHERE c.projection = o.projection AND (o.slot IS NULL OR (o.slot % c.total) = c.partition) AND c.position < o.position)`
	// lateText is true if order o was given more than a day ago.
	lateText = `o.ordered_at < ({clock} - interval '1 day')`
	// parkOrderText is the outcome of order o; '' if it is still open.
	parkOrderText = `CASE WHEN o.ended_at IS NOT NULL THEN coalesce(o.outcome, '')
            WHEN ` + pastText + ` THEN {past} WHEN ` + lateText + ` THEN {late} ELSE '' END`

	// parkOrdersText ends a statement that reads rows of parked events. It adds the open
	// orders that may be the lane's: those of its slots, and those without a slot yet.
	parkOrdersText = `
 UNION ALL
SELECT o.position, coalesce(o.slot, -1), '', 0, o.ordered_at, 'park', o.number
  FROM orchestrator_park_orders o
 WHERE o.projection = {projection} AND o.ended_at IS NULL AND (o.slot IS NULL OR (o.slot % {total}) = {partition}) AND NOT (` + lateText + `)
 ORDER BY 1`
)

// late is the outcome of an order that was not carried out for a day.
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

// Locate writes the slot of its event into an order, if the lane's generation is the newest.
func (s *Store) Locate(ctx context.Context, l Lane, number int64, slot int) error {
	return s.fenced(ctx, fmt.Sprintf("write the slot of order %d of %s", number, l), locateSQL, func(form) sqltext.Values {
		values := l.values()
		values["number"], values["slot"] = number, int32(slot)
		return values
	})
}

// Lapse ends an open order without effect; why is the reason.
func (s *Store) Lapse(ctx context.Context, l Lane, number int64, why string) error {
	return s.fenced(ctx, fmt.Sprintf("end order %d of %s", number, l), lapseSQL, func(f form) sqltext.Values {
		values := l.values()
		values["number"], values["outcome"] = number, errorText(why, f != asIs)
		return values
	})
}

var (
	// What is known of a projection and a position, before an order is given. The last column
	// is the highest position that a worker of the set has reported; 0 if none has.
	parkFactsSQL = sqltext.New(`
SELECT s.generation, coalesce(p.replica_set, ''), coalesce(p.retired, false),
       EXISTS (SELECT FROM orchestrator_parked e WHERE e.projection = {projection} AND e.position = {position}),
       coalesce((SELECT min(c.position) FROM orchestrator_checkpoints c WHERE c.projection = {projection}), -1),
       coalesce((SELECT max(c.position) FROM orchestrator_checkpoints c WHERE c.projection = {projection}), -1),
       coalesce((SELECT max((r.report ->> 'head')::bigint) FROM orchestrator_reports r
                   JOIN orchestrator_workers w ON w.replica_set = r.replica_set AND w.id = r.worker WHERE r.replica_set = {set}), 0)
  FROM orchestrator_replica_sets s
  LEFT JOIN orchestrator_projections p ON p.name = {projection}
 WHERE s.name = {set}`)
	// Orders that another session has locked are left to it: two sweeps never wait for each
	// other.
	sweepOrdersSQL = sqltext.New(`
UPDATE orchestrator_park_orders o SET ended_at = {clock}, outcome = ` + parkOrderText + `
 WHERE o.number = ANY (SELECT w.number FROM orchestrator_park_orders w WHERE w.ended_at IS NULL FOR UPDATE SKIP LOCKED)
   AND o.ended_at IS NULL AND (` + pastText + ` OR ` + lateText + `)`)
	forgetOrdersSQL = sqltext.New(`
DELETE FROM orchestrator_park_orders
 WHERE replica_set = {set} AND ended_at IS NOT NULL
   AND number < (SELECT min(k.number) FROM (
       SELECT number FROM orchestrator_park_orders WHERE replica_set = {set} ORDER BY number DESC LIMIT {limit}) k)`)
	// ON CONFLICT: of two operators that order the same event at once, one gets the other's
	// order.
	orderParkSQL = sqltext.New(`
INSERT INTO orchestrator_park_orders (replica_set, generation, projection, position, ordered_by, ordered_at)
VALUES ({set}, {generation}, {projection}, {position}, {by}, {clock})
    ON CONFLICT (projection, position) WHERE ended_at IS NULL DO NOTHING
RETURNING number`)
	waitingOrderSQL = sqltext.New(`
SELECT number FROM orchestrator_park_orders WHERE projection = {projection} AND position = {position} AND ended_at IS NULL`)
)

// parkOrdersKept is about how many ended orders of a set are kept.
const parkOrdersKept = 1000

// OrderPark gives an order to park the event at a position, and returns its number, or that
// of the one that is open already. It returns ErrRejected if the order can't have an effect; for
// the rest the lane decides.
func (s *Store) OrderPark(ctx context.Context, projection string, position int64, by string) (number int64, err error) {
	values := sqltext.Values{"projection": projection, "position": position, "by": by, "limit": parkOrdersKept}
	var generation, first, last, head int64
	var set string
	var retired, parked bool
	err = s.row(ctx, s.db, parkFactsSQL, values, &generation, &set, &retired, &parked, &first, &last, &head)
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && generation == 0:
		return 0, fmt.Errorf("%w: no worker of replica set %q has ever run", ErrRejected, s.set)
	case err != nil:
		return 0, fmt.Errorf("read the position of projection %q: %w", projection, err)
	}
	if problem := parkProblem(s.set, set, projection, position, retired, parked, first, last, head); problem != "" {
		return 0, fmt.Errorf("%w: %s", ErrRejected, problem)
	}
	if _, err = s.exec(ctx, s.db, sweepOrdersSQL, outcomes(sqltext.Values{})); err == nil {
		_, err = s.exec(ctx, s.db, forgetOrdersSQL, values)
	}
	if err != nil {
		return 0, fmt.Errorf("end orders to park that are over: %w", err)
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

// parkProblem returns why an order can't have an effect; "" if the lane decides.
func parkProblem(set, belongs, projection string, position int64, retired, parked bool, first, last, head int64) string {
	switch {
	case belongs == "":
		return fmt.Sprintf("there is no projection %q", projection)
	case belongs != set:
		return fmt.Sprintf("projection %q belongs to replica set %q, not to %q", projection, belongs, set)
	case retired:
		return fmt.Sprintf("projection %q was retired, and handles no events any more", projection)
	case parked:
		return fmt.Sprintf("event %d of projection %q is already parked", position, projection)
	case first < 0:
		return fmt.Sprintf("projection %q has not run yet", projection)
	case position <= first:
		return fmt.Sprintf("projection %q is not at position %d: it is past that, at %d", projection, position, first)
	case head > 0 && position > max(head, last):
		return fmt.Sprintf("projection %q is not at position %d: the event stream was last seen to end at %d", projection, position, head)
	}
	return ""
}

// A ParkOrder is a row for people. Outcome is "" while the order is open, "parked", or the
// reason why the order has had no effect.
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
	// ParkOrdersSQL lists the orders of a set since a generation, the newest first.
	ParkOrdersSQL = sqltext.New(parkOrderColumns + ` WHERE o.replica_set = {set} AND o.generation >= {generation} ORDER BY o.number DESC LIMIT {limit}`)
	// WaitingOrdersSQL lists the open orders for projections of a set, also those from when a
	// projection was another set's: they go with the projection, as parked events do.
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

// ParkOrder returns an order, of any set; sql.ErrNoRows if there is none of that number.
func (s *Store) ParkOrder(ctx context.Context, number int64) (ParkOrder, error) {
	values := outcomes(sqltext.Values{"number": number})
	return ScanParkOrder(func(to ...any) error { return s.row(ctx, s.db, parkOrderSQL, values, to...) })
}
