package eventtable

import (
	"database/sql"
	"os"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// An index on the event types, as pupsourcing's own migration makes one, is used where the
// types are rare: of 40,000 events, those that are read have a few pages.
func TestIndexOfEventTypes(t *testing.T) {
	t.Parallel()
	db, _ := pgtest.Database(t)
	for _, q := range []string{Layout, `CREATE INDEX idx_events_event_type ON events (event_type, global_position)`, `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', i, 1, gen_random_uuid(), CASE i % 10000 WHEN 0 THEN 'rare' ELSE 'common' END, 'x' FROM generate_series(1, 40000) AS i`, `ANALYZE events`} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	table := New(Config{Table: "events", Position: DefaultPosition, Aggregate: DefaultAggregate, EventType: "event_type", Columns: []string{"payload"}})
	types, err := table.Types(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	r, err := table.Reader(types, func(int, Part) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, literals := range []bool{false, true} {
		plan := explained(t, db, r, Range{Limit: 1000, Through: 40000, EventTypes: []string{"rare", "rarer"}, Literals: literals})
		if !strings.Contains(plan, "idx_events_event_type") {
			t.Errorf("with literals %t:\n%s", literals, plan)
		}
	}
}

func explained(t *testing.T, db *sql.DB, r *Reader, g Range) string {
	t.Helper()
	query, args := r.Page(g)
	rows, err := db.Query(`EXPLAIN `+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}

// Names arrive as they are, whatever is in them.
func TestTexts(t *testing.T) {
	t.Parallel()
	db, _ := pgtest.Database(t)
	names := []string{"", "Paid", "User's \\", `"quoted"`, "a,b", "{}", "NULL", "ü\n$1"}
	var got pq.StringArray
	if err := db.QueryRow(`SELECT $1::text[]`, texts(names)).Scan(&got); err != nil {
		t.Fatal(err)
	}
	if strings.Join(names, "|") != strings.Join(got, "|") {
		t.Errorf("%q arrive as %q", names, got)
	}
	if texts(nil) != "{}" {
		t.Errorf("no names are %s", texts(nil))
	}
}
