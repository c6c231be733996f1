//go:build !unix

package orchestrator_test

import "os"

func freeze() { os.Exit(1) }

// frozen skips the test: nothing here stops a process as SIGSTOP does.
func (c *child) frozen() {
	c.t.Helper()
	c.t.Skip("needs a system with SIGSTOP")
}

func (*child) thaw() {}
