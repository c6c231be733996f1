package orchestrator_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Programs choose their driver: what they import of this module links none, and
// registers none with database/sql. Nor does it bring what is for tests: the database that
// they start, the simulation, package testing.
func TestNoDriverIsLinked(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".", "./ops", "./importer").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "database/sql") {
		t.Fatalf("go list -deps said %q", out)
	}
	const own = "github.com/getpup/pupsourcing-orchestrator"
	for _, p := range deps {
		if first, _, _ := strings.Cut(p, "/"); strings.Contains(first, ".") && p != own && !strings.HasPrefix(p, own+"/") {
			t.Errorf("%s is linked", p)
		}
		if p == "testing" || slices.Contains([]string{"embedpg", "pgtest", "pqnotify", "orchestratortest", "sim"}, p[strings.LastIndexByte(p, '/')+1:]) {
			t.Errorf("%s is linked", p)
		}
	}
}
