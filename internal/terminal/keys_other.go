//go:build !unix

package terminal

import (
	"errors"
	"os"
)

// SingleKeys returns an error: there is no stty.
func SingleKeys(*os.File) (restore func(), err error) { return nil, errors.ErrUnsupported }
