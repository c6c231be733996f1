package store

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// errorMax is how many bytes of an error are kept.
const errorMax = 1000

// errorText returns an error's text as PostgreSQL accepts it, shortened to errorMax.
func errorText(text string, ascii bool) string {
	text = protocol.Storable(text)
	if ascii {
		text = protocol.ASCII(text)
	}
	if len(text) <= errorMax {
		return text
	}
	end := errorMax
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}

// asciiJSON returns JSON whose texts show every character beyond ASCII as in Go's
// "\u201c". JSON's own \u201c would not do: the server turns it into the character
// that it can't hold.
func asciiJSON(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == '\\' && i+6 <= len(text) && text[i+1] == 'u':
			if code, err := strconv.ParseUint(text[i+2:i+6], 16, 16); err == nil && (code == 0 || code > 0x7e) {
				b.WriteByte('\\')
			}
			size = 6
			b.WriteString(text[i : i+size])
		case r == '\\' && i+2 <= len(text):
			size = 2
			b.WriteString(text[i : i+size])
		case r < utf8.RuneSelf:
			b.WriteByte(text[i])
		default:
			b.WriteString(strings.ReplaceAll(protocol.ASCII(text[i:i+size]), `\`, `\\`))
		}
		i += size
	}
	return b.String()
}
