package orchestrator

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the root exports is here under the same name, but for what the adapter
// is there to make unnecessary.
func TestNamesOfTheRoot(t *testing.T) {
	unnecessary := map[string]bool{
		// pupsourcing has its own.
		"Event": true, "Record": true, "Projection": true, "ScopedProjection": true,
		// How events are read is settled here.
		"EventStore": true, "ScopedEventStore": true, "Scope": true, "ReadFunc": true, "Checker": true,
		"GapWaiter": true, "HeadStore": true,
		"Plain": true, "Transactional": true, "Batch": true, "ProjectionOption": true, "WithScope": true, "WithFailureRule": true,
		"Table": true, "TableConfig": true, "NewTable": true, "NewEventTable": true,
	}
	names, here := exported(t, "../.."), exported(t, ".")
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !here[name] && !unnecessary[name] {
			missing = append(missing, name)
		}
	}
	if diff := cmp.Diff([]string(nil), missing); diff != "" {
		t.Errorf("not re-exported:\n%s", diff)
	}
	for name := range unnecessary {
		if !names[name] {
			t.Errorf("%s is excepted, and the root has none", name)
		}
	}
}

// exported returns the package-level names that a folder's package exports.
func exported(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	add := func(ids ...*ast.Ident) {
		for _, id := range ids {
			if id.IsExported() {
				names[id.Name] = true
			}
		}
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					add(d.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						add(s.Name)
					case *ast.ValueSpec:
						add(s.Names...)
					}
				}
			}
		}
	}
	return names
}
