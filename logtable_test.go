package orchestrator_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// What is logged, at which level and with which keys, is what docs/operations.md
// says: people build alerts on it.
func TestLogTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| message | level | keys |")
	var documented []string
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) != 6 {
			break
		}
		documented = append(documented, fmt.Sprintf("%s: %s [%s]", strings.TrimSpace(cells[2]), strings.TrimSpace(cells[1]), strings.TrimSpace(cells[3])))
	}
	slices.Sort(documented)
	if diff := cmp.Diff(documented, logCalls(t)); diff != "" {
		t.Errorf("-docs/operations.md +code:\n%s", diff)
	}
}

// docs/operations.md says of each function of an Observer when it is called, and of
// no other.
func TestObserverTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| function | is called |")
	var documented []string
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			break
		}
		documented = append(documented, strings.Split(strings.Trim(cells[1], " `"), "`, `")...)
	}
	var functions []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[orchestrator.Observer]()) {
		functions = append(functions, f.Name)
	}
	slices.Sort(documented)
	slices.Sort(functions)
	if diff := cmp.Diff(documented, functions); diff != "" {
		t.Errorf("-docs/operations.md +Observer:\n%s", diff)
	}
}

// logCalls returns the log calls of the package.
func logCalls(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) {
				return true
			}
			to, isField := method.X.(*ast.SelectorExpr)
			variable, isVariable := method.X.(*ast.Ident)
			if !(isField && to.Sel.Name == "log" || isVariable && variable.Name == "log") {
				return true
			}
			var keys []string
			for i := 1; i < len(call.Args); i += 2 {
				keys = append(keys, literal(t, file, call.Args[i]))
			}
			calls[fmt.Sprintf("%s: %s [%s]", strings.ToLower(method.Sel.Name), literal(t, file, call.Args[0]), strings.Join(keys, ", "))] = true
			return true
		})
	}
	return slices.Sorted(maps.Keys(calls))
}

// literal returns what a string is, which a message and a key have to be.
func literal(t *testing.T, file string, e ast.Expr) string {
	t.Helper()
	l, ok := e.(*ast.BasicLit)
	if !ok {
		t.Errorf("%s: a message or a key in the log is no literal", file)
		return ""
	}
	s, err := strconv.Unquote(l.Value)
	if err != nil {
		t.Error(err)
	}
	return s
}
