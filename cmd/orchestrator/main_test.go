package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(pgtest.Main(m))
}

// A stage is a database with events and a replica set "set" with two projections.
type stage struct {
	t   *testing.T
	db  *sql.DB
	url string

	mu     sync.Mutex
	calls  map[string][]int64 // projection → positions, as handled
	hold   chan struct{}      // not nil: handlers of "slow" wait for it
	fails  atomic.Bool        // handlers of "slow" fail
	poison atomic.Int64       // position at which the handler of "quick" fails; 0: none
}

func newStage(t *testing.T) *stage {
	db, url := pgtest.Database(t)
	s := &stage{t: t, db: db, url: url, calls: map[string][]int64{}}
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	s.exec(eventtable.Layout)
	return s
}

func (s *stage) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.db.ExecContext(s.t.Context(), query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

// append adds n events.
func (s *stage) append(n int) {
	s.exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'thing', gen_random_uuid()::text, 1, gen_random_uuid(), 'happened', 'x' FROM generate_series(1, $1)`, n)
}

type projection struct {
	name  string
	stage *stage
}

func (p projection) Name() string { return p.name }

func (p projection) Handle(ctx context.Context, e orchestrator.Event) error {
	p.stage.mu.Lock()
	p.stage.calls[p.name] = append(p.stage.calls[p.name], e.GlobalPosition)
	hold := p.stage.hold
	p.stage.mu.Unlock()
	if p.name == "slow" && hold != nil {
		<-hold
	}
	if p.name == "slow" && p.stage.fails.Load() {
		return errors.New("it is broken")
	}
	if p.name == "quick" && e.GlobalPosition == p.stage.poison.Load() {
		return errors.New("it is poison")
	}
	return nil
}

func (s *stage) handled(projection string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls[projection])
}

// worker starts a worker and returns a function that stops it.
func (s *stage) worker() (stop func()) {
	return s.start("set", projection{"quick", s},
		orchestrator.With(projection{"slow", s}, orchestrator.WithFailureRule(orchestrator.FailureRule{Policy: orchestrator.ParkEvents, Attempts: 2})))
}

func (s *stage) start(set orchestrator.ReplicaSetName, projections ...orchestrator.Projection[orchestrator.Event]) (stop func()) {
	events, err := orchestrator.NewEventTable(s.db, "")
	if err != nil {
		s.t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: s.db, EventStore: events, ReplicaSet: set, HeartbeatInterval: 50 * time.Millisecond,
		StaleWorkerTimeout: 30 * time.Second, JoinWindow: 20 * time.Millisecond, PollInterval: 20 * time.Millisecond,
		Retry: orchestrator.Retry{Min: time.Millisecond, Max: time.Millisecond},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := o.Run(ctx, projections); err != nil {
			s.t.Errorf("Run: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	s.t.Cleanup(stop)
	return stop
}

// running waits until a number of workers run.
func (s *stage) running(workers int) {
	s.t.Helper()
	pgtest.Eventually(s.t, "the workers run", func() bool {
		st, err := ops.Status(s.t.Context(), s.db, "set")
		return err == nil && st.Phase == "active" && st.TotalPartitions == workers
	})
}

// run runs the command.
func (s *stage) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	code = run(s.t.Context(), append(args, "-database", s.url), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// ok runs the command and fails the test unless it succeeds.
func (s *stage) ok(args ...string) string {
	s.t.Helper()
	code, out, errs := s.run(args...)
	if code != exitOK {
		s.t.Fatalf("orchestrator %v ends with %d: %s%s", args, code, out, errs)
	}
	return out
}

func (s *stage) status() ops.ReplicaSetStatus {
	s.t.Helper()
	var sets []ops.ReplicaSetStatus
	if err := json.Unmarshal([]byte(s.ok("status", "set", "-json")), &sets); err != nil || len(sets) != 1 {
		s.t.Fatalf("%d sets, %v", len(sets), err)
	}
	return sets[0]
}

func TestOrders(t *testing.T) {
	s := newStage(t)
	if out := s.ok("status"); !strings.HasPrefix(out, "No worker") {
		t.Errorf("status of nothing: %s", out)
	}
	s.worker()
	s.worker()
	s.running(2)
	s.append(50)
	pgtest.Eventually(t, "all is handled", func() bool { return s.handled("quick") == 50 && s.handled("slow") == 50 })

	s.ok("pause", "set", "quick")
	s.append(10)
	pgtest.Eventually(t, "the other goes on", func() bool { return s.handled("slow") == 60 })
	if n := s.handled("quick"); n != 50 {
		t.Errorf("%d events are handled by what is paused, and 50 before", n)
	}
	for level, want := range map[string]int{"-check": exitOK, "-check=warning": exitOK, "-check=critical": exitOK, "-check=info": exitStalled} {
		code, out, _ := s.run("status", level)
		if says := strings.Contains(out, "set: 1 reason of severity info or worse\n   i projection quick is paused"); code != want || says != (want == exitStalled) || strings.Contains(out, "PROJECTION") {
			t.Errorf("a pause by order: status %s ends with %d:\n%s", level, code, out)
		}
	}
	s.ok("resume", "set", "quick")
	pgtest.Eventually(t, "what was paused goes on", func() bool { return s.handled("quick") == 60 })

	pgtest.Eventually(t, "the end of the stream is reported", func() bool { return s.status().Head == 60 })
	generation := s.status().Generation
	if code, _, errs := s.run("rewind", "set", "quick", "45"); code != exitUsage || !strings.Contains(errs, "-yes") || strings.Contains(errs, "ended") {
		t.Errorf("a rewind that was not confirmed ends with %d: %s", code, errs)
	}
	for _, flags := range [][]string{nil, {"-yes"}} {
		code, _, errs := s.run(append([]string{"rewind", "set", "quick", "61"}, flags...)...)
		if code != exitUsage || !strings.Contains(errs, "the stream ended at position 60") || !strings.Contains(errs, "new events up to position 61 would be skipped. To skip them, pass -past-end; nothing was changed") {
			t.Errorf("a rewind past the end, with %s, ends with %d: %s", flags, code, errs)
		}
	}
	if st := s.status(); len(st.Rewinds) != 0 || st.Generation != generation {
		t.Errorf("one of them was an order: %+v", st)
	}
	if code, _, errs := s.run("rewind", "set", "quick", "61", "-yes", "-past-end"); code != exitOK || !strings.Contains(errs, "warning: the stream ended at position 60") {
		t.Errorf("a rewind past the end, with -past-end, ends with %d: %s", code, errs)
	}
	s.ok("rewind", "set", "quick", "45", "-yes")
	pgtest.Eventually(t, "15 events come again", func() bool { return s.handled("quick") == 75 })

	first := s.status().Workers[0].Worker
	s.ok("drain", "set", first)
	if st := s.status(); st.TotalPartitions != 1 || !st.Workers[0].Drained || len(st.Workers[0].Partitions) != 0 || len(st.Workers[1].Partitions) != 1 {
		t.Errorf("after the first worker was drained: %+v", st)
	}
	s.ok("undrain", "set", first)
	if code, _, errs := s.run("drain", "set", first[:3]); code != exitFailed || !strings.Contains(errs, first) {
		t.Errorf("the beginning of several names ends with %d: %s", code, errs)
	}
	out := s.ok("history", "set", "-n", "3")
	for _, reason := range []string{"undrain of " + first, "drain of " + first, "rewind of quick to 45"} {
		if !strings.Contains(out, reason) {
			t.Errorf("the history lacks %q:\n%s", reason, out)
		}
	}
}

// An order prints which worker it waits for, remains in force after the timeout, and reports
// success only when it has taken effect.
func TestOrderThatWaits(t *testing.T) {
	s := newStage(t)
	s.hold = make(chan struct{})
	s.worker()
	s.append(1)
	pgtest.Eventually(t, "a handler runs", func() bool { return s.handled("slow") == 1 })
	name := s.status().Workers[0].Worker
	code, out, errs := s.run("pause", "set", "slow", "-timeout", "2500ms")
	if code != exitFailed || out != "" || !strings.Contains(errs, "worker "+name) || strings.Count(errs, "is still handling event 1") > 1 || !strings.Contains(errs, "generation 2 waits for it") || !strings.Contains(errs, "the order remains in force") {
		t.Errorf("pause while a handler runs ends with %d: %s%s", code, out, errs)
	}
	if out := s.ok("pause", "set", "slow", "-nowait"); !strings.HasPrefix(out, "order given") {
		t.Errorf("-nowait: %s", out)
	}
	if st := s.status(); st.Phase != "draining" {
		t.Errorf("while the handler runs: %+v", st)
	}
	close(s.hold)
	if out := s.ok("pause", "set", "slow"); !strings.HasPrefix(out, "slow is paused (generation ") {
		t.Errorf("when it has returned: %s", out)
	}
	s.append(1)
	pgtest.Eventually(t, "the other goes on", func() bool { return s.handled("quick") == 2 })
	if n := s.handled("slow"); n != 1 {
		t.Errorf("what is paused has handled %d events, and 1 before", n)
	}
}

func TestPark(t *testing.T) {
	s := newStage(t)
	s.fails.Store(true)
	s.worker()
	s.append(3)
	list := func() (events []ops.ParkedEvent) {
		if err := json.Unmarshal([]byte(s.ok("park", "list", "slow", "-json")), &events); err != nil {
			t.Fatal(err)
		}
		return events
	}
	s.running(1)
	pgtest.Eventually(t, "three events are parked", func() bool { return len(list()) == 3 })
	if out := s.ok("park", "list", "slow", "-n", "1"); !strings.Contains(out, "it is broken") || strings.Count(out, "\n") != 2 {
		t.Errorf("park list:\n%s", out)
	}
	if code, out, _ := s.run("status", "-check"); code != exitStalled || !strings.Contains(out, "   ! projection slow: 3 events are parked\n     → orchestrator park list slow\n") {
		t.Errorf("status -check ends with %d:\n%s", code, out)
	}
	if code, out, _ := s.run("status", "-check=critical"); code != exitOK || out != "No reason of severity critical.\n" {
		t.Errorf("status -check=critical ends with %d:\n%s", code, out)
	}
	if code, _, errs := s.run("park", "discard", "slow", "-position", "1"); code != exitUsage || !strings.Contains(errs, "-yes") {
		t.Errorf("a discard that was not confirmed ends with %d: %s", code, errs)
	}
	s.ok("park", "discard", "slow", "-position", "1", "-yes")
	pgtest.Eventually(t, "one is discarded", func() bool { return len(list()) == 2 })
	s.fails.Store(false)
	if out := s.ok("park", "retry", "slow", "-all"); !strings.HasPrefix(out, "retry requested for 2 events") {
		t.Errorf("park retry: %s", out)
	}
	pgtest.Eventually(t, "the others are handled", func() bool { return len(list()) == 0 })
	for _, of := range [][]string{{"park", "list", "slow"}, {"park", "retry", "slow", "-all"}} {
		if out := s.ok(of...); out != "Nothing is parked.\n" {
			t.Errorf("orchestrator %v: %s", of, out)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"park", "drop", "slow"}, exitUsage, `unknown argument "drop" (there are: add, discard, list, retry)`},
		{[]string{"park", "retry", "slow"}, exitUsage, "-aggregate ID and -all"},
		{[]string{"park", "retry", "slow", "-all", "-position", "2"}, exitUsage, "pass one of"},
		{[]string{"park", "discard", "slow"}, exitUsage, "-aggregate ID and -all"}, // before it asks for confirmation
		{[]string{"park", "discard", "slow", "-aggregate", ""}, exitUsage, "the value of -aggregate is empty"},
		{[]string{"park", "retry", "slow", "-position", "-2"}, exitUsage, `"-2" is not the position of an event`},
		{[]string{"park", "retry", "slow", "-position", "x"}, exitUsage, `"x"`},
		{[]string{"park", "retry", "slow", "-position", "2"}, exitFailed, "not parked"},
		{[]string{"park", "list", "nobody"}, exitFailed, `"nobody"`},
	} {
		if code, _, errs := s.run(c.args...); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("orchestrator %v ends with %d: %s", c.args, code, errs)
		}
	}
}

// An event that blocks a projection without the policy ParkEvents is parked by order, with the
// name of the person.
func TestParkAdd(t *testing.T) {
	s := newStage(t)
	s.poison.Store(2)
	s.worker()
	s.append(3)
	s.running(1)
	pgtest.Eventually(t, "it fails", func() bool { return strings.Contains(s.ok("status"), "it is poison") })
	if code, _, errs := s.run("park", "add", "set", "quick", "2"); code != exitUsage || !strings.Contains(errs, "-yes") || !strings.Contains(errs, "event 2") {
		t.Errorf("an order that was not confirmed ends with %d: %s", code, errs)
	}
	if code, _, errs := s.run("park", "add", "set", "quick", "3", "-yes", "-by", "ann"); code != exitFailed || !strings.Contains(errs, "is at position 2") {
		t.Errorf("an event that it has not come to ends with %d: %s", code, errs)
	}
	if out := s.ok("park", "add", "set", "quick", "2", "-yes", "-by", "ann"); !strings.HasPrefix(out, "event 2 is parked") {
		t.Errorf("park add: %s", out)
	}
	out := s.ok("history", "set")
	for _, want := range []string{"ann", "event 2 of quick", "parked", "event 3 of quick", "lapsed: "} {
		if !strings.Contains(out, want) {
			t.Errorf("the history does not tell of %q:\n%s", want, out)
		}
	}
	s.poison.Store(4)
	s.append(1)
	pgtest.Eventually(t, "it fails again", func() bool {
		st := s.status()
		return st.Head >= 4 && slices.ContainsFunc(st.Waits, func(w ops.Wait) bool { return w.Kind == ops.WaitRetry && w.Position == 4 })
	})
	s.ok("pause", "set", "quick")
	if out := s.ok("park", "add", "set", "quick", "4", "-yes", "-nowait"); !strings.HasPrefix(out, "order 3 given") {
		t.Errorf("-nowait: %s", out)
	}
	if out := s.ok("status"); !strings.Contains(out, "order to park event 4 of projection quick is pending, given by "+login()+" at ") {
		t.Errorf("the status of an order that waits:\n%s", out)
	}
	if code, _, errs := s.run("park", "add", "set", "quick", "4", "-yes", "-timeout", "1ms"); code != exitFailed || !strings.Contains(errs, "order 3 remains in force") {
		t.Errorf("an order that waits ends with %d: %s", code, errs)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"park", "add", "set", "quick"}, exitUsage, "park add: missing POSITION; usage: orchestrator park add SET PROJECTION POSITION"},
		{[]string{"park", "list", "set", "quick"}, exitUsage, `park list: unexpected argument "quick"`},
		{[]string{"park", "add", "set", "quick", "0"}, exitUsage, `"0"`},
		{[]string{"park", "add", "set", "quick", "1", "-yes"}, exitFailed, "it is past that"},
		{[]string{"park", "add", "set", "nobody", "9", "-yes"}, exitFailed, `"nobody"`},
	} {
		if code, _, errs := s.run(c.args...); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("orchestrator %v ends with %d: %s", c.args, code, errs)
		}
	}
}

func TestWatch(t *testing.T) {
	s := newStage(t)
	s.worker()
	s.running(1)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan int)
	go func() {
		code := run(ctx, []string{"watch", "set", "-database", s.url, "-interval", "10ms"}, strings.NewReader(""), w, io.Discard)
		w.Close()
		done <- code
	}()
	var seen strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(seen.String(), "slow") || !strings.Contains(seen.String(), "set: generation 1 active") {
		n, err := r.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buffer[:n])
	}
	cancel()
	go io.Copy(io.Discard, r)
	if code := <-done; code != exitOK {
		t.Errorf("watch ends with %d", code)
	}
	if strings.Contains(seen.String(), "\x1b") {
		t.Errorf("in a pipe it moves the cursor: %q", seen.String())
	}
}

// A wrong command line gets an error that says what is wrong.
func TestWrongCalls(t *testing.T) {
	s := newStage(t)
	s.worker()
	s.running(1)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{}, exitUsage, "missing command"},
		{[]string{"xyz"}, exitUsage, "unknown command \"xyz\"\n"},
		{[]string{"statsu"}, exitUsage, `unknown command "statsu": did you mean "status"?`},
		{[]string{"park", "lits", "quick"}, exitUsage, `did you mean "list"?`},
		{[]string{"park"}, exitUsage, "park: missing add, discard, list, retry"},
		{[]string{"pause"}, exitUsage, "pause: missing SET; usage: orchestrator pause SET [PROJECTION]\nHelp: orchestrator pause -h"},
		{[]string{"status", "a", "b"}, exitUsage, `status: unexpected argument "b"`},
		{[]string{"status", "-colour"}, exitUsage, "status: unknown flag -colour (there are: -check, -database, -json, -schema, -v)"},
		{[]string{"status", "-jsno"}, exitUsage, `did you mean "json"?`},
		{[]string{"status", "-check=urgent"}, exitUsage, "write -check=critical, -check=warning or -check=info"},
		{[]string{"status", "-check", "critical"}, exitFailed, "for the level, write -check=critical"},
		{[]string{"status", ""}, exitUsage, "SET is empty"}, // not all sets
		{[]string{"status", "sett"}, exitFailed, `did you mean "set"?`},
		{[]string{"status", "-schema", ""}, exitUsage, "the value of -schema is empty"},
		{[]string{"rewind", "set", "quick", "-5"}, exitUsage, "rewind: -5 is negative; positions are whole numbers, at least 0"},
		{[]string{"rewind", "-yes", "set", "quick", "-5"}, exitUsage, "-5 is negative"},
		{[]string{"wait", "quick", "-5"}, exitUsage, "-5 is negative"},
		{[]string{"wait", "quick", "x"}, exitUsage, `"x"`},
		{[]string{"history", "set", "-n"}, exitUsage, "missing value of -n"},
		{[]string{"history", "set", "-n", "x"}, exitUsage, `-n is "x"; it must be a whole number`},
		{[]string{"pause", "set", "-timeout", "soon"}, exitUsage, `-timeout is "soon"; it must be a duration such as`},
		{[]string{"pause", "set", "-nowait=x"}, exitUsage, `-nowait is "x"; it must be true or false`},
		{[]string{"import", "set", "quick"}, exitUsage, "missing -total"},
		{[]string{"completion", "csh"}, exitUsage, `unknown argument "csh" (there are: bash, fish, zsh)`},
		{[]string{"completion"}, exitUsage, "missing bash, fish, zsh"},
		{[]string{"rewind", "set", "quick", "abc", "-yes"}, exitUsage, `"abc"`},
		{[]string{"watch", "-interval", "0s"}, exitUsage, "-interval"},
		{[]string{"history", "set", "-n", "0"}, exitUsage, "-n"},
		{[]string{"status", "nobody"}, exitFailed, `no replica set "nobody" (there are: set)`},
		{[]string{"history", "nobody"}, exitFailed, `no replica set "nobody" (there are: set)`},
		{[]string{"pause", "nobody"}, exitFailed, `"nobody"`},
		{[]string{"resume", "set", "nobody"}, exitFailed, `projection "nobody"`},
		{[]string{"drain", "set", "nobody"}, exitFailed, `no worker "nobody"`},
		{[]string{"drain", "set", ""}, exitUsage, "empty"},
		{[]string{"pause", "set", ""}, exitUsage, "PROJECTION is empty"}, // not all projections
		{[]string{"pause", "set", "quick", "-timeout", "0s"}, exitUsage, "-nowait"},
		{[]string{"rewind", "nobody", "quick", "3", "-yes"}, exitFailed, `"nobody"`},
		{[]string{"rewind", "set", "nobody", "3"}, exitUsage, "projection nobody has never run"}, // and then asks for confirmation
	} {
		args := c.args
		if len(args) > 0 {
			args = append([]string{args[0], "-database", s.url}, args[1:]...)
		}
		var out, errs bytes.Buffer
		code := run(t.Context(), args, strings.NewReader(""), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.says) {
			t.Errorf("orchestrator %v ends with %d: %s\nwant %d and %q", c.args, code, &errs, c.code, c.says)
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"status", "-database", "postgres://127.0.0.1:1/nothing?sslmode=disable"}, nil, &out, &errs); code != exitFailed || !strings.Contains(errs.String(), "reach the database") {
		t.Errorf("no database: %d, %s", code, &errs)
	}
	errs.Reset()
	if code := run(t.Context(), []string{"status", "-database", "host"}, nil, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "URL") {
		t.Errorf("no URL: %d, %s", code, &errs)
	}
	if st := s.status(); st.Generation != 1 || len(st.Paused) != 0 || st.PausedAll {
		t.Errorf("one of them was an order: %+v", st)
	}
	out.Reset()
	if code := run(t.Context(), []string{"-h"}, nil, &out, &errs); code != exitOK {
		t.Errorf("-h ends with %d", code)
	}
	for name := range commands {
		if !strings.Contains(out.String(), "orchestrator "+name+" ") {
			t.Errorf("the usage lacks %s", name)
		}
	}
	t.Setenv("DATABASE_URL", "postgres://somebody:secret@host/name")
	out.Reset()
	if code := run(t.Context(), []string{"pause", "-h"}, nil, &out, &errs); code != exitOK {
		t.Errorf("pause -h ends with %d", code)
	}
	for _, says := range []string{"Usage: orchestrator pause SET [PROJECTION]\n", "Example: orchestrator pause main", "-database", "-nowait", "-timeout", "1m0s"} {
		if !strings.Contains(out.String(), says) {
			t.Errorf("pause -h lacks %s:\n%s", says, &out)
		}
	}
	var help bytes.Buffer
	if code := run(t.Context(), []string{"help", "pause"}, nil, &help, &errs); code != exitOK || help.String() != out.String() {
		t.Errorf("help pause ends with %d:\n%s", code, &help)
	}
	if strings.Contains(out.String(), "secret") {
		t.Errorf("pause -h tells a password:\n%s", &out)
	}
}

// Without tables, the command says what to do.
func TestNoSchema(t *testing.T) {
	_, url := pgtest.Database(t)
	for _, args := range [][]string{{"status"}, {"history", "set"}, {"park", "list", "p"}, {"pause", "set"}} {
		var out, errs bytes.Buffer
		code := run(t.Context(), append(args, "-database", url), strings.NewReader(""), &out, &errs)
		if code != exitFailed || !strings.Contains(errs.String(), "RunMigrations(db) or apply schema.sql; or run: orchestrator migrate") {
			t.Errorf("orchestrator %v ends with %d: %s", args, code, &errs)
		}
	}
}

// Text from the database and connection strings never reach the terminal unescaped.
func TestTerminalIsSafe(t *testing.T) {
	s := newStage(t)
	s.exec(`INSERT INTO orchestrator_replica_sets (name, generation, total, reason, opened_at, activated_at) VALUES ('set', 3, 1, $1, now(), now())`, evil)
	for _, id := range []string{"w1", "w2"} {
		s.exec(`
INSERT INTO orchestrator_workers (replica_set, id, joined_at, lease_us, lease_until, generation, total, partitions, wants, presence_key, presence_number, holds, projections)
VALUES ('set', $1, now(), 1, now() + interval '1 hour', 3, 1, '[0]', 1, 0, 0, 3, '["p"]')`, id+evil)
	}
	s.exec(`INSERT INTO orchestrator_projections VALUES ($1, 'set'), ('p', 'set')`, evil)
	s.exec(`INSERT INTO orchestrator_checkpoints VALUES ($1, 0, 'set', 3, 1, 70, NULL, now())`, evil)
	s.exec(`INSERT INTO orchestrator_history VALUES ('set', 3, $1, 1, '{}', now(), now())`, evil)
	s.exec(`INSERT INTO orchestrator_parked VALUES ('p', 68, 1, $1, $1, 3, now())`, evil)
	s.exec(`INSERT INTO orchestrator_park_orders (replica_set, generation, projection, position, ordered_by, ordered_at) VALUES ('set', 3, $1, 71, $1, now())`, evil)
	s.exec(`INSERT INTO orchestrator_park_orders (replica_set, generation, projection, position, ordered_by, ordered_at, ended_at, outcome) VALUES ('set', 3, $1, 72, $1, now(), now(), $1)`, evil)
	var sets []ops.ReplicaSetStatus
	if _, out, _ := s.run("status", "-json"); json.Unmarshal([]byte(out), &sets) != nil || len(sets) != 1 || sets[0].Reason != evil {
		t.Errorf("the JSON has lost what the database holds: %s", out)
	}
	for _, args := range [][]string{
		{"status"}, {"status", "-json"}, {"history", "set"}, {"history", "set", "-json"}, {"park", "list", "p"}, {"park", "list", "p", "-json"},
		{"drain", "set", "w"}, {"drain", "set", "no" + evil}, {"pause", evil}, {"rewind", "set", evil, "x" + evil}, {evil}, {"status", evil},
		{"status", "-" + evil}, {"park", evil, "p"}, {"pause", "set", evil, "-nowait"},
		{"promote", evil}, {"promote", "p", "-sql", evil}, {"retire", evil}, {"retire", evil, "-yes"},
		{"status", "-v"}, {"status", "-check=info"}, {"wait", evil, "1", "-timeout", "1ms"}, {"wait", evil}, {"import", "set", evil, "-total", "1", "-watch", "1ms"},
		{"version"}, {"migrate"}, {"completion", evil}, {completeCommand, "pause", "set", ""}, {completeCommand, "drain", "set", ""}, {"status", "-check=" + evil},
	} {
		_, out, errs := s.run(args...)
		for _, r := range out + errs {
			if r != '\n' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				t.Errorf("%q prints %q", args, out+errs)
				break
			}
		}
		if slices.Contains(args, "-json") && !json.Valid([]byte(out)) {
			t.Errorf("%q prints no JSON: %s", args, out)
		}
	}
}

func TestNoSecretIsPrinted(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	for _, dsn := range []string{
		"postgres://user:hunter2@127.0.0.1:x/db", "postgres://user:%zzhunter2@127.0.0.1/db", "postgres://user:hunter2#x@127.0.0.1/db",
		"postgres://user:hunter2@127.0.0.1:1/db", "postgres://127.0.0.1:1/db?password=hunter2", "host=127.0.0.1 password=x hunter2 dbname=y",
		"password = 'a hunter2", "host=127.0.0.1 port=1 password=hunter2 sslmode=disable",
	} {
		for _, args := range [][]string{
			{"status", "-database", dsn}, {"status", "set", dsn}, {dsn}, {"status", "--database=" + dsn, "-check"}, {"history", dsn, "-n", dsn}, {"watch", "-interval", dsn},
		} {
			var out, errs bytes.Buffer
			if code := run(t.Context(), args, strings.NewReader(""), &out, &errs); code == exitOK || strings.Contains(out.String()+errs.String(), "hunter2") {
				t.Errorf("%q ends with %d: %s%s", args, code, out.String(), errs.String())
			}
		}
	}
}

// Each command uses the schema of -schema if the search path does not lead to the tables.
func TestSchemaFlag(t *testing.T) {
	db, url := pgtest.Database(t)
	if err := orchestrator.Migrate(t.Context(), db, orchestrator.InSchema("elsewhere")); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"status", "status set", "history set", "pause set", "pause set p", "resume set", "resume set p", "rewind set p 1 -yes", "drain set w", "undrain set w",
		"promote p", "retire p -yes", "wait p 1 -timeout 1ms", "import set p -total 1 -watch 1ms", "park list p", "park retry p -all", "park discard p -all -yes", "park add set p 1 -yes",
	} {
		var out, errs strings.Builder
		args := append(strings.Fields(line), "-database", url)
		if code := run(t.Context(), args, strings.NewReader(""), &out, &errs); code == exitOK || !strings.Contains(errs.String(), "no table orchestrator_schema") {
			t.Errorf("%s, without -schema: %d, %s", line, code, errs.String())
		}
		errs.Reset()
		if run(t.Context(), append(args, "-schema", "elsewhere"), strings.NewReader(""), &out, &errs); strings.Contains(errs.String(), "orchestrator_schema") {
			t.Errorf("%s, with -schema: %s", line, errs.String())
		}
	}
}
