// Package sqltext makes the statements that the library sends. Each is written
// with plain names, and is sent with a schema on every table, function, operator
// and type, so that neither a session's search_path nor an object that another role has
// created on it decides what a name means.
//
// The texts keep to a few conventions, which [New] checks:
//   - SQL's own words are in upper case, names in lower case;
//   - a function's name and its "(" are not separated, everything else is;
//   - where two operators meet there are parentheses, since OPERATOR(…) has
//     another precedence than the operator that it names;
//   - what looks for an operator by a plain name only is not used: IN, BETWEEN,
//     LIKE, NULLIF, IS DISTINCT FROM, CASE x WHEN, JOIN … USING. There are
//     = ANY, CASE WHEN and record_eq, for which two NULLs are equal.
package sqltext

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// A Statement is a text whose names are resolved, but for what is put in by Bind.
type Statement struct{ parts []part }

// A part is SQL, and after it a value or a fragment by name; "" is none.
type part struct{ sql, put string }

const (
	schemaPut = "schema" // of the library's tables
	clockPut  = "clock"
)

var (
	tokens = regexp.MustCompile(`--[^\n]*|'(?:[^']|'')*'|"(?:[^"]|"")*"|\{\w+\}|\w+|::|[-+*/<>=~!@#%^&|?]+|\s+|.`)

	// syntax looks like a function and is none.
	syntax = []string{"coalesce", "greatest"}
	// types are those of pg_catalog that SQL has no word of its own for.
	types = []string{"text", "jsonb", "timestamptz", "oid", "regclass", "regnamespace", "name"}
	// byName are the words that look an operator up by its plain name.
	byName = []string{"IN", "BETWEEN", "LIKE", "ILIKE", "SIMILAR", "NULLIF", "NATURAL", "OVERLAPS"}
)

// A level is what is inside of one pair of parentheses.
type level struct {
	operator bool // there was one since the last word
	set      bool // in the list of a SET
	assign   bool // the next = is that of a SET
}

// New resolves the names in a text. It panics where that does not keep to the
// conventions: all texts are constants.
func New(text string) Statement {
	r := resolver{text: text, levels: []level{{}}}
	for _, token := range tokens.FindAllString(text, -1) {
		r.add(token)
	}
	r.flush("")
	return Statement{r.parts}
}

// HasTables reports whether a statement names any of the library's tables.
func (s Statement) HasTables() bool {
	return slices.ContainsFunc(s.parts, func(p part) bool { return p.put == schemaPut })
}

type resolver struct {
	text   string
	parts  []part
	sql    strings.Builder
	levels []level
	// before are the last three tokens, but for blanks, the latest first; apart
	// says that there were blanks after it.
	before [3]string
	apart  bool
}

func (r *resolver) flush(put string) {
	r.parts = append(r.parts, part{r.sql.String(), put})
	r.sql.Reset()
}

func (r *resolver) fail(why string) {
	panic(fmt.Sprintf("sqltext: %s: %s", why, r.text))
}

func (r *resolver) add(token string) {
	last := &r.levels[len(r.levels)-1]
	first := rune(token[0])
	switch {
	case strings.HasPrefix(token, "--"):
		return
	case unicode.IsSpace(first):
		r.apart = true
		r.sql.WriteByte(' ')
		return
	case token == "(":
		r.call()
		r.levels = append(r.levels, level{})
	case token == ")":
		r.levels = r.levels[:max(len(r.levels)-1, 1)]
	case token == ",":
		last.operator, last.assign = false, last.set
	case first == '{' && len(token) > 1:
		r.flush(token[1 : len(token)-1])
	case strings.ContainsRune("-+*/<>=~!@#%^&|?", first):
		token = r.operator(token, last)
	case unicode.IsUpper(first):
		r.keyword(token, last)
	case unicode.IsLower(first):
		token = r.name(token)
	}
	if first != '{' || len(token) == 1 {
		r.sql.WriteString(token)
	}
	r.before = [3]string{token, r.before[0], r.before[1]}
	r.apart = false
}

// call qualifies the function whose arguments begin.
func (r *resolver) call() {
	name := r.before[0]
	if name == "USING" || name == "nullif" {
		r.fail(name + " looks an operator up by its name")
	}
	if r.apart || name == "" || !unicode.IsLower(rune(name[0])) || slices.Contains(syntax, name) {
		return
	}
	if r.before[1] == "." {
		r.fail("function " + name + " has a schema already")
	}
	sql := strings.TrimSuffix(r.sql.String(), name)
	sql = strings.TrimSuffix(sql, "pg_catalog.") // it looked like a catalog
	r.sql.Reset()
	r.sql.WriteString(sql + "pg_catalog." + name)
}

func (r *resolver) operator(token string, l *level) string {
	operand := r.before[0] != "" && (r.before[0] == ")" || r.before[0][0] == '}' || strings.ContainsAny(r.before[0][:1], `'"{$`) ||
		!unicode.IsUpper(rune(r.before[0][0])) && (unicode.IsLetter(rune(r.before[0][0])) || unicode.IsDigit(rune(r.before[0][0]))))
	switch {
	case token == "*" && !operand: // all columns
		return token
	case token == "=" && l.assign:
		l.assign = false
		return token
	case l.operator:
		r.fail("put parentheses around what goes with " + token)
	}
	l.operator = true
	return "OPERATOR(pg_catalog." + token + ")"
}

func (r *resolver) keyword(token string, l *level) {
	was := r.before[0]
	switch {
	case slices.Contains(byName, token), token == "DISTINCT" && (was == "IS" || was == "NOT"), was == "CASE" && token != "WHEN":
		r.fail(token + " looks an operator up by its name")
	case token == "SET" && was != "":
		l.set, l.assign = true, true
	case token == "WHERE", token == "FROM", token == "RETURNING":
		l.set, l.assign = false, false
	}
	l.operator = false
}

func (r *resolver) name(token string) string {
	was := r.before[0]
	if was == "CASE" {
		r.fail("CASE of a value looks an operator up by its name")
	}
	column := func() bool { // in a list of columns with their types: (id text, …
		return r.before[1] == "(" || r.before[1] == ","
	}
	switch {
	case was == ".":
	case slices.Contains(types, token) && (was == "::" || column() && was != "" && unicode.IsLower(rune(was[0]))):
		return "pg_catalog." + token
	case strings.HasPrefix(token, "pg_") && token != "pg_catalog":
		r.sql.WriteString("pg_catalog.")
	case strings.HasPrefix(token, "orchestrator_"):
		r.flush(schemaPut)
		r.sql.WriteByte('.')
	}
	return token
}

// Values are what Bind puts in, by name. A string is a text, an int and an int64
// a bigint, an int32 an integer, a bool a boolean, a time a timestamptz, and the
// zero time NULL. These reach the server as values, whatever they contain.
type Values map[string]any

type (
	// JSON is a value of jsonb.
	JSON struct{ Value any }
	// Ident is a name. It is quoted.
	Ident string
	// SQL is put in as it is. Nothing that comes from outside may be in it, but
	// for names that are quoted.
	SQL string
)

// Names are what a database's statements need to have put in.
type Names struct {
	// Schema is where the library's tables are.
	Schema string
	// Clock is the SQL expression for the time; empty is clock_timestamp().
	Clock string
	// Literals has values sent in the text. lib/pq takes one round trip for that,
	// and two for arguments. Another driver may prepare and keep each text: pgx
	// does, up to 512 in each session, which take the server 90 MB.
	Literals bool
}

// Bind returns the statement as it is sent.
func (n Names) Bind(s Statement, values Values) (query string, args []any) {
	var b strings.Builder
	numbers := map[string]string{}
	for _, p := range s.parts {
		b.WriteString(p.sql)
		if p.put == "" {
			continue
		}
		if text, ok := numbers[p.put]; ok {
			b.WriteString(text)
			continue
		}
		text, kind, value := n.put(p.put, values)
		if kind != "" {
			args = append(args, value)
			text = fmt.Sprintf("$%d::%s", len(args), kind)
			if n.Literals {
				text = literal(value) + "::" + kind
			}
		}
		numbers[p.put] = text
		b.WriteString(text)
	}
	if n.Literals {
		args = nil
	}
	return b.String(), args
}

// put returns SQL; or a value, a string or nil or what any driver takes, and its type.
func (n Names) put(name string, values Values) (text, kind string, value any) {
	switch {
	case name == schemaPut:
		return Quote(n.Schema), "", nil
	case name == clockPut && n.Clock == "":
		return "pg_catalog.clock_timestamp()", "", nil
	case name == clockPut:
		return "(" + n.Clock + ")", "", nil
	}
	v, ok := values[name]
	if !ok {
		panic(fmt.Sprintf("sqltext: there is no value for {%s}", name))
	}
	switch v := v.(type) {
	case Ident:
		return Quote(string(v)), "", nil
	case SQL:
		return string(v), "", nil
	case string:
		return "", "pg_catalog.text", v
	case int:
		return "", "bigint", int64(v)
	case int64:
		return "", "bigint", v
	case int32:
		return "", "integer", int64(v)
	case bool:
		return "", "boolean", v
	case time.Time:
		if v.IsZero() {
			return "", "pg_catalog.timestamptz", nil
		}
		return "", "pg_catalog.timestamptz", v.UTC().Format(time.RFC3339Nano)
	case JSON:
		b, err := json.Marshal(v.Value)
		if err != nil {
			panic(fmt.Sprintf("sqltext: {%s} of type %T does not encode: %v", name, v.Value, err))
		}
		return "", "pg_catalog.jsonb", string(b)
	}
	panic(fmt.Sprintf("sqltext: {%s} is of type %T, which can't be put in", name, v))
}

// literal returns a value as a quoted text. Not as a number: of -1::bigint the
// minus would be an operator.
func literal(value any) string {
	if value == nil {
		return "NULL"
	}
	return QuoteLiteral(fmt.Sprint(value))
}

// Quote quotes a name.
func Quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// QuoteLiteral quotes a text. It means the same whatever standard_conforming_strings
// is: one with a backslash is written as E'…'. The blank in front keeps the E apart
// from what precedes it.
func QuoteLiteral(text string) string {
	text = strings.ReplaceAll(text, "'", "''")
	if strings.Contains(text, `\`) {
		return " E'" + strings.ReplaceAll(text, `\`, `\\`) + "'"
	}
	return "'" + text + "'"
}
