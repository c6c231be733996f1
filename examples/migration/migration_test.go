package main

import (
	"bytes"
	"os"
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
	if want := "\nevents=6000 lost=0 repeated=0\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("the output does not end with %q", want)
	}
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'migration%'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d schemas were left behind, %v", n, err)
	}
}

// verify finds what is wrong.
func TestVerify(t *testing.T) {
	for _, tt := range []struct{ why, handled, want string }{
		{"all is well", `SELECT global_position, 'x' FROM events`, ""},
		{"one is lost", `SELECT global_position, 'x' FROM events WHERE global_position <> 2`, "lost=1 repeated=0"},
		{"one is repeated", `SELECT global_position, 'x' FROM events UNION ALL SELECT 2, 'y'`, "lost=0 repeated=1"},
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
		if _, err := db.Exec(`INSERT INTO handled ` + tt.handled); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := verify(t.Context(), db, &out)
		if (err != nil) != (tt.want != "") || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: %v, %s", tt.why, err, &out)
		}
	}
}
