package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing/es/adapters/postgres"
	_ "github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// unused returns a database that is never connected to.
func unused(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", "postgres://nowhere.invalid/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// deaf is a Notifier that receives nothing.
type deaf struct{}

func (deaf) Listen(context.Context, []string, func(), func(channel, payload string)) error {
	return errors.New("hears nothing")
}

// Every field of the root's Config exists here and is passed to the root.
func TestConfigReachesTheRoot(t *testing.T) {
	lines := &recorder{}
	cfg := Config{DB: unused(t), EventStore: postgres.NewStore(postgres.DefaultStoreConfig()), Logger: lines, Retry: Retry{Min: 1, Max: 2}}
	cfg.Notifier, cfg.Observer = deaf{}, &Observer{}
	cfg.Failures = map[string]FailureRule{"orders": {Policy: ParkEvents}}
	cfg.Around = func(ctx context.Context, _ Delivery, next func(context.Context) error) error { return next(ctx) }
	events, err := tableOf(cfg.DB, "")
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(&cfg).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(i + 1))
		case reflect.String:
			f.SetString("name")
		case reflect.Bool:
			f.SetBool(true)
		}
	}
	translated := cfg.translate(events)
	got := reflect.ValueOf(translated)
	for i := range got.NumField() {
		name := got.Type().Field(i).Name
		if !got.Type().Field(i).IsExported() {
			continue
		}
		switch field := v.FieldByName(name); {
		case got.Field(i).IsZero():
			t.Errorf("Config.%s does not reach the root", name)
		case name == "EventStore" || name == "Logger": // their types differ; see below
		case name == "Around": // functions can't be compared
		case !field.IsValid() || !reflect.DeepEqual(field.Interface(), got.Field(i).Interface()):
			t.Errorf("the root's Config.%s is %v", name, got.Field(i))
		}
	}
	if translated.EventStore != events {
		t.Errorf("the root reads from %v", translated.EventStore)
	}
	if translated.Logger.Info("a line"); len(lines.lines) != 1 {
		t.Errorf("of one line, the logger got %d", len(lines.lines))
	}
	cfg.Logger = nil
	if cfg.translate(events).Logger != nil {
		t.Error("no logger became one")
	}
}

func TestInvalidConfig(t *testing.T) {
	valid := Config{DB: unused(t), EventStore: postgres.NewStore(postgres.DefaultStoreConfig()), ReplicaSet: "set"}
	if _, err := New(valid); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		why    string
		change func(*Config)
		want   string
	}{
		{"no database", func(c *Config) { c.DB = nil }, "Config.DB is nil"},
		{"no store", func(c *Config) { c.EventStore = nil }, "Config.EventStore is nil; use postgres.NewStore"},
		{"no name of a table", func(c *Config) { c.EventsTable = "events; DROP" }, `Config.EventsTable is "events; DROP"`},
		{"the root's judgement", func(c *Config) { c.ReplicaSet = "" }, "Config.ReplicaSet is empty"},
	} {
		cfg := valid
		test.change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want ErrInvalidConfig with %q", test.why, err, test.want)
		}
	}
	o, err := New(valid)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Run(t.Context(), nil); !errors.Is(err, ErrInvalidConfig) {
		t.Errorf("Run without projections: %v", err)
	}
}

// Workers of a process that read the same table share one reader, and so one read. The reader is
// released after them.
func TestTablesAreShared(t *testing.T) {
	db := unused(t)
	of := func(db *sql.DB, name string) *eventsTable {
		t.Helper()
		o, err := New(Config{DB: db, EventStore: postgres.NewStore(postgres.DefaultStoreConfig()), EventsTable: name, ReplicaSet: "set"})
		if err != nil {
			t.Fatal(err)
		}
		return o.events
	}
	table := of(db, "")
	for _, test := range []struct {
		why  string
		db   *sql.DB
		name string
		want bool
	}{
		{"the default by its name", db, "events", true},
		{"other ways to write it", db, `"events"`, true},
		{"another table", db, "shop_events", false},
		{"one in a schema", db, "public.events", false}, // possibly the same table, which is then read twice
		{"another database", unused(t), "events", false},
	} {
		if got := of(test.db, test.name); (got == table) != test.want {
			t.Errorf("%s: shared %t, want %t", test.why, got == table, test.want)
		}
	}
	runtime.KeepAlive(table)
	pgtest.Eventually(t, "the tables are let go", func() bool {
		runtime.GC()
		tables.Lock()
		defer tables.Unlock()
		for key := range tables.of {
			if key.db == db {
				return false
			}
		}
		return true
	})
}

func TestTableName(t *testing.T) {
	for _, test := range []struct {
		name, schema, table string
		ok                  bool
	}{
		{"events", "", "events", true},
		{"Shop_Events2", "", "shop_events2", true},
		{"ÄRGER", "", "Ärger", true}, // PostgreSQL folds only ASCII
		{"shop.Events", "shop", "events", true},
		{`"Shop"."my ""own"". events"`, "Shop", `my "own". events`, true},
		{`Shop."Events"`, "shop", "Events", true},
		{"db.shop.events", "", "", false},
		{"shop.", "", "", false},
		{".events", "", "", false},
		{"2events", "", "", false},
		{"my events", "", "", false},
		{`"events`, "", "", false},
		{`"a"b"`, "", "", false},
		{`""`, "", "", false},
		{"events;", "", "", false},
	} {
		schema, table, ok := tableName(test.name)
		if schema != test.schema || table != test.table || ok != test.ok {
			t.Errorf("%s: schema %q, table %q, %t; want %q, %q, %t", test.name, schema, table, ok, test.schema, test.table, test.ok)
		}
	}
}
