// Package redact decides what of an error may leave the process: in logs, reports,
// the status, probes, the error that Run returns, and what commands print. Drivers
// quote connection strings in their errors, and a connection string holds a password.
//
// A password can't be found in a string that its own driver fails to parse: a
// character that should have been percent-encoded makes a host, a port or a key of a
// part of it. So nothing is searched for a password. Where a connection string
// begins, the text ends.
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

// Error returns an error whose text has no secret in it. It is err itself where
// that has none. Otherwise it wraps err, so that errors.Is and errors.As find what
// they found before; what they find has its own text.
func Error(err error) error {
	if err == nil {
		return nil
	}
	text := fmt.Sprint(err) // whose Error panics has a text as well
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

// GoString is for %#v, which would show what is wrapped.
func (e *safeError) GoString() string { return fmt.Sprintf("%q", e.text) }

// Unusable reports whether a connection string can't be parsed, or says what its
// driver can't do: trying again is of no use.
func Unusable(err error) bool {
	return walk(err, func(e error) bool { return parseError(e) || complaint.MatchString(start(fmt.Sprint(e))) })
}

// parseError reports whether net/url could not parse a connection string. It is
// what lib/pq returns, and has the whole string in it.
func parseError(err error) bool {
	e, ok := err.(*url.Error) //nolint:errorlint // walk unwraps
	if !ok || e == nil || e.Op != "parse" {
		return false
	}
	web := strings.HasPrefix(e.URL, "http://") || strings.HasPrefix(e.URL, "https://")
	return !web
}

// nodes is how many errors are looked at of those that one wraps. An error of
// somebody else's may wrap itself.
const nodes = 1000

// walk calls visit for an error and those that it wraps until that returns true,
// and reports whether it has.
func walk(err error, visit func(error) bool) (found bool) {
	defer func() {
		if recover() != nil { // a nil pointer that is an error, say
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
		switch w := err.(type) { //nolint:errorlint // this is what unwraps
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
	// complaint is how drivers begin to say what is wrong with a connection string.
	// What follows quotes it. The parts in parentheses name a key, and are kept.
	// Quotes may be escaped: an error may be quoted by another.
	complaint = regexp.MustCompile(`(?s)missing \\*"=\\*" after .*|cannot parse ` + "`" + `.*|parse \\*"postgres(?:ql)?:.*|` +
		`unterminated quoted string literal in connection string|missing character after backslash|` +
		`invalid connection protocol: .*|pq: (?:wrong value for (?:\\*"([a-z_]+)\\*"|(\$[A-Z]+))|unknown setting|unsupported client_encoding|` +
		`unsupported datestyle|weak sslmode|unknown custom sslmode|min_protocol_version|could not match \d+|` +
		`environment variable (\$[A-Z]+) is not supported).*`)

	// pgx puts user and database before the reason, and either may be part of a
	// password that is not encoded.
	pgxConnect = regexp.MustCompile("(?s)failed to connect to `user=.* database=.*`:\\s*")

	// A server refuses what it does not know of a connection string by its name.
	parameter = regexp.MustCompile(`(unrecognized configuration parameter) "[^"]*"`)
	name      = regexp.MustCompile(`\b(database|user|role) "[^"]*[@:/?#%=\s][^"]*"`)

	// The beginnings of connection strings. An ellipsis follows where people are told
	// what one looks like. One may be escaped, in JSON or in another URL.
	postgresURL = regexp.MustCompile(`(?i)\bpostgres(?:ql)?:/(?:/[^…]|[^/…])|\bpostgres(?:ql)?(?::\\+/|%3A(?:/|%2F))`)
	// secretKey alone, or two keys of which one is no everyday word. It may be one of
	// JSON, of YAML, or a field that was printed.
	secretKey = regexp.MustCompile(`(?i)(?:\b|_|PG|ssl)(?:password|passwd|passphrase|pwd|passfile|pass)\\*["']?\s*[=:]`)
	rareKey   = regexp.MustCompile(`(?i)(?:\b|PG)(?:dbname|service|servicefile|sslmode|sslcert|sslkey|sslrootcert|application_name|` +
		`connect_timeout|target_session_attrs)\s*=`)
	anyKey = regexp.MustCompile(`(?i)(?:\b|PG)(?:host|hostaddr|port|user|database|options|dbname|service|servicefile|sslmode|sslcert|sslkey|` +
		`sslrootcert|application_name|connect_timeout|target_session_attrs)\s*=`)

	// Another URL loses what stands before its host, and so does a string of MySQL's driver.
	userInfo  = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s"'<>]*@`)
	mysqlUser = regexp.MustCompile(`[^\s"'<>]*:[^\s"'<>]*@((?:tcp6?|unix)\()`)
)

// Text returns a text without the connection strings in it. What follows one is left
// out as well: nobody can say where a malformed one ends. Of a long text, only the
// beginning is left.
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

// textMax is how many bytes of a text are looked at. Handlers' errors may quote all that
// they have read.
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
