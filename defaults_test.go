package orchestrator

import (
	"context"
	"database/sql"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

type nothing struct{}

func (nothing) Read(context.Context, ReadRequest) (Page[Event], error) { return Page[Event]{}, nil }

// A zero in a field of Config, Retry or FailureRule means what its comment says, and
// each field but those that are required says something.
func TestDefaultsAreDocumented(t *testing.T) {
	t.Parallel()
	c, err := Config[Event]{DB: &sql.DB{}, EventStore: nothing{}, ReplicaSet: "set"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c.Logger = slog.Default() // which is wrapped
	documented := map[string]any{
		"1 minute": time.Minute, "16 MiB": 16 << 20, "RetryForever": RetryForever, "none": nil, "false": false,
		"slog.Default()": slog.Default(), "see Retry": c.Retry, "0, as many as the workers take": 0,
		"0, nothing is reserved":      time.Duration(0),
		"1 for StopOnFailure, else 5": 5, "the schema that the search path leads to when the worker starts": "",
	}
	comments := commentsOf(t, "config.go")
	seen := 0
	for _, value := range []any{c, c.Retry, Config[Event]{OnFailure: ParkEvents}.failureRule("p")} {
		v := reflect.ValueOf(value)
		name := regexp.MustCompile(`\[.*`).ReplaceAllString(v.Type().Name(), "")
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			field := name + "." + v.Type().Field(i).Name
			switch field {
			case "Config.DB", "Config.EventStore", "Config.ReplicaSet", "FailureRule.Policy":
				continue
			}
			text := regexp.MustCompile(`Default: (.*?)\.( |$)`).FindStringSubmatch(strings.Join(strings.Fields(comments[field]), " "))
			if text == nil {
				t.Errorf("%s says no default: %q", field, comments[field])
				continue
			}
			want, known := documented[text[1]]
			if !known {
				if d, err := time.ParseDuration(text[1]); err == nil {
					want = d
				} else if n := 0; len(text[1]) > 0 {
					if _, err := fmt.Sscanf(text[1], "%d", &n); err != nil {
						t.Errorf("%s: what is %q?", field, text[1])
					}
					want = n
				}
			}
			got := v.Field(i).Interface()
			if want == nil {
				if !v.Field(i).IsZero() {
					t.Errorf("%s is %v, documented as none", field, got)
				}
			} else if !reflect.DeepEqual(got, want) {
				t.Errorf("%s is %v, documented as %v", field, got, want)
			}
			seen++
		}
	}
	if seen < 20 {
		t.Errorf("%d fields were compared", seen)
	}
}

// commentsOf returns the comments of the fields of a file's structs, by Type.Field.
func commentsOf(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range s.Fields.List {
				for _, name := range field.Names {
					comments[spec.Name.Name+"."+name.Name] = field.Doc.Text() + field.Comment.Text()
				}
			}
		}
		return true
	})
	return comments
}

// Each exported type, function and constant has a comment (those of a group may have the
// group's), and so has each field of what programs set and are told.
func TestExportedNamesAreDocumented(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	whole := []string{"config.go", "observer.go"}
	seen := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		check := func(name *ast.Ident, comments ...*ast.CommentGroup) {
			if name == nil || !name.IsExported() {
				return
			}
			seen++
			for _, c := range comments {
				if c.Text() != "" {
					return
				}
			}
			t.Errorf("%s: %s has no comment", set.Position(name.Pos()), name.Name)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					check(d.Name, d.Doc)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.ValueSpec:
						for _, name := range s.Names {
							check(name, s.Doc, s.Comment, d.Doc)
						}
					case *ast.TypeSpec:
						check(s.Name, s.Doc, d.Doc)
						if of, ok := s.Type.(*ast.StructType); ok && s.Name.IsExported() && slices.Contains(whole, file) {
							for _, field := range of.Fields.List {
								for _, name := range field.Names {
									check(name, field.Doc, field.Comment)
								}
							}
						}
					}
				}
			}
		}
	}
	if seen < 150 {
		t.Errorf("%d names were looked at", seen)
	}
}
