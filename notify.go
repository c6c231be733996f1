package orchestrator

import (
	"context"
	"log/slog"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A Notifier hears PostgreSQL's notifications on a connection of its own. What it
// hears is a hint to look sooner: nothing is lost if it is deaf, late, or makes
// things up. Package pqnotify has one.
//
// Workers of a process whose Notifiers are equal (==) share a connection.
type Notifier interface {
	// Listen connects, listens to the channels (names of any kind: quote them),
	// calls up when it does, and from then on heard for each notification. It
	// returns when ctx ends, or with what was wrong with the connection; then it
	// is called again after a while. One call is under way at a time.
	Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error
}

// An subscriber is what one worker wants to hear. Its functions don't block.
type subscriber struct {
	set    string                 // hints for this replica set call look
	events string                 // the channel of events; "": none
	look   func()                 // the group may have changed
	hear   func(protocol.Hearing) // of new events
}

// A listener is a connection's worth of hints, for all workers of the process
// that were given the same Notifier.
type listener struct {
	key      any // in listeners
	notifier Notifier
	log      *slog.Logger
	stop     context.CancelFunc
	done     chan struct{}

	mu          sync.Mutex // of all that follows
	subscribers []*subscriber
	channels    []string
	relisten    context.CancelFunc // ends the call of Listen that is under way
}

// listeners are those of the process.
var listeners = struct {
	sync.Mutex
	of map[any]*listener
}{of: map[any]*listener{}}

// listen adds a subscriber to the listener of a notifier, and returns what takes it
// away. Without a notifier there is nothing to hear.
func listen(n Notifier, log *slog.Logger, e *subscriber) (leave func()) {
	if n == nil {
		return func() {}
	}
	var key any = n
	if !reflect.ValueOf(n).Comparable() {
		key = new(byte) // nobody else's
	}
	listeners.Lock()
	defer listeners.Unlock()
	l := listeners.of[key]
	if l == nil {
		ctx, stop := context.WithCancel(context.Background())
		l = &listener{key: key, notifier: n, log: log, stop: stop, done: make(chan struct{}), channels: []string{store.Channel}}
		listeners.of[key] = l
		defer func() { go l.run(ctx) }() // with the first subscriber
	}
	l.add(e)
	return func() { l.remove(e) }
}

// add adds a subscriber, and listens again where that needs one more channel.
func (l *listener) add(e *subscriber) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subscribers = append(l.subscribers, e)
	if e.events == "" || slices.Contains(l.channels, e.events) {
		return
	}
	l.channels = append(l.channels, e.events)
	if l.relisten != nil {
		l.relisten()
	}
}

// remove takes a subscriber away, and with the last one the listener. A Notifier that
// does not return is not waited for: it must not keep Run from returning.
func (l *listener) remove(e *subscriber) {
	listeners.Lock()
	l.mu.Lock()
	l.subscribers = slices.DeleteFunc(l.subscribers, func(o *subscriber) bool { return o == e })
	last := len(l.subscribers) == 0
	if last {
		delete(listeners.of, l.key)
	}
	e.hear(protocol.HintsDown)
	l.mu.Unlock()
	listeners.Unlock()
	if last {
		l.stop()
		patience := time.NewTimer(time.Second)
		defer patience.Stop()
		select {
		case <-l.done:
		case <-patience.C:
		}
	}
}

// run listens, again and again, and says once when it can't and once when it can
// again.
func (l *listener) run(ctx context.Context) {
	defer close(l.done)
	backoff := protocol.RetryListen.Backoff()
	for failures, away := 0, false; ; {
		inner, cancel := context.WithCancel(ctx)
		l.mu.Lock()
		channels := slices.Clone(l.channels)
		l.relisten = cancel
		l.mu.Unlock()
		up := func() {
			if away {
				l.log.Info("listening for notifications again")
			}
			failures, away = 0, false
			l.each(func(e *subscriber) { e.look(); e.hear(protocol.HintsUp) }) // what was said before was missed
		}
		_, err := apart("the Notifier", func() (struct{}, error) {
			return struct{}{}, l.notifier.Listen(inner, channels, up, l.heard)
		})
		changed := inner.Err() != nil
		cancel()
		l.each(func(e *subscriber) { e.hear(protocol.HintsDown) })
		switch {
		case ctx.Err() != nil:
			return
		case changed:
			continue
		case !away:
			l.log.Warn("cannot listen for notifications, polling instead", "error", err)
			away = true
		}
		failures++
		if !calls.Sleep(ctx, backoff.Delay(failures, mathrand.Float64())) {
			return
		}
	}
}

// heard passes a notification on. Whatever it says, all that it does is to have
// somebody look.
func (l *listener) heard(channel, payload string) {
	l.each(func(e *subscriber) {
		if channel == store.Channel && payload == e.set {
			e.look()
		}
		if channel == e.events {
			e.hear(protocol.HintHeard)
		}
	})
}

func (l *listener) each(f func(*subscriber)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.subscribers {
		f(e)
	}
}
