package chunks

import (
	"bytes"
	"testing"
)

// Copies are what was copied, whatever the others' owners do with theirs.
func TestCopy(t *testing.T) {
	t.Parallel()
	c := Chunk{Size: 1000}
	var copies [][]byte
	for n := range 600 {
		b := bytes.Repeat([]byte{byte(n)}, n)
		copies = append(copies, c.Copy(b))
		clear(b)
	}
	for n, b := range copies {
		if n%2 == 1 {
			clear(b[:cap(b)])
			_ = append(b, "and more"...)
		}
	}
	for n, b := range copies {
		want := bytes.Repeat([]byte{byte(n)}, n)
		if n%2 == 1 {
			clear(want)
		}
		if b == nil || !bytes.Equal(b, want) || cap(b) != len(b) && n <= c.Size/4 {
			t.Fatalf("copy %d is %v, with room for %d", n, b, cap(b))
		}
	}
}

// Small ones share an allocation.
func TestCopyAllocates(t *testing.T) {
	c := Chunk{Size: 64 << 10}
	b := make([]byte, 100)
	if n := testing.AllocsPerRun(1000, func() { c.Copy(b) }); n > 0 {
		t.Errorf("%v allocations for each copy", n)
	}
}
