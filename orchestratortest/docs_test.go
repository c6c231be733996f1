package orchestratortest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// The file of docs/testing.md passes as a test, and fails if the projection is wrong.
func TestFileOfTheDocs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile("(?s)```go\n(package .*?)```").FindAllStringSubmatch(string(text), -1)
	if len(files) != 1 {
		t.Fatalf("the page has %d files, want 1", len(files))
	}
	_, url := pgtest.Database(t)
	for name, c := range map[string]struct {
		change *strings.Replacer
		fails  []string // parts of the output; none: it passes
	}{
		"as it is": {strings.NewReplacer(), nil},
		"a projection that counts too many": {strings.NewReplacer(`orders.orders + 1`, `orders.orders + 2`),
			[]string{"TestOrders/two", "alice has 3 orders, want 2"}},
		"a projection that counts twice": {strings.NewReplacer("orchestrator.Transactional(", "orchestrator.Plain(", "tx orchestrator.Tx, ", "", "tx.Exec", "pool.Exec",
			"const tables", "var pool *sql.DB\n\nconst tables", "func(*sql.DB) orch", "func(db *sql.DB) orch", "{ return orders }", "{ pool = db; return orders }",
			"t.Parallel()\n\t\t\tdb :=", "db :=", "if _, err := db", "pool = db\n\t\t\tif _, err := db"),
			[]string{"TestOrdersSurvive", "reproduce: SIM_SEED=", "-run '^TestOrdersSurvive$'", "table orders differs from a run without faults: it has (\"customer "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, "shop_test.go")
			if err := os.WriteFile(file, []byte(c.change.Replace(files[0][1])), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", "test", "-count=1", file)
			cmd.Env = append(os.Environ(), "DATABASE_URL="+url, "TMPDIR="+dir)
			out, err := cmd.CombinedOutput()
			if (err == nil) != (len(c.fails) == 0) {
				t.Errorf("go test: %v\n%s", err, out)
			}
			for _, want := range c.fails {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not say %q:\n%s", want, out)
				}
			}
		})
	}
}
