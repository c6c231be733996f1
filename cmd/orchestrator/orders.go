package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func pause(ctx context.Context, c *call) error {
	if len(c.args) == 1 {
		generation, err := ops.PauseAll(ctx, c.db, c.set(), c.in)
		return c.ordered(ctx, generation, err)
	}
	if err := c.warn(ctx, c.arg(1)); err != nil {
		return err
	}
	generation, err := ops.Pause(ctx, c.db, c.set(), c.arg(1), c.in)
	return c.ordered(ctx, generation, err)
}

func resume(ctx context.Context, c *call) error {
	if len(c.args) == 1 {
		generation, err := ops.ResumeAll(ctx, c.db, c.set(), c.in)
		return c.ordered(ctx, generation, err)
	}
	generation, err := ops.Resume(ctx, c.db, c.set(), c.arg(1), c.in)
	return c.ordered(ctx, generation, err)
}

func rewind(ctx context.Context, c *call) error {
	position, err := strconv.ParseInt(c.arg(2), 10, 64)
	if err != nil || position < 0 {
		return usageError{fmt.Sprintf("rewind: the position is %q; it must be a number from 0 on", c.arg(2))}
	}
	s, err := ops.Status(ctx, c.db, c.set(), c.in)
	if err != nil {
		return err
	}
	if err := c.warn(ctx, c.arg(1)); err != nil {
		return err
	}
	question := fmt.Sprintf("Projection %s will next handle what is above position %d. What it has handled of that comes again; what it has not handled below is skipped.", c.arg(1), position)
	if s.Head > 0 && position > s.Head {
		question += fmt.Sprintf(" The stream was last seen to end at position %d: events that are still to come, up to %d, are skipped as well.", s.Head, position)
	}
	if err := c.confirm(question + " Go on?"); err != nil {
		return err
	}
	generation, err := ops.Rewind(ctx, c.db, c.set(), c.arg(1), position, c.in)
	return c.ordered(ctx, generation, err)
}

func drain(ctx context.Context, c *call) error   { return c.move(ctx, ops.DrainWorker) }
func undrain(ctx context.Context, c *call) error { return c.move(ctx, ops.UndrainWorker) }

func (c *call) set() orchestrator.ReplicaSetName { return orchestrator.ReplicaSetName(c.arg(0)) }

// confirm asks. Where nobody can answer, -yes is wanted.
func (c *call) confirm(question string) error {
	if c.yes {
		return nil
	}
	if !terminal(c.stdin) {
		return usageError{question + " There is no terminal to ask on; if so, say -yes"}
	}
	fmt.Fprintf(c.stderr, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(c.stdin).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// move drains the worker that was named, or undrains it.
func (c *call) move(ctx context.Context, order orderOfWorker) error {
	s, err := ops.Status(ctx, c.db, c.set(), c.in)
	if err != nil {
		return err
	}
	name, err := worker(s, c.arg(1))
	if err != nil {
		return err
	}
	generation, err := order(ctx, c.db, c.set(), name, c.in)
	return c.ordered(ctx, generation, err)
}

// worker returns the worker whose name is, or alone begins with, what was said.
func worker(s ops.ReplicaSetStatus, said string) (string, error) {
	var all, fit []string
	for _, w := range s.Workers {
		if w.Worker == said {
			return said, nil
		}
		if strings.HasPrefix(w.Worker, said) {
			fit = append(fit, w.Worker)
		}
		all = append(all, w.Worker)
	}
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return "", fmt.Errorf("replica set %s has no worker %q; it has %s", s.ReplicaSet, said, dash(strings.Join(all, ", ")))
	}
	return "", fmt.Errorf("several workers of replica set %s begin with %q: %s", s.ReplicaSet, said, strings.Join(fit, ", "))
}

// warn says so where a projection has not run yet: its name may be mistyped.
func (c *call) warn(ctx context.Context, projection string) error {
	has, err := ops.HasRun(ctx, c.db, projection, c.in)
	if err == nil && !has {
		fmt.Fprintf(c.stderr, "projection %s has not run yet: the order is for when a worker comes with it\n", clean(projection))
	}
	return err
}

// ordered waits until the order has its effect, and says meanwhile what for.
func (c *call) ordered(ctx context.Context, generation int64, err error) error {
	if err != nil {
		return err
	}
	if c.nowait {
		fmt.Fprintf(c.stdout, "ordered, with generation %d\n", generation)
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("generation %d is not active after %s; the order stands", generation, c.timeout))
	defer cancel()
	for said := ""; ; {
		look, stop := context.WithTimeout(ctx, time.Second)
		err := ops.AwaitGeneration(look, c.db, c.set(), generation, c.in)
		stop()
		switch {
		case err == nil:
			fmt.Fprintf(c.stdout, "done, with generation %d\n", generation)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case look.Err() == nil:
			return err
		}
		if waits := c.waits(ctx, generation); waits != said {
			said = waits
			fmt.Fprint(c.stderr, waits)
		}
	}
}

// waits says what a generation waits for.
func (c *call) waits(ctx context.Context, generation int64) string {
	s, err := ops.Status(ctx, c.db, c.set(), c.in)
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, w := range s.Waits {
		if w.Kind == ops.WaitDrain {
			fmt.Fprintf(&b, "%s\n", clean(w.Text))
		}
	}
	if len(s.Workers) == 0 {
		fmt.Fprintf(&b, "generation %d waits for a worker to join\n", generation)
	}
	return b.String()
}
