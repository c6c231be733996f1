package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Waiting for a projection: how far it is beside what a caller waits for.

// An Awaited is what a caller waits for: that a projection has handled everything up to a
// position, or, if One is set, everything of one aggregate up to there.
type Awaited struct {
	Projection string
	Position   int64
	One        bool
	Aggregate  string
}

// Handled is how far a projection is beside what is awaited.
type Handled struct {
	// To is true if everything that is awaited was handled, parked or discarded.
	To bool
	// At is the position up to which all of it was; -1 if the projection has not run.
	At int64
	// Parked is how many of the awaited events are parked, and First the position of the
	// first of them; 0 is none.
	Parked int
	First  int64
}

// awaitedSQL reads everything in one row, of one snapshot: the checkpoints, the projections
// whose stream ends before their checkpoint, and the parked events of each one that is asked
// about. Aggregate ids are compared in UTF-8, whatever the database's encoding.
var awaitedSQL = sqltext.New(`
SELECT (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'Projection', c.projection, 'Partition', c.partition, 'Total', c.total, 'Position', c.position, 'Ahead', c.ahead,
                   'Rewind', (s.rewinds ->> c.projection)::bigint)), '[]')
          FROM orchestrator_checkpoints c LEFT JOIN orchestrator_replica_sets s ON s.name = c.replica_set
         WHERE c.projection = ANY (SELECT jsonb_array_elements_text({names}))),
       (SELECT coalesce(jsonb_agg(l ->> 'projection'), '[]')
          FROM orchestrator_reports r, jsonb_array_elements(r.report -> 'lanes') l WHERE (l ->> 'state') = 'beyond'),
       (SELECT coalesce(jsonb_agg(jsonb_build_object('N', n, 'Parked', parked, 'First', first)), '[]')
          FROM (SELECT a.n, count(*) AS parked, min(p.position) AS first
                  FROM jsonb_to_recordset({asked}) AS a (n integer, projection text, position bigint, slot integer, ids jsonb)
                  JOIN orchestrator_parked p ON p.projection = a.projection AND p.position <= a.position
                   AND (a.slot IS NULL OR (p.slot = a.slot AND (a.ids ? encode(convert_to(p.aggregate_id, 'UTF8'), 'hex'))))
                 GROUP BY a.n) parked)`)

// HandledTo returns for each that is awaited how far it is. All that it reads is of one
// snapshot: of one assignment, in which each slot is in one row, together with what is parked.
// Read by two statements:
//  1. a projection is at 20, and has parked 12;
//  2. the first statement sees that it has passed 15;
//  3. a rewind to 0 is carried out, which removes the row of 12;
//  4. the second statement sees no parked event: everything up to 15 seems to be handled.
//
// Events above the position of a rewind that is due do not count as handled: the rewind may
// wait for the next worker. Nor does any event while a worker reports that the event stream ends
// before a checkpoint of the projection.
func HandledTo(ctx context.Context, t Tables, awaited ...Awaited) ([]Handled, error) {
	names, err := t.Locate(ctx)
	if err != nil {
		return nil, err
	}
	var checkpoints, beyond, parked string
	query, args := names.Bind(awaitedSQL, asked(awaited))
	if err := dbconn.QueryRow(ctx, t.DB, query, args...).Scan(&checkpoints, &beyond, &parked); err != nil {
		return nil, Foreseen(err)
	}
	of, err := standings(checkpoints, beyond)
	if err != nil {
		return nil, err
	}
	var lots []struct {
		N, Parked int
		First     int64
	}
	if err := json.Unmarshal([]byte(parked), &lots); err != nil {
		return nil, fmt.Errorf("read what is parked: %w", err)
	}
	handled := make([]Handled, len(awaited))
	for i, a := range awaited {
		handled[i].At = of[a.Projection].at(a)
		handled[i].To = handled[i].At >= a.Position
	}
	for _, l := range lots {
		handled[l.N].Parked, handled[l.N].First = l.Parked, l.First
	}
	return handled, nil
}

func asked(awaited []Awaited) sqltext.Values {
	type row struct {
		N          int      `json:"n"`
		Projection string   `json:"projection"`
		Position   int64    `json:"position"`
		Slot       *int     `json:"slot"`
		IDs        []string `json:"ids"`
	}
	var names []string
	rows := make([]row, len(awaited))
	seen := map[string]bool{}
	for i, a := range awaited {
		rows[i] = row{N: i, Projection: a.Projection, Position: a.Position}
		if a.One {
			slot, id := protocol.SlotOf(a.Aggregate), protocol.Storable(a.Aggregate)
			rows[i].Slot, rows[i].IDs = &slot, []string{hex.EncodeToString([]byte(id)), hex.EncodeToString([]byte(protocol.ASCII(id)))}
		}
		if !seen[a.Projection] {
			seen[a.Projection], names = true, append(names, a.Projection)
		}
	}
	return sqltext.Values{"names": sqltext.JSON{Value: names}, "asked": sqltext.JSON{Value: rows}}
}

// A standing is how far a projection is.
type standing struct {
	partitions map[int]protocol.Checkpoint
	total      int
	limit      int64 // nothing above it counts: a rewind is due, or the stream ends before; -1: no limit
}

func standings(checkpoints, beyond string) (map[string]*standing, error) {
	var rows []struct {
		Projection       string
		Partition, Total int
		Position         int64
		Ahead            json.RawMessage
		Rewind           *int64
	}
	var ended []string
	if err := json.Unmarshal([]byte(checkpoints), &rows); err != nil {
		return nil, fmt.Errorf("read the checkpoints: %w", err)
	}
	if err := json.Unmarshal([]byte(beyond), &ended); err != nil {
		return nil, fmt.Errorf("read the reports: %w", err)
	}
	of := map[string]*standing{}
	for _, r := range rows {
		ahead := sql.NullString{String: string(r.Ahead), Valid: r.Ahead != nil && string(r.Ahead) != "null"}
		c, err := checkpointOf(r.Projection, r.Partition, r.Total, protocol.Checkpoint{Position: r.Position}, ahead, nil)
		if err != nil {
			return nil, err
		}
		s := of[r.Projection]
		if s == nil {
			s = &standing{partitions: map[int]protocol.Checkpoint{}, limit: -1}
			of[r.Projection] = s
		}
		s.partitions[r.Partition], s.total = c, r.Total
		if r.Rewind != nil {
			s.limit = *r.Rewind
		}
	}
	for _, projection := range ended {
		if s := of[projection]; s != nil {
			s.limit = 0
		}
	}
	return of, nil
}

// at returns the position up to which everything that is awaited was handled.
func (s *standing) at(a Awaited) (at int64) {
	if s == nil {
		return -1
	}
	if at = -1; len(s.partitions) < s.total {
		return at
	}
	if a.One {
		slot := protocol.SlotOf(a.Aggregate)
		if c, ok := s.partitions[slot%s.total]; ok {
			at = c.Frontier(slot)
		}
	} else {
		for k, c := range s.partitions {
			low := c.Position
			if low < a.Position && len(c.Ahead) > 0 {
				low = lowest(c, k, s.total)
			}
			if at < 0 || low < at {
				at = low
			}
		}
	}
	if s.limit >= 0 {
		at = min(at, s.limit)
	}
	return at
}

// lowest returns the position up to which every slot of a partition was handled.
func lowest(c protocol.Checkpoint, partition, total int) int64 {
	low := c.Frontier(partition)
	for slot := partition; slot < protocol.Slots; slot += total {
		low = min(low, c.Frontier(slot))
	}
	return low
}
