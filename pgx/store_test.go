package orchestratorpgx_test

import (
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

// The store can't tell a pool of pgx's from any other database.
func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Postgres(t, opener(t)))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	storetest.Errors(t, opener(t))
}

func TestHandlers(t *testing.T) {
	t.Parallel()
	storetest.Handlers(t, opener(t))
}
