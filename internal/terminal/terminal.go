// Package terminal is what commands need of a terminal: whether there is one, its size, and
// single keys. It has no dependency: stty does what the standard library can't.
package terminal

import (
	"io"
	"os"
)

// Is reports whether a stream is a terminal. /dev/null, the input under cron, is none.
func Is(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device too
	return err != nil || !os.SameFile(info, null)
}

// Draws reports whether a stream is a terminal that obeys control sequences.
func Draws(stream any) bool {
	term := os.Getenv("TERM")
	return term != "" && term != "dumb" && Is(stream)
}

// Colours reports whether a stream is a terminal that shows colours, for a user who has nothing
// against them (https://no-color.org).
func Colours(stream any) bool { return os.Getenv("NO_COLOR") == "" && Draws(stream) }

// A Key is a character, or one of the keys below.
type Key rune

// Keys that send no character. The numbers are in Unicode's private use area.
const (
	Up Key = 0xe000 + iota
	Down
	PageUp
	PageDown
	Home
	End
	Other // any other key that sends an escape sequence
)

// sequences are what keys send after ESC [ or ESC O.
var sequences = map[string]Key{
	"A": Up, "B": Down, "5~": PageUp, "6~": PageDown,
	"H": Home, "1~": Home, "7~": Home, "F": End, "4~": End, "8~": End,
}

// ReadKeys calls press for each key that is typed, until the input ends or press returns false.
func ReadKeys(in io.Reader, press func(Key) bool) {
	var typed keys
	for buffer := make([]byte, 64); ; {
		n, err := in.Read(buffer)
		for _, b := range buffer[:n] {
			if key, ok := typed.next(b); ok && !press(key) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// keys makes keys of bytes. A sequence may come in several reads.
type keys struct {
	escape bool   // after ESC
	inside bool   // after ESC [ or ESC O
	sent   []byte // what has come of the sequence since
}

func (k *keys) next(b byte) (key Key, ok bool) {
	switch {
	case b == '\x1b':
		*k = keys{escape: true}
		return 0, false
	case k.inside:
		if k.sent = append(k.sent, b); b < '@' || b > '~' {
			return 0, false // a parameter
		}
		key, ok = sequences[string(k.sent)]
		if !ok {
			key = Other
		}
		*k = keys{}
		return key, true
	case k.escape && (b == '[' || b == 'O'):
		k.inside = true
		return 0, false
	case k.escape: // Alt and a character
		*k = keys{}
		return Other, true
	}
	return Key(b), true
}
