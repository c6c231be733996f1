package sim

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

func gap(k kind, worker string, to int64) fact { return fact{kind: k, worker: worker, to: to} }

// Each story has the counters that it must count. All others must be 0.
func TestCounters(t *testing.T) {
	refuses := on(refused, "w1", 1, "0/1")
	step := func(d time.Duration) fact { return fact{kind: faultClockStep, length: d} }
	lost := func(text string) fact { return fact{kind: faultLost, worker: "w1", text: text} }
	stories := []struct {
		name  string
		facts []fact
		want  map[counter]int
	}{
		{"nothing rare", then(begun, at(1, writes(ev(1, 0)), commits("w1", 1, "0/1", 0, 1, ev(1, 0)))), nil},

		{"refused in good time", then(begun, at(9, refuses)), map[counter]int{countRefused: 1}},
		{"refused after the lease", then(begun, at(11, refuses)), map[counter]int{countRefused: 1, countZombieRefused: 1}},
		{"refused while frozen", then(begun, at(5, of(faultFreeze, "w1"), refuses)), map[counter]int{countRefused: 1, countZombieRefused: 1, countFrozen: 1}},

		{"an even hand-over", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 5)), at(2, opens(2, 2), activates(2, 2)),
			at(3, commits("w1", 2, "0/2", 5, 9), commits("w2", 2, "1/2", 5, 9)), at(4, opens(3, 1), activates(3, 1)),
		), nil},
		{"an uneven hand-over, 2 to 1: one partition gets all", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 5)), at(2, opens(2, 2), activates(2, 2)),
			at(3, commits("w1", 2, "0/2", 5, 9)), at(4, opens(3, 1), activates(3, 1)),
		), map[counter]int{countUneven: 1, countAhead: 1}},
		{"an uneven hand-over, 2 to 3: each gets a part of both", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 5)), at(2, opens(2, 2), activates(2, 2)),
			at(3, commits("w1", 2, "0/2", 5, 9)), at(4, opens(3, 3), activates(3, 3)),
		), map[counter]int{countUneven: 1, countAhead: 1}},
		{"an uneven hand-over, 2 to 4: each gets a half of one", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 5)), at(2, opens(2, 2), activates(2, 2)),
			at(3, commits("w1", 2, "0/2", 5, 9)), at(4, opens(3, 4), activates(3, 4)),
		), map[counter]int{countUneven: 1}},

		{"a drain superseded", then(begun, at(1, opens(2, 2), opens(3, 1), activates(3, 1))), map[counter]int{countDrainSuperseded: 1}},
		{"frozen before COMMIT", then(begun, at(1, fact{kind: faultFreeze, worker: "w1", text: "before COMMIT"})), map[counter]int{countFrozenAtCommit: 1, countFrozen: 1}},
		{"lost on the network", then(begun, at(1, lost("request: commit"), lost("reply: commit"), lost("reply: find"))),
			map[counter]int{countLostRequest: 1, countLostReply: 2, countLostCommit: 1}},

		{"a gap is filled while two wait", then(
			begun, at(1, gap(gapWaited, "w1", 4), gap(gapWaited, "w2", 4)), at(2, writes(ev(4, 0)), writes(ev(5, 0))), at(3, gap(gapPassed, "w1", 6), gap(gapPassed, "w2", 6)),
		), map[counter]int{countGapFilled: 1}},
		{"a gap is dead", then(
			begun, at(1, gap(gapWaited, "w1", 4), fact{kind: rolledBack, events: []event{ev(4, 0)}}), at(3, gap(gapPassed, "w1", 6)),
		), map[counter]int{countGapDead: 1, countRolledBack: 1}},
		{"a gap is still waited for", then(begun, at(1, gap(gapWaited, "w1", 4))), nil},
		{"no reader waits when it is filled", then(begun, at(1, gap(gapWaited, "w1", 4), gap(gapPassed, "w1", 4), writes(ev(4, 0)), writes(ev(5, 0)))), map[counter]int{countGapDead: 1}},

		{"a worker replaces its own session", then(begun, at(1, of(sessionEnded, "w1"), of(sessionAttached, "w1"))), map[counter]int{countReplaced: 1}},
		{"a worker replaces it after a new generation", then(
			begun, at(1, of(sessionEnded, "w1")), at(2, opens(2, 2), activates(2, 2)), at(3, of(sessionAttached, "w1")),
		), nil},
		{"a session is missing", then(begun, at(1, of(workerGone, "w2"),
			fact{kind: workerExpired, worker: "w1", text: "w1", from: 1}, fact{kind: workerExpired, worker: "w2", text: "w2", from: 1},
		)), map[counter]int{countCrashSeen: 1, countMissingAlive: 1}},
		{"other programs are in the way", then(begun, at(1, bare(faultOther), fact{kind: faultOther, worker: "w1", text: ownBlocked}, fact{kind: faultOther, text: locksFaked})),
			map[counter]int{countBlocked: 1, countFaked: 1}},
		{"by their leases", then(begun, at(1, fact{kind: sessionForgone, worker: "w1", text: string(protocol.ForgoneSlow)},
			fact{kind: sessionForgone, worker: "w1", text: string(protocol.ForgoneSuspended)}, fact{kind: sessionForgone, worker: "w1", text: string(protocol.ForgoneUnavailable)})),
			map[counter]int{countForgoneSlow: 1, countForgoneSuspended: 1, countForgoneUnavailable: 1}},
		{"freezes again and again", then(begun, at(1, fact{kind: faultFreeze, worker: "w1", text: stutters}), at(1.5, of(faultThaw, "w1"))), map[counter]int{countFrozen: 1, countStutter: 1}},
		{"proofs are missing", then(begun, at(1, of(runSuspends, "w1"), of(proofAwaited, "w1"))), map[counter]int{countSuspended: 1, countProofAwaited: 1}},

		{"a session is ended at the server", then(begun, at(1, fact{kind: sessionEnded, worker: "w1", text: "the server is gone"})), map[counter]int{countOwnEnded: 1}},
		{"an answer is slow", then(begun, at(1, of(faultSlow, "w1"))), map[counter]int{countSlow: 1}},
		{"a checkpoint is shown", then(begun, at(1, of(checkpointShown, "w1"))), map[counter]int{countShown: 1}},
		{"a turn is missed", then(begun, at(1, of(turnMissed, "w1"))), map[counter]int{countTurnMissed: 1}},

		{"a gap is met by a reader of a scope", then(begun, at(1, gap(gapWaited, "w1", 4), gap(gapScoped, "w1", 4))), map[counter]int{countGapScoped: 1}},
		{"lanes are served in every way", then(begun, at(1,
			fact{kind: served, worker: "w1", text: servedShared}, fact{kind: served, worker: "w1", text: servedAhead}, fact{kind: served, worker: "w1", text: servedWhole},
			fact{kind: served, worker: "w1", text: servedOwn},
			fact{kind: served, worker: "w1", text: leftBehind}, fact{kind: served, worker: "w1", text: caughtUp},
		)), map[counter]int{countShared: 1, countReadAhead: 1, countServedWhole: 1, countServedOwn: 1, countLeftBehind: 1, countCaughtUp: 1}},

		{"a lease is lost, and the worker comes back", then(
			begun, at(8, cancels("w1", 1, "lost")), at(9, asks("w1"), opens(2, 1), activates(2, 1), runs("w1", 2, "0/1")),
			at(10, opens(3, 1), activates(3, 1), runs("w1", 3, "0/1")),
		), map[counter]int{countLeaseLost: 1, countBackAgain: 1}},
		{"handlers are cancelled for taking long", then(begun, at(8, cancels("w1", 1, ""))), nil},
		{"a worker is removed", then(begun, at(11, of(workerExpired, "w1"))), map[counter]int{countExpired: 1}},
		{"frozen past the lease", then(begun, at(5, of(faultFreeze, "w1")), at(11, of(faultThaw, "w1"))), map[counter]int{countFrozenPastLease: 1, countFrozen: 1}},
		{"frozen for good", then(begun, at(5, of(faultFreeze, "w1")), at(11, bare(healed))), map[counter]int{countFrozenPastLease: 1, countFrozen: 1}},
		{"frozen, crashed past the lease", then(begun, at(5, of(faultFreeze, "w1")), at(11, of(workerGone, "w1")), at(12, bare(healed))), map[counter]int{countFrozenPastLease: 1, countFrozen: 1}},
		{"frozen for a while", then(begun, at(5, of(faultFreeze, "w1")), at(9, of(faultThaw, "w1")), at(20, bare(healed))), map[counter]int{countFrozen: 1}},
		{"frozen after the lease", then(begun, at(10.1, of(faultFreeze, "w1")), at(11, of(faultThaw, "w1"))), map[counter]int{countFrozen: 1}},

		{"two join at once", then(begun, at(1, lays(2, "w1", "w2", "w3"))), map[counter]int{countJoinsFolded: 1}},
		{"one joins", then(begun, at(1, lays(2, "w1", "w2"))), nil},
		{"one joins, with two partitions", then(begun, at(1, lays(2, "w1", "w2", "w2"))), nil},
		{"one stands by", then(begun, at(1, joins("w1", "w1"), joins("w2", "w2"), joins("w3", "w3"), lays(2, "w1", "w2"))), map[counter]int{countStandby: 1}},
		{"a worker that has left, was removed, or is of another set does not stand by", then(
			begun, at(1, joins("w2", "w2"), leaves("w2", "w2"), joins("w3", "w3"), fact{kind: workerExpired, worker: "w3", text: "w3"}),
			secondSet(at(1, joins("v1", "v1"))), at(9, joins("w1", "w1"), lays(2, "w1")),
		), map[counter]int{countExpired: 1}},
		{"one runs three partitions", then(at(0, activates(1, 3), runs("w1", 1, "0/3"), runs("w1", 1, "1/3"), runs("w1", 1, "2/3"))), map[counter]int{countSeveral: 1}},
		{"one gets fewer than it takes", then(begun, at(1, joins("w1", "w1").wants(1, 3), joins("w2", "w2").wants(3, 3), lays(2, "w1", "w2", "w2"))), map[counter]int{countFewer: 1}},
		{"one gets as many as it takes", then(begun, at(1, joins("w1", "w1").wants(1, 3), joins("w2", "w2").wants(2, 3), lays(2, "w1", "w2", "w2"))), nil},

		{"a projection moves", then(
			begun, at(1, commits("w1", 1, "0/1", 0, 1)), secondSet(at(2, commits("v1", 2, "0/1", 1, 2))), at(3, commits("w1", 1, "0/1", 0, 1).in("other")),
		), map[counter]int{countMoved: 1}},
		{"a projection is taken", then(begun, at(1, of(sessionTaken, "w2"), fact{kind: sessionTaken, worker: "w2", text: "for the moment"})),
			map[counter]int{countTaken: 1, countTakenOver: 1}},
		{"leases differ", then(
			at(0, starts("w1", 10), asks("w1"), starts("w2", 20), asks("w2")), at(1, opens(1, 2), activates(1, 2)),
		), map[counter]int{countUnevenTiming: 1}},
		{"a rebuild takes the place of the live one, and gives it back", then(begun, at(1,
			fact{kind: promoted, projection: rebuilt, text: "p"}, fact{kind: promoted, projection: "p", text: rebuilt},
			fact{kind: promotionEnded, text: promoterCrashed}, fact{kind: promotionEnded, text: "promoted"}, fact{kind: holdOver, projection: "p"})),
			map[counter]int{countPromoted: 1, countPromotedBack: 1, countPromoterCrashed: 1, countHoldOver: 1}},
		{"each set joins for itself", then(begun, secondSet(at(0, asks("v1"), opens(1, 1), activates(1, 1))), at(1, opens(2, 2))), nil},

		{"handlers end in every way", then(
			begun,
			at(1, begins(1, "w1", 1, "0/1", ev(1, 0)), ends(1, "w1", "failed"), begins(2, "w1", 1, "0/1", ev(1, 0)), ends(2, "w1", "panicked")),
			at(2, begins(3, "w1", 1, "0/1", ev(1, 0)), begins(4, "w1", 1, "0/1", ev(1, 0)), begins(5, "w1", 1, "0/1", ev(1, 0))),
			at(3, cancels("w1", 1, ""), ends(3, "w1", "canceled")), at(4, ends(4, "w1", "")), at(5, of(workerGone, "w1")),
		), map[counter]int{countFailed: 1, countPanicked: 1, countCanceled: 1, countDeaf: 2}},

		{"handlers whose transactions are refused", then(
			begun, at(1, fact{kind: undone, worker: "w1", text: "at write"}, fact{kind: undone, worker: "w1", text: "at commit"}, fact{kind: undone, worker: "w1", text: "at commit"}),
		), map[counter]int{countSpoilt: 1, countViolated: 2}},
		{"a handler outlives its worker", then(
			begun, at(1, begins(1, "w1", 1, "0/1", ev(1, 0)), begins(2, "w1", 1, "0/1", ev(2, 0)), ends(2, "w1", "")),
			at(2, of(workerReturns, "w1")), at(3, ends(1, "w1", "")),
		), map[counter]int{countOutlived: 1}},
		{"workers end", then(begun, at(1,
			fact{kind: workerGone, worker: "w2", text: isFaulty}, fact{kind: workerGone, worker: "w3", text: isDenied},
			fact{kind: workerGone, worker: "w4", text: isBroken}, fact{kind: workerGone, worker: "w5", text: "left"},
		)), map[counter]int{countAtFault: 1, countDenied: 1, countBroken: 1}},

		{"faults", then(begun, at(1, of(faultCrash, "w1"), of(faultLeave, "w1"), bare(faultDeploy), of(faultCutOff, "w1"), bare(faultDatabaseDown), step(time.Second), step(-time.Second))),
			map[counter]int{countCrash: 1, countLeave: 1, countDeploy: 1, countCutOff: 1, countDatabaseDown: 1, countClockForward: 1, countClockBack: 1}},
	}
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			got := map[counter]int{}
			for i, n := range countRare(history{facts: s.facts}) {
				if n != 0 {
					got[counter(i)] = n
				}
			}
			want := map[counter]int{}
			for i, n := range s.want {
				want[i] = n
			}
			words := cmp.Transformer("words", func(c counter) string { return counterWords[c] })
			if diff := cmp.Diff(want, got, words); diff != "" {
				t.Errorf("-want +got:\n%s\n%s", diff, told(s.facts))
			}
		})
	}
}

func TestCountersTable(t *testing.T) {
	var c, o counters
	o[countRefused], o[countCrash] = 3, 1
	c.add(o)
	c.add(o)
	if n := c[countRefused]; n != 6 {
		t.Errorf("3 and 3 are %d", n)
	}
	if never := c.never(); len(never) != int(counterCount)-2 || never[0] != counterWords[countZombieRefused] {
		t.Errorf("never: %q", never)
	}
	if want := "        6  a commit was refused because another generation had taken over\n"; !strings.HasPrefix(c.String(), want) {
		t.Errorf("the table begins otherwise than %q:\n%s", want, c)
	}
	for i, words := range counterWords {
		if words == "" {
			t.Errorf("counter %d has no words", i)
		}
	}
}
