package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// Where a projection starts.
//
// A projection gets its first checkpoint in the transaction in which a worker joins with
// it: of one partition, under no generation, as importer.Import writes it. The next
// activation hands it over like any other. So where a projection starts is decided once:
//   - by the first worker that brings it: a worker that joins later finds the checkpoint,
//     whatever its own program says;
//   - as of that moment: the position is read while the projection's row is locked;
//   - as a whole: if the join does not commit, no part of it is there.
//
// If each join, or the activation, decided it, it would not be the first worker's decision:
//  1. w1 joins with p, which starts now, at 100; it crashes before it has run;
//  2. 101 to 150 are appended;
//  3. w2 joins, and p starts now, at 150: 101 to 150 are lost.

// Starts returns the positions at which projections without a checkpoint start: the next event
// that one handles is the first above its position. Those that are not in the result start at
// the beginning. It is called in a transaction that others wait for, with a context that ends
// before the server ends that transaction.
type Starts func(ctx context.Context, projections []string) (map[string]int64, error)

// A StartError is returned if it can't be determined where projections start.
type StartError struct {
	Projections []string
	Err         error
}

func (e *StartError) Error() string {
	return fmt.Sprintf("find out where a new projection starts (%s): %v", strings.Join(e.Projections, ", "), e.Err)
}

// Unwrap returns the event store's error.
func (e *StartError) Unwrap() error { return e.Err }

// startMax is how long the event store may take, of the time that the transaction may idle.
func startMax(b Bounds) time.Duration { return b.Idle / 2 }

// begin writes the first checkpoints of projections that have none. Their rows are locked.
func (s *Store) begin(ctx context.Context, tx *sql.Tx, names []string, stream string) error {
	// A statement of its own, since it has to see what was committed while this transaction
	// has waited for locks.
	fresh, err := s.strings(ctx, tx, freshSQL, sqltext.Values{"names": sqltext.JSON{Value: names}})
	if err != nil {
		return fmt.Errorf("look for the checkpoints of %v: %w", names, err)
	}
	if err := s.beginRebuilds(ctx, tx, names, stream); err != nil {
		return err
	}
	if len(fresh) == 0 {
		return nil
	}
	var positions map[string]int64
	if s.starts != nil {
		bounded, cancel := context.WithTimeout(ctx, startMax(s.bounds))
		defer cancel()
		if positions, err = s.starts(bounded, fresh); err != nil {
			return &StartError{fresh, err}
		}
	}
	var rows []checkpointRow
	for _, name := range fresh {
		rows = append(rows, checkpointRow{name, 0, positions[name], encodeMarks(nil)})
	}
	return s.writeFirst(ctx, tx, rows)
}

// noGeneration is the generation of first checkpoints, and of imported ones: no lane runs under
// it, so none can commit before an activation has taken them over, and it raises no set's
// next generation.
const noGeneration = 0

// writeFirst writes the checkpoints of projections that have none: of the partitions in rows.
func (s *Store) writeFirst(ctx context.Context, tx *sql.Tx, rows []checkpointRow) error {
	total := map[string]int32{}
	for _, r := range rows {
		total[r.Projection]++
	}
	_, err := s.exec(ctx, tx, saveCheckpointsSQL, sqltext.Values{
		"generation": noGeneration, "total": total[rows[0].Projection], "rows": sqltext.JSON{Value: rows},
	})
	if err != nil {
		return fmt.Errorf("write first checkpoints: %w", err)
	}
	return nil
}

var (
	freshSQL = sqltext.New(`SELECT name` + freshText + ` ORDER BY name`)
	// follows is '' for a projection that no worker has brought yet: an order has made its row.
	orderedSQL  = sqltext.New(`SELECT name FROM orchestrator_projections WHERE name = ANY (SELECT jsonb_array_elements_text({names})) AND follows = '' ORDER BY name`)
	claimSQL    = sqltext.New(`UPDATE orchestrator_projections SET follows = NULL WHERE name = {projection}`)
	orderSQL    = sqltext.New(`UPDATE orchestrator_projections SET follows = '' WHERE name = {projection}`)
	allFreshSQL = sqltext.New(`SELECT coalesce(jsonb_agg(name ORDER BY name), '[]')` + freshText)
	hasRunSQL   = sqltext.New(`SELECT EXISTS (SELECT FROM orchestrator_checkpoints WHERE projection = {projection} AND generation <> 0)`)
)

const freshText = `
  FROM jsonb_array_elements_text({names}) AS x (name)
 WHERE NOT EXISTS (SELECT FROM orchestrator_checkpoints c WHERE c.projection = x.name)`

// Fresh returns those of the projections that have no checkpoint.
func (s *Store) Fresh(ctx context.Context, projections []string) (fresh []string, err error) {
	var text string
	err = s.row(ctx, s.db, allFreshSQL, sqltext.Values{"names": sqltext.JSON{Value: projections}}, &text)
	if err == nil {
		err = json.Unmarshal([]byte(text), &fresh)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the checkpoints of %v: %w", projections, err)
	}
	return fresh, nil
}

// HasRun reports whether a generation with the projection was ever activated.
func HasRun(ctx context.Context, t Tables, projection string) (has bool, err error) {
	s := New(t.DB, "", Options{Schema: t.Schema})
	if err := s.row(ctx, t.DB, hasRunSQL, sqltext.Values{"projection": projection}, &has); err != nil {
		return false, fmt.Errorf("look for the checkpoints of projection %q: %w", projection, err)
	}
	return has, nil
}

// ordered makes a projection that no worker has brought yet the set's own, for an order that needs
// a row of it: the worker that brings it finds its first checkpoint.
func (s *Store) ordered(ctx context.Context, tx *sql.Tx, o protocol.Order) error {
	names := []string{o.Projection}
	if _, err := s.exec(ctx, tx, registerProjectionsSQL, sqltext.Values{"names": sqltext.JSON{Value: names}}); err != nil {
		return fmt.Errorf("register projection %q: %w", o.Projection, err)
	}
	foreign, err := s.lockProjections(ctx, tx, names)
	switch {
	case err != nil:
		return fmt.Errorf("lock projection %q: %w", o.Projection, err)
	case len(foreign) > 0: // another set has taken it a moment ago
		return fmt.Errorf("%w: projection %q belongs to another replica set, not to %q", ErrRejected, o.Projection, s.set)
	}
	fresh, err := s.strings(ctx, tx, freshSQL, sqltext.Values{"names": sqltext.JSON{Value: names}})
	if err != nil || len(fresh) == 0 { // the rewind that follows sets what there is
		return err
	}
	if _, err := s.exec(ctx, tx, orderSQL, sqltext.Values{"projection": o.Projection}); err != nil {
		return fmt.Errorf("write that no worker has brought projection %q yet: %w", o.Projection, err)
	}
	return s.writeFirst(ctx, tx, []checkpointRow{{o.Projection, 0, o.Position, encodeMarks(nil)}})
}
