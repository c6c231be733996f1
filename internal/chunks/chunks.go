// Package chunks copies bytes into memory that many copies share. An allocation for each
// would cost more than the copying does.
package chunks

import (
	"slices"
	"strings"
	"unsafe"
)

// A Chunk is memory for copies. It is allocated Size bytes at a time. A copy keeps its whole
// allocation alive, so copies larger than a quarter of Size get their own.
type Chunk struct {
	Size int
	// to is a Builder because only a Builder allocates memory without clearing it.
	to *strings.Builder
}

// Copy returns a copy of b. Nothing else uses its memory, up to its capacity. The copy of no
// bytes is empty and not nil.
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
	return unsafe.Slice(unsafe.StringData(c.to.String()[from:]), len(b)) // no string refers to these bytes
}
