package orchestrator

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// constantsOf returns the values of a file's constants of a type.
func constantsOf(t *testing.T, file, of string) (values []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if is, ok := spec.Type.(*ast.Ident); ok && is.Name == of {
			for _, v := range spec.Values {
				text, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Error(err)
				}
				values = append(values, text)
			}
		}
		return true
	})
	slices.Sort(values)
	return values
}

// docs/operations.md has a section for each reason that Status can give, and a line for each
// state of a worker and of a partition.
func TestStatusIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, reasons, _ := strings.Cut(string(page), "\n## What status reports\n")
	reasons, _, _ = strings.Cut(reasons, "\n## ")
	reasons, _, _ = strings.Cut(reasons, "\n### States\n")
	var sections []string
	for _, m := range regexp.MustCompile("(?m)^### (.*)$").FindAllStringSubmatch(reasons, -1) {
		sections = append(sections, m[1])
	}
	slices.Sort(sections)
	if diff := cmp.Diff(sections, constantsOf(t, "ops/waits.go", "WaitKind")); diff != "" {
		t.Errorf("reasons (-docs/operations.md +ops.WaitKind):\n%s", diff)
	}
	for _, table := range []struct {
		heading, of string
		more        []string // that the command shows beside
	}{
		{"state of a worker | meaning", "WorkerState", []string{"expired", "drained", "vacant", "-"}},
		{"state of a partition | meaning", "LaneState", []string{"held", "replaced", "-"}},
	} {
		var documented []string
		for _, row := range tableOf(t, "docs/operations.md", table.heading) {
			documented = append(documented, strings.Split(row[0], "`, `")...)
		}
		states := append(constantsOf(t, "report.go", table.of), table.more...)
		slices.Sort(documented)
		slices.Sort(states)
		if diff := cmp.Diff(documented, states); diff != "" {
			t.Errorf("states (-docs/operations.md +%s):\n%s", table.of, diff)
		}
	}
}

// The lines that docs/operations.md quotes are what status and the log say: a part of each,
// without a number or a name, stands in the code.
func TestLinesAreQuotedAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, table := range []struct {
		heading string
		of      []string
		least   int
	}{
		{"the line says | cause", []string{"ops/*.go", "cmd/orchestrator/*.go", "report.go"}, 15},
		{"reason | do", []string{"lag.go", "report.go"}, 9},
	} {
		var code strings.Builder
		for _, pattern := range table.of {
			files, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if !strings.HasSuffix(file, "_test.go") {
					literals(t, file, &code)
				}
			}
		}
		rows := 0
		for _, row := range tableOf(t, "docs/operations.md", table.heading) {
			if strings.HasPrefix(row[0], "an error") { // of any text
				continue
			}
			for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch("`"+row[0]+"`", -1) {
				found := false
				for _, part := range regexp.MustCompile(`(?:\w*\d\w*|\bw\b|\bsearch\b|…|: )+`).Split(quoted[1], -1) {
					part = strings.TrimSpace(part)
					found = found || (len(part) > 7 || part == quoted[1]) && strings.Contains(code.String(), part)
				}
				if !found {
					t.Errorf("nothing says %q", quoted[1])
				}
				rows++
			}
		}
		if rows < table.least {
			t.Errorf("%d lines of the table %q were found", rows, table.heading)
		}
	}
}

// literals writes the strings of a file, one a line.
func literals(t *testing.T, file string, to *strings.Builder) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if text, err := strconv.Unquote(l.Value); err == nil {
				to.WriteString(text + "\n")
			}
		}
		return true
	})
}
