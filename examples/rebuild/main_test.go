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
	_, url := pgtest.Database(t)
	t.Setenv("DATABASE_URL", url)
	var out bytes.Buffer
	err := run(t.Context(), &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "Version 2 is live, in place of customer_orders_v1") || !strings.Contains(out.String(), "mailed_twice=0") {
		t.Error("the output does not say so")
	}
}

// verify finds what is wrong.
func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		why, orders, mails string
		ok                 bool
	}{
		{"all is well", `('a', 2)`, `(1), (2)`, true},
		{"one was not mailed", `('a', 2)`, `(1)`, false},
		{"one was mailed twice", `('a', 2)`, `(1), (2), (2)`, false},
		{"one is missing", `('a', 1)`, `(1), (2)`, false},
	} {
		db, _ := pgtest.Database(t)
		for _, q := range []string{eventtable.Layout, tables, `INSERT INTO customer_orders_v1 VALUES ` + tt.orders, `INSERT INTO mails (event) VALUES ` + tt.mails} {
			if _, err := db.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if err := verify(t.Context(), db, &out); (err == nil) != tt.ok {
			t.Errorf("%s: %v, %s", tt.why, err, &out)
		}
	}
}
