package pgx

import (
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// If pgx can't parse a connection string, it masks what it recognises as a password, and quotes
// the rest.
func TestNoSecretOfPgxLeaves(t *testing.T) {
	for _, dsn := range []string{
		"postgres://user:hunter2@127.0.0.1:x/db",
		"postgres://user:%zzhunter2@127.0.0.1/db",
		"postgres://user:hunter2[@127.0.0.1:x/db",
		"postgres://user:hunter2/x@127.0.0.1:1/db",
		"postgres://user:a hunter2@127.0.0.1:1/db",
		"postgres://127.0.0.1:x/db?password=hunter2",
		"postgres://127.0.0.1:1/db?sslmode=hunter2",
		"host=127.0.0.1 password=x hunter2 dbname=y",
		"host=127.0.0.1 port=x password = 'a hunter2'",
		"host=127.0.0.1 port=x password='a\\' hunter2'",
		"host=127.0.0.1 sslmode=x sslpassword=hunter2",
	} {
		t.Run(dsn, func(t *testing.T) {
			db, err := sql.Open("pgx", dsn)
			if err == nil {
				defer db.Close()
				err = db.PingContext(t.Context())
			}
			if err == nil || !redact.Unusable(fmt.Errorf("x: %w", err)) || strings.Contains(redact.Error(fmt.Errorf("x: %w", err)).Error(), "hunter2") {
				t.Fatalf("%v, of which is left: %v", err, redact.Error(err))
			}
			if db == nil {
				return // New has returned the error already
			}
			events, err := orchestrator.NewEventTable(db, "")
			if err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
				DB: db, EventStore: events, ReplicaSet: "set", Logger: slog.New(slog.NewTextHandler(&said, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			err = o.Run(t.Context(), []orchestrator.Projection[orchestrator.Event]{batched{}})
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Accept", "application/json")
			ops.StatusHandler(db).ServeHTTP(w, r)
			if all := fmt.Sprint(err, said.String(), w.Body); !errors.Is(err, orchestrator.ErrInvalidConfig) || strings.Contains(all, "hunter2") {
				t.Error(all)
			}
		})
	}
	// A part of the password that looks like the name of the database.
	db, err := sql.Open("pgx", "postgres://127.0.0.1:1/hunter2@10.0.0.1/db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := redact.Error(db.PingContext(t.Context())); strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}
