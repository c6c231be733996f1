package prometheus

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// stumbling is a projection that fails once, at its first event.
type stumbling struct{ failed bool }

func (*stumbling) Name() string { return "orders" }

func (o *stumbling) Handle(context.Context, orchestrator.Event) error {
	if !o.failed {
		o.failed = true
		return errors.New("not yet")
	}
	return nil
}

// A scrape of two workers that run against PostgreSQL.
func TestRun(t *testing.T) {
	db, url := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	exec := func(query string) {
		t.Helper()
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	const n = 40
	exec(eventtable.Layout)
	place := func(version int) {
		t.Helper()
		exec(fmt.Sprintf(`INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
			SELECT 'shop', 'order', i, %d, gen_random_uuid(), 'Changed', '' FROM generate_series(1, %d) i`, version, n))
	}
	place(1)

	c := NewCollector()
	metrics := serve(t, c)
	value := func(of, label string) float64 {
		m := find(scrape(t, metrics)[name(of)], label)
		return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	eventually := func(of, label string, want float64) {
		t.Helper()
		pgtest.Eventually(t, fmt.Sprintf("%s{%s} is %v", of, label, want), func() bool { return value(of, label) == want })
	}
	series := func(of string) int { return len(scrape(t, metrics)[name(of)].GetMetric()) }

	start := func() (stop func()) {
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		store, err := orchestrator.NewEventTable(db, "events")
		if err != nil {
			t.Fatal(err)
		}
		o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
			DB: db, EventStore: store, ReplicaSet: "main", Observer: c.Observer(),
			HeartbeatInterval: 20 * time.Millisecond, StaleWorkerTimeout: time.Minute, JoinWindow: time.Millisecond,
			PollInterval: 10 * time.Millisecond, Retry: orchestrator.Retry{Min: time.Millisecond},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{&stumbling{}}) }()
		stopped := false
		stop = func() {
			if stopped {
				return
			}
			stopped = true
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run returned %v", err)
			}
			db.Close()
		}
		t.Cleanup(stop)
		return stop
	}

	stop := start()
	eventually("events_processed_total", `projection="orders"`, n)
	eventually("workers", "", 1)
	eventually("worker_state", `state="running"`, 1)
	eventually("current_generation_partitions", "", 1)
	eventually("lag_events", `partition="0"`, 0)
	if got := value("projection_errors_total", ""); got != 1 {
		t.Errorf("%v errors of handlers, want 1", got)
	}
	if got := value("generations_total", `reason="first worker"`); got != 1 {
		t.Errorf("%v generations for the first worker, want 1", got)
	}

	stopSecond := start()
	eventually("workers", "", 2)
	eventually("worker_state", `state="running"`, 2)
	eventually("current_generation_partitions", "", 2)
	place(2)
	eventually("events_processed_total", `projection="orders"`, 2*n)
	pgtest.Eventually(t, "both partitions are shown", func() bool { return series("lag_seconds") == 2 })

	if _, err := ops.Pause(t.Context(), db, "main", "orders"); err != nil {
		t.Fatal(err)
	}
	eventually("generations_total", `reason="pause"`, 1)
	pgtest.Eventually(t, "both partitions of what is paused are shown", func() bool { return series("lag_seconds") == 2 && value("paused_seconds", "") > 0 })
	if _, err := ops.Resume(t.Context(), db, "main", "orders"); err != nil {
		t.Fatal(err)
	}
	eventually("generations_total", `reason="resume"`, 1)
	pgtest.Eventually(t, "both partitions are shown again", func() bool { return series("lag_seconds") == 2 && value("paused_seconds", "") == 0 })

	stop()
	eventually("workers", "", 1)
	eventually("current_generation_partitions", "", 1)
	pgtest.Eventually(t, "one partition is shown", func() bool { return series("lag_seconds") == 1 && series("stalled") == 1 })
	stopSecond()
	for _, gone := range []string{"workers", "worker_state", "current_generation_partitions", "crash_detection_off", "gap_open_seconds",
		"lag_events", "lag_seconds", "stalled", "beyond_end", "events_parked", "paused_seconds", "rebuild"} {
		if n := series(gone); n != 0 {
			t.Errorf("%d series of %s are left", n, gone)
		}
	}
	for label, want := range map[string]float64{`reason="first worker"`: 1, `reason="joined"`: 1, `reason="gone"`: 1} {
		if got := value("generations_total", label); got != want {
			t.Errorf("generations_total{%s} is %v, want %v", label, got, want)
		}
	}
	for _, of := range []string{"heartbeat_latency_seconds", "batch_duration_seconds"} {
		if value(of, "") == 0 {
			t.Errorf("nothing in %s", of)
		}
	}
	if got := value("coordination_duration_seconds", ""); got != 5 {
		t.Errorf("%v rebalances were timed, want 5", got)
	}
}
