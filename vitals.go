package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// facts are what is known of the health of one call of Run. They are judged
// without a look at anything else.
type facts struct {
	timing protocol.Timing
	window time.Duration // JoinWindow

	turned time.Time // when the loop has last turned; zero: it has not begun
	// answers is since when the database has answered every request; zero: not
	// the latest one, or none yet.
	answers  time.Time
	member   time.Time // since when it is seen to be a member; zero: it is not
	assigned bool      // it has partitions in the newest generation that it has seen
	standby  bool      // it has none, and is to have none
	running  int64     // the generation that it runs; 0: none
	placed   time.Time // when it has last been running or a standby; zero: never yet
	leaving  bool

	ended bool
	err   error // what Run has returned; nil: what its context said
}

// note takes in what one turn of the loop was about.
func (f facts) note(now time.Time, in protocol.Input, actions []protocol.Action) facts {
	f.turned = now
	switch in := in.(type) {
	case protocol.Synced:
		if f.answers.IsZero() {
			f.answers = now
		}
		if !in.View.Member {
			f.member = time.Time{}
		} else if f.member.IsZero() {
			f.member = now
		}
		f.assigned = in.View.Assigned()
		// Who waits for a JoinWindow to close has no partitions, either.
		f.standby = in.View.Member && !f.assigned && now.Sub(f.member) > f.window+f.timing.Heartbeat
	case protocol.SyncFailed:
		f.answers = time.Time{}
	case protocol.Stopped:
		if f.running == in.Generation {
			f.running = 0
		}
	case protocol.Shutdown:
		f.leaving = true
	}
	for _, action := range actions {
		if start, ok := action.(protocol.Start); ok {
			f.running = start.Share.Generation
		}
	}
	if f.running != 0 || f.standby {
		f.placed = now
	}
	return f
}

// judge says how a call of Run is that has not returned.
//
// Ready is sticky. A re-partition stops all workers at once, and a database that
// is away does, too: were they not ready then, none would be, a roll-out or a
// drain of nodes would stand still for nothing, and a moment's pause would look
// like a dead set.
func (f facts) judge(now time.Time) (live, ready bool, detail string) {
	ready = !f.placed.IsZero() && !f.leaving
	idle := now.Sub(f.turned)
	alone := now.Sub(f.placed) // without a place, and with a database that answers
	if f.answers.After(f.placed) {
		alone = now.Sub(f.answers)
	}
	switch {
	case f.turned.IsZero():
		return true, false, "starts, and has not heard from the database yet"
	case idle > f.timing.Lease:
		return false, false, fmt.Sprintf("its loop has not turned for %s", idle.Round(time.Second))
	case f.leaving:
		return true, false, "was asked to stop"
	case f.answers.IsZero() && f.placed.IsZero():
		return true, false, "joins, and the database has not answered yet"
	case f.answers.IsZero():
		return true, ready, "the database does not answer"
	case f.running != 0:
		return true, ready, fmt.Sprintf("runs generation %d", f.running)
	case f.standby:
		return true, ready, "is a standby"
	case ready && alone > 2*(f.timing.Drain+f.timing.Lease):
		return true, false, fmt.Sprintf("has had no place for %s, though the database answers", alone.Round(time.Second))
	case f.assigned:
		return true, ready, "waits for other workers to stop"
	}
	return true, ready, "joins"
}

// vitals are the facts of one call of Run, as its loop notes them.
type vitals struct {
	mu    sync.Mutex
	facts facts
}

func (v *vitals) get() facts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.facts
}

func (v *vitals) update(f func(*facts)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f(&v.facts)
}

// turn notes a turn of the loop.
func (v *vitals) turn(now time.Time, in protocol.Input, actions []protocol.Action) {
	v.update(func(f *facts) { *f = f.note(now, in, actions) })
}

// end notes that Run returns.
func (v *vitals) end(ctx context.Context, err error) {
	switch {
	case err == nil:
		err = errors.New("it did not come to its end: a panic, or the end of its goroutine")
	case err == ctx.Err():
		err = nil
	}
	v.update(func(f *facts) { f.ended, f.err = true, err })
}

// runs are the calls of Run of one Orchestrator.
type runs struct {
	mu sync.Mutex
	of []*vitals
}

// begin adds one. Those that have returned are of no interest any more.
func (r *runs) begin(timing protocol.Timing, window time.Duration) *vitals {
	v := &vitals{facts: facts{timing: timing, window: window}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of = append(slices.DeleteFunc(r.of, func(o *vitals) bool { return o.get().ended }), v)
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
