package pqnotify_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/pqnotify"
)

const secret = "hunter2"

// A connection string that lib/pq can't parse is refused, and the error does not contain it. A
// valid one is not printed with the Notifier.
func TestNewRefuses(t *testing.T) {
	for _, url := range []string{
		"",
		"postgres://user:hunter2@127.0.0.1:x/db",
		"postgres://user:%zzhunter2@127.0.0.1/db",
		"postgres://user:hunter2#x@127.0.0.1:1/db",
		"host=127.0.0.1 password=x hunter2 dbname=y",
		"host=127.0.0.1 port=hunter2",
		"hunter2",
	} {
		n, err := pqnotify.New(url)
		if err == nil || !strings.HasPrefix(err.Error(), "pqnotify: ") {
			t.Errorf("New(%q) returned %v", url, err)
		}
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, secret) {
			t.Errorf("New(%q) says: %s", url, text)
		}
		if err := n.Listen(t.Context(), nil, nil, nil); err == nil {
			t.Error("a Notifier that New has refused listens")
		}
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	n, err := pqnotify.New("postgres://user:hunter2@127.0.0.1:1/db?connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s %q %d %x", n, n, n, n, n, n, n); strings.Contains(text, secret) || strings.Contains(text, "127.0.0.1") {
		t.Errorf("a Notifier is printed as %s", text)
	}
	err = n.Listen(t.Context(), []string{"c"}, func() { t.Error("it is up") }, nil)
	if err == nil || strings.Contains(fmt.Sprintf("%+v", err), secret) {
		t.Errorf("Listen returned %v", err)
	}
}

// Workers with the same URL share a connection: their Notifiers are equal.
func TestEqual(t *testing.T) {
	notifier := func(url string) orchestrator.Notifier {
		n, err := pqnotify.New(url)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, b, c := notifier("host=h dbname=a"), notifier("host=h dbname=a"), notifier("host=h dbname=c")
	if a != b || a == c {
		t.Errorf("equal URLs: %t, others: %t", a == b, a == c)
	}
}

// Listen returns when its context ends, also while it connects.
func TestListenEndsWithItsContext(t *testing.T) {
	n, err := pqnotify.New("host=127.0.0.1 port=1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Listen(ctx, []string{"c"}, func() {}, nil); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Listen returned %v", err)
	}
}
