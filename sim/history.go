package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A fact is one thing that happened, as an observer with full knowledge would record it: in
// true time, and by what took effect rather than by what a process was told. The checker,
// the report and the timeline know only facts.
type fact struct {
	step   int           // its index in the history
	at     time.Duration // true time since the start
	kind   kind
	worker string // "" if it concerns no worker
	set    int    // the worker's replica set

	projection string
	generation int64
	partition  int
	total      int
	// events are the events that a handler got, or that a commit holds.
	events   []event
	from, to int64 // the positions between which a checkpoint moved; from is also the position of an append
	timing   protocol.Timing
	replay   bool            // the live version has handled the events
	ahead    []protocol.Mark // the marks of a checkpoint, if they have changed
	call     int             // identifies a handler call in its begin and its end
	deaf     bool            // the handler ignores its cancellation
	length   time.Duration   // the duration of a fault, or the step of a clock
	// sent is when a request was sent, read when the database read its clock for it.
	sent, read time.Duration
	layout     []string // the owner of each partition
	order      protocol.Order
	text       string // a description for people
}

// A kind is the kind of a fact. The comments name the fields that it has beside worker.
type kind int

const (
	// Workers. A worker is a process, with one name for all of its incarnations. A
	// restarted process has a new name.
	workerStarts      kind = iota // timing; text
	workerGone                    // text: crashed, exited or left
	workerReturns                 // it has given up, and its handlers have not returned
	sessionTaken                  // another replica set runs one of its projections: text; "for the moment" if the lease there is over
	sessionAttached               // it has a liveness connection, which holds its lock: from is the number; sent
	sessionProven                 // the liveness connection has answered: from; sent
	sessionForgone                // the worker relies on its lease alone; text: why
	laneMissed                    // a lane of generation has ended unreported, and the worker rejoins
	sessionEnded                  // a liveness connection, at the server: from; text: why, if the worker has not ended it
	presencePublished             // the row of an incarnation has this number: from, text
	sessionAsks                   // a request took effect: text. Renews the lease: length, sent, read; to: it has stopped generations up to this
	hintsCome                     // the first notification has come over the worker's connection
	hintsGone                     // that connection is gone
	runStarts                     // the worker runs generation, partition, total; one for each partition of its share
	runDrains                     // generation
	runCancels                    // generation; text "lost" if the lease is over
	runSuspends                   // generation; its handlers are cancelled, its lanes go on
	runStopped                    // generation: every handler has returned

	// The group, when the transaction commits.
	groupOpened      // generation, total, layout, read; text: the reason and the members
	groupActivated   // generation, total
	ordered          // an operator's order took effect: order
	holdOver         // the hold of a projection has ended by itself: projection
	promotionAsked   // projection; from: the step at which the program crashes
	promotionEnded   // projection; text: the outcome
	promoted         // projection is the live version instead of text; set is that of the latter
	retired          // projection
	projectionStarts // its first checkpoint: projection, from; to: what was final before, if it starts now; text: the kind of start
	workerExpired    // text: the incarnation that was removed for its lease, or because the lock with number from is missing
	memberJoins      // text: the incarnation; from: how many partitions it wants; to: its MaxPartitions; length: its JoinWindow; read
	joinRefused      // text: the incarnation, which has a successor
	memberLeaves     // text: the incarnation that has left
	placeVacated     // text: the incarnation that has left its place vacant; length: its window; read
	placeTaken       // layout: the former and the new owner; generation, unless another one is opened for it; read
	placeLapsed      // text: the incarnation whose place has lapsed; read

	// Lanes. All have projection, generation, partition, total.
	handlerBegins   // events, call, deaf
	handlerEnds     // call; text "", "failed", "panicked", "canceled", timedOut, killed, disconnected, forGood; deaf: it had been cancelled, or should have been
	committed       // from, to, events: those handled since the lane's last commit
	refused         // from, to: the fence let nothing through
	undone          // from, to, events: the server refused what the handlers had written; text: when
	proofAwaited    // before a handler call
	checkpointShown // a lane starts from the checkpoint that came with its assignment: from
	unreadable      // from: the event there could not be read; this counts as its failure
	readAgain       // from: the event could be read on a later attempt
	elsewhere       // from, to: a commit of the lane; its checkpoint is at neither
	// Parked events. These have a lane as well; from is a position.
	eventsParked    // from, to, events; text: parkedBehind or parkedByOrder
	parkedRetried   // from: handled, and no longer parked
	parkedDiscarded // from
	retryFailed     // from
	parkedFull      // from: there is no room to park it
	leftIdle        // the server has ended the lane's transaction, which the handler left idle
	faultLane       // the lane ends and reports nothing
	parkRequested   // an operator's request about a parked event: projection, from, text
	parkOrdered     // an operator's order to park an event: projection, from
	orderLocated    // from: a lane has recorded the slot of the event that an order names
	orderLapsed     // from, text: a lane has dropped the order
	ordersLeft      // at the end: projection; from: the number of open orders
	parkedLeft      // at the end: projection, events
	served          // how a lane got its events: projection, text
	turnMissed      // a read was given up before its turn to list the lock holders of a gap; no lane
	gapWaited       // to: the missing position; text: the lock holders
	gapScoped       // the same, by a reader with a scope: text
	gapPassed       // to: the position that is final now

	// The event store.
	appended   // events of one transaction, visible from now on
	rolledBack // events that never became visible

	// Faults. worker, or "" for all; length.
	faultFreeze
	faultThaw
	faultCutOff
	faultMended
	faultDatabaseDown
	faultDatabaseUp
	faultClockStep
	faultCrash
	faultLeave
	faultDeploy
	faultLost  // a request or a reply: text
	faultSlow  // a request or a reply: text, length
	faultOther // text

	// healed: no fault begins after this. Workers that are frozen or cut off for good stay
	// so.
	healed
	// settled: L1 must hold from now on, and no generation may be opened before ended.
	settled
	ended
)

// String returns the fact in one line, without time and worker.
func (f fact) String() string {
	var b strings.Builder
	lane := fmt.Sprintf("%s %d/%d under generation %d", f.projection, f.partition, f.total, f.generation)
	switch f.kind {
	case workerStarts:
		b.WriteString("starts")
		if lease := f.timing.Lease; lease != 0 {
			fmt.Fprintf(&b, ", lease %s", lease)
		}
	case workerGone:
		b.WriteString("ended")
	case workerReturns:
		b.WriteString("gives up; its handlers go on")
	case sessionTaken:
		fmt.Fprintf(&b, "can't run %s: another replica set runs it", f.projection)
	case sessionAttached:
		fmt.Fprintf(&b, "opened liveness connection %d", f.from)
	case sessionProven:
		fmt.Fprintf(&b, "proved liveness connection %d", f.from)
	case sessionEnded:
		fmt.Fprintf(&b, "liveness connection %d ended", f.from)
		if f.text != "" {
			fmt.Fprintf(&b, ": %s", f.text)
		}
	case sessionForgone:
		b.WriteString("relies on its lease alone")
	case hintsCome:
		b.WriteString("receives event notifications")
	case hintsGone:
		b.WriteString("no longer receives event notifications")
	case laneMissed:
		fmt.Fprintf(&b, "found a lane of generation %d missing", f.generation)
	case presencePublished:
		fmt.Fprintf(&b, "published liveness connection %d", f.from)
	case sessionAsks:
		b.WriteString("request took effect")
		if f.length != 0 {
			b.WriteString(", lease")
		}
	case runStarts:
		fmt.Fprintf(&b, "runs partition %d/%d of generation %d", f.partition, f.total, f.generation)
	case runDrains:
		fmt.Fprintf(&b, "drains generation %d", f.generation)
	case runCancels:
		fmt.Fprintf(&b, "cancels handlers of generation %d", f.generation)
	case runSuspends:
		fmt.Fprintf(&b, "suspends handlers of generation %d", f.generation)
	case runStopped:
		fmt.Fprintf(&b, "stopped generation %d", f.generation)
	case groupOpened:
		fmt.Fprintf(&b, "opened generation %d with %s", f.generation, plural(f.total, "partition"))
	case groupActivated:
		fmt.Fprintf(&b, "activated generation %d with %s", f.generation, plural(f.total, "partition"))
	case ordered:
		fmt.Fprintf(&b, "an operator orders %s", f.order)
	case holdOver:
		fmt.Fprintf(&b, "the hold of %s is over", f.projection)
	case promotionAsked:
		fmt.Fprintf(&b, "an operator promotes %s", f.projection)
	case promotionEnded:
		fmt.Fprintf(&b, "the promotion of %s ends", f.projection)
	case promoted:
		fmt.Fprintf(&b, "%s takes over as the live version", f.projection)
	case retired:
		fmt.Fprintf(&b, "%s is retired", f.projection)
	case projectionStarts:
		fmt.Fprintf(&b, "%s starts above %d", f.projection, f.from)
	case workerExpired:
		b.WriteString("expired")
		if f.from > 0 {
			fmt.Fprintf(&b, ", liveness connection %d is missing", f.from)
		}
	case memberJoins:
		b.WriteString("joins, join window")
	case joinRefused:
		b.WriteString("join refused: a later incarnation is a member")
	case memberLeaves:
		b.WriteString("is no longer a member")
	case placeVacated:
		b.WriteString("leaves its place vacant for")
	case placeTaken:
		b.WriteString("takes a vacant place")
		if len(f.layout) == 2 {
			fmt.Fprintf(&b, ": that of %s", f.layout[0])
		}
	case placeLapsed:
		b.WriteString("its vacant place lapsed")
	case handlerBegins:
		fmt.Fprintf(&b, "handles %s, %s", positions(f.events), lane)
		if f.replay {
			b.WriteString(", as replays")
		}
	case handlerEnds:
		fmt.Fprintf(&b, "handler call %d ends", f.call)
	case committed:
		fmt.Fprintf(&b, "committed %d to %d, %s, with %s", f.from, f.to, lane, positions(f.events))
	case refused:
		fmt.Fprintf(&b, "refused: commit %d to %d, %s", f.from, f.to, lane)
	case undone:
		fmt.Fprintf(&b, "undone: %d to %d, %s", f.from, f.to, lane)
	case proofAwaited:
		fmt.Fprintf(&b, "waits for a proof of liveness, %s", lane)
	case checkpointShown:
		fmt.Fprintf(&b, "starts at checkpoint %d, read with its assignment, %s", f.from, lane)
	case elsewhere:
		fmt.Fprintf(&b, "got no answer to commit %d to %d, %s, and finds its checkpoint at neither", f.from, f.to, lane)
	case leftIdle:
		fmt.Fprintf(&b, "lost its transaction: the handler left it idle for too long, %s", lane)
	case faultLane:
		fmt.Fprintf(&b, "lane ends unreported (fault), %s", lane)
	case unreadable:
		fmt.Fprintf(&b, "can't read event %d, %s", f.from, lane)
	case readAgain:
		fmt.Fprintf(&b, "has read event %d again, %s", f.from, lane)
	case eventsParked:
		fmt.Fprintf(&b, "parked %s, %d to %d, %s", positions(f.events), f.from, f.to, lane)
	case parkedRetried:
		fmt.Fprintf(&b, "handled parked event %d, %s", f.from, lane)
	case parkedDiscarded:
		fmt.Fprintf(&b, "discarded parked event %d, %s", f.from, lane)
	case retryFailed:
		fmt.Fprintf(&b, "failed again at parked event %d, %s", f.from, lane)
	case parkedFull:
		fmt.Fprintf(&b, "has no room to park event %d, %s", f.from, lane)
	case parkRequested:
		fmt.Fprintf(&b, "%s: an operator's request for parked event %d", f.projection, f.from)
	case parkOrdered:
		fmt.Fprintf(&b, "%s: an operator orders event %d parked", f.projection, f.from)
	case orderLocated:
		fmt.Fprintf(&b, "found the partition of event %d, %s", f.from, lane)
	case orderLapsed:
		fmt.Fprintf(&b, "drops the order to park event %d, %s", f.from, lane)
	case ordersLeft:
		fmt.Fprintf(&b, "%s has %d open orders to park events at the end", f.projection, f.from)
	case parkedLeft:
		fmt.Fprintf(&b, "%s has %s parked at the end", f.projection, positions(f.events))
	case served:
		fmt.Fprintf(&b, "%s is served", f.projection)
	case turnMissed:
		b.WriteString("gives up a read before its turn")
	case gapWaited:
		fmt.Fprintf(&b, "waits at gap %d", f.to)
	case gapScoped:
		fmt.Fprintf(&b, "found gap %d for a scope", f.to)
	case gapPassed:
		fmt.Fprintf(&b, "passed the gap, final to %d", f.to)
	case appended:
		fmt.Fprintf(&b, "appended %s", positions(f.events))
	case rolledBack:
		fmt.Fprintf(&b, "rolled back %s", positions(f.events))
	case faultFreeze:
		b.WriteString("frozen (fault)")
	case faultThaw:
		b.WriteString("thawed")
	case faultCutOff:
		b.WriteString("cut off from the database (fault)")
	case faultMended:
		b.WriteString("reaches the database again")
	case faultDatabaseDown:
		b.WriteString("database down (fault)")
	case faultDatabaseUp:
		b.WriteString("database up")
	case faultClockStep:
		b.WriteString("database clock steps (fault)")
	case faultCrash:
		b.WriteString("crashed (fault)")
	case faultLeave:
		b.WriteString("asked to stop")
	case faultDeploy:
		b.WriteString("deploy")
	case faultLost:
		b.WriteString("message lost (fault)")
	case faultSlow:
		b.WriteString("message slow (fault)")
	case faultOther:
		b.WriteString("fault")
	case healed:
		b.WriteString("faults stop")
	case settled:
		b.WriteString("everything must have settled")
	case ended:
		b.WriteString("end")
	}
	if f.set > 0 && (f.kind == workerStarts || f.kind == groupOpened || f.kind == groupActivated) {
		fmt.Fprintf(&b, " of replica set %d", f.set+1)
	}
	if f.length != 0 {
		fmt.Fprintf(&b, " %s", f.length)
	}
	if f.text != "" {
		fmt.Fprintf(&b, ": %s", f.text)
	}
	return b.String()
}

// positions returns events as "event 5" or "events 5 7 9". It abbreviates long lists.
func positions(events []event) string {
	switch n := len(events); {
	case n == 0:
		return "no event"
	case n == 1:
		return fmt.Sprintf("event %d", events[0].position)
	case n > 6:
		return fmt.Sprintf("%d events %d … %d", n, events[0].position, events[n-1].position)
	}
	var b strings.Builder
	b.WriteString("events")
	for _, e := range events {
		fmt.Fprintf(&b, " %d", e.position)
	}
	return b.String()
}

// A history is the facts of one world.
type history struct {
	facts []fact
	// setup is what the checker knows of the world beforehand.
	setup setup
}

// A setup is what is true of a world from the start.
type setup struct {
	seed uint64
	// transactional reports for each projection whether its effects commit with the
	// checkpoint. Of the others only handler calls are known.
	transactional map[string]bool
	// scopes are the scopes of the projections.
	scopes map[string]scope
	// attempts is how often a projection's handler fails at an event before the event is
	// parked; 0: it is never parked.
	attempts map[string]int
	// final are the projections of the last programs. sets is the replica set of each, if
	// it is not the first.
	final []string
	sets  map[string]int
	// unreadable reports which events no worker can ever read. parks reports which
	// projections have room to park all of them.
	unreadable func(event) bool
	parks      map[string]bool
	// settle is how long after healed everything must have settled.
	settle time.Duration
	// These are the slowest settings of all workers, the bounds of their transactions, the
	// largest error of their clocks, and the time that a packet takes.
	timing  protocol.Timing
	bounds  store.Bounds
	drift   float64
	latency time.Duration
	// poll is the longest time between two polls for events without notifications. typical
	// exceeds the time that the events of a transaction take to handle.
	poll, typical time.Duration
	// contended: while there are faults, transactions hold their locks for as long as
	// COMMIT travels.
	contended bool
	// starting: the history has a fact for the start of each projection.
	starting bool
	// rebuilds are the live projections by the names of their rebuilds.
	rebuilds map[string]string
}

// A promise is one that the library makes. The checker names what it breaks.
type promise string

const (
	oneOwner     promise = "one-owner"     // S1
	onLease      promise = "on-lease"      // S1
	nothingLost  promise = "nothing-lost"  // S2
	nothingTwice promise = "nothing-twice" // S3
	inOrder      promise = "in-order"      // S4
	onlyGrow     promise = "only-grow"     // S5
	agreement    promise = "agreement"     // S6
	recovers     promise = "recovers"      // L1
	staysStill   promise = "stays-still"   // L2
	bounded      promise = "bounded"       // L3

	obeys       promise = "obeys"
	underPolicy promise = "under-policy"
	startsWhere promise = "starts-where"
	follows     promise = "follows"
	withinScope promise = "within-scope"
)

// promiseRules states each promise of the library in a clause.
var promiseRules = map[promise]string{
	oneOwner:     "two workers must not handle the same slot of a projection at the same time",
	onLease:      "a handler must not begin or go on after its worker's lease or proof of liveness has run out",
	nothingLost:  "every committed event must be handled",
	nothingTwice: "each event must take effect once",
	inOrder:      "the events of an aggregate must be handled in order",
	onlyGrow:     "generations must only grow, and only the active one may commit",
	agreement:    "workers must agree on the members and the partitions of a generation",
	recovers:     "the workers must recover after the faults stop",
	staysStill:   "no generation may be opened while nothing changes",
	bounded:      "a worker may delay the others only within the documented bounds",

	obeys:       "the workers must carry out what operators order",
	underPolicy: "failures of a handler must lead to what the failure policy says",
	startsWhere: "a new projection must start where its program says, and only once",
	follows:     "a rebuild must stay behind the live projection, and take its place only where that has stopped",
	withinScope: "a projection must get only events of its scope",
}

// A violation is a promise that was broken.
type violation struct {
	promise promise
	// what is the fact that breaks the promise, as a clause.
	what string
	// facts are the few that lead to it, in ascending order. The last one breaks the promise.
	facts []fact
}

// sentence returns the promise and the fact that breaks it.
func (v violation) sentence() string {
	rule := promiseRules[v.promise]
	if rule == "" {
		return v.what
	}
	return rule + ", but " + v.what
}

// safety distinguishes promises about what must never happen from promises about what must
// happen in the end.
func (p promise) safety() bool { return p != recovers && p != staysStill && p != bounded }
