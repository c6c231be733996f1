//go:build !unix

package main

import (
	"os"
	"syscall"
)

// No process can be frozen here, or asked to stop.
var sigStop, sigCont os.Signal

func ownGroup() *syscall.SysProcAttr { return nil }
