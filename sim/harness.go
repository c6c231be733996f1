package sim

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// Harness tests a projection under joins, crashes, frozen processes, lost connections and
// hand-overs, and then compares its read model with what it should be. In a test:
//
//	sim.Harness[Deposit]{Setup: createTables, New: newBalances, Events: deposits, AggregateID: account}.Test(t)
//
// Everything that happens follows from a seed, so a failure can be reproduced.
//
// Handlers are called one at a time, under the production rules for who calls what and
// when: Handle and HandlePlainBatch for plain projections, HandleTx and HandleBatch in real
// PostgreSQL transactions that are really rolled back. The workers around them, their
// network and their own tables are simulated. A crash happens between two calls, or between
// a call and its commit; then the next owner calls the handler again. A read model that
// does not survive that comes out different.
//
// A seed takes about 0.1s with 60 events and a handler of one statement. A seed that fails
// takes a few seconds more, in which the harness looks for a smaller world that fails.
type Harness[E any] struct {
	// Setup creates the tables of the read model, in an empty schema that is the search
	// path of db. It is called once for each seed. Default: nothing is created.
	Setup func(ctx context.Context, db *sql.DB) error
	// New returns the projection for one worker process. State that it keeps in memory ends
	// with that process. Required.
	New func(db *sql.DB) orchestrator.Projection[E]
	// Events are the stream, in order. The harness does not apply the scope of a
	// projection: leave out events beyond it. Required.
	Events []E
	// AggregateID returns the aggregate of an event, which decides its partition. Required,
	// except for orchestrator.Event, whose AggregateID is used.
	AggregateID func(E) string
	// Check compares the read model in db with the one that Events should produce, and
	// returns how they differ. Default: the tables that Setup creates must have the same
	// rows as after a run that calls the projection once with each event, in order. Columns
	// whose default is the result of a function (a sequence's number, now(),
	// gen_random_uuid()) are not compared. Set Check if other values depend on time or on
	// the order of events of different aggregates.
	Check func(ctx context.Context, db *sql.DB, events []E) error

	// Seeds is the number of worlds to play. Default: 20.
	Seeds int
	// First is the first seed. Default: 1. The environment variable SIM_SEED overrides it;
	// then only that seed is played.
	First uint64
	// Database is the URL of a PostgreSQL database. Each seed gets a schema of its own
	// there, which is dropped afterwards. Default: the environment variable DATABASE_URL,
	// or else a server that the harness starts, from binaries on this machine or from a
	// download.
	Database string
	// Folder is where the trace and the timeline of a failure are written. Default:
	// failures for Run; for Test, a new folder in the system's folder for temporary files,
	// which the report names.
	Folder string
}

// Failure is the error of a Harness whose read model came out different, or whose
// projection did not handle every event.
type Failure struct {
	// Seed is the seed that failed.
	Seed uint64
	// Report describes the failure in a few lines.
	Report string
	// Timeline is the path of a page that shows the run.
	Timeline string
	// Err is the error of Check, if Check returned one.
	Err error
}

func (e *Failure) Error() string { return "\n" + e.Report }

func (e *Failure) Unwrap() error { return e.Err }

// sameReadModel is the promise of a user's projection.
const sameReadModel promise = "read-model"

// Test plays the seeds and fails the test with the report of the first failure. The report
// begins with the command that plays that seed again. Tests may run in parallel: they share
// the server.
func (h Harness[E]) Test(t testing.TB) {
	t.Helper()
	if h.Database == "" && h.check() == nil {
		_, h.Database = pgtest.Database(t)
	}
	if h.Folder == "" {
		h.Folder = filepath.Join(os.TempDir(), fmt.Sprintf("sim-%s-%d", fileName(t.Name()), os.Getpid()))
	}
	info, _ := debug.ReadBuildInfo()
	if err := h.run(t.Context(), func(seed uint64) string { return testCommand(seed, t.Name(), info) }); err != nil {
		t.Fatal(err)
	}
}

// testCommand returns the command that plays a seed again in the named test.
func testCommand(seed uint64, test string, info *debug.BuildInfo) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	where := "."
	if info != nil && strings.HasSuffix(info.Path, ".test") && info.Path != "command-line-arguments.test" {
		where = strings.TrimSuffix(info.Path, ".test")
	}
	return fmt.Sprintf("SIM_SEED=%d go test -count=1 -run '%s' %s", seed, strings.ReplaceAll(strings.Join(parts, "/"), "'", `'\''`), where)
}

// fileName turns the name of a test into a part of a file name.
func fileName(test string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r < 128 && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return r
		}
		return '_'
	}, test)
}

// Run plays the seeds and returns a *Failure for the first failure. Any other error is
// about the harness or the database. It is Test for programs without a testing.TB.
func (h Harness[E]) Run(ctx context.Context) error {
	return h.run(ctx, func(seed uint64) string { return fmt.Sprintf("SIM_SEED=%d go test -run <this test>", seed) })
}

func (h Harness[E]) run(ctx context.Context, command func(seed uint64) string) error {
	if err := h.check(); err != nil {
		return err
	}
	if h.AggregateID == nil {
		h.AggregateID = eventsOwn[E]
	}
	first, seeds := cmp.Or(h.First, 1), cmp.Or(h.Seeds, 20)
	if text := os.Getenv("SIM_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return fmt.Errorf("the environment variable SIM_SEED is %q: it must be a number", text)
		}
		first, seeds = n, 1
	}
	url := h.Database
	if url == "" {
		server, err := embedpg.Start(ctx, embedpg.Options{})
		if err != nil {
			return err
		}
		defer server.Stop()
		var drop func(context.Context) error
		if url, drop, err = server.CreateDatabase(ctx, "sim_"+strings.ToLower(rand.Text())); err != nil {
			return err
		}
		defer drop(context.WithoutCancel(ctx))
	}
	if h.Check == nil {
		want, err := h.undisturbed(ctx, url)
		if err != nil {
			return err
		}
		h.Check = func(ctx context.Context, db *sql.DB, _ []E) error {
			got, err := contentsOf(ctx, db)
			if err != nil {
				return err
			}
			return want.differs(got)
		}
	}
	for i := range uint64(seeds) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.play(ctx, first+i, url, command); err != nil {
			return err
		}
	}
	return nil
}

func (h Harness[E]) check() error {
	_, standard := any((*E)(nil)).(*orchestrator.Event)
	for _, f := range []struct {
		field string
		ok    bool
	}{
		{"New", h.New != nil}, {"Events", len(h.Events) > 0},
		{"AggregateID", h.AggregateID != nil || standard},
		{"Check (or Setup)", h.Check != nil || h.Setup != nil},
	} {
		if !f.ok {
			return fmt.Errorf("sim: Harness.%s is required", f.field)
		}
	}
	if h.Seeds < 0 {
		return fmt.Errorf("sim: Harness.Seeds is %d; it can't be negative", h.Seeds)
	}
	return nil
}

// eventsOwn returns the AggregateID of an orchestrator.Event.
func eventsOwn[E any](e E) string { return any(e).(orchestrator.Event).AggregateID }

// play plays one seed.
func (h Harness[E]) play(ctx context.Context, seed uint64, url string, command func(seed uint64) string) error {
	p := h.plan(seed)
	var differs error
	open := func(w *world) (database, error) {
		db, err := newSubjectDatabase(ctx, url, w)
		if err != nil {
			return nil, err
		}
		if err := h.setup(ctx, db.real.pool); err != nil {
			return nil, errors.Join(err, db.close())
		}
		w.subject = &subject[E]{Harness: h, ctx: ctx, db: db.real.pool, projections: map[*worker]orchestrator.Projection[E]{}}
		w.judge = func() *violation {
			differs = h.Check(ctx, db.real.pool, h.Events)
			if differs == nil {
				return nil
			}
			return &violation{promise: sameReadModel, what: differs.Error(), facts: again(w.history)}
		}
		return db, nil
	}
	o, err := play(p, rules{}, open, false)
	if err != nil || o.violation == nil {
		return err
	}
	folder := cmp.Or(h.Folder, "failures")
	text, err := explain(o, rules{}, open, 15, command(seed), folder)
	if err != nil {
		return err
	}
	return &Failure{Seed: seed, Report: text, Timeline: filepath.Join(folder, fmt.Sprintf("%d.html", seed)), Err: differs}
}

// setup creates the tables of the read model.
func (h Harness[E]) setup(ctx context.Context, db *sql.DB) error {
	if h.Setup == nil {
		return nil
	}
	if err := h.Setup(ctx, db); err != nil {
		return fmt.Errorf("sim: Harness.Setup: %w", err)
	}
	_, err := db.ExecContext(ctx, noVacuum)
	return err
}

// plan draws a plan for the user's projection and events.
func (h Harness[E]) plan(seed uint64) plan {
	p := planOf(seed, options{postgres: true})
	name, kind := h.New(nil).Name(), kindOf(h.New(nil))
	p.sets, p.programs = 1, []program{{timing: p.timing, projections: []projection{{name: name, kind: kind}}}}
	p.appends.aggregates = 0
	p.appends.every = p.length / time.Duration(len(h.Events)/3+1)
	p.handlers.typical = max(p.handlers.typical, p.appends.every/20) // so that faults often strike within a batch
	p.rebuild, p.stopOnFailure, p.orders = nil, false, nil           // after a rewind it would handle events again
	p.orderParks = 0                                                 // the read model would lack parked events
	for i := range p.faults {
		if p.faults[i].kind == deploy {
			p.programs = append(p.programs, p.programs[0])
		}
	}
	return p
}

func kindOf[E any](p orchestrator.Projection[E]) protocol.LaneKind {
	switch p.(type) {
	case orchestrator.BatchProjection[E]:
		return protocol.Batched
	case orchestrator.TransactionalProjection[E]:
		return protocol.Transactional
	case orchestrator.PlainBatchProjection[E]:
		return protocol.PlainBatched
	}
	return protocol.Plain
}

// again returns a few facts that may explain a wrong read model: an event that was handled
// twice, or else the end of the history.
func again(h history) []fact {
	first := map[int64]fact{}
	for _, f := range h.facts {
		if f.kind != handlerBegins {
			continue
		}
		for _, e := range f.events {
			if before, ok := first[e.position]; ok {
				return factsBetween(h, before, f)
			}
			first[e.position] = f
		}
	}
	return h.facts[len(h.facts)-1:]
}

// factsBetween returns two facts and the relevant ones between them.
func factsBetween(h history, from, to fact) []fact {
	out := []fact{from}
	for _, f := range h.facts[from.step+1 : to.step] {
		switch f.kind {
		case handlerEnds:
			if f.call == from.call {
				out = append(out, f)
			}
		case faultCrash, faultFreeze, faultThaw, faultCutOff, faultDatabaseDown, faultLost, runCancels, workerGone:
			if f.worker == from.worker || f.worker == "" {
				out = append(out, f)
			}
		case groupActivated:
			out = append(out, f)
		}
	}
	if len(out) > 7 {
		out = append(out[:3:3], out[len(out)-4:]...)
	}
	return append(out, to)
}
