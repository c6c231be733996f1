// Command pure checks that the decisions of the library contain nothing that could make two runs
// differ: no clocks, goroutines, input or output, map order or hidden state. So the simulation
// can replay a failure from its seed, and two workers with the same facts make the same
// decision.
//
//	go run ./internal/lint/pure ./internal/protocol
//
// It reads the files of each given folder except _test.go. It prints one "file:line: message"
// per finding, and exits with status 1 if there is any. A folder without Go files is an error: a
// renamed package must not pass.
//
// Limits: it does not check methods one by one. So time.Time.Local, or the text of a time.Unix,
// may depend on the machine's time zone. Use UTC before you print a time.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// allowedImports are the packages that only compute. If one offers more, [checker.use] forbids
// the rest by name.
var allowedImports = set("bytes", "cmp", "encoding/binary", "errors", "fmt", "hash/fnv", "iter", "maps", "math",
	"math/bits", "slices", "sort", "strconv", "strings", "time", "unicode/utf8")

// allowedTime lists what may be used of package time. So a clock that a later Go adds is a
// finding without a change here. Constants are fine too.
var allowedTime = set("Time", "Duration", "Month", "Weekday", "Unix", "UnixMilli", "UnixMicro", "Date", "UTC", "ParseDuration")

var (
	standardIO = set("Print", "Printf", "Println", "Scan", "Scanf", "Scanln")
	mapOrdered = set("Keys", "Values", "All")
	sorters    = set("Sorted", "SortedFunc", "SortedStableFunc")
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: pure folder...")
		os.Exit(2)
	}
	failed := false
	for _, dir := range os.Args[1:] {
		findings, err := lint(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "pure:", err)
			failed = true
		}
		for _, f := range findings {
			fmt.Println(f)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

type finding struct {
	file    string
	line    int
	message string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.message) }

// lint returns the findings in the package in dir, in source order.
func lint(dir string) ([]finding, error) {
	fset := token.NewFileSet()
	files, err := parse(fset, dir)
	if err != nil {
		return nil, err
	}
	c := checker{fset: fset, sorted: map[*ast.Ident]bool{}}
	for _, file := range files {
		c.imports(file)
	}
	importsOK := len(c.findings) == 0

	c.info = types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	conf := types.Config{
		Importer: importer.ForCompiler(fset, "gc", nil),
		Error: func(err error) {
			// If a forbidden import is not installed, it also fails to type-check. One finding
			// about it is enough.
			if te := (types.Error{}); importsOK && errors.As(err, &te) {
				c.report(te.Pos, "does not compile: %s", te.Msg)
			}
		},
	}
	_, _ = conf.Check(dir, fset, files, &c.info) // errors went to conf.Error

	for _, file := range files {
		c.state(file)
		ast.Inspect(file, c.node)
	}
	slices.SortFunc(c.findings, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line), cmp.Compare(a.message, b.message))
	})
	return slices.Compact(c.findings), nil
}

func parse(fset *token.FileSet, dir string) ([]*ast.File, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no Go files in %s", dir)
	}
	return files, nil
}

type checker struct {
	fset     *token.FileSet
	info     types.Info
	sorted   map[*ast.Ident]bool // uses of maps.Keys and the like whose order a sort removes
	findings []finding
}

func (c *checker) report(pos token.Pos, format string, args ...any) {
	p := c.fset.Position(pos)
	c.findings = append(c.findings, finding{p.Filename, p.Line, fmt.Sprintf(format, args...)})
}

func (c *checker) imports(file *ast.File) {
	for _, spec := range file.Imports {
		if path, _ := strconv.Unquote(spec.Path.Value); !allowedImports[path] {
			c.report(spec.Pos(), "import of %q: not on the list of pure packages", path)
		}
	}
}

// state allows no package-level variables except error sentinels and blank variables that assert
// at compile time that a type satisfies an interface.
func (c *checker) state(file *ast.File) {
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.VAR {
			continue
		}
		for _, spec := range gen.Specs {
			spec := spec.(*ast.ValueSpec)
			for i, name := range spec.Names {
				sentinel := len(spec.Values) == len(spec.Names) && strings.HasPrefix(name.Name, "Err") && c.isErrorsNew(spec.Values[i])
				if name.Name != "_" && !sentinel {
					c.report(name.Pos(), "package-level variable %s: state belongs in a value; only var ErrX = errors.New(…) is allowed", name.Name)
				}
			}
		}
	}
}

func (c *checker) isErrorsNew(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	return ok && isPackageLevel(c.object(call.Fun), "errors", set("New"))
}

// node is the visitor of [ast.Inspect]. It sees a call before the call's arguments: so a sort
// can mark the map iterator inside it before that is checked.
func (c *checker) node(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GoStmt:
		c.report(n.Pos(), "go statement: the core starts no goroutine")
	case *ast.SelectStmt:
		c.report(n.Pos(), "select: the core waits for nothing")
	case *ast.ChanType:
		c.report(n.Pos(), "channel type: the core talks in arguments and results")
	case *ast.RangeStmt:
		if t := c.info.TypeOf(n.X); t != nil && isMap(t) {
			c.report(n.Pos(), "range over a map: its order is random; range over slices.Sorted(maps.Keys(m))")
		}
	case *ast.AssignStmt:
		for _, lhs := range n.Lhs {
			c.noPackageVar(lhs, "assignment to")
		}
	case *ast.UnaryExpr:
		if n.Op == token.AND {
			c.noPackageVar(n.X, "address of")
		}
	case *ast.CallExpr:
		if len(n.Args) > 0 && isPackageLevel(c.object(n.Fun), "slices", sorters) {
			if inner, ok := n.Args[0].(*ast.CallExpr); ok {
				c.sorted[lastIdent(inner.Fun)] = true
			}
		}
	case *ast.Ident:
		c.use(n)
	}
	return true
}

// use checks one mention of a name, called or not. So a function value (now := time.Now) and a
// dot import do not avoid a rule.
func (c *checker) use(id *ast.Ident) {
	obj := c.info.Uses[id]
	_, isConst := obj.(*types.Const)
	builtin, isBuiltin := obj.(*types.Builtin)
	switch {
	case isPackageLevel(obj, "time", nil) && !isConst && !allowedTime[id.Name]:
		c.report(id.Pos(), "time.%s: the core gets the time as an argument and never waits", id.Name)
	case isPackageLevel(obj, "fmt", standardIO):
		c.report(id.Pos(), "fmt.%s: the core reads and writes no standard stream", id.Name)
	case isBuiltin && (builtin.Name() == "print" || builtin.Name() == "println"):
		c.report(id.Pos(), "%s: the core reads and writes no standard stream", builtin.Name())
	case isPackageLevel(obj, "maps", mapOrdered) && !c.sorted[id]:
		c.report(id.Pos(), "maps.%s: its order is random; wrap it directly in slices.Sorted or slices.SortedFunc", id.Name)
	}
}

func (c *checker) noPackageVar(e ast.Expr, what string) {
	if v, ok := c.object(e).(*types.Var); ok && isPackageLevel(v, "", nil) {
		c.report(e.Pos(), "%s package-level variable %s", what, v.Name())
	}
}

// object returns what a plain or qualified name refers to, or nil for other expressions.
func (c *checker) object(e ast.Expr) types.Object { return c.info.Uses[lastIdent(e)] }

func lastIdent(e ast.Expr) *ast.Ident {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return e.Sel
	}
	return nil
}

// isPackageLevel reports whether obj is declared at the top level of the package path with one
// of names. An empty path and a nil set match anything.
func isPackageLevel(obj types.Object, path string, names map[string]bool) bool {
	return obj != nil && obj.Pkg() != nil && obj.Pkg().Scope().Lookup(obj.Name()) == obj &&
		(path == "" || obj.Pkg().Path() == path) && (names == nil || names[obj.Name()])
}

// isMap also checks the constraint of a type parameter: generic code over ~map[K]V has the same
// random order.
func isMap(t types.Type) bool {
	switch t := t.Underlying().(type) {
	case *types.Map:
		return true
	case *types.Interface:
		for e := range t.EmbeddedTypes() {
			if isMap(e) {
				return true
			}
		}
	case *types.Union:
		for term := range t.Terms() {
			if isMap(term.Type()) {
				return true
			}
		}
	}
	return false
}

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, name := range names {
		m[name] = true
	}
	return m
}
