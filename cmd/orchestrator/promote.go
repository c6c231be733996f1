package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// sqlFile is a flag that names a file, or "-". An empty one is a variable that is not set:
// the versions would change, and the readers would not.
type sqlFile string

func (f *sqlFile) String() string { return string(*f) }

func (f *sqlFile) Set(name string) error {
	if name == "" {
		return fmt.Errorf("it is empty; if no SQL is to be run, leave it out")
	}
	*f = sqlFile(name)
	return nil
}

// script reads the SQL that a promotion is to run.
func (c *call) script() (string, error) {
	if c.sql == "" {
		return "", nil
	}
	from := c.stdin
	if c.sql != "-" {
		file, err := os.Open(string(c.sql))
		if err != nil {
			return "", usageError{fmt.Sprintf("promote: -sql: %v", err)}
		}
		defer file.Close()
		from = file
	}
	text, err := io.ReadAll(from)
	switch {
	case err != nil:
		return "", fmt.Errorf("promote: -sql %s: %w", c.sql, err)
	case strings.TrimSpace(string(text)) == "":
		return "", usageError{fmt.Sprintf("promote: -sql %s: there is nothing in it; if no SQL is to be run, leave -sql out", c.sql)}
	}
	return string(text), nil
}

func promote(ctx context.Context, c *call) error {
	if c.interval <= 0 {
		return usageError{fmt.Sprintf("promote: -interval is %s; it must be more than 0", c.interval)}
	}
	script, err := c.script()
	if err != nil {
		return err
	}
	projection := c.arg(0)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	quiet := tellAgain(ctx, c.interval, func(ctx context.Context) string { return c.rebuild(ctx, projection) }, func(text string) {
		fmt.Fprintln(c.stderr, clean(text))
	})
	p, err := ops.Promote(ctx, c.db, projection, script, c.in)
	quiet()
	if err != nil {
		return err
	}
	if p.Replaced == "" {
		fmt.Fprintf(c.stdout, "%s is live already; nothing was done\n", clean(p.Live))
		return nil
	}
	fmt.Fprintf(c.stdout, "%s is live, in the place of %s; for %s no version handled events\n", clean(p.Live), clean(p.Replaced), span(p.Stopped))
	if p.Parked > 0 {
		fmt.Fprintf(c.stdout, "%s has %s parked, which %s has handled as replays: what goes beyond the read model was done for them by neither\n",
			clean(p.Replaced), plural(p.Parked, "event"), clean(p.Live))
	}
	return nil
}

// tellAgain looks again and again, until it is told to be quiet, and says what has changed.
func tellAgain(ctx context.Context, every time.Duration, look func(context.Context) string, say func(string)) (quiet func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for said := ""; ; {
			if text := look(ctx); text != "" && text != said && ctx.Err() == nil {
				said = text
				say(text)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// rebuild says how far a rebuild is, if it is one, and that can be seen.
func (c *call) rebuild(ctx context.Context, projection string) string {
	names, err := ops.ReplicaSets(ctx, c.db, c.in)
	if err != nil {
		return ""
	}
	for _, name := range names {
		s, err := ops.Status(ctx, c.db, name, c.in)
		if err != nil {
			continue
		}
		for _, r := range s.Rebuilds {
			if r.Projection == projection {
				return r.Text
			}
		}
	}
	return ""
}

func retire(ctx context.Context, c *call) error {
	err := c.confirm(fmt.Sprintf("Of projection %s the checkpoints and the parked events are removed. It can't be promoted any more, and no program can run a projection of its name. Go on?", c.arg(0)))
	if err != nil {
		return err
	}
	if err := ops.Retire(ctx, c.db, c.arg(0), c.in); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%s is retired; its read model is still there\n", clean(c.arg(0)))
	return nil
}
