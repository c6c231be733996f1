//go:build linux || darwin

package main

import (
	"os"
	"syscall"
	"unsafe"
)

// size returns the columns and lines of a terminal.
func size(w any) (width, height int) {
	if f, ok := w.(*os.File); ok {
		var s struct{ lines, columns, x, y uint16 }
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&s)))
		if errno == 0 && s.columns > 1 && s.lines > 1 {
			return int(s.columns), int(s.lines)
		}
	}
	return 80, 24
}
