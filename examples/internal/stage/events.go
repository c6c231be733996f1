package stage

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// Append appends n events of 100 aggregates, of these types in turn.
func Append(ctx context.Context, db *sql.DB, n int, types ...string) error {
	_, err := db.ExecContext(ctx, `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'shop', 'order', 'order-' || i % 100, seen + i, gen_random_uuid(), types[1 + i % cardinality(types)], ''
  FROM generate_series(1, $1) AS i, (SELECT count(*) AS seen FROM events) AS already, string_to_array($2, ',') AS types`,
		n, strings.Join(types, ","))
	if err != nil {
		return fmt.Errorf("append events: %w", err)
	}
	return nil
}
