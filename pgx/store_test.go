package orchestratorpgx_test

import (
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

// To the store, a pool of pgx is like any other database.
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
