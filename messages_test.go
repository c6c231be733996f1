package orchestrator_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

var update = flag.Bool("update", false, "rewrite what docs/messages.md takes from the code, and keep its sentences")

const (
	messagesPage = "docs/messages.md"
	// unsorted is the heading under which -update puts rows that are new.
	unsorted = "## To be sorted in"
)

// docs/messages.md has each message of the log and each text of an error that the code has,
// and no other, with a sentence of its own. After a text has changed:
//
//	go test . -run TestMessages -update
//
// It keeps the sentences, also of rows whose text has changed a little; rows that are new
// stand at the end, and their sentences are to be written.
func TestMessages(t *testing.T) {
	page := readMessages(t)
	code := append(logRows(t), errorRows(t)...)
	if *update {
		page.update(t, code)
	}
	compareMessages(t, page, code)
	for _, r := range page.rows {
		if r.rest == "" || slices.Contains(strings.Split(r.rest, " | "), "") {
			t.Errorf("%s:%d: %s lacks a sentence", messagesPage, r.line+1, r.key)
		}
	}
	if slices.Contains(page.lines, unsorted) {
		t.Errorf("%s: move the rows under %q to where they belong, and remove that heading", messagesPage, unsorted)
	}
}

// People build alerts on what is logged, at which level and with which keys.
func TestLogTable(t *testing.T) {
	page := readMessages(t)
	page.rows = slices.DeleteFunc(page.rows, func(r messageRow) bool { return !r.log })
	compareMessages(t, page, logRows(t))
}

func compareMessages(t *testing.T, page *messages, code []messageRow) {
	t.Helper()
	texts := func(rows []messageRow) []string {
		var all []string
		for _, r := range rows {
			all = append(all, r.key+" ["+r.columns+"]")
		}
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff(texts(page.rows), texts(code)); diff != "" {
		t.Errorf("-%s +code (go test . -run TestMessages -update):\n%s", messagesPage, diff)
	}
}

// A messageRow is a row of a table of the page.
type messageRow struct {
	log     bool   // of a message of the log; else of the text of an error
	key     string // the text
	columns string // what follows of it from the code: the level and the keys, or the sentinels
	rest    string // what people have written
	line    int    // where it stands on the page
}

func (r messageRow) String() string {
	return fmt.Sprintf("| `%s` | %s | %s |", r.key, r.columns, r.rest)
}

// messages are the page.
type messages struct {
	lines []string
	rows  []messageRow
}

const (
	logHeader   = "| message | level | keys | "
	errorHeader = "| text | is | "
)

func readMessages(t *testing.T) *messages {
	t.Helper()
	text, err := os.ReadFile(messagesPage)
	if err != nil {
		t.Fatal(err)
	}
	p := &messages{lines: strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")}
	own := 0 // columns from the code beside the text; 0: the line is in no table
	for i, line := range p.lines {
		switch {
		case strings.HasPrefix(line, logHeader):
			own = 2
		case strings.HasPrefix(line, errorHeader):
			own = 1
		case !strings.HasPrefix(line, "|"):
			own = 0
		case own > 0 && !strings.HasPrefix(line, "|--"):
			cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "| "), " |"), " | ")
			if len(cells) < own+2 {
				t.Fatalf("%s:%d: %d columns", messagesPage, i+1, len(cells))
			}
			p.rows = append(p.rows, messageRow{
				own == 2, strings.Trim(cells[0], "`"), strings.Join(cells[1:1+own], " | "), strings.Join(cells[1+own:], " | "), i,
			})
		}
	}
	return p
}

// update makes the page fit the code. A row whose text is gone becomes that of the text
// that has most of its words, if there is one.
func (p *messages) update(t *testing.T, code []messageRow) {
	t.Helper()
	fresh := map[string]messageRow{}
	for _, r := range code {
		fresh[fmt.Sprint(r.log, r.key)] = r
	}
	var gone []messageRow
	for _, old := range p.rows {
		r, ok := fresh[fmt.Sprint(old.log, old.key)]
		if !ok {
			gone = append(gone, old)
			continue
		}
		delete(fresh, fmt.Sprint(old.log, old.key))
		r.rest = old.rest
		p.lines[old.line] = r.String()
	}
	for _, old := range gone {
		best, like := "", 0.5
		for _, key := range slices.Sorted(maps.Keys(fresh)) {
			if r := fresh[key]; r.log == old.log && alike(r.key, old.key) > like {
				best, like = key, alike(r.key, old.key)
			}
		}
		if best == "" {
			t.Logf("removed: %s", old)
			p.lines[old.line] = "\x00"
			continue
		}
		r := fresh[best]
		delete(fresh, best)
		r.rest = old.rest
		p.lines[old.line] = r.String()
	}
	p.lines = slices.DeleteFunc(p.lines, func(line string) bool { return line == "\x00" })
	var logs, errs []string
	for _, key := range slices.Sorted(maps.Keys(fresh)) {
		if r := fresh[key]; r.log {
			r.rest = " | "
			logs = append(logs, r.String())
		} else {
			errs = append(errs, r.String())
		}
	}
	if len(fresh) > 0 {
		p.lines = append(p.lines, "", unsorted, "")
		if len(logs) > 0 {
			p.lines = append(append(p.lines, logHeader+"meaning | what to do |", "|---|---|---|---|---|"), append(logs, "")...)
		}
		if len(errs) > 0 {
			p.lines = append(append(p.lines, errorHeader+"when, and what to do |", "|---|---|---|"), errs...)
		}
	}
	if err := os.WriteFile(messagesPage, []byte(strings.TrimRight(strings.Join(p.lines, "\n"), "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	*p = *readMessages(t)
}

// alike is the share of words that two texts have in common.
func alike(a, b string) float64 {
	words := map[string]int{}
	for _, w := range strings.Fields(a) {
		words[w] |= 1
	}
	for _, w := range strings.Fields(b) {
		words[w] |= 2
	}
	both := 0
	for _, in := range words {
		if in == 3 {
			both++
		}
	}
	return float64(both) / float64(len(words))
}

// logRows returns the log calls of the package.
func logRows(t *testing.T) []messageRow {
	t.Helper()
	rows := map[string]messageRow{}
	for file, f := range sources(t, ".") {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) || len(call.Args) == 0 {
				return true
			}
			to, isField := method.X.(*ast.SelectorExpr)
			variable, isVariable := method.X.(*ast.Ident)
			if !(isField && to.Sel.Name == "log" || isVariable && variable.Name == "log") {
				return true
			}
			var keys []string
			for i := 1; i < len(call.Args); i += 2 {
				key, ok := literal(call.Args[i])
				if !ok {
					t.Errorf("%s: a key in the log is no literal", file)
				}
				keys = append(keys, "`"+key+"`")
			}
			message, ok := literal(call.Args[0])
			if !ok {
				t.Errorf("%s: a message in the log is no literal", file)
			}
			r := messageRow{log: true, key: message, columns: strings.ToUpper(method.Sel.Name) + " | " + strings.Join(keys, ", ")}
			rows[r.key+r.columns] = r
			return true
		})
	}
	return slices.Collect(maps.Values(rows))
}

// errorRows returns the texts of errors that users meet: the sentinels; what errors.New is
// given; what fmt.Errorf is given, unless that is a mere "operation: %w"; what is wrong with
// a field (configError and the like, and functions that return a problem); and what the Error
// methods of types say.
func errorRows(t *testing.T) []messageRow {
	t.Helper()
	rows := map[string]messageRow{}
	add := func(text string, is ...string) {
		if len(words.FindAllString(placeholder.ReplaceAllString(text, ""), -1)) < 3 && len(is) == 0 && !strings.Contains(text, ": db is") || slices.Contains(unseen, text) {
			return
		}
		text = placeholder.ReplaceAllString(text, "…")
		text = strings.NewReplacer("|", "/", "`", "'").Replace(text)
		r := messageRow{key: text, columns: strings.Join(is, ", ")}
		if before, ok := rows[text]; ok && before.columns != "" {
			r.columns = before.columns
		}
		rows[text] = r
	}
	for _, err := range []struct {
		name string
		is   error
	}{{"orchestrator.ErrSchema", orchestrator.ErrSchema}, {"ops.ErrRejected", ops.ErrRejected}} {
		add(err.is.Error(), "`"+err.name+"`")
	}
	for _, dir := range []string{".", "ops", "importer"} {
		pkg := filepath.Base(dir)
		if dir == "." {
			pkg = "orchestrator"
		}
		for _, f := range sources(t, dir) {
			for _, decl := range f.Decls {
				collectErrors(pkg, decl, add)
			}
		}
	}
	return slices.Collect(maps.Values(rows))
}

// unseen are texts that no user meets: their errors are taken in by the library itself.
var unseen = []string{"Run did not return: it panicked, or its goroutine ended", "dry run", "not an order", "probe", "the Logger is blocked", "%s %s", "Config.%s %s", "TableConfig.%s %s", "importer.Config.%s %s", "its name %s",
	"check events table: %w%s", "migrate: set timeouts: %w", "%w, with more time: %w"}

var (
	words       = regexp.MustCompile(`\pL+`)
	placeholder = regexp.MustCompile(`%[+#]?[a-zA-Z]`)
	// wrap is an operation, and what came of it; or nothing but errors.
	wrap = regexp.MustCompile(`^(%[a-zA-Z][: ]*)*[^:;,()]*: %w$|^[%a-zA-Z]{2}([: (]*%[a-zA-Z])*[;)]?$`)
)

func collectErrors(pkg string, decl ast.Decl, add func(text string, is ...string)) {
	if d, ok := decl.(*ast.GenDecl); ok && d.Tok == token.VAR {
		for _, spec := range d.Specs {
			v := spec.(*ast.ValueSpec)
			for i, value := range v.Values {
				if text, ok := argument(value, "errors.New"); ok && ast.IsExported(v.Names[i].Name) {
					add(text, "`"+pkg+"."+v.Names[i].Name+"`")
				}
			}
		}
	}
	ast.Inspect(decl, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if text, ok := argument(call, "errors.New"); ok && !strings.HasPrefix(text, "orchestrator: ") {
			add(text)
		}
		if text, ok := argument(call, "fmt.Errorf"); ok && !wrap.MatchString(text) {
			is := sentinels(pkg, call)
			if len(is) > 0 {
				text = strings.TrimPrefix(text, "%w: ")
			}
			add(text, is...)
		}
		if id, ok := call.Fun.(*ast.Ident); ok && strings.HasSuffix(id.Name, "Error") && len(call.Args) == 2 {
			field, named := literal(call.Args[0])
			if text, ok := text(call.Args[1]); ok && named {
				add(map[string]string{"configError": "Config.", "tableError": "TableConfig.", "importError": "importer.Config."}[id.Name]+field+" "+text, "`orchestrator.ErrInvalidConfig`")
			}
		}
		if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "append" {
			if to, ok := call.Args[0].(*ast.Ident); ok && to.Name == "problems" {
				if text, ok := text(call.Args[1]); ok {
					add(text)
				}
			}
		}
		return true
	})
	f, ok := decl.(*ast.FuncDecl)
	if !ok {
		return
	}
	problem := strings.Contains(strings.ToLower(f.Name.Name), "problem")
	for _, result := range fields(f.Type.Results) {
		problem = problem || len(result.Names) == 1 && result.Names[0].Name == "problem"
	}
	method := f.Name.Name == "Error" && f.Recv != nil
	if !problem && !method {
		return
	}
	ast.Inspect(f, func(n ast.Node) bool {
		back, ok := n.(*ast.ReturnStmt)
		if !ok {
			return true
		}
		for _, result := range back.Results {
			if text, ok := text(result); ok && strings.Contains(text, " ") {
				add(text)
			}
		}
		return true
	})
}

func fields(l *ast.FieldList) []*ast.Field {
	if l == nil {
		return nil
	}
	return l.List
}

// argument returns the first argument of a call of a function, if that is a literal.
func argument(e ast.Expr, function string) (string, bool) {
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 || nameOf(call.Fun) != function {
		return "", false
	}
	return literal(call.Args[0])
}

// text returns a literal, or what fmt.Sprintf is given.
func text(e ast.Expr) (string, bool) {
	if text, ok := argument(e, "fmt.Sprintf"); ok {
		return text, true
	}
	return literal(e)
}

// literal returns what a string is, if it consists of literals.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		x, ok := literal(e.X)
		y, both := literal(e.Y)
		return x + y, ok && both
	}
	return "", false
}

// sentinels returns the exported errors that a call of fmt.Errorf wraps.
func sentinels(pkg string, call *ast.CallExpr) (is []string) {
	for _, arg := range call.Args[1:] {
		switch e := nameOf(arg); {
		case strings.HasPrefix(e, "Err"):
			is = append(is, "`"+pkg+"."+e+"`")
		case strings.HasPrefix(e, "orchestrator.Err"):
			is = append(is, "`"+e+"`")
		}
	}
	return is
}

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return nameOf(e.X) + "." + e.Sel.Name
	}
	return ""
}

// sources returns the files of a package, without its tests.
func sources(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*ast.File{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		all[file] = f
	}
	return all
}
