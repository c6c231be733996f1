package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// positions is a repeatable flag.
type positions []int64

func (p *positions) String() string { return fmt.Sprint(*p) }

func (p *positions) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is not the position of an event: it must be a whole number, at least 1", text)
	}
	*p = append(*p, n)
	return nil
}

func park(ctx context.Context, c *call) error {
	switch c.arg(0) {
	case "list":
		return c.parkList(ctx)
	case "add":
		return c.parkAdd(ctx)
	case "retry":
		return c.parkAsk(ctx, ops.RetryParked, "")
	case "discard":
		return c.parkAsk(ctx, ops.DiscardParked, "Projection %s will never handle these events: %s.")
	default:
		return fmt.Errorf("park %s is not implemented", c.arg(0)) // a mistake in the table of commands
	}
}

func (c *call) parkList(ctx context.Context) error {
	if c.limit < 1 {
		return usageError{fmt.Sprintf("park list: -n is %d; it must be at least 1", c.limit)}
	}
	events, err := ops.Parked(ctx, c.db, c.arg(1), c.limit, c.in)
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.stdout, events)
	}
	_, err = io.WriteString(c.stdout, renderParked(events))
	return err
}

func (c *call) parkAsk(ctx context.Context, ask func(context.Context, *sql.DB, string, ops.ParkedSelector, ...orchestrator.TablesOption) (int, error), question string) error {
	which := ops.ParkedSelector{Positions: c.positions, AggregateID: c.aggregate, All: c.all}
	given := 0
	for _, is := range []bool{len(c.positions) > 0, c.aggregate != "", c.all} {
		if is {
			given++
		}
	}
	if given != 1 {
		return usageError{fmt.Sprintf("park %[1]s: pass one of -position N (repeatable), -aggregate ID and -all, for example: orchestrator park %[1]s search_index -all", c.arg(0))}
	}
	if question != "" {
		if err := c.confirm(fmt.Sprintf(question, c.arg(1), which)); err != nil {
			return err
		}
	}
	n, err := ask(ctx, c.db, c.arg(1), which, c.in)
	if err != nil {
		return err
	}
	if n == 0 {
		_, err = io.WriteString(c.stdout, renderParked(nil))
		return err
	}
	fmt.Fprintf(c.stdout, "%s requested for %s; to check: orchestrator park list %s\n", c.arg(0), plural(n, "event"), c.arg(1))
	return nil
}

// parkAdd orders a worker to park the event that blocks a projection, and waits until it has.
func (c *call) parkAdd(ctx context.Context) error {
	set, projection := orchestrator.ReplicaSetName(c.arg(1)), c.arg(2)
	position, err := strconv.ParseInt(c.arg(3), 10, 64)
	if err != nil || position < 1 {
		return usageError{fmt.Sprintf("park add: POSITION is %q; it must be a whole number, at least 1", c.arg(3))}
	}
	question := fmt.Sprintf("If projection %s is blocked by event %d, it parks this event and the later events of its aggregate, until they are retried or discarded.", projection, position)
	if err := c.confirm(question); err != nil {
		return err
	}
	order, err := ops.Park(ctx, c.db, set, projection, position, c.by, c.in)
	if err != nil {
		return err
	}
	if c.nowait {
		fmt.Fprintf(c.stdout, "order %d given; to see its outcome: orchestrator history %s\n", order, set)
		return nil
	}
	wait, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("event %d is not parked after %s; order %d remains in force and waits for a worker; to check: orchestrator status %s", position, c.timeout, order, set))
	defer cancel()
	switch err := ops.AwaitPark(wait, c.db, order, c.in); {
	case wait.Err() != nil:
		return context.Cause(wait)
	case err != nil:
		return err
	}
	fmt.Fprintf(c.stdout, "event %d is parked; to see it: orchestrator park list %s\n", position, projection)
	return nil
}

// login returns the user and the host that run the command.
func login() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

// renderParked formats parked events.
func renderParked(events []ops.ParkedEvent) string {
	if len(events) == 0 {
		return "Nothing is parked.\n"
	}
	rows := [][]string{{"POSITION", "AGGREGATE", "PARKED", "ATTEMPTS", "REQUESTED", "ERROR"}}
	for _, e := range events {
		problem := e.Error
		if e.Attempts == 0 && problem == "" {
			problem = "(waits behind an earlier one)"
		}
		rows = append(rows, []string{
			fmt.Sprint(e.Position), e.AggregateID, e.ParkedAt.UTC().Format(time.DateTime), fmt.Sprint(e.Attempts), dash(string(e.Request)), problem,
		})
	}
	return table(rows)
}
