package ops_test

import (
	"os"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

func TestMain(m *testing.M) { os.Exit(testworld.Main(m)) }

// A world is a testworld.World, and what only the tests of this package ask of it.
type world struct{ *testworld.World }

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{testworld.New(t)}
}
