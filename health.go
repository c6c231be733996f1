package orchestrator

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

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

// Health returns how the workers are that this Orchestrator's calls of Run are.
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
			live, ready, detail := f.judge(now)
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
		return "the configuration can't work"
	case errors.Is(err, ErrSchema):
		return "the library's tables are missing or outdated"
	case errors.Is(err, ErrProjectionTaken):
		return "a projection belongs to another replica set"
	case errors.Is(err, ErrCoordinationTimeout):
		return "a handler did not stop in time"
	case errors.Is(err, ErrEventStore):
		return "the event store can't be read"
	case store.FactsOf(err).Closed:
		return "the database handle was closed"
	case store.State(err) != "":
		return "the database refused a statement"
	}
	return "it can't go on"
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
