package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/importer"
)

// oldProcessors are the flags of import.
type oldProcessors struct {
	total                        int
	segments, dryRun             bool
	table, schema, key, position string
	watch                        time.Duration
}

func importFlags(c *call, f *flag.FlagSet) {
	o := &c.old
	f.IntVar(&o.total, "total", 0, "`number` of partitions of the old processors, or of segments; 1: one processor without partitions")
	f.BoolVar(&o.segments, "segments", false, "the old checkpoints are segments (consumer_segments)")
	f.BoolVar(&o.dryRun, "dry-run", false, "only show what would be done")
	f.BoolVar(&c.yes, "yes", false, "don't ask for confirmation")
	f.StringVar(&o.table, "table", "", "`name` of the table of the old checkpoints; default: projection_checkpoints, or consumer_segments")
	f.StringVar(&o.schema, "table-schema", "", "`name` of the PostgreSQL schema of that table; default: as found by the search path")
	f.StringVar(&o.key, "key-column", "", "`name` of the column with the key of a partition; default: projection_name")
	f.StringVar(&o.position, "position-column", "", "`name` of the column with the position; default: last_global_position")
	f.DurationVar(&o.watch, "watch", 10*time.Second, "how long the old checkpoints are watched, in case a processor still runs")
}

// imports takes over old checkpoints, after a dry run and a question.
func imports(ctx context.Context, c *call) error {
	o := c.old
	switch {
	case o.total < 1:
		return usageError{"import: missing -total, the number of partitions of the old processors (1: one processor without partitions)"}
	case o.segments && o.key+o.position != "":
		return usageError{"import: -key-column and -position-column don't go with -segments"}
	case o.watch <= 0:
		return usageError{fmt.Sprintf("import: -watch is %s; it must be more than 0", o.watch)}
	}
	config := importer.Config{
		DB: c.db, ReplicaSet: c.set(), Projection: c.arg(1), Schema: c.schema, Total: o.total, Watch: o.watch, DryRun: true,
		Old: importer.OldCheckpoints{Schema: o.schema, Table: o.table, KeyColumn: o.key, PositionColumn: o.position},
	}
	if o.segments {
		config.Old, config.Segments = importer.OldCheckpoints{}, &importer.Segments{Schema: o.schema, Table: o.table}
	}
	fmt.Fprintf(c.stderr, "watching the old checkpoints for %s\n", o.watch)
	would, err := importer.Import(ctx, config)
	if err != nil {
		return err
	}
	fmt.Fprint(c.stdout, renderImport(would))
	if o.dryRun {
		fmt.Fprintln(c.stdout, "This was a dry run; nothing was changed.")
		return nil
	}
	if err := c.confirm(fmt.Sprintf("Replica set %s continues projection %s from here. The old processors must be stopped for good.", c.set(), c.arg(1))); err != nil {
		return err
	}
	config.DryRun = false
	fmt.Fprintf(c.stderr, "importing, after another %s\n", o.watch)
	if _, err := importer.Import(ctx, config); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%s is imported; start the workers of replica set %s\n", clean(c.arg(1)), clean(c.arg(0)))
	return nil
}

// renderImport formats what an import does.
func renderImport(r importer.Result) string {
	rows := [][]string{{"OLD CHECKPOINT", "POSITION", "STARTS AFTER"}}
	for _, p := range r.Partitions {
		rows = append(rows, []string{cmp.Or(p.Key, "-"), fmt.Sprint(p.Position), fmt.Sprint(p.Start)})
	}
	again := "No event is handled again."
	if !r.Exact {
		again = fmt.Sprintf("Some events after position %d are handled again: the total does not divide 5040.", r.Lowest)
	}
	return table(rows) + again + "\n"
}
