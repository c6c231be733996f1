package orchestrator

import (
	"errors"
	"runtime"
	"strings"
	"testing"
)

// Of several calls that fail, the first in their order is told of, and one that panics or
// ends its goroutine has failed.
func TestSideBySide(t *testing.T) {
	fails := func() error { return errors.New("failed") }
	passes := func() error { return nil }
	for _, tt := range []struct {
		calls []func() error
		want  string // "": no error
	}{
		{[]func() error{passes, passes}, ""},
		{[]func() error{passes, fails, func() error { panic("later") }}, "failed"},
		{[]func() error{passes, func() error { panic("on purpose") }, fails}, "on purpose"},
		{[]func() error{func() error { runtime.Goexit(); return nil }, passes}, "goroutine"},
	} {
		err := sideBySide(tt.calls...)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}
