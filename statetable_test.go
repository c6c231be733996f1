package orchestrator

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
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
	if diff := cmp.Diff(sections, constantsOf(t, "ops/status.go", "WaitKind")); diff != "" {
		t.Errorf("reasons (-docs/operations.md +ops.WaitKind):\n%s", diff)
	}
	for _, table := range []struct {
		heading, of string
		more        []string // that the command shows beside
	}{
		{"state of a worker | meaning", "WorkerState", []string{"expired", "drained", "vacant", "-"}},
		{"state of a partition | meaning", "LaneState", []string{"paused", "held", "replaced", "-"}},
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
