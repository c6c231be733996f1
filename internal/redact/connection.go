package redact

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// Connection returns an error for pages and reports, which more people see than the log: if
// err says that no connection to the database can be made, a fixed sentence without its host,
// its users and its databases. Of other errors it is Error. errors.Is and errors.As work as
// before.
func Connection(err error) error {
	if err == nil {
		return nil
	}
	if sentence := connectionSentence(err); sentence != "" {
		return &safeError{text: sentence, err: err}
	}
	return Error(err)
}

// The SQLSTATEs of a refused connection, by their beginning. A server's other errors name no
// host and no user.
var refusedStates = []struct{ state, sentence string }{
	{"28", "the database refused the login"},
	{"3D000", "the database does not exist on the server"},
	{"53300", "the server has no connection left"},
}

func connectionSentence(err error) (sentence string) {
	var dials, unresolved, certificate, refused, late bool
	walk(err, func(e error) bool {
		if s, ok := as[interface{ SQLState() string }](e); ok {
			for _, r := range refusedStates {
				if state := s.SQLState(); strings.HasPrefix(state, r.state) && sentence == "" {
					sentence = fmt.Sprintf("%s (SQLSTATE %s)", r.sentence, state)
				}
			}
		}
		if op, ok := as[*net.OpError](e); ok {
			dials, late = true, late || op.Timeout()
		}
		if number, ok := as[syscall.Errno](e); ok {
			refused = refused || number == syscall.ECONNREFUSED
		}
		unresolved = unresolved || has[*net.DNSError](e)
		certificate = certificate || has[x509.UnknownAuthorityError](e) || has[x509.HostnameError](e) || has[x509.CertificateInvalidError](e)
		late = late || e == context.DeadlineExceeded //nolint:errorlint // walk unwraps
		return false
	})
	dials = dials || strings.Contains(fmt.Sprint(err), "failed to connect to ") // as pgx says it
	switch {
	case sentence != "":
		return sentence
	case unresolved:
		return "the database's host name can't be resolved"
	case certificate:
		return "the database's TLS certificate is not accepted"
	case refused:
		return "the database refused the connection: it is down, or another port is meant"
	case dials && late:
		return "the database did not answer in time"
	case dials:
		return "the connection to the database failed"
	}
	return ""
}

// as returns an error as a T: itself, or what its method As finds. walk unwraps.
func as[T any](err error) (t T, ok bool) {
	if t, ok = any(err).(T); ok {
		return t, true
	}
	if a, can := err.(interface{ As(target any) bool }); can { //nolint:errorlint // walk unwraps
		ok = a.As(&t)
	}
	return t, ok
}

func has[T any](err error) bool {
	_, ok := as[T](err)
	return ok
}
