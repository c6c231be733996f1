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

// What probes ask of the workers of a process. A worker's loop notes its turns;
// protocol.Health judges them, without a look at the database.

// Health is what probes want to know of an Orchestrator.
type Health struct {
	// Live is false when only a restart of the process helps: Run has returned
	// with an error, or a worker's loop has not turned for StaleWorkerTimeout. A
	// database that is away, for however long, leaves it true; so do the time
	// before Run is called and the time after its context has ended.
	Live bool
	// Ready is true once the worker has had its place in the replica set: it runs
	// its partitions, or is a standby. It stays true while others join and leave,
	// and while the database is away, since all workers see that at once. It is
	// false before; from when the worker was asked to stop; and while the worker
	// has no place although the database answers, for longer than a re-partition
	// may take: twice CoordinationTimeout + StaleWorkerTimeout.
	Ready bool
	// Detail says in words what the worker does, or what is the matter; a line for
	// each call of Run that has not returned. The words are fixed ones: probes are
	// open to whoever reaches their port, so what an error says is in the log alone.
	Detail string
}

// Health reports the state of this Orchestrator's workers.
func (o *Orchestrator[E]) Health() Health {
	return healthOf(string(o.cfg.ReplicaSet), time.Now(), o.runs.all())
}

// healthOf puts together what the calls of Run of one Orchestrator are like. One
// that its context has ended counts only where there is no other.
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

// kindOf says of which kind an error of Run is, and nothing that is in it.
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

// A HealthChecker is an Orchestrator, of any type of event.
type HealthChecker interface{ Health() Health }

// HealthHandler answers the probes of a process that runs these Orchestrators,
// wherever it is mounted: a path that ends in /livez with whether all are live,
// one that ends in /readyz with whether all are ready, and others with 404. The
// status is 200 or 503, and the text says what is the matter, in fixed words. It never
// asks the database, and answers at once.
//
//	http.Handle("/", orchestrator.HealthHandler(orders, reports))
//
// Give the server of probes a ReadHeaderTimeout, as any other.
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

// facts are what is known of the health of one call of Run.
type facts struct {
	protocol.Health
	ended bool
	err   error // what Run has returned; nil: what its context said
}

// healthState are the facts of one call of Run, as its loop notes them.
type healthState struct {
	mu    sync.Mutex
	facts facts
}

func (v *healthState) get() facts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.facts
}

func (v *healthState) update(f func(*facts)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f(&v.facts)
}

// begun reports whether the loop has turned.
func (v *healthState) begun() bool {
	f := v.get()
	return !f.Turned().IsZero()
}

// turn notes a turn of the loop.
func (v *healthState) turn(now time.Time, in protocol.Input, actions []protocol.Action) {
	v.update(func(f *facts) { f.Turn(now, in, actions) })
}

// end notes that Run returns.
func (v *healthState) end(ctx context.Context, err error) {
	switch {
	case err == nil:
		err = errors.New("Run did not return: it panicked, or its goroutine ended")
	case err == ctx.Err():
		err = nil
	}
	v.update(func(f *facts) { f.ended, f.err = true, err })
}

// runs are the calls of Run of one Orchestrator.
type runs struct {
	mu sync.Mutex
	of []*healthState
}

// begin adds one. Those that have returned are of no interest any more.
func (r *runs) begin(timing protocol.Timing, window time.Duration) *healthState {
	v := &healthState{facts: facts{Health: protocol.NewHealth(timing, window)}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of = append(slices.DeleteFunc(r.of, func(o *healthState) bool { return o.get().ended }), v)
	return v
}

func (r *runs) all() []facts {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []facts
	for _, v := range r.of {
		all = append(all, v.get())
	}
	return all
}
