package sim

import (
	"math"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A crew is the state of the workers, according to the facts.
type crew struct {
	drift   float64 // the largest error of their clocks
	workers map[string]*checkedWorker
	all     []*checkedWorker // in the order in which they appeared
	stepped fact             // the latest step of the database's clock
	forgone fact             // the latest time at which a liveness connection was too slow
	faked   fact             // the latest time at which another program took all liveness locks
	trouble fact             // the latest fact that may make any worker handle events again
	// troubled is until when trouble may do so. For late, see upset.
	troubled, late time.Duration
	down           bool // the database is down
}

// A checkedWorker is one process with all of its incarnations.
type checkedWorker struct {
	name   string
	set    int
	timing protocol.Timing
	gone   bool
	// returned: it has given up, and its handlers have not returned.
	returned    bool
	gaveUp      fact   // when it gave up
	left        []fact // what it ran when it gave up
	leaving     bool
	lease       fact // the sessionAsks that renewed it last
	sent        fact // the sessionAsks that was sent last
	freezes     []freezing
	cut         fact   // the fact that cut it off from the database; unset: it is not cut off
	runs        []fact // the runStarts of the partitions that it runs
	run         fact   // the first of runs; unset: it runs nothing
	ran         fact   // the latest runStopped
	drain       fact   // the latest runDrains
	cancel      fact   // the latest runCancels
	calls       []*openCall
	suspend     fact // the latest runSuspends
	presence    checkedPresence
	hears, deaf fact             // the latest hintsCome and hintsGone
	returns     map[laneKey]fact // the latest handlerEnds
	trouble     fact             // the latest fact that may make it handle events again
	troubled    time.Duration    // until when trouble may do so
	late, blind time.Duration    // see upset
}

// A freezing is a time in which a process was frozen.
type freezing struct {
	from, to fact // to is unset while the freeze lasts
}

// waking is how long after its thaw a process may still do what it was about to do when it
// froze, before it has checked its clock.
const waking = wakeMax + deciding

// deciding is the longest time that a process that is awake takes between deciding to call
// a handler and calling it.
const deciding = time.Millisecond

func newCrew(drift float64) crew { return crew{drift: drift, workers: map[string]*checkedWorker{}} }

func (c *crew) worker(name string) *checkedWorker {
	w := c.workers[name]
	if w == nil {
		w = &checkedWorker{name: name, returns: map[laneKey]fact{}}
		c.workers[name] = w
		c.all = append(c.all, w)
	}
	return w
}

// observe takes in the facts that are about workers.
func (c *crew) observe(f fact) {
	switch f.kind {
	case workerStarts:
		w := c.worker(f.worker)
		w.set, w.timing = f.set, f.timing
	case workerGone:
		w := c.worker(f.worker)
		w.gone = true
		w.stops()
	case workerReturns:
		w := c.worker(f.worker)
		w.returned, w.gaveUp, w.left = true, f, w.runs
		w.stops()
	case sessionAsks:
		w := c.worker(f.worker)
		w.lease = f
		if f.sent >= w.sent.sent {
			w.sent = f
		}
	case runStarts:
		w := c.worker(f.worker)
		if w.run.generation != f.generation {
			w.run, w.runs = f, nil
		}
		w.runs = append(w.runs, f)
	case runStopped:
		w := c.worker(f.worker)
		w.ran = f
		if w.run.generation == f.generation {
			w.stops()
		}
	case hintsCome:
		c.worker(f.worker).hears = f
	case hintsGone:
		c.worker(f.worker).deaf = f
	case sessionAttached, sessionProven, sessionForgone, sessionEnded, presencePublished, memberJoins, workerExpired:
		c.worker(f.worker).presence.observe(f)
		if f.kind == sessionForgone && f.text == string(protocol.ForgoneSlow) {
			c.forgone = f
		}
	case runSuspends:
		c.worker(f.worker).suspend = f
	case runDrains:
		c.worker(f.worker).drain = f
	case runCancels:
		c.worker(f.worker).cancel = f
	case handlerEnds:
		c.worker(f.worker).returns[laneKey{f.projection, f.partition}] = f
	case faultLeave:
		c.worker(f.worker).leaving = true
	case faultFreeze:
		c.each(f.worker, func(w *checkedWorker) {
			if !w.frozen() {
				w.freezes = append(w.freezes, freezing{from: f})
			}
		})
	case faultThaw:
		c.each(f.worker, func(w *checkedWorker) {
			if w.frozen() {
				w.freezes[len(w.freezes)-1].to = f
			}
		})
	case faultCutOff:
		c.each(f.worker, func(w *checkedWorker) { w.cut = f })
	case faultMended:
		c.each(f.worker, func(w *checkedWorker) { w.cut = fact{} })
	case faultClockStep:
		c.stepped = f
	case faultOther:
		if f.text == locksFaked {
			c.faked = f
		}
	}
}

// each calls do with the named worker, or with all workers if the name is "".
func (c *crew) each(name string, do func(*checkedWorker)) {
	if name != "" {
		do(c.worker(name))
		return
	}
	for _, w := range c.all {
		do(w)
	}
}

// stops ends what the worker runs.
func (w *checkedWorker) stops() { w.run, w.runs = fact{}, nil }

// runOf returns the run that a fact of a lane is about, or else the first run of the
// worker.
func (w *checkedWorker) runOf(f fact) fact {
	for _, r := range w.runs {
		if r.partition == f.partition {
			return r
		}
	}
	return w.run
}

// tardy reports whether f begins a handler that a process which has just woken was about to
// call when it froze, although it has given up since.
func (w *checkedWorker) tardy(f fact) bool {
	n := len(w.freezes)
	if !w.returned || n == 0 {
		return false
	}
	thaw := w.freezes[n-1].to
	return !thaw.unset() && f.at-thaw.at <= waking && slices.ContainsFunc(w.left, func(r fact) bool {
		return r.generation == f.generation && r.partition == f.partition && r.total == f.total
	})
}

func (w *checkedWorker) frozen() bool {
	n := len(w.freezes)
	return n > 0 && w.freezes[n-1].to.unset()
}

// able reports whether the worker can do its part.
func (w *checkedWorker) able() bool { return !w.gone && !w.returned && !w.frozen() && w.cut.unset() }

// leaseEnd returns when the lease that the database granted the worker last is over, in
// true time.
//
// A step of the database's clock that is small enough to go unseen may end it a tenth
// earlier: the protocol counts on that part of the fifth that a holder leaves unused
// (protocol.Member.Expired).
func (c *crew) leaseEnd(w *checkedWorker) (end time.Duration, granted bool) {
	if w.lease.unset() {
		return 0, false
	}
	end = w.lease.at + w.lease.length
	if !c.stepped.unset() && c.stepped.step > w.lease.step {
		end -= w.lease.length / 10
	}
	return end, true
}

// overBy reports whether the worker's lease is over by the time t.
func (c *crew) overBy(w *checkedWorker, t time.Duration) bool {
	end, granted := c.leaseEnd(w)
	return granted && end <= t
}

// excused reports whether a call that w began may coincide with what another worker began,
// or committed, at other. It may if w's lease, as the database granted it, was over by
// then, and if one of these holds at its end:
//
//   - w was frozen, in a freeze that touches the call. A process that wakes goes on with
//     what it was about to do; the fence keeps that from having an effect. It must be
//     frozen at the very end of its lease: a process that wakes before, or freezes after,
//     must give up by itself.
//   - w had cancelled the handler, which ignores that. The reason does not matter, but it
//     must be in time. A call may begin just after: between deciding to call and calling,
//     a process checks nothing.
//
// A call is also excused if w was removed because its liveness lock was missing: see
// missing.
//
// Nothing else is an excuse. A worker that is cut off, or whose requests are lost or late,
// has its own clock. Steps of the database's clock must not end leases (but see leaseEnd).
// A crash ends all calls.
func (c *crew) excused(w *checkedWorker, begin fact, other time.Duration) bool {
	if c.missing(w, begin, other) {
		return true
	}
	if !c.overBy(w, other) {
		return false
	}
	end, _ := c.leaseEnd(w)
	return w.frozenFrom(end, end, begin) || c.canceled(w, begin) && w.cancel.at <= end
}

// frozenSince reports whether the worker was frozen at t or later.
func (w *checkedWorker) frozenSince(t time.Duration) bool {
	n := len(w.freezes)
	return n > 0 && (w.freezes[n-1].to.unset() || w.freezes[n-1].to.at >= t)
}

// frozenFrom reports whether the worker was frozen from start to end, in freezes that touch
// the call. A freeze that begins right after another one continues it: in between, the
// process may not have done what it was about to do.
func (w *checkedWorker) frozenFrom(start, end time.Duration, begin fact) bool {
	since, thaw := begin.at-waking, time.Duration(math.MaxInt64)
	for i, z := range slices.Backward(w.freezes) {
		if !z.to.unset() && z.to.at < since {
			break
		}
		if i == len(w.freezes)-1 && !z.to.unset() {
			thaw = z.to.at + waking
		}
		if z.from.at <= start && end <= thaw {
			return true
		}
		since = min(since, z.from.at-waking) // it froze again right after it woke
	}
	return false
}

// canceled reports whether a call of w was cancelled, if it has not ended.
func (c *crew) canceled(w *checkedWorker, begin fact) bool {
	return !w.cancel.unset() && w.cancel.generation == begin.generation && w.cancel.at >= begin.at-deciding
}

// circumstances returns the facts that decide about an excuse: the lease, and the latest
// freeze and cancellation that touch the call.
func (c *crew) circumstances(w *checkedWorker, begin fact) []fact {
	facts := []fact{w.lease}
	if n := len(w.freezes); n > 0 {
		if z := w.freezes[n-1]; z.to.unset() || z.to.at >= begin.at-waking {
			facts = append(facts, z.from, z.to)
		}
	}
	if c.canceled(w, begin) {
		facts = append(facts, w.cancel)
	}
	return facts
}
