package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

type workerOrder = func(context.Context, *sql.DB, orchestrator.ReplicaSetName, string, ...orchestrator.TablesOption) (int64, error)

// watch shows the status until ctx ends. On a terminal it overwrites the previous status. In a
// pipe it prints the status when something other than the time has changed.
func watch(ctx context.Context, c *call) error {
	if c.interval < 10*time.Millisecond {
		return usageError{fmt.Sprintf("watch: -interval is %s; it must be at least 10ms", c.interval)}
	}
	show := changes(c.stdout)
	if terminal.Draws(c.screen) {
		fmt.Fprint(c.screen, alternateScreen)
		defer fmt.Fprint(c.screen, ordinaryScreen)
		show = screen(c.screen)
	}
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		sets, err := c.statusOf(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // Ctrl-C
		case err != nil && first:
			return err
		case err != nil:
			show(time.Now(), fmt.Sprintf("can't read the status: %v\n", redact.Error(err)), "")
		default:
			at := time.Now()
			if len(sets) > 0 {
				at = sets[0].At
			}
			show(at, renderAll(sets), gist(sets))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// gist returns the parts of a status that count as a change. It leaves durations out.
func gist(sets []ops.ReplicaSetStatus) string {
	var b strings.Builder
	for _, s := range sets {
		fmt.Fprint(&b, s.ReplicaSet, s.Generation, s.Phase, s.Paused, s.PausedAll, s.Rewinds)
		for _, w := range s.Waits {
			fmt.Fprint(&b, w.Kind, w.Worker, w.Projection, w.Position)
		}
		for _, w := range s.Workers {
			fmt.Fprint(&b, w.Worker, w.Alive, w.State, w.Partitions, w.Drained, w.Vacant)
		}
		for _, p := range s.Partitions {
			fmt.Fprint(&b, p.Projection, p.Partition, p.Worker, p.Position, p.Parked)
		}
		for _, r := range s.Rebuilds {
			fmt.Fprint(&b, r.Projection, r.Live, r.State, r.Position)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// changes returns a function that prints a status if its gist differs from the previous one.
func changes(w io.Writer) func(at time.Time, text, gist string) {
	last := ""
	return func(at time.Time, text, gist string) {
		if gist == "" {
			gist = text
		}
		if gist == last {
			return
		}
		last = gist
		fmt.Fprintf(w, "%s\n%s\n", at.UTC().Format(time.RFC3339), text)
	}
}

const (
	alternateScreen = "\x1b[?1049h\x1b[?25l"
	ordinaryScreen  = "\x1b[?25h\x1b[?1049l"
	home            = "\x1b[H"
	toLineEnd       = "\x1b[K"
	toScreenEnd     = "\x1b[J"
)

// screen returns a function that overwrites the previous status, in one write to avoid flicker.
func screen(w io.Writer) func(at time.Time, text, gist string) {
	return func(at time.Time, text, _ string) {
		width, height := terminal.Size(w)
		io.WriteString(w, frame(at, safe(text), width, height)) // if the terminal is gone, a signal ends the program
	}
}

// frame returns a text cut to the size of a screen, with control sequences.
func frame(at time.Time, text string, width, height int) string {
	lines := append([]string{at.UTC().Format(time.DateTime) + " UTC, Ctrl-C to quit", ""}, strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
	if len(lines) > height {
		more := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("… %d more lines", more))
	}
	var b strings.Builder
	b.WriteString(home)
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if r := []rune(line); len(r) > width {
			line = string(r[:width-1]) + "…"
		}
		b.WriteString(line + toLineEnd)
	}
	return b.String() + toScreenEnd
}
