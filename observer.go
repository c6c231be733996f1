package orchestrator

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Observer has functions that a worker calls when something happens, for metrics and
// traces, like net/http/httptrace.ClientTrace. Functions that are nil are not called. One
// Observer may serve several Orchestrators.
//
// The functions of one Run are called one after another, in the order of the events, on a
// goroutine beside the worker: a function that blocks or panics delays no event and no
// heartbeat. Up to 1024 calls are queued; further ones are dropped, and Dropped reports how
// many. Run waits up to a second for the last calls.
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
	// PartitionsChanged is called when this worker starts its partitions, and when they
	// have stopped.
	PartitionsChanged func(PartitionsChanged)
	// Heartbeat is called after each exchange with the database about the replica set.
	Heartbeat func(Heartbeat)
	// LeaseLost is called when this worker loses its lease while it runs partitions.
	LeaseLost func(LeaseLost)
	// CoordinationTimeout is called when handlers did not return in time.
	CoordinationTimeout func(CoordinationTimeout)

	// BatchCommitted is called after each commit.
	BatchCommitted func(BatchCommitted)
	// CommitRefused is called when a commit was refused.
	CommitRefused func(CommitRefused)
	// HandlerFailed is called each time a handler has failed.
	HandlerFailed func(HandlerFailed)
	// EventParked is called for each event that is parked.
	EventParked func(EventParked)

	// GapWaited is called when readers start to wait at a gap, and when they continue.
	GapWaited func(GapWaited)
	// Stalled is called when a lane has stalled, and when it moves again.
	Stalled func(Stalled)

	// Reported is called about once in HeartbeatInterval with the progress of each lane.
	Reported func(WorkerReport)
	// Dropped is called with the number of calls that were dropped since the last time.
	Dropped func(n int)
}

// Source identifies the worker that an event is about, and its time.
type Source struct {
	// ReplicaSet is the name of the worker's replica set.
	ReplicaSet ReplicaSetName `json:"replica_set"`
	// Worker is the name of the worker, as in orchestrator_workers. A worker that joins
	// again has a new one.
	Worker string `json:"worker"`
	// At is the time by the worker's clock.
	At time.Time `json:"at"`
}

// Lane is one projection on one partition under one generation.
type Lane struct {
	// Projection is the name of the projection.
	Projection string
	// Generation is the number of the generation.
	Generation int64
	// Partition is the number of the partition, from 0 to TotalPartitions-1.
	Partition int
	// TotalPartitions is the number of partitions of the generation.
	TotalPartitions int
}

// GenerationOpened is passed to the Observer of the one worker that has opened a generation,
// once. A generation that an operator's order has opened (such as ops.Pause) is reported by
// GenerationActivated only.
type GenerationOpened struct {
	Source
	// Generation is its number.
	Generation int64
	// Reason is what has changed, such as "1 joined".
	Reason string
	// TotalPartitions is its number of partitions.
	TotalPartitions int
	// WaitsFor are the names of the workers that must stop before it is activated.
	WaitsFor []string
}

// GenerationActivated is passed to the Observer of the one worker that has activated a
// generation, once. Its partitions may run from now on.
type GenerationActivated struct {
	Source
	// Generation is its number.
	Generation int64
	// Reason is what has changed, such as "1 joined".
	Reason string
	// TotalPartitions is its number of partitions.
	TotalPartitions int
	// Duration is the time since it was opened, by the database's clock.
	Duration time.Duration
	// WaitedFor are the names of the workers that had to stop first.
	WaitedFor []string
}

// GenerationSuperseded is passed to the Observer of each worker that stops its partitions
// because there is a newer generation, once for each generation that it ran.
type GenerationSuperseded struct {
	Source
	// Generation is the one that the worker stops.
	Generation int64
}

// GenerationDelayed is passed to the Observer of each worker that has seen a generation wait
// for other workers for more than two HeartbeatIntervals, and again every ten seconds.
type GenerationDelayed struct {
	Source
	// Generation is the one that waits.
	Generation int64
	// WaitsFor are the names of the workers that have not stopped.
	WaitsFor []string
	// Waited is how long this worker has seen it wait.
	Waited time.Duration
}

// WorkerJoined is passed to the Observer of a worker that has become a member of the replica
// set: once, and again, with a new Source.Worker, each time it has joined again.
type WorkerJoined struct{ Source }

// WorkerLeft is passed to the Observer of a worker whose Run ends, once, also if the worker
// never joined.
type WorkerLeft struct {
	Source
	// Err is what Run returns.
	Err error
}

// WorkerExpired is passed to the Observer of the one worker that has removed another one,
// whose lease was over or whose dedicated connection had ended: once for each.
type WorkerExpired struct {
	Source
	// Expired is the name of the worker that was removed.
	Expired string
}

// PartitionsChanged is passed to the Observer of a worker when it starts its partitions of a
// generation, and once more, with no Partitions, when all of them have stopped.
type PartitionsChanged struct {
	Source
	// Generation is the one under which they run, or ran.
	Generation int64
	// Partitions are their numbers, in ascending order. Empty: they have stopped.
	Partitions []int
	// TotalPartitions is the number of partitions of the generation.
	TotalPartitions int
}

// Heartbeat is passed to the Observer of each worker after each exchange with the database
// about the replica set, successful or not: once in HeartbeatInterval, and more often when
// something changes, such as at a join.
type Heartbeat struct {
	Source
	// Latency is the time from the request to the answer, or to the failure.
	Latency time.Duration
	// Err is the failure; nil if there was none.
	Err error
}

// LeaseLost is passed to the Observer of a worker whose lease has ended, or that other
// workers have removed, while it runs partitions. Its handlers are cancelled, and it joins
// again.
type LeaseLost struct {
	Source
	// Generation is the one under which the partitions run.
	Generation int64
}

// CoordinationTimeout is passed to the Observer of a worker whose handlers have not returned
// Config.CoordinationTimeout after they were asked to stop. It is called once; Run then
// returns ErrCoordinationTimeout.
type CoordinationTimeout struct {
	Source
	// Generation is the one under which the handlers run.
	Generation int64
	// Handlers describes each of them: its projection, partition and position.
	Handlers []string
}

// BatchCommitted is passed to the Observer of a worker each time that one of its lanes has
// committed, also if its checkpoint has only moved past events of other partitions.
type BatchCommitted struct {
	Source
	Lane
	// Events is the number of events that were handled.
	Events int
	// Skipped is the number of events that were read and belong to other partitions.
	Skipped int
	// Position is the one up to which everything is handled.
	Position int64
	// Duration is the time since the batch began: from the start of its transaction. For a
	// plain projection it is from the first call of the handler, or, if there was none, from
	// the update of the checkpoint.
	Duration time.Duration
}

// CommitRefused is passed to the Observer of a worker when the fence has refused a commit of
// one of its lanes: another worker has the partition. What the lane has handled since its
// last commit was rolled back, or is handled again.
type CommitRefused struct {
	Source
	Lane
	// Position is where the checkpoint would have moved to.
	Position int64
}

// HandlerFailed is passed to the Observer of a worker each time that a handler has returned
// an error or panicked, also before EventParked, and when a parked event was retried. A
// handler that was interrupted has not failed: see LaneReport.Interruption.
type HandlerFailed struct {
	Source
	Lane
	// Position is the event's, or the first event's of a batch that failed as a whole.
	Position int64
	// Attempt is how often the handler has failed at the event, this time included. 0:
	// an event of a batch has failed, and it is not known which.
	Attempt int
	// Final is true if the library will not retry the event: Run ends, or the event is parked.
	Final bool
	// RetryIn is the time until the next attempt. 0 if Final.
	RetryIn time.Duration
	// Err is what the handler has returned, or a *PanicError.
	Err error
}

// EventParked is passed to the Observer of a worker for each event that it has parked: under
// the policy ParkEvents, by an operator (ops.Park), or behind an earlier event of its
// aggregate.
type EventParked struct {
	Source
	Lane
	// Position is the event's.
	Position int64
	// AggregateID is the event's.
	AggregateID string
	// Attempts is how often the handler has failed at the event. 0: the handler was not
	// called, because an earlier event of the aggregate is parked or an operator parked this
	// one.
	Attempts int
	// Err is the last failure. Nil if Attempts is 0.
	Err error
	// Ordered is true if an operator parked the event (ops.Park).
	Ordered bool
}

// GapWaited is passed to the Observer of each worker when the reads of its process start to
// wait at a gap, a position that an open transaction may still fill; and once more, with
// Over, when they continue.
type GapWaited struct {
	Source
	// Position is the first that is missing.
	Position int64
	// Backends are the process ids of the transactions that hold it open
	// (pg_stat_activity.pid); 0 is a prepared transaction. Empty if Over.
	Backends []int
	// Over is true when the wait has ended.
	Over bool
	// Waited is how long the wait was. 0 until it is Over.
	Waited time.Duration
}

// Stalled is passed to the Observer of a worker when one of its lanes has not moved for
// Config.StallAfter, although there is something for it to handle; and once more, with Over,
// when it moves again or has ended.
type Stalled struct {
	Source
	Lane
	// Position is the one up to which everything is handled.
	Position int64
	// For is how long the lane has not moved, or, once it is Over, had not.
	For time.Duration
	// Reason is why, in words. Empty if Over.
	Reason string
	// Over is true when the stall has ended.
	Over bool
}

// observerQueue calls an Observer's functions, one after another, on a goroutine of its own.
// The worker puts calls into a bounded queue and goes on, so an observer that blocks delays
// no worker, and one that panics stops none.
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
	// queueMax is how many calls are queued at most: a second's worth of batches of a
	// busy worker.
	queueMax = 1024
	// queuePatience is how long the end of Run waits for the observer.
	queuePatience = time.Second
)

// newObserverQueue returns the queue of an observer. Without one, nothing is called.
func newObserverQueue(o *Observer, log *slog.Logger) *observerQueue {
	q := &observerQueue{log: log}
	if o == nil {
		return q
	}
	q.Observer, q.calls = *o, make(chan func(), queueMax)
	q.stop, q.done = make(chan struct{}), make(chan struct{})
	go q.loop()
	return q
}

// emit has a function of the queue's observer called, unless that is nil.
func emit[T any](q *observerQueue, call func(T), event T) {
	if call == nil {
		return
	}
	select {
	case q.calls <- func() { call(event) }:
	default:
		q.dropped.Add(1)
	}
}

func (q *observerQueue) loop() {
	ended := false
	defer func() {
		if v := recover(); !ended { // a panic, or runtime.Goexit
			text, _ := apart("the Observer", func() (string, error) { return textOf(v), nil })
			q.failed.Do(func() { q.log.Error("observer panicked", "panic", text) })
			go q.loop()
		}
	}()
	for !q.over.Load() {
		if n := q.dropped.Swap(0); n > 0 && q.Dropped != nil {
			q.Dropped(int(n))
		}
		select {
		case call := <-q.calls:
			call()
			continue
		default:
		}
		select {
		case call := <-q.calls:
			call()
		case <-q.stop:
			if len(q.calls) == 0 && q.dropped.Load() == 0 {
				q.over.Store(true)
			}
		}
	}
	ended = true
	close(q.done)
}

// close waits for the calls that are queued, and drops later ones.
func (q *observerQueue) close() {
	if q.calls == nil {
		return
	}
	close(q.stop)
	patience := time.NewTimer(queuePatience)
	defer patience.Stop()
	select {
	case <-q.done:
	case <-patience.C:
		q.over.Store(true)
	}
}
