//go:build linux || darwin || freebsd

package embedpg

import (
	"context"
	"database/sql"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(ownerMode); mode != "" {
		own(mode)
	}
	os.Exit(m.Run())
}

func TestServer(t *testing.T) {
	t.Parallel()
	s := startOwn(t, Options{})

	if !strings.HasPrefix(s.Source(), "PostgreSQL 1") || !strings.Contains(s.Source(), s.base.Host) {
		t.Errorf("Source() = %q, want the version and the address", s.Source())
	}
	db := open(t, s.URL("postgres"))
	for setting, want := range map[string]string{
		"listen_addresses":          "127.0.0.1",
		"unix_socket_directories":   "",
		"max_connections":           "300",
		"max_prepared_transactions": "20",
		"fsync":                     "off",
		"synchronous_commit":        "on", // or a restart loses commits
		"server_encoding":           "UTF8",
		"TimeZone":                  "UTC",
	} {
		if got := query(t, db, "SELECT current_setting($1)", setting); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}

	wrong := s.base
	wrong.User = url.UserPassword("postgres", "wrong")
	if err := open(t, wrong.String()).Ping(); err == nil {
		t.Error("any local user could become the server's superuser")
	}

	folder := s.cluster.folder
	for range 2 { // the second is to change nothing
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(folder); !os.IsNotExist(err) {
		t.Errorf("run folder after Stop: %v, want none", err)
	}
	if listening(s.base.Host) {
		t.Error("the server listens after Stop")
	}
	if err := s.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "already stopped") {
		t.Errorf("Restart after Stop: %v", err)
	}
}

func TestTwoServers(t *testing.T) {
	t.Parallel()
	a := startOwn(t, Options{})
	b := startOwn(t, Options{Fsync: true})

	if got := query(t, open(t, b.URL("postgres")), "SHOW fsync"); got != "on" {
		t.Errorf("fsync = %q, want on", got)
	}
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	query(t, open(t, a.URL("postgres")), "SELECT 1") // a does not care
}

func TestRestart(t *testing.T) {
	tests := map[string]func(*testing.T, *Server){
		"running": func(*testing.T, *Server) {},
		"killed": func(t *testing.T, s *Server) {
			kill(t, s, syscall.SIGKILL)
		},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startOwn(t, Options{})
			address := s.URL("postgres")
			db := open(t, address)
			execute(t, db, "CREATE TABLE kept (n int)")
			execute(t, db, "INSERT INTO kept VALUES (7)")
			started := query(t, db, "SELECT pg_postmaster_start_time()")

			before(t, s)
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}

			if got := s.URL("postgres"); got != address {
				t.Errorf("URL = %s, want %s", got, address)
			}
			db = open(t, address)
			if got := query(t, db, "SELECT n FROM kept"); got != "7" {
				t.Errorf("row after the restart = %s, want 7", got)
			}
			if got := query(t, db, "SELECT pg_postmaster_start_time()"); got == started {
				t.Error("the server is the same as before")
			}
		})
	}
}

// A server that was suspended cannot follow a request to stop.
func TestStopSuspended(t *testing.T) {
	t.Parallel() // pg_ctl gives up after 10 s only
	s := startOwn(t, Options{})
	kill(t, s, syscall.SIGSTOP)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if listening(s.base.Host) {
		t.Error("the server listens after Stop")
	}
}

func TestRestartCutShort(t *testing.T) {
	t.Parallel()
	s := startOwn(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Restart(ctx); err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Fatalf("Restart with a cancelled context: %v", err)
	}
	// Were the late answer to the first command taken for this one's, it would
	// be believed to be done.
	if err := s.Restart(t.Context()); err == nil {
		t.Error("Restart goes on after it lost track of the supervisor's answers")
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

// Somebody takes the port while the server is down, and lets go of it again.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	s := startOwn(t, Options{})
	if err := s.cluster.do(t.Context(), "stop"); err != nil {
		t.Fatal(err)
	}
	taker, err := net.Listen("tcp", s.base.Host)
	if err != nil {
		t.Fatal(err)
	}

	restarted := make(chan error, 1)
	go func() { restarted <- s.Restart(t.Context()) }()
	until(t, "the server has tried", func() bool {
		return strings.Contains(s.cluster.logSince(0), "Address already in use")
	})
	if err := taker.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	query(t, open(t, s.URL("postgres")), "SELECT 1")
}

func TestCreateDatabase(t *testing.T) {
	t.Parallel()
	s := startOwn(t, Options{})
	admin := open(t, s.URL("postgres"))
	query(t, open(t, s.URL("template1")), "SELECT 1") // its session stays open
	const count = `SELECT count(*) FROM pg_database WHERE datname = 'odd "name" ü'`

	address, drop, err := s.CreateDatabase(t.Context(), `odd "name" ü`)
	if err != nil {
		t.Fatal(err)
	}
	db := open(t, address)
	if got := query(t, db, "SELECT current_database()"); got != `odd "name" ü` {
		t.Errorf("connected to %q", got)
	}

	// Neither an open session nor a prepared transaction keeps it from going.
	session, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for _, statement := range []string{"CREATE TABLE t ()", "BEGIN", "LOCK t", "PREPARE TRANSACTION 'it''s'", "BEGIN"} {
		if _, err := session.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds nothing to drop, which is fine
		if err := drop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := query(t, admin, count); got != "0" {
		t.Errorf("%s databases after drop, want 0", got)
	}

	for _, bad := range []string{"", strings.Repeat("x", 64), "postgres"} {
		if _, _, err := s.CreateDatabase(t.Context(), bad); err == nil {
			t.Errorf("CreateDatabase(%q) went well", bad)
		}
	}
}

func TestEnvironmentVariable(t *testing.T) {
	own := startOwn(t, Options{})
	given, _, err := own.CreateDatabase(t.Context(), "given")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("EMBEDPG_TEST_URL", given)
	s, err := Start(t.Context(), Options{EnvVar: "EMBEDPG_TEST_URL"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Source(), "EMBEDPG_TEST_URL") {
		t.Errorf("Source() = %q, want the variable's name", s.Source())
	}
	if got := s.URL("other"); got != own.URL("other") {
		t.Errorf("URL = %q, want %q", got, own.URL("other"))
	}

	address, drop, err := s.CreateDatabase(t.Context(), "fresh")
	if err != nil {
		t.Fatal(err)
	}
	query(t, open(t, address), "SELECT 1")
	if err := drop(t.Context()); err != nil {
		t.Error(err)
	}

	if err := s.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "Options.Own") {
		t.Errorf("Restart of a given server: %v, want a hint at Options.Own", err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	query(t, open(t, given), "SELECT 1") // still there

	t.Run("without an SSL mode", func(t *testing.T) {
		u := own.base
		u.RawQuery = "" // what a container's address usually looks like
		t.Setenv("EMBEDPG_TEST_URL", u.String())
		if _, err := Start(t.Context(), Options{EnvVar: "EMBEDPG_TEST_URL"}); err != nil {
			t.Error(err)
		}
	})

	t.Run("own disregards it", func(t *testing.T) {
		s := startOwn(t, Options{EnvVar: "EMBEDPG_TEST_URL"})
		if s.base.Host == own.base.Host {
			t.Error("it is the server of the variable")
		}
	})
}

func TestEnvironmentVariableUnusable(t *testing.T) {
	closed := closedPort(t)
	tests := map[string]struct{ value, want string }{
		// It may have a password in it, so it is not repeated.
		"no URL":                    {"host=localhost password=secret", "EMBEDPG_TEST_URL is not a URL"},
		"no server":                 {"postgres://u:secret@" + closed + "/d", "connect to the server that EMBEDPG_TEST_URL names, on " + closed},
		"what to do":                {"postgres://u:secret@" + closed + "/d", "start that server, correct EMBEDPG_TEST_URL, or unset it"},
		"a password as a parameter": {"postgres://u@" + closed + "/d?password=secret", "names, on " + closed},
		"a key's password":          {"postgres://u@" + closed + "/d?sslpassword=secret", "names, on " + closed},
		"a parameter":               {"postgres://u@" + closed + "/d?sslmode=secret", "names, on " + closed},
		"not parsing":               {"postgres://u:secret@host:port/d", "EMBEDPG_TEST_URL is not a URL"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("EMBEDPG_TEST_URL", test.value)
			_, err := Start(t.Context(), Options{EnvVar: "EMBEDPG_TEST_URL"})
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("Start: %v, want %q and no password", err, test.want)
			}
		})
	}
}

// Without the right to create databases, the error says what to do.
func TestMayNotCreateDatabases(t *testing.T) {
	own := startOwn(t, Options{})
	if err := own.exec(t.Context(), own.base, `CREATE ROLE limited LOGIN PASSWORD 'secret'`); err != nil {
		t.Fatal(err)
	}
	u := own.base
	u.User, u.Path = url.UserPassword("limited", "secret"), "/postgres"
	t.Setenv("EMBEDPG_TEST_URL", u.String())
	s, err := Start(t.Context(), Options{EnvVar: "EMBEDPG_TEST_URL"})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.CreateDatabase(t.Context(), "mine")
	for _, want := range []string{"create database mine", `ALTER ROLE "limited" CREATEDB`, "unset EMBEDPG_TEST_URL"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want that it says %q", err, want)
		}
	}
}

func startOwn(t *testing.T, o Options) *Server {
	t.Helper()
	return startOn(t, o, thisMachine(t.Context()))
}

func startOn(t *testing.T, o Options, m machine) *Server {
	t.Helper()
	o.Own = true
	o.Logger = t.Logf
	s, err := start(t.Context(), o, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func open(t *testing.T, address string) *sql.DB {
	t.Helper()
	connector, err := pq.NewConnector(address)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func execute(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func query(t *testing.T, db *sql.DB, q string, args ...any) string {
	t.Helper()
	var got string
	if err := db.QueryRowContext(t.Context(), q, args...).Scan(&got); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return got
}

// kill signals the server's first process.
func kill(t *testing.T, s *Server, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(serverProcess(t, s.cluster.folder), signal); err != nil {
		t.Fatal(err)
	}
}

func serverProcess(t *testing.T, folder string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.SplitN(string(text), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func listening(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// until waits for a condition.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	const max = time.Minute
	deadline := time.After(max)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", max, what)
		}
	}
}
