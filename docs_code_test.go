package orchestrator_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docsCode are the pages whose Go code is compiled, with what it uses and does not declare.
var docsCode = map[string]struct {
	has     string // code without it is left out
	prelude string
}{
	"docs/projections.md": {prelude: `
func index(context.Context, []orchestrator.Event) error                   { return nil }
func send(context.Context, orchestrator.Event, string) error              { return nil }
func ship(context.Context, orchestrator.Tx, orchestrator.Event) error     { return nil }
func count(context.Context, orchestrator.Tx, []orchestrator.Event) error  { return nil }
`},
	"docs/event-stores.md": {prelude: `
type client struct{}
type Entry struct {
	Number        int64
	Account, Kind string
	At            time.Time
}
func (*client) List(context.Context, int64, int) ([]Entry, error) { return nil, nil }
var _ orchestrator.EventStore[Entry] = (*Ledger)(nil)
`},
	"docs/rebuild.md": {prelude: `
func handle(context.Context, orchestrator.Tx, orchestrator.Event) error { return nil }
`},
	"docs/status-page.md": {has: "DescribeEvents"},
	"docs/pupsourcing.md": {has: "importer."}, // the rest is for another module
}

// The Go code of the pages compiles.
func TestCodeOfTheDocs(t *testing.T) {
	t.Parallel()
	for page, c := range docsCode {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.FromSlash(page))
			if err != nil {
				t.Fatal(err)
			}
			blocks := regexp.MustCompile("(?ms)^( *)```go\n(.*?)^ *```").FindAllStringSubmatch(string(text), -1)
			source := codeOf(blocks, c.has)
			if source == "" {
				t.Fatal("there is none")
			}
			file := filepath.Join(t.TempDir(), "page.go")
			if err := os.WriteFile(file, []byte(`package page

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/importer"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

var (
	_ = errors.As
	_ = fmt.Errorf
	_ = log.Println
	_ = slog.Debug
	_ time.Time
	_ orchestrator.Event
	_ importer.Config
	_ ops.ParkedSelector
)
`+c.prelude+source), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("go", "vet", file).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, source)
			}
		})
	}
}

// codeOf puts declarations at the top, and each block of statements into a function.
func codeOf(blocks [][]string, has string) string {
	var source strings.Builder
	for i, b := range blocks {
		if !strings.Contains(b[2], has) {
			continue
		}
		if _, err := parser.ParseFile(token.NewFileSet(), "", "package page\n"+b[2], 0); err == nil {
			fmt.Fprintf(&source, "\n%s", b[2])
			continue
		}
		fmt.Fprintf(&source, "\nfunc block%d(ctx context.Context, db *sql.DB) error {\n%s\nreturn nil\n}\n", i, b[2])
	}
	return source.String()
}
