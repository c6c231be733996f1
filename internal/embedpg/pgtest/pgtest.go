// Package pgtest gives each test a PostgreSQL database of its own.
//
//	db, url := pgtest.Database(t)
//
// Package embedpg documents where the server comes from.
package pgtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
)

// Limits, each longer than those of embedpg.
const (
	startMax    = 4 * time.Minute // with a download
	databaseMax = time.Minute
)

// running is the server, once a test has started it.
var running atomic.Pointer[embedpg.Server]

var start = sync.OnceValues(func() (*embedpg.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	s, err := embedpg.Start(ctx, embedpg.Options{Logger: log})
	if err == nil {
		running.Store(s)
	}
	return s, err
})

func log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "pgtest: "+format+"\n", args...)
}

// Main runs the tests and then stops the server if a test started one:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
// Without Main, the server ends a moment after the test binary.
func Main(m *testing.M) int {
	code := m.Run()
	if s := running.Load(); s != nil {
		if err := s.Stop(); err != nil {
			log("%v", err)
			code = max(code, 1)
		}
	}
	return code
}

// Server returns the server of the test binary. The first call starts it.
func Server(t testing.TB) *embedpg.Server {
	t.Helper()
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Database returns a new, empty database on the test binary's server, and its URL. The database
// is dropped when the test ends.
func Database(t testing.TB) (*sql.DB, string) {
	t.Helper()
	return DatabaseOn(t, Server(t))
}

// DatabaseOn is Database for another server, such as one that the test restarts.
func DatabaseOn(t testing.TB, s *embedpg.Server) (*sql.DB, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), databaseMax)
	defer cancel()

	url, drop, err := s.CreateDatabase(ctx, name(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), databaseMax)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Error(err)
		}
	})
	connector, err := pq.NewConnector(url)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() }) // runs before the drop
	return db, url
}

// name returns a database name for a test. It is recognisable, has at most 63 bytes and no
// characters that need quotes, and ends at random, since several test binaries may share a
// server.
func name(test string) string {
	plain := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '_'
	}, test)
	plain = plain[:min(len(plain), 45)]
	return "t_" + plain + "_" + strings.ToLower(rand.Text()[:12])
}

// Missing skips a test that needs a program which no Go module contains: a pooler, a browser, a
// program of PostgreSQL that downloads of the server lack. If REQUIRE_PROGRAMS is set, as in
// CI, it fails the test instead: there the program must be installed.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("REQUIRE_PROGRAMS") != "" {
		t.Fatalf("REQUIRE_PROGRAMS is set, and "+format, args...)
	}
	t.Skipf("SKIPPED: "+format, args...)
}
