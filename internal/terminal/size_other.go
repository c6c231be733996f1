//go:build !linux && !darwin

package terminal

import "os"

// Size returns the columns and lines of a terminal of the usual size.
func Size(any) (width, height int) { return 80, 24 }

// Resized returns nil: a change of the size is not announced.
func Resized() (resized <-chan os.Signal, stop func()) { return nil, func() {} }
