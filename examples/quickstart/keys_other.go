//go:build !unix

package main

import (
	"errors"
	"os"
)

// There is no stty here, and the demo does not run: see signals_other.go.
func singleKeys(*os.File) (restore func(), err error) { return nil, errors.ErrUnsupported }
