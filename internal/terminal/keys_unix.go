//go:build unix

package terminal

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
)

// SingleKeys makes a terminal hand over each key at once, without showing it. Ctrl-C remains
// a signal. restore undoes that.
//
// A helper process does both with stty. It restores the terminal when its standard input
// ends: in restore, and also when this process ends without calling it, by a panic in any
// goroutine or by SIGKILL. No code inside this process could do that. A program in the
// background of a shell is stopped here, as every program is that changes the terminal
// of the shell (SIGTTOU).
func SingleKeys(terminal *os.File) (restore func(), err error) {
	helper := exec.Command("/bin/sh", "-c", `
trap '' HUP INT QUIT TERM TSTP
saved=$(stty -g <&3) && stty -icanon -echo min 1 time 0 <&3 || exit 1
trap '' TTIN TTOU
echo ready
cat >/dev/null
stty "$saved" <&3`)
	helper.ExtraFiles = []*os.File{terminal} // 3
	helper.Stderr = os.Stderr
	lifeline, err := helper.StdinPipe()
	if err != nil {
		return nil, err
	}
	answer, err := helper.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := helper.Start(); err != nil {
		return nil, err
	}
	restore = func() {
		_ = lifeline.Close()
		_ = helper.Wait() // for the terminal to be as it was
	}
	if _, err := bufio.NewReader(answer).ReadString('\n'); err != nil {
		restore()
		return nil, fmt.Errorf("read single keys: stty: %w", err)
	}
	return restore, nil
}
