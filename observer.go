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
	// A generation was opened, or activated, by this worker: of all workers of
	// a set, one tells of it. One that an order has opened (see ops.Pause) was opened
	// by no worker: its activation tells of it.
	GenerationOpened    func(GenerationOpened)
	GenerationActivated func(GenerationActivated)
	// A newer generation makes this worker stop what it runs.
	GenerationSuperseded func(GenerationSuperseded)
	// This worker waits for others to stop, and has for some time.
	GenerationDelayed func(GenerationDelayed)

	WorkerJoined  func(WorkerJoined)
	WorkerLeft    func(WorkerLeft)
	WorkerExpired func(WorkerExpired) // another one was removed, by this worker
	Started       func(Started)       // lanes of a generation run
	Stopped       func(Stopped)       // none runs any more

	Heartbeat       func(Heartbeat)
	HeartbeatFailed func(HeartbeatFailed)
	LeaseLost       func(LeaseLost)
	// Handlers of this worker did not return in time; Run returns
	// ErrCoordinationTimeout.
	CoordinationTimeout func(CoordinationTimeout)

	BatchCommitted func(BatchCommitted)
	CommitRefused  func(CommitRefused)
	HandlerFailed  func(HandlerFailed) // each time, also before EventParked and of a retry of what is parked
	EventParked    func(EventParked)

	GapWaited   func(GapWaited)
	GapResolved func(GapResolved)

	// A lane has not moved for Config.StallAfter although there is something
	// for it to read; and it moves again, or has ended.
	Stalled   func(Stalled)
	Unstalled func(Unstalled)

	// Reported comes about once a HeartbeatInterval with how far each lane is.
	Reported func(WorkerReport)
	// Dropped says that n calls were left out.
	Dropped func(n int)
}

// A Source names the set and the worker that an event is about.
type Source struct {
	ReplicaSet ReplicaSetName `json:"replica_set"`
	Worker     string         `json:"worker"` // an incarnation, as in the database
	At         time.Time      `json:"at"`     // by the worker's clock
}

// A Lane is one projection on one partition under one generation.
type Lane struct {
	Projection      string
	Generation      int64
	Partition       int
	TotalPartitions int
}

// What an Observer is told.
type (
	GenerationOpened struct {
		Source
		Generation      int64
		Reason          string
		TotalPartitions int
		WaitsFor        []string // workers that have to stop first
	}
	GenerationActivated struct {
		Source
		Generation      int64
		Reason          string
		TotalPartitions int
		Duration        time.Duration // since it was opened
		WaitedFor       []string      // workers that had to stop first
	}
	GenerationSuperseded struct {
		Source
		Generation int64
	}
	GenerationDelayed struct {
		Source
		Generation int64
		WaitsFor   []string
		Waited     time.Duration
	}

	WorkerJoined struct{ Source }
	WorkerLeft   struct {
		Source
		Err error // what Run returns
	}
	WorkerExpired struct {
		Source
		Expired string // the worker that was removed
	}
	Started struct {
		Source
		Generation      int64
		Partitions      []int
		TotalPartitions int
	}
	Stopped struct {
		Source
		Generation int64
	}

	Heartbeat struct {
		Source
		Latency time.Duration
	}
	HeartbeatFailed struct {
		Source
		Latency time.Duration
		Err     error
	}
	LeaseLost struct {
		Source
		Generation int64
	}
	CoordinationTimeout struct {
		Source
		Generation int64
		Handlers   []string // which, and at which positions
	}

	BatchCommitted struct {
		Source
		Lane
		Events   int // that were handled
		Skipped  int // that were read and belong to other partitions
		Position int64
		Duration time.Duration // from the first call of the handler, or the read
	}
	CommitRefused struct {
		Source
		Lane
		Position int64 // that it would have moved to
	}
	HandlerFailed struct {
		Source
		Lane
		Position int64
		Attempt  int
		RetryIn  time.Duration // 0: not at all
		Err      error
	}
	EventParked struct {
		Source
		Lane
		Position    int64
		AggregateID string
		Attempts    int   // 0: it waits behind another
		Err         error // nil then
	}

	GapWaited struct {
		Source
		Position int64
		Backends []int // processes of the server whose transactions hold it open
	}
	GapResolved struct {
		Source
		Position int64
		Waited   time.Duration
	}

	Stalled struct {
		Source
		Lane
		Position int64
		For      time.Duration
		Reason   string
	}
	Unstalled struct {
		Source
		Lane
		Position int64
	}
)

// A teller calls an Observer's functions, one after another, on a goroutine of its
// own. Whoever has something to tell puts it into a bounded queue and goes on, so
// an observer that blocks delays no worker, and one that panics stops none.
type teller struct {
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

// newTeller returns the teller of an observer. Without one, nothing is called.
func newTeller(o *Observer, log *slog.Logger) *teller {
	t := &teller{log: log}
	if o == nil {
		return t
	}
	t.Observer, t.calls = *o, make(chan func(), tellQueue)
	t.stop, t.done = make(chan struct{}), make(chan struct{})
	go t.loop()
	return t
}

// tell has a function of the teller's observer called, unless that is nil.
func tell[T any](t *teller, call func(T), event T) {
	if call == nil {
		return
	}
	select {
	case t.calls <- func() { call(event) }:
	default:
		t.dropped.Add(1)
	}
}

func (t *teller) loop() {
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
func (t *teller) close() {
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
