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

// Notifier receives PostgreSQL's notifications on a connection of its own. A notification
// only makes workers poll sooner: nothing is lost if it is missing, late or wrong. Package
// pqnotify has a Notifier.
//
// Workers of a process whose Notifiers are equal (==) share a connection.
type Notifier interface {
	// Listen connects and listens to the channels (quote their names). Then it calls up, and
	// from then on heard for each notification. It returns when ctx ends, or with the error of
	// the connection; in that case it is called again after a while. There is one call at a
	// time.
	Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error
}

// A subscriber has the functions that notifications call for one worker. They don't block.
type subscriber struct {
	set         string                 // notifications for this replica set call poll
	events      string                 // the channel of events; "": none
	poll        func()                 // the group may have changed
	eventsHeard func(protocol.Hearing) // there may be new events
}

// A listener passes the notifications of one connection on, to all workers of the process
// with the same Notifier.
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

// listen adds a subscriber to the listener of a notifier, and returns the function that
// removes it. Without a notifier it does nothing.
func listen(n Notifier, log *slog.Logger, s *subscriber) (leave func()) {
	if n == nil {
		return func() {}
	}
	var key any = n
	if !reflect.ValueOf(n).Comparable() {
		key = new(byte) // of its own
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
	l.add(s)
	return func() { l.remove(s) }
}

// add adds a subscriber, and listens again if that needs one more channel.
func (l *listener) add(s *subscriber) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subscribers = append(l.subscribers, s)
	if s.events == "" || slices.Contains(l.channels, s.events) {
		return
	}
	l.channels = append(l.channels, s.events)
	if l.relisten != nil {
		l.relisten()
	}
}

// remove removes a subscriber, and with the last one the listener. It waits a second at most
// for a Notifier that does not return: that must not keep Run from returning.
func (l *listener) remove(s *subscriber) {
	listeners.Lock()
	l.mu.Lock()
	l.subscribers = slices.DeleteFunc(l.subscribers, func(o *subscriber) bool { return o == s })
	last := len(l.subscribers) == 0
	if last {
		delete(listeners.of, l.key)
	}
	s.eventsHeard(protocol.HintsDown)
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

// run listens, again and again. It logs once that it can't, and once that it can again.
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
			l.each(func(s *subscriber) { s.poll(); s.eventsHeard(protocol.HintsUp) }) // earlier notifications were missed
		}
		_, err := apart("the Notifier", func() (struct{}, error) {
			return struct{}{}, l.notifier.Listen(inner, channels, up, l.heard)
		})
		changed := inner.Err() != nil
		cancel()
		l.each(func(s *subscriber) { s.eventsHeard(protocol.HintsDown) })
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

// heard passes a notification on. All that it does is to make workers poll.
func (l *listener) heard(channel, payload string) {
	l.each(func(s *subscriber) {
		if channel == store.Channel && payload == s.set {
			s.poll()
		}
		if channel == s.events {
			s.eventsHeard(protocol.HintHeard)
		}
	})
}

func (l *listener) each(f func(*subscriber)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.subscribers {
		f(s)
	}
}
