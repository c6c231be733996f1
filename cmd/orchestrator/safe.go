package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
)

// A safeWriter writes text to what may be a terminal. What of it would move the
// cursor, or change the order in which the rest is read, is shown as JSON escapes it:
// in what -json prints that is the same text.
type safeWriter struct{ to io.Writer }

func (w safeWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.to, safe(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// safe escapes control characters but for the end of a line and tabs, characters that
// are not seen and change others (bidirectional overrides), and separators of lines.
func safe(text string) string {
	harmless := func(r rune) bool {
		return r == '\n' || r == '\t' || !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
	}
	var b strings.Builder
	for _, r := range text { // what is not valid UTF-8 becomes U+FFFD
		switch high, low := utf16.EncodeRune(r); {
		case harmless(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
