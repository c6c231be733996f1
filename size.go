package orchestrator

import "reflect"

// sizeOf estimates how many bytes a value takes in memory: itself, and the
// strings and byte slices in its fields.
func sizeOf[E any](v E) int {
	r := reflect.ValueOf(&v).Elem()
	return int(r.Type().Size()) + behind(r)
}

// behind returns what a value refers to.
func behind(v reflect.Value) (n int) {
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Slice:
		n = v.Len() * int(v.Type().Elem().Size())
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			n = int(v.Elem().Type().Size()) + behind(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			n += behind(v.Field(i))
		}
	}
	return n
}
