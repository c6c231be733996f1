package browser

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// A scene is a state of a replica set, written directly into the tables: states that take long
// to reach, or do not last.
type scene struct {
	t      testing.TB
	db     *sql.DB
	writer int // the backend of a gap
}

func newScene(t testing.TB) *scene {
	t.Helper()
	db, _ := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	return &scene{t: t, db: db}
}

func (s *scene) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.db.ExecContext(s.t.Context(), query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const head = 1_204_377

var projections = []string{"order_totals", "search_index", "user_count"}

// namesIn returns the projections of a replica set.
func namesIn(set string) []string {
	names := slices.Clone(projections)
	if set != "main-projections" {
		for i := range names {
			names[i] = set + "_" + names[i]
		}
	}
	return names
}

// set adds a replica set with healthy workers.
func (s *scene) set(name string, workers ...string) {
	s.t.Helper()
	total := len(workers)
	s.exec(`INSERT INTO orchestrator_replica_sets (name, generation, total, reason, opened_at, activated_at)
VALUES ($1, 14, $2, '1 joined', now() - interval '3 hours 12 min', now() - interval '3 hours 12 min' + interval '84 ms')`, name, total)
	members := map[string][]int{}
	for k, w := range workers {
		members[w] = []int{k}
		s.worker(name, w, k, total, "running", nil)
	}
	for _, p := range namesIn(name) {
		s.exec(`INSERT INTO orchestrator_projections VALUES ($1, $2)`, p, name)
		for k := range workers {
			s.exec(`INSERT INTO orchestrator_checkpoints VALUES ($1, $2, $3, 14, $4, $5, NULL, now())`, p, k, name, total, head-k)
		}
	}
	ages := []string{"3 hours 12 min", "3 hours 13 min", "9 hours", "9 hours 20 sec", "26 hours", "26 hours 40 sec", "3 days", "3 days 1 sec", "3 days 2 min", "11 days", "12 days"}
	for i, age := range ages {
		reason, waited := "1 joined", jsonOf(s.t, []string{workers[0]})
		if i%3 == 1 {
			reason = "1 gone"
		}
		s.exec(`INSERT INTO orchestrator_history VALUES ($1, $2, $3, $4, $5, now() - $6::interval, CASE WHEN $7 THEN NULL ELSE now() - $6::interval + interval '84 ms' * $8 END, $9)`,
			name, 14-i, reason, total, jsonOf(s.t, members), age, i == 7, 1+5*(i%4), waited)
	}
}

// worker adds a worker and its report about one partition.
func (s *scene) worker(set, id string, k, total int, state orchestrator.WorkerState, change func(*orchestrator.LaneReport)) {
	s.t.Helper()
	partitions, lanes := []int{k}, []orchestrator.LaneReport{}
	if k < 0 {
		partitions = []int{}
	}
	for _, p := range namesIn(set) {
		lane := orchestrator.LaneReport{Projection: p, Partition: k, TotalPartitions: total, Position: head - int64(k), State: "idle", Since: time.Now().Add(-3 * time.Second)}
		if change != nil {
			change(&lane)
		}
		if k >= 0 {
			lanes = append(lanes, lane)
			s.exec(`UPDATE orchestrator_checkpoints SET position = $3 WHERE projection = $1 AND partition = $2`, p, k, lane.Position)
		}
	}
	report := orchestrator.WorkerReport{State: orchestrator.WorkerState(state), Generation: 14, Partitions: partitions, Head: head, Lanes: lanes}
	s.exec(`DELETE FROM orchestrator_workers WHERE replica_set = $1 AND id = $2`, set, id)
	s.exec(`INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ($1, $2, now() - interval '5 hours', 3600000000, now() + interval '1 hour', 14, $3, $4, 1, 0, 0, 14, $5)`,
		set, id, total, jsonOf(s.t, partitions), jsonOf(s.t, namesIn(set)))
	s.exec(`INSERT INTO orchestrator_reports VALUES ($1, $2, now(), $3) ON CONFLICT (replica_set, worker) DO UPDATE SET report = excluded.report`,
		set, id, jsonOf(s.t, report))
}

var workers = []string{"shop-7d9f-xk2lp-1-k3f9a0qz", "shop-7d9f-m8w4q-1-0dm2c8tn", "shop-7d9f-z5tnc-1-p7x1b4vd~2"}

// scenes by name.
var scenes map[string]func(*scene)

func init() { scenes = theScenes } // since a scene may begin with another

var theScenes = map[string]func(*scene){
	"calm": func(s *scene) {
		s.set("main-projections", workers...)
	},
	"draining": func(s *scene) {
		s.set("main-projections", workers...)
		s.worker("main-projections", "shop-7d9f-q1v7r-1-w2e8r5ty", -1, 3, "waiting", nil)
		s.exec(`UPDATE orchestrator_replica_sets SET generation = 15, phase = 'draining', total = 4, reason = '1 joined', opened_at = now() - interval '11 sec', activated_at = NULL`)
		s.exec(`INSERT INTO orchestrator_history VALUES ('main-projections', 15, '1 joined', 4, $1, now() - interval '11 sec', NULL, $2)`,
			jsonOf(s.t, map[string][]int{workers[0]: {0}, workers[1]: {1}, workers[2]: {2}, "shop-7d9f-q1v7r-1-w2e8r5ty": {3}}), jsonOf(s.t, workers))
		s.exec(`UPDATE orchestrator_workers SET generation = 15, total = 4`)
		s.exec(`UPDATE orchestrator_workers SET holds = 0 WHERE id <> $1`, workers[1])
		s.exec(`UPDATE orchestrator_workers SET partitions = '[3]' WHERE id = 'shop-7d9f-q1v7r-1-w2e8r5ty'`)
		s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{state}', '"draining"') WHERE worker = $1`, workers[1])
		s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{state}', '"waiting"') WHERE worker IN ($1, $2)`, workers[0], workers[2])
	},
	"rebuilding": func(s *scene) {
		s.set("main-projections", workers...)
		s.set("rebuild", "rebuild-0-1-z9y8x7w6")
		s.exec(`UPDATE orchestrator_projections SET follows = 'order_totals' WHERE name = 'rebuild_order_totals'`)
		s.worker("rebuild", "rebuild-0-1-z9y8x7w6", 0, 1, "running", func(l *orchestrator.LaneReport) {
			if l.Projection == "rebuild_order_totals" {
				l.Position, l.Behind, l.BehindSeconds, l.State, l.PerSecond = 903_282, head-903_282, 86400, "handling", 2510
			}
		})
		s.exec(`UPDATE orchestrator_projections SET follows = 'user_count' WHERE name = 'rebuild_user_count'`)
		s.exec(`UPDATE orchestrator_projections SET follows = 'rebuild_search_index', replaced = true WHERE name = 'search_index'`)
		s.exec(`UPDATE orchestrator_replica_sets SET paused = '["search_index", "user_count"]', holds = jsonb_build_object('user_count', (extract(epoch FROM now() + interval '8 sec') * 1000000)::bigint) WHERE name = 'main-projections'`)
	},
	"stalled": func(s *scene) {
		s.set("main-projections", workers...)
		s.set("payouts", "payouts-0-7-a1b2c3d4", "payouts-1-7-e5f6g7h8")
		s.worker("main-projections", workers[1], 1, 3, "running", func(l *orchestrator.LaneReport) {
			switch l.Projection {
			case "search_index":
				l.Position, l.Behind, l.BehindSeconds, l.State, l.Since = head-41_212, 41_212, 1260, "retrying", time.Now().Add(-21*time.Minute)
				l.Handling, l.Attempts, l.Stalled = l.Position+1, 17, true
				l.Error = `put https://search.internal:9200/users/_doc/8812: 503 Service Unavailable: {"error":"cluster_block_exception"}`
			case "order_totals":
				l.Position, l.Behind, l.BehindSeconds, l.State, l.Since = head-12_077, 12_077, 340, "handling", time.Now().Add(-340*time.Second)
				l.Handling, l.Stalled = l.Position+1, true
			}
		})
		s.gap("payouts-0-7-a1b2c3d4")
		s.exec(`UPDATE orchestrator_replica_sets SET paused = '["payouts_user_count"]' WHERE name = 'payouts'`)
		s.exec(`UPDATE orchestrator_reports SET report = report #- '{lanes,2}' WHERE replica_set = 'payouts'`) // it is not run
		for i := range 5 {
			e, attempts := "insert into totals: pq: new row for relation \"totals\" violates check constraint \"positive\"", 10
			if i%3 == 2 {
				e, attempts = "", 0
			}
			s.exec(`INSERT INTO orchestrator_parked VALUES ('payouts_order_totals', $1, $2, $3, $4, $5, now() - interval '40 min', $6)`,
				880_100+i, i, fmt.Sprintf("order-%d", 5520+i-i%3/2), e, attempts, sql.NullString{String: "retry", Valid: i == 1})
		}
	},
	"empty": func(*scene) {},
	"gap": func(s *scene) {
		s.set("main-projections", workers...)
		for k, w := range workers {
			s.worker("main-projections", w, k, len(workers), "running", func(l *orchestrator.LaneReport) {
				l.Position, l.Behind, l.BehindSeconds, l.State, l.Stalled, l.Since = head-55, 55, 364, "idle", true, time.Now().Add(-6*time.Minute)
			})
			s.gap(w)
		}
	},
	"parked": func(s *scene) {
		s.set("main-projections", workers...)
		s.exec(`INSERT INTO orchestrator_parked SELECT 'order_totals', 880000 + n, n, 'order-' || 5500 + n / 3,
CASE WHEN n % 3 = 0 THEN 'insert into totals: pq: new row for relation "totals" violates check constraint "positive"' ELSE '' END,
CASE WHEN n % 3 = 0 THEN 10 ELSE 0 END, now() - interval '40 min', CASE WHEN n = 3 THEN 'retry' END FROM generate_series(0, 295) n`)
		s.exec(`INSERT INTO orchestrator_parked SELECT 'user_count', 1100000 + n, n, 'user-' || n, 'no such user', 3, now() - interval '2 min' FROM generate_series(1, 4) n`)
	},
	"paused": func(s *scene) {
		s.set("main-projections", workers...)
		s.exec(`UPDATE orchestrator_replica_sets SET paused = '[""]'`)
		s.exec(`UPDATE orchestrator_checkpoints SET position = position - 4000`)
		s.exec(`UPDATE orchestrator_reports SET report = report - 'lanes'`)
	},
	"slow-drain": func(s *scene) {
		scenes["draining"](s)
		s.exec(`UPDATE orchestrator_replica_sets SET opened_at = now() - interval '4 min'`)
		s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,1}', report #> '{lanes,1}' || jsonb_build_object('state', 'handling', 'handling', $1::bigint, 'since', now() - interval '4 min', 'behind', 40, 'behind_seconds', 240, 'stalled', true)) WHERE worker = $2`, head-1, workers[1])
	},
	// The picture of docs/status-page.md.
	"picture": func(s *scene) {
		s.set("main-projections", workers...)
		s.set("rebuild", "rebuild-0-1-z9y8x7w6")
		s.exec(`UPDATE orchestrator_projections SET follows = 'order_totals' WHERE name = 'rebuild_order_totals'`)
		s.worker("rebuild", "rebuild-0-1-z9y8x7w6", 0, 1, "running", func(l *orchestrator.LaneReport) {
			if l.Projection == "rebuild_order_totals" {
				l.Position, l.Behind, l.BehindSeconds, l.State, l.PerSecond = 903_282, head-903_282, 86400, "handling", 2510
			}
		})
		for k, w := range workers {
			s.worker("main-projections", w, k, len(workers), "running", func(l *orchestrator.LaneReport) {
				l.State, l.PerSecond = "handling", 418
				switch {
				case l.Projection == "search_index" && k == 1:
					l.Position, l.Behind, l.BehindSeconds, l.State, l.Since = head-41_212, 41_212, 1260, "retrying", time.Now().Add(-21*time.Minute)
					l.Handling, l.Attempts, l.Stalled, l.PerSecond = l.Position+1, 17, true, 0
					l.Error = `put https://search.internal:9200/users/_doc/8812: 503 Service Unavailable: {"error":"cluster_block_exception"}`
				case l.Projection == "user_count" && k == 2:
					l.Position, l.Behind, l.BehindSeconds = head-9_400, 9_400, 22
				}
			})
		}
		for i := range 3 {
			e, attempts := `insert into totals: new row for relation "totals" violates check constraint "positive"`, 10
			if i > 0 {
				e, attempts = "", 0
			}
			s.exec(`INSERT INTO orchestrator_parked VALUES ('order_totals', $1, $2, 'order-5520', $3, $4, now() - interval '40 min')`, 1_188_100+i, i, e, attempts)
		}
	},
	// 40 workers on 10 hosts, 6 projections, one of them fails on one partition.
	"many": func(s *scene) {
		var many []string
		for i := range 40 {
			many = append(many, fmt.Sprintf("ip-10-0-%d-17-%d-%08d", i/4, 4000+i, i*1234567))
		}
		s.set("main-projections", many...)
		for k, w := range many {
			s.worker("main-projections", w, k, len(many), "running", func(l *orchestrator.LaneReport) {
				l.PerSecond = 412
				if k == 17 && l.Projection == "search_index" {
					l.Position, l.Behind, l.BehindSeconds, l.State, l.Attempts, l.Error = head-3120, 3120, 41, "retrying", 4, "index is read-only"
				}
			})
		}
		for _, p := range []string{"audit_log", "invoices", "mailer"} {
			s.exec(`INSERT INTO orchestrator_projections VALUES ($1, 'main-projections')`, p)
			s.exec(`INSERT INTO orchestrator_checkpoints SELECT $1, partition, replica_set, generation, total, position, NULL, now() FROM orchestrator_checkpoints WHERE projection = 'user_count'`, p)
			s.exec(`UPDATE orchestrator_workers SET projections = projections || to_jsonb(ARRAY[$1::text])`, p)
			s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes}', report -> 'lanes' || jsonb_build_array(report #> '{lanes,2}' || jsonb_build_object('projection', $1::text)))`, p)
		}
	},
}

// gap has a worker report an open transaction, which there is.
func (s *scene) gap(worker string) {
	s.t.Helper()
	if s.writer == 0 {
		tx, err := s.db.BeginTx(context.Background(), nil)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = tx.Rollback() })
		if err := tx.QueryRowContext(s.t.Context(), `SELECT pg_backend_pid() FROM set_config('application_name', 'nightly-report', false)`).Scan(&s.writer); err != nil {
			s.t.Fatal(err)
		}
	}
	s.exec(`UPDATE orchestrator_reports SET reported_at = clock_timestamp(), report = report || jsonb_build_object('gap', jsonb_build_object('position', $1::bigint, 'since', now() - interval '6 min', 'backends', jsonb_build_array($3::int))) WHERE worker = $2`, head-54, worker, s.writer)
}
