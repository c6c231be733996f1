package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// level is the flag -check. As a switch it means warning. "": no check.
type level ops.Severity

func (l *level) String() string { return string(*l) }

// IsBoolFlag lets the flag stand without a value.
func (l *level) IsBoolFlag() bool { return true }

func (l *level) Set(text string) error {
	switch text {
	case "true":
		*l = level(ops.SeverityWarning)
	case "false":
		*l = ""
	default:
		if !slices.Contains(severities, ops.Severity(text)) {
			return fmt.Errorf("%q is no severity: write -check=critical, -check=warning or -check=info", text)
		}
		*l = level(text)
	}
	return nil
}

// A stalled error says that -check has found reasons. They are printed.
type stalled struct{ reasons int }

func (s stalled) Error() string { return plural(s.reasons, "reason") }

func status(ctx context.Context, c *call) error {
	sets, err := c.statusOf(ctx)
	if err != nil {
		return err
	}
	found, reasons := atLeast(sets, ops.Severity(c.check))
	v := view{width: c.width(), verbose: c.verbose}
	switch {
	case c.json:
		err = writeJSON(c.stdout, sets)
	case c.check == "":
		err = c.print(v.all(sets))
	case reasons == 0:
		_, err = fmt.Fprintf(c.stdout, "No reason of severity %s.\n", orWorse(c.check))
	default:
		var lines []line
		for _, s := range found {
			lines = append(lines, line{{string(s.ReplicaSet) + ": ", bold}, {text: fmt.Sprintf("%s of severity %s", plural(len(s.Waits), "reason"), orWorse(c.check))}})
			lines = append(lines, v.waits(s)...)
		}
		err = c.print(lines)
	}
	if err == nil && c.check != "" && reasons > 0 {
		err = stalled{reasons}
	}
	return err
}

// orWorse names the severities that a check finds.
func orWorse(l level) string {
	if ops.Severity(l) == ops.SeverityCritical {
		return string(l)
	}
	return string(l) + " or worse"
}

// atLeast returns the replica sets that have reasons of a severity or worse, with these alone.
func atLeast(sets []ops.ReplicaSetStatus, severity ops.Severity) (found []ops.ReplicaSetStatus, reasons int) {
	for _, s := range sets {
		s.Waits = slices.DeleteFunc(slices.Clone(s.Waits), func(w ops.Wait) bool { return !w.Severity.AtLeast(severity) })
		if reasons += len(s.Waits); len(s.Waits) > 0 {
			found = append(found, s)
		}
	}
	slices.SortStableFunc(found, func(a, b ops.ReplicaSetStatus) int { return cmp.Compare(worst(a), worst(b)) })
	return found, reasons
}

// width returns the width of the terminal to which the output goes; 0: it does not.
func (c *call) width() int {
	if !terminal.Is(c.screen) {
		return 0
	}
	width, _ := terminal.Size(c.screen)
	return width
}

// print prints lines, in colour on a terminal. paint has escaped them.
func (c *call) print(lines []line) error {
	_, err := io.WriteString(c.screen, paint(lines, terminal.Colours(c.screen)))
	return err
}

// statusOf returns the status of the set that was named, or of all.
func (c *call) statusOf(ctx context.Context) ([]ops.ReplicaSetStatus, error) {
	names := []orchestrator.ReplicaSetName{orchestrator.ReplicaSetName(c.arg(0))}
	if c.arg(0) == "" {
		var err error
		if names, err = ops.ReplicaSets(ctx, c.db, c.in); err != nil {
			return nil, err
		}
	}
	sets := []ops.ReplicaSetStatus{}
	for _, name := range names {
		s, err := ops.Status(ctx, c.db, name, c.in)
		if err != nil {
			return nil, err
		}
		sets = append(sets, s)
	}
	return sets, nil
}

func history(ctx context.Context, c *call) error {
	if c.limit < 1 {
		return usageError{fmt.Sprintf("history: -n is %d; it must be at least 1", c.limit)}
	}
	records, err := ops.History(ctx, c.db, orchestrator.ReplicaSetName(c.arg(0)), c.limit, c.in)
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.stdout, records)
	}
	if len(records) == 0 {
		return ops.ErrNoReplicaSet
	}
	_, err = io.WriteString(c.stdout, renderHistory(records))
	return err
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
