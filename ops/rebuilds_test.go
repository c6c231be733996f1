package ops_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// rebuildRows inserts two replica sets. "live" has run orders up to position 1000 on one
// partition and 1500 on the other. "next" rebuilds it as orders_v2, which is at 400.
func (w *world) rebuildRows() {
	w.T.Helper()
	w.Exec(`INSERT INTO orchestrator_replica_sets (name, generation, total) VALUES ('live', 3, 2), ('next', 5, 1)`)
	w.Exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ('live', 'w', now(), 1, now() + interval '1 hour', 3, 2, '[0, 1]', 2, 0, 0, 3, '["orders"]'),
       ('next', 'v', now(), 1, now() + interval '1 hour', 5, 1, '[0]', 1, 0, 0, 5, '["orders_v2"]')`)
	w.Exec(`INSERT INTO orchestrator_projections (name, replica_set, follows) VALUES ('orders', 'live', NULL), ('orders_v2', 'next', 'orders'), ('users', 'live', NULL)`)
	w.Exec(`
INSERT INTO orchestrator_checkpoints (projection, partition, replica_set, generation, total, position, updated_at)
VALUES ('orders', 0, 'live', 3, 2, 1500, now()), ('orders', 1, 'live', 3, 2, 1000, now()), ('orders_v2', 0, 'next', 5, 1, 400, now())`)
	w.Exec(`
INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report) VALUES ('live', 'w', now(), '{
  "state": "running", "generation": 3, "head": 1500, "lanes": [
  {"projection": "orders", "partition": 0, "position": 1500, "behind": 0, "behind_seconds": 0, "state": "idle", "since": "2030-01-02T03:04:05Z", "per_second": 3},
  {"projection": "orders", "partition": 1, "position": 1000, "behind": 0, "behind_seconds": 0, "state": "idle", "since": "2030-01-02T03:04:05Z", "per_second": 2},
  {"projection": "users", "partition": 0, "position": 1, "behind": 0, "behind_seconds": 0, "state": "idle", "since": "2030-01-02T03:04:05Z", "per_second": 90}]}'),
('next', 'v', now(), '{
  "state": "running", "generation": 5, "head": 1500, "lanes": [
  {"projection": "orders_v2", "partition": 0, "position": 420, "behind": 1080, "behind_seconds": 9, "state": "handling", "since": "2030-01-02T03:04:05Z", "per_second": 12}]}')`)
}

// The status of the rebuild's set and of the live version's set says how far a rebuild is.
func TestStatusOfRebuilds(t *testing.T) {
	t.Parallel()
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	held := fmt.Sprintf(`UPDATE orchestrator_replica_sets SET paused = '["orders"]', holds = '{"orders": %d}' WHERE name = 'live'`, until.UnixMicro())
	at := func(position int64) string {
		return fmt.Sprintf(`UPDATE orchestrator_checkpoints SET position = %d WHERE projection = 'orders_v2'`, position)
	}
	reported := func(lane string) string {
		return `UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,0}', (report #> '{lanes,0}') || '` + lane + `') WHERE replica_set = 'next'`
	}
	seconds := func(n float64) *float64 { return &n }
	for _, tt := range []struct {
		name string
		sql  []string
		want ops.RebuildStatus
		wait ops.WaitKind // in the live version's set
		says string
	}{
		{"it comes closer", nil, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 600 positions behind orders, about 1 min left", Position: 400, Behind: 600, PerSecond: 12, LeftSeconds: seconds(60),
		}, "", ""},
		{"it will take a while", []string{`UPDATE orchestrator_checkpoints SET position = position + 12000000000 WHERE projection = 'orders'`}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 12,000,000,600 positions behind orders, about 13,888 days left", Position: 400, LivePosition: 12000001000, Behind: 12000000600, PerSecond: 12, LeftSeconds: seconds(1200000060),
		}, "", ""},
		{"it is as slow as the live one", []string{reported(`{"per_second": 2}`)}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 600 positions behind orders and is not catching up", Position: 400, Behind: 600, PerSecond: 2,
		}, "", ""},
		{"it has not moved yet", []string{reported(`{"per_second": 0}`)}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 600 positions behind orders", Position: 400, Behind: 600,
		}, "", ""},
		{"no worker has reported on it", []string{`DELETE FROM orchestrator_reports WHERE replica_set = 'next'`}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 600 positions behind orders; no worker has reported on it yet", Position: 400, Behind: 600,
		}, "", ""},
		{"it is there, and no worker runs it", []string{at(1000), `DELETE FROM orchestrator_reports WHERE replica_set = 'next'`}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 0 positions behind orders; no worker has reported on it yet", Position: 1000, LeftSeconds: seconds(0),
		}, "", ""},
		{"it is nearly there", []string{at(940)}, ops.RebuildStatus{
			State: "close behind", Text: "orders_v2 is 60 positions behind orders and can be promoted", Position: 940, Behind: 60, PerSecond: 12, LeftSeconds: seconds(6),
		}, "", ""},
		{"not quite", []string{at(939)}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 61 positions behind orders, less than a minute left", Position: 939, Behind: 61, PerSecond: 12, LeftSeconds: seconds(6.1),
		}, "", ""},
		{"it was where the live one is, and that has gone on", []string{at(900), reported(`{"state": "follows"}`)}, ops.RebuildStatus{
			State: "close behind", Text: "orders_v2 is 100 positions behind orders and can be promoted", Position: 900, Behind: 100, PerSecond: 12, LeftSeconds: seconds(10),
		}, "", ""},
		{"it is there", []string{at(1000), reported(`{"per_second": 0}`)}, ops.RebuildStatus{
			State: "close behind", Text: "orders_v2 has caught up with orders and can be promoted", Position: 1000, LeftSeconds: seconds(0),
		}, "", ""},
		{"it takes over", []string{at(999), held}, ops.RebuildStatus{
			State: "takes over", Text: "orders_v2 is taking the place of orders, which is held until 03:04:05 UTC; it is 1 position behind", Position: 999, Behind: 1, PerSecond: 12, LeftSeconds: seconds(0.1), HeldUntil: &until,
		}, "held", "projection orders is held while orders_v2 takes its place, until 03:04:05 UTC"},
		{"an operator has paused it", []string{`UPDATE orchestrator_replica_sets SET paused = '["orders_v2"]' WHERE name = 'next'`}, ops.RebuildStatus{
			State: "paused", Text: "orders_v2 is paused, 600 positions behind orders", Position: 400, Behind: 600,
		}, "", ""},
		{"an operator has paused all", []string{`UPDATE orchestrator_replica_sets SET paused = '[""]' WHERE name = 'next'`}, ops.RebuildStatus{
			State: "paused", Text: "orders_v2 is paused, 600 positions behind orders", Position: 400, Behind: 600,
		}, "", ""},
		{"it was replaced", []string{`UPDATE orchestrator_replica_sets SET paused = '["orders_v2"]' WHERE name = 'next'`, `UPDATE orchestrator_projections SET replaced = true WHERE name = 'orders_v2'`}, ops.RebuildStatus{
			State: "replaced", Text: "orders_v2 was replaced by orders", Position: 400, Behind: 600,
		}, "", ""},
		{"it was replaced, and is run again", []string{`UPDATE orchestrator_projections SET replaced = true WHERE name = 'orders_v2'`}, ops.RebuildStatus{
			State: "catching up", Text: "orders_v2 is 600 positions behind orders, about 1 min left", Position: 400, Behind: 600, PerSecond: 12, LeftSeconds: seconds(60),
		}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.rebuildRows()
			for _, query := range tt.sql {
				w.Exec(query)
			}
			tt.want.Projection, tt.want.ReplicaSet, tt.want.Live, tt.want.LiveReplicaSet = "orders_v2", "next", "orders", "live"
			if tt.want.LivePosition == 0 {
				tt.want.LivePosition = 1000
			}
			for _, set := range []orchestrator.ReplicaSetName{"live", "next"} {
				s, waits := w.Stand(set)
				if diff := cmp.Diff([]ops.RebuildStatus{tt.want}, s.Rebuilds); diff != "" {
					t.Errorf("in the status of %s: (-want +got)\n%s", set, diff)
				}
				if set == "next" {
					continue
				}
				if tt.wait == "" && len(s.Waits) > 0 || tt.wait != "" && (len(waits[tt.wait]) != 1 || len(s.Waits) != 1 || waits[tt.wait][0].Text != tt.says) {
					t.Errorf("the waits are %+v; want %q", s.Waits, tt.says)
				}
			}
		})
	}
}

// With several rebuilds of one version, it is unknown which one a hold is for. Rebuilds of other
// sets are shown too. Retired and unrelated projections are not.
func TestStatusOfSeveralRebuilds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rebuildRows()
	w.Exec(`INSERT INTO orchestrator_projections (name, replica_set, follows, retired) VALUES
		('orders_v3', 'third', 'orders', false), ('orders_v0', 'live', 'orders', true), ('mails_v2', 'third', 'mails', false), ('mails', 'third', NULL, false)`)
	w.Exec(`UPDATE orchestrator_replica_sets SET paused = '["orders", "users"]', holds = '{"orders": 1893553445000000}' WHERE name = 'live'`)
	for _, set := range []orchestrator.ReplicaSetName{"live", "next"} {
		s, waits := w.Stand(set)
		var got []string
		for _, r := range s.Rebuilds {
			got = append(got, fmt.Sprintf("%s of %s: %s", r.Projection, r.ReplicaSet, r.State))
		}
		if diff := cmp.Diff([]string{"orders_v2 of next: catching up", "orders_v3 of third: catching up"}, got); diff != "" {
			t.Errorf("in the status of %s: (-want +got)\n%s", set, diff)
		}
		if set == "live" && (len(waits["held"]) != 1 || waits["held"][0].Text != "projection orders is held while another version takes its place, until 03:04:05 UTC" ||
			len(waits["paused"]) != 1 || waits["paused"][0].Projection != "users" || len(s.Held) != 1) {
			t.Errorf("the waits are %+v, held: %v", s.Waits, s.Held)
		}
	}
}

// The status of a rebuild from its first event until it has replaced the live version, by the
// workers' own reports. That the old version does not run and falls behind is no problem, and
// neither are its parked events.
func TestStatusOfARebuild(t *testing.T) {
	w := newWorld(t)
	cfg := w.Config(w.DB, "live")
	testworld.Run(t, cfg, version(w, "orders"))
	w.Active("live", 1)
	w.Append(100)
	gate := make(chan struct{})
	inner := version(w, "orders_v2").(orchestrator.TransactionalProjection[orchestrator.Event])
	testworld.Run(t, w.Config(w.DB, "next"), orchestrator.Transactional("orders_v2", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		if e.GlobalPosition == 1 {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return inner.HandleTx(ctx, tx, e)
	}, orchestrator.WithRebuildOf("orders")))
	w.Active("next", 1)
	state := func(want ops.RebuildState) (r ops.RebuildStatus) {
		t.Helper()
		pgtest.Eventually(t, fmt.Sprintf("the rebuild is %q", want), func() bool {
			s, _ := w.Stand("next")
			if len(s.Rebuilds) == 1 {
				r = s.Rebuilds[0]
			}
			return r.State == want && (want != "catching up" || r.Behind == 100)
		})
		return r
	}
	if r := state("catching up"); r.Position != 0 || r.PerSecond != 0 || r.LivePosition != 100 || r.Live != "orders" || r.LiveReplicaSet != "live" {
		t.Errorf("at the beginning: %+v", r)
	}
	close(gate)
	state("close behind")
	pgtest.Eventually(t, "it is known how fast it goes", func() bool {
		w.Append(1) // the worker must see progress
		s, _ := w.Stand("live")
		return s.Rebuilds[0].PerSecond > 0
	})
	if _, err := ops.Promote(t.Context(), w.DB, "orders_v2", ""); err != nil {
		t.Fatal(err)
	}
	w.Append(100)
	w.Exec(`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('orders', 7, 7, 'a7', 'it is broken', 1, now())`)
	pgtest.Eventually(t, "the new one handles what comes", func() bool {
		return w.Number(`SELECT count(*) FROM orders_v2`) == w.Number(`SELECT count(*) FROM events`)
	})
	if r := state("replaced"); r.Projection != "orders" || r.Live != "orders_v2" || r.Text != "orders was replaced by orders_v2" {
		t.Errorf("afterwards: %+v", r)
	}
	for _, set := range []orchestrator.ReplicaSetName{"live", "next"} {
		w.Calm(set)
	}
	if s, _ := w.Stand("live"); len(s.Held) != 0 || len(s.Paused) != 1 || !s.Partitions[0].Paused || s.Partitions[0].Report.State != orchestrator.LanePaused {
		t.Errorf("what was replaced: %+v", s)
	}
}
