package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strconv"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// positions is a flag that may be given several times.
type positions []int64

func (p *positions) String() string { return fmt.Sprint(*p) }

func (p *positions) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is no position", text)
	}
	*p = append(*p, n)
	return nil
}

func park(ctx context.Context, c *call) error {
	switch what := c.arg(0); what {
	case "list":
		return c.parkList(ctx)
	case "retry":
		return c.parkAsk(ctx, ops.RetryParked, "")
	case "discard":
		return c.parkAsk(ctx, ops.DiscardParked, "Projection %s will never handle them: %s. Go on?")
	default:
		return usageError{fmt.Sprintf("park: %q is neither list nor retry nor discard", what)}
	}
}

func (c *call) parkList(ctx context.Context) error {
	if c.limit < 1 {
		return usageError{fmt.Sprintf("park list: -n is %d; the least is 1", c.limit)}
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
		return usageError{fmt.Sprintf("park %s takes one of -position N (or several), -aggregate ID and -all", c.arg(0))}
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
	fmt.Fprintf(c.stdout, "asked for %s; the workers that have their partitions do it: orchestrator park list %s\n", plural(n, "event"), c.arg(1))
	return nil
}

// renderParked shows parked events by position.
func renderParked(events []ops.ParkedEvent) string {
	if len(events) == 0 {
		return "Nothing is parked.\n"
	}
	rows := [][]string{{"POSITION", "AGGREGATE", "PARKED", "ATTEMPTS", "ASKED FOR", "ERROR"}}
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
