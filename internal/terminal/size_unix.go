//go:build linux || darwin

package terminal

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"
)

// Size returns the columns and lines of a terminal: 80 and 24 if it can't tell.
func Size(w any) (width, height int) {
	if f, ok := w.(*os.File); ok {
		var s struct{ lines, columns, x, y uint16 }
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&s)))
		if errno == 0 && s.columns > 1 && s.lines > 1 {
			return int(s.columns), int(s.lines)
		}
	}
	return 80, 24
}

// Resized returns a channel that receives when the size of the terminal has changed, until stop
// is called.
func Resized() (resized <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	return c, func() { signal.Stop(c) }
}
