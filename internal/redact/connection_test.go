package redact

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	_ "github.com/lib/pq"
)

type stateError struct{ state, text string }

func (e stateError) Error() string    { return e.text }
func (e stateError) SQLState() string { return e.state }

type selfish struct{}

func (selfish) Error() string   { return "it wraps itself" }
func (e selfish) Unwrap() error { return e }

// What a page shows of a connection that can't be made names no host, user or database.
func TestConnection(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 5432}, Err: err}
	}
	down, err := sql.Open("postgres", "postgres://hunter:hunter2@127.0.0.1:1/hunterdb?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"lib/pq, no server":    {down.Ping(), "the database refused the connection: it is down, or another port is meant"},
		"connection refused":   {fmt.Errorf("heartbeat: %w", dial(os.NewSyscallError("connect", syscall.ECONNREFUSED))), "the database refused the connection: it is down, or another port is meant"},
		"no such host":         {dial(&net.DNSError{Err: "no such host", Name: "hunter.internal"}), "the database's host name can't be resolved"},
		"timeout":              {dial(os.ErrDeadlineExceeded), "the database did not answer in time"},
		"reset":                {dial(os.NewSyscallError("read", syscall.ECONNRESET)), "the connection to the database failed"},
		"certificate":          {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "hunter.internal"}, "the database's TLS certificate is not accepted"},
		"pgx":                  {errors.New("failed to connect to `user=hunter database=hunterdb`: 10.9.8.7:5432 (hunter.internal): server error"), "the connection to the database failed"},
		"pgx, deadline":        {fmt.Errorf("failed to connect to `user=hunter database=hunterdb`: %w", context.DeadlineExceeded), "the database did not answer in time"},
		"wrong password":       {fmt.Errorf("begin: %w", stateError{"28P01", `pq: password authentication failed for user "hunter"`}), "the database refused the login (SQLSTATE 28P01)"},
		"pg_hba":               {stateError{"28000", `pq: no pg_hba.conf entry for host "10.9.8.7", user "hunter", database "hunterdb", no encryption`}, "the database refused the login (SQLSTATE 28000)"},
		"no database":          {stateError{"3D000", `pq: database "hunterdb" does not exist`}, "the database does not exist on the server (SQLSTATE 3D000)"},
		"too many connections": {stateError{"53300", `pq: too many connections for role "hunter"`}, "the server has no connection left (SQLSTATE 53300)"},
	} {
		got := Connection(test.err)
		if got.Error() != test.want || strings.Contains(got.Error(), "hunter") || strings.Contains(got.Error(), "10.9.8.7") {
			t.Errorf("%s: %q becomes %q, want %q", name, test.err, got, test.want)
		}
		if !errors.Is(got, test.err) {
			t.Errorf("%s: the error is lost", name)
		}
	}
}

// An error of a connection that works is as Error has it.
func TestConnectionKeepsOtherErrors(t *testing.T) {
	for _, err := range []error{
		stateError{"42P01", `pq: relation "events" does not exist (42P01)`},
		stateError{"57P01", "FATAL: terminating connection due to administrator command (SQLSTATE 57P01)"},
		errors.New("the schema is of version 2"),
		context.DeadlineExceeded,
	} {
		if got := Connection(err); got != err { //nolint:errorlint // the same one
			t.Errorf("%q becomes %q", err, got)
		}
	}
	if Connection(nil) != nil {
		t.Error("there is an error where there was none")
	}
	if got := Connection(errors.New("with password=hunter2")); strings.Contains(got.Error(), "hunter2") {
		t.Errorf("a password is shown: %q", got)
	}
	_ = connectionSentence(selfish{}) // which wraps itself: it ends
}
