//go:build unix

package main

import (
	"os"
	"syscall"
)

// freeze stops a process in the middle of anything, and wake lets it go on.
var (
	freeze os.Signal = syscall.SIGSTOP
	wake   os.Signal = syscall.SIGCONT
)

// ownGroup keeps the terminal's Ctrl-C from a worker: whether it goes is for
// the process that started it to say.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
