// Package chunks copies bytes into memory that many copies share. An allocation for each
// would cost more than the copying does.
package chunks

import (
	"slices"
	"strings"
	"unsafe"
)

// A Chunk is memory for copies, Size bytes at once. Who keeps a copy keeps its chunk; so
// what is larger than a quarter has its own.
type Chunk struct {
	Size int
	// to is a Builder since that alone grows by memory that is not cleared first.
	to *strings.Builder
}

// Copy returns a copy of b, which is nobody else's, up to its capacity. Of no bytes it is
// empty, and not nil.
func (c *Chunk) Copy(b []byte) []byte {
	switch {
	case len(b) == 0:
		return []byte{}
	case len(b) > c.Size/4:
		return slices.Clip(slices.Clone(b))
	case c.to == nil || c.to.Cap()-c.to.Len() < len(b):
		c.to = new(strings.Builder)
		c.to.Grow(c.Size)
	}
	from := c.to.Len()
	_, _ = c.to.Write(b)
	return unsafe.Slice(unsafe.StringData(c.to.String()[from:]), len(b)) // of these bytes there is no other string
}
