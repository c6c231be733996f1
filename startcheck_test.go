package orchestrator_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// startStatements are those of a start, each by a text that no other one has.
var startStatements = []struct{ name, text string }{
	{"settings", `client_encoding,DateStyle`},
	{"schema of the tables", `OPERATOR(pg_catalog.=) 'orchestrator_schema'::`},
	{"schema of the events", `OPERATOR(pg_catalog.=) 'events'::`},
	{"identity", `format('%I.%I', n.nspname`},
	{"columns of the tables", `SELECT c.relname::pg_catalog.text, a.attname`},
	{"version of the tables", `max(version)`},
	{"facts", `pg_subscription_rel`},
	{"types", `provolatile`},
	{"by its position", `::bigint[]`},
	{"by its scope", `AND "global_position" OPERATOR(pg_catalog.<=)`},
	{"whole", `"payload"`},
	{"replica set", `s.join_window_us`},
	{"key", `"global_position", "aggregate_id"::pg_catalog.text FROM`},
}

func startStatement(query string) string {
	for _, s := range startStatements {
		if strings.Contains(query, s.text) {
			return s.name
		}
	}
	return query
}

// A lockstep holds statements until all of a round are there, and lets them go together.
type lockstep struct {
	mu      sync.Mutex
	sizes   []int // of the rounds that are left
	rounds  [][]string
	waiting []string
	release chan struct{}
	over    chan struct{} // closed after the last round
	twice   []string      // the statements that lib/pq takes two round trips for
}

func (l *lockstep) hold(ctx context.Context, query string) {
	l.mu.Lock()
	if len(l.sizes) == 0 {
		l.mu.Unlock()
		return
	}
	if strings.Contains(query, "$1") {
		l.twice = append(l.twice, query)
	}
	release := l.release
	if l.waiting = append(l.waiting, startStatement(query)); len(l.waiting) == l.sizes[0] {
		slices.Sort(l.waiting)
		l.rounds, l.waiting, l.sizes = append(l.rounds, l.waiting), nil, l.sizes[1:]
		close(l.release)
		l.release = make(chan struct{})
		if len(l.sizes) == 0 {
			close(l.over)
		}
	}
	l.mu.Unlock()
	select {
	case <-release:
	case <-ctx.Done():
	}
}

// A worker that starts asks what it must know in four round trips, on four connections, and
// reads the set which it is about to join with the last of them:
// these statements go together. One that waits for another of its round never goes, nor
// does one that has no connection.
func TestStartTakesFourRoundTrips(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	want := [][]string{
		{"schema of the events", "schema of the tables", "settings"},
		{"columns of the tables", "facts", "identity", "types"},
		{"version of the tables", "whole"},
		{"by its position", "by its scope", "key", "replica set"},
	}
	ctx, cancel := context.WithTimeout(t.Context(), testworld.Limit)
	defer cancel()
	l := &lockstep{release: make(chan struct{}), over: make(chan struct{})}
	for _, round := range want {
		l.sizes = append(l.sizes, len(round))
	}
	db, f := testworld.Faulty(t, w.URL)
	db.SetMaxOpenConns(4)
	f.OnQuery(func(query string) { l.hold(ctx, query) })
	worker := testworld.Run(t, w.Config(db, "set"), w.All(db, nil)...)
	select {
	case <-l.over:
		w.CaughtUp("plain")
	case <-ctx.Done():
	case <-worker.Done:
		t.Error(worker.Err)
	}
	cancel()
	worker.Kill()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		t.Errorf("these wait for others: %q", l.waiting)
	}
	if diff := cmp.Diff(want, l.rounds); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(l.twice) > 0 {
		t.Errorf("with arguments: %q", l.twice)
	}
}

// Of several things that are wrong, the first one is told.
func TestStartTellsWhatToDoFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	read := reopen(t, w.URL, "default_transaction_read_only", "on")
	for _, c := range []struct {
		why, before string
		readOnly    bool
		table       string
		want        string
	}{
		{"settings, schema, and events", `ALTER TABLE orchestrator_parked RENAME TO elsewhere`, true, "nowhere", "default_transaction_read_only"},
		{"schema, and events", ``, false, "nowhere", "orchestrator_parked"},
		{"events", `ALTER TABLE elsewhere RENAME TO orchestrator_parked`, false, "nowhere", `"nowhere"`},
	} {
		if c.before != "" {
			w.Exec(c.before)
		}
		db := w.DB
		if c.readOnly {
			db = read
		}
		cfg := w.Config(db, "set")
		var err error
		if cfg.EventStore, err = orchestrator.NewEventTable(db, c.table); err != nil {
			t.Fatal(err)
		}
		if err := testworld.Run(t, cfg, w.All(db, nil)...).Failed(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.why, err, c.want)
		}
	}
}

// The table is looked up once. Who gives up while it looks leaves that to the next.
func TestTableIsLookedUpOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	db, f := testworld.Faulty(t, w.URL)
	table, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	var looks atomic.Int64
	first, end := make(chan struct{}), make(chan struct{})
	f.OnQuery(func(query string) {
		if startStatement(query) == "schema of the events" && looks.Add(1) == 1 {
			close(first)
			<-end
		}
	})
	defer close(end)
	ctx, giveUp := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		if err := table.Check(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that has given up: %v", err)
		}
	})
	<-first
	for range 3 {
		others.Go(func() {
			if err := table.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	tired, cancel := context.WithCancel(t.Context())
	cancel()
	if err := table.Check(tired); !errors.Is(err, context.Canceled) {
		t.Errorf("one that waits no longer: %v", err)
	}
	giveUp()
	others.Wait()
	if n := looks.Load(); n != 2 {
		t.Errorf("it was looked up %d times, want 2", n)
	}
}
