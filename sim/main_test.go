package sim

import (
	"os"
	"runtime/debug"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // a world allocates much and keeps little
	os.Exit(pgtest.Main(m))
}
