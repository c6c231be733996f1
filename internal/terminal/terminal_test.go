package terminal

import (
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// Keys that send a sequence arrive as one key, also if the sequence comes byte by byte.
func TestReadKeys(t *testing.T) {
	const typed = "q\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[1;5A\x1b[H\x1b[4~\x1bxk"
	want := []Key{'q', Up, Down, PageUp, PageDown, Other, Home, End, Other, 'k'}
	var got []Key
	take := func(key Key) bool {
		got = append(got, key)
		return true
	}
	if ReadKeys(strings.NewReader(typed), take); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	got = nil
	if ReadKeys(iotest.OneByteReader(strings.NewReader(typed)), take); !slices.Equal(got, want) {
		t.Errorf("byte by byte: got %x, want %x", got, want)
	}
	got = nil
	ReadKeys(strings.NewReader("abc"), func(key Key) bool {
		got = append(got, key)
		return key != 'b'
	})
	if !slices.Equal(got, []Key{'a', 'b'}) {
		t.Errorf("after press has returned false: got %q", got)
	}
}
