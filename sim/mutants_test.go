//go:build !race

// One thread each: the race detector would learn nothing, and take ten times as
// long.

package sim

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A mutant is the production code with one guard removed or one rule bent.
type mutant struct {
	name   string
	rules  rules
	breaks []promise // what it is to be caught for; it may break others as well
}

var mutants = []mutant{
	{"activates without waiting for the drain", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Members = slices.Clone(g.Members)
		for i := range g.Members {
			g.Members[i].Holds = 0
		}
		return protocol.Step(g, now, watch)
	}}}, []promise{oneOwner, onlyGrow, agreement, nothingTwice}},
	{"commits without the fence", rules{memory: memoryRules{unfenced: true, anyPosition: true}}, []promise{onlyGrow, nothingTwice, inOrder}},
	{"hands over by partition number", rules{memory: memoryRules{handoff: func(old []protocol.Checkpoint, total int) []protocol.Checkpoint {
		next := make([]protocol.Checkpoint, total)
		copy(next, old)
		return next
	}}}, []promise{nothingLost, nothingTwice, inOrder}},
	{"hands over the highest position", rules{memory: memoryRules{handoff: func(old []protocol.Checkpoint, total int) []protocol.Checkpoint {
		var highest int64
		for _, c := range old {
			highest = max(highest, c.Position)
		}
		next := make([]protocol.Checkpoint, total)
		for i := range next {
			next[i].Position = highest
		}
		return next
	}}}, []promise{nothingLost}},
	{"forgets who is ahead", rules{memory: memoryRules{handoff: func(old []protocol.Checkpoint, total int) []protocol.Checkpoint {
		next := protocol.Handoff(old, total)
		for i := range next {
			next[i].Ahead = nil
		}
		return next
	}}}, []promise{nothingTwice, inOrder}},
	{"reads past gaps", rules{passesGaps: true}, []promise{nothingLost}},
	{"waits for a gap and does not read again", rules{readsOnce: true}, []promise{nothingLost}},
	{"serves a page of another window", rules{wrongWindow: true}, []promise{nothingLost}},
	{"serves whoever is left behind from where the others are", rules{skipsDropped: true}, []promise{nothingLost}},
	{"takes what it finds of a scope for all there is", rules{trustsScopedPages: true}, []promise{nothingLost}},
	{"looks for the gaps in a scope, and passes them", rules{passesScopedGaps: true}, []promise{nothingLost}},
	{"hands over what is out of scope", rules{forgetsScope: true}, []promise{withinScope}},
	{"counts the lease from the reply", rules{leaseFromReply: true}, []promise{oneOwner}},
	{"does not enforce its own lease", rules{leaseUnenforced: true}, []promise{oneOwner, inOrder, nothingTwice}},
	{"reports stopped before the handler returned", rules{stopsTooEarly: true}, []promise{oneOwner}},
	{"comes back under the old name", rules{sameIdentity: true}, []promise{oneOwner, agreement, recovers, staysStill}},
	{"takes a lost COMMIT for a failure", rules{unknownIsFailure: true}, []promise{nothingTwice, inOrder, recovers}},
	// The fence would set this one right: the next commit names a position at
	// which the row does not stand, and the lane goes back to where it does. So
	// that guard is gone as well.
	{"takes a lost COMMIT for a success, and no fence at it", rules{unknownIsSuccess: true, memory: memoryRules{anyPosition: true}}, []promise{nothingLost}},
	{"looks at a checkpoint without waiting for its writer", rules{memory: memoryRules{hastyFind: true}}, []promise{inOrder, nothingTwice, nothingLost}},
	{"commits again without the handlers' effects", rules{retriesEmpty: true}, []promise{nothingLost}},
	{"calls again in a transaction that has failed", rules{keepsTransaction: true}, []promise{nothingTwice}},
	{"joins postpone the activation", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		next, d := protocol.Step(g, now, watch)
		fresh := func(m protocol.Member) bool { return now.Sub(m.Joined) < m.Lease/2 }
		if d.Activated && next.Generation > 1 && slices.ContainsFunc(next.Members, fresh) {
			// "Let us wait and see who else comes."
			next.Phase, d.Activated = protocol.Draining, false
			for i := range next.Members {
				next.Members[i].Holds = 0
			}
		}
		return next, d
	}}}, []promise{recovers}},
	{"expires by a clock that jumped", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, _ protocol.Watch) (protocol.Group, protocol.Decision) {
		return protocol.Step(g, now, protocol.Watch{Seen: now, For: 1000 * time.Hour})
	}}}, []promise{oneOwner, agreement}},
	{"takes a projection from a replica set that runs it", rules{memory: memoryRules{takesAny: true}}, []promise{oneOwner, inOrder, nothingTwice}},
	{"numbers generations without regard to where a projection was", rules{memory: memoryRules{step: func(g protocol.Group, now time.Time, watch protocol.Watch) (protocol.Group, protocol.Decision) {
		g.Floor = 0
		return protocol.Step(g, now, watch)
	}}}, []promise{onlyGrow}},
	{"bounds no idle transaction", rules{memory: memoryRules{noIdleBound: true}}, []promise{recovers}},
}

// mutantSeeds is how many seeds it may take to catch a mutant.
const mutantSeeds = 1000

// TestMutants demands that every mutant is caught within mutantSeeds, on seeds
// on which the unmutated code passes.
func TestMutants(t *testing.T) {
	seeds, caught := make([]int, len(mutants)), make([]outcome, len(mutants))
	var next atomic.Int64
	var cores sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		cores.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(mutants); i = int(next.Add(1)) - 1 {
				seeds[i], caught[i] = catch(t, mutants[i])
			}
		})
	}
	cores.Wait()
	var table strings.Builder
	fmt.Fprintf(&table, "%-62s %-14s %5s\n", "mutant", "broke", "seeds")
	for i, m := range mutants {
		v := caught[i].violation
		if v == nil {
			t.Errorf("nothing notices that it %s, in %d seeds", m.name, seeds[i])
			continue
		}
		fmt.Fprintf(&table, "%-62s %-14s %5d\n", m.name, v.promise, seeds[i])
		control, err := play(caught[i].plan, rules{}, inMemory, false)
		if err != nil {
			t.Fatal(err)
		}
		if v := control.violation; v != nil {
			t.Errorf("seed %d, which noticed that it %s, breaks %s without that: %s", control.plan.seed, m.name, v.promise, v.what)
		}
	}
	t.Logf("\n%s", table.String())
}

// catch plays seeds until one breaks a promise that the mutant is about.
func catch(t *testing.T, m mutant) (seeds int, caught outcome) {
	t.Helper()
	for seed := range mutantSeeds {
		o, err := play(planOf(uint64(seed+1), options{}), m.rules, inMemory, false)
		if err != nil {
			t.Error(err)
			break
		}
		if v := o.violation; v != nil && slices.Contains(m.breaks, v.promise) {
			return seed + 1, o
		}
	}
	return mutantSeeds, outcome{}
}
