package main

import (
	"bytes"
	"regexp"
	"sync"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal/ptytest"
)

// Keys of a user at a terminal: they do what they say, and neither break the verification
// nor the terminal.
func TestKeys(t *testing.T) {
	db, url := pgtest.Database(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	user, terminal := ptytest.Open(t)
	before := ptytest.Settings(t, terminal)

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
	after := ptytest.Settings(t, terminal)
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
