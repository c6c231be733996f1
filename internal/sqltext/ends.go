package sqltext

import (
	"strings"
	"unicode/utf8"
)

// Whether a statement of a handler ends the transaction in which it runs.

// FirstWord returns the first word of a query, in upper case.
func FirstWord(query string) string {
	word, _ := nextWord(query)
	return strings.ToUpper(word)
}

// EndsTransaction returns the command of a query that ends the transaction in which it
// runs; "" if none does, as far as can be seen. What can't be seen (a driver's own way to
// send a statement) is detected when the checkpoint is moved.
func EndsTransaction(query string) string {
	rest := query
	for first := true; ; first = false {
		word, after := nextWord(rest)
		switch strings.ToUpper(word) {
		case "COMMIT", "ABORT":
			return strings.ToUpper(word)
		case "END": // further back it may be the end of a function's body
			if first {
				return "END"
			}
		case "ROLLBACK":
			next, after := nextWord(after)
			if w := strings.ToUpper(next); w == "WORK" || w == "TRANSACTION" {
				next, _ = nextWord(after)
			}
			if !strings.EqualFold(next, "TO") {
				return "ROLLBACK"
			}
		case "PREPARE":
			if next, _ := nextWord(after); strings.EqualFold(next, "TRANSACTION") {
				return "PREPARE TRANSACTION"
			}
		}
		if strings.IndexByte(after, ';') < 0 {
			return ""
		}
		var more bool
		if rest, more = nextStatement(after); !more {
			return ""
		}
	}
}

func wordByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '_'
}

// nextWord skips blanks, comments and semicolons, and returns the word that comes next.
func nextWord(query string) (word, rest string) {
	for query != "" {
		switch c := query[0]; {
		case c == ' ' || c >= '\t' && c <= '\r' || c == ';':
			query = query[1:]
		case strings.HasPrefix(query, "--") || strings.HasPrefix(query, "/*"):
			query = skipComment(query)
		default:
			end := 0
			for end < len(query) && wordByte(query[end]) {
				end++
			}
			return query[:end], query[end:]
		}
	}
	return "", ""
}

// nextStatement returns what comes behind the next semicolon that separates statements.
func nextStatement(query string) (rest string, more bool) {
	for query != "" {
		switch c := query[0]; {
		case c == ';':
			return query[1:], true
		case c == '\'':
			query = skipQuoted(query, false)
		case (c == 'E' || c == 'e') && len(query) > 1 && query[1] == '\'':
			query = skipQuoted(query[1:], true)
		case wordByte(c) || c >= utf8.RuneSelf: // an e at its end escapes nothing, a $ within it quotes nothing
			query = strings.TrimLeftFunc(query, func(r rune) bool { return r >= utf8.RuneSelf || r == '$' || wordByte(byte(r)) })
		case c == '"':
			query = skipQuoted(query, false)
		case c == '$':
			query = skipDollars(query)
		case strings.HasPrefix(query, "--") || strings.HasPrefix(query, "/*"):
			query = skipComment(query)
		default:
			query = query[1:]
		}
	}
	return "", false
}

// skipQuoted skips a string or a name. A doubled quote is two of them, side by side.
func skipQuoted(query string, escapes bool) string {
	quote := query[0]
	for i := 1; i < len(query); i++ {
		switch {
		case escapes && query[i] == '\\':
			i++
		case query[i] == quote:
			return query[i+1:]
		}
	}
	return ""
}

// skipDollars skips a dollar-quoted string, or the dollar of a parameter.
func skipDollars(query string) string {
	end := strings.IndexByte(query[1:], '$')
	if end < 0 || strings.ContainsAny(query[1:end+1], " \t\r\n;,()'\"") || end > 0 && query[1] >= '0' && query[1] <= '9' {
		return query[1:]
	}
	tag := query[:end+2]
	_, rest, _ := strings.Cut(query[len(tag):], tag)
	return rest
}

// skipComment skips a comment. Those between /* and */ may hold others.
func skipComment(query string) string {
	if query[1] == '-' {
		_, rest, _ := strings.Cut(query, "\n")
		return rest
	}
	depth := 0
	for i := 0; i+1 < len(query); i++ {
		switch query[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			if i++; depth == 0 {
				return query[i+1:]
			}
		}
	}
	return ""
}
