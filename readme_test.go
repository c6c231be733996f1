package orchestrator_test

import (
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// README.md, copied into an empty folder: its program runs in two copies, logs what the page
// shows, and handles the event that the page appends. The page has at most 150 lines.
func TestReadme(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("programs can't be asked to stop on Windows")
	}
	t.Parallel()
	for page, most := range map[string]int{"README.md": 150, "ARCHITECTURE.md": 350} {
		if n := strings.Count(readFile(t, page), "\n"); n > most {
			t.Errorf("%s has %d lines, want at most %d", page, n, most)
		}
	}
	page := readPage(t, "README.md")
	if len(page.blocks["go"]) != 1 || len(page.blocks["sql"]) != 1 || len(page.blocks["text"]) != 1 {
		t.Fatalf("the page has %d programs, %d statements and %d logs, want one of each", len(page.blocks["go"]), len(page.blocks["sql"]), len(page.blocks["text"]))
	}
	dir := moduleOf(t, page.blocks["go"][0])
	runIn(t, dir, "", "go", "vet", ".")
	runIn(t, dir, "", "go", "build", "-o", "shop-projections", ".")
	db, url := pgtest.Database(t)
	first := startShop(t, dir, "./shop-projections", url)
	first.says(page.blocks["text"][0])
	second := startShop(t, dir, "./shop-projections", url)
	first.says("INFO partitions started replica_set= worker= generation=2 partitions= total_partitions=2")
	execute(t, db, page.blocks["sql"][0])
	pgtest.Eventually(t, "the read model has the user", func() bool {
		var id string
		return db.QueryRowContext(t.Context(), `SELECT id FROM users WHERE registered_at IS NOT NULL`).Scan(&id) == nil && id == "u1"
	})
	for _, c := range []*shopCopy{first, second} {
		if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := c.wait(); err != nil {
			t.Errorf("the program ended with %v:\n%s", err, c.output())
		}
	}
}
