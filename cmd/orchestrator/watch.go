package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

type orderOfWorker = func(context.Context, *sql.DB, orchestrator.ReplicaSetName, string, ...orchestrator.TablesOption) (int64, error)

// watch shows the status again and again: on a terminal in the same place, and in
// a pipe whenever something but the time has changed.
func watch(ctx context.Context, c *call) error {
	if c.interval < 10*time.Millisecond {
		return usageError{fmt.Sprintf("watch: -interval is %s; the least is 10ms", c.interval)}
	}
	show := changes(c.stdout)
	if terminal(c.screen) && os.Getenv("TERM") != "dumb" {
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
			return nil // it was told to end
		case err != nil && first:
			return err
		case err != nil:
			show(time.Now(), fmt.Sprintf("can't look: %v\n", redact.Error(err)), "")
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

// gist is what of a status is news: not how long it has been so.
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

// changes shows what differs from what it showed last.
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

// screen overwrites what it showed last, in one write, so that nothing flickers.
func screen(w io.Writer) func(at time.Time, text, gist string) {
	return func(at time.Time, text, _ string) {
		width, height := size(w)
		io.WriteString(w, frame(at, safe(text), width, height)) // a terminal that is gone ends the program by a signal
	}
}

// frame cuts a text to the size of a screen.
func frame(at time.Time, text string, width, height int) string {
	lines := append([]string{at.UTC().Format(time.DateTime) + " UTC, Ctrl-C to end", ""}, strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
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

// terminal reports whether something is a terminal.
func terminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a device as well, which is where cron has us read
	return err != nil || !os.SameFile(info, null)
}
