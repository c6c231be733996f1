package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// The server converts a statement with its comments before it parses it: one
// character that the database's encoding lacks, and nothing of it runs.
func TestSQLIsASCII(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"schema.sql", "grants.sql"} {
		for n, line := range strings.Split(readFile(t, file), "\n") {
			if strings.ContainsFunc(line, func(r rune) bool { return r > '~' || r < ' ' }) {
				t.Errorf("%s:%d: %q is not printable ASCII", file, n+1, line)
			}
		}
	}
}

// encoded creates a database in an encoding.
func encoded(t *testing.T, encoding string) (*sql.DB, string) {
	t.Helper()
	admin, base := pgtest.Database(t)
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	name = "enc_" + name[max(0, len(name)-40):]
	execute(t, admin, fmt.Sprintf("CREATE DATABASE %s TEMPLATE template0 ENCODING '%s' LC_COLLATE 'C' LC_CTYPE 'C'", pq.QuoteIdentifier(name), encoding))
	t.Cleanup(func() {
		if _, err := admin.ExecContext(context.Background(), "DROP DATABASE "+pq.QuoteIdentifier(name)+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	u.Path = "/" + name
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, u.String()
}

// Whatever the encoding: the tables can be made, workers run, and an event is parked
// whose error and aggregate the encoding can't hold, is listed, retried and
// discarded. What is for people decides nothing.
func TestEncodings(t *testing.T) {
	t.Parallel()
	grants, err := os.ReadFile("grants.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, encoding := range []string{"LATIN1", "LATIN2", "LATIN9", "KOI8R", "WIN1252", "SQL_ASCII", "EUC_JP", "ISO_8859_5", "UTF8"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			db, url := encoded(t, encoding)
			if err := orchestrator.Migrate(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			w := &world{&testworld.World{T: t, DB: db, URL: url}}
			w.Exec(eventtable.Layout)
			w.Exec(testworld.EffectsTable)
			w.Exec(string(grants))
			t.Cleanup(func() {
				for _, role := range []string{"worker", "operator", "monitor"} {
					name := granted{database: strings.TrimPrefix(mustPath(t, url), "/")}.role(role)
					for _, s := range []string{"DROP OWNED BY ", "DROP ROLE "} {
						if _, err := db.ExecContext(context.Background(), s+pq.QuoteIdentifier(name)); err != nil {
							t.Error(err)
						}
					}
				}
			})
			w.Append(20)
			// What a handler says is any text, of another system say.
			const says = "\u201cquoted\u201d \u00e9 \U0001F600 \u2028 \\ \" \x00 \xff"
			cfg := w.Config(db, "set")
			cfg.Failures = map[string]orchestrator.FailureRule{"transactional": {Policy: orchestrator.ParkEvents, Attempts: 1}}
			failing := testworld.Effects{Projection: "transactional", Hook: func(_ context.Context, e orchestrator.Event) error {
				if e.GlobalPosition == 3 {
					return errors.New(says)
				}
				return nil
			}}.Transactional()
			r := testworld.Run(t, cfg, failing)
			pgtest.Eventually(t, "the event is parked, and a report is there", func() bool {
				return w.Number(`SELECT count(*) FROM orchestrator_parked WHERE attempts > 0`) == 1 && w.Reports() == 1
			})
			list, err := ops.Parked(t.Context(), db, "transactional", 10)
			if err != nil || len(list) == 0 || !strings.Contains(list[0].Error, "quoted") {
				t.Errorf("parked: %+v, %v", list, err)
			}
			if _, err := ops.RetryParked(t.Context(), db, "transactional", ops.ParkedSelector{Positions: []int64{3}}); err != nil {
				t.Error(err)
			}
			pgtest.Eventually(t, "the retry has failed, and that is noted", func() bool {
				return len(list) > 0 && w.Number(`SELECT max(attempts) FROM orchestrator_parked`) == int64(list[0].Attempts)+1
			})
			if _, err := ops.DiscardParked(t.Context(), db, "transactional", ops.ParkedSelector{All: true}); err != nil {
				t.Error(err)
			}
			pgtest.Eventually(t, "it is discarded", func() bool { return w.Number(`SELECT count(*) FROM orchestrator_parked`) == 0 })
			if _, err := ops.Status(t.Context(), db, "set"); err != nil {
				t.Error(err)
			}

			// Names that it can't hold are refused where they enter.
			const name = "\u201cset\u201d \U0001F600"
			if _, err := ops.RetryParked(t.Context(), db, "transactional", ops.ParkedSelector{AggregateID: name}); !errors.Is(err, ops.ErrNotParked) {
				t.Errorf("retry of an aggregate that there can't be: %v", err)
			}
			if encoding != "UTF8" && encoding != "SQL_ASCII" {
				_, status := ops.Status(t.Context(), db, name)
				_, pause := ops.Pause(t.Context(), db, name, "transactional")
				_, pauseP := ops.Pause(t.Context(), db, "set", name)
				_, drain := ops.DrainWorker(t.Context(), db, "set", name)
				_, parked := ops.Parked(t.Context(), db, name, 1)
				_, retry := ops.RetryParked(t.Context(), db, name, ops.ParkedSelector{All: true})
				for _, got := range []struct {
					what      string
					err, want error
				}{
					{"status", status, ops.ErrNoReplicaSet}, {"pause", pause, ops.ErrRejected}, {"pause of a projection", pauseP, ops.ErrRejected},
					{"drain", drain, ops.ErrRejected}, {"parked", parked, ops.ErrNoProjection}, {"retry", retry, ops.ErrNoProjection},
				} {
					if !errors.Is(got.err, got.want) {
						t.Errorf("%s: %v, want %v", got.what, got.err, got.want)
					}
				}
				for field, err := range map[string]error{
					"Config.ReplicaSet": testworld.Run(t, w.Config(db, name), failing).Failed(),
					"projections[0]":    testworld.Run(t, w.Config(db, "set"), testworld.Effects{Projection: name}.Transactional()).Failed(),
				} {
					if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), "encoding") {
						t.Errorf("%s that it can't hold: %v", field, err)
					}
				}
			}
			r.Stop()
		})
	}
}

func mustPath(t testing.TB, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Path
}
