package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

type (
	config     = orchestrator.Config[orchestrator.Event]
	projection = orchestrator.Projection[orchestrator.Event]
)

// unused is a database that nothing may touch: there is no server.
func unused(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", "postgres://127.0.0.1:1/none?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func valid(t testing.TB) config {
	db := unused(t)
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	return config{DB: db, EventStore: events, ReplicaSet: "set"}
}

func rules(r orchestrator.FailureRule) map[string]orchestrator.FailureRule {
	return map[string]orchestrator.FailureRule{"orders": r}
}

func TestNewNamesTheFieldAtFault(t *testing.T) {
	t.Parallel()
	var noTable *orchestrator.Table[orchestrator.Event]
	for _, test := range []struct {
		why    string
		change func(*config)
		want   string // a part of the message; empty: no error
	}{
		{"the zeros mean defaults", func(*config) {}, ""},
		{"no database", func(c *config) { c.DB = nil }, "Config.DB is nil"},
		{"no event store", func(c *config) { c.EventStore = nil }, "Config.EventStore is nil"},
		{"a nil pointer in the interface", func(c *config) { c.EventStore = noTable }, "Config.EventStore is nil"},
		{"no name", func(c *config) { c.ReplicaSet = "" }, "Config.ReplicaSet is empty"},
		{"only spaces", func(c *config) { c.ReplicaSet = "  " }, "Config.ReplicaSet is empty"},
		{"the longest name", func(c *config) { c.ReplicaSet = orchestrator.ReplicaSetName(strings.Repeat("a", 200)) }, ""},
		{"a longer one", func(c *config) { c.ReplicaSet = orchestrator.ReplicaSetName(strings.Repeat("a", 201)) }, "Config.ReplicaSet is 201 bytes long; the most is 200"},
		{"a line break", func(c *config) { c.ReplicaSet = "a\nb" }, `Config.ReplicaSet "a\nb" contains a control character`},
		{"a zero byte, which PostgreSQL refuses", func(c *config) { c.ReplicaSet = "a\x00b" }, "control character"},
		{"not UTF-8, likewise", func(c *config) { c.ReplicaSet = "a\xffb" }, "not valid UTF-8"},
		{"other scripts are fine", func(c *config) { c.ReplicaSet = "Größe 大" }, ""},
		{"no notifier", func(c *config) { c.Notifier = (*notifierFunc)(nil) }, "Config.Notifier is a nil pointer"},
		{"a channel", func(c *config) { c.Notifier, c.EventsChannel = new(notifierFunc), `"E"` }, ""},
		{"a channel without a Notifier", func(c *config) { c.EventsChannel = "e" }, "Config.EventsChannel is set without a Notifier"},
		{"a longer channel than there are", func(c *config) { c.Notifier, c.EventsChannel = new(notifierFunc), strings.Repeat("e", 64) }, "Config.EventsChannel is 64 bytes long; the most is 63"},
		{"a channel with a zero byte", func(c *config) { c.Notifier, c.EventsChannel = new(notifierFunc), "e\x00" }, "Config.EventsChannel \"e\\x00\" contains a control character"},
		{"negative heartbeat", func(c *config) { c.HeartbeatInterval = -1 }, "Config.HeartbeatInterval is -1ns; it can't be negative"},
		{"heartbeat faster than any network", func(c *config) { c.HeartbeatInterval = time.Millisecond }, "Config.HeartbeatInterval is 1ms; the least is 10ms"},
		{"negative lease", func(c *config) { c.StaleWorkerTimeout = -time.Second }, "Config.StaleWorkerTimeout is -1s"},
		{"a lease that one late heartbeat ends", func(c *config) { c.StaleWorkerTimeout = 14 * time.Second }, "at least three times"},
		{"exactly three heartbeats", func(c *config) { c.StaleWorkerTimeout = 15 * time.Second }, ""},
		{"a heartbeat that the default lease is too short for", func(c *config) { c.HeartbeatInterval = 11 * time.Second }, "Config.StaleWorkerTimeout is 30s, with a HeartbeatInterval of 11s"},
		{"negative coordination timeout", func(c *config) { c.CoordinationTimeout = -1 }, "Config.CoordinationTimeout"},
		{"too many partitions for one worker", func(c *config) { c.Partitions = 5041 }, "Config.Partitions is 5041"},
		{"negative partitions", func(c *config) { c.Partitions = -1 }, "Config.Partitions is -1"},
		{"negative read-ahead", func(c *config) { c.ReadAheadBytes = -1 }, "Config.ReadAheadBytes is -1"},
		{"negative batch", func(c *config) { c.BatchSize = -1 }, "Config.BatchSize is -1"},
		{"negative limit", func(c *config) { c.MaxPartitions = -1 }, "Config.MaxPartitions is -1"},
		{"more partitions than slots", func(c *config) { c.MaxPartitions = 5041 }, "Config.MaxPartitions is 5041"},
		{"negative window", func(c *config) { c.JoinWindow = -1 }, "Config.JoinWindow"},
		{"negative replacement window", func(c *config) { c.ReplacementWindow = -1 }, "Config.ReplacementWindow"},
		{"replacement window of a nanosecond", func(c *config) { c.ReplacementWindow = 1 }, "Config.ReplacementWindow"},
		{"replacement window of a day", func(c *config) { c.ReplacementWindow = 24 * time.Hour }, "Config.ReplacementWindow"},
		{"negative poll", func(c *config) { c.PollInterval = -1 }, "Config.PollInterval"},
		{"negative retry", func(c *config) { c.Retry.Min = -1 }, "Config.Retry.Min"},
		{"retries that shrink", func(c *config) { c.Retry.Max = time.Millisecond }, "Config.Retry.Max is 1ms, less than Retry.Min, which is 100ms"},
		{"a policy that does not exist", func(c *config) { c.OnFailure = 7 }, "Config.OnFailure is 7"},
		{"a rule with one", func(c *config) { c.Failures = rules(orchestrator.FailureRule{Policy: -1}) }, `Config.Failures["orders"].Policy is -1`},
		{"fewer attempts than none", func(c *config) { c.Failures = rules(orchestrator.FailureRule{Attempts: -1}) }, `Config.Failures["orders"].Attempts is -1`},
		{"room for fewer than none", func(c *config) { c.Failures = rules(orchestrator.FailureRule{MaxParked: -1}) }, `Config.Failures["orders"].MaxParked is -1`},
	} {
		t.Run(test.why, func(t *testing.T) {
			cfg := valid(t)
			test.change(&cfg)
			_, err := orchestrator.New(cfg)
			checkInvalid(t, err, test.want)
		})
	}
}

func checkInvalid(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("got %v, want no error", err)
	case strings.Contains(fmt.Sprint(err), "secret"):
		t.Errorf("the error shows a password: %v", err)
	case want != "" && (!errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), want)):
		t.Errorf("got %v, want ErrInvalidConfig with %q", err, want)
	}
}

type named string

func (n named) Name() string                                     { return string(n) }
func (n named) Handle(context.Context, orchestrator.Event) error { return nil }

// Run checks its projections before it touches the database, which does not
// exist here: a Run that gets that far waits for it, and the test with it.
func TestRunNamesTheProjectionAtFault(t *testing.T) {
	t.Parallel()
	var noProjection *testworld.Transactional
	for _, test := range []struct {
		why         string
		projections []projection
		want        string
	}{
		{"nothing to run", nil, "no projections"},
		{"a nil projection", []projection{named("a"), nil}, "projections[1] is nil"},
		{"a nil pointer", []projection{noProjection}, "projections[0] is nil"},
		{"no name", []projection{named("a"), named("")}, "the name of projections[1] is empty"},
		{"a name that is too long", []projection{named(strings.Repeat("a", 201))}, "the name of projections[0] is 201 bytes long"},
		{"a control character", []projection{named("a\tb")}, `the name of projections[0] "a\tb" contains a control character`},
		{"the same twice", []projection{named("a"), named("b"), named("a")}, `projections[0] and projections[2] are both named "a"`},
	} {
		t.Run(test.why, func(t *testing.T) {
			o, err := orchestrator.New(valid(t))
			if err != nil {
				t.Fatal(err)
			}
			checkInvalid(t, o.Run(t.Context(), test.projections), test.want)
		})
	}
}

func TestTableNamesTheFieldAtFault(t *testing.T) {
	t.Parallel()
	fields := func(e *int, dest []any) []any { return append(dest, e) }
	two := func(e *int, dest []any) []any { return append(dest, e, e) }
	for _, test := range []struct {
		why  string
		cfg  orchestrator.TableConfig[int]
		want string
	}{
		{"defaults", orchestrator.TableConfig[int]{Columns: []string{"a"}, Fields: fields}, ""},
		{"no fields", orchestrator.TableConfig[int]{Columns: []string{"a"}}, "TableConfig.Fields is nil"},
		{"too few fields", orchestrator.TableConfig[int]{Columns: []string{"a", "b"}, Fields: fields}, "TableConfig.Fields appends 1 destinations, for 2 Columns"},
		{"fields that forget dest", orchestrator.TableConfig[int]{Columns: []string{"a"}, Fields: func(e *int, _ []any) []any { return []any{e} }}, "TableConfig.Fields appends 0 destinations, for 1 Columns"},
		{"no columns", orchestrator.TableConfig[int]{Fields: fields}, "TableConfig.Columns is empty"},
		{"an empty column", orchestrator.TableConfig[int]{Columns: []string{"a", ""}, Fields: two}, "TableConfig.Columns[1] is empty"},
		{"a zero byte", orchestrator.TableConfig[int]{Table: "a\x00", Columns: []string{"a"}, Fields: fields}, "TableConfig.Table"},
	} {
		t.Run(test.why, func(t *testing.T) {
			_, err := orchestrator.NewTable(unused(t), test.cfg)
			checkInvalid(t, err, test.want)
		})
	}
	_, err := orchestrator.NewEventTable(nil, "")
	checkInvalid(t, err, "db is nil")
}

// A badStore breaks the contract of EventStore in the way that pages says:
// it returns these positions whatever is asked for.
type badStore struct{ positions []int64 }

func (s badStore) Read(context.Context, orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	var page []orchestrator.Record[orchestrator.Event]
	for _, p := range s.positions {
		page = append(page, orchestrator.Record[orchestrator.Event]{Position: p, AggregateID: fmt.Sprint(p), Event: orchestrator.Event{GlobalPosition: p}})
	}
	return orchestrator.Page[orchestrator.Event]{Records: page}, nil
}

// An event store that breaks its contract ends Run with the positions at
// fault, and nothing of the page is handled.
func TestEventStoreThatBreaksItsContract(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		why       string
		positions []int64
		want      string
	}{
		{"out of order", []int64{1, 3, 2}, "position 2 and comes after position 3"},
		{"repeated", []int64{1, 2, 2}, "repeats position 2"},
		{"at the position asked for", []int64{0, 1}, "position 0, but only positions above 0"},
		{"below it", []int64{-5}, "position -5, but only positions above 0"},
	} {
		t.Run(test.why, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.Config(w.DB, "set")
			cfg.EventStore = badStore{test.positions}
			err := testworld.Run(t, cfg, testworld.Effects{Projection: "transactional"}.Transactional()).Failed()
			if !errors.Is(err, orchestrator.ErrEventStore) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run returned %v, want ErrEventStore with %q", err, test.want)
			}
			if n := w.Number(`SELECT count(*) FROM effects`) + w.Number(`SELECT sum(position) FROM orchestrator_checkpoints`); n != 0 {
				t.Errorf("something was handled or passed")
			}
		})
	}
}

// Tables, columns and privileges that are missing end Run with a message that
// names them, at the start as well as later, and nothing moves.
func TestMissingTablesAndColumnsEndRun(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		why    string
		before string // what is wrong from the start
		during string // what goes wrong while the worker runs
		is     error
		want   string
	}{
		{"no schema", `DROP TABLE orchestrator_schema`, ``, orchestrator.ErrSchema, "RunMigrations"},
		{"an older schema", `UPDATE orchestrator_schema SET version = 0`, ``, orchestrator.ErrSchema, "RunMigrations"},
		{"no events table", `DROP TABLE events`, ``, orchestrator.ErrEventStore, `events table "events": it does not exist`},
		{"a column less", `ALTER TABLE events DROP COLUMN trace_id`, ``, orchestrator.ErrEventStore, `column "trace_id" does not exist`},
		{"the events table goes", ``, `DROP TABLE events`, orchestrator.ErrEventStore, `relation "public.events" does not exist`},
		{"a column goes", ``, `ALTER TABLE events RENAME COLUMN payload TO body`, orchestrator.ErrEventStore, `column "payload" does not exist`},
		{"a table of ours goes", ``, `DROP TABLE orchestrator_workers CASCADE`, nil, `relation "public.orchestrator_workers" does not exist`},
	} {
		t.Run(test.why, func(t *testing.T) {
			w := newWorld(t)
			if test.before != "" {
				w.Exec(test.before)
			}
			r := testworld.Run(t, w.Config(w.DB, "set"), testworld.Effects{Projection: "transactional"}.Transactional())
			if test.during != "" {
				w.Active("set", 1)
				w.Exec(test.during)
			}
			err := r.Failed()
			if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run returned %v, want %v with %q", err, test.is, test.want)
			}
		})
	}
}

// A role that may not read the events, or not write the checkpoints, is told
// so by name.
func TestMissingPrivileges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ why, revoke, want string }{
		{"events", `REVOKE ALL ON events FROM %s`, "permission denied for table events"},
		{"checkpoints", `REVOKE ALL ON orchestrator_checkpoints FROM %s`, "permission denied for table orchestrator_checkpoints"},
		{"workers", `REVOKE ALL ON orchestrator_workers FROM %s`, "permission denied for table orchestrator_workers"},
	} {
		t.Run(test.why, func(t *testing.T) {
			w := newWorld(t)
			role := fmt.Sprintf("role_%d", time.Now().UnixNano())
			w.Exec(fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'secret'`, role))
			t.Cleanup(func() {
				for _, q := range []string{`DROP OWNED BY %s`, `DROP ROLE %s`} {
					if _, err := w.DB.ExecContext(context.Background(), fmt.Sprintf(q, role)); err != nil {
						t.Error(err)
					}
				}
			})
			w.Exec(fmt.Sprintf(`GRANT ALL ON ALL TABLES IN SCHEMA public TO %s`, role))
			w.Exec(fmt.Sprintf(`GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO %s`, role))
			w.Exec(fmt.Sprintf(test.revoke, role))
			db := w.As(role)
			err := testworld.Run(t, w.Config(db, "set"), testworld.Effects{Projection: "transactional"}.Transactional()).Failed()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run returned %v, want %q", err, test.want)
			}
		})
	}
}
