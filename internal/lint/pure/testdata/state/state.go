package state

import (
	"errors"
	"fmt"
	"time"
)

var count int // want: package-level variable count: state belongs in a value; only var ErrX = errors.New(…) is allowed

var (
	table     = map[string]int{} // want: package-level variable table: state belongs in a value; only var ErrX = errors.New(…) is allowed
	ErrNoCall = error(nil)       // want: package-level variable ErrNoCall: state belongs in a value; only var ErrX = errors.New(…) is allowed
	ErrFormat = fmt.Errorf("x")  // want: package-level variable ErrFormat: state belongs in a value; only var ErrX = errors.New(…) is allowed
	notErr    = errors.New("x")  // want: package-level variable notErr: state belongs in a value; only var ErrX = errors.New(…) is allowed
	ErrFine   = errors.New("fine")
)

func f() {
	ErrFine = nil  // want: assignment to package-level variable ErrFine
	count += 1     // want: assignment to package-level variable count
	time.UTC = nil // want: assignment to package-level variable UTC
	p := &ErrFine  // want: address of package-level variable ErrFine
	_ = p
}
