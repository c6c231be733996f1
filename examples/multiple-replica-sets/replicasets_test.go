package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestRun(t *testing.T) {
	db, url := pgtest.Database(t)
	t.Setenv("DATABASE_URL", url)
	var out bytes.Buffer
	err := run(t.Context(), &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`the shop is busy: critical now has 4 workers \(generation \d+\); analytics was not rebalanced`,
		`\n *critical +\d+ +0 of 4 +critical-\d`, `\n *critical +\d+ +3 of 4 +critical-\d`, `\n *analytics +\d+ +1 of 2 +analytics-\d`,
		`\nto_handle=22500 lost=0 repeated=0 overlaps=0\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("the output does not have %q", want)
		}
	}
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'multiple%'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d schemas were left behind, %v", n, err)
	}
}

// verify finds what is wrong.
func TestVerify(t *testing.T) {
	for _, tt := range []struct{ why, change, want string }{
		{"all is well", ``, "to_handle=9 lost=0 repeated=0 overlaps=0"},
		{"one is lost", `DELETE FROM handled WHERE projection = 'stock' AND position = 2`, "lost=1 repeated=0 overlaps=0"},
		{"one is repeated", `INSERT INTO handled SELECT * FROM handled WHERE projection = 'revenue' AND position = 3`, "lost=0 repeated=1 overlaps=0"},
		{"by the other set", `UPDATE handled SET replica_set = 'critical' WHERE projection = 'revenue' AND position = 3`, "lost=1 repeated=0 overlaps=0"},
		{"by another worker", `UPDATE handled SET worker = 'v' WHERE projection = 'revenue' AND position = 3`, "lost=0 repeated=0 overlaps=1"},
	} {
		db, _ := pgtest.Database(t)
		for _, q := range []string{eventtable.Layout, handledTable} {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if err := appendEvents(t.Context(), db, 3); err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{`INSERT INTO handled SELECT *, 'w', 1, 0, 1 FROM (` + wantSQL + `) AS want`, tt.change} {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		err := verify(t.Context(), db, &out)
		if (err != nil) != (tt.change != "") || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: %v, %s", tt.why, err, &out)
		}
	}
}
