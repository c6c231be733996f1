// Package pqnotify is an orchestrator.Notifier that listens with github.com/lib/pq,
// whatever driver the rest of the program uses. Package orchestrator itself imports no
// driver, so only programs that import this package link lib/pq for it, and have
// database/sql's driver "postgres" registered by it.
package pqnotify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// A Notifier is for orchestrator.Config.Notifier. It keeps one connection while
// workers listen. Notifiers of the same URL are equal, and the workers of a process
// that have equal ones share the connection.
type Notifier struct {
	url string // Invariant: lib/pq parses it. It holds a password.
}

// New returns a Notifier that connects to url, a connection string as lib/pq takes it:
// a URL (postgres://…), in which a password is percent-encoded, or key=value pairs. It
// does not connect yet.
//
// The connection has to lead to the server itself, to the database of Config.DB. Behind
// a pooler that shares connections between transactions LISTEN succeeds, and nothing is
// ever heard: workers then poll, as they do without a Notifier.
//
// The error does not contain the connection string.
func New(url string) (Notifier, error) {
	if url == "" {
		return Notifier{}, errors.New("pqnotify: the connection string is empty")
	}
	if _, err := pq.NewConfig(url); err != nil {
		// Not err, nor where it is: of a password that is not encoded, parts are taken
		// for a host or a port.
		return Notifier{}, errors.New("pqnotify: this is no connection string that lib/pq takes, " +
			"which are URLs (postgres://…, where a password is percent-encoded) and key=value pairs")
	}
	return Notifier{url}, nil
}

// Format writes the type's name, whatever the verb: the URL holds a password.
func (Notifier) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "pqnotify.Notifier") }

// patience is how long a connection may be silent before it is asked whether it is
// still there, and how long an answer may take.
const patience = 15 * time.Second

// Listen implements orchestrator.Notifier.
//
// It is made of pq.ListenerConn and not of pq.Listener, which connects again by itself:
// when to, and what to log, package orchestrator decides for every Notifier.
func (n Notifier) Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	return redact.Error(n.listen(ctx, channels, up, heard))
}

func (n Notifier) listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	if n.url == "" {
		return errors.New("pqnotify: a zero Notifier: make it with New")
	}
	notifications := make(chan *pq.Notification)
	conn, err := within(ctx, func() (*pq.ListenerConn, error) {
		return pq.NewListenerConn(n.url, notifications)
	}, func(late *pq.ListenerConn) {
		_ = late.Close()
		drain(notifications)
	})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	gone := make(chan struct{})
	silence := time.NewTicker(patience)
	defer func() {
		_ = conn.Close() // ends what waits for it
		<-gone
		silence.Stop()
	}()
	go func() {
		defer close(gone)
		for n := range notifications {
			heard(n.Channel, n.Extra)
		}
	}()
	for _, c := range channels {
		if _, err := within(ctx, func() (bool, error) { return conn.Listen(c) }, nil); err != nil {
			return fmt.Errorf("listen to %q: %w", c, err)
		}
	}
	up()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-gone:
			return fmt.Errorf("the connection has ended: %w", conn.Err())
		case <-silence.C:
			// Not conn.Ping, which panics where the server refuses it.
			if _, err := within(ctx, func() (bool, error) { return conn.ExecSimpleQuery("") }, nil); err != nil {
				return fmt.Errorf("ask whether the connection is still there: %w", err)
			}
		}
	}
}

// within makes a call of lib/pq, none of which takes a context, and waits for it no
// longer than patience. A panic of it is an error.
func within[T any](ctx context.Context, call func() (T, error), late func(T)) (T, error) {
	return calls.Within(ctx, patience, func(context.Context) (value T, err error) {
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("lib/pq has panicked: %v", v)
			}
		}()
		return call()
	}, late)
}

// drain lets a connection end that nobody listens to.
func drain(notifications <-chan *pq.Notification) {
	for range notifications {
	}
}
