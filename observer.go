package orchestrator

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// An Observer is told what a worker does, for metrics and traces, in the manner
// of net/http/httptrace.ClientTrace: functions that are nil are not called. One
// Observer may serve several Orchestrators.
//
// The functions are called one after another, in the order of what they tell, on
// a goroutine beside the worker: one that blocks or panics holds up no event and
// no heartbeat. What comes while many calls wait is dropped, and Dropped says how
// much was.
type Observer struct {
	// GenerationOpened is called when this worker has opened a generation.
	GenerationOpened func(GenerationOpened)
	// GenerationActivated is called when this worker has activated a generation.
	GenerationActivated func(GenerationActivated)
	// GenerationSuperseded is called when a newer generation makes this worker stop.
	GenerationSuperseded func(GenerationSuperseded)
	// GenerationDelayed is called while a generation waits long for workers to stop.
	GenerationDelayed func(GenerationDelayed)

	// WorkerJoined is called when this worker has become a member.
	WorkerJoined func(WorkerJoined)
	// WorkerLeft is called at the end of Run. It is the last call.
	WorkerLeft func(WorkerLeft)
	// WorkerExpired is called when this worker has removed another one.
	WorkerExpired func(WorkerExpired)
	// PartitionsChanged is called when this worker begins to run partitions, and when
	// it has stopped.
	PartitionsChanged func(PartitionsChanged)
	// Heartbeat is called after each exchange about the replica set.
	Heartbeat func(Heartbeat)
	// LeaseLost is called when this worker may not go on with what it runs.
	LeaseLost func(LeaseLost)
	// CoordinationTimeout is called when handlers did not return in time.
	CoordinationTimeout func(CoordinationTimeout)

	// BatchCommitted is called after each commit.
	BatchCommitted func(BatchCommitted)
	// CommitRefused is called when a commit was refused.
	CommitRefused func(CommitRefused)
	// HandlerFailed is called each time that a handler has failed.
	HandlerFailed func(HandlerFailed)
	// EventParked is called for each event that is parked.
	EventParked func(EventParked)

	// GapWaited is called when readers begin to wait at a gap, and when they go on.
	GapWaited func(GapWaited)
	// Stalled is called when a lane stands still, and when it moves again.
	Stalled func(Stalled)

	// Reported is called about once a HeartbeatInterval with how far each lane is.
	Reported func(WorkerReport)
	// Dropped is called with the number of calls that were left out since the last
	// time.
	Dropped func(n int)
}

// A Source says which worker an event comes from, and when.
type Source struct {
	// ReplicaSet is the worker's.
	ReplicaSet ReplicaSetName `json:"replica_set"`
	// Worker is the name of this incarnation, as it stands in orchestrator_workers.
	Worker string `json:"worker"`
	// At is the time by the worker's clock.
	At time.Time `json:"at"`
}

// A Lane is one projection on one partition under one generation.
type Lane struct {
	// Projection is its name.
	Projection string
	// Generation is the one under which it runs.
	Generation int64
	// Partition is its number, from 0.
	Partition int
	// TotalPartitions is how many the generation has.
	TotalPartitions int
}

// GenerationOpened tells that this worker has opened a generation: of all workers of a
// set, one tells of it. One that an order has opened (see ops.Pause) was opened by no
// worker: its activation tells of it.
type GenerationOpened struct {
	Source
	// Generation is its number.
	Generation int64
	// Reason is what has changed, in words: "1 joined".
	Reason string
	// TotalPartitions is how many partitions it has.
	TotalPartitions int
	// WaitsFor are the workers that have to stop before it is activated.
	WaitsFor []string
}

// GenerationActivated tells that this worker has activated a generation, whoever has
// opened it: of all workers of a set, one tells of it. Its partitions may run now.
type GenerationActivated struct {
	Source
	// Generation is its number.
	Generation int64
	// Reason is what has changed, in words: "1 joined".
	Reason string
	// TotalPartitions is how many partitions it has.
	TotalPartitions int
	// Duration is the time since it was opened, by the database's clock.
	Duration time.Duration
	// WaitedFor are the workers that had to stop first.
	WaitedFor []string
}

// GenerationSuperseded tells that there is a newer generation, and that this worker
// stops what it runs.
type GenerationSuperseded struct {
	Source
	// Generation is the one that it runs.
	Generation int64
}

// GenerationDelayed tells that a generation has waited for workers to stop for longer
// than two HeartbeatIntervals; and again every ten seconds.
type GenerationDelayed struct {
	Source
	// Generation is the one that waits.
	Generation int64
	// WaitsFor are the workers that have not stopped.
	WaitsFor []string
	// Waited is for how long this worker has seen it wait.
	Waited time.Duration
}

// WorkerJoined tells that this worker has become a member of the replica set. It is
// told again, with another name of the worker, after it was removed or has lost its
// lease.
type WorkerJoined struct{ Source }

// WorkerLeft tells that Run ends. It is told also of a worker that never joined.
type WorkerLeft struct {
	Source
	// Err is what Run returns.
	Err error
}

// WorkerExpired tells that this worker has removed another one, whose lease was over or
// whose connection had ended.
type WorkerExpired struct {
	Source
	// Expired is the name of the one that was removed.
	Expired string
}

// PartitionsChanged tells which partitions this worker runs from now on. It is told when
// it starts those of a generation, and, with none, when nothing of them runs any more.
type PartitionsChanged struct {
	Source
	// Generation is the one under which they run, or did.
	Generation int64
	// Partitions are their numbers, in order. Empty: the worker has stopped.
	Partitions []int
	// TotalPartitions is how many the generation has.
	TotalPartitions int
}

// Heartbeat tells of an exchange with the database about the replica set, whether it
// succeeded or not: one each HeartbeatInterval, and those in between, as at a join.
type Heartbeat struct {
	Source
	// Latency is the time from the request to the answer, or to the failure.
	Latency time.Duration
	// Err is nil if it succeeded.
	Err error
}

// LeaseLost tells that the lease is over, or that this worker was removed, while it runs
// partitions. Their handlers are cancelled, and it joins again.
type LeaseLost struct {
	Source
	// Generation is the one under which they run.
	Generation int64
}

// CoordinationTimeout tells that handlers of this worker did not return within
// Config.CoordinationTimeout after they were asked to stop. Run returns
// ErrCoordinationTimeout.
type CoordinationTimeout struct {
	Source
	// Generation is the one under which they run.
	Generation int64
	// Handlers says which, and at which positions.
	Handlers []string
}

// BatchCommitted tells that a lane has committed, or that its checkpoint has gone past
// events of other partitions.
type BatchCommitted struct {
	Source
	Lane
	// Events is the number of events that were handled.
	Events int
	// Skipped is the number of events that were read and belong to other partitions.
	Skipped int
	// Position is how far everything is handled now.
	Position int64
	// Duration is the time since the first call of the handler, or where there was
	// none, since the read.
	Duration time.Duration
}

// CommitRefused tells that a lane could not commit, since another worker has its
// partition. What it has handled since its last commit counts for nothing.
type CommitRefused struct {
	Source
	Lane
	// Position is where the checkpoint would have moved to.
	Position int64
}

// HandlerFailed tells that a handler has returned an error or panicked, each time: also
// before EventParked, and when an event that was parked is retried. A handler that was
// interrupted, since the worker has cancelled it or its connection to the database was
// lost, has not failed: see LaneReport.Interruption.
type HandlerFailed struct {
	Source
	Lane
	// Position is the event's. Where a batch has failed as a whole, it is the first
	// one's.
	Position int64
	// Attempt is how often it has failed at the event, this time included. 0: the
	// event is one of a batch, and nobody knows which.
	Attempt int
	// Final is true if the handler is not called for the event again by itself: Run
	// ends, or the event is parked.
	Final bool
	// RetryIn is the time until the next attempt. 0 if Final.
	RetryIn time.Duration
	// Err is what the handler has returned, or a *PanicError.
	Err error
}

// EventParked tells that an event was put aside: under the policy ParkEvents, by order
// (ops.Park), or since an earlier event of its aggregate was.
type EventParked struct {
	Source
	Lane
	// Position is the event's.
	Position int64
	// AggregateID is the event's.
	AggregateID string
	// Attempts is how often the handler has failed at it. 0: it was not called, since
	// an earlier event of the aggregate is parked, or since the event was parked by order.
	Attempts int
	// Err is the last failure. Nil if Attempts is 0.
	Err error
	// Ordered is true if it was parked by order.
	Ordered bool
}

// GapWaited tells that readers begin to wait at a gap in the stream, a position that an
// open transaction may still fill; and once more, with Over, that they go on.
type GapWaited struct {
	Source
	// Position is the first that is missing.
	Position int64
	// Backends are the server's processes whose transactions hold it open; 0 is a
	// prepared transaction. Empty if Over.
	Backends []int
	// Over is true when the wait has ended.
	Over bool
	// Waited is how long it was. 0 until it is Over.
	Waited time.Duration
}

// Stalled tells that a lane has not moved for Config.StallAfter, although there is
// something for it to handle; and once more, with Over, that it moves again, or has
// ended.
type Stalled struct {
	Source
	Lane
	// Position is how far it has handled everything by now.
	Position int64
	// For is how long it has stood still; once it is Over, how long it had.
	For time.Duration
	// Reason says why, in words. Empty if Over.
	Reason string
	// Over is true when the stall has ended.
	Over bool
}

// A observerQueue calls an Observer's functions, one after another, on a goroutine of its
// own. Whoever has something to tell puts it into a bounded queue and goes on, so
// an observer that blocks delays no worker, and one that panics stops none.
type observerQueue struct {
	Observer
	log *slog.Logger

	calls   chan func() // nil: there is no observer
	dropped atomic.Int64
	stop    chan struct{} // closed: call what is queued, and end
	done    chan struct{} // closed: it has ended
	over    atomic.Bool   // Run has returned: call nothing more
	failed  sync.Once
}

const (
	// tellQueue is how many calls wait at most: a second's worth of batches of a
	// busy worker.
	tellQueue = 1024
	// tellPatience is how long the end of Run waits for the observer.
	tellPatience = time.Second
)

// newObserverQueue returns the queue of an observer. Without one, nothing is called.
func newObserverQueue(o *Observer, log *slog.Logger) *observerQueue {
	t := &observerQueue{log: log}
	if o == nil {
		return t
	}
	t.Observer, t.calls = *o, make(chan func(), tellQueue)
	t.stop, t.done = make(chan struct{}), make(chan struct{})
	go t.loop()
	return t
}

// emit has a function of the queue's observer called, unless that is nil.
func emit[T any](t *observerQueue, call func(T), event T) {
	if call == nil {
		return
	}
	select {
	case t.calls <- func() { call(event) }:
	default:
		t.dropped.Add(1)
	}
}

func (t *observerQueue) loop() {
	ended := false
	defer func() {
		if v := recover(); !ended { // a panic, or runtime.Goexit
			text, _ := apart("the Observer", func() (string, error) { return textOf(v), nil })
			t.failed.Do(func() { t.log.Error("observer panicked", "panic", text) })
			go t.loop()
		}
	}()
	for !t.over.Load() {
		if n := t.dropped.Swap(0); n > 0 && t.Dropped != nil {
			t.Dropped(int(n))
		}
		select {
		case call := <-t.calls:
			call()
			continue
		default:
		}
		select {
		case call := <-t.calls:
			call()
		case <-t.stop:
			if len(t.calls) == 0 && t.dropped.Load() == 0 {
				t.over.Store(true)
			}
		}
	}
	ended = true
	close(t.done)
}

// close lets the observer hear what is queued, if it listens. Nothing that is told
// afterwards reaches it.
func (t *observerQueue) close() {
	if t.calls == nil {
		return
	}
	close(t.stop)
	patience := time.NewTimer(tellPatience)
	defer patience.Stop()
	select {
	case <-t.done:
	case <-patience.C:
		t.over.Store(true)
	}
}
