package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal/ptytest"
)

// On a terminal, watch obeys keys and a new size, ends with q and with Ctrl-C, and leaves the
// last frame and the settings of the terminal behind.
func TestWatchOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	s := newStage(t)
	s.worker()
	s.running(1)
	s.append(1)
	pgtest.Eventually(t, "its state is reported", func() bool { return s.status().Workers[0].State == orchestrator.WorkerRunning })
	pgtest.Eventually(t, "it is handled", func() bool { return s.handled("slow") == 1 && s.handled("quick") == 1 })
	user, terminal := ptytest.Open(t)
	before := ptytest.Settings(t, terminal)
	ptytest.Resize(t, terminal, 80, 24)

	const theEnd = "(the end)"
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	script := []struct {
		seen string
		do   func()
	}{
		{`(?s)set: .*1 worker: 1 running.*v details  q quit`, func() { user.WriteString("v") }},
		{`(?s)WORKER .*LEASE.*v summary`, func() {
			ptytest.Resize(t, terminal, 80, 8)
			_ = syscall.Kill(os.Getpid(), syscall.SIGWINCH) // it is not the terminal of this process
		}},
		{`… \d+ more lines below`, func() { user.WriteString("n") }},
		{`projections by name`, func() { user.WriteString("\x1b[6~") }},
		{`projections by name  … \d+ more lines? above`, func() { user.WriteString("q") }},
		{`\x1b\[\?1049l`, nil},
		// once more
		{`v details  q quit`, interrupt},
	}
	colours := regexp.MustCompile(`\x1b\[[0-9;]*m`)
	var typing sync.WaitGroup
	var all strings.Builder
	typing.Go(func() {
		shown := ""
		for buffer := make([]byte, 4096); ; {
			n, err := user.Read(buffer)
			shown += string(buffer[:n])
			all.Write(buffer[:n])
			if err != nil || strings.HasSuffix(shown, theEnd) {
				return
			}
			if len(script) > 0 && regexp.MustCompile(script[0].seen).MatchString(colours.ReplaceAllString(shown, "")) {
				if do := script[0].do; do != nil {
					do()
				}
				script, shown = script[1:], ""
			}
		}
	})
	for range 2 {
		if code := run(ctx, []string{"watch", "-database", s.url, "-interval", "1h"}, terminal, terminal, os.Stderr); code != exitOK {
			t.Errorf("watch ends with %d", code)
		}
		if after := ptytest.Settings(t, terminal); after != before {
			t.Errorf("the terminal's settings were %+v, and are %+v", before, after)
		}
	}
	if _, err := terminal.WriteString(theEnd); err != nil {
		t.Fatal(err)
	}
	typing.Wait()
	last := all.String()
	last = last[strings.LastIndex(last, ordinaryScreen):]
	if len(script) > 0 || !strings.Contains(last, "  slow  ") || strings.Contains(last, "q quit") {
		t.Errorf("%d steps are left; after watch the screen shows %q", len(script), last)
	}
}
