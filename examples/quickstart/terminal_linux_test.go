package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

// Keys of a user at a terminal: they do what they say, and neither break the verification
// nor the terminal.
func TestKeys(t *testing.T) {
	db, url := pgtest.Database(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	user, terminal := openTerminal(t)
	before := settings(t, terminal)

	const theEnd = "(the end)" // of what is shown
	var typing sync.WaitGroup
	var shown bytes.Buffer
	typing.Go(func() {
		script := []struct{ seen, keys string }{
			{`keys: k kill`, "x\x1b[A"}, // keys that mean nothing
			{`generation \d+ \(1 joined\).*w2`, "++"},
			{`(?s)added by you.*added by you`, "k"},
			{`w\d.*is killed by you`, "f"},
			{`w\d.*is frozen by you`, "f"},
			{`w\d.*is woken by you`, "q"},
		}
		for buffer := make([]byte, 4096); ; {
			n, err := user.Read(buffer)
			shown.Write(buffer[:n])
			if err != nil || bytes.HasSuffix(shown.Bytes(), []byte(theEnd)) {
				return
			}
			if len(script) > 0 && regexp.MustCompile(script[0].seen).Match(shown.Bytes()) {
				_, _ = user.WriteString(script[0].keys)
				script = script[1:]
			}
		}
	})
	var stderr bytes.Buffer
	status := run([]string{"-events", "6000", "-aggregates", "100", "-workers", "3"}, terminal, terminal, &stderr)
	after := settings(t, terminal)
	if _, err := terminal.WriteString(theEnd); err != nil {
		t.Fatal(err)
	}
	typing.Wait()
	output := shown.String()
	t.Logf("%s%s", output, &stderr)

	if status != 0 {
		t.Errorf("got exit status %d, want 0", status)
	}
	for _, want := range []string{
		`killed by you \(SIGKILL\)`, `frozen by you \(SIGSTOP\)`, `woken by you \(SIGCONT\)`, "you finish now",
		`events=\d+ lost=0 duplicated=0 out_of_order=0 overlaps=0 generations=\d+`,
		"\x1b\\[" + green + "m", // colour
		`open http://127\.0\.0\.1:\d+/`,
	} {
		if !regexp.MustCompile(want).MatchString(output) {
			t.Errorf("the terminal does not show %q", want)
		}
	}
	if after != before {
		t.Errorf("the terminal's settings were %+v, and are %+v", before, after)
	}
	wantNoSchema(t, db)
}

// A terminal hands over single keys, and is as before afterwards: after restore, and after a
// panic in any goroutine.
func TestTerminalIsRestored(t *testing.T) {
	user, terminal := openTerminal(t)
	before := settings(t, terminal)
	restore, err := singleKeys(terminal)
	if err != nil {
		t.Fatal(err)
	}
	if during := settings(t, terminal); during.Lflag&(syscall.ICANON|syscall.ECHO) != 0 || during.Lflag&syscall.ISIG == 0 {
		t.Errorf("the terminal waits for whole lines, echoes, or takes Ctrl-C: %+v", during)
	}
	if _, err := user.WriteString("k"); err != nil { // no line end
		t.Fatal(err)
	}
	keys := make(chan byte, 1)
	readKeys(cancelled(), terminal, keys)
	if key := <-keys; key != 'k' {
		t.Errorf("got the key %q, want k", key)
	}
	restore()
	if after := settings(t, terminal); after != before {
		t.Errorf("after restore the settings are %+v, want %+v", after, before)
	}

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), panicEnv+"=1")
	cmd.ExtraFiles = []*os.File{terminal} // 3
	out, err := cmd.CombinedOutput()      // also waits for the helper, which has the same stderr
	if err == nil || !strings.Contains(string(out), "panic: on purpose") {
		t.Fatalf("it did not panic: %v\n%s", err, out)
	}
	if after := settings(t, terminal); after != before {
		t.Errorf("after a panic the settings are %+v, want %+v", after, before)
	}
}

// Only a terminal gets colour, and only if it and the user want it.
func TestColour(t *testing.T) {
	_, terminal := openTerminal(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		why           string
		out           any
		term, noColor string
		live, colour  bool
	}{
		{"a terminal", terminal, "xterm", "", true, true},
		{"NO_COLOR", terminal, "xterm", "1", true, false},
		{"TERM=dumb", terminal, "dumb", "", false, false},
		{"no TERM", terminal, "", "", false, false},
		{"a file", file, "xterm", "", false, false},
		{os.DevNull, null, "xterm", "", false, false},
		{"a pipe", &bytes.Buffer{}, "xterm", "", false, false},
	} {
		t.Setenv("TERM", tt.term)
		t.Setenv("NO_COLOR", tt.noColor)
		d := newDisplay(tt.out.(interface{ Write([]byte) (int, error) }))
		if d.live != tt.live || d.colour != tt.colour {
			t.Errorf("%s: got live %t, colour %t", tt.why, d.live, d.colour)
		}
	}
}

// openTerminal returns the two ends of a pseudo terminal.
func openTerminal(t *testing.T) (user, terminal *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	t.Cleanup(func() { _ = user.Close() })
	var unlocked, number int32
	control(t, user, syscall.TIOCSPTLCK, unsafe.Pointer(&unlocked))
	control(t, user, syscall.TIOCGPTN, unsafe.Pointer(&number))
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return user, terminal
}

func settings(t *testing.T, terminal *os.File) (s syscall.Termios) {
	t.Helper()
	control(t, terminal, syscall.TCGETS, unsafe.Pointer(&s))
	return s
}

func control(t *testing.T, file *os.File, request uintptr, argument unsafe.Pointer) {
	t.Helper()
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument)); errno != 0 {
			t.Fatal(errno)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
