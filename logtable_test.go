package orchestrator_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

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
