//go:build unix

package main

import (
	"os"
	"syscall"
)

// sigStop stops a process in the middle of anything, and sigCont lets it go on.
var (
	sigStop os.Signal = syscall.SIGSTOP
	sigCont os.Signal = syscall.SIGCONT
)

// ownGroup keeps the terminal's Ctrl-C from a worker: the process that started it decides
// when it stops.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
