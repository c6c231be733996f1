package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// wait waits until a projection has handled the events up to a position.
func wait(ctx context.Context, c *call) error {
	projection := c.arg(0)
	position, err := c.end(ctx)
	if err != nil {
		return err
	}
	if has, err := ops.HasRun(ctx, c.db, projection, c.in); err != nil {
		return err
	} else if !has {
		fmt.Fprintf(c.stderr, "projection %s has never run; check the name\n", clean(projection))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errTooLong)
	defer cancel()
	err = orchestrator.WaitFor(ctx, c.db, projection, position, c.in)
	var behind *orchestrator.BehindError
	switch {
	case errors.As(err, &behind) && errors.Is(err, errTooLong):
		if behind.Handled < 0 {
			return fmt.Errorf("projection %s has handled nothing after %s; to see why: orchestrator status", projection, c.timeout)
		}
		return fmt.Errorf("projection %s is at position %d after %s: %d behind position %d; to see why: orchestrator status",
			projection, behind.Handled, c.timeout, behind.Behind(), position)
	case err != nil:
		return err
	}
	fmt.Fprintf(c.stdout, "%s has handled all events up to position %d\n", clean(projection), position)
	return nil
}

var errTooLong = errors.New("too long")

// end returns the position that was given, or the end of the stream as workers last saw it.
func (c *call) end(ctx context.Context) (position int64, err error) {
	if len(c.args) > 1 {
		position, err = strconv.ParseInt(c.arg(1), 10, 64)
		if err != nil || position < 0 {
			return 0, usageError{fmt.Sprintf("wait: POSITION is %q; it must be a whole number, at least 0", c.arg(1))}
		}
		return position, nil
	}
	sets, err := ops.ReplicaSets(ctx, c.db, c.in)
	if err != nil {
		return 0, err
	}
	for _, set := range sets {
		s, err := ops.Status(ctx, c.db, set, c.in)
		if err != nil {
			return 0, err
		}
		for _, p := range s.Partitions {
			if p.Projection == c.arg(0) {
				position = max(position, s.Head)
			}
		}
	}
	if position == 0 {
		return 0, usageError{fmt.Sprintf("wait: no worker of projection %q has reported the end of the stream; pass a POSITION", c.arg(0))}
	}
	return position, nil
}
