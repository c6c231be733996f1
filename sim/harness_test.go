package sim_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/sim"
)

// The error of an incomplete harness names the missing field, before it looks for a
// database.
func TestHarnessNamesWhatIsMissing(t *testing.T) {
	for field, spoil := range map[string]func(*sim.Harness[Deposit]){
		"Harness.New":         func(h *sim.Harness[Deposit]) { h.New = nil },
		"Harness.Events":      func(h *sim.Harness[Deposit]) { h.Events = nil },
		"Harness.AggregateID": func(h *sim.Harness[Deposit]) { h.AggregateID = nil },
		"Harness.Check":       func(h *sim.Harness[Deposit]) { h.Check, h.Setup = nil, nil },
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

// An error of Setup ends the run and is no failure of the projection.
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

// A failure names the seed, the page and the error of Check. The same seed fails again.
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
	h.Database, h.Folder, h.First, h.Seeds = url, t.TempDir(), 6, 5 // the example plays the seeds before
	if err := h.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// A harness without a Check compares the tables with those of a run without faults.
func TestHarnessComparesTables(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	for name, c := range map[string]struct {
		projection func(db *sql.DB) orchestrator.Projection[Deposit]
		setup      string
		fails      string // a part of the report; "": the run passes
	}{
		"counts twice": {func(db *sql.DB) orchestrator.Projection[Deposit] { return Balances{db} }, "", "table balances differs from a run without faults: it has (\"account "},
		"survives":     {func(db *sql.DB) orchestrator.Projection[Deposit] { return SafeBalances{Balances{db}} }, "", ""},
		"what varies is left out": {func(db *sql.DB) orchestrator.Projection[Deposit] { return SafeBalances{Balances{db}} },
			`, id serial, number int GENERATED ALWAYS AS IDENTITY, made timestamptz DEFAULT clock_timestamp(), at timestamptz DEFAULT CURRENT_TIMESTAMP, key uuid DEFAULT gen_random_uuid(), twice int GENERATED ALWAYS AS (2 * amount) STORED`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := harness(c.projection)
			h.Database, h.Folder, h.Seeds, h.Check = url, t.TempDir(), 10, nil
			h.Setup = func(ctx context.Context, db *sql.DB) error {
				_, err := db.ExecContext(ctx, `CREATE TABLE balances (account text PRIMARY KEY, amount integer NOT NULL`+c.setup+`)`)
				return err
			}
			err := h.Run(t.Context())
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("Run returned %v; want %q", err, c.fails)
			}
		})
	}
}

// A projection that fails without faults is not a Failure.
func TestHarnessProjectionFailsByItself(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	no := errors.New("no")
	h := harness(func(*sql.DB) orchestrator.Projection[Deposit] {
		return orchestrator.Plain("p", func(_ context.Context, d Deposit) error {
			if d.Amount == 3 {
				return no
			}
			return nil
		})
	})
	h.Database, h.Check = url, nil
	var failure *sim.Failure
	if err := h.Run(t.Context()); !errors.Is(err, no) || errors.As(err, &failure) || !strings.Contains(err.Error(), "Events[2]") {
		t.Errorf("Run returned %v", err)
	}
}

// An orchestrator.Event needs no AggregateID.
func TestHarnessTakesEvents(t *testing.T) {
	t.Parallel()
	_, url := pgtest.Database(t)
	h := sim.Harness[orchestrator.Event]{
		Setup: harness(nil).Setup,
		New: func(*sql.DB) orchestrator.Projection[orchestrator.Event] {
			return orchestrator.Transactional("p", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
				_, err := tx.ExecContext(ctx, addSQL, e.AggregateID, 1)
				return err
			})
		},
		Database: url, Folder: t.TempDir(), Seeds: 3,
	}
	for i := range 30 {
		h.Events = append(h.Events, orchestrator.Event{AggregateID: fmt.Sprint(i % 4)})
	}
	if err := h.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// An ending is the outcome of a test.
type ending struct {
	testing.TB
	text string
}

func (e *ending) Helper()           {}
func (e *ending) Fatal(args ...any) { e.text = fmt.Sprint(args...) }

const childEnv = "SIM_TEST_CHILD"

// Test fails the test with a report that begins with a command. The command fails in the
// same way.
func TestHarnessInATest(t *testing.T) {
	t.Run("it's (a) case", func(t *testing.T) {
		h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return Balances{db} })
		h.Seeds, h.Check = 10, nil
		e := &ending{TB: t}
		h.Test(e)
		command, rest, _ := strings.Cut(strings.TrimPrefix(e.text, "\nreproduce: "), "\n")
		if os.Getenv(childEnv) != "" {
			if e.text != "" {
				t.Fatal(e.text)
			}
			return
		}
		want := regexp.MustCompile(`^SIM_SEED=[0-9]+ go test -count=1 -run '\^TestHarnessInATest\$/\^it'\\''s_\\\(a\\\)_case\$' github.com/getpup/pupsourcing-orchestrator/sim$`)
		if !want.MatchString(command) {
			t.Fatalf("the command is %q, want %s; the report:\n%s", command, want, e.text)
		}
		folder := regexp.MustCompile(`full trace: (\S+)/`).FindStringSubmatch(rest)
		if len(folder) != 2 || !strings.HasPrefix(folder[1], os.TempDir()) {
			t.Fatalf("the trace is not among temporary files: %s", rest)
		}
		t.Cleanup(func() { os.RemoveAll(folder[1]) })
		shell, err := exec.LookPath("sh")
		if err != nil {
			t.Skip("the command is for a shell")
		}
		child := exec.Command(shell, "-c", command)
		child.Env = append(os.Environ(), childEnv+"=1", "TMPDIR="+t.TempDir())
		out, err := child.CombinedOutput()
		if summary := strings.TrimSpace(strings.Split(rest, "full trace")[0]); err == nil || !strings.Contains(unindent(string(out)), unindent(summary)) {
			t.Errorf("%s: %v\n%s\nwant the same:\n%s", command, err, out, summary)
		}
	})
	if os.Getenv(childEnv) == "" {
		t.Run("one that survives", func(t *testing.T) {
			t.Parallel()
			h := harness(func(db *sql.DB) orchestrator.Projection[Deposit] { return SafeBalances{Balances{db}} })
			h.Check, h.Seeds = nil, 2
			h.Test(t)
		})
	}
}

// unindent returns text without the blanks that go test puts before lines.
func unindent(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n")
}
