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

// sqlFile is a flag that names a file, or "-". It refuses "", which an unset variable of a shell
// gives: the versions would change without the readers.
type sqlFile string

func (f *sqlFile) String() string { return string(*f) }

func (f *sqlFile) Set(name string) error {
	if name == "" {
		return fmt.Errorf("the name of the file is empty; to run no SQL, leave -sql out")
	}
	*f = sqlFile(name)
	return nil
}

// script reads the SQL of -sql.
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
		return "", usageError{fmt.Sprintf("promote: -sql %s: the file is empty; to run no SQL, leave -sql out", c.sql)}
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
	stop := report(ctx, c.interval, func(ctx context.Context) string { return c.rebuild(ctx, projection) }, func(text string) {
		fmt.Fprintln(c.stderr, clean(text))
	})
	p, err := ops.Promote(ctx, c.db, projection, script, c.in)
	stop()
	if err != nil {
		return err
	}
	if p.Replaced == "" {
		fmt.Fprintf(c.stdout, "%s is live already; nothing was done\n", clean(p.Live))
		return nil
	}
	fmt.Fprintf(c.stdout, "%s is live and has replaced %s; no version handled events for %s\n", clean(p.Live), clean(p.Replaced), elapsed(p.Stopped))
	if p.Parked > 0 {
		fmt.Fprintf(c.stdout, "%s has %s parked; %s has handled them as replays, so neither version caused their side effects\n",
			clean(p.Replaced), plural(p.Parked, "event"), clean(p.Live))
	}
	return nil
}

// report calls read at an interval until stop is called, and prints each text that differs from
// the one before.
func report(ctx context.Context, every time.Duration, read func(context.Context) string, print func(string)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for printed := ""; ; {
			if text := read(ctx); text != "" && text != printed && ctx.Err() == nil {
				printed = text
				print(text)
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

// rebuild returns how far a rebuild is, or "" if that is unknown.
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
	err := c.confirm(fmt.Sprintf("The checkpoints and parked events of projection %s will be removed. After that it can't be promoted, and no program can run a projection of this name.", c.arg(0)))
	if err != nil {
		return err
	}
	if err := ops.Retire(ctx, c.db, c.arg(0), c.in); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%s is retired; its read model is unchanged\n", clean(c.arg(0)))
	return nil
}
