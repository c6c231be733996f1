package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func pause(ctx context.Context, c *call) error {
	if len(c.args) == 1 {
		generation, err := ops.PauseAll(ctx, c.db, c.set(), c.in)
		return c.ordered(ctx, generation, err, "all projections of %s are paused", c.arg(0))
	}
	if err := c.warn(ctx, c.arg(1)); err != nil {
		return err
	}
	generation, err := ops.Pause(ctx, c.db, c.set(), c.arg(1), c.in)
	return c.ordered(ctx, generation, err, "%s is paused", c.arg(1))
}

func resume(ctx context.Context, c *call) error {
	if len(c.args) == 1 {
		generation, err := ops.ResumeAll(ctx, c.db, c.set(), c.in)
		return c.ordered(ctx, generation, err, "all projections of %s are resumed", c.arg(0))
	}
	generation, err := ops.Resume(ctx, c.db, c.set(), c.arg(1), c.in)
	return c.ordered(ctx, generation, err, "%s is resumed", c.arg(1))
}

func rewind(ctx context.Context, c *call) error {
	position, err := strconv.ParseInt(c.arg(2), 10, 64)
	if err != nil || position < 0 {
		return usageError{fmt.Sprintf("rewind: POSITION is %q; it must be a whole number, at least 0", c.arg(2))}
	}
	s, err := ops.Status(ctx, c.db, c.set(), c.in)
	if err != nil {
		return err
	}
	if err := c.warn(ctx, c.arg(1)); err != nil {
		return err
	}
	if s.Head > 0 && position > s.Head {
		beyond := fmt.Sprintf("the stream ended at position %d when a worker last read it: new events up to position %d would be skipped", s.Head, position)
		if !c.pastEnd {
			return usageError{fmt.Sprintf("rewind: %s. To skip them, pass -past-end; nothing was changed", beyond)}
		}
		fmt.Fprintf(c.stderr, "warning: %s\n", beyond)
	}
	question := fmt.Sprintf("Projection %s will handle the events after position %d next. Events after it that were handled come again; events up to it that were not handled are skipped.", c.arg(1), position)
	if err := c.confirm(question); err != nil {
		return err
	}
	generation, err := ops.Rewind(ctx, c.db, c.set(), c.arg(1), position, c.in)
	return c.ordered(ctx, generation, err, "%s is at position %d", c.arg(1), position)
}

func drain(ctx context.Context, c *call) error {
	return c.orderWorker(ctx, ops.DrainWorker, "worker %s is drained")
}

func undrain(ctx context.Context, c *call) error {
	return c.orderWorker(ctx, ops.UndrainWorker, "worker %s is undrained")
}

func (c *call) set() orchestrator.ReplicaSetName { return orchestrator.ReplicaSetName(c.arg(0)) }

// confirm asks for confirmation. Without a terminal it returns an error unless -yes is given.
func (c *call) confirm(question string) error {
	if c.yes {
		return nil
	}
	if !terminal.Is(c.stdin) {
		return usageError{question + " Not a terminal: pass -yes to confirm"}
	}
	fmt.Fprintf(c.stderr, "%s Go on? [y/N] ", question)
	answer, _ := bufio.NewReader(c.stdin).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("not confirmed; nothing was changed")
	}
	return nil
}

// orderWorker gives an order about the worker that the second argument names.
func (c *call) orderWorker(ctx context.Context, order workerOrder, effect string) error {
	s, err := ops.Status(ctx, c.db, c.set(), c.in)
	if err != nil {
		return err
	}
	name, err := worker(s, c.arg(1))
	if err != nil {
		return err
	}
	generation, err := order(ctx, c.db, c.set(), name, c.in)
	return c.ordered(ctx, generation, err, effect, name)
}

// worker returns the worker with the given name, or the only one whose name begins with it.
func worker(s ops.ReplicaSetStatus, given string) (string, error) {
	var all, fit []string
	for _, w := range s.Workers {
		if w.Worker == given {
			return given, nil
		}
		if strings.HasPrefix(w.Worker, given) {
			fit = append(fit, w.Worker)
		}
		all = append(all, w.Worker)
	}
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return "", fmt.Errorf("replica set %s has no worker %q (there are: %s)", s.ReplicaSet, given, cmp.Or(strings.Join(all, ", "), "none"))
	}
	return "", fmt.Errorf("%q is the beginning of several workers' names in replica set %s: %s", given, s.ReplicaSet, strings.Join(fit, ", "))
}

// warn prints a warning if a projection has never run: its name may be mistyped.
func (c *call) warn(ctx context.Context, projection string) error {
	has, err := ops.HasRun(ctx, c.db, projection, c.in)
	if err == nil && !has {
		fmt.Fprintf(c.stderr, "projection %s has never run; check the name. The order applies when a worker brings it\n", clean(projection))
	}
	return err
}

// ordered waits until the order has taken effect, and prints what it waits for meanwhile. Then
// it prints the effect.
func (c *call) ordered(ctx context.Context, generation int64, err error, effect string, args ...any) error {
	if err != nil {
		return err
	}
	if c.nowait {
		fmt.Fprintf(c.stdout, "order given; it takes effect when generation %d is active\n", generation)
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("generation %d is not active after %s; the order remains in force", generation, c.timeout))
	defer cancel()
	for printed := ""; ; {
		attempt, stop := context.WithTimeout(ctx, time.Second)
		err := ops.AwaitGeneration(attempt, c.db, c.set(), generation, c.in)
		stop()
		switch {
		case err == nil:
			fmt.Fprintf(c.stdout, "%s (generation %d)\n", clean(fmt.Sprintf(effect, args...)), generation)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case attempt.Err() == nil:
			return err
		}
		if waits, gist := c.waits(ctx, generation); gist != printed {
			printed = gist
			fmt.Fprint(c.stderr, waits)
		}
	}
}

// waits returns what a generation waits for, one reason per line, and the gist, which does not
// change with the time alone.
func (c *call) waits(ctx context.Context, generation int64) (text, gist string) {
	s, err := ops.Status(ctx, c.db, c.set(), c.in)
	if err != nil {
		return "", ""
	}
	var b, g strings.Builder
	for _, w := range s.Waits {
		if w.Kind == ops.WaitDrain {
			fmt.Fprintf(&b, "%s\n", clean(w.Text))
			fmt.Fprintln(&g, w.Worker, w.Projection, w.Position)
		}
	}
	if len(s.Workers) == 0 {
		fmt.Fprintf(&b, "no worker is running; generation %d waits for one to join\n", generation)
		fmt.Fprintln(&g, "no worker")
	}
	return b.String(), g.String()
}
