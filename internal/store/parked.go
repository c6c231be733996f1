package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Parked events: the rows of the dead-letter queues. Only the lane that has their slots adds and
// deletes them, behind its fence; operators write the column request and nothing else. No row
// may ever be written or deleted under a generation that is not the newest.

// ErrNotParked is returned by Unpark if there is no such row: it has been
// deleted already, by a transaction whose outcome was not known.
var ErrNotParked = errors.New("the event is not parked")

var (
	// In a statement of its own, after the lane has found its checkpoint under
	// its generation: by then no other lane can add or delete rows of its slots.
	parkedSQL = sqltext.New(`
SELECT position, slot, aggregate_id, attempts, parked_at, coalesce(request, ''), 0::bigint
  FROM orchestrator_parked
 WHERE projection = {projection} AND (slot % {total}) = {partition}` + parkOrdersText)

	// requestsSQL is parkedSQL for the rows that have a request.
	requestsSQL = sqltext.New(`
SELECT position, slot, aggregate_id, attempts, parked_at, coalesce(request, ''), 0::bigint
  FROM orchestrator_parked
 WHERE projection = {projection} AND (slot % {total}) = {partition} AND request IS NOT NULL` + parkOrdersText)

	// The fence is that of Save. Without its moved,
	//  1. w1 is about to park 12, and freezes;
	//  2. w2 takes over, its handler succeeds at 12, it commits 12;
	//  3. w1 wakes up, and 12 is handled and parked.
	// ON CONFLICT: a row that is there already has the first failure, and stays.
	parkSQL = moveStatement{sqltext.New(fmt.Sprintf(parkText, moveText)), sqltext.New(fmt.Sprintf(parkText, markText))}

	// If no checkpoint is moved, the fence locks it: an activation waits for a statement that
	// has got that far, and a later statement finds another generation. Without the lock,
	//  1. w1 has checked the generation, and is about to delete the row of 12;
	//  2. another generation is activated, and w2 retries 12 as well;
	//  3. both have handled 12.
	unparkSQL = sqltext.New(`
WITH fence AS MATERIALIZED (
    SELECT c.projection FROM orchestrator_checkpoints c
     WHERE c.replica_set = {set} AND c.projection = {projection} AND c.partition = {partition} AND c.generation = {generation} AND ` + stillOpenText + ` FOR UPDATE),
gone AS (
    DELETE FROM orchestrator_parked p USING fence WHERE p.projection = fence.projection AND p.position = {position} RETURNING 1)
SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM gone)`)

	dropSQL = sqltext.New(fenceSQL + `,
gone AS (
    DELETE FROM orchestrator_parked p USING fence WHERE p.projection = fence.projection AND p.position = {position})
SELECT count(*) FROM fence`)

	// attempts: a note that comes late must not remove a later request.
	//  1. w1 notes a second attempt, and gets no answer;
	//  2. it notes it again, and that arrives;
	//  3. an operator asks for another retry;
	//  4. the first note arrives.
	// request <> 'retry': the note answers a retry only. If the event was ordered to be discarded
	// while it was retried, that request stays.
	noteSQL = sqltext.New(fenceSQL + `,
noted AS (
    UPDATE orchestrator_parked p SET attempts = {attempts}, error = {error}, request = CASE WHEN request <> 'retry' THEN request END
      FROM fence WHERE p.projection = fence.projection AND p.position = {position} AND p.attempts = ({attempts} - 1))
SELECT count(*) FROM fence`)

	// dropParkedAboveSQL is for a projection that is rewound: it will get these
	// events again. It runs in the activation, which has locked the checkpoints. Open orders
	// to park an event end: they were about the position from before.
	dropParkedAboveSQL = sqltext.New(`
WITH ended AS (
    UPDATE orchestrator_park_orders SET ended_at = {clock}, outcome = {outcome} WHERE projection = {projection} AND ended_at IS NULL)
DELETE FROM orchestrator_parked WHERE projection = {projection} AND position > {position}`)
)

const parkText = `
WITH moved AS (%s RETURNING projection),
added AS (
    INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at)
    SELECT moved.projection, x.position, x.slot, x.aggregate_id, x.error, x.attempts, {clock}
      FROM moved, jsonb_to_recordset({rows}) AS x (position bigint, slot integer, aggregate_id text, error text, attempts integer)
        ON CONFLICT DO NOTHING),
ended AS (
    UPDATE orchestrator_park_orders o SET ended_at = {clock}, outcome = 'parked', slot = x.slot
      FROM moved, jsonb_to_recordset({rows}) AS x (position bigint, slot integer)
     WHERE o.projection = moved.projection AND o.position = x.position AND o.ended_at IS NULL)
SELECT count(*) FROM moved`

const fenceSQL = `
WITH fence AS MATERIALIZED (
    SELECT projection FROM orchestrator_checkpoints
     WHERE replica_set = {set} AND projection = {projection} AND partition = {partition} AND generation = {generation} FOR UPDATE)`

// DropParkedAbove deletes the parked events of a projection above a position, to
// which it is rewound in the same transaction.
func (s *Store) DropParkedAbove(ctx context.Context, tx *sql.Tx, projection string, position int64) error {
	if _, err := s.exec(ctx, tx, dropParkedAboveSQL, sqltext.Values{"projection": projection, "position": position, "outcome": protocol.Past}); err != nil {
		return fmt.Errorf("delete the parked events of projection %s above %d: %w", projection, position, err)
	}
	return nil
}

// Parked returns the rows of the lane's slots, by position, and with them the orders to
// park an event (protocol.ToPark) that may be the lane's.
func (s *Store) Parked(ctx context.Context, l Lane) ([]protocol.Parked, error) {
	return s.parked(ctx, parkedSQL, l)
}

// Requested returns those of the rows that have a request, and the orders.
func (s *Store) Requested(ctx context.Context, l Lane) ([]protocol.Parked, error) {
	return s.parked(ctx, requestsSQL, l)
}

func (s *Store) parked(ctx context.Context, statement sqltext.Statement, l Lane) (parked []protocol.Parked, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the parked events of %s: %w", l, err)
		}
	}()
	rows, err := s.query(ctx, s.db, statement, l.values())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p protocol.Parked
		err := rows.Scan(&p.Position, &p.Slot, &p.Aggregate, &p.Attempts, &p.Since, &p.Request, &p.Order)
		table, least := "parked", int64(0)
		if p.Order != 0 {
			table, least = "park_orders", protocol.NoSlot
		}
		row := RowOf(table, l.Projection, p.Position).Scanned(err)
		if err == nil {
			row.AtLeast("position", p.Position, 0).Range("slot", int64(p.Slot), least, protocol.Slots-1).
				AtLeast("attempts", int64(p.Attempts), 0).Time("parked_at", p.Since)
		}
		if row.Err != nil {
			return nil, row.Err
		}
		parked = append(parked, p)
	}
	return parked, rows.Err()
}

// parkedRow is a row as the statement takes it.
type parkedRow struct {
	Position  int64  `json:"position"`
	Slot      int    `json:"slot"`
	Aggregate string `json:"aggregate_id"`
	Error     string `json:"error"`
	Attempts  int    `json:"attempts"`
}

// Park moves the lane's checkpoint as Save does, and parks events with it. failure is the
// error of those that have failed.
func (s *Store) Park(ctx context.Context, l Lane, from, to protocol.Checkpoint, parked []protocol.Parked, failure string) error {
	statement, move := parkSQL.of(l, from, to)
	return s.fenced(ctx, fmt.Sprintf("park events of %s at %d", l, to.Position), statement, func(f form) sqltext.Values {
		rows := make([]parkedRow, len(parked))
		for i, p := range parked {
			rows[i] = parkedRow{p.Position, p.Slot, p.Aggregate, "", p.Attempts}
			if f == allASCII {
				rows[i].Aggregate = protocol.ASCII(p.Aggregate)
			}
			if p.Attempts > 0 || p.Request == protocol.ToPark {
				rows[i].Error = errorText(failure, f != asIs)
			}
		}
		values := maps.Clone(move)
		values["rows"] = sqltext.JSON{Value: rows}
		return values
	})
}

// Unpark deletes a row in tx, which the caller commits at once. Like Commit it
// does so for this lane's generation only, and once.
func (s *Store) Unpark(ctx context.Context, tx *sql.Tx, l Lane, position int64) error {
	failed := func(err error) error {
		return fmt.Errorf("delete parked event %d of %s: %w", position, l, err)
	}
	if _, err := s.exec(ctx, tx, restoreSQL, nil); err != nil {
		return failed(err)
	}
	var fence, gone int
	values := l.values()
	values["position"] = position
	err := s.row(ctx, tx, unparkSQL, values, &fence, &gone)
	switch {
	case err != nil:
	case fence == 0:
		err = s.why(ctx, tx, ErrSuperseded)
	case gone == 0:
		err = ErrNotParked
	default:
		return nil
	}
	return failed(err)
}

// Drop deletes a row by itself, if it is there.
func (s *Store) Drop(ctx context.Context, l Lane, position int64) error {
	return s.fenced(ctx, fmt.Sprintf("drop parked event %d of %s", position, l), dropSQL, func(form) sqltext.Values {
		values := l.values()
		values["position"] = position
		return values
	})
}

// Note writes into a row that a retry has failed, which was the attempt of that
// number, and removes the request for a retry.
func (s *Store) Note(ctx context.Context, l Lane, position int64, attempts int, failure string) error {
	return s.fenced(ctx, fmt.Sprintf("write the failure of parked event %d of %s", position, l), noteSQL, func(f form) sqltext.Values {
		values := l.values()
		values["position"], values["attempts"], values["error"] = position, int32(attempts), errorText(failure, f != asIs)
		return values
	})
}

// A form is how a statement's texts are sent. If the database's encoding can't hold them, the
// text of an error is sent in ASCII, since no decision depends on it, and if
// that does not help, the aggregate's id as well, which a ParkedSet finds in either form.
type form int

const (
	asIs form = iota
	errorASCII
	allASCII
)

// fenced runs a statement that returns how many checkpoints its fence has found.
func (s *Store) fenced(ctx context.Context, what string, statement sqltext.Statement, values func(form) sqltext.Values) error {
	var n int
	var err error
	for f := asIs; f <= allASCII; f++ {
		if err = s.row(ctx, s.db, statement, values(f), &n); !Unstorable(err) {
			break
		}
	}
	if err == nil && n == 0 {
		err = ErrSuperseded
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// A ParkedRow is a row for people.
type ParkedRow struct {
	Position    int64
	AggregateID string
	Error       string
	Attempts    int
	ParkedAt    time.Time
	Request     string
}

var listParkedSQL = sqltext.New(`
SELECT position, aggregate_id, error, attempts, parked_at, coalesce(request, '')
  FROM orchestrator_parked WHERE projection = {projection} ORDER BY position LIMIT {limit}`)

// ListParked returns rows of a projection, by position.
func ListParked(ctx context.Context, t Tables, projection string, limit int) (out []ParkedRow, err error) {
	names, err := t.Locate(ctx)
	if err != nil {
		return nil, err
	}
	query, args := names.Bind(listParkedSQL, sqltext.Values{"projection": projection, "limit": limit})
	rows, err := dbconn.Query(ctx, t.DB, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r ParkedRow
		err := rows.Scan(&r.Position, &r.AggregateID, &r.Error, &r.Attempts, &r.ParkedAt, &r.Request)
		row := RowOf("parked", projection, r.Position).Scanned(err)
		if err == nil {
			row.Time("parked_at", r.ParkedAt)
		}
		if row.Err != nil {
			return nil, row.Err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// A ParkedSelection selects rows: those of Positions, or those of Aggregate; all if neither is
// set.
type ParkedSelection struct {
	Positions []int64
	Aggregate *string
}

// Statements that write a request into rows of some positions, of an aggregate, or into all.
var askPositionsSQL, askAggregateSQL, askAllSQL = askSQL(`AND position = ANY (SELECT jsonb_array_elements_text({positions})::bigint)`),
	askSQL(`AND (aggregate_id = {aggregate} OR aggregate_id = {ascii})`), askSQL(``)

func askSQL(which string) sqltext.Statement {
	return sqltext.New(`
WITH meant AS MATERIALIZED (SELECT position FROM orchestrator_parked WHERE projection = {projection} ` + which + ` ORDER BY position FOR UPDATE),
asked AS (
    UPDATE orchestrator_parked p SET request = {request} FROM meant WHERE p.projection = {projection} AND p.position = meant.position)
SELECT count(*) FROM meant`)
}

// AskParked writes a request into rows and returns how many were selected.
//
// They are locked in the order of positions, so that two calls at once don't deadlock.
// A lane that deletes one meanwhile is waited for.
func AskParked(ctx context.Context, t Tables, projection string, which ParkedSelection, request protocol.ParkRequest) (n int, err error) {
	names, err := t.Locate(ctx)
	if err != nil {
		return 0, err
	}
	ask := func(statement sqltext.Statement, values sqltext.Values) (n int, err error) {
		values["projection"], values["request"] = projection, string(request)
		query, args := names.Bind(statement, values)
		err = dbconn.QueryRow(ctx, t.DB, query, args...).Scan(&n)
		return n, err
	}
	switch {
	case which.Positions != nil:
		return ask(askPositionsSQL, sqltext.Values{"positions": sqltext.JSON{Value: which.Positions}})
	case which.Aggregate == nil:
		return ask(askAllSQL, sqltext.Values{})
	}
	// The row may have the id in either form: see form.
	id := protocol.Storable(*which.Aggregate)
	ascii := protocol.ASCII(id)
	n, err = ask(askAggregateSQL, sqltext.Values{"aggregate": id, "ascii": ascii})
	if Unstorable(err) {
		return ask(askAggregateSQL, sqltext.Values{"aggregate": ascii, "ascii": ascii})
	}
	return n, err
}

var existsSQL = sqltext.New(`SELECT EXISTS (SELECT FROM orchestrator_projections WHERE name = {projection})`)

// ProjectionExists reports whether there is a row of the projection: a worker has brought it, or
// an order has named it.
func ProjectionExists(ctx context.Context, t Tables, projection string) (exists bool, err error) {
	names, err := t.Locate(ctx)
	if err != nil {
		return false, err
	}
	query, args := names.Bind(existsSQL, sqltext.Values{"projection": projection})
	err = dbconn.QueryRow(ctx, t.DB, query, args...).Scan(&exists)
	return exists, err
}
