//go:build !unix

package terminal

import (
	"errors"
	"os"
)

// Suspensions returns nil: there is no Ctrl-Z.
func Suspensions() (asked <-chan os.Signal, stop func()) { return nil, func() {} }

// Suspend returns an error.
func Suspend() error { return errors.ErrUnsupported }
