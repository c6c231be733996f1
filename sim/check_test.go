package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// at sets the time of facts, in seconds.
func at(seconds float64, facts ...fact) []fact {
	for i := range facts {
		facts[i].at = time.Duration(seconds * float64(time.Second))
		facts[i].sent, facts[i].read = facts[i].at, facts[i].at
	}
	return facts
}

// then joins the parts of a story and numbers the facts.
func then(parts ...[]fact) []fact {
	var story []fact
	for _, p := range parts {
		story = append(story, p...)
	}
	for i := range story {
		story[i].step = i
	}
	return story
}

// These are the facts of the stories. Leases last 10 s. Partitions are written as "0/2".

func bare(k kind) fact              { return fact{kind: k} }
func of(k kind, worker string) fact { return fact{kind: k, worker: worker} }
func asks(worker string) fact {
	return fact{kind: sessionAsks, worker: worker, length: 10 * time.Second}
}

func opens(generation int64, total int) fact {
	return fact{kind: groupOpened, worker: "x", generation: generation, total: total}
}

func activates(generation int64, total int) fact {
	return fact{kind: groupActivated, worker: "x", generation: generation, total: total}
}

func on(k kind, worker string, generation int64, partition string) fact {
	f := fact{kind: k, worker: worker, generation: generation}
	fmt.Sscanf(partition, "%d/%d", &f.partition, &f.total)
	return f
}

func runs(worker string, generation int64, partition string) fact {
	return on(runStarts, worker, generation, partition)
}

func cancels(worker string, generation int64, why string) fact {
	return fact{kind: runCancels, worker: worker, generation: generation, text: why}
}

// ev returns the event at a position. Its slot names its aggregate.
func ev(position int64, slot int) event {
	return event{position: position, aggregate: fmt.Sprint("a", slot), slot: slot}
}

// begins is a handler call of projection tx, or of another one.
func begins(call int, worker string, generation int64, partition string, events ...event) fact {
	f := on(handlerBegins, worker, generation, partition)
	f.projection, f.call, f.events = "tx", call, events
	return f
}

func ends(call int, worker, how string) fact {
	return fact{kind: handlerEnds, worker: worker, call: call, projection: "tx", text: how}
}

func commits(worker string, generation int64, partition string, from, to int64, events ...event) fact {
	f := on(committed, worker, generation, partition)
	f.projection, f.from, f.to, f.events = "tx", from, to, events
	return f
}

// secondSet makes the facts those of another replica set.
func secondSet(parts ...[]fact) []fact {
	story := then(parts...)
	for i := range story {
		story[i].set = 1
	}
	return story
}

func (f fact) in(projection string) fact {
	f.projection = projection
	return f
}

func writes(events ...event) fact { return fact{kind: appended, events: events} }

// begun is how most stories begin: w1 runs all of generation 1, and its lease ends at 10 s.
var begun = at(0,
	of(workerStarts, "w1"), asks("w1"), lays(1, "w1"), activates(1, 1), runs("w1", 1, "0/1"))

// taken makes w2 run all of generation 2 instead.
func taken(seconds float64) []fact {
	return at(seconds, of(workerStarts, "w2"), asks("w2"), opens(2, 1), activates(2, 1), runs("w2", 2, "0/1"))
}

// shown returns a violation with the steps of its facts.
func shown(v *violation) string {
	if v == nil {
		return ""
	}
	var steps []int
	for _, f := range v.facts {
		steps = append(steps, f.step)
	}
	return fmt.Sprintf("%s: %s %v", v.promise, v.what, steps)
}

func judge(t *testing.T, s setup, facts []fact) string {
	t.Helper()
	s.transactional, s.final = map[string]bool{"tx": true}, []string{"tx"}
	s.scopes = map[string]scope{"orders": "order", "moves": "/moved", "moved orders": "order/moved"}
	c := newChecker(s)
	for _, f := range facts {
		v := c.observe(f)
		if v == nil {
			continue
		}
		if last := v.facts[len(v.facts)-1]; last.step != f.step {
			t.Errorf("found at step %d, and its last fact is step %d", f.step, last.step)
		}
		if len(v.facts) > 8 {
			t.Errorf("%d facts are too many to explain anything", len(v.facts))
		}
		if !slices.IsSortedFunc(v.facts, func(a, b fact) int { return a.step - b.step }) {
			t.Error("facts are not in order")
		}
		return shown(v)
	}
	return ""
}

// Each story has a near miss beside it: the same story with one difference. The numbers
// after the sentence are the steps of the violation's facts. The last one is the step at
// which the violation was found.
func TestChecker(t *testing.T) {
	frozen := func(worker string, from, to float64) [2][]fact {
		return [2][]fact{at(from, of(faultFreeze, worker)), at(to, of(faultThaw, worker))}
	}
	z := frozen("w1", 2, 15)
	stories := []struct {
		name  string
		facts []fact
		want  string
	}{
		{"an ordinary life: two join, one crashes, all is handled", then(
			begun,
			at(1, writes(ev(1, 0), ev(2, 1)), begins(1, "w1", 1, "0/1", ev(1, 0)), ends(1, "w1", "")),
			at(2, commits("w1", 1, "0/1", 0, 1, ev(1, 0)), begins(2, "w1", 1, "0/1", ev(2, 1)), ends(2, "w1", "failed")),
			at(3, of(workerStarts, "w2"), asks("w2"), opens(2, 2), of(runDrains, "w1"), on(runStopped, "w1", 1, ""), asks("w1"), activates(2, 2)),
			at(3, runs("w1", 2, "0/2"), runs("w2", 2, "1/2")),
			at(4, begins(3, "w2", 2, "1/2", ev(2, 1)), ends(3, "w2", ""), commits("w2", 2, "1/2", 1, 2, ev(2, 1))),
			at(4, writes(ev(3, 2)), begins(4, "w1", 2, "0/2", ev(3, 2))),
			at(5, of(workerGone, "w1")),
			at(15, of(workerExpired, "w1"), asks("w2"), opens(3, 1), on(runStopped, "w2", 2, ""), activates(3, 1), runs("w2", 3, "0/1")),
			at(16, begins(5, "w2", 3, "0/1", ev(3, 2)), ends(5, "w2", ""), commits("w2", 3, "0/1", 1, 3, ev(3, 2))),
			at(20, bare(healed)), at(30, bare(settled)), at(40, bare(ended)),
		), ""},

		// S1
		{"one owner: two workers handle one slot, each in its generation", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), taken(2),
			at(3, begins(2, "w2", 2, "0/1", ev(2, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 9 11]"},
		{"one owner: another slot, or another projection, may be handled", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), taken(2),
			at(3, begins(2, "w2", 2, "0/1", ev(2, 8)), begins(3, "w2", 2, "0/1", ev(2, 7)).in("other")),
		), ""},
		{"one owner: a batch is at all of its slots", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 6), ev(2, 7), ev(3, 7))), taken(2),
			at(3, begins(2, "w2", 2, "0/1", ev(4, 9), ev(5, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 9 11]"},
		{"one owner: a call that has ended is over", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7), ev(2, 7)), ends(1, "w1", "")), taken(2),
			at(3, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"one owner: the end of one call does not end another", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), begins(2, "w1", 1, "0/1", ev(1, 7)).in("other"), ends(2, "w1", "")), taken(2),
			at(3, begins(3, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 11 13]"},
		{"one owner: a worker that is gone handles nothing", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), of(workerGone, "w1")), taken(2),
			at(3, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"one owner: a worker must not get in its own way either", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), begins(2, "w1", 1, "0/1", ev(2, 7))),
		), "one-owner: w1 (generation 1) and w1 (generation 1) handled slot 7 of projection tx at the same time [1 3 5 6]"},
		{"one owner: not even when it has lost its lease", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), of(faultFreeze, "w1")), at(15, of(faultThaw, "w1"), begins(2, "w1", 1, "0/1", ev(2, 7))),
		), "one-owner: w1 (generation 1) and w1 (generation 1) handled slot 7 of projection tx at the same time [1 3 5 6 7 8]"},

		{"frozen past the lease", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), z[0], taken(10),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))), z[1], at(15.1, ends(1, "w1", "")),
		), ""},
		{"frozen past the lease: it still runs when it has woken", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), z[0], taken(10), z[1],
			at(15.1, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"frozen past the lease: but the other one began before it was over", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), z[0], taken(9),
			at(9.9, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 6 10 12]"},
		{"frozen past the lease: which was renewed by a request that was under way", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), z[0], at(3, asks("w1")), taken(11),
			at(12, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [5 6 7 11 13]"},
		{"frozen, and woken before the lease was over", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), of(faultFreeze, "w1")), at(9.9, of(faultThaw, "w1")), taken(10),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 6 7 11 13]"},
		{"frozen only after the lease was over", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(10.1, of(faultFreeze, "w1")), taken(11),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 6 10 12]"},
		{"frozen past the lease, in the middle between deciding to call and calling", then(
			begun, z[0], taken(10), at(14, begins(2, "w2", 2, "0/1", ev(1, 7))), z[1],
			at(15.0002, begins(1, "w1", 1, "0/1", ev(1, 7))),
		), ""},
		{"frozen past the lease in the middle, and again as soon as it woke", then(
			begun, z[0], taken(10), at(14, begins(2, "w2", 2, "0/1", ev(1, 7))), z[1],
			at(15.0001, of(faultFreeze, "w1")), at(18, of(faultThaw, "w1")),
			at(18.0002, begins(1, "w1", 1, "0/1", ev(1, 7))),
		), ""},
		{"frozen past the lease in the middle: but it has had time to look at its clock", then(
			begun, z[0], taken(10), at(14, begins(2, "w2", 2, "0/1", ev(1, 7))), z[1],
			at(15.1, begins(1, "w1", 1, "0/1", ev(1, 7))),
		), "one-owner: w2 (generation 2) and w1 (generation 1) handled slot 7 of projection tx at the same time [3 7 11 13]"},
		{"frozen past the lease in the middle: but the other one began before it was over", then(
			begun, z[0], taken(8), at(9, begins(2, "w2", 2, "0/1", ev(1, 7))), z[1],
			at(15, begins(1, "w1", 1, "0/1", ev(1, 7))),
		), "one-owner: w2 (generation 2) and w1 (generation 1) handled slot 7 of projection tx at the same time [3 7 11 13]"},
		{"all are frozen past their leases", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), bare(faultFreeze)), at(15, bare(faultThaw)), taken(16),
			at(17, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},

		{"cancelled in time, and deaf", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(8, cancels("w1", 1, "lost")), taken(10),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"cancelled in time, as it took too long to drain, and deaf", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(8, cancels("w1", 1, "")), taken(10),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"cancelled between deciding to call and calling", then(
			begun, at(8, cancels("w1", 1, "lost")), at(8.00005, begins(1, "w1", 1, "0/1", ev(1, 7))), taken(10),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"called after all had been cancelled", then(
			begun, at(8, cancels("w1", 1, "lost")), at(8.1, begins(1, "w1", 1, "0/1", ev(1, 7))), taken(10),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 6 10 12]"},
		{"cancelled in time, but the other one began before the lease was over", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(8, cancels("w1", 1, "lost")), taken(9),
			at(9.9, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 6 10 12]"},
		{"cancelled only after the lease was over", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(10.1, cancels("w1", 1, "lost")), taken(11),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 6 10 12]"},
		{"cancelled was another generation", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), cancels("w1", 0, "lost")), taken(11),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 10 12]"},
		{"cut off is no excuse: it has its own clock", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)), of(faultCutOff, "w1")), taken(11),
			at(11, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 10 12]"},
		{"given up, and removed for a session that it has ended itself", then(
			begun, at(1, cancels("w1", 1, ""), of(workerReturns, "w1"), fact{kind: sessionEnded, worker: "w1", from: 1}),
			at(3, fact{kind: workerExpired, worker: "w1", text: "w1", from: 1}),
		), "one-owner: w1 gave up while its handlers went on, and was removed before its lease was over because it had ended its own session [1 5 6 7 8]"},
		{"given up, and removed for a session that the server has ended", then(
			begun, at(1, cancels("w1", 1, ""), of(workerReturns, "w1"), fact{kind: sessionEnded, worker: "w1", from: 1, text: "the server is gone"}),
			at(3, fact{kind: workerExpired, worker: "w1", text: "w1", from: 1}),
		), ""},
		{"given up, and removed after its lease", then(
			begun, at(1, cancels("w1", 1, ""), of(workerReturns, "w1"), fact{kind: sessionEnded, worker: "w1", from: 1}),
			at(10, fact{kind: workerExpired, worker: "w1", text: "w1", from: 1}),
		), ""},
		{"a step of the database's clock that no worker has seen ends a lease a tenth early", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(2, bare(faultClockStep)), at(8, cancels("w1", 1, "lost")), taken(9),
			at(9.1, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), ""},
		{"a step of the database's clock must not end a lease any earlier", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(2, bare(faultClockStep)), at(8, cancels("w1", 1, "lost")), taken(8),
			at(8.9, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [1 5 7 11 13]"},
		{"a step of the database's clock before the lease was granted does nothing", then(
			at(0, bare(faultClockStep)), begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7))), at(8, cancels("w1", 1, "lost")), taken(9),
			at(9.1, begins(2, "w2", 2, "0/1", ev(1, 7))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 7 of projection tx at the same time [2 6 7 11 13]"},

		// S2
		{"nothing lost: a checkpoint passes what could be seen", then(
			begun, at(1, writes(ev(1, 0), ev(2, 1), ev(3, 0))), at(2, commits("w1", 1, "0/1", 0, 1, ev(1, 0))),
			at(3, commits("w1", 1, "0/1", 1, 3, ev(3, 0))),
		), "nothing-lost: event 2 of projection tx was skipped: the checkpoint of partition 0/1 moved from 1 to 3 without it [3 5 6 7]"},
		{"nothing lost: the very event that the checkpoint stands at", then(
			begun, at(1, writes(ev(1, 0))), at(2, commits("w1", 1, "0/1", 0, 1)),
		), "nothing-lost: event 1 of projection tx was skipped: the checkpoint of partition 0/1 moved from 0 to 1 without it [3 5 6]"},
		{"nothing lost: an event that came late, but in time", then(
			begun, at(1, writes(ev(5, 0)), writes(ev(2, 0)), writes(ev(3, 0))), at(2, commits("w1", 1, "0/1", 0, 2, ev(2, 0)), commits("w1", 1, "0/1", 2, 3)),
		), "nothing-lost: event 3 of projection tx was skipped: the checkpoint of partition 0/1 moved from 2 to 3 without it [3 7 8 9]"},
		{"nothing lost: what belongs to another partition, or is beyond, is not passed", then(
			begun, at(0, opens(2, 2), on(runStopped, "w1", 1, ""), activates(2, 2), runs("w1", 2, "0/2")),
			at(1, writes(ev(1, 0), ev(2, 1), ev(3, 2), ev(4, 4))), at(2, commits("w1", 2, "0/2", 0, 3, ev(1, 0), ev(3, 2))),
		), ""},
		{"nothing lost: a partition is handed over beyond what no worker has handled", then(
			begun, at(0, opens(2, 2), on(runStopped, "w1", 1, ""), activates(2, 2), runs("w1", 2, "0/2"), of(workerStarts, "w2"), runs("w2", 2, "1/2")),
			at(1, writes(ev(1, 0), ev(2, 1), ev(3, 0))), at(2, commits("w1", 2, "0/2", 0, 3, ev(1, 0), ev(3, 0))),
			at(3, of(workerGone, "w2"), opens(3, 1), on(runStopped, "w1", 2, ""), activates(3, 1), runs("w1", 3, "0/1")),
			at(4, writes(ev(4, 0)), commits("w1", 3, "0/1", 3, 4, ev(4, 0))),
		), "nothing-lost: event 2 of projection tx was skipped: w1 (generation 3) took over partition 0/1 at position 3 before any worker had handled the event [11 16 19]"},
		{"nothing lost: a partition is handed over with slots that are ahead", then(
			begun, at(0, opens(2, 2), on(runStopped, "w1", 1, ""), activates(2, 2), runs("w1", 2, "0/2"), of(workerStarts, "w2"), runs("w2", 2, "1/2")),
			at(1, writes(ev(1, 0), ev(2, 1), ev(3, 0))), at(2, commits("w1", 2, "0/2", 0, 3, ev(1, 0), ev(3, 0))),
			at(3, of(workerGone, "w2"), opens(3, 1), on(runStopped, "w1", 2, ""), activates(3, 1), runs("w1", 3, "0/1")),
			at(4, writes(ev(4, 0)), commits("w1", 3, "0/1", 0, 4, ev(2, 1), ev(4, 0))),
		), ""},
		{"nothing lost: a reader passes a gap, and it is filled", then(
			begun, at(1, writes(ev(2, 1))),
			at(1, gap(gapWaited, "w9", 7), gap(gapWaited, "w1", 1), gap(gapWaited, "w2", 1), gap(gapPassed, "w1", 2), gap(gapPassed, "w2", 2)),
			at(2, commits("w1", 1, "0/1", 0, 2, ev(2, 1)), commits("w1", 1, "0/1", 2, 3)),
			at(3, writes(ev(1, 0))),
		), "nothing-lost: event 1 of projection tx was skipped: the checkpoint of partition 0/1 moved from 0 to 2 before the event was visible [7 9 11 13]"},
		{"nothing lost: another partition may be beyond the gap", then(
			begun, at(0, opens(2, 2), on(runStopped, "w1", 1, ""), activates(2, 2), runs("w1", 2, "0/2")),
			at(1, writes(ev(2, 2))), at(2, commits("w1", 2, "0/2", 0, 2, ev(2, 2))), at(3, writes(ev(1, 1))),
		), ""},
		{"nothing lost: an earlier generation has passed the gap", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 4), opens(2, 2), on(runStopped, "w1", 1, ""), activates(2, 2), runs("w1", 2, "0/2")),
			at(2, commits("w1", 2, "0/2", 4, 5)), at(3, writes(ev(4, 1))),
		), "nothing-lost: event 4 of projection tx was skipped: the checkpoint of partition 0/1 moved from 0 to 4 before the event was visible [5 11]"},
		{"nothing lost: an earlier generation has passed the gap, and later ones were behind", then(
			begun, at(0, opens(2, 2), activates(2, 2)), at(1, commits("w1", 2, "0/2", 0, 4), commits("w2", 2, "1/2", 0, 9), commits("w1", 2, "0/2", 4, 9)),
			at(2, opens(3, 1), activates(3, 1)), at(2, commits("w1", 3, "0/1", 0, 5)),
			at(3, opens(4, 3), activates(4, 3)), at(3, commits("w1", 4, "0/3", 5, 6), commits("w2", 4, "1/3", 5, 6)), at(4, writes(ev(7, 2))),
		), "nothing-lost: event 7 of projection tx was skipped: the checkpoint of partition 0/2 moved from 4 to 9 before the event was visible [9 17]"},
		{"nothing lost: a projection that comes later has everything to handle", then(
			begun, at(1, writes(ev(1, 0), ev(2, 0))), at(2, commits("w1", 1, "0/1", 0, 2, ev(2, 0)).in("late")),
		), "nothing-lost: event 1 of projection late was skipped: the checkpoint of partition 0/1 moved from 0 to 2 without it [3 5 6]"},

		// Scopes. a0 is an order and a1 is none.
		{"within scope: what is out of it is not handled", then(
			begun, at(1, writes(ev(1, 0), ev(2, 1)), begins(1, "w1", 1, "0/1", ev(1, 0)).in("orders"), begins(2, "w1", 1, "0/1", ev(2, 1)).in("orders")),
		), "within-scope: w1 (generation 1) got event 2 (moved) of aggregate a1, which has the type parcel, in projection orders, whose scope is order [4 7]"},
		{"within scope: nor is it in a batch", then(
			begun, at(1, writes(ev(1, 0), ev(2, 1)), commits("w1", 1, "0/1", 0, 2, ev(1, 0), ev(2, 1)).in("orders")),
		), "within-scope: w1 (generation 1) got event 2 (moved) of aggregate a1, which has the type parcel, in projection orders, whose scope is order [4 6]"},
		{"within scope: what is out of it may be passed, seen or not", then(
			begun, at(1, writes(ev(1, 0), ev(2, 1)), commits("w1", 1, "0/1", 0, 5, ev(1, 0)).in("orders"), writes(ev(4, 1))),
		), ""},
		{"within scope: nothing else may, if it is seen", then(
			begun, at(1, writes(ev(1, 0), ev(2, 1)), commits("w1", 1, "0/1", 0, 2).in("orders")),
		), "nothing-lost: event 1 of projection orders was skipped: the checkpoint of partition 0/1 moved from 0 to 2 without it [3 5 6]"},
		{"within scope: nor if it is not seen yet", then(
			begun, at(1, writes(ev(1, 0), ev(2, 1)), commits("w1", 1, "0/1", 0, 5, ev(1, 0)).in("orders"), writes(ev(4, 0))),
		), "nothing-lost: event 4 of projection orders was skipped: the checkpoint of partition 0/1 moved from 0 to 5 before the event was visible [6 7]"},

		// Event types. 2 and 3 are moves, 4 is none.
		{"within scope: nor is an event of another type", then(
			begun, at(1, writes(ev(3, 0), ev(4, 0)), begins(3, "w1", 1, "0/1", ev(3, 0)).in("moves"), begins(4, "w1", 1, "0/1", ev(4, 0)).in("moves")),
		), "within-scope: w1 (generation 1) got event 4 (made) of aggregate a0, which has the type order, in projection moves, whose scope is /moved [4 7]"},
		{"within scope: nor one that only its aggregate is within", then(
			begun, at(1, writes(ev(4, 0)), commits("w1", 1, "0/1", 0, 4, ev(4, 0)).in("moved orders")),
		), "within-scope: w1 (generation 1) got event 4 (made) of aggregate a0, which has the type order, in projection moved orders, whose scope is order/moved [4 6]"},
		{"within scope: an event of another type may be passed, one of the type may not", then(
			begun, at(1, writes(ev(3, 0), ev(4, 0), ev(6, 1)), commits("w1", 1, "0/1", 0, 3, ev(3, 0)).in("moves"), commits("w1", 1, "0/1", 3, 5).in("moves"), commits("w1", 1, "0/1", 5, 6).in("moves")),
		), "nothing-lost: event 6 of projection moves was skipped: the checkpoint of partition 0/1 moved from 5 to 6 without it [3 5 7 8]"},

		// S3
		{"nothing twice: two commits hold one event", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 1, ev(1, 7)), on(runStopped, "w1", 1, "")), taken(2),
			at(3, commits("w2", 2, "0/1", 0, 2, ev(1, 7))),
		), "nothing-twice: event 1 of projection tx was committed by w1 (generation 1) and by w2 (generation 2) [3 5 10 12]"},
		{"nothing twice: one commit holds it twice", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 1, ev(1, 7), ev(1, 7))),
		), "nothing-twice: event 1 of projection tx was committed by w1 (generation 1) and by w1 (generation 1) [3 5]"},
		{"nothing twice: each projection has its own", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 1, ev(1, 7)), commits("w1", 1, "0/1", 0, 1, ev(1, 7)).in("plain")),
		), ""},
		{"nothing twice: a plain handler sees what is committed", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 1, ev(1, 7)).in("plain")), taken(2),
			at(3, begins(1, "w2", 2, "0/1", ev(1, 7)).in("plain")),
		), "nothing-twice: w2 (generation 2) handled event 1 of projection plain, which w1 (generation 1) had committed [5 7 9 11]"},
		{"nothing twice: a plain handler sees what was not committed", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain"), of(workerGone, "w1")), taken(2),
			at(3, begins(2, "w2", 2, "0/1", ev(1, 7)).in("plain")),
		), ""},
		{"nothing twice: a plain handler whose process was frozen just before the call", then(
			begun, z[0], taken(10), at(11, commits("w2", 2, "0/1", 0, 1, ev(1, 7)).in("plain")), z[1],
			at(15.0002, begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain")),
		), ""},
		{"nothing twice: but it has had time to look at its clock", then(
			begun, z[0], taken(10), at(11, commits("w2", 2, "0/1", 0, 1, ev(1, 7)).in("plain")), z[1],
			at(15.1, begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain")),
		), "nothing-twice: w1 (generation 1) handled event 1 of projection plain, which w2 (generation 2) had committed [1 9 11 13]"},
		{"nothing twice: but its lease was not over by the commit", then(
			begun, z[0], taken(8), at(9, commits("w2", 2, "0/1", 0, 1, ev(1, 7)).in("plain")), z[1],
			at(15, begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain")),
		), "nothing-twice: w1 (generation 1) handled event 1 of projection plain, which w2 (generation 2) had committed [1 5 9 11 12 13]"},
		{"nothing twice: but it has asked again since", then(
			begun, z[0], taken(10), at(11, commits("w2", 2, "0/1", 0, 1, ev(1, 7)).in("plain")), z[1],
			at(15, asks("w1"), begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain")),
		), "nothing-twice: w1 (generation 1) handled event 1 of projection plain, which w2 (generation 2) had committed [5 9 11 12 13 14]"},
		{"nothing twice: but it has committed it itself", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 1, ev(1, 7)).in("plain")), z[0], z[1],
			at(15, begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain")),
		), "nothing-twice: w1 (generation 1) handled event 1 of projection plain, which w1 (generation 1) had committed [1 3 5 6 7 8]"},
		{"nothing twice: but it has committed it itself, by a request that was under way when it froze", then(
			begun, z[0], at(11, commits("w1", 1, "0/1", 0, 1, ev(1, 7)).in("plain")), z[1],
			at(15, begins(1, "w1", 1, "0/1", ev(1, 7)).in("plain")),
		), "nothing-twice: w1 (generation 1) handled event 1 of projection plain, which w1 (generation 1) had committed [1 3 5 6 7 8]"},

		// S4
		{"in order: a commit comes after a later one of the aggregate", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 2, ev(2, 7)), commits("w1", 1, "0/1", 2, 3, ev(1, 7))),
		), "in-order: event 1 of aggregate a7 was committed after event 2 in projection tx [3 5 6]"},
		{"in order: within one commit", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 2, ev(2, 7), ev(1, 7))),
		), "in-order: event 1 of aggregate a7 was committed after event 2 in projection tx [3 5]"},
		{"in order: another aggregate may be behind", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 2, ev(2, 7)), commits("w1", 1, "0/1", 2, 3, event{position: 1, aggregate: "b", slot: 7})),
		), ""},
		{"in order: a handler goes back to before what is committed", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 2, ev(2, 7)), begins(1, "w1", 1, "0/1", ev(1, 7))),
		), "in-order: w1 (generation 1) handled event 1 of aggregate a7 in projection tx after the commit of event 2 [1 3 5 6]"},
		{"in order: a transactional handler goes back to what is committed", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 2, ev(2, 7)), begins(1, "w1", 1, "0/1", ev(2, 7))),
		), "in-order: w1 (generation 1) went back to event 2 of aggregate a7 in projection tx, which w1 (generation 1) had committed [1 3 5 6]"},
		{"in order: a handler goes on after what is committed", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 2, ev(2, 7)), begins(1, "w1", 1, "0/1", ev(3, 7))),
		), ""},
		{"in order: a handler whose process was frozen just before the call", then(
			begun, z[0], taken(10), at(11, commits("w2", 2, "0/1", 0, 2, ev(1, 7), ev(2, 7))), z[1],
			at(15, begins(1, "w1", 1, "0/1", ev(1, 7))),
		), ""},

		// S5
		{"only grow: opened twice", then(begun, at(1, opens(1, 2))),
			"only-grow: generation 1 was opened after generation 1 [2 5]"},
		{"only grow: activated twice", then(begun, at(1, activates(1, 1))),
			"only-grow: generation 1 was activated after generation 1 [3 5]"},
		{"only grow: activated when it was superseded", then(begun, at(1, opens(2, 1), opens(3, 1), activates(2, 1))),
			"only-grow: generation 2 was activated after generation 3 had been opened [6 7]"},
		{"only grow: a number may be left out", then(begun, at(1, opens(7, 1), activates(7, 1))), ""},
		{"only grow: a commit under a generation that is over", then(
			begun, taken(2), at(3, commits("w1", 1, "0/1", 0, 1, ev(1, 7))),
		), "only-grow: w1 (generation 1) committed while generation 2 was active [1 3 4 8 10]"},
		{"only grow: a commit while the next one waits", then(
			begun, at(2, opens(2, 2)), at(3, commits("w1", 1, "0/1", 0, 1, ev(1, 7))),
		), ""},
		{"only grow: a commit under a generation that is not active yet", then(
			begun, at(2, opens(2, 1)), at(3, commits("w1", 2, "0/1", 0, 1, ev(1, 7))),
		), "only-grow: w1 (generation 2) committed while generation 1 was active [1 3 4 6]"},
		{"only grow: a commit before any is active", then(
			at(0, opens(1, 1)), at(3, commits("w1", 1, "0/1", 0, 1, ev(1, 7))),
		), "only-grow: w1 (generation 1) committed while no generation was active [0 1]"},

		// S6
		{"agreement: another total than was decided", then(at(0, opens(1, 2), activates(1, 2), runs("w1", 1, "0/3"))),
			"agreement: w1 ran partition 0/3 of generation 1, which has 2 partitions [1 2]"},
		{"agreement: a partition that there is not", then(at(0, opens(1, 2), activates(1, 2), runs("w1", 1, "2/2"))),
			"agreement: w1 ran partition 2/2 of generation 1, which has 2 partitions [1 2]"},
		{"agreement: two workers run one partition", then(begun, at(1, on(runStopped, "w1", 1, ""), runs("w2", 1, "0/1"))),
			"agreement: w1 and w2 both ran partition 0/1 of generation 1 [3 4 6]"},
		{"agreement: never activated", then(at(0, opens(1, 1), runs("w1", 1, "0/1"))),
			"agreement: w1 ran generation 1, which was never activated [0 1]"},
		{"agreement: a handler under what the worker does not run", then(
			begun, at(1, begins(1, "w1", 1, "0/2", ev(1, 0))),
		), "agreement: w1 handled events of partition 0/2 of generation 1, which it does not run [3 4 5]"},
		{"agreement: a handler under a generation that the worker does not run yet", then(
			begun, at(1, opens(2, 1), activates(2, 1), begins(1, "w1", 2, "0/1", ev(1, 0))),
		), "agreement: w1 handled events of partition 0/1 of generation 2, which it does not run [4 6 7]"},
		{"agreement: a handler after all was reported to have stopped", then(
			begun, at(1, on(runStopped, "w1", 1, ""), begins(1, "w1", 1, "0/1", ev(1, 0))),
		), "agreement: w1 handled events of partition 0/1 of generation 1, which it does not run [3 6]"},
		{"agreement: an older generation that has stopped is not the one that runs", then(
			begun, at(1, opens(2, 1), activates(2, 1), runs("w1", 2, "0/1"), on(runStopped, "w1", 1, ""), begins(1, "w1", 2, "0/1", ev(1, 0))),
		), ""},
		{"agreement: an event of another partition is handled", then(
			at(0, opens(1, 2), activates(1, 2), runs("w1", 1, "0/2"), begins(1, "w1", 1, "0/2", ev(1, 2), ev(2, 3))),
		), "agreement: w1 (generation 1) got event 2 in partition 0/2, which does not own the event's slot, 3 [1 2 3]"},
		{"agreement: an event of another partition is committed", then(
			at(0, opens(1, 2), activates(1, 2), runs("w1", 1, "0/2"), commits("w1", 1, "0/2", 0, 2, ev(1, 2), ev(2, 3))),
		), "agreement: w1 (generation 1) got event 2 in partition 0/2, which does not own the event's slot, 3 [1 2 3]"},
		{"agreement: a commit for another total", then(begun, at(1, commits("w1", 1, "0/2", 0, 2))),
			"agreement: w1 (generation 1) committed for partition 0/2 of a generation with 1 partitions [3 4 5]"},
		{"agreement: a late start with a lease that runs on", then(
			at(0, asks("w1"), opens(1, 1), activates(1, 1)), at(5, opens(2, 1), activates(2, 1)), at(9.9, runs("w1", 1, "0/1")),
		), "agreement: w1 started generation 1 while generation 2 was active and its own lease was not over [0 2 4 5]"},
		{"agreement: a late start, and the lease is over", then(
			at(0, asks("w1"), opens(1, 1), activates(1, 1)), at(5, opens(2, 1), activates(2, 1)), at(10, runs("w1", 1, "0/1")),
		), ""},

		// Workers that have given up their handlers.
		{"one owner: a handler goes on that its worker has given up, cancelled in time", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 0))), at(2, cancels("w1", 1, "")), at(3, of(workerReturns, "w1")),
			taken(10), at(11, begins(2, "w2", 2, "0/1", ev(1, 0))),
		), ""},
		{"one owner: but the lease has to be waited for", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 0))), at(2, cancels("w1", 1, "")), at(3, of(workerReturns, "w1")),
			taken(9), at(9, begins(2, "w2", 2, "0/1", ev(1, 0))),
		), "one-owner: w1 (generation 1) and w2 (generation 2) handled slot 0 of projection tx at the same time [1 5 6 11 13]"},
		{"agreement: a worker that has given up calls no handler", then(
			begun, at(3, of(workerReturns, "w1"), begins(1, "w1", 1, "0/1", ev(1, 0))),
		), "agreement: w1 handled events of partition 0/1 of generation 1, which it does not run [3 6]"},
		{"recovers: a worker that has given up runs nothing", then(
			begun, at(1, of(workerStarts, "w2"), of(workerReturns, "w1")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: no worker ran partition 0/1 of generation 1 30s after the faults stopped [3 4 7 8]"},

		// Replica sets
		{"two sets count their generations apart", then(
			begun, secondSet(at(0, of(workerStarts, "v1"), asks("v1"), opens(1, 2), activates(1, 2), runs("v1", 1, "0/2"))),
			at(1, commits("w1", 1, "0/1", 0, 1)), secondSet(at(1, commits("v1", 1, "0/2", 0, 1).in("other"))),
		), ""},
		{"only grow: a projection moves, and its generation does not grow", then(
			begun, secondSet(at(0, of(workerStarts, "v1"), asks("v1"), opens(1, 1), activates(1, 1), runs("v1", 1, "0/1"))),
			at(1, commits("w1", 1, "0/1", 0, 1)), secondSet(at(2, commits("v1", 1, "0/1", 1, 2))),
		), "only-grow: projection tx moved to another replica set without a higher generation: v1 (generation 1) committed after w1 (generation 1) [8 10 11]"},
		{"one owner: two workers of two sets", then(
			begun, secondSet(at(0, of(workerStarts, "v1"), asks("v1"), opens(2, 1), activates(2, 1), runs("v1", 2, "0/1"))),
			at(1, begins(1, "w1", 1, "0/1", ev(1, 0))), secondSet(at(2, begins(2, "v1", 2, "0/1", ev(1, 0)))),
		), "one-owner: w1 (generation 1) and v1 (generation 2) handled slot 0 of projection tx at the same time [1 8 10 11]"},
		{"nothing twice: by a worker of another set", then(
			begun, secondSet(at(0, of(workerStarts, "v1"), asks("v1"), opens(2, 1), activates(2, 1), runs("v1", 2, "0/1"))),
			at(1, commits("w1", 1, "0/1", 0, 1, ev(1, 0))), secondSet(at(2, commits("v1", 2, "0/1", 0, 1, ev(1, 0)))),
		), "nothing-twice: event 1 of projection tx was committed by w1 (generation 1) and by v1 (generation 2) [8 10 11]"},
		{"recovers: each set for itself", then(
			begun, secondSet(at(0, of(workerStarts, "v1"), asks("v1"), opens(1, 1))), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: generation 1 was opened and was not active 30s after the faults stopped [7 8 9]"},

		// L1
		{"recovers: the newest generation waits", then(
			begun, at(1, opens(2, 2)), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: generation 2 was opened and was not active 30s after the faults stopped [3 5 6 7]"},
		{"recovers: there is no generation", then(
			at(0, of(workerStarts, "w1")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: there was no generation 30s after the faults stopped [1 2]"},
		{"recovers: no worker is able", then(
			begun, at(1, writes(ev(1, 0)), opens(2, 2), of(workerGone, "w1")), at(2, bare(healed)), at(32, bare(settled)), at(40, bare(ended)),
		), ""},
		{"recovers: who is left is frozen", then(
			begun, at(1, writes(ev(1, 0)), opens(2, 2), of(faultFreeze, "w1")), at(2, bare(healed)), at(32, bare(settled)), at(40, bare(ended)),
		), ""},
		{"recovers: no worker runs a partition", then(
			begun, at(1, of(workerStarts, "w2"), on(runStopped, "w1", 1, "")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: no worker ran partition 0/1 of generation 1 30s after the faults stopped [3 4 7 8]"},
		{"recovers: a worker runs it, but of the generation before", then(
			begun, at(1, opens(2, 1), activates(2, 1)), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: no worker ran partition 0/1 of generation 2 30s after the faults stopped [6 7 8]"},
		{"recovers: workers run both partitions", then(
			at(0, of(workerStarts, "w1"), opens(1, 2), activates(1, 2), runs("w1", 1, "0/2"), runs("w1", 1, "1/2")), at(2, bare(healed)), at(32, bare(settled)),
		), ""},
		{"recovers: a worker runs one of both", then(
			at(0, of(workerStarts, "w1"), opens(1, 2), activates(1, 2), runs("w1", 1, "0/2")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: no worker ran partition 1/2 of generation 1 30s after the faults stopped [2 4 5]"},
		{"recovers: a worker that is gone runs nothing", then(
			begun, at(1, of(workerStarts, "w2"), of(workerGone, "w1")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: no worker ran partition 0/1 of generation 1 30s after the faults stopped [3 4 7 8]"},
		{"recovers: a frozen worker runs a partition", then(
			begun, at(1, of(workerStarts, "w2"), of(faultFreeze, "w1")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: partition 0/1 of generation 1 still belonged to w1, which is frozen, 30s after the faults stopped [1 3 4 6 7 8]"},
		{"recovers: a worker that is cut off runs a partition", then(
			begun, at(1, of(workerStarts, "w2"), of(faultCutOff, "w1")), at(2, bare(healed)), at(32, bare(settled)),
		), "recovers: partition 0/1 of generation 1 still belonged to w1, which is cut off, 30s after the faults stopped [1 3 4 6 7 8]"},
		{"recovers: it was frozen and cut off, and is back", then(
			begun, at(1, of(workerStarts, "w2"), of(faultCutOff, "w1"), of(faultFreeze, "w1")), at(2, bare(healed)),
			at(3, of(faultThaw, "w1"), bare(faultMended)), at(32, bare(settled)),
		), ""},
		{"recovers: an event is not handled, and no checkpoint has passed it", then(
			begun, at(1, writes(ev(1, 0)), writes(ev(2, 7))), at(2, commits("w1", 1, "0/1", 0, 1, ev(1, 0)), bare(healed)), at(32, bare(settled)),
		), "recovers: event 2 of projection tx was not handled 30s after the faults stopped: no commit holds it, and no checkpoint has passed it [3 4 6 7 8 9]"},
		{"recovers: what becomes visible after the heal has time until the end", then(
			begun, at(2, bare(healed)), at(31, writes(ev(1, 0))), at(32, bare(settled)),
		), ""},
		{"recovers: but not longer", then(
			begun, at(2, bare(healed)), at(31, writes(ev(1, 0))), at(32, bare(settled)), at(42, bare(ended)),
		), "recovers: event 1 of projection tx was not handled 40s after the faults stopped: no commit holds it, and no checkpoint has passed it [3 4 5 6 8]"},
		{"recovers: a history that was broken off has not settled", then(
			at(0, writes(ev(1, 0))), begun, at(2, bare(healed)), at(3, bare(ended)),
		), ""},
		{"recovers: a projection that is not run in the end may be left behind", then(
			begun, at(1, writes(ev(1, 0)), commits("w1", 1, "0/1", 0, 1, ev(1, 0)), commits("w1", 1, "0/1", 0, 0).in("old")), at(2, bare(healed)), at(32, bare(settled)),
		), ""},

		// L2
		{"stays still: a generation out of nothing", then(
			begun, at(2, bare(healed)), at(32, bare(settled)), at(33, opens(2, 1)),
		), "stays-still: generation 2 was opened after everything had settled and nothing had happened since [2 3 6 7]"},
		{"stays still: a session that is too slow", then(
			begun, at(2, bare(healed)), at(32, bare(settled)), at(33, fact{kind: sessionForgone, worker: "w1", text: string(protocol.ForgoneSlow)}), at(34, opens(2, 1)),
		), ""},
		{"stays still: a session that was given up for something else", then(
			begun, at(2, bare(healed)), at(32, bare(settled)), at(33, fact{kind: sessionForgone, worker: "w1", text: string(protocol.ForgoneSuspended)}), at(34, opens(2, 1)),
		), "stays-still: generation 2 was opened after everything had settled and nothing had happened since [2 3 6 8]"},
		{"stays still: before that there may be one", then(
			begun, at(2, bare(healed), opens(2, 1), activates(2, 1), runs("w1", 2, "0/1")), at(32, bare(settled)), at(33, bare(ended)),
		), ""},
	}
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			if diff := cmp.Diff(s.want, judge(t, setup{}, s.facts)); diff != "" {
				t.Errorf("-want +got:\n%s\n%s", diff, told(s.facts))
			}
		})
	}
}

// timed has a lease of 10 s, a heartbeat each second, and 8 s to stop.
var timed = setup{
	timing: protocol.Timing{Heartbeat: time.Second, Lease: 10 * time.Second, Drain: 8 * time.Second},
	bounds: store.BoundsOf(10 * time.Second), latency: time.Millisecond,
}

// starts starts a worker with the settings of timed, except for its lease.
func starts(worker string, lease time.Duration) fact {
	f := of(workerStarts, worker)
	f.timing = timed.timing
	f.timing.Lease = lease
	return f
}

func joins(worker, incarnation string) fact {
	return fact{kind: memberJoins, worker: worker, text: incarnation, to: 2, length: 2 * time.Second}
}

func leaves(worker, incarnation string) fact {
	return fact{kind: memberLeaves, worker: worker, text: incarnation}
}

// lays opens a generation for these incarnations.
func lays(generation int64, who ...string) fact {
	f := opens(generation, len(who))
	f.layout = who
	return f
}

func (f fact) stopped(generation int64) fact {
	f.to = generation
	return f
}

func (f fact) wants(n, limit int64) fact {
	f.from, f.to = n, limit
	return f
}

// denied takes a privilege away for so many seconds.
func denied(seconds int) fact {
	return fact{kind: faultOther, length: time.Duration(seconds) * time.Second}
}

func (f fact) isDeaf() fact {
	f.deaf = true
	return f
}

// renews makes workers send requests, each second from one time to another.
func renews(from, to int, workers ...string) []fact {
	var facts []fact
	for t := from; t <= to; t++ {
		for _, w := range workers {
			facts = append(facts, at(float64(t), asks(w))...)
		}
	}
	return facts
}

// These are the rules about time and members. As in TestChecker, each story has a near
// miss.
func TestCheckerOfBounds(t *testing.T) {
	const lease = 10 * time.Second
	one := at(0, starts("w1", lease), asks("w1"), joins("w1", "w1"), lays(1, "w1"), activates(1, 1), runs("w1", 1, "0/1"))
	two := then(
		at(0, starts("w1", lease), starts("w2", lease), asks("w1"), joins("w1", "w1"), lays(1, "w1"), activates(1, 1)),
		at(2, asks("w2"), joins("w2", "w2")), at(4, lays(2, "w1", "w2"), activates(2, 2), runs("w1", 2, "0/2"), runs("w2", 2, "1/2")),
	)
	wide := at(0, starts("w1", lease), starts("w2", lease), asks("w1"), asks("w2"), joins("w1", "w1").wants(2, 4), joins("w2", "w2").wants(1, 4),
		lays(1, "w1", "w1", "w2"), activates(1, 3))
	hasty := starts("w1", lease)
	hasty.timing.Drain = 2 * time.Second
	short := at(0, hasty, asks("w1"), joins("w1", "w1"), lays(1, "w1"), activates(1, 1), runs("w1", 1, "0/1"))
	third := []fact{starts("w3", lease), asks("w3"), joins("w3", "w3")}
	for _, s := range []struct {
		name  string
		facts []fact
		want  string
	}{
		// On the lease.
		{"begun when four fifths are over", then(one, at(8.1, begins(1, "w1", 1, "0/1", ev(1, 0)))),
			"on-lease: w1 (generation 1) began to handle event 1, although its lease allows that only for 8s after the latest renewal, which was sent 8.1s before"},
		{"begun before", then(one, at(8, begins(1, "w1", 1, "0/1", ev(1, 0)))), ""},
		{"frozen between deciding and calling", then(one, at(7, of(faultFreeze, "w1")), at(9, of(faultThaw, "w1"), begins(1, "w1", 1, "0/1", ev(1, 0)))), ""},
		{"frozen in a call: the next one may not begin", then(one, at(7, begins(1, "w1", 1, "0/1", ev(1, 0)), of(faultFreeze, "w1")),
			at(9, of(faultThaw, "w1"), ends(1, "w1", ""), begins(2, "w1", 1, "0/1", ev(2, 0)))),
			"on-lease: w1 (generation 1) began to handle event 2, although its lease allows that only for 8s after the latest renewal, which was sent 9s before"},
		{"goes on when four fifths are over", then(one, at(7, begins(1, "w1", 1, "0/1", ev(1, 0))), at(8.1, bare(faultDeploy))),
			"on-lease: a handler of w1 (generation 1) that obeys cancellation still ran 100ms after four fifths of its lease were over"},
		{"goes on, as it is deaf", then(one, at(7, begins(1, "w1", 1, "0/1", ev(1, 0)).isDeaf()), at(8.1, bare(faultDeploy))), ""},

		// Handled again.
		{"a plain event is handled again", then(one, at(1, writes(ev(1, 0)), begins(1, "w1", 1, "0/1", ev(1, 0)).in("plain"), ends(1, "w1", ""), begins(2, "w1", 1, "0/1", ev(1, 0)).in("plain"))),
			"nothing-twice: w1 (generation 1) handled event 1 of projection plain again, although nothing had gone wrong since w1 (generation 1) handled it"},
		{"as its handler failed", then(one, at(1, writes(ev(1, 0)), begins(1, "w1", 1, "0/1", ev(1, 0)).in("plain"), ends(1, "w1", "failed"), begins(2, "w1", 1, "0/1", ev(1, 0)).in("plain"))), ""},
		{"as a reply was lost", then(one, at(1, writes(ev(1, 0)), begins(1, "w1", 1, "0/1", ev(1, 0)).in("plain"), ends(1, "w1", ""), of(faultLost, "w1"), begins(2, "w1", 1, "0/1", ev(1, 0)).in("plain"))), ""},
		{"as its process has just woken", then(one, at(1, writes(ev(1, 0)), of(faultFreeze, "w1")), at(2, of(faultThaw, "w1")), at(2.02, begins(1, "w1", 1, "0/1", ev(1, 0)).in("plain"), ends(1, "w1", ""), begins(2, "w1", 1, "0/1", ev(1, 0)).in("plain"))), ""},
		{"as a privilege was missing", then(one, at(1, writes(ev(1, 0)), denied(3)), at(2, begins(1, "w1", 1, "0/1", ev(1, 0)).in("plain"), ends(1, "w1", ""), begins(2, "w1", 1, "0/1", ev(1, 0)).in("plain"))), ""},
		{"though no privilege is missing any more", then(one, at(1, writes(ev(1, 0)), denied(3)), at(4.1, begins(1, "w1", 1, "0/1", ev(1, 0)).in("plain"), ends(1, "w1", ""), begins(2, "w1", 1, "0/1", ev(1, 0)).in("plain"))),
			"nothing-twice: w1 (generation 1) handled event 1 of projection plain again, although nothing had gone wrong since w1 (generation 1) handled it"},
		{"a transactional one may be", then(one, at(1, writes(ev(1, 0)), begins(1, "w1", 1, "0/1", ev(1, 0)), ends(1, "w1", ""), begins(2, "w1", 1, "0/1", ev(1, 0)))), ""},
		{"what has stopped starts again", then(one, at(1, on(runStopped, "w1", 1, ""), runs("w1", 1, "0/1"))),
			"agreement: w1 started generation 1 again after it had stopped it"},

		// Members.
		{"a leave without a generation", then(two, at(5, leaves("w2", "w2")), at(5.1, bare(faultDeploy))),
			"agreement: no generation was opened after this: w2 is no longer a member: w2"},
		{"a leave with one", then(two, at(5, leaves("w2", "w2"), lays(3, "w1")), at(5.1, bare(faultDeploy))), ""},
		{"the first worker waits", then(at(0, joins("w1", "w1")), at(1, lays(1, "w1"))), "agreement: no generation was opened after this: w1 joins, join window 2s: w1"},
		{"more than may run", then(two, at(5, third...), at(7, lays(3, "w1", "w2", "w3"))),
			"agreement: generation 3 gave w3 1 partition instead of 0, with 3 members and a limit of 2 partitions (0: none)"},
		{"one who stands by", then(two, at(5, third...), at(7, bare(faultDeploy))), ""},
		{"one who stands by displaces another", then(two, at(5, third...), at(7, lays(3, "w1", "w3"))),
			"agreement: generation 3 gave w2 0 partitions instead of 1, with 3 members and a limit of 2 partitions (0: none)"},
		{"one who stands by is left out", then(two, at(5, third...), at(6, leaves("w2", "w2"), lays(3, "w1"))),
			"agreement: generation 3 gave w3 0 partitions instead of 1, with 2 members and a limit of 2 partitions (0: none)"},
		{"one who stands by takes over", then(two, at(5, third...), at(6, leaves("w1", "w1"), lays(3, "w3", "w2"))), ""},
		{"a survivor gets another number", then(two, at(5, third...), at(6, leaves("w1", "w1"), lays(3, "w2", "w3"))),
			"agreement: generation 3 gave partitions 0 to w2, which had 1 and must keep its numbers"},
		{"its number is none any more", then(two, at(5, leaves("w1", "w1"), lays(3, "w2"))), ""},
		{"a stranger", then(two, at(5, leaves("w1", "w1"), joins("w1", "w1~2"), lays(3, "w1", "w2"))), `agreement: generation 3 gave partition 0 to "w1", which is no member`},
		{"two partitions for one", then(two, at(5, leaves("w1", "w1"), joins("w1", "w1~2"), lays(3, "w2", "w2"))), "agreement: generation 3 gave w2 2 partitions instead of 1, with 2 members and a limit of 2 partitions (0: none)"},
		{"a join does not wait for others", then(one, at(1, joins("w2", "w2")), at(2.9, lays(2, "w1", "w2"))),
			"stays-still: generation 2 was opened 1.9s after w2 had joined, before the join window of 2s was over"},
		{"a join has waited", then(one, at(1, joins("w2", "w2")), at(3, lays(2, "w1", "w2"))), ""},
		{"a join while another one drains", then(one, at(1, joins("w2", "w2")), at(3, lays(2, "w1", "w2"), joins("w3", "w3"), leaves("w2", "w2"), lays(3, "w1", "w3"))), ""},

		// Several partitions.
		{"each gets what it wants", wide, ""},
		{"the last gets what is left", then(wide, at(2, joins("w3", "w3").wants(3, 4)), at(4, lays(2, "w1", "w1", "w2", "w3"))), ""},
		{"the last gets more", then(wide, at(2, joins("w3", "w3").wants(3, 4)), at(4, lays(2, "w1", "w1", "w2", "w3", "w3"))),
			"agreement: generation 2 gave w3 2 partitions instead of 1, with 3 members and a limit of 4 partitions (0: none)"},
		{"who had less gets what has become free", then(wide, at(2, joins("w3", "w3").wants(3, 4)), at(4, lays(2, "w1", "w1", "w2", "w3"), leaves("w2", "w2"), lays(3, "w1", "w1", "w3", "w3"))), ""},
		{"a raised limit needs no join window", then(wide, at(2, starts("w3", lease), joins("w3", "w3").wants(3, 4)), at(4, lays(2, "w1", "w1", "w2", "w3"), activates(2, 4)),
			at(5, joins("w4", "w4").wants(1, 8), lays(3, "w1", "w1", "w2", "w3", "w3", "w3", "w4"))), ""},
		{"a survivor keeps one number of two", then(wide, at(5, leaves("w2", "w2"), joins("w3", "w3").wants(1, 4), lays(2, "w3", "w1", "w1"))),
			"agreement: generation 2 gave partitions 1-2 to w1, which had 0-1 and must keep its numbers"},
		{"a limit that has become lower takes the last", then(wide, at(5, joins("w3", "w3").wants(1, 1), lays(2, "w1"))), ""},
		{"a limit that has become lower leaves another", then(wide, at(5, joins("w3", "w3").wants(1, 1), lays(2, "w2"))),
			"agreement: generation 2 gave w1 0 partitions instead of 1, with 3 members and a limit of 1 partitions (0: none)"},
		{"another worker's partition", then(wide, at(0, runs("w2", 1, "1/3"))), "agreement: w2 ran partition 1/3 of generation 1, which belongs to w1"},
		{"one partition of two", then(wide, at(0, runs("w1", 1, "0/3")), at(0.3, bare(faultDeploy))), "agreement: w1 ran 1 of its 2 partitions of generation 1"},
		{"both", then(wide, at(0, runs("w1", 1, "0/3"), runs("w1", 1, "1/3")), at(0.3, bare(faultDeploy))), ""},
		{"one of them twice", then(wide, at(0, runs("w1", 1, "0/3"), runs("w1", 1, "0/3"))), "agreement: w1 and w1 both ran partition 0/3 of generation 1"},
		{"a handler in the second", then(wide, at(0, runs("w1", 1, "0/3"), runs("w1", 1, "1/3"), begins(1, "w1", 1, "1/3", ev(1, 1)))), ""},
		{"a handler in the third", then(wide, at(0, runs("w1", 1, "0/3"), runs("w1", 1, "1/3"), begins(1, "w1", 1, "2/3", ev(1, 2)))),
			"agreement: w1 handled events of partition 2/3 of generation 1, which it does not run"},
		{"frozen between deciding and calling, while another lane's handler returns", then(wide, at(0, runs("w1", 1, "0/3"), runs("w1", 1, "1/3"), runs("w2", 1, "2/3")),
			at(7, begins(1, "w1", 1, "0/3", ev(1, 0)), of(faultFreeze, "w1")), at(9, of(faultThaw, "w1"), ends(1, "w1", ""), begins(2, "w1", 1, "1/3", ev(2, 1)))), ""},

		// Workers with settings of their own.
		{"the other one's lease is longer", then(two, at(5, fact{kind: sessionAsks, worker: "w2", length: 2 * lease}), renews(5, 20, "w1"), at(20, begins(1, "w2", 2, "1/2", ev(1, 1)))), ""},
		{"the other one's lease is as short", then(two, renews(5, 5, "w2"), renews(5, 14, "w1"), at(14, begins(1, "w2", 2, "1/2", ev(1, 1)))),
			"on-lease: w2 (generation 2) began to handle event 1, although its lease allows that only for 8s after the latest renewal, which was sent 9s before"},
		{"a handler is cancelled early, by another worker's settings", then(short, at(1, on(runDrains, "w1", 1, "")), at(2, cancels("w1", 1, ""))), ""},
		{"a handler is cancelled too early by its own", then(short, at(1, on(runDrains, "w1", 1, "")), at(1.5, cancels("w1", 1, ""))),
			"bounded: w1 cancelled its handlers 500ms after it was asked to stop instead of after 1s"},
		{"asked to stop, and does not give up in its own time", then(short, at(1, of(runDrains, "w1")), renews(2, 4, "w1")),
			"bounded: w1 still ran generation 1 3s after it was asked to stop, and must give up after 2s"},

		// Sets.
		{"each set has its members", then(two, secondSet(at(5, starts("v1", lease), asks("v1"), joins("v1", "v1"), lays(1, "v1"), activates(1, 1)))), ""},
		{"in the other set, a leave without a generation", then(two, secondSet(at(5, starts("v1", lease), asks("v1"), joins("v1", "v1"), lays(1, "v1"), activates(1, 1), joins("v2", "v2"), leaves("v1", "v1"))), at(5.1, bare(faultDeploy))),
			"agreement: no generation was opened after this: v1 is no longer a member: v1"},

		// Bounds.
		{"a death is noticed late", then(two, at(5, of(workerGone, "w2")), renews(5, 17, "w1"), at(17, bare(faultDeploy))),
			"bounded: w2 was still a member 5s after its lease was over, although another worker had watched the clock for a lease"},
		{"a death, and the others have not watched for a lease", then(two, at(5, of(workerGone, "w2")), renews(5, 9, "w1"), at(9, of(faultFreeze, "w1"), of(faultThaw, "w1")), renews(10, 17, "w1")), ""},
		{"a crash, and no worker is able", then(two, at(5, of(faultFreeze, "w1"), of(faultFreeze, "w2")), at(40, bare(faultDeploy))), ""},
		{"asked to stop, and does not give up", then(one, renews(1, 12, "w1"), at(13, asks("w1"), of(runDrains, "w1")), renews(14, 22, "w1")),
			"bounded: w1 still ran generation 1 9s after it was asked to stop, and must give up after 8s"},
		{"asked to stop, and stops", then(one, renews(1, 12, "w1"), at(13, asks("w1"), of(runDrains, "w1")), renews(14, 20, "w1"), at(21, on(runStopped, "w1", 1, ""), asks("w1").stopped(1), leaves("w1", "w1")), at(22, bare(faultDeploy))), ""},
		{"a handler is not cancelled", then(one, at(1, begins(1, "w1", 1, "0/1", ev(1, 0)), of(runDrains, "w1")), renews(2, 6, "w1")),
			"bounded: a handler of w1 (generation 1) that obeys cancellation still ran 5s after it was asked to stop, and must be cancelled after half of 8s"},
		{"a handler is deaf", then(one, at(1, begins(1, "w1", 1, "0/1", ev(1, 0)).isDeaf(), of(runDrains, "w1")), renews(2, 6, "w1")), ""},
		{"a handler is cancelled, and goes on", then(one, at(1, begins(1, "w1", 1, "0/1", ev(1, 0)), of(runDrains, "w1")), renews(2, 5, "w1"), at(5, cancels("w1", 1, "")), at(5.5, bare(faultDeploy))),
			"bounded: a handler of w1 (generation 1) that obeys cancellation still ran 4.5s after it was asked to stop, and must be cancelled after half of 8s"},
		{"a handler is cancelled too early", then(one, at(1, on(runDrains, "w1", 1, "")), at(2, cancels("w1", 1, ""))),
			"bounded: w1 cancelled its handlers 1s after it was asked to stop instead of after 4s"},
		{"a handler is cancelled early, as the lease is over", then(one, at(1, on(runDrains, "w1", 1, "")), at(2, cancels("w1", 1, "lost"))), ""},
		{"a worker goes on though there is a newer generation", then(two, renews(5, 6, "w1", "w2"), at(6, leaves("w2", "w2"), lays(3, "w1")), renews(7, 8, "w1")),
			"bounded: w1 still ran generation 2 2s after generation 3 was opened"},
		{"a worker stops, as there is a newer generation", then(two, renews(5, 6, "w1", "w2"), at(6, leaves("w2", "w2"), lays(3, "w1")), at(7, of(runDrains, "w1")), renews(7, 8, "w1")), ""},
		{"a worker does not say that it has stopped", then(two, renews(5, 7, "w1", "w2"), at(7, on(runStopped, "w1", 2, "")), renews(8, 9, "w1", "w2")),
			"bounded: w1 held generation 2 for 2s without running it or reporting a stop"},
		{"a worker says so, and does not come back", then(two, renews(5, 7, "w1", "w2"), at(7, on(runStopped, "w1", 2, ""), asks("w1").stopped(2)), renews(8, 9, "w2")),
			"bounded: w1 stopped generation 2, which gives it a partition, and did not rejoin for 2s"},
		{"a worker says so, and does not come back, as its projection is another set's", then(two, renews(5, 7, "w1", "w2"), at(7, on(runStopped, "w1", 2, ""), asks("w1").stopped(2)), at(8, of(sessionTaken, "w1")), renews(8, 12, "w2")), ""},
		{"a worker says so, and does not come back, as a privilege is missing", then(two, renews(5, 7, "w1", "w2"), at(7, on(runStopped, "w1", 2, ""), asks("w1").stopped(2)), at(7, denied(1)), renews(8, 9, "w2")), ""},
		{"a worker says so, and comes back", then(two, renews(5, 7, "w1", "w2"), at(7, on(runStopped, "w1", 2, ""), asks("w1").stopped(2), leaves("w1", "w1"), joins("w1", "w1~2"), lays(3, "w1~2", "w2")), at(8, of(runDrains, "w2")), renews(8, 9, "w2")), ""},
		{"no worker activates", then(one, renews(1, 5, "w1"), at(5, joins("w2", "w2")), at(7, lays(2, "w1", "w2"), on(runStopped, "w1", 1, ""), asks("w1").stopped(1)), renews(8, 9, "w1")),
			"bounded: generation 2 waited for no worker, and was not active after 2s"},
		{"no worker admits a joiner", then(one, renews(1, 5, "w1"), at(5, joins("w2", "w2")), renews(6, 9, "w1")),
			"bounded: w2 joined and had no partition after 4s"},
	} {
		t.Run(s.name, func(t *testing.T) {
			got, _, _ := strings.Cut(judge(t, timed, then(s.facts)), " [")
			if diff := cmp.Diff(s.want, got); diff != "" {
				t.Errorf("-want +got:\n%s\n%s", diff, told(s.facts))
			}
		})
	}
}

// told lists the facts of a story.
func told(facts []fact) string {
	var b strings.Builder
	for _, f := range facts {
		fmt.Fprintf(&b, "%3d %6s %-3s %s\n", f.step, f.at, f.worker, f)
	}
	return b.String()
}

func TestSafetyAndLiveness(t *testing.T) {
	var safety []promise
	for _, p := range []promise{oneOwner, nothingLost, nothingTwice, inOrder, onlyGrow, agreement, withinScope, recovers, staysStill, onLease, bounded} {
		if p.safety() {
			safety = append(safety, p)
		}
	}
	if diff := cmp.Diff([]promise{oneOwner, nothingLost, nothingTwice, inOrder, onlyGrow, agreement, withinScope, onLease}, safety); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// BenchmarkChecker judges a world of four workers, three projections and ten
// thousand facts.
func BenchmarkChecker(b *testing.B) {
	h := history{setup: setup{transactional: map[string]bool{"tx": true}, final: []string{"tx", "plain", "batch"}}}
	story := [][]fact{begun}
	const total = 4
	workers := []string{"w1", "w2", "w3", "w4"}
	partitions := []string{"0/4", "1/4", "2/4", "3/4"}
	position, call := int64(0), 0
	last := map[string]int64{}
	for g := int64(2); g < 12; g++ {
		story = append(story, at(0, opens(g, total), activates(g, total)))
		for k, w := range workers {
			story = append(story, at(0, runs(w, g, partitions[k])))
		}
		for range 20 {
			var events []event
			for range 4 {
				position++
				events = append(events, ev(position, int(position*37)%200))
			}
			story = append(story, at(0, writes(events...)))
			for k, w := range workers {
				story = append(story, at(0, asks(w)))
				for _, p := range h.setup.final {
					var own []event
					for _, e := range events {
						if e.slot%total == k {
							call++
							story = append(story, at(0, begins(call, w, g, partitions[k], e).in(p), ends(call, w, "").in(p)))
							own = append(own, e)
						}
					}
					story = append(story, at(0, commits(w, g, partitions[k], last[w+p], position, own...).in(p)))
					last[w+p] = position
				}
			}
		}
		for _, w := range workers {
			story = append(story, at(0, on(runStopped, w, g, "")))
		}
	}
	h.facts = then(story...)
	if v := check(h); v != nil {
		b.Fatal(shown(v))
	}
	b.ReportAllocs()
	for b.Loop() {
		check(h)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(h.facts)), "ns/fact")
}

// A process that freezes again before it has done what it was about to do is frozen from
// the first freeze to the last thaw, but not over a time in which it could have checked its
// clock.
func TestFrozenFrom(t *testing.T) {
	freeze := func(from, to float64) freezing {
		return freezing{at(from, of(faultFreeze, "w1"))[0], at(to, of(faultThaw, "w1"))[0]}
	}
	begin := at(9.02, begins(1, "w1", 1, "0/1", ev(1, 0)))[0]
	for _, tt := range []struct {
		name       string
		freezes    []freezing
		start, end time.Duration // in milliseconds
		want       bool
	}{
		{"within one", []freezing{freeze(2, 9)}, 2500, 8900, true},
		{"it begins too late", []freezing{freeze(2, 9)}, 1500, 8900, false},
		{"the call comes long after it", []freezing{freeze(2, 8.9)}, 2500, 8500, false},
		{"within two, one right after the other", []freezing{freeze(1, 2), freeze(2.01, 9)}, 1500, 8900, true},
		{"within two, and awake in between", []freezing{freeze(1, 2), freeze(2.2, 9)}, 1500, 8900, false},
	} {
		w := &checkedWorker{freezes: tt.freezes}
		if got := w.frozenFrom(tt.start*time.Millisecond, tt.end*time.Millisecond, begin); got != tt.want {
			t.Errorf("%s: frozen is %t", tt.name, got)
		}
	}
}
