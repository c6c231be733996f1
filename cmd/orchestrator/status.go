package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

func status(ctx context.Context, c *call) error {
	sets, err := c.statusOf(ctx)
	if err != nil {
		return err
	}
	if c.json {
		err = writeJSON(c.stdout, sets)
	} else {
		_, err = io.WriteString(c.stdout, renderAll(sets))
	}
	if err != nil || !c.check {
		return err
	}
	for _, s := range sets {
		if len(s.Waits) > 0 {
			return errStalled
		}
	}
	return nil
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
