package redact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
)

const marker = "hunter2"

// malformed are connection strings that lib/pq does not parse, with a marker in the password.
var malformed = []string{
	"postgres://user:hunter2@127.0.0.1:x/db",
	"postgres://user:hunter2@127.0.0.1:99999999/db",
	"postgres://user:%zzhunter2@127.0.0.1/db",
	"postgres://user:hunter2%@127.0.0.1/db",
	"postgres://user:hunter2#x@127.0.0.1:1/db",
	"postgres://user:hunter2?x@127.0.0.1:1/db",
	"postgres://user:hunter2/x@127.0.0.1:1/db",
	"postgres://user:x/hunter2@127.0.0.1:1/db",
	"postgres://user:hunter2[@127.0.0.1:1/db",
	"postgres://user:hun hunter2 x@127.0.0.1:1/db",
	"postgres://user:hunter2\"x@127.0.0.1:1/db",
	"postgres://user:hunter2\nx@127.0.0.1:1/db",
	"postgresql://user:hunter2@[::1/db",
	"postgres://127.0.0.1:1/db?port=x&password=hunter2",
	"postgres://127.0.0.1:1/db?sslmode=hunter2",
	"postgres://127.0.0.1:1/db?sslpassword=hunter2&sslmode=x",
	"host=127.0.0.1 password=x hunter2 dbname=y",
	"host=127.0.0.1 password = 'a hunter2",
	"password=hunter2\\",
	"host=127.0.0.1 port=hunter2",
	"host=127.0.0.1 connect_timeout=hunter2 password=x",
	"hunter2://user@host/db",
	"hunter2",
}

func TestMalformed(t *testing.T) {
	for _, text := range malformed {
		_, err := pq.NewConfig(text)
		if err == nil {
			t.Errorf("lib/pq parses %q", text)
			continue
		}
		for how, wrapped := range map[string]error{
			"as it is": err,
			"wrapped":  fmt.Errorf("look for the schema: %w", fmt.Errorf("connect: %w", err)),
			"joined":   errors.Join(errors.New("one"), fmt.Errorf("two: %w", err)),
			"two":      fmt.Errorf("%w: %w", io.EOF, err),
			"as text":  fmt.Errorf("status: %v", err),
			"quoted":   fmt.Errorf("status: %q", err),
		} {
			safe := Error(wrapped)
			for _, shown := range []string{safe.Error(), fmt.Sprintf("%v %+v %#v %q", safe, safe, safe, safe), Text(wrapped.Error())} {
				if strings.Contains(shown, marker) {
					t.Errorf("%q %s: %s", text, how, shown)
				}
			}
			if !Unusable(wrapped) {
				t.Errorf("%q %s may be tried again", text, how)
			}
		}
		if safe := Error(fmt.Errorf("look: %w", err)); !errors.Is(safe, err) || !strings.HasPrefix(safe.Error(), "look: ") {
			t.Errorf("%q: %v has lost what it wraps", text, safe)
		}
	}
}

// Texts of drivers, servers and users.
func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"": "",
		`with {"host":"db","user":"app","password":"hunter2"} it failed`: `with {"host":"db","user":"app", [connection string withheld]`,
		`&{Host:db Port:5432 Password:hunter2 Database:x}`:               `&{Host:db Port:5432 [connection string withheld]`,
		`via "{\"password\": \"hunter2\"}"`:                              `via "{\ [connection string withheld]`,
		`"postgres:\/\/u:hunter2@db\/x"`:                                 `[connection string withheld]`,
		`GET /?to=postgres%3A%2F%2Fu%3Ahunter2%40db`:                     `GET /?to= [connection string withheld]`,
		"dial tcp 127.0.0.1:5432: connect: connection refused":           "dial tcp 127.0.0.1:5432: connect: connection refused",
		`pq: relation "events" does not exist (42P01)`:                   `pq: relation "events" does not exist (42P01)`,
		`pq: database "shop" does not exist (3D000)`:                     `pq: database "shop" does not exist (3D000)`,
		"user 5 has no password":                                         "user 5 has no password",
		"see https://pkg.go.dev/x#y for host=a port=5":                   "see https://pkg.go.dev/x#y for host=a port=5",
		"set it to postgres://…":                                         "set it to postgres://…",

		"can't connect to postgres://u:hunter2@h/db: refused":             "can't connect to [connection string withheld]",
		`open "postgresql://h/db?password=hunter2": refused`:              "open [connection string withheld]",
		"POSTGRES://u:hun hunter2@h":                                      "[connection string withheld]",
		"with host=h user=u password=x hunter2 dbname=d":                  "with [connection string withheld]",
		"with password = 'a hunter2'":                                     "with [connection string withheld]",
		"with PASSWORD='hunter2'":                                         "with [connection string withheld]",
		"pass=hunter2":                                                    "[connection string withheld]",
		"dial u:hunter2@tcp(h:3306)/db: refused":                          "dial [withheld]@tcp(h:3306)/db: refused",
		"the bypass: a compass=2":                                         "the bypass: a compass=2",
		"sslpassword=hunter2":                                             "[connection string withheld]",
		"PGPASSWORD=hunter2 psql":                                         "[connection string withheld]",
		"DB_PASSWORD=hunter2":                                             "DB [connection string withheld]",
		"passfile=/home/hunter2/.pgpass":                                  "[connection string withheld]",
		"service=hunter2 sslmode=disable":                                 "[connection string withheld]",
		"call amqp://guest:hunter2@mq:5672/x: refused":                    "call amqp://[withheld]@mq:5672/x: refused",
		"cannot parse `host=h password = 'a hunter2'`: failed (x)":        unusable,
		"cannot parse `postgres://h?password=hunter2`: failed (x)":        unusable,
		`pq: database "hunter2@127.0.0.1:5432/db" does not exist`:         "pq: database [withheld] does not exist",
		`FATAL: role "a hunter2" does not exist`:                          "FATAL: role [withheld] does not exist",
		`pq: unrecognized configuration parameter "hunter2@h" (42704)`:    "pq: unrecognized configuration parameter (42704)",
		"failed to connect to `user=u database=hunter2@h/db`: u: no host": "failed to connect: u: no host",
		"failed to connect to `user=hunter2 database=d`:\n\tu: no host":   "failed to connect: u: no host",
	} {
		if got := Text(text); got != want {
			t.Errorf("%s:\n got %q\nwant %q", text, got, want)
		}
	}
}

type nilError struct{ err error }

func (e *nilError) Error() string { return e.err.Error() }
func (e *nilError) Unwrap() error { return e.err }

// A foreign error may panic, or wrap itself.
func TestHostileErrors(t *testing.T) {
	loop := &nilError{}
	loop.err = &nilError{err: loop}
	for _, err := range []error{(*nilError)(nil), &nilError{}, (*url.Error)(nil)} {
		if safe := Error(err); safe == nil || Unusable(err) {
			t.Errorf("%T: %v", err, safe)
		}
	}
	wrapped := &selfWrapped{}
	if Unusable(wrapped) || Error(wrapped) != error(wrapped) {
		t.Error("an error that wraps itself is said to be a connection string")
	}
	if Error(nil) != nil || Unusable(nil) {
		t.Error("no error is taken for one")
	}
}

type selfWrapped struct{}

func (*selfWrapped) Error() string   { return "again" }
func (e *selfWrapped) Unwrap() error { return e }

// A web address that can't be parsed is not a connection string.
func TestWebAddress(t *testing.T) {
	address := "http://api.example.com:x/"
	_, err := url.Parse(strings.Clone(address)) // a constant would be a lint's finding
	if err == nil || Unusable(err) || Error(err) != err {
		t.Errorf("%v: %v", err, Error(err))
	}
}

func TestHandler(t *testing.T) {
	for name, h := range map[string]func(io.Writer) slog.Handler{
		"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		"json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		var out bytes.Buffer
		log := slog.New(Handler(h(&out))).With("error", errors.New("postgres://u:hunter2@h/1"), "waited", 55*time.Millisecond).WithGroup("g")
		log.WarnContext(context.Background(), "m", "error", fmt.Errorf("x: %w", errors.New("password=hunter2")), "text", "password=hunter2",
			"took", 1234567891*time.Nanosecond, slog.Group("h", "error", errors.New("password=hunter2")))
		text := out.String()
		if strings.Contains(text, marker) || !strings.Contains(text, "55ms") || !strings.Contains(text, "1.235s") || !strings.Contains(text, "x: ") {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// A text of megabytes is cut before it is searched, and a connection string at the cut is
// removed.
func TestLongText(t *testing.T) {
	for _, secret := range []string{"postgres://u:hunter2@h/db", "host=h password=x hunter2", `missing "=" after "hunter2"`} {
		for shift := range 60 {
			text := strings.Repeat("x", textMax-shift) + " " + secret + strings.Repeat("y", 1<<20)
			if got := Text(text); len(got) > textMax+100 || strings.Contains(got, marker) {
				t.Errorf("%d bytes: …%s", len(got), got[len(got)-100:])
			}
		}
	}
}
