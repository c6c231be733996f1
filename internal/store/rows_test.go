package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// badRows are statements that write what a row can't hold.
var badRows = []struct{ table, column, statement string }{
	{"replica_sets", "generation", `UPDATE orchestrator_replica_sets SET generation = -1`},
	{"replica_sets", "total", `UPDATE orchestrator_replica_sets SET total = -1`},
	{"replica_sets", "total", `UPDATE orchestrator_replica_sets SET total = 2147483647`},
	{"replica_sets", "max_partitions", `UPDATE orchestrator_replica_sets SET max_partitions = -1`},
	{"replica_sets", "join_window_us", `UPDATE orchestrator_replica_sets SET join_window_us = 9223372036854775807`},
	{"replica_sets", "opened_at", `UPDATE orchestrator_replica_sets SET opened_at = 'infinity'`},
	{"replica_sets", "activated_at", `UPDATE orchestrator_replica_sets SET activated_at = '-infinity'`},
	{"replica_sets", "step_at", `UPDATE orchestrator_replica_sets SET step_at = 'infinity'`},
	{"replica_sets", "paused", `UPDATE orchestrator_replica_sets SET paused = '{}'`},
	{"replica_sets", "paused", `UPDATE orchestrator_replica_sets SET paused = '[null]'`},
	{"replica_sets", "paused", `UPDATE orchestrator_replica_sets SET paused = 'null'`},
	{"replica_sets", "rewinds", `UPDATE orchestrator_replica_sets SET rewinds = '[]'`},
	{"replica_sets", "rewinds", `UPDATE orchestrator_replica_sets SET rewinds = '{"p": -1}'`},
	{"replica_sets", "rewinds", `UPDATE orchestrator_replica_sets SET rewinds = '{"p": null}'`},
	{"replica_sets", "rewinds", `UPDATE orchestrator_replica_sets SET rewinds = '{"p": 1e30}'`},
	{"workers", "lease_us", `UPDATE orchestrator_workers SET lease_us = 0`},
	{"workers", "lease_us", `UPDATE orchestrator_workers SET lease_us = 9223372036854775807`},
	{"workers", "lease_until", `UPDATE orchestrator_workers SET lease_until = 'infinity'`},
	{"workers", "lease_until", `UPDATE orchestrator_workers SET lease_until = '-infinity'`},
	{"workers", "joined_at", `UPDATE orchestrator_workers SET joined_at = '20000-01-01'`},
	{"workers", "generation", `UPDATE orchestrator_workers SET generation = -1`},
	{"workers", "total", `UPDATE orchestrator_workers SET total = -1`},
	{"workers", "total", `UPDATE orchestrator_workers SET total = 5041`},
	{"workers", "partitions", `UPDATE orchestrator_workers SET partitions = '[-1]'`},
	{"workers", "partitions", `UPDATE orchestrator_workers SET partitions = '[5040]'`},
	{"workers", "partitions", `UPDATE orchestrator_workers SET partitions = '[0.5]'`},
	{"workers", "partitions", `UPDATE orchestrator_workers SET partitions = '["0"]'`},
	{"workers", "partitions", `UPDATE orchestrator_workers SET partitions = '[null]'`},
	{"workers", "partitions", `UPDATE orchestrator_workers SET partitions = '{}'`},
	{"workers", "wants", `UPDATE orchestrator_workers SET wants = 2147483647`},
	{"workers", "wants", `UPDATE orchestrator_workers SET wants = -1`},
	{"workers", "presence_number", `UPDATE orchestrator_workers SET presence_number = -1`},
	{"workers", "holds", `UPDATE orchestrator_workers SET holds = -1`},
	{"workers", "projections", `UPDATE orchestrator_workers SET projections = '[1]'`},
	{"workers", "paused", `UPDATE orchestrator_workers SET paused = '[1]'`},
	{"reports", "reported_at", `UPDATE orchestrator_reports SET reported_at = 'infinity'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '[]'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"head": "x"}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"head": 1e30}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": [1]}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": 1, "lanes": {}}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": 1, "lanes": [1]}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": 1, "lanes": [{"projection": "p", "partition": "x"}]}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": 1, "lanes": [{"projection": "p", "partition": 0, "since": "infinity"}]}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": 1, "lanes": [{"projection": "p", "partition": 0, "since": "2026-01-01T00:00:00Z", "interruption": 1}]}'`},
	{"reports", "report", `UPDATE orchestrator_reports SET report = '{"generation": 1, "lanes": [{"projection": "p", "partition": 0, "since": "2026-01-01T00:00:00Z", "per_second": "x"}]}'`},
	{"checkpoints", "partition", `UPDATE orchestrator_checkpoints SET partition = -1`},
	{"checkpoints", "partition", `UPDATE orchestrator_checkpoints SET partition = total`},
	{"checkpoints", "total", `UPDATE orchestrator_checkpoints SET total = 0`},
	{"checkpoints", "total", `UPDATE orchestrator_checkpoints SET total = 5041`},
	{"checkpoints", "generation", `UPDATE orchestrator_checkpoints SET generation = -9223372036854775808`},
	{"checkpoints", "position", `UPDATE orchestrator_checkpoints SET position = -1`},
	{"checkpoints", "ahead", `UPDATE orchestrator_checkpoints SET ahead = '{}'`},
	{"checkpoints", "ahead", `UPDATE orchestrator_checkpoints SET ahead = '[[5040, 1]]'`},
	{"checkpoints", "ahead", `UPDATE orchestrator_checkpoints SET ahead = '[[0, -1]]'`},
	{"checkpoints", "ahead", `UPDATE orchestrator_checkpoints SET ahead = '[[0]]'`},
	{"checkpoints", "ahead", `UPDATE orchestrator_checkpoints SET ahead = '[null]'`},
	{"checkpoints", "ahead", `UPDATE orchestrator_checkpoints SET ahead = '["x"]'`},
	{"checkpoints", "updated_at", `UPDATE orchestrator_checkpoints SET updated_at = 'infinity'`},
	{"history", "total", `UPDATE orchestrator_history SET total = -1`},
	{"history", "members", `UPDATE orchestrator_history SET members = '[]'`},
	{"history", "members", `UPDATE orchestrator_history SET members = '{"w": [-1]}'`},
	{"history", "members", `UPDATE orchestrator_history SET members = '{"w": 1}'`},
	{"history", "opened_at", `UPDATE orchestrator_history SET opened_at = 'infinity'`},
	{"history", "activated_at", `UPDATE orchestrator_history SET activated_at = '-infinity'`},
	{"history", "waited_for", `UPDATE orchestrator_history SET waited_for = '[1]'`},
	{"parked", "position", `UPDATE orchestrator_parked SET position = -1`},
	{"parked", "slot", `UPDATE orchestrator_parked SET slot = 5040`},
	{"parked", "slot", `UPDATE orchestrator_parked SET slot = -1`},
	{"parked", "attempts", `UPDATE orchestrator_parked SET attempts = -1`},
	{"parked", "parked_at", `UPDATE orchestrator_parked SET parked_at = 'infinity'`},
}

// A filled set has a worker with a partition, a checkpoint, a report, a parked event
// and a history.
func filled(t *testing.T) (*sql.DB, *store.Store, store.Lane) {
	t.Helper()
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	join := protocol.Request{Worker: "w", Join: true, Lease: lease, Wants: 1}
	if _, err := s.Sync(t.Context(), join, []string{"p"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Report(t.Context(), "w", []byte(`{"state": "running", "head": 3, "lanes": []}`)); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		`INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at) VALUES ('p', 1, 0, 'a', 'e', 1, now())`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	return db, s, store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Partition: 0, Total: 1}}
}

// The tables refuse a row that holds what it can't hold.
func TestRowsAreRefused(t *testing.T) {
	t.Parallel()
	db, _, _ := filled(t)
	for _, bad := range badRows {
		_, err := db.ExecContext(t.Context(), bad.statement)
		if store.State(err) != "23514" || !strings.Contains(err.Error(), "orchestrator_"+bad.table) {
			t.Errorf("%s: %v; want that a constraint of the table refuses it", bad.statement, err)
		}
	}
}

// Where a bad row got in all the same, nobody panics: whoever reads the column
// returns an error that names it, and others are not disturbed.
func TestBadRowsAreNamed(t *testing.T) {
	t.Parallel()
	db, s, l := filled(t)
	dropRules(t, db)
	keep(t, db)
	readers := map[string]func(context.Context) error{
		"heartbeat": func(ctx context.Context) error {
			_, err := s.Sync(ctx, protocol.Request{Worker: "w", Heartbeat: true, Lease: lease}, nil)
			return err
		},
		"look of another": func(ctx context.Context) error {
			_, err := s.Sync(ctx, protocol.Request{Worker: "other", Heartbeat: true, ReadOnly: true, Lease: lease}, nil)
			return err
		},
		"step": func(ctx context.Context) error {
			_, err := s.Sync(ctx, protocol.Request{Worker: "v", Join: true, Lease: lease, Wants: 1}, []string{"p"})
			return err
		},
		"join of another set": func(ctx context.Context) error {
			_, err := store.New(db, "other", store.Options{Bounds: store.BoundsOf(lease)}).
				Sync(ctx, protocol.Request{Worker: "o", Join: true, Lease: lease, Wants: 1}, []string{"p"})
			return err
		},
		"load":      func(ctx context.Context) error { _, err := s.Load(ctx, l); return err },
		"find":      func(ctx context.Context) error { _, err := s.Find(ctx, l); return err },
		"parked":    func(ctx context.Context) error { _, err := s.Parked(ctx, l); return err },
		"requested": func(ctx context.Context) error { _, err := s.Requested(ctx, l); return err },
		"status":    func(ctx context.Context) error { _, err := ops.Status(ctx, db, "set"); return err },
		"history":   func(ctx context.Context) error { _, err := ops.History(ctx, db, "set", 10); return err },
		"list":      func(ctx context.Context) error { _, err := ops.Parked(ctx, db, "p", 10); return err },
		"handled": func(ctx context.Context) error {
			_, err := store.HandledTo(ctx, store.Tables{DB: db}, store.Awaited{Projection: "p", Position: 1})
			return err
		},
		"pause": func(ctx context.Context) error { _, err := ops.PauseAll(ctx, db, "set"); return err },
	}
	for _, bad := range badRows {
		for name, read := range readers {
			err := within(t, db, bad.statement, read)
			var row *store.RowError
			var taken *store.TakenError
			switch {
			case err == nil, errors.As(err, &taken):
			case errors.As(err, &row):
				if row.Table != "orchestrator_"+bad.table || !strings.Contains(err.Error(), bad.column) && row.Column != "parked_since" && row.Column != "since" {
					t.Errorf("%s: %s names table %s, column %s: %v", bad.statement, name, row.Table, row.Column, err)
				}
			case strings.Contains(err.Error(), "apply schema.sql"), strings.Contains(err.Error(), "lack partition"):
			default:
				t.Errorf("%s: %s says %v, which names no row", bad.statement, name, err)
			}
		}
	}
}

var keptTables = []string{"replica_sets", "workers", "reports", "checkpoints", "history", "parked", "projections"}

// keep remembers what is in the tables, for within.
func keep(t *testing.T, db *sql.DB) {
	t.Helper()
	var b strings.Builder
	for _, table := range keptTables {
		fmt.Fprintf(&b, "CREATE TABLE kept_%[1]s AS SELECT * FROM orchestrator_%[1]s;\n", table)
	}
	if _, err := db.ExecContext(t.Context(), b.String()); err != nil {
		t.Fatal(err)
	}
}

// within puts back what keep remembers, makes a bad row, and reads.
func within(t *testing.T, db *sql.DB, statement string, read func(context.Context) error) (err error) {
	t.Helper()
	var b strings.Builder
	for _, table := range keptTables {
		fmt.Fprintf(&b, "DELETE FROM orchestrator_%[1]s; INSERT INTO orchestrator_%[1]s OVERRIDING SYSTEM VALUE SELECT * FROM kept_%[1]s;\n", table)
	}
	if _, err := db.ExecContext(t.Context(), b.String()+statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return read(t.Context())
}

func dropRules(t *testing.T, db *sql.DB) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), `
DO $$ DECLARE c record; BEGIN
FOR c IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint WHERE conname LIKE 'orchestrator\_%\_valid' LOOP
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.tab, c.conname);
END LOOP; END $$`)
	if err != nil {
		t.Fatal(err)
	}
}

// Two workers with the same partition, and partitions that the total has not: the
// tables can't see these.
func TestBadRowsTogether(t *testing.T) {
	t.Parallel()
	db, s, _ := filled(t)
	keep(t, db)
	for _, bad := range []struct{ statement, column string }{
		{`UPDATE orchestrator_workers SET partitions = '[0, 0]'`, "partitions"},
		{`UPDATE orchestrator_workers SET partitions = '[7]'`, "partitions"},
		{`INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants,
		         presence_key, presence_number, holds, projections)
		  SELECT replica_set, 'twin', joined_at, lease_us, lease_until, generation, total, partitions, wants, 0, 0, holds, projections FROM orchestrator_workers`, "partitions"},
	} {
		err := within(t, db, bad.statement, func(ctx context.Context) error {
			_, err := s.Sync(ctx, protocol.Request{Worker: "v", Join: true, Lease: lease, Wants: 1}, []string{"p"})
			return err
		})
		var row *store.RowError
		if !errors.As(err, &row) || row.Table != "orchestrator_workers" || row.Column != bad.column {
			t.Errorf("%s: %v", bad.statement, err)
		}
	}
}

// An upgrade names the row that breaks a rule, and changes nothing.
func TestUpgradeNamesABadRow(t *testing.T) {
	t.Parallel()
	db, _, _ := filled(t)
	dropRules(t, db)
	for _, q := range []string{`UPDATE orchestrator_schema SET version = 2`, `UPDATE orchestrator_workers SET partitions = '[-1]'`} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	err := orchestrator.Migrate(t.Context(), db)
	for _, want := range []string{"orchestrator_workers", "(set, w)", "partitions", "delete the row"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want that it names %s", err, want)
		}
	}
	var version, rules int
	if err := db.QueryRowContext(t.Context(), `SELECT (SELECT version FROM orchestrator_schema),
	  (SELECT count(*) FROM pg_constraint WHERE conname LIKE 'orchestrator\_%\_valid')`).Scan(&version, &rules); err != nil || version != 2 || rules != 0 {
		t.Errorf("version %d, %d rules, %v; want that nothing was changed", version, rules, err)
	}
	if _, err := db.ExecContext(t.Context(), `DELETE FROM orchestrator_workers`); err != nil {
		t.Fatal(err)
	}
	if err := orchestrator.Migrate(t.Context(), db); err != nil {
		t.Error(err)
	}
}

// An aggregate's id may come from another database than the one that holds what is
// parked, whose encoding has not its characters: it is parked in ASCII, found as it is
// known, by lanes and by people, and its error does not make another form of it.
func TestParkedAggregateThatTheEncodingLacks(t *testing.T) {
	t.Parallel()
	admin, base := pgtest.Database(t)
	name := fmt.Sprintf("latin1_%d", time.Now().UnixNano())
	if _, err := admin.ExecContext(t.Context(), `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.ExecContext(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`) })
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	db, err := open(u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := orchestrator.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := s.Sync(t.Context(), protocol.Request{Worker: "w", Join: true, Lease: lease, Wants: 1}, []string{"p"}); err != nil {
		t.Fatal(err)
	}
	l := store.Lane{Projection: "p", Assignment: protocol.Assignment{Generation: 1, Partition: 0, Total: 1}}
	const held, lacking = "caf\u00e9", "\u201cid\u201d"
	at := func(p int64) protocol.Checkpoint { return protocol.Checkpoint{Position: p} }
	park := func(from, to int64, failure string, rows ...protocol.Parked) {
		t.Helper()
		if err := s.Park(t.Context(), l, at(from), at(to), rows, failure); err != nil {
			t.Fatal(err)
		}
	}
	park(0, 1, "\u201cno\u201d", protocol.Parked{Position: 1, Aggregate: held, Attempts: 1})
	park(1, 3, "no", protocol.Parked{Position: 2, Aggregate: held, Attempts: 1}, protocol.Parked{Position: 3, Aggregate: lacking})
	rows, err := s.Parked(t.Context(), l)
	if err != nil || len(rows) != 3 || rows[0].Aggregate != held {
		t.Fatalf("parked: %+v, %v", rows, err)
	}
	parkedSet := protocol.NewParkedSet(rows)
	if !parkedSet.Has(held) || !parkedSet.Has(lacking) || parkedSet.Has("other") {
		t.Errorf("the lane does not know what it has parked: %+v", rows)
	}
	for id, want := range map[string]int{held: 2, lacking: 1, "other": 0} {
		n, err := store.AskParked(t.Context(), store.Tables{DB: db}, "p", store.ParkedSelection{Aggregate: &id}, protocol.Retry)
		if err != nil || n != want {
			t.Errorf("asked for %q: %d, %v; want %d", id, n, err, want)
		}
	}
}
