// Package redact removes secrets from errors before they leave the process: in logs, reports,
// the status, probes, the error that Run returns, and the output of commands. Drivers quote
// connection strings in their errors, and a connection string can hold a password.
//
// A password can't be found in a string that its own driver fails to parse: if a character is
// not percent-encoded, a part of the password looks like a host, a port or a key. So this
// package does not search for passwords. It ends a text where a connection string begins.
package redact

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

const (
	withheld = "[connection string withheld]"
	unusable = "the connection string can't be parsed; a password in a URL must be percent-encoded"
)

// Error returns an error whose text holds no secret. It returns err itself if its text holds
// none. Otherwise it wraps err, so that errors.Is and errors.As work as before. Errors that
// errors.As finds still have their own text.
func Error(err error) error {
	if err == nil {
		return nil
	}
	text := fmt.Sprint(err) // also works if the method Error panics
	safe := text
	walk(err, func(e error) bool {
		if parseError(e) {
			safe = strings.ReplaceAll(safe, fmt.Sprint(e), unusable)
		}
		return false
	})
	if safe = Text(safe); safe == text {
		return err
	}
	return &safeError{text: safe, err: err}
}

type safeError struct {
	text string
	err  error
}

func (e *safeError) Error() string { return e.text }
func (e *safeError) Unwrap() error { return e.err }

// GoString prevents %#v from showing the wrapped error.
func (e *safeError) GoString() string { return fmt.Sprintf("%q", e.text) }

// Unusable reports whether err means that a connection string can't be parsed or has a setting
// that its driver does not support. Trying again is useless then.
func Unusable(err error) bool {
	return walk(err, func(e error) bool { return parseError(e) || complaint.MatchString(start(fmt.Sprint(e))) })
}

// parseError reports whether err is from net/url about a connection string. lib/pq returns such
// errors, which contain the whole string.
func parseError(err error) bool {
	e, ok := err.(*url.Error) //nolint:errorlint // walk unwraps
	if !ok || e == nil || e.Op != "parse" {
		return false
	}
	web := strings.HasPrefix(e.URL, "http://") || strings.HasPrefix(e.URL, "https://")
	return !web
}

// nodes is the most wrapped errors that walk visits. A foreign error may wrap itself.
const nodes = 1000

// walk calls visit for an error and the errors that it wraps, until visit returns true. It
// reports whether visit has.
func walk(err error, visit func(error) bool) (found bool) {
	defer func() {
		if recover() != nil { // for example, of a nil pointer in an error
			found = false
		}
	}()
	left := nodes
	var down func(error) bool
	down = func(err error) bool {
		if left--; err == nil || left < 0 {
			return false
		}
		if visit(err) {
			return true
		}
		switch w := err.(type) { //nolint:errorlint // walk itself unwraps
		case interface{ Unwrap() error }:
			return down(w.Unwrap())
		case interface{ Unwrap() []error }:
			for _, e := range w.Unwrap() {
				if down(e) {
					return true
				}
			}
		}
		return false
	}
	return down(err)
}

var (
	// complaint matches the start of drivers' errors about a connection string. The rest of
	// such an error quotes the string. Groups are names of keys, which are kept. Quotes may
	// be escaped, since an error may be quoted by another one.
	complaint = regexp.MustCompile(`(?s)missing \\*"=\\*" after .*|cannot parse ` + "`" + `.*|parse \\*"postgres(?:ql)?:.*|` +
		`unterminated quoted string literal in connection string|missing character after backslash|` +
		`invalid connection protocol: .*|pq: (?:wrong value for (?:\\*"([a-z_]+)\\*"|(\$[A-Z]+))|unknown setting|unsupported client_encoding|` +
		`unsupported datestyle|weak sslmode|unknown custom sslmode|min_protocol_version|could not match \d+|` +
		`environment variable (\$[A-Z]+) is not supported).*`)

	// pgx writes user and database before the reason. Each may be part of a password that is
	// not percent-encoded.
	pgxConnect = regexp.MustCompile("(?s)failed to connect to `user=.* database=.*`:\\s*")

	// A server names an unknown setting of a connection string when it refuses it.
	parameter = regexp.MustCompile(`(unrecognized configuration parameter) "[^"]*"`)
	name      = regexp.MustCompile(`\b(database|user|role) "[^"]*[@:/?#%=\s][^"]*"`)

	// The start of a connection string. With an ellipsis after it, it is only an example in
	// a message. It may be escaped, in JSON or in another URL.
	postgresURL = regexp.MustCompile(`(?i)\bpostgres(?:ql)?:/(?:/[^…]|[^/…])|\bpostgres(?:ql)?(?::\\+/|%3A(?:/|%2F))`)
	// A connection string in key=value form is recognised by secretKey, or by two keys of which
	// at least one matches rareKey. secretKey may be in JSON, in YAML or in a printed struct.
	secretKey = regexp.MustCompile(`(?i)(?:\b|_|PG|ssl)(?:password|passwd|passphrase|pwd|passfile|pass)\\*["']?\s*[=:]`)
	rareKey   = regexp.MustCompile(`(?i)(?:\b|PG)(?:dbname|service|servicefile|sslmode|sslcert|sslkey|sslrootcert|application_name|` +
		`connect_timeout|target_session_attrs)\s*=`)
	anyKey = regexp.MustCompile(`(?i)(?:\b|PG)(?:host|hostaddr|port|user|database|options|dbname|service|servicefile|sslmode|sslcert|sslkey|` +
		`sslrootcert|application_name|connect_timeout|target_session_attrs)\s*=`)

	// Of other URLs, the part before the host is removed, and the same for MySQL's driver.
	userInfo  = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s"'<>]*@`)
	mysqlUser = regexp.MustCompile(`[^\s"'<>]*:[^\s"'<>]*@((?:tcp6?|unix)\()`)
)

// Text returns a text without connection strings. The text after a connection string is removed
// as well, since the end of a malformed string is unknown. A long text is cut.
func Text(text string) string {
	text = start(text)
	text = pgxConnect.ReplaceAllString(text, "failed to connect: ")
	if at := complaint.FindStringSubmatchIndex(text); at != nil {
		key := ""
		for i := 2; i < len(at); i += 2 {
			if at[i] >= 0 {
				key = ": " + text[at[i]:at[i+1]]
			}
		}
		text = text[:at[0]] + unusable + key
	}
	if at := postgresURL.FindStringIndex(text); at != nil {
		text = cut(text, at[0])
	}
	keys := anyKey.FindAllStringIndex(text, 2)
	if at := secretKey.FindStringIndex(text); at != nil {
		text = cut(text, at[0])
		if len(keys) > 0 && keys[0][0] < at[0] {
			text = cut(text, keys[0][0])
		}
	} else if len(keys) > 1 && rareKey.MatchString(text) {
		text = cut(text, keys[0][0])
	}
	text = parameter.ReplaceAllString(text, "$1")
	text = name.ReplaceAllString(text, "$1 [withheld]")
	text = mysqlUser.ReplaceAllString(text, "[withheld]@$1")
	return userInfo.ReplaceAllString(text, "$1[withheld]@")
}

// textMax is the most bytes of a text that are kept. Errors of handlers may quote all of their
// input.
const textMax = 16 << 10

func start(text string) string {
	if len(text) <= textMax {
		return text
	}
	return strings.ToValidUTF8(text[:textMax], "") + "…"
}

// cut ends a text where a connection string begins.
func cut(text string, at int) string {
	before := strings.TrimRight(text[:at], " \"'`")
	before = strings.TrimSuffix(before, "parse")
	before = strings.TrimRight(before, " ")
	if before == "" {
		return withheld
	}
	return before + " " + withheld
}
