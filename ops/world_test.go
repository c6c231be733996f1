package ops_test

import (
	"os"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

func TestMain(m *testing.M) { os.Exit(testworld.Main(m)) }

// A world is a testworld.World with helpers of this package's tests.
type world struct{ *testworld.World }

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{testworld.New(t)}
}
