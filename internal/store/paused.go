package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
)

// A PausedLane is how far a projection is on a partition of a worker that does not run it,
// by order.
type PausedLane struct {
	Projection string
	Partition  int
	Position   int64 // of the checkpoint
	Parked     int
	Oldest     time.Time // when the oldest of these was parked; zero: there is none
	Since      time.Time // when it was paused; zero: the history does not go back that far
}

// pausedSQL reads paused projections on some partitions of a generation. A version that
// another has replaced is missing: it stays paused, and needs no one's attention. The order
// that has paused a projection is the first one after the latest that has resumed it.
var pausedSQL = sqltext.New(`
WITH names AS MATERIALIZED (SELECT jsonb_array_elements_text({names}) AS name),
since AS MATERIALIZED (
    SELECT n.name, (
           SELECT min(h.opened_at) FROM orchestrator_history h
            WHERE h.replica_set = {set} AND h.reason = ANY (ARRAY['pause of all', 'pause of ' || n.name, 'hold of ' || n.name])
              AND h.generation > coalesce((
                  SELECT max(r.generation) FROM orchestrator_history r
                   WHERE r.replica_set = {set} AND r.reason = ANY (ARRAY['resume of all', 'resume of ' || n.name, 'release of ' || n.name])), 0)) AS since
      FROM names n),
parked AS MATERIALIZED (
    SELECT p.projection, p.slot % {total} AS partition, count(*) AS parked, min(p.parked_at) AS oldest
      FROM orchestrator_parked p JOIN names n ON n.name = p.projection GROUP BY 1, 2)
SELECT c.projection, c.partition, c.position, coalesce(p.parked, 0), p.oldest, s.since
  FROM orchestrator_checkpoints c
  JOIN since s ON s.name = c.projection
  JOIN orchestrator_projections q ON q.name = c.projection AND NOT q.replaced
  LEFT JOIN parked p ON p.projection = c.projection AND p.partition = c.partition
 WHERE c.replica_set = {set} AND c.generation = {generation} AND {partitions} @> to_jsonb(c.partition)
 ORDER BY c.projection, c.partition`)

// Paused returns how far paused projections are on partitions of a generation.
func (s *Store) Paused(ctx context.Context, projections []string, generation int64, partitions []int, total int) (lanes []PausedLane, err error) {
	rows, err := s.query(ctx, s.db, pausedSQL, sqltext.Values{
		"names": sqltext.JSON{Value: projections}, "generation": generation, "partitions": sqltext.JSON{Value: partitions}, "total": total,
	})
	if err != nil {
		return nil, fmt.Errorf("look for the paused projections %v: %w", projections, err)
	}
	defer rows.Close()
	for rows.Next() {
		var l PausedLane
		var oldest, since sql.NullTime
		err := rows.Scan(&l.Projection, &l.Partition, &l.Position, &l.Parked, &oldest, &since)
		row := RowOf("checkpoints", l.Projection, l.Partition).Scanned(err)
		if err == nil {
			row.AtLeast("position", l.Position, 0)
		}
		if row.Err != nil {
			return nil, row.Err
		}
		l.Oldest, l.Since = oldest.Time, since.Time
		lanes = append(lanes, l)
	}
	return lanes, rows.Err()
}
