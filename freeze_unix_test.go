//go:build unix

package orchestrator_test

import (
	"os"
	"syscall"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// freeze stops this process until it is sent SIGCONT.
func freeze() { _ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) }

// frozen waits until the process is stopped.
func (c *child) frozen() {
	c.t.Helper()
	pgtest.Eventually(c.t, "the child is stopped", func() bool {
		var status syscall.WaitStatus
		var info syscall.Rusage
		pid, err := syscall.Wait4(c.cmd.Process.Pid, &status, syscall.WUNTRACED|syscall.WNOHANG, &info)
		return err == nil && pid == c.cmd.Process.Pid && status.Stopped()
	})
}

func (c *child) thaw() {
	c.t.Helper()
	c.signal(syscall.SIGCONT)
}
