package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// A lockedBuffer is what a logger of several goroutines writes into.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Whatever leaves the process of a worker whose connection string can't be parsed,
// the string is not in it; and Run ends instead of trying for ever.
func TestNoSecretLeaves(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for _, dsn := range []string{
		"postgres://user:hunter2@127.0.0.1:x/db",
		"postgres://user:%zzhunter2@127.0.0.1/db",
		"postgres://user:hunter2#x@127.0.0.1:1/db",
		"postgres://user:hunter2?x@127.0.0.1:1/db",
		"postgres://user:hunter2/x@127.0.0.1:1/db",
		"postgres://user:hunter2[@127.0.0.1:1/db",
		"postgres://user:a hunter2@127.0.0.1:1/db",
		"postgres://user:hunter2\n@127.0.0.1:1/db",
		"postgres://127.0.0.1:x/db?password=hunter2",
		"postgres://127.0.0.1:1/db?sslmode=hunter2",
		"host=127.0.0.1 password=x hunter2 dbname=y",
		"password = 'a hunter2",
		"host=127.0.0.1 port=hunter2",
	} {
		t.Run(dsn, func(t *testing.T) {
			db, err := sql.Open("postgres", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			events, err := orchestrator.NewEventTable(db, "")
			if err != nil {
				t.Fatal(err)
			}
			said := &lockedBuffer{}
			observer := &orchestrator.Observer{WorkerLeft: func(e orchestrator.WorkerLeft) { fmt.Fprint(said, e) }}
			o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
				DB: db, EventStore: events, ReplicaSet: "set", Logger: slog.New(slog.NewJSONHandler(said, nil)), Observer: observer,
			})
			if err != nil {
				t.Fatal(err)
			}
			outputs := map[string]string{}
			err = o.Run(t.Context(), []projection{testworld.Effects{Projection: "p"}.Plain(db)})
			if !errors.Is(err, orchestrator.ErrInvalidConfig) {
				t.Errorf("Run returned %v, want ErrInvalidConfig", err)
			}
			outputs["Run's error"] = fmt.Sprintf("%v %+v %q %#v", err, err, err, err)
			outputs["the log"] = said.String()
			if !strings.Contains(said.String(), "worker did not start") {
				t.Errorf("the log does not say why it ended: %s", said)
			}
			err = o.CatchUp(t.Context(), []projection{testworld.Effects{Projection: "p"}.Plain(db)})
			if !errors.Is(err, orchestrator.ErrInvalidConfig) {
				t.Errorf("CatchUp returned %v, want ErrInvalidConfig", err)
			}
			outputs["CatchUp's error"] = fmt.Sprint(err)
			for _, path := range []string{"/livez", "/readyz"} {
				status, body := probe(orchestrator.HealthHandler(o), path)
				outputs[path] = body
				if status != http.StatusServiceUnavailable || !strings.Contains(body, "the configuration is invalid; see the log") {
					t.Errorf("%s: %d, %s", path, status, body)
				}
			}
			page := ops.StatusHandler(db, ops.AllowActions())
			for _, r := range []*http.Request{
				httptest.NewRequest(http.MethodGet, "/", nil),
				httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"action":"pause","replica_set":"a","projection":"b"}`)),
			} {
				r.Header.Set("Accept", "application/json")
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				page.ServeHTTP(w, r)
				outputs["the status, "+r.Method] = w.Body.String()
				if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "can't be parsed") {
					t.Errorf("%s of the status: %d, %s", r.Method, w.Code, w.Body)
				}
			}
			ctx := t.Context()
			_, err1 := ops.Status(ctx, db, "set")
			_, err2 := ops.History(ctx, db, "set", 1)
			_, err3 := ops.ReplicaSets(ctx, db)
			_, err4 := ops.Parked(ctx, db, "p", 1)
			_, err5 := ops.RetryParked(ctx, db, "p", ops.ParkedSelector{All: true})
			_, err6 := ops.Pause(ctx, db, "set", "p")
			err7 := ops.AwaitGeneration(ctx, db, "set", 1)
			err8 := orchestrator.WaitFor(ctx, db, "p", 1)
			err9 := orchestrator.RunMigrations(db)
			for i, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8, err9} {
				outputs[fmt.Sprintf("function %d", i+1)] = fmt.Sprint(err)
				if err == nil {
					t.Errorf("function %d succeeds", i+1)
				}
			}
			for what, text := range outputs {
				if strings.Contains(text, secret) {
					t.Errorf("%s: %s", what, text)
				}
			}
		})
	}
}

// A handler whose own database's error quotes a connection string.
func TestNoSecretOfAHandlerLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	said := &lockedBuffer{}
	cfg := w.Config(w.DB, "set")
	cfg.Logger = slog.New(slog.NewTextHandler(said, nil))
	cfg.OnFailure = orchestrator.StopOnFailure
	failing := errors.New("connect to postgres://user:hunter2@10.0.0.1:x/db: refused")
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = o.Run(t.Context(), []projection{testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error { return failing }}.Plain(w.DB)})
	var of *orchestrator.HandlerError
	if !errors.Is(err, failing) || !errors.As(err, &of) {
		t.Fatalf("Run returned %v", err)
	}
	_, live := probe(orchestrator.HealthHandler(o), "/livez")
	if all := fmt.Sprint(err, of, said, live); strings.Contains(all, "hunter2") || !strings.Contains(live, "a handler failed; see the log") {
		t.Error(all)
	}
}

// What is parked, reported and shown of a handler's error is as safe, and short.
func TestNoSecretIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.ParkEvents
	cfg.Failures = map[string]orchestrator.FailureRule{"retried": {Policy: orchestrator.RetryForever}}
	fails := func(context.Context, orchestrator.Event) error {
		return errors.New("connect with password = 'a hunter2': " + strings.Repeat("no ", 5000))
	}
	panics := func(context.Context, orchestrator.Event) error { panic("at postgres://user:hunter2@10.0.0.1/db") }
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "parks", Hook: fails}.Plain(w.DB), testworld.Effects{Projection: "panics", Hook: panics}.Plain(w.DB), testworld.Effects{Projection: "retried", Hook: fails}.Plain(w.DB))
	pgtest.Eventually(t, "they are parked and reported", func() bool {
		return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE attempts > 0`) == 2 &&
			w.Number(`SELECT count(*) FROM orchestrator_reports WHERE report::text LIKE '%withheld%'`) == 1
	})
	if n := w.Number(`SELECT count(*) FROM orchestrator_parked WHERE error LIKE '%hunter2%' OR length(error) > 1100 OR error LIKE '%goroutine%'`); n != 0 {
		t.Errorf("%d parked errors are long, or have a secret or a stack", n)
	}
	if n := w.Number(`SELECT count(*) FROM orchestrator_reports WHERE report::text LIKE '%hunter2%'`); n != 0 {
		t.Error("a report has a secret")
	}
	if _, body := testworld.StatusPage(t, ops.StatusHandler(w.DB)); strings.Contains(body, "hunter2") || !strings.Contains(body, "withheld") {
		t.Errorf("the status is %s", body)
	}
	r.Stop()
}

// Probes say neither what a handler has said nor where it was.
func TestProbesSayNothingOfAPanic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.StopOnFailure
	o, err := orchestrator.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = o.Run(t.Context(), []projection{testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error {
		panic("can't charge card 4111")
	}}.Plain(w.DB)})
	var panicked *orchestrator.PanicError
	if !errors.As(err, &panicked) {
		t.Fatalf("Run returned %v", err)
	}
	text := panicked.Error()
	if strings.Contains(text, "\n") || !strings.Contains(text, "panic: can't charge card 4111 (") || !strings.Contains(text, "secrets_test.go:") {
		t.Errorf("the panic's text is %q", text)
	}
	if more := fmt.Sprintf("%+v", panicked); !strings.Contains(more, "goroutine") || !strings.HasPrefix(more, text) {
		t.Errorf("the panic's %%+v is %q", more)
	}
	r := httptest.NewRecorder()
	orchestrator.HealthHandler(o).ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/livez", nil))
	if got, want := r.Body.String(), "replica set \"set\": Run has returned: a handler failed; see the log\n"; got != want || r.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("/livez says %q, %v", got, r.Header())
	}
}

// A handler, or a defer in the wrong place, closes the database under a worker.
func TestRunOfAClosedDatabase(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "while it runs"} {
		w := newWorld(t)
		w.Append(1)
		db := w.Connect()
		o, err := orchestrator.New(w.Config(db, "set"))
		if err != nil {
			t.Fatal(err)
		}
		if when == "before" {
			db.Close()
		}
		err = o.Run(t.Context(), []projection{testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error {
			return db.Close()
		}}.Plain(w.DB)})
		if err == nil || !strings.Contains(err.Error(), "the *sql.DB was closed before Run returned") {
			t.Errorf("closed %s, Run returned %v", when, err)
		}
		expectProbe(t, "closed "+when, orchestrator.HealthHandler(o), "/livez", 503, "the database handle was closed; see the log")
	}
}

// Who gives no logger hears what is wrong.
func TestDefaultLogger(t *testing.T) {
	w := newWorld(t)
	w.Append(1)
	said := &lockedBuffer{}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewJSONHandler(said, nil)))
	defer slog.SetDefault(before)
	cfg := w.Config(w.DB, "set")
	cfg.Logger = nil
	w1 := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error { return errors.New("no such table") }}.Plain(w.DB))
	pgtest.Eventually(t, "the default logger has a line of it", func() bool {
		text := said.String()
		return strings.Contains(text, `"level":"WARN","msg":"handler failed, will retry"`) && strings.Contains(text, "no such table") &&
			strings.Contains(text, `"retry_in":"`) && strings.Contains(text, "ms\"")
	})
	w1.Stop()
}
