package orchestrator_test

import (
	"context"
	"database/sql"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// probe returns what a handler answers.
func probe(h http.Handler, path string) (status int, text string) {
	r := httptest.NewRecorder()
	h.ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, nil))
	return r.Code, r.Body.String()
}

func expectProbe(t testing.TB, when string, h http.Handler, path string, status int, text string) {
	t.Helper()
	if got, body := probe(h, path); got != status || !strings.Contains(body, text) {
		t.Errorf("%s: %s answers %d, %q; want %d, …%s…", when, path, got, body, status, text)
	}
}

type fixedHealth orchestrator.Health

func (h fixedHealth) Health() orchestrator.Health { return orchestrator.Health(h) }

// One probe speaks for all Orchestrators of a process.
func TestHealthHandler(t *testing.T) {
	fine := fixedHealth{Live: true, Ready: true, Detail: "one is fine"}
	begins := fixedHealth{Live: true, Detail: "two begins"}
	stuck := fixedHealth{Detail: "three is stuck"}
	for _, c := range []struct {
		path   string
		of     []orchestrator.HealthChecker
		status int
		body   string
	}{
		{"/livez", []orchestrator.HealthChecker{fine, begins}, 200, "one is fine\ntwo begins\n"},
		{"/readyz", []orchestrator.HealthChecker{fine}, 200, "one is fine\n"},
		{"/readyz", []orchestrator.HealthChecker{fine, begins}, 503, "one is fine\ntwo begins\n"},
		{"/workers/livez", []orchestrator.HealthChecker{stuck, fine}, 503, "three is stuck\none is fine\n"},
		{"/workers/readyz/", []orchestrator.HealthChecker{fine}, 200, "one is fine\n"},
		{"/healthz", []orchestrator.HealthChecker{fine}, 404, "404 page not found\n"},
		{"/", []orchestrator.HealthChecker{fine}, 404, "404 page not found\n"},
	} {
		if status, body := probe(orchestrator.HealthHandler(c.of...), c.path); status != c.status || body != c.body {
			t.Errorf("%s of %v: %d, %q; want %d, %q", c.path, c.of, status, body, c.status, c.body)
		}
	}
}

// A worker that starts while the database is away is alive and not ready. Once it
// has had its place, it is ready, whatever becomes of the database: two workers
// that were not ready at once would look like a set that is gone.
func TestHealthWhileTheDatabaseIsAway(t *testing.T) {
	s, err := embedpg.Start(t.Context(), embedpg.Options{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	w := newWorldOn(t, s)

	// With leases that end in the outage, so that they have to join again.
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout = time.Second
	cfg.MaxPartitions = 1 // the second is a standby
	type worker struct {
		o      *orchestrator.Orchestrator[orchestrator.Event]
		probes http.Handler
		cancel context.CancelFunc
		done   chan error
	}
	begin := func() *worker {
		o, err := orchestrator.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		v := &worker{o, orchestrator.HealthHandler(o), cancel, make(chan error, 1)}
		expectProbe(t, "before Run", v.probes, "/livez", 200, "has not been called")
		expectProbe(t, "before Run", v.probes, "/readyz", 503, "has not been called")
		go func() { v.done <- o.Run(ctx, w.All(w.DB, nil)) }()
		t.Cleanup(cancel)
		return v
	}
	becomes := func(v *worker, path string, status int, text string) {
		t.Helper()
		pgtest.Eventually(t, path+" says "+text, func() bool {
			got, body := probe(v.probes, path)
			return got == status && strings.Contains(body, text)
		})
	}

	first := begin()
	becomes(first, "/readyz", 200, "runs generation")
	second := begin()
	becomes(second, "/readyz", 200, "is a standby")

	var third *worker
	err = s.Outage(t.Context(), func() {
		for _, v := range []*worker{first, second} {
			becomes(v, "/readyz", 200, "does not answer")
		}
		third = begin()
		becomes(third, "/livez", 200, "is starting")
		// The lease is over when the lanes have been told so and have stopped.
		pgtest.Eventually(t, "the lease of the first is over", func() bool { return orchestrator.Running(first.o) == 0 })
		for _, v := range []*worker{first, second} {
			expectProbe(t, "in the outage", v.probes, "/livez", 200, "does not answer")
			expectProbe(t, "in the outage", v.probes, "/readyz", 200, "does not answer")
		}
		expectProbe(t, "in the outage", third.probes, "/livez", 200, "is starting")
		expectProbe(t, "in the outage", third.probes, "/readyz", 503, "is starting")
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*worker{first, second, third} {
		pgtest.Eventually(t, "it has a place again", func() bool {
			status, body := probe(v.probes, "/readyz")
			return status == 200 && (strings.Contains(body, "runs generation") || strings.Contains(body, "is a standby"))
		})
	}
	for _, v := range []*worker{first, second, third} {
		v.cancel()
		<-v.done
		expectProbe(t, "after Run", v.probes, "/livez", 200, "was stopped")
		expectProbe(t, "after Run", v.probes, "/readyz", 503, "was stopped")
	}
}

// A Run that can't go on asks for a restart, if the program doesn't end by itself.
func TestHealthOfARunThatFailed(t *testing.T) {
	w := newWorld(t)
	w.Exec(`DELETE FROM orchestrator_schema`)
	o, err := orchestrator.New(w.Config(w.DB, "set"))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Run(t.Context(), w.All(w.DB, nil)); err == nil {
		t.Fatal("Run returned nil")
	}
	expectProbe(t, "after it", orchestrator.HealthHandler(o), "/livez", 503, "Run has returned: the library's tables are missing")
}

// A loop that waits for nothing but a handler turns all the same.
func TestHealthWhileAHandlerDoesNotReturn(t *testing.T) {
	w := newWorld(t)
	w.Append(1)
	connector, err := pq.NewConnector(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	outage := &testworld.Outage{Connector: connector}
	db := sql.OpenDB(outage)
	t.Cleanup(func() { _ = db.Close() })
	cfg := w.Config(db, "set")
	cfg.LeaseOnly, cfg.StaleWorkerTimeout, cfg.CoordinationTimeout = true, time.Second, 24*time.Hour
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	lost, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		_ = o.Run(ctx, []projection{testworld.Effects{Projection: "slow", Hook: func(ctx context.Context, _ orchestrator.Event) error {
			outage.Begin(w.World)
			<-ctx.Done()
			close(lost)
			<-release
			return ctx.Err()
		}}.Plain(w.DB)})
	}()
	t.Cleanup(func() {
		cancel()
		close(release)
		<-done
	})
	<-lost
	for range 3 {
		turned := orchestrator.Turned(o)
		pgtest.Eventually(t, "the loop turns again", func() bool { return orchestrator.Turned(o).After(turned) })
	}
	expectProbe(t, "without a database", orchestrator.HealthHandler(o), "/readyz", 200, "does not answer")
}
