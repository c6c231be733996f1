package pgx

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

func openPQ(url string) (*sql.DB, error) { return sql.Open("postgres", url) }

// Settings of the connection that can't work are refused by name before anything is changed. The
// others work, with either driver, in each of pgx's modes.
func TestSettings(t *testing.T) {
	base, address := pgtest.Database(t)
	if err := orchestrator.RunMigrations(base); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{tables, insertEvents} {
		if _, err := base.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	drivers := map[string]storetest.Open{"pq": openPQ}
	for _, mode := range append([]pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec}, modes...) {
		drivers["pgx "+mode.String()] = opener(mode)
	}
	for _, c := range []struct {
		name, value string
		refused     []string // by which drivers
	}{
		{"application_name", "worker", nil},
		{"default_transaction_read_only", "on", []string{"pq", "pgx"}},
		{"client_encoding", "LATIN1", []string{"pq", "pgx"}},
		{"client_encoding", "SQL_ASCII", []string{"pq", "pgx"}},
		{"DateStyle", "German", []string{"pq", "pgx exec", "pgx simple"}},
		{"standard_conforming_strings", "off", []string{"pgx simple"}},
		{"session_replication_role", "replica", nil},
		{"default_transaction_isolation", "serializable", nil},
		{"plan_cache_mode", "force_generic_plan", nil},
	} {
		for driver, open := range drivers {
			name := c.name + "=" + c.value + " " + driver
			t.Run(name, func(t *testing.T) {
				u, err := url.Parse(address)
				if err != nil {
					t.Fatal(err)
				}
				q := u.Query()
				q.Set(c.name, c.value)
				u.RawQuery = q.Encode()
				db, err := open(u.String())
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				events, err := orchestrator.NewEventTable(db, "")
				if err != nil {
					t.Fatal(err)
				}
				o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
					DB: db, EventStore: events, ReplicaSet: orchestrator.ReplicaSetName(name),
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				seen := &tally{name: name, all: 200, done: cancel}
				err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{seen})
				refused := false
				for _, prefix := range c.refused {
					refused = refused || strings.HasPrefix(driver, prefix)
				}
				switch {
				case refused && driver == "pq" && errors.Is(err, orchestrator.ErrInvalidConfig) && strings.Contains(err.Error(), "connection string"):
					// The driver refuses it, and its error may contain the password.
				case refused && (err == nil || !strings.Contains(err.Error(), c.name)):
					t.Errorf("Run returned %v, which does not name %s", err, c.name)
				case !refused && err != nil:
					t.Errorf("Run returned %v", err)
				case refused && seen.n > 0:
					t.Errorf("%d events were handled", seen.n)
				}
			})
		}
	}
}

// A tally ends the worker when it has seen all events.
type tally struct {
	name   string
	n, all int
	done   func()
}

func (c *tally) Name() string { return c.name }

func (c *tally) Handle(context.Context, orchestrator.Event) error {
	if c.n++; c.n == c.all {
		c.done()
	}
	return nil
}
