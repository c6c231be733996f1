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

// A Harness takes a projection of yours through joins, crashes, frozen
// processes, lost connections and hand-overs, and then compares its read model with
// what it should be. In a test:
//
//	sim.Harness[Deposit]{Setup: createTables, New: newBalances, Events: deposits, AggregateID: account}.Test(t)
//
// Everything that happens follows from a seed, so a failure can be had again.
//
// Handlers are called one at a time, with the production rules for who calls
// what and when: Handle and HandlePlainBatch for plain projections, HandleTx and HandleBatch in real
// transactions of PostgreSQL, which are really rolled back. The workers around them,
// their network and their own tables are simulated. A crash falls between two calls,
// or between a call and its commit: then the next owner calls the handler
// again. What does not survive that comes out different.
//
// A seed takes about 0.1s where there are 60 events and a handler is one statement; one
// that fails takes a few seconds more, to find a smaller one that fails.
type Harness[E any] struct {
	// Setup makes the tables of the read model, in an empty schema that db is
	// set to. It is called once for each seed. Default: nothing is done.
	Setup func(ctx context.Context, db *sql.DB) error
	// New returns the projection, for one worker process. What it keeps in
	// memory dies with that. Required.
	New func(db *sql.DB) orchestrator.Projection[E]
	// Events are the stream, in order. The scope of a projection is not applied: leave
	// out what it would not be given. Required.
	Events []E
	// AggregateID returns what decides an event's partition. Required, but for
	// orchestrator.Event: its own AggregateID.
	AggregateID func(E) string
	// Check compares the read model in db with the one that Events should make
	// and returns how they differ. Default: the tables that Setup makes must have the
	// rows that they have when the projection is called with each event once, in
	// order, by nobody else. Left out of that are columns whose default is a
	// function's result (a sequence's number, now(), gen_random_uuid()). What else
	// depends on the order of different aggregates' events, or on time, wants a Check.
	Check func(ctx context.Context, db *sql.DB, events []E) error

	// Seeds is how many worlds to play. Default: 20.
	Seeds int
	// First is the first seed. Default: 1, or what the environment variable
	// SIM_SEED says; then only that one is played.
	First uint64
	// Database is the URL of a PostgreSQL database; each seed gets a schema of
	// its own there, which is dropped again. Default: what the environment
	// variable DATABASE_URL says, or else a server that is started for the
	// purpose, from binaries on this machine or from a download.
	Database string
	// Folder is where the trace and the timeline of a failure go. Default:
	// failures, and of Test a new folder among the system's temporary files, which
	// the report names.
	Folder string
}

// A Failure is the error of a Harness whose read model came out different, or
// whose projection could not be brought to handle every event.
type Failure struct {
	Seed uint64
	// Report says what happened, in a few lines.
	Report string
	// Timeline is a page that shows it.
	Timeline string
	// Err is what Check returned, if it was Check.
	Err error
}

func (e *Failure) Error() string { return "\n" + e.Report }

func (e *Failure) Unwrap() error { return e.Err }

// sameReadModel is what a projection of the user's promises.
const sameReadModel promise = "read-model"

// Test plays the seeds, and fails the test with the report of the first that comes out
// different. The report begins with the command that plays that seed again. Tests may run
// in parallel: they share the server.
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

// testCommand is what plays a seed again, in a test of a name.
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

// fileName makes a part of a file's name of the name of a test.
func fileName(test string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r < 128 && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return r
		}
		return '_'
	}, test)
}

// Run plays the seeds, and returns a *Failure for the first that comes out
// different. Any other error is about the harness or the database. It is Test for
// programs that have no testing.TB.
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
		defer server.Stop() // nothing of it is kept
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

// eventsOwn is the AggregateID of an orchestrator.Event.
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

// setup makes the tables of the read model.
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
	p.handlers.typical = max(p.handlers.typical, p.appends.every/20) // what strikes, often strikes amid a batch
	p.rebuild, p.stopOnFailure, p.orders = nil, false, nil           // a rewind would have it handle events again
	p.orderParks = 0                                                 // and what is parked it would lack
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

// again finds a few facts that a read model may not have survived: an event
// that was handled twice, or else handlers that ended in failure.
func again(h history) []fact {
	first := map[int64]fact{}
	for _, f := range h.facts {
		if f.kind != handlerBegins {
			continue
		}
		for _, e := range f.events {
			if before, ok := first[e.position]; ok {
				return between_(h, before, f)
			}
			first[e.position] = f
		}
	}
	return h.facts[len(h.facts)-1:]
}

// between_ returns two facts and what went wrong between them.
func between_(h history, from, to fact) []fact {
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
