package main

import (
	"bytes"
	"database/sql"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/orchestratortest"
)

func TestRun(t *testing.T) {
	url := orchestratortest.URL(t)
	var out bytes.Buffer
	err := run(t.Context(), url, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if want := "\nregistered=1000 counted=1000\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("the output does not end with %q", want)
	}
	db, err := sql.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM pg_namespace WHERE nspname = $1`, schema).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d schemas were left behind, %v", n, err)
	}
}

// Without a database it says what to do.
func TestNoDatabase(t *testing.T) {
	for url, want := range map[string]string{
		"":          "export DATABASE_URL='postgres://",
		"localhost": "DATABASE_URL is not of the form postgres://",
	} {
		if err := run(t.Context(), url, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
}

// The file can be copied: it builds in a module of its own, with what is public.
func TestCopy(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "main.go", text, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range file.Imports {
		if strings.Contains(i.Path.Value, "/internal/") {
			t.Errorf("it imports %s, which a copy can't", i.Path.Value)
		}
	}

	dir := t.TempDir()
	for name, text := range map[string][]byte{"main.go": text, "go.sum": sums(t, root)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const module = "github.com/getpup/pupsourcing-orchestrator"
	for _, args := range [][]string{
		{"mod", "init", "example"},
		{"mod", "edit", "-require=" + module + "@v0.0.0", "-replace=" + module + "=" + root},
		{"build", "-mod=mod", "-o", os.DevNull, "."},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func sums(t *testing.T, root string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// verify finds what is wrong.
func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		why, counted string
		ok           bool
	}{
		{"all is well", `(0, 1), (1, 1)`, true},
		{"one is lost", `(0, 0), (1, 1)`, false},
		{"one is counted twice", `(0, 1), (1, 2)`, false},
		{"one worker did it all", `(0, 2)`, false},
		{"no worker did anything", ``, false},
	} {
		db := orchestratortest.DB(t)
		queries := []string{tables}
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
