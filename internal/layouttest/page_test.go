package layouttest

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const page = "../../docs/event-tables.md"

var update = flag.Bool("update", false, "write the code and the numbers into the page")

// The page shows the code that runs here. Each section with the name of a layout shows its type
// and function and what must be added to the table. The tables have a row for each layout, with
// the number of lines, or with Check's error.
func TestPage(t *testing.T) {
	declared := declarations(t)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	shown := map[string]string{} // the first layout that shows some code
	for _, l := range layouts {
		var code []string
		for _, name := range l.reader.code {
			code = append(code, declared[name])
		}
		source := strings.Join(code, "\n\n")
		if l.refused != "" {
			row := rowOf(want, l.name)
			if row == "" {
				t.Errorf("the page has no row for %s", l.name)
			} else if !strings.Contains(row, "`"+l.refused+"`") {
				t.Errorf("the row of %s does not quote `%s`: %s", l.name, l.refused, row)
			}
			continue
		}
		row := rowOf(want, l.name)
		if row == "" {
			t.Errorf("the page has no row for %s", l.name)
			continue
		}
		cells := strings.Split(row, "|")
		cells[2] = fmt.Sprintf(" %d ", lines(source))
		if l.add != "" {
			cells[2] = fmt.Sprintf(" %d + %d SQL ", lines(source), lines(l.add))
		}
		want = strings.Replace(want, row, strings.Join(cells, "|"), 1)
		if !strings.HasPrefix(l.name, "aggregate id: ") {
			block := "```go\n" + source + "\n```\n"
			if first := shown[source]; first != "" {
				block = fmt.Sprintf("The code of [%s](#%s).\n", first, anchor(first))
			} else {
				shown[source] = l.name
			}
			want = section(t, want, l, block)
		}
	}
	switch {
	case want == string(text):
	case *update:
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s does not show what runs here; go test ./internal/layouttest -run TestPage -update, and read the diff", page)
	}
	for _, match := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(want, -1) {
		if known := func() bool {
			for _, l := range layouts {
				if l.name == match[1] {
					return true
				}
			}
			return false
		}(); !known {
			t.Errorf("the page shows %q, which is not tested", match[1])
		}
	}
}

// rowOf returns the row of a table that begins with a name.
func rowOf(text, name string) string {
	for row := range strings.Lines(text) {
		if strings.HasPrefix(row, "| "+name+" |") {
			return strings.TrimSuffix(row, "\n")
		}
	}
	return ""
}

// section replaces the code in the section of a layout.
func section(t *testing.T, text string, l layout, block string) string {
	t.Helper()
	heading := "### " + l.name + "\n\n"
	before, rest, found := strings.Cut(text, heading)
	if !found {
		t.Errorf("the page has no section %q", l.name)
		return text
	}
	body, after := rest, ""
	if i := strings.Index(rest, "### "); i >= 0 {
		body, after = rest[:i], rest[i:]
	}
	if after != "" {
		block += "\n"
	}
	if l.add != "" {
		block = "```sql\n" + strings.TrimSpace(l.add) + ";\n```\n\n" + block
	}
	prose, _, _ := strings.Cut(body, "```")
	prose, _, _ = strings.Cut(prose, "The code of [")
	if prose = strings.TrimSpace(prose); prose != "" {
		prose += "\n\n"
	}
	return before + heading + prose + block + after
}

// anchor returns the anchor that GitHub gives to a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

func lines(source string) (n int) {
	for line := range strings.Lines(strings.TrimSpace(source)) {
		if strings.TrimSpace(line) != "" {
			n++
		}
	}
	return n
}

// declarations returns the source of the types and functions of this package, by name.
func declarations(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]string{}
	for _, name := range files {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, source, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			text := string(bytes.TrimSpace(source[set.Position(d.Pos()).Offset:set.Position(d.End()).Offset]))
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					declared[d.Name.Name] = text
				}
			case *ast.GenDecl:
				if spec, ok := d.Specs[0].(*ast.TypeSpec); ok && d.Tok == token.TYPE {
					declared[spec.Name.Name] = text
				}
			}
		}
	}
	return declared
}
