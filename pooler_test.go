package orchestrator_test

import (
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// pgbouncer starts a PgBouncer that hands out server connections by transaction,
// and returns the database's URL through it. It is not everywhere: without it the
// test is skipped.
func pgbouncer(t testing.TB, to string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // not on everybody's PATH
	}
	if _, err := os.Stat(program); err != nil {
		pgtest.Missing(t, "there is no pgbouncer")
	}
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()

	password, given := u.User.Password()
	if given { // PgBouncer does not read a file with an empty one
		password = " password='" + strings.ReplaceAll(password, "'", "''") + "'"
	}
	config := filepath.Join(t.TempDir(), "pgbouncer.ini")
	// Few server connections, and the one that has waited longest is handed out:
	// two transactions of a client are on one by accident only.
	text := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 8
max_client_conn = 200
server_round_robin = 1
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
`, u.Hostname(), u.Port(), u.User.Username(), password, port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{config}
	if os.Geteuid() == 0 { // it refuses to run as root
		for dir := filepath.Dir(config); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		args = append([]string{"-u", "nobody"}, args...)
	}
	cmd := exec.Command(program, args...)
	cmd.Stderr = t.Output() // why it has ended, should it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	pgtest.Eventually(t, "pgbouncer is there", func() bool { return db.PingContext(t.Context()) == nil })
	return u.String()
}

// What README says of a pooler: everything works but LISTEN, which must lead to the
// server itself, and the sessions that show who is there. Each worker finds that
// out, says so, and goes by leases.
func TestBehindPgBouncer(t *testing.T) {
	w := newWorld(t)
	pooled := pgbouncer(t, w.URL)
	// Otherwise lib/pq asks for what it has prepared, unnamed, on another connection.
	db := reopen(t, pooled, "binary_parameters", "yes")
	for _, c := range []struct {
		set    orchestrator.ReplicaSetName
		listen string
	}{{"polls", pooled}, {"hears", w.URL}} {
		t.Run(string(c.set), func(t *testing.T) {
			log := &testworld.Log{To: t.Output()}
			cfg := w.Config(db, c.set)
			cfg.Notifier = notifier(t, c.listen)
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
			if c.listen == w.URL {
				cfg.HeartbeatInterval, cfg.StaleWorkerTimeout = time.Hour, 3*time.Hour
			}
			h := &testworld.History{}
			name := "transactional " + string(c.set)
			plainName := "plain " + string(c.set)
			for i := range 3 {
				testworld.Run(t, cfg, testworld.Effects{Projection: name, Log: h}.Transactional(), testworld.Effects{Projection: plainName, Log: h}.Plain(db))
				w.Active(c.set, i+1)
			}
			for range 3 {
				w.Append(300)
				w.CaughtUp(name, plainName)
			}
			log.Wait(t, "a pooler hands out sessions here")
			w.Active(c.set, 3)
			h.Check(t)
			w.CheckEffects(name)
		})
	}
}
