package orchestrator

import (
	"reflect"
	"slices"
	"unsafe"
)

// A handout hands events to the handler of one lane. All lanes of the process share
// an event as it was read. The byte slices in its own fields are copied for each call,
// so that what a handler writes into a payload is seen by nobody else, nor by itself
// when it is called again. What lies behind pointers, maps and other slices is shared.
type handout[E any] struct {
	offsets []uintptr // of the byte slices within E
	chunk   []byte    // what is copied next goes behind what is in it
}

const (
	// chunkBytes is how much is allocated at once. A handler that keeps one payload
	// keeps its chunk.
	chunkBytes = 16 << 10
	// chunkLargest is the largest slice that shares a chunk with others.
	chunkLargest = chunkBytes / 4
)

func newHandout[E any]() handout[E] {
	return handout[E]{offsets: byteSlices(reflect.TypeFor[E](), 0)}
}

// byteSlices returns where the byte slices of a value are: itself, or those in the
// structs and arrays that it consists of.
func byteSlices(t reflect.Type, at uintptr) (offsets []uintptr) {
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			offsets = append(offsets, at)
		}
	case reflect.Struct:
		for i := range t.NumField() {
			offsets = append(offsets, byteSlices(t.Field(i).Type, at+t.Field(i).Offset)...)
		}
	case reflect.Array:
		one := byteSlices(t.Elem(), at)
		for i := range t.Len() {
			if one == nil {
				break
			}
			for _, offset := range one {
				offsets = append(offsets, offset+uintptr(i)*t.Elem().Size())
			}
		}
	}
	return offsets
}

// event returns an event for one call of the handler.
func (h *handout[E]) event(e E) E {
	for _, offset := range h.offsets {
		field := (*[]byte)(unsafe.Add(unsafe.Pointer(&e), offset)) // a slice whose elements are bytes, whatever its name
		*field = h.copied(*field)
	}
	return e
}

func (h *handout[E]) copied(b []byte) []byte {
	switch {
	case len(b) == 0 || len(b) > chunkLargest:
		return slices.Clip(slices.Clone(b))
	case cap(h.chunk)-len(h.chunk) < len(b):
		h.chunk = make([]byte, 0, chunkBytes)
	}
	from := len(h.chunk)
	h.chunk = append(h.chunk, b...)
	return slices.Clip(h.chunk[from:])
}
