package ops_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// largeSet inserts a replica set with workers, as many partitions, three projections, and parked
// events.
func (w *world) largeSet(workers, partitions, parked int) {
	w.T.Helper()
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation, total) VALUES ('large', 7, $1)`, partitions)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
SELECT 'large', 'w' || i, now(), 30000000, now() + interval '1 hour', 7, $2,
       CASE WHEN i < $2 THEN jsonb_build_array(i) ELSE '[]' END, 1, 0, 0, 7, '["a", "b", "c"]'
  FROM generate_series(0, $1 - 1) AS i`, workers, partitions)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
SELECT p, i, 'large', 7, $1, 10, now() FROM unnest(ARRAY['a', 'b', 'c']) AS p, generate_series(0, $1 - 1) AS i`, partitions)
	w.Exec(`INSERT INTO orchestrator_projections (name, replica_set) SELECT p, 'large' FROM unnest(ARRAY['a', 'b', 'c']) AS p`)
	w.Exec(`
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report)
SELECT 'large', 'w' || i, now(), jsonb_build_object('generation', 7, 'state', 'running', 'head', 99, 'lanes', CASE WHEN i < $2 THEN (
       SELECT jsonb_agg(jsonb_build_object('projection', p, 'partition', i, 'position', 10 + i, 'behind', 1, 'behind_seconds', 0.5, 'state', 'handling', 'since', now()))
         FROM unnest(ARRAY['a', 'b', 'c']) AS p) ELSE '[]' END)
  FROM generate_series(0, $1 - 1) AS i`, workers, partitions)
	w.Exec(`
INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at)
SELECT (ARRAY['a', 'b', 'c'])[1 + i % 3], i, i % 5040, 'a' || i, 'it is broken', 1, now() FROM generate_series(1, $1) AS i`, parked)
}

// A node of a plan, in the output of EXPLAIN.
type planNode struct {
	Type  string     `json:"Node Type"`
	On    string     `json:"Relation Name"`
	Loops float64    `json:"Actual Loops"`
	Rows  float64    `json:"Actual Rows"`
	Plans []planNode `json:"Plans"`
}

// work returns how many rows all nodes of a statement's plan have returned, and how often each
// table was scanned.
func (w *world) work(query string, args ...any) (rows float64, passes map[string]float64) {
	w.T.Helper()
	var text []byte
	if err := w.DB.QueryRowContext(w.T.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+query, args...).Scan(&text); err != nil {
		w.T.Fatalf("%s: %v", query, err)
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal(text, &plans); err != nil {
		w.T.Fatal(err)
	}
	passes = map[string]float64{}
	var add func(n planNode)
	add = func(n planNode) {
		rows += n.Rows * n.Loops
		if n.On != "" {
			passes[n.On] += n.Loops
		}
		for _, p := range n.Plans {
			add(p)
		}
	}
	add(plans[0].Plan)
	return rows, passes
}

// The work for a status grows with the number of rows, and not with the product of partitions
// and parked events, or of workers and partitions.
func TestStatusOfALargeSet(t *testing.T) {
	t.Parallel()
	const workers, partitions, parked = 300, 200, 20_000
	w := newWorld(t)
	w.largeSet(workers, partitions, parked)
	w.Exec(`INSERT INTO orchestrator_projections (name, replica_set, follows) VALUES ('a_v2', 'other', 'a')`)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
SELECT 'a_v2', i, 'other', 7, $1, 4 + i, now() FROM generate_series(0, $1 - 1) AS i`, partitions)
	w.Exec(`ANALYZE`)
	s, err := ops.Status(t.Context(), w.DB, "large")
	if err != nil {
		t.Fatal(err)
	}
	total, reports := 0, 0
	for _, p := range s.Partitions {
		total += p.Parked
		if p.Report != nil && p.Report.Position == int64(10+p.Partition) && p.Worker == fmt.Sprintf("w%d", p.Partition) && p.ParkedSince != nil {
			reports++
		}
	}
	if len(s.Workers) != workers || len(s.Partitions) != 3*partitions || total != parked || reports != 3*partitions || s.Head != 99 {
		t.Errorf("%d workers, %d partitions, %d parked, %d reports, head %d", len(s.Workers), len(s.Partitions), total, reports, s.Head)
	}
	if len(s.Rebuilds) != 1 || s.Rebuilds[0].Behind != 6 {
		t.Errorf("rebuilds: %+v", s.Rebuilds)
	}
	// The view shows the same.
	if n := w.Number(`SELECT count(*) FROM orchestrator_status_partitions WHERE reached = 10 + partition AND worker = 'w' || partition AND state = 'handling'`); n != 3*partitions {
		t.Errorf("the view has %d of %d rows", n, 3*partitions)
	}
	if n := w.Number(`SELECT sum(parked) FROM orchestrator_status_partitions WHERE parked_since IS NOT NULL`); n != parked {
		t.Errorf("the view counts %d of %d parked events", n, parked)
	}
	most := 10.0 * (workers + 3*partitions + parked)
	rows, passes := w.work(`SELECT * FROM orchestrator_status_partitions WHERE replica_set = 'large'`)
	if rows > most {
		t.Errorf("the view goes through %.0f rows; want %.0f at most", rows, most)
	}
	for table, n := range passes {
		if n > 10 {
			t.Errorf("the view goes through %s %.0f times", table, n)
		}
	}
	// The exact queries of Status.
	for _, query := range ops.StatusQueries("large") {
		if rows, passes := w.work(query); rows > most || passes["orchestrator_parked"] > 10 || passes["orchestrator_checkpoints"] > 10 {
			t.Errorf("%.0f rows, %v: %s", rows, passes, query)
		}
	}
}

// A size that was too large for an earlier version. This only measures.
func BenchmarkStatus(b *testing.B) {
	for _, size := range [][3]int{{50, 50, 150_000}, {1000, 500, 100_000}} {
		b.Run(strings.Trim(strings.ReplaceAll(fmt.Sprint(size), " ", "x"), "[]"), func(b *testing.B) {
			w := newWorld(b)
			w.largeSet(size[0], size[1], size[2])
			for b.Loop() {
				began := time.Now()
				if _, err := ops.Status(b.Context(), w.DB, "large"); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(began).Seconds(), "s/status")
			}
		})
	}
}
