package orchestrator

import (
	"reflect"
	"unsafe"
)

// sizeOf estimates how many bytes a value takes in memory: itself, and what it
// refers to. It is for event stores that don't say (Record.Size).
func sizeOf[E any](v E) int { return int(reflect.TypeFor[E]().Size()) + sizeBehind(&v) }

// sizeBehind is sizeOf without the value itself, to which p points.
func sizeBehind(p any) int {
	v := reflect.ValueOf(p)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return 0
	}
	m := measure{left: measureMax}
	return m.behind(v.Elem(), true)
}

// measureMax is how many values to look at in an event, and so how deep at most.
const measureMax = 10_000

// A measure adds up what a value refers to. An event may be any value: cyclic, huge,
// or in use by others. So it looks at each pointer once, at no more values than left,
// and, once it has followed a reference, at exported fields only: others belong to the
// type's package, which may write them at any time, as protobuf does.
type measure struct {
	left int
	seen map[unsafe.Pointer]bool
}

// behind returns what a value refers to. Of own values all fields may be looked at.
func (m *measure) behind(v reflect.Value, own bool) (n int) {
	if m.left--; m.left < 0 {
		return 0
	}
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Slice:
		if v.IsNil() || !m.first(v.UnsafePointer(), v.Len() > 0) {
			return 0
		}
		return v.Len()*int(v.Type().Elem().Size()) + m.elements(v, false)
	case reflect.Array:
		return m.elements(v, own)
	case reflect.Map:
		if v.IsNil() || !m.first(v.UnsafePointer(), true) {
			return 0
		}
		n = v.Len() * int(v.Type().Key().Size()+v.Type().Elem().Size())
		looked, behind := 0, 0
		for entries := v.MapRange(); m.left > 0 && entries.Next(); looked++ {
			behind += m.behind(entries.Key(), false) + m.behind(entries.Value(), false)
		}
		return n + all(behind, looked, v.Len())
	case reflect.Pointer:
		if !v.IsNil() && m.first(v.UnsafePointer(), true) {
			n = int(v.Type().Elem().Size()) + m.behind(v.Elem(), false)
		}
	case reflect.Interface:
		if !v.IsNil() {
			n = int(v.Elem().Type().Size()) + m.behind(v.Elem(), false)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			switch f := v.Type().Field(i); {
			case f.IsExported():
				n += m.behind(v.Field(i), own)
			case own:
				n += m.shallow(v.Field(i))
			}
		}
	}
	return n
}

// shallow is behind for a field that is not exported: it follows no reference.
func (m *measure) shallow(v reflect.Value) (n int) {
	if m.left--; m.left < 0 {
		return 0
	}
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Slice:
		return v.Len() * int(v.Type().Elem().Size())
	case reflect.Struct:
		for i := range v.NumField() {
			n += m.shallow(v.Field(i))
		}
	}
	return n
}

// elements returns what the elements of a slice or an array refer to.
func (m *measure) elements(v reflect.Value, own bool) (n int) {
	switch t := v.Type().Elem(); {
	case flat(t):
		return 0
	case t.Kind() == reflect.String, t.Kind() == reflect.Slice && flat(t.Elem()): // cheap
		for i := range v.Len() {
			e := v.Index(i)
			if n += e.Len(); t.Kind() == reflect.Slice {
				n += e.Len() * (int(t.Elem().Size()) - 1)
			}
		}
		return n
	}
	i := 0
	for ; i < v.Len() && m.left > 0; i++ {
		n += m.behind(v.Index(i), own)
	}
	return all(n, i, v.Len())
}

// all returns what all elements refer to, if those that were looked at refer to n.
func all(n, looked, length int) int {
	if looked == 0 || looked == length {
		return n
	}
	return int(float64(n) / float64(looked) * float64(length))
}

// flat reports whether values of the type refer to nothing.
func flat(t reflect.Type) bool { return t.Kind() <= reflect.Complex128 && t.Kind() != reflect.Invalid }

// first reports whether a reference is met for the first time.
func (m *measure) first(p unsafe.Pointer, counts bool) bool {
	if !counts || m.seen[p] {
		return false
	}
	if m.seen == nil {
		m.seen = map[unsafe.Pointer]bool{}
	}
	m.seen[p] = true
	return true
}
