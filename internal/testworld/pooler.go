package testworld

import (
	"database/sql"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// PgBouncer starts a PgBouncer with the pool_mode transaction or session, and returns the URL of
// the database through it. If PgBouncer is not installed, the test is skipped: see
// pgtest.Missing.
func PgBouncer(t testing.TB, to, mode string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // not on every PATH
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
	if given { // PgBouncer does not read an empty file
		password = " password='" + strings.ReplaceAll(password, "'", "''") + "'"
	}
	config := filepath.Join(t.TempDir(), "pgbouncer.ini")
	// There are few server connections, and the one that has waited longest is used next: two
	// transactions of a client are on the same one only by accident.
	text := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = 8
max_client_conn = 200
server_round_robin = 1
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
`, u.Hostname(), u.Port(), u.User.Username(), password, port, mode)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{config}
	if os.Geteuid() == 0 { // PgBouncer refuses to run as root
		for dir := filepath.Dir(config); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		args = append([]string{"-u", "nobody"}, args...)
	}
	cmd := exec.Command(program, args...)
	cmd.Stderr = t.Output() // shows why PgBouncer has ended
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
