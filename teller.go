package orchestrator

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A teller calls an Observer's functions, one after another, on a goroutine of its
// own. Whoever has something to tell puts it into a bounded queue and goes on, so
// an observer that blocks holds up nobody, and one that panics ends nothing.
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
