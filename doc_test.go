package orchestrator

import (
	"os"
	"strings"
	"testing"
)

// The program in the package's documentation is the example, which compiles.
func TestDefaultsDocShowsTheExample(t *testing.T) {
	t.Parallel()
	body := func(file, begin, end, indent string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(text), begin)
		program, _, ended := strings.Cut(rest, end)
		if !found || !ended {
			t.Fatalf("%s has no program", file)
		}
		return strings.ReplaceAll(program, "\n"+indent, "\n")
	}
	shown := body("doc.go", "func main() {\n", "//\t}\n", "//\t")
	if example := body("example_test.go", "func Example() {\n", "\n}\n", ""); strings.TrimPrefix(shown, "//\t") != example+"\n" {
		t.Errorf("doc.go:\n%s\nexample_test.go:\n%s", shown, example)
	}
}
