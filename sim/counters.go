package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A counter counts a rare event. A batch of seeds without it has not tested what the
// library does about it.
type counter int

const (
	// Fences and hand-overs.
	countRefused counter = iota
	countZombieRefused
	countUneven
	countAhead
	countDrainSuperseded
	countFrozenAtCommit
	countLostCommit
	countLateCommit
	// Gaps.
	countGapFilled
	countGapDead
	countRolledBack
	countTurnMissed
	countGapScoped
	countPositionFirst
	countSavepoint
	countCached
	countStandbyMet
	countStranger
	// Reading for several lanes at once.
	countShared
	countReadAhead
	countServedWhole
	countServedOwn
	countLeftBehind
	countCaughtUp
	countPageShort
	// Leases and members.
	countLeaseLost
	countExpired
	countBackAgain
	countFrozenPastLease
	countJoinsFolded
	countStandby
	countShown
	countSeveral
	countFewer
	countVacated
	countPlaceTaken
	countPlaceLapsed
	countPlaceForNewcomer
	countPlaceInAChange
	// Liveness connections.
	countCrashSeen
	countMissingAlive
	countReplaced
	countSuspended
	countProofAwaited
	countForgoneSlow
	countForgoneSuspended
	countForgoneUnavailable
	// Orders.
	countPaused
	countRewound
	countForwarded
	countDrained
	// Versions of a projection.
	countReplay
	countMarks
	countPromoted
	countPromotedBack
	countPromoterCrashed
	countHoldOver
	// Replica sets, and programs that differ.
	countMoved
	countTaken
	countTakenOver
	countUnevenTiming
	// Handlers.
	countFailed
	countPanicked
	countCanceled
	countDeaf
	countTimedOut
	countKilled
	countForGood
	countInParts
	countEnded
	countSpoilt
	countViolated
	countAtFault
	countUnreadable
	countReadAgain
	countOutlived
	countLeftIdle
	countLaneMissed
	// Starts, and notifications of events.
	countStartsNow
	countStartsBelow
	countStartsAfter
	countHintsCome
	countHintsGone
	// Parked events.
	countParked
	countParkedBehind
	countRetried
	countRetryFailed
	countDiscarded
	countParkedFull
	countParkOrdered
	countOrderMissed
	countOrderLocated
	countParkedHandedOver
	countParkRefused
	countZombieParkRefused
	countLostPark
	countLatePark
	// Other faults.
	countCrash
	countLeave
	countDeploy
	countCutOff
	countDatabaseDown
	countClockForward
	countClockBack
	countLostRequest
	countLostReply
	countSlow
	countFrozen
	countOwnEnded
	countBlocked
	countFaked
	countStutter
	countDenied
	countBroken

	counterCount
)

// counterWords describe the counters for readers of a test's output.
var counterWords = [counterCount]string{
	countRefused:         "a commit was refused because another generation had taken over",
	countZombieRefused:   "such a commit came from a worker whose lease was over",
	countUneven:          "a hand-over began with the partitions of a projection at different positions",
	countAhead:           "a hand-over gave a partition marks for aggregates ahead of its position",
	countDrainSuperseded: "the members changed while a generation still drained",
	countFrozenAtCommit:  "a process froze between its checkpoint write and COMMIT",
	countLostCommit:      "the reply to a COMMIT was lost",
	countLateCommit:      "a COMMIT took effect after its sender had given up",

	countGapFilled:     "a reader waited for a missing position, and the event came",
	countGapDead:       "a reader waited for a missing position that stayed empty",
	countRolledBack:    "an append was rolled back",
	countTurnMissed:    "a read timed out while it waited for another read",
	countPositionFirst: "an append took its positions long before it inserted its events",
	countSavepoint:     "an append went back to a savepoint, and stayed open",
	countCached:        "the sequence of positions began to cache numbers",
	countStandbyMet:    "a connection led to a standby",
	countStranger:      "a worker that reads another table was refused",
	countGapScoped:     "a reader of some aggregate types waited for a missing position",

	countShared:      "a projection was served from a page that was read for another one",
	countReadAhead:   "a projection was served from a page that was read ahead",
	countServedWhole: "a projection of some aggregate types was served from a read of all events",
	countServedOwn:   "a process read only the events of its own slots",
	countLeftBehind:  "a slow projection lost its page and then read for itself",
	countPageShort:   "a program's own event store returned less than there was",
	countCaughtUp:    "a projection that read for itself caught up and shared reads again",

	countLeaseLost:        "a worker noticed that its lease was over, and cancelled its handlers",
	countExpired:          "workers removed a worker whose lease was over",
	countBackAgain:        "a worker that had lost its lease or been removed ran a partition again",
	countFrozenPastLease:  "a process was frozen until its lease was over",
	countJoinsFolded:      "several workers joined in one generation",
	countShown:            "a lane started from the checkpoint that came with its assignment",
	countStandby:          "a worker had to stand by because there were enough others",
	countSeveral:          "a worker ran several partitions",
	countFewer:            "a worker got fewer partitions than it was ready to take",
	countVacated:          "a worker left its place vacant",
	countPlaceTaken:       "a vacant place was taken",
	countPlaceLapsed:      "a vacant place lapsed",
	countPlaceForNewcomer: "a worker that had just joined took a vacant place",
	countPlaceInAChange:   "a vacant place was taken while a generation drained",

	countCrashSeen:          "a crash was noticed by the missing liveness connection of the worker",
	countMissingAlive:       "a live worker was removed because its liveness connection was missing",
	countReplaced:           "a worker replaced its liveness connection without a new generation",
	countSuspended:          "handlers were cancelled because their worker had no proof of liveness",
	countForgoneSlow:        "a worker fell back to its lease because its liveness connection was slow",
	countForgoneSuspended:   "a worker fell back to its lease because its handlers were cancelled too often",
	countForgoneUnavailable: "a worker fell back to its lease because it could get no liveness connection",
	countProofAwaited:       "a handler call waited for a proof of liveness",

	countPaused:    "a projection was paused while others of its replica set ran on",
	countRewound:   "a projection was rewound and handled events again",
	countForwarded: "a projection was moved forward past events that it had not handled",
	countDrained:   "an operator took a worker's partitions away",

	countReplay:          "a rebuild handled an event as a replay",
	countMarks:           "a rebuild reached the stopped live projection at different positions on different slots",
	countPromoted:        "a rebuild took the place of the live projection",
	countPromotedBack:    "the replaced projection took its place back",
	countPromoterCrashed: "a program crashed while it promoted a projection",
	countHoldOver:        "a hold ended by itself",

	countMoved:        "a projection moved to another replica set",
	countTaken:        "a replica set was refused a projection that another one ran",
	countTakenOver:    "a replica set waited for a worker of another one that seemed dead",
	countUnevenTiming: "workers with different timing settings were members at once",

	countFailed:      "a handler failed",
	countPanicked:    "a handler panicked",
	countCanceled:    "a handler was cancelled and returned",
	countDeaf:        "a handler was cancelled and went on",
	countTimedOut:    "a statement of a handler exceeded a time limit of the server",
	countKilled:      "a handler ended its own connection",
	countForGood:     "a handler returned a permanent error",
	countInParts:     "a handler of several events failed outside of a transaction",
	countEnded:       "a handler ended its transaction, and the checkpoint did not move",
	countSpoilt:      "a handler ignored the error of a statement, and its transaction could not commit",
	countViolated:    "the server refused a handler's writes at COMMIT",
	countAtFault:     "a handler's failure ended its worker",
	countUnreadable:  "an event could not be read",
	countReadAgain:   "an unreadable event could be read on a later attempt",
	countOutlived:    "a handler returned after its worker had given up",
	countLeftIdle:    "a handler left its transaction idle until the server ended it",
	countHintsCome:   "a worker received event notifications",
	countHintsGone:   "a worker's event notifications stopped",
	countStartsNow:   "a new projection started now, after existing events",
	countStartsBelow: "a new projection started now below a visible event because another one was in flight",
	countStartsAfter: "a new projection started above a position",

	countLaneMissed: "a lane ended unreported, and its worker noticed",

	countParked:            "an event was parked",
	countParkedBehind:      "an event was parked behind an earlier one of its aggregate",
	countRetried:           "a parked event was retried and handled",
	countRetryFailed:       "a parked event was retried and failed again",
	countDiscarded:         "a parked event was discarded",
	countParkedFull:        "a partition waited because too many events were parked",
	countParkOrdered:       "an event was parked by order",
	countOrderMissed:       "an order to park an event was dropped because the partition stood elsewhere",
	countOrderLocated:      "a partition found that an order to park named another partition's event",
	countParkedHandedOver:  "a hand-over gave partitions with parked events to others",
	countParkRefused:       "a park was refused because the worker's generation was over",
	countZombieParkRefused: "such a park came from a worker whose lease was over",
	countLostPark:          "the reply to a park was lost",
	countLatePark:          "a park took effect after its sender had given up",

	countCrash:        "a worker crashed",
	countLeave:        "a worker was asked to stop",
	countDeploy:       "a new version was rolled out",
	countCutOff:       "a worker was cut off from the database",
	countDatabaseDown: "the database was restarted",
	countClockForward: "the database's clock jumped forward",
	countClockBack:    "the database's clock jumped back",
	countLostRequest:  "a request to the database was lost",
	countLostReply:    "a reply of the database was lost",
	countSlow:         "a request or a reply was slow",
	countFrozen:       "a process froze",
	countOwnEnded:     "the server ended a worker's liveness connection",
	countBlocked:      "a worker could get no liveness connection for a while",
	countFaked:        "another program took the locks of all liveness connections",
	countStutter:      "a process froze again and again",
	countDenied:       "a worker ended because coordination lacked a privilege",
	countBroken:       "a worker ended because a projection lacked a privilege",
}

// counters are how often each rare event has happened.
type counters [counterCount]int

func (c *counters) add(o counters) {
	for i, n := range o {
		c[i] += n
	}
}

// never returns the descriptions of the events that have not happened.
func (c counters) never() []string {
	var words []string
	for i, n := range c {
		if n == 0 {
			words = append(words, counterWords[i])
		}
	}
	return words
}

// String returns a table with a line for each counter.
func (c counters) String() string {
	var b strings.Builder
	for i, n := range c {
		fmt.Fprintf(&b, "%9d  %s\n", n, counterWords[i])
	}
	return b.String()
}

// A tally counts the rare events of one history.
type tally struct {
	counters
	crew
	transactional     map[string]bool     // projections, as in setup
	joined            map[string]fact     // members, by incarnation
	opened, activated map[int]fact        // by replica set
	sets              map[string]int      // by projection: the set that has committed last
	passed            map[string]*passed  // by projection
	calls             map[callKey]fact    // handlers that have not returned
	waits             map[string]fact     // by worker: the gap at which it waits
	filled            map[int64]bool      // positions that readers waited for and that came
	dead              map[int64]bool      // positions that readers waited for and that stayed empty
	visible           map[int64]bool      // positions
	parked            map[string]int      // the number of parked events, by projection
	lostOwn           map[string]int64    // by worker without its liveness connection: the generation when it was lost
	away              map[string]struct{} // workers that have lost their lease and have run nothing since
}

// countRare counts the rare events of a history.
func countRare(h history) counters {
	t := tally{
		crew: newCrew(h.setup.drift), transactional: h.setup.transactional, joined: map[string]fact{}, opened: map[int]fact{}, activated: map[int]fact{}, sets: map[string]int{},
		passed: map[string]*passed{}, calls: map[callKey]fact{}, waits: map[string]fact{},
		filled: map[int64]bool{}, dead: map[int64]bool{}, visible: map[int64]bool{}, away: map[string]struct{}{}, lostOwn: map[string]int64{}, parked: map[string]int{},
	}
	for _, f := range h.facts {
		t.observe(f)
	}
	for _, w := range t.all {
		if n := len(h.facts); !w.gone {
			t.overslept(w, h.facts[n-1])
		}
	}
	t.counters[countGapFilled], t.counters[countGapDead] = len(t.filled), len(t.dead)
	return t.counters
}

func (t *tally) observe(f fact) {
	switch f.text {
	case positionsFirst:
		t.counters[countPositionFirst]++
	case toSavepoint:
		t.counters[countSavepoint]++
	}
	if f.kind == faultThaw || f.kind == workerGone {
		t.each(f.worker, func(w *checkedWorker) { t.overslept(w, f) })
	}
	t.crew.observe(f)
	switch f.kind {
	case workerGone:
		switch f.text {
		case isFaulty:
			t.counters[countAtFault]++
		case isDenied:
			t.counters[countDenied]++
		case isBroken:
			t.counters[countBroken]++
		case isStranger:
			t.counters[countStranger]++
		}
		for key, begin := range t.calls {
			if key.worker == f.worker {
				t.returns(key, begin, "")
			}
		}
	case faultOther:
		switch f.text {
		case numbersCached:
			t.counters[countCached]++
		case toStandby:
			t.counters[countStandbyMet]++
		case ownBlocked:
			t.counters[countBlocked]++
		case locksFaked:
			t.counters[countFaked]++
		}
	case promoted:
		if t.counters[countPromoted]++; f.text == rebuilt {
			t.counters[countPromoted]--
			t.counters[countPromotedBack]++
		}
	case promotionEnded:
		if f.text == promoterCrashed {
			t.counters[countPromoterCrashed]++
		}
	case holdOver:
		t.counters[countHoldOver]++
	case handlerBegins:
		if f.replay {
			t.counters[countReplay]++
		}
		t.calls[callKey{f.worker, f.call}] = f
	case handlerEnds:
		t.handlerEnds(f)
	case runCancels:
		if f.text == "lost" {
			t.counters[countLeaseLost]++
			t.away[f.worker] = struct{}{}
		}
	case memberJoins:
		t.joined[f.text] = f
	case memberLeaves:
		delete(t.joined, f.text)
	case placeVacated:
		t.counters[countVacated]++
	case placeLapsed:
		delete(t.joined, f.text)
		t.counters[countPlaceLapsed]++
	case placeTaken:
		delete(t.joined, f.layout[0])
		t.counters[countPlaceTaken]++
		if t.joined[f.layout[1]].at == f.at {
			t.counters[countPlaceForNewcomer]++
		}
		if t.opened[f.set].generation > t.activated[f.set].generation {
			t.counters[countPlaceInAChange]++
		}
	case workerExpired:
		delete(t.joined, f.text)
		switch {
		case f.from == 0:
			t.counters[countExpired]++
		case t.worker(f.worker).gone:
			t.counters[countCrashSeen]++
		default:
			t.counters[countMissingAlive]++
		}
		t.away[f.worker] = struct{}{}
	case sessionEnded:
		if f.text != "" {
			t.counters[countOwnEnded]++
		}
		t.lostOwn[f.worker] = t.opened[f.set].generation
	case sessionAttached:
		if g, lost := t.lostOwn[f.worker]; lost && g == t.opened[f.set].generation {
			t.counters[countReplaced]++
		}
		delete(t.lostOwn, f.worker)
	case sessionForgone:
		if n, ok := forgone[f.text]; ok {
			t.counters[n]++
		}
	case runSuspends:
		t.counters[countSuspended]++
	case checkpointShown:
		t.counters[countShown]++
	case proofAwaited:
		t.counters[countProofAwaited]++
	case runStarts:
		if len(t.worker(f.worker).runs) == 2 {
			t.counters[countSeveral]++
		}
		if _, was := t.away[f.worker]; was {
			t.counters[countBackAgain]++
			delete(t.away, f.worker)
		}
	case groupOpened:
		t.groupOpened(f)
	case groupActivated:
		t.groupActivated(f)
	case sessionTaken:
		if f.text == "" {
			t.counters[countTaken]++
		} else {
			t.counters[countTakenOver]++
		}
	case committed:
		if set, known := t.sets[f.projection]; known && set != f.set {
			t.counters[countMoved]++
		}
		t.sets[f.projection] = f.set
		if len(f.ahead) > 0 {
			t.counters[countMarks]++
		}
		t.projection(f.projection).commit(f)
	case ordered:
		t.isOrdered(f)
	case eventsParked:
		t.parked[f.projection] += len(f.events)
		switch f.text {
		case parkedBehind:
			t.counters[countParkedBehind]++
		case parkedByOrder:
			t.counters[countParkOrdered]++
		default:
			t.counters[countParked]++
		}
		t.projection(f.projection).commit(f)
	case parkedRetried:
		t.parked[f.projection]--
		t.counters[countRetried]++
	case parkedDiscarded:
		t.parked[f.projection]--
		t.counters[countDiscarded]++
	case orderLapsed:
		t.counters[countOrderMissed]++
	case orderLocated:
		t.counters[countOrderLocated]++
	case retryFailed:
		t.counters[countRetryFailed]++
	case projectionStarts:
		t.starts(f)
	case hintsCome:
		t.counters[countHintsCome]++
	case hintsGone:
		t.counters[countHintsGone]++
	case leftIdle:
		t.counters[countLeftIdle]++
	case laneMissed:
		t.counters[countLaneMissed]++
	case unreadable:
		t.counters[countUnreadable]++
	case readAgain:
		t.counters[countReadAgain]++
	case parkedFull:
		t.counters[countParkedFull]++
	case undone:
		switch f.text {
		case transactionEnded:
			t.counters[countEnded]++
		case "at write":
			t.counters[countSpoilt]++
		default:
			t.counters[countViolated]++
		}
	case refused:
		t.counters[countRefused]++
		if f.text == "park" {
			t.counters[countParkRefused]++
		}
		if w := t.worker(f.worker); w.frozen() || t.overBy(w, f.at) {
			if f.text == "park" {
				t.counters[countZombieParkRefused]++
			}
			t.counters[countZombieRefused]++
		}
	case gapWaited, gapPassed, appended:
		t.gap(f)
	case turnMissed:
		t.counters[countTurnMissed]++
	case gapScoped:
		t.counters[countGapScoped]++
	case served:
		t.counters[servings[f.text]]++
	case rolledBack:
		t.counters[countRolledBack]++
	case faultSlow:
		t.counters[countSlow]++
	case faultFreeze:
		t.counters[countFrozen]++
		if f.text == stutters {
			t.counters[countStutter]++
		}
		if strings.Contains(f.text, "COMMIT") {
			t.counters[countFrozenAtCommit]++
		}
	case faultClockStep:
		if f.length > 0 {
			t.counters[countClockForward]++
		} else {
			t.counters[countClockBack]++
		}
	case faultLost:
		t.lost(f)
	case faultCrash:
		t.counters[countCrash]++
	case faultLeave:
		t.counters[countLeave]++
	case faultDeploy:
		t.counters[countDeploy]++
	case faultCutOff:
		t.counters[countCutOff]++
	case faultDatabaseDown:
		t.counters[countDatabaseDown]++
	}
}

func (t *tally) projection(name string) *passed {
	p := t.passed[name]
	if p == nil {
		p = &passed{}
		t.passed[name] = p
	}
	return p
}

// overslept counts a freeze that ends with f and in which the worker's lease has ended.
func (t *tally) overslept(w *checkedWorker, f fact) {
	if !w.frozen() || !t.overBy(w, f.at) {
		return
	}
	if end, _ := t.leaseEnd(w); w.freezes[len(w.freezes)-1].from.at <= end {
		t.counters[countFrozenPastLease]++
	}
}

func (t *tally) handlerEnds(f fact) {
	key := callKey{f.worker, f.call}
	begin := t.calls[key]
	if transactional, known := t.transactional[begin.projection]; known && !transactional && len(begin.events) > 1 && f.text != "" {
		t.counters[countInParts]++
	}
	t.returns(key, begin, f.text)
	if t.worker(f.worker).returned {
		t.counters[countOutlived]++
	}
	switch f.text {
	case "failed":
		t.counters[countFailed]++
	case "panicked":
		t.counters[countPanicked]++
	case "canceled":
		t.counters[countCanceled]++
	case timedOut:
		t.counters[countTimedOut]++
	case killed:
		t.counters[countKilled]++
	case forGood:
		t.counters[countForGood]++
	}
}

// returns takes in the end of a call, or of its process.
func (t *tally) returns(key callKey, begin fact, text string) {
	delete(t.calls, key)
	if !begin.unset() && text != "canceled" && t.canceled(t.worker(begin.worker), begin) {
		t.counters[countDeaf]++
	}
}

func (t *tally) groupOpened(f fact) {
	opened := t.opened[f.set]
	if opened.generation > t.activated[f.set].generation {
		t.counters[countDrainSuperseded]++
	}
	has := numbers(f.layout)
	if len(has) > len(numbers(opened.layout))+1 {
		t.counters[countJoinsFolded]++
	}
	for id, join := range t.joined {
		switch n := len(has[id]); {
		case join.set != f.set:
		case n == 0:
			t.counters[countStandby]++
		case n < int(join.from):
			t.counters[countFewer]++
		}
	}
	t.opened[f.set] = f
}

func (t *tally) isOrdered(f fact) {
	switch o := f.order; o.Kind {
	case protocol.OrderPause:
		if o.Projection != protocol.All {
			t.counters[countPaused]++
		}
	case protocol.OrderDrain:
		t.counters[countDrained]++
	case protocol.OrderRewind:
		t.projection(o.Projection).fold()
		slots := t.projection(o.Projection).slots
		switch {
		case slots == nil:
		case slices.Min(slots) > o.Position:
			t.counters[countRewound]++
		case slices.Max(slots) < o.Position:
			t.counters[countForwarded]++
		}
	}
}

// groupActivated counts uneven hand-overs.
func (t *tally) groupActivated(f fact) {
	old := t.activated[f.set].total
	t.activated[f.set] = f
	leases := map[time.Duration]bool{}
	for _, w := range t.all {
		if w.set == f.set && !w.gone && !w.leaving && !w.lease.unset() && !t.overBy(w, f.at) {
			leases[w.timing.Lease] = true
		}
	}
	if len(leases) > 1 {
		t.counters[countUnevenTiming]++
	}
	if old == 0 {
		return
	}
	for name, p := range t.passed {
		if t.sets[name] != f.set {
			continue
		}
		p.fold()
		if t.parked[name] > 0 && old != f.total {
			t.counters[countParkedHandedOver]++
		}
		if p.slots == nil {
			continue
		}
		if positions := lowest(p.slots, old); slices.Min(positions) != slices.Max(positions) {
			t.counters[countUneven]++
		}
		positions := lowest(p.slots, f.total)
		for s, position := range p.slots {
			if position != positions[s%f.total] {
				t.counters[countAhead]++
				break
			}
		}
	}
}

// lowest returns for each partition the lowest position of its slots.
func lowest(slots []int64, total int) []int64 {
	positions := slices.Clone(slots[:min(total, protocol.Slots)])
	for s, position := range slots {
		k := s % total
		positions[k] = min(positions[k], position)
	}
	return positions
}

func (t *tally) starts(f fact) {
	switch {
	case f.text == startsNow && f.from > 0:
		t.counters[countStartsNow]++
		for position := range t.visible {
			if position > f.from {
				t.counters[countStartsBelow]++
				break
			}
		}
	case f.from > 0:
		t.counters[countStartsAfter]++
	}
}

func (t *tally) gap(f fact) {
	switch f.kind {
	case gapWaited:
		t.waits[f.worker] = f
	case gapPassed:
		if wait, waits := t.waits[f.worker]; waits && wait.to <= f.to && !t.visible[wait.to] {
			t.dead[wait.to] = true
		}
		delete(t.waits, f.worker)
	case appended:
		for _, e := range f.events {
			t.visible[e.position] = true
			for _, wait := range t.waits {
				if wait.to == e.position {
					t.filled[e.position] = true
				}
			}
		}
	}
}

// forgone are the counters for the reasons for which workers rely on their leases.
var forgone = map[string]counter{
	string(protocol.ForgoneSlow): countForgoneSlow, string(protocol.ForgoneSuspended): countForgoneSuspended,
	string(protocol.ForgoneUnavailable): countForgoneUnavailable,
}

// servings are the counters for the ways in which lanes get their events.
var servings = map[string]counter{
	servedShared: countShared, servedAhead: countReadAhead, servedWhole: countServedWhole, servedOwn: countServedOwn,
	leftBehind: countLeftBehind, caughtUp: countCaughtUp, pageShort: countPageShort,
}

func (t *tally) lost(f fact) {
	if strings.HasPrefix(f.text, "request") {
		t.counters[countLostRequest]++
		return
	}
	if strings.HasPrefix(f.text, "sender") {
		if strings.HasSuffix(f.text, ": commit") {
			t.counters[countLateCommit]++
		}
		if strings.HasSuffix(f.text, ": park") {
			t.counters[countLatePark]++
		}
		return
	}
	t.counters[countLostReply]++
	if strings.Contains(f.text, "commit") {
		t.counters[countLostCommit]++
	}
	if strings.HasSuffix(f.text, ": park") {
		t.counters[countLostPark]++
	}
}
