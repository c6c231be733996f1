package sim_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/sim"
)

// A harness that can't work says which field it lacks, before it looks for a
// database.
func TestHarnessNamesWhatIsMissing(t *testing.T) {
	for field, spoil := range map[string]func(*sim.Harness[Deposit]){
		"Harness.New":         func(h *sim.Harness[Deposit]) { h.New = nil },
		"Harness.Events":      func(h *sim.Harness[Deposit]) { h.Events = nil },
		"Harness.AggregateID": func(h *sim.Harness[Deposit]) { h.AggregateID = nil },
		"Harness.Check":       func(h *sim.Harness[Deposit]) { h.Check = nil },
		"Harness.Seeds":       func(h *sim.Harness[Deposit]) { h.Seeds = -1 },
		"SIM_SEED":            func(*sim.Harness[Deposit]) { t.Setenv("SIM_SEED", "seven") },
	} {
		h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return Balances{db} })
		spoil(&h)
		if err := h.Run(t.Context()); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("without %s: %v", field, err)
		}
		t.Setenv("SIM_SEED", "")
	}
}

// What Setup returns ends the run, and is no failure of the projection.
func TestHarnessSetupFails(t *testing.T) {
	_, url := pgtest.Database(t)
	no := errors.New("no")
	h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return Balances{db} })
	h.Database = url
	h.Setup = func(context.Context, *sql.DB) error { return no }
	var failure *sim.Failure
	if err := h.Run(t.Context()); !errors.Is(err, no) || errors.As(err, &failure) {
		t.Errorf("Run returned %v", err)
	}
}

// A failure names the seed, the page and what Check said; the same seed fails
// again.
func TestHarnessFailureCanBeHadAgain(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return Balances{db} })
	h.Database, h.Folder, h.First = url, t.TempDir(), 8
	var first, second *sim.Failure
	if err := h.Run(t.Context()); !errors.As(err, &first) {
		t.Fatalf("Run returned %v", err)
	}
	h.First, h.Seeds = first.Seed, 1
	if err := h.Run(t.Context()); !errors.As(err, &second) {
		t.Fatalf("seed %d alone: %v", first.Seed, err)
	}
	if first.Report != second.Report {
		t.Errorf("the reports differ: %s\n%s", first.Report, second.Report)
	}
	for _, want := range []string{"SIM_SEED=", "read-model", "replay: identical", "the balances don't add up"} {
		if !strings.Contains(first.Report, want) {
			t.Errorf("%q is not in the report:%s", want, first.Error())
		}
	}
}

// A projection that writes in the transaction of its checkpoint survives.
func TestHarnessPasses(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return SafeBalances{Balances{db}} })
	h.Database, h.Folder, h.First, h.Seeds = url, t.TempDir(), 6, 5 // the example plays those before
	if err := h.Run(t.Context()); err != nil {
		t.Error(err)
	}
}
