package layouttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// A successor is a store with a program in docs/successors.md.
type successor struct {
	module, file string // the module and the file that the program imports
	types        string
	ddl, insert  string // {i} is the number of the event
}

// The types and the tables have the parts of the real ones that a reader sees.
const (
	nullable = `
type NullString struct {
	String string
	Valid  bool
}

func (s *NullString) Scan(v any) error {
	var n sql.NullString
	err := n.Scan(v)
	s.String, s.Valid = n.String, n.Valid
	return err
}

type UUID [16]byte

func (u *UUID) Scan(v any) error {
	text := string(v.([]byte))
	_, err := hex.Decode(u[:], []byte(strings.ReplaceAll(text, "-", "")))
	return err
}
`
	imports = `
import (
	"database/sql"
	"encoding/hex"
	"strings"
	"time"
)
`
	rest = `
    event_id        uuid        NOT NULL,
    event_type      text        NOT NULL,
    event_version   int         NOT NULL DEFAULT 1,
    payload         bytea       NOT NULL,
    trace_id        text,
    correlation_id  text,
    causation_id    text,
    metadata        jsonb,
    created_at      timestamptz NOT NULL DEFAULT now()`
)

const pupsourcingCore, eventsalsaStore = "pupsourcing/core", "eventsalsa/store"

var salsaTypes = "package store\n" + imports + nullable + `
type PersistedEvent struct {
	CreatedAt                           time.Time
	StreamType, EventType, StreamID     string
	CausationID, CorrelationID, TraceID NullString
	Metadata, Payload                   []byte
	GlobalPosition, StreamVersion       int64
	EventVersion                        int
	EventID                             UUID
}
`

const salsaInsert = `INSERT INTO events (stream_type, stream_id, stream_version, event_id, event_type, payload, trace_id)
	SELECT CASE i % 10 WHEN 0 THEN 'cart' ELSE 'order' END, i % 7, 1 + i / 7, gen_random_uuid(), 'happened', 'x', CASE i % 2 WHEN 0 THEN 't' END
	  FROM generate_series($1::int, $2) i`

var successors = map[string]successor{
	pupsourcingCore: {
		module: "github.com/pupsourcing/core", file: "es/event.go",
		types: "package es\n" + imports + nullable + `
type PersistedEvent struct {
	CreatedAt                                             time.Time
	BoundedContext, AggregateType, EventType, AggregateID string
	CausationID, CorrelationID, TraceID                   NullString
	Metadata, Payload                                     []byte
	GlobalPosition, AggregateVersion                      int64
	EventVersion                                          int
	EventID                                               UUID
}
`,
		ddl: `CREATE TABLE events (
    global_position   bigserial PRIMARY KEY,
    bounded_context   text   NOT NULL,
    aggregate_type    text   NOT NULL,
    aggregate_id      text   NOT NULL,
    aggregate_version bigint NOT NULL,` + rest + `)`,
		insert: `INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, trace_id)
	SELECT 'shop', CASE i % 10 WHEN 0 THEN 'cart' ELSE 'order' END, i % 7, 1 + i / 7, gen_random_uuid(), 'happened', 'x', CASE i % 2 WHEN 0 THEN 't' END
	  FROM generate_series($1::int, $2) i`,
	},
	eventsalsaStore: {
		module: "github.com/eventsalsa/store", file: "event.go", types: salsaTypes,
		ddl: `CREATE TABLE events (
    global_position bigserial PRIMARY KEY,
    stream_type     text   NOT NULL,
    stream_id       text   NOT NULL,
    stream_version  bigint NOT NULL,` + rest + `)`,
		insert: salsaInsert,
	},
	eventsalsaStore + ", in partitions": {
		module: "github.com/eventsalsa/store", file: "event.go", types: salsaTypes,
		ddl: `CREATE SEQUENCE events_global_position_seq;
CREATE TABLE events (
    global_position bigint NOT NULL DEFAULT nextval('events_global_position_seq'),
    stream_type     text   NOT NULL,
    stream_id       text   NOT NULL,
    stream_version  bigint NOT NULL,` + rest + `,
    PRIMARY KEY (global_position)) PARTITION BY RANGE (global_position);
CREATE TABLE events_p1 PARTITION OF events FOR VALUES FROM (1) TO (51);
CREATE TABLE events_p2 PARTITION OF events FOR VALUES FROM (51) TO (10001)`,
		insert: salsaInsert,
	},
}

// The programs of docs/successors.md handle what is in the stores' tables and what is appended
// later.
func TestSuccessors(t *testing.T) {
	text, err := os.ReadFile("../../docs/successors.md")
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, match := range regexp.MustCompile("(?s)\n## ([^\n]*)\n[^#]*?```go\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		programs[match[1]] = match[2]
	}
	if len(programs) != 2 {
		t.Fatalf("the page has %d programs, want those of two stores", len(programs))
	}
	for name, s := range successors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, _, _ := strings.Cut(name, ",")
			db, url := pgtest.Database(t)
			run := func(query string, args ...any) {
				t.Helper()
				if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
					t.Fatal(err)
				}
			}
			run(s.ddl)
			run(`CREATE TABLE orders (id text PRIMARY KEY, version bigint NOT NULL, changes int NOT NULL DEFAULT 1)`)
			run(`CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.version <= OLD.version THEN RAISE 'out of order'; END IF;
				NEW.changes = OLD.changes + 1; RETURN NEW; END $$`)
			run(`CREATE TRIGGER follow BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION follow()`)
			run(s.insert, 1, 100)

			program := build(t, s, programs[source])
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
			var output strings.Builder
			cmd.Stdout, cmd.Stderr = &output, &output
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			handled := func() (n int) {
				t.Helper()
				if err := db.QueryRowContext(t.Context(), `SELECT coalesce(sum(changes), 0) FROM orders`).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			over := false
			t.Cleanup(func() {
				if !over {
					_ = cmd.Process.Kill()
					t.Logf("the program: %v\n%s", <-ended, output.String())
				}
			})
			await := func(n int) {
				t.Helper()
				pgtest.Eventually(t, fmt.Sprintf("%d events are handled", n), func() bool { return handled() == n })
			}
			await(90) // and no carts
			run(s.insert, 101, 150)
			await(135)
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			err = <-ended
			if over = true; err != nil {
				t.Errorf("the program ended with %v\n%s", err, output.String())
			}
			if n := handled(); n != 135 {
				t.Errorf("%d events were handled, want 135", n)
			}
		})
	}
}

// build compiles a program with this module and a module of the store's types.
func build(t *testing.T, s successor, program string) (binary string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("programs can't be asked to stop on Windows")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "github.com/lib/pq")
	list.Dir = root
	version, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	const own = "github.com/getpup/pupsourcing-orchestrator"
	for file, text := range map[string]string{
		"main.go":         program,
		"go.sum":          string(sums),
		"store/go.mod":    fmt.Sprintf("module %s\n\ngo 1.25.0\n", s.module),
		"store/" + s.file: s.types,
		"go.mod":          fmt.Sprintf("module example\n\ngo 1.25.0\n\nrequire (\n\t%s v0.0.0\n\t%s v0.0.0\n\tgithub.com/lib/pq %s\n)\n\nreplace %s => %s\n\nreplace %s => ./store\n", own, s.module, strings.TrimSpace(string(version)), own, root, s.module),
	} {
		file = filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run("vet", ".")
	binary = filepath.Join(dir, "program")
	run("build", "-o", binary, ".")
	return binary
}
