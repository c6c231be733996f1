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

// A reading is the status at one moment, or why it could not be read.
type reading struct {
	at   time.Time
	sets []ops.ReplicaSetStatus
	err  error
}

// read reads the status.
func (c *call) read(ctx context.Context) reading {
	sets, err := c.statusOf(ctx)
	r := reading{at: time.Now(), sets: sets, err: redact.Error(err)}
	if err == nil && len(sets) > 0 {
		r.at = sets[0].At
	}
	return r
}

// readingMax is how long one reading may take: then watch says that it can't read the status.
const readingMax = 10 * time.Second

// watch shows the status until ctx ends. On a terminal it fills the screen. Elsewhere it prints
// the status when something other than the time has changed.
func watch(ctx context.Context, c *call) error {
	if c.interval < 10*time.Millisecond {
		return usageError{fmt.Sprintf("watch: -interval is %s; it must be at least 10ms", c.interval)}
	}
	first := c.read(ctx)
	switch {
	case ctx.Err() != nil:
		return nil // Ctrl-C
	case first.err != nil:
		return first.err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	readings := make(chan reading)
	go func() {
		defer close(readings)
		tick := time.NewTicker(c.interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			attempt, cancel := context.WithTimeout(ctx, readingMax)
			r := c.read(attempt)
			cancel()
			select {
			case <-ctx.Done():
				return
			case readings <- r:
			}
		}
	}()
	if terminal.Draws(c.screen) {
		c.page(ctx, first, readings)
	} else {
		c.frames(first, readings)
	}
	stop()
	for range readings { // the reader has stopped
	}
	return nil
}

// frames prints what has changed.
func (c *call) frames(first reading, readings <-chan reading) {
	show := changes(c.stdout)
	for r, ok := first, true; ok; r, ok = <-readings {
		if r.err != nil {
			show(r.at, fmt.Sprintf("can't read the status: %v\n", r.err), "")
			continue
		}
		show(r.at, paint(view{verbose: c.verbose}.all(r.sets), false), gist(r.sets))
	}
}

// gist returns the parts of a status that count as a change. It leaves durations out.
func gist(sets []ops.ReplicaSetStatus) string {
	var b strings.Builder
	for _, s := range sets {
		fmt.Fprint(&b, s.ReplicaSet, s.Generation, s.Phase, s.Paused, s.PausedAll, s.Rewinds)
		for _, w := range s.Waits {
			fmt.Fprint(&b, w.Kind, w.Severity, w.Worker, w.Projection, w.Position, len(w.Effects))
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
