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
	if want := "\nregistered=1000 counted=1000 ("; !strings.Contains(out.String(), want) {
		t.Errorf("the output does not have %q", want)
	}
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'basic%'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d schemas were left behind, %v", n, err)
	}
}

// What went wrong is found.
func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		why, counted string
		ok           bool
	}{
		{"all is well", `(0, 1), (1, 1)`, true},
		{"one is lost", `(0, 0), (1, 1)`, false},
		{"one is counted twice", `(0, 1), (1, 2)`, false},
		{"one worker did it all", `(0, 2)`, false},
		{"nobody did anything", ``, false},
	} {
		db, _ := pgtest.Database(t)
		queries := []string{eventtable.Layout, userCountTable}
		if tt.counted != "" {
			queries = append(queries, `INSERT INTO user_count VALUES `+tt.counted)
		}
		for _, q := range queries {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if err := appendEvents(t.Context(), db, 4); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := verify(t.Context(), db, &out); (err == nil) != tt.ok {
			t.Errorf("%s: %v, %s", tt.why, err, &out)
		}
	}
}
