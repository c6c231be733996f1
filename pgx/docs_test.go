package orchestratorpgx_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// The program of docs/pgx.md handles what is in the table and what is appended, and ends on
// request.
func TestProgramOfTheDocs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/pgx.md")
	if err != nil {
		t.Fatal(err)
	}
	programs := regexp.MustCompile("(?s)```go\n(package main.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(programs) != 1 {
		t.Fatalf("the page has %d programs, want 1", len(programs))
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte(programs[0][1]), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	db, url := pgtest.Database(t)
	register := func(from, to int) {
		t.Helper()
		if _, err := db.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'shop', 'user', i, 1, gen_random_uuid(), CASE WHEN i % 2 = 0 THEN 'UserRegistered' ELSE 'UserSeen' END, '' FROM generate_series($1::int, $2) i`, from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range []string{eventtable.Layout, `CREATE TABLE users (id text PRIMARY KEY, registered_at timestamptz)`} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	register(1, 1000)
	var output strings.Builder
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	over := false
	t.Cleanup(func() {
		if !over {
			_ = cmd.Process.Kill()
			t.Logf("the program: %v\n%s", <-ended, output.String())
		}
	})
	has := func(n int) {
		t.Helper()
		pgtest.Eventually(t, "all users are there", func() bool {
			var users int
			err := db.QueryRow(`SELECT count(*) FROM users`).Scan(&users)
			return err == nil && users == n
		})
	}
	has(500)
	register(1001, 1200)
	has(600)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the program has ended with %v", err)
	}
	over = true
}
