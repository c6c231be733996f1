package orchestrator

import (
	"database/sql"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tableOf returns the first two cells of the rows of a page's table, by its heading's cells.
func tableOf(t *testing.T, page, heading string) (rows [][2]string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n| "+heading+" |")
	if !ok {
		t.Fatalf("%s has no table with the heading %q", page, heading)
	}
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			break
		}
		rows = append(rows, [2]string{strings.Trim(cells[1], " `"), strings.Trim(cells[2], " `")})
	}
	return rows
}

// The table of docs/configuration.md has the fields of Config, in their order, with their
// defaults.
func TestConfigTable(t *testing.T) {
	t.Parallel()
	rows := tableOf(t, "docs/configuration.md", "field | default")
	c, err := Config[Event]{DB: &sql.DB{}, EventStore: nothing{}, ReplicaSet: "set"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c.Logger = slog.Default() // which is wrapped
	v := reflect.ValueOf(c)
	var documented, fields []string
	for _, row := range rows {
		documented = append(documented, row[0])
		field := v.FieldByName(row[0])
		if !field.IsValid() {
			continue
		}
		got := field.Interface()
		switch row[1] {
		case "required":
			if _, err := without(c, row[0]).withDefaults(); err == nil {
				t.Errorf("%s is documented as required, and may be left out", row[0])
			}
		case "none":
			if !field.IsZero() {
				t.Errorf("%s is %v, documented as none", row[0], got)
			}
		default:
			if want := valueOf(t, row[1], field.Type()); !reflect.DeepEqual(got, want) {
				t.Errorf("%s is %v, documented as %v", row[0], got, want)
			}
		}
	}
	for _, f := range reflect.VisibleFields(v.Type()) {
		if f.IsExported() {
			fields = append(fields, f.Name)
		}
	}
	if diff := cmp.Diff(documented, fields); diff != "" {
		t.Errorf("-docs/configuration.md +Config:\n%s", diff)
	}
}

// without returns a Config as a program sets it, but for a field.
func without(c Config[Event], field string) Config[Event] {
	reflect.ValueOf(&c).Elem().FieldByName(field).SetZero()
	return c
}

// valueOf returns what a default is, of a field's type.
func valueOf(t *testing.T, text string, of reflect.Type) any {
	t.Helper()
	duration := func(text string) time.Duration {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Errorf("%q is no duration", text)
		}
		return d
	}
	switch of {
	case reflect.TypeFor[time.Duration]():
		return duration(text)
	case reflect.TypeFor[Retry]():
		least, most, _ := strings.Cut(text, " to ")
		return Retry{Min: duration(least), Max: duration(most)}
	case reflect.TypeFor[FailurePolicy]():
		policies := map[string]FailurePolicy{"RetryForever": RetryForever, "StopOnFailure": StopOnFailure, "ParkEvents": ParkEvents}
		return policies[text]
	case reflect.TypeFor[bool]():
		return text == "true"
	case reflect.TypeFor[*slog.Logger]():
		if text == "slog.Default()" {
			return slog.Default()
		}
	case reflect.TypeFor[int]():
		n, unit := 0, ""
		if _, err := fmt.Sscanf(text, "%d %s", &n, &unit); n == 0 && err != nil && text != "0" {
			t.Errorf("%q is no number", text)
		}
		if unit == "MiB" {
			n <<= 20
		}
		return n
	}
	return text
}

// Its table of a projection's settings has all options, and no other.
func TestOptionTable(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "projection.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var options, documented []string
	for _, d := range f.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil && d.Type.Results != nil && len(d.Type.Results.List) == 1 {
			if result, ok := d.Type.Results.List[0].Type.(*ast.Ident); ok && result.Name == "ProjectionOption" && d.Name.IsExported() {
				options = append(options, d.Name.Name)
			}
		}
	}
	for _, row := range tableOf(t, "docs/configuration.md", "option | default") {
		documented = append(documented, row[0])
	}
	slices.Sort(options)
	slices.Sort(documented)
	if diff := cmp.Diff(documented, options); diff != "" {
		t.Errorf("-docs/configuration.md +projection.go:\n%s", diff)
	}
}
