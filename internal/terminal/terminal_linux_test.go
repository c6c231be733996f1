package terminal

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/terminal/ptytest"
)

// panicEnv is set in a process that takes single keys of the terminal at descriptor 3, and
// panics.
const panicEnv = "TERMINAL_TEST_PANIC"

func TestMain(m *testing.M) {
	if os.Getenv(panicEnv) != "" {
		if _, err := SingleKeys(os.NewFile(3, "terminal")); err != nil {
			panic(err)
		}
		go panic("on purpose, in another goroutine")
		select {}
	}
	os.Exit(m.Run())
}

// A terminal hands over single keys, and is as before afterwards: after restore, and after a
// panic in any goroutine.
func TestTerminalIsRestored(t *testing.T) {
	user, terminal := ptytest.Open(t)
	before := ptytest.Settings(t, terminal)
	restore, err := SingleKeys(terminal)
	if err != nil {
		t.Fatal(err)
	}
	if during := ptytest.Settings(t, terminal); during.Lflag&(syscall.ICANON|syscall.ECHO) != 0 || during.Lflag&syscall.ISIG == 0 {
		t.Errorf("the terminal waits for whole lines, echoes, or takes Ctrl-C: %+v", during)
	}
	if _, err := user.WriteString("k"); err != nil { // no line end
		t.Fatal(err)
	}
	ReadKeys(terminal, func(key Key) bool {
		if key != 'k' {
			t.Errorf("got the key %q, want k", key)
		}
		return false
	})
	restore()
	if after := ptytest.Settings(t, terminal); after != before {
		t.Errorf("after restore the settings are %+v, want %+v", after, before)
	}

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), panicEnv+"=1")
	cmd.ExtraFiles = []*os.File{terminal} // 3
	out, err := cmd.CombinedOutput()      // also waits for the helper, which has the same stderr
	if err == nil || !strings.Contains(string(out), "panic: on purpose") {
		t.Fatalf("it did not panic: %v\n%s", err, out)
	}
	if after := ptytest.Settings(t, terminal); after != before {
		t.Errorf("after a panic the settings are %+v, want %+v", after, before)
	}
}

// Only a terminal gets control sequences and colour, and only if it and the user want them.
func TestDrawsAndColours(t *testing.T) {
	_, terminal := ptytest.Open(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		why                string
		stream             any
		term, noColor      string
		is, draws, colours bool
	}{
		{"a terminal", terminal, "xterm", "", true, true, true},
		{"NO_COLOR", terminal, "xterm", "1", true, true, false},
		{"TERM=dumb", terminal, "dumb", "", true, false, false},
		{"no TERM", terminal, "", "", true, false, false},
		{"a file", file, "xterm", "", false, false, false},
		{os.DevNull, null, "xterm", "", false, false, false},
		{"a pipe", &bytes.Buffer{}, "xterm", "", false, false, false},
	} {
		t.Setenv("TERM", tt.term)
		t.Setenv("NO_COLOR", tt.noColor)
		if is, draws, colours := Is(tt.stream), Draws(tt.stream), Colours(tt.stream); is != tt.is || draws != tt.draws || colours != tt.colours {
			t.Errorf("%s: got %t, %t, %t", tt.why, is, draws, colours)
		}
	}
}

func TestSize(t *testing.T) {
	_, terminal := ptytest.Open(t)
	ptytest.Resize(t, terminal, 123, 45)
	if width, height := Size(terminal); width != 123 || height != 45 {
		t.Errorf("got %d × %d, want 123 × 45", width, height)
	}
	if width, height := Size(&bytes.Buffer{}); width != 80 || height != 24 {
		t.Errorf("no terminal: got %d × %d", width, height)
	}
}
