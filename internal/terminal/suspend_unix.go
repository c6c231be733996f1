//go:build unix

package terminal

import (
	"os"
	"os/signal"
	"syscall"
)

// Suspensions returns a channel that receives when the user asks to stop the program for a while
// (Ctrl-Z), until stop is called. Meanwhile Ctrl-Z alone stops nothing: see Suspend.
func Suspensions() (asked <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTSTP)
	return c, func() { signal.Stop(c) }
}

// Suspend stops the program until its shell continues it (fg).
func Suspend() error { return syscall.Kill(os.Getpid(), syscall.SIGSTOP) }
