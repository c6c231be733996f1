// Package pqnotify provides an orchestrator.Notifier over github.com/lib/pq. With it workers
// learn at once of new events and of changes in the replica set, by LISTEN and NOTIFY.
//
//	notifier, err := pqnotify.New(os.Getenv("DATABASE_URL"))
//	if err != nil {
//		return err
//	}
//	cfg.Notifier = notifier
//
// The rules:
//
//   - The rest of the program may use any driver. Importing this package links lib/pq, which
//     registers the driver "postgres" with database/sql. Package orchestrator imports no driver.
//   - The URL must lead to the server itself. Behind a pooler in transaction mode, no
//     notification arrives, and workers poll as they do without a Notifier.
//   - All workers of a process that listen on the same URL share one connection.
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

// Notifier is a value for orchestrator.Config.Notifier. It keeps one connection while workers
// listen. Notifiers with the same URL are equal, and the workers of a process that have equal
// Notifiers share the connection.
type Notifier struct {
	url string // Invariant: lib/pq parses it. It holds a password.
}

// New returns a Notifier for a connection string of lib/pq: a URL (postgres://…), in which a
// password is percent-encoded, or key=value pairs. New does not connect. It returns an error
// if lib/pq can't parse the string. The error does not contain the string.
//
// The connection must lead to the server itself, and to the database of Config.DB. Behind a
// pooler in transaction mode LISTEN succeeds, but no notification arrives.
func New(url string) (Notifier, error) {
	if url == "" {
		return Notifier{}, errors.New("pqnotify: the connection string is empty")
	}
	if _, err := pq.NewConfig(url); err != nil {
		// err is left out: it quotes parts of the string, and parts of a password that
		// is not encoded look like a host or a port.
		return Notifier{}, errors.New("pqnotify: lib/pq can't parse the connection string: " +
			"pass a URL (postgres://…, in which a password is percent-encoded) or key=value pairs")
	}
	return Notifier{url}, nil
}

// Format writes the name of the type for every verb: the URL holds a password.
func (Notifier) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "pqnotify.Notifier") }

// patience is how long a connection may be silent before it is checked, and the limit for
// each answer of the server.
const patience = 15 * time.Second

// Listen implements orchestrator.Notifier.
//
// It uses pq.ListenerConn. pq.Listener reconnects by itself, but package orchestrator decides
// for every Notifier when to reconnect and what to log.
func (n Notifier) Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	return redact.Error(n.listen(ctx, channels, up, heard))
}

func (n Notifier) listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	if n.url == "" {
		return errors.New("pqnotify: the Notifier is a zero value; create it with New")
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
		_ = conn.Close() // ends calls that wait for the connection
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
			// conn.Ping would panic if the server refuses it.
			if _, err := within(ctx, func() (bool, error) { return conn.ExecSimpleQuery("") }, nil); err != nil {
				return fmt.Errorf("check the connection: %w", err)
			}
		}
	}
}

// within makes a call of lib/pq and waits for it no longer than patience: lib/pq's calls take
// no context. It turns a panic into an error.
func within[T any](ctx context.Context, call func() (T, error), late func(T)) (T, error) {
	return calls.Within(ctx, patience, func(context.Context) (value T, err error) {
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("lib/pq panicked: %v", v)
			}
		}()
		return call()
	}, late)
}

// drain receives the notifications of an abandoned connection, so that it can end.
func drain(notifications <-chan *pq.Notification) {
	for range notifications {
	}
}
