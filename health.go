package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// The answers to the probes of a process. A worker's loop notes its turns, and
// protocol.Health evaluates them, without the database.

// Health is the state of an Orchestrator, for probes.
type Health struct {
	// Live is false if only a restart of the process helps: Run has returned with an
	// error, or a worker's loop has not run for StaleWorkerTimeout. It is true before
	// Run is called, after Run's context has ended, and while the database is away, for
	// however long.
	Live bool
	// Ready is true once the worker has its place in the replica set: it runs its partitions,
	// or is a standby. It stays true while others join and leave, and while the database is
	// away, which all workers notice at once. It is false before that, after the worker was
	// asked to stop, and when the worker has had no place for twice CoordinationTimeout +
	// StaleWorkerTimeout, which is longer than a re-partition may take, although the database
	// answers.
	Ready bool
	// Detail describes the state, with a line for each call of Run that has not returned. It
	// never has the text of an error, which is in the log only: anyone who reaches the port of
	// the probes can read Detail.
	Detail string
}

// Health returns the state of this Orchestrator's workers. It does not use the database, and
// returns at once.
func (o *Orchestrator[E]) Health() Health {
	return healthOf(string(o.cfg.ReplicaSet), time.Now(), o.runs.all())
}

// healthOf combines the states of the calls of Run of one Orchestrator. A call that its
// context has ended counts only if there is no other.
func healthOf(set string, now time.Time, runs []facts) Health {
	h := Health{Live: true, Ready: len(runs) > 0}
	var lines []string
	say := func(format string, args ...any) {
		lines = append(lines, fmt.Sprintf("replica set %q", set)+fmt.Sprintf(format, args...))
	}
	for _, f := range runs {
		switch {
		case !f.ended:
			live, ready, detail := f.Judge(now)
			h.Live, h.Ready = h.Live && live, h.Ready && ready
			say(": %s", detail)
		case f.err != nil:
			h.Live, h.Ready = false, false
			say(": Run has returned: %s; see the log", kindOf(f.err))
		}
	}
	switch {
	case len(runs) == 0:
		say(": Run has not been called")
	case len(lines) == 0:
		h.Ready = false
		say(": was stopped")
	}
	h.Detail = strings.Join(lines, "\n")
	return h
}

// kindOf returns the kind of an error of Run, without anything of its text.
func kindOf(err error) string {
	var handler *HandlerError
	switch {
	case errors.As(err, &handler): // first: a handler's error may be any other as well
		return "a handler failed"
	case errors.Is(err, ErrInvalidConfig):
		return "the configuration is invalid"
	case errors.Is(err, ErrSchema):
		return "the library's tables are missing or outdated"
	case errors.Is(err, ErrProjectionTaken):
		return "a projection belongs to another replica set"
	case errors.Is(err, ErrCoordinationTimeout):
		return "a handler did not stop in time"
	case errors.Is(err, ErrEventStore):
		return "the event store cannot be read"
	case store.FactsOf(err).Closed:
		return "the database handle was closed"
	case store.State(err) != "":
		return "the database refused a statement"
	}
	return "it cannot continue"
}

// HealthChecker is an Orchestrator with events of any type.
type HealthChecker interface {
	// Health returns the state of the Orchestrator's workers.
	Health() Health
}

// HealthHandler returns a handler for the probes of a process that runs these
// Orchestrators. A path that ends in /livez answers whether all are live, one that ends in
// /readyz whether all are ready: with status 200 or 503, and Health.Detail as the text.
// Other paths answer 404. It does not use the database, and answers at once.
//
//	http.Handle("/", orchestrator.HealthHandler(orders, reports))
//
// Give the server a ReadHeaderTimeout.
func HealthHandler(of ...HealthChecker) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var good func(Health) bool
		switch path.Base(r.URL.Path) {
		case "livez":
			good = func(h Health) bool { return h.Live }
		case "readyz":
			good = func(h Health) bool { return h.Ready }
		default:
			http.NotFound(w, r)
			return
		}
		status, text := http.StatusOK, strings.Builder{}
		for _, o := range of {
			h := o.Health()
			if !good(h) {
				status = http.StatusServiceUnavailable
			}
			text.WriteString(h.Detail + "\n")
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text.String())
	})
}

// facts are those of the health of one call of Run.
type facts struct {
	protocol.Health
	ended bool
	err   error // what Run has returned; nil: its context's error
}

// healthState has the facts of one call of Run, as its loop notes them.
type healthState struct {
	mu    sync.Mutex
	facts facts
}

func (h *healthState) get() facts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.facts
}

func (h *healthState) update(f func(*facts)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.facts)
}

// begun reports whether the loop has run.
func (h *healthState) begun() bool {
	f := h.get()
	return !f.Turned().IsZero()
}

// turn notes a turn of the loop.
func (h *healthState) turn(now time.Time, in protocol.Input, actions []protocol.Action) {
	h.update(func(f *facts) { f.Turn(now, in, actions) })
}

// end notes that Run returns.
func (h *healthState) end(ctx context.Context, err error) {
	switch {
	case err == nil:
		err = errors.New("Run did not return: it panicked, or its goroutine ended")
	case err == ctx.Err():
		err = nil
	}
	h.update(func(f *facts) { f.ended, f.err = true, err })
}

// runs are the calls of Run of one Orchestrator.
type runs struct {
	mu sync.Mutex
	of []*healthState
}

// begin adds one, and removes those that have returned.
func (r *runs) begin(timing protocol.Timing, window time.Duration) *healthState {
	h := &healthState{facts: facts{Health: protocol.NewHealth(timing, window)}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of = append(slices.DeleteFunc(r.of, func(o *healthState) bool { return o.get().ended }), h)
	return h
}

func (r *runs) all() []facts {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []facts
	for _, h := range r.of {
		all = append(all, h.get())
	}
	return all
}
