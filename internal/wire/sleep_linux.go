package wire

import (
	"os"
	"syscall"
	"time"
	"unsafe"
)

// A sleeper sleeps more exactly than time.Sleep. On Linux, time.Sleep may take a millisecond
// longer if the process is idle: the runtime's timers wait in whole milliseconds. A sleeper waits
// for a timer of the kernel instead.
type sleeper struct{ timer *os.File } // nil: not available

func newSleeper() sleeper {
	const monotonic = 1
	fd, _, errno := syscall.RawSyscall(syscall.SYS_TIMERFD_CREATE, monotonic, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		return sleeper{}
	}
	return sleeper{os.NewFile(fd, "timer")}
}

func (s sleeper) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	if s.timer == nil || !s.expire(d) {
		time.Sleep(d)
	}
}

// expire waits for the timer. It returns false if that fails.
func (s sleeper) expire(d time.Duration) bool {
	raw, err := s.timer.SyscallConn()
	if err != nil {
		return false
	}
	var errno syscall.Errno
	at := struct{ interval, value syscall.Timespec }{value: syscall.NsecToTimespec(d.Nanoseconds())}
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.RawSyscall6(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&at)), 0, 0, 0)
	})
	if err != nil || errno != 0 {
		return false
	}
	var expired [8]byte
	_, err = s.timer.Read(expired[:])
	return err == nil
}

func (s sleeper) close() {
	if s.timer != nil {
		_ = s.timer.Close()
	}
}
