package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Each folder of testdata is a package. A line with a finding ends in "// want: " and the
// message; other lines must have none. The folder clean holds code that must pass, and a
// _test.go file that must not be read.
func TestFixtures(t *testing.T) {
	for _, rule := range []string{"broken", "clean", "clock", "concurrency", "imports", "order", "output", "state"} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join("testdata", rule)
			findings, err := lint(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range findings {
				got = append(got, f.String())
			}
			want := wanted(t, filepath.Join(dir, rule+".go"))
			if (len(want) == 0) != (rule == "clean") {
				t.Fatalf("%s wants %d findings", dir, len(want))
			}
			if !slices.Equal(got, want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func wanted(t *testing.T, name string) []string {
	t.Helper()
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i, line := range strings.Split(string(src), "\n") {
		if _, message, ok := strings.Cut(line, "// want: "); ok {
			want = append(want, fmt.Sprintf("%s:%d: %s", name, i+1, message))
		}
	}
	return want
}

func TestNothingToLintIsAnError(t *testing.T) {
	if _, err := lint(t.TempDir()); err == nil {
		t.Error("a folder without Go files passed: a renamed core would no longer be checked")
	}
	if _, err := lint(filepath.Join("testdata", "missing")); err == nil {
		t.Error("a missing folder passed: a moved core would no longer be checked")
	}
}
