package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// Errors that do what an error should not.
type (
	nilReceiver   struct{ err error }
	panicsIn      struct{ method string }
	unwrapsItself struct{ text string }
	growsATree    struct{}
	uncomparable  struct{ values []int }
	exitsIn       struct{ method string }
	nested        struct{}
	changes       struct { // after so many calls of its methods
		calls *atomic.Int64
		after int64
		to    func()
	}
	isAll struct{}
	tree  []tree
)

func (e changes) ask() {
	if e.calls.Add(1) > e.after {
		e.to()
	}
}
func (e changes) Error() string    { e.ask(); return "changes" }
func (e changes) Unwrap() error    { e.ask(); return nil }
func (e changes) Is(error) bool    { e.ask(); return false }
func (e changes) As(any) bool      { e.ask(); return false }
func (e changes) SQLState() string { e.ask(); return "" }

func (isAll) Error() string { return "is all" }
func (isAll) Is(error) bool { return true }

// trees returns a value that holds 90 others, each of which does the same, and so on.
func trees() tree {
	t := tree{}
	for range 8 {
		t = tree(slices.Repeat([]tree{t}, 90))
	}
	return t
}

func (e *nilReceiver) Error() string { return e.err.Error() }
func (e *nilReceiver) Unwrap() error { return e.err }

func (e panicsIn) in(method string) {
	if e.method == method {
		panic(e)
	}
}
func (e panicsIn) Error() string    { e.in("Error"); return "panics in " + e.method }
func (e panicsIn) Unwrap() error    { e.in("Unwrap"); return nil }
func (e panicsIn) Is(error) bool    { e.in("Is"); return false }
func (e panicsIn) As(any) bool      { e.in("As"); return false }
func (e panicsIn) SQLState() string { e.in("SQLState"); return "" }

func (e *unwrapsItself) Error() string { return e.text }
func (e *unwrapsItself) Unwrap() error { return e }

func (e growsATree) Error() string   { return "a tree" }
func (e growsATree) Unwrap() []error { return []error{e, e} }

func (e uncomparable) Error() string        { return "not comparable" }
func (e uncomparable) Is(target error) bool { return target == error(e) }

func (e exitsIn) Error() string {
	if e.method == "Error" {
		runtime.Goexit()
	}
	return "exits in " + e.method
}
func (e exitsIn) Unwrap() error {
	if e.method == "Unwrap" {
		runtime.Goexit()
	}
	return nil
}

func (nested) Error() string { panic(panicsIn{"Error"}) }

// hostile are the ways in which a handler can fail, by names.
func hostile() map[string]func() error {
	fails := func(err error) func() error { return func() error { return err } }
	panics := func(v any) func() error { return func() error { panic(v) } }
	cyclic := map[string]any{}
	cyclic["itself"] = cyclic
	ways := map[string]func() error{
		"typed nil of the driver":   fails((*pq.Error)(nil)),
		"typed nil":                 fails((*nilReceiver)(nil)),
		"wraps a typed nil":         fails(fmt.Errorf("wraps: %w", (*nilReceiver)(nil))),
		"unwraps to itself":         fails(&unwrapsItself{"itself"}),
		"grows a tree":              fails(growsATree{}),
		"not comparable":            fails(uncomparable{[]int{1}}),
		"10 MB":                     fails(errors.New(strings.Repeat("long \x00\xff ", 10<<20/8))),
		"panics while it panics":    fails(nested{}),
		"panic of a typed nil":      panics((*pq.Error)(nil)),
		"panic of what panics":      panics(panicsIn{"Error"}),
		"panic of a cyclic map":     panics(cyclic),
		"panic of nil":              panics(nil),
		"panic of many values":      panics(trees()),
		"is every error":            fails(isAll{}),
		"a hundred thousand":        fails(errors.Join(slices.Repeat([]error{errors.New("x")}, 100_000)...)),
		"ends its goroutine":        func() error { runtime.Goexit(); return nil },
		"ends a goroutine in Error": fails(exitsIn{"Error"}),
		"ends one in Unwrap":        fails(exitsIn{"Unwrap"}),
	}
	for _, method := range []string{"Error", "Unwrap", "Is", "As", "SQLState"} {
		ways["panics in "+method] = fails(panicsIn{method})
	}
	for _, after := range []int64{10, 20, 30, 40} {
		ways[fmt.Sprint("panics after ", after)] = func() error { return changes{&atomic.Int64{}, after, func() { panic("changed") }} }
		ways[fmt.Sprint("exits after ", after)] = func() error { return changes{&atomic.Int64{}, after, runtime.Goexit} }
	}
	return ways
}

// kindOf returns a projection of a kind.
func (w *world) kindOf(kind string, e testworld.Effects) orchestrator.Projection[orchestrator.Event] {
	switch kind {
	case "plain":
		return e.Plain(w.DB)
	case "transactional":
		return e.Transactional()
	case "plain batch":
		return e.PlainBatched(w.DB)
	}
	return e.Batched()
}

// However a handler fails, its projection fails by its policy: the process lives, and
// another projection handles everything.
func TestHostileErrors(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"plain", "transactional", "batched", "plain batch"} {
		for _, policy := range []orchestrator.FailurePolicy{orchestrator.RetryForever, orchestrator.ParkEvents} {
			t.Run(fmt.Sprintf("%s, policy %d", kind, policy), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.Append(60)
				bad := w.Number(`SELECT min(global_position) + 42 FROM events`)
				cfg := w.Config(w.DB, "set")
				cfg.Logger = nil // 10 MB
				cfg.Failures = map[string]orchestrator.FailureRule{}
				var mended atomic.Bool
				projections := []orchestrator.Projection[orchestrator.Event]{testworld.Effects{Projection: "other"}.Transactional()}
				calls := map[string]*atomic.Int64{}
				for name, fail := range hostile() {
					n := &atomic.Int64{}
					calls[name] = n
					cfg.Failures[name] = orchestrator.FailureRule{Policy: policy, Attempts: 2}
					projections = append(projections, w.kindOf(kind, testworld.Effects{Projection: name, Hook: func(_ context.Context, e orchestrator.Event) error {
						if e.GlobalPosition != bad || mended.Load() {
							return nil
						}
						n.Add(1)
						return fail()
					}}))
				}
				r := testworld.Run(t, cfg, projections...)
				w.CaughtUp("other")
				for name, n := range calls {
					switch policy {
					case orchestrator.ParkEvents:
						pgtest.Eventually(t, name+": parked", func() bool {
							parked, err := ops.Parked(t.Context(), w.DB, name, 10)
							if err == nil && len(parked) > 0 && (parked[0].Position != bad || parked[0].Error == "" || len(parked[0].Error) > 5000) {
								t.Errorf("%s has parked %d, for %d bytes", name, parked[0].Position, len(parked[0].Error))
							}
							return err == nil && len(parked) > 0
						})
					default:
						pgtest.Eventually(t, name+": called again", func() bool { return n.Load() >= 2 })
					}
				}
				if policy == orchestrator.RetryForever {
					mended.Store(true)
					for name := range calls {
						w.CaughtUp(name)
					}
				}
				r.Stop()
			})
		}
	}
}

// Under StopOnFailure Run returns an error of which nobody has to be afraid.
func TestHostileErrorsStop(t *testing.T) {
	t.Parallel()
	kinds := []string{"plain", "transactional", "batched", "plain batch"}
	i := 0
	for name, fail := range hostile() {
		kind := kinds[i%len(kinds)]
		i++
		t.Run(name+", "+kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(10)
			cfg := w.Config(w.DB, "set")
			cfg.Logger, cfg.OnFailure = nil, orchestrator.StopOnFailure
			err := testworld.Run(t, cfg, w.kindOf(kind, testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error { return fail() }})).Failed()
			var failure *orchestrator.HandlerError
			if !errors.As(err, &failure) || failure.Position != w.Number(`SELECT min(global_position) FROM events`) {
				t.Fatalf("Run returned %T", err)
			}
			if text := fmt.Sprint(err); len(text) > 20_000 || !strings.HasPrefix(text, `projection "p" failed at position`) {
				t.Errorf("%d bytes of text: %.200s", len(text), text)
			}
			if strings.HasPrefix(name, "typed nil") && !strings.Contains(fmt.Sprint(err), "the handler returned a nil pointer as an error") {
				t.Errorf("Run returned %v", err)
			}
			if errors.Is(err, context.Canceled) && name != "is every error" {
				t.Error("it is context.Canceled")
			}
		})
	}
}

// What a handler returns is there for errors.Is and errors.As.
func TestHandlerErrorUnwraps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(1)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.StopOnFailure
	cause := &pq.Error{Code: "23505", Message: "twice"}
	err := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(context.Context, orchestrator.Event) error { return fmt.Errorf("write: %w", cause) }}.Transactional()).Failed()
	var got *pq.Error
	if !errors.As(err, &got) || got != cause || !strings.HasSuffix(err.Error(), "write: pq: twice (23505)") {
		t.Errorf("Run returned %v, as a *pq.Error %v", err, got)
	}
}

// What the program hands over beside handlers can't end the process either.
type hostileStore struct {
	orchestrator.EventStore[orchestrator.Event]
	do func()
}

func (s *hostileStore) Read(ctx context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	s.do()
	return s.EventStore.Read(ctx, r)
}
func (s *hostileStore) Head(context.Context) (int64, error) { s.do(); return 0, errors.New("none") }
func (s *hostileStore) Waiting() (orchestrator.Gap, bool)   { s.do(); return orchestrator.Gap{}, false }

type hostileNotifier struct{ do func() }

func (n *hostileNotifier) Listen(ctx context.Context, _ []string, up func(), _ func(string, string)) error {
	up()
	n.do()
	<-ctx.Done()
	return ctx.Err()
}

type hostileLog struct {
	do func()
	to slog.Handler
}

func (l hostileLog) Enabled(context.Context, slog.Level) bool { l.do(); return true }
func (l hostileLog) Handle(ctx context.Context, r slog.Record) error {
	l.do()
	return l.to.Handle(ctx, r)
}
func (l hostileLog) WithAttrs(a []slog.Attr) slog.Handler {
	l.do()
	return hostileLog{l.do, l.to.WithAttrs(a)}
}
func (l hostileLog) WithGroup(name string) slog.Handler {
	l.do()
	return hostileLog{l.do, l.to.WithGroup(name)}
}

func TestHostileProgram(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(){
		"panics":                  func() { panic("boom") },
		"panics with what panics": func() { panic(panicsIn{"Error"}) },
		"ends its goroutine":      runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(50)
			var calls atomic.Int64
			do := func() { // each other call
				if calls.Add(1)%2 == 0 {
					fail()
				}
			}
			cfg := w.Config(w.DB, "set")
			cfg.EventStore = &hostileStore{cfg.EventStore, do}
			cfg.Notifier = &hostileNotifier{do}
			cfg.Logger = slog.New(hostileLog{do, slog.DiscardHandler})
			cfg.Observer = &orchestrator.Observer{
				BatchCommitted: func(orchestrator.BatchCommitted) { do() }, Heartbeat: func(orchestrator.Heartbeat) { do() },
				PartitionsChanged: func(orchestrator.PartitionsChanged) { do() },
			}
			r := testworld.Run(t, cfg, w.All(w.DB, nil)...)
			w.CaughtUp(testworld.Names...)
			r.Stop()
			w.CheckEffects(testworld.Names...)
		})
	}
}

// badEvent is an event store of which one event could not be read.
type badEvent struct {
	orchestrator.EventStore[orchestrator.Event]
	position int64
	err      func() error
}

func (s *badEvent) Read(ctx context.Context, r orchestrator.ReadRequest) (orchestrator.Page[orchestrator.Event], error) {
	page, err := s.EventStore.Read(ctx, r)
	for i := range page.Records {
		if page.Records[i].Position == s.position {
			page.Records[i].Err = s.err()
		}
	}
	return page, err
}

// Whatever an event store says of an event that it could not read, that is parked, and
// the others are handled.
func TestHostileRecords(t *testing.T) {
	t.Parallel()
	for name, fail := range hostile() {
		if strings.HasPrefix(name, "panic of") || name == "ends its goroutine" {
			continue // they return no error
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.Append(20)
			cfg := w.Config(w.DB, "set")
			cfg.Logger, cfg.OnFailure = nil, orchestrator.ParkEvents
			cfg.EventStore = &badEvent{cfg.EventStore, w.Number(`SELECT min(global_position) + 12 FROM events`), fail}
			r := testworld.Run(t, cfg, w.All(w.DB, nil)...)
			for _, p := range testworld.Names {
				pgtest.Eventually(t, p+": the others are handled, and it is parked", func() bool {
					parked, err := ops.Parked(t.Context(), w.DB, p, 10)
					return err == nil && len(parked) == 1 && w.Handled(p) == 19
				})
			}
			r.Stop()
		})
	}
}

// A logger that stands still holds up no event. When it goes on, it is told how many
// records were left out.
func TestLoggerThatBlocksLosesRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(20)
	bad := w.Number(`SELECT min(global_position) + 12 FROM events`)
	goOn := make(chan struct{})
	log := &testworld.Log{To: io.Discard}
	var still atomic.Bool
	still.Store(true)
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.ParkEvents
	cfg.Logger = slog.New(hostileLog{func() {
		if still.Load() {
			<-goOn
		}
	}, slog.NewTextHandler(log, nil)})
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == bad {
			return errors.New("bad")
		}
		return nil
	}}.Transactional())
	pgtest.Eventually(t, "the others are handled", func() bool { return w.Handled("p") == 19 })
	r.Stop()
	still.Store(false)
	close(goOn)
	log.Wait(t, "records were left out")
}

// An event store whose Waiting does not return holds up its readers only: the worker keeps its
// lease, the error names the store, and Run returns.
func TestEventStoreThatNeverReportsItsGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(20)
	log := &testworld.Log{To: io.Discard}
	goOn := make(chan struct{})
	defer close(goOn)
	var still atomic.Bool
	cfg := w.Config(w.DB, "set")
	cfg.StaleWorkerTimeout = time.Second
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	cfg.EventStore = &waitsInWaiting{cfg.EventStore, func() {
		if still.Load() {
			<-goOn
		}
	}}
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Transactional())
	w.CaughtUp("p")
	still.Store(true)
	log.Wait(t, "event store: read after position")
	r.Stop()
}

type waitsInWaiting struct {
	orchestrator.EventStore[orchestrator.Event]
	do func()
}

func (s *waitsInWaiting) Waiting() (orchestrator.Gap, bool) {
	s.do()
	return orchestrator.Gap{}, false
}

// hostileName is a projection that can't say who it is.
type hostileName struct {
	named
	do func()
}

func (p hostileName) Name() string { p.do(); return "p" }

// hostileScope can't say what it wants.
type hostileScope struct {
	named
	do func()
}

func (hostileScope) Name() string                { return "p" }
func (p hostileScope) AggregateTypes() []string  { p.do(); return nil }
func (p hostileScope) BoundedContexts() []string { return nil }

// hostileTypes can't say which events it wants.
type hostileTypes struct {
	named
	do func()
}

func (hostileTypes) Name() string           { return "p" }
func (p hostileTypes) EventTypes() []string { p.do(); return nil }

func TestHostileNames(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(){"panics": func() { panic("boom") }, "ends its goroutine": runtime.Goexit} {
		w := newWorld(t)
		for _, p := range []orchestrator.Projection[orchestrator.Event]{hostileName{do: fail}, hostileScope{do: fail}, hostileTypes{do: fail}} {
			err := testworld.Run(t, w.Config(w.DB, "set"), p).Failed()
			if !errors.Is(err, orchestrator.ErrInvalidConfig) || !strings.Contains(err.Error(), "failed: ") {
				t.Errorf("%T, which %s: %v", p, name, err)
			}
		}
	}
}

// A program that closes its database has Run return.
func TestClosedDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(10)
	db, err := sql.Open("postgres", w.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.Config(db, "set")
	cfg.EventStore = w.Config(w.DB, "set").EventStore
	r := testworld.Run(t, cfg, testworld.Effects{Projection: "p", Hook: func(_ context.Context, e orchestrator.Event) error {
		if e.GlobalPosition == 5 {
			return db.Close()
		}
		return nil
	}}.Transactional())
	if err := r.Failed(); err == nil || !strings.Contains(err.Error(), "database is closed") {
		t.Errorf("Run returned %v", err)
	}
}

// misbehaving is a transactional projection whose handler does something at one event,
// before it writes its effect, and again after that.
type misbehaving struct {
	testworld.Effects
	at            int64
	before, after func(ctx context.Context, tx orchestrator.Tx) error
	mended        *atomic.Bool
	calls         *atomic.Int64
}

func (misbehaving) Handle(context.Context, orchestrator.Event) error { return errors.New("not called") }

func (p misbehaving) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	at := e.GlobalPosition == p.at && !p.mended.Load()
	if at {
		p.calls.Add(1)
	}
	if at && p.before != nil {
		if err := p.before(ctx, tx); err != nil {
			return err
		}
	}
	if err := p.Write(ctx, tx, e); err != nil && !at {
		return err
	}
	if at && p.after != nil {
		return p.after(ctx, tx)
	}
	return nil
}

// misbehaves runs a projection that misbehaves at one of 60 events beside another one,
// until the event is parked; mends it, and demands that nothing was lost or done twice.
// It returns the error that the event was parked for.
func misbehaves(t *testing.T, w *world, change func(*orchestrator.Config[orchestrator.Event]), p misbehaving) string {
	t.Helper()
	w.Append(60)
	p.Projection, p.mended, p.calls = "p", &atomic.Bool{}, &atomic.Int64{}
	p.at = w.Number(`SELECT min(global_position) + 42 FROM events`)
	cfg := w.Config(w.DB, "set")
	cfg.Failures = map[string]orchestrator.FailureRule{"p": {Policy: orchestrator.ParkEvents, Attempts: 2}}
	if change != nil {
		change(&cfg)
	}
	r := testworld.Run(t, cfg, p, testworld.Effects{Projection: "other"}.Transactional())
	w.CaughtUp("other")
	var parked []ops.ParkedEvent
	pgtest.Eventually(t, "the event is parked", func() bool {
		parked, _ = ops.Parked(t.Context(), w.DB, "p", 10)
		return len(parked) > 0
	})
	if parked[0].Position != p.at {
		t.Errorf("%d is parked, want %d", parked[0].Position, p.at)
	}
	failed := parked[0].Attempts
	w.Retry("p", ops.ParkedSelector{All: true}) // and fails again
	pgtest.Eventually(t, "the retry has failed", func() bool {
		all, _ := ops.Parked(t.Context(), w.DB, "p", 10)
		return len(all) > 0 && all[0].Attempts > failed
	})
	p.mended.Store(true)
	pgtest.Eventually(t, "nothing is parked any more", func() bool {
		w.askAll("p")
		all, _ := ops.Parked(t.Context(), w.DB, "p", 10)
		return len(all) == 0
	})
	w.CaughtUp("p")
	r.Stop()
	w.CheckEffects("p", "other")
	return parked[0].Error
}

// askAll asks for a retry of whatever is parked.
func (w *world) askAll(projection string) {
	_, err := ops.RetryParked(w.T.Context(), w.DB, projection, ops.ParkedSelector{All: true})
	if err != nil && !errors.Is(err, ops.ErrNotParked) {
		w.T.Error(err)
	}
}

func statement(query string) func(context.Context, orchestrator.Tx) error {
	return func(ctx context.Context, tx orchestrator.Tx) error {
		_, err := tx.ExecContext(ctx, query)
		return err
	}
}

// swallow returns nil, whatever f says.
func swallow(f func(context.Context, orchestrator.Tx) error) func(context.Context, orchestrator.Tx) error {
	return func(ctx context.Context, tx orchestrator.Tx) error {
		_ = f(ctx, tx)
		return nil
	}
}

// A handler that ends its transaction, or tries to, fails; nothing is lost.
func TestHandlerEndsItsTransaction(t *testing.T) {
	t.Parallel()
	const can, ended = "a handler can't end its transaction", "the handler has ended its transaction"
	prepare := func(ctx context.Context, tx orchestrator.Tx) error {
		s, err := tx.PrepareContext(ctx, `COMMIT`)
		if err != nil {
			return err
		}
		_, err = s.ExecContext(ctx)
		return err
	}
	assert := func(_ context.Context, tx orchestrator.Tx) error {
		return tx.(interface{ Commit() error }).Commit()
	}
	for name, c := range map[string]struct {
		do   func(context.Context, orchestrator.Tx) error
		want string
	}{
		"ROLLBACK":                      {statement(`ROLLBACK`), can},
		"ROLLBACK, swallowed":           {swallow(statement(`ROLLBACK`)), can},
		"COMMIT":                        {statement(` -- it is done` + "\n" + ` commit`), can},
		"COMMIT AND CHAIN":              {statement(`COMMIT AND CHAIN`), can},
		"COMMIT; BEGIN":                 {swallow(statement(`COMMIT; BEGIN`)), can},
		"PREPARE TRANSACTION":           {statement(`PREPARE TRANSACTION 'x'`), can},
		"behind another":                {swallow(statement(`SELECT ';'; ROLLBACK`)), can},
		"prepared":                      {swallow(prepare), can},
		"asserted":                      {assert, "panic"},
		"unseen":                        {statement(`SELECT 1; ABORT /* by another word */ AND CHAIN`), can},
		"unseen, in a batch of its own": {statement(`SELECT 1; END; BEGIN`), ended},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			alone := func(cfg *orchestrator.Config[orchestrator.Event]) {
				if c.want == ended { // or what others wrote before would be committed, and written again
					cfg.BatchSize = 1
				}
			}
			if got := misbehaves(t, w, alone, misbehaving{before: c.do}); !strings.Contains(got, c.want) {
				t.Errorf("parked for %q, want %q", got, c.want)
			}
		})
	}
}

// What the library's own statement meets behind a handler is the handler's failure, and
// so are the limits that it runs into.
func TestHandlersFault(t *testing.T) {
	t.Parallel()
	query := func(ctx context.Context, tx orchestrator.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT generate_series(1, 1000)`)
		if err == nil {
			rows.Next()
		}
		return err
	}
	copies := func(ctx context.Context, tx orchestrator.Tx) error {
		_, err := tx.PrepareContext(ctx, `COPY effects (projection) FROM STDIN`)
		return err
	}
	deadline := func(ctx context.Context, tx orchestrator.Tx) error {
		ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		_, err := tx.ExecContext(ctx, `SELECT pg_sleep(60)`)
		return err
	}
	for name, c := range map[string]struct {
		do   func(context.Context, orchestrator.Tx) error
		want string
	}{
		"rows left open":   {query, "rows of a query open"},
		"a COPY left open": {copies, "left a COPY open"},
		"a COPY and a panic": {func(ctx context.Context, tx orchestrator.Tx) error {
			_ = copies(ctx, tx)
			panic("amid a COPY")
		}, "amid a COPY"},
		"a COPY that fails": {func(ctx context.Context, tx orchestrator.Tx) error {
			stmt, err := tx.PrepareContext(ctx, `COPY effects (position) FROM STDIN`)
			if err == nil {
				_, err = stmt.ExecContext(ctx, "no number")
			}
			return err
		}, "no number"},
		"statement_timeout": {statement(`SET LOCAL statement_timeout = '1ms'; SELECT pg_sleep(60)`), "statement timeout"},
		"a deadline":        {deadline, ""},
		"CALL that commits": {swallow(statement(`DO $$ BEGIN COMMIT; END $$`)), "aborted"},
		"RESET ALL":         {statement(`RESET ALL`), "the handler has ended its transaction"},
		"late constraint":   {statement(`CREATE TEMP TABLE once (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP; INSERT INTO once VALUES (1), (1)`), "once_pkey"},
		"lock_timeout":      {statement(`DO $$ BEGIN RAISE 'no lock' USING ERRCODE = '55P03'; END $$`), "no lock"},
		"disk full":         {statement(`DO $$ BEGIN RAISE 'no space' USING ERRCODE = '53100'; END $$`), "no space"},
		"temp_file_limit":   {statement(`DO $$ BEGIN RAISE 'too large' USING ERRCODE = '53400'; END $$`), "too large"},
		"swallowed error":   {swallow(statement(`SELECT 1 / 0`)), ""},
		"read-only":         {swallow(statement(`SET TRANSACTION READ ONLY`)), "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if got := misbehaves(t, w, nil, misbehaving{after: c.do}); !strings.Contains(got, c.want) {
				t.Errorf("parked for %q, want %q", got, c.want)
			}
		})
	}
}

// Rows that are left open behind a Scan into sql.RawBytes, which database/sql keeps from
// being closed when their context ends, are closed.
func TestRowsHeldByScan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(60)
	p := misbehaving{Effects: testworld.Effects{Projection: "p"}, at: 43, mended: &atomic.Bool{}, calls: &atomic.Int64{},
		after: func(ctx context.Context, tx orchestrator.Tx) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			rows, err := tx.QueryContext(ctx, `SELECT generate_series(1, 1000)`)
			if err != nil {
				return err
			}
			rows.Next()
			var raw sql.RawBytes
			return rows.Scan(&raw)
		}}
	r := testworld.Run(t, w.Config(w.DB, "set"), p, testworld.Effects{Projection: "other"}.Transactional())
	w.CaughtUp("other")
	pgtest.Eventually(t, "the handler is called again", func() bool { return p.calls.Load() > 3 })
	p.mended.Store(true)
	w.CaughtUp("p")
	r.Stop()
	w.CheckEffects("p", "other")
}

// A handler that moves its own checkpoint, or hides it from the library, is not called
// again at once and for ever.
func TestHandlerMovesItsCheckpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(60)
	p := misbehaving{Effects: testworld.Effects{Projection: "p"}, at: 43, mended: &atomic.Bool{}, calls: &atomic.Int64{},
		after: statement(`UPDATE orchestrator_checkpoints SET position = position + 1 WHERE projection = 'p'`)}
	cfg := w.Config(w.DB, "set")
	cfg.OnFailure = orchestrator.StopOnFailure
	err := testworld.Run(t, cfg, p).Failed()
	var failure *orchestrator.HandlerError
	if !errors.As(err, &failure) || failure.Position != p.at || !strings.Contains(err.Error(), "the checkpoint could not be moved after the handler") {
		t.Errorf("Run returned %v", err)
	}
	if n := w.Handled("p"); n != 42 {
		t.Errorf("%d events are handled, want the 42 before", n)
	}
}

// SET ROLE and SET search_path are the handler's affair: neither the checkpoint nor the
// next user of the connection has anything of it.
func TestHandlerSetsRole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`CREATE SCHEMA tenant; CREATE ROLE ` + tenant + `; GRANT ALL ON effects, effects_id_seq TO ` + tenant)
	t.Cleanup(func() { _, _ = w.DB.Exec(`DROP OWNED BY ` + tenant + `; DROP ROLE ` + tenant) })
	w.Append(100)
	i := 0
	sets := []string{`SET LOCAL ROLE ` + tenant, `SET ROLE ` + tenant, `SET LOCAL search_path = tenant, public`, `SET search_path = tenant`, `SET LOCAL search_path = ''`}
	p := misbehaving{Effects: testworld.Effects{Projection: "p"}, mended: &atomic.Bool{}, calls: &atomic.Int64{}}
	r := testworld.Run(t, w.Config(w.DB, "set"), everyEvent{p, func(ctx context.Context, tx orchestrator.Tx) error {
		i++
		return statement(sets[i%len(sets)])(ctx, tx)
	}}, testworld.Effects{Projection: "other"}.Transactional(), testworld.Effects{Projection: "plain"}.Plain(w.DB))
	w.CaughtUp("p", "other", "plain")
	r.Stop()
	w.CheckEffects("p", "other", "plain")
}

const tenant = "tenant_of_a_handler"

// everyEvent does something after each event.
type everyEvent struct {
	misbehaving
	do func(ctx context.Context, tx orchestrator.Tx) error
}

func (p everyEvent) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if _, err := tx.ExecContext(ctx, `RESET ROLE; RESET search_path`); err != nil {
		return err
	}
	if err := p.Write(ctx, tx, e); err != nil {
		return err
	}
	return p.do(ctx, tx)
}

// An event that always ends its handler's connection is parked in the end, whether the
// handler says so or not.
func TestHandlerEndsItsConnection(t *testing.T) {
	t.Parallel()
	kill := statement(`SELECT pg_terminate_backend(pg_backend_pid())`)
	for name, do := range map[string]func(context.Context, orchestrator.Tx) error{"said": kill, "swallowed": swallow(kill)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			short := func(cfg *orchestrator.Config[orchestrator.Event]) {
				cfg.StaleWorkerTimeout = 2 * time.Second
			}
			misbehaves(t, newWorld(t), short, misbehaving{after: do})
		})
	}
}

// A transaction that its handler leaves idle for too long is ended by the server, and
// the error says which bound that was.
func TestHandlerLeavesItsTransactionIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var pid atomic.Int64
	got := misbehaves(t, w, func(cfg *orchestrator.Config[orchestrator.Event]) { cfg.StaleWorkerTimeout = time.Second },
		misbehaving{before: func(ctx context.Context, tx orchestrator.Tx) error {
			var n int64
			if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&n); err != nil {
				return err
			}
			pid.Store(n)
			for ctx.Err() == nil { // until the server has ended it
				var there int64
				if err := w.DB.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, n).Scan(&there); err != nil || there == 0 {
					break
				}
			}
			_, err := tx.ExecContext(ctx, `SELECT 1`)
			return err
		}})
	if !strings.Contains(got, "StaleWorkerTimeout (1s)") {
		t.Errorf("parked for %q", got)
	}
}
