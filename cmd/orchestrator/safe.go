package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
)

// A safeWriter writes text to what may be a terminal. It escapes characters that would move
// the cursor or change the reading order, in the form of JSON. So output of -json keeps its
// meaning.
type safeWriter struct{ to io.Writer }

func (w safeWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.to, safe(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// safe escapes control characters except newline and tab, invisible format characters such as
// bidirectional overrides, and line and paragraph separators.
func safe(text string) string {
	harmless := func(r rune) bool {
		return r == '\n' || r == '\t' || !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
	}
	var b strings.Builder
	for _, r := range text { // invalid UTF-8 becomes U+FFFD
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
