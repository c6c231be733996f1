package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// renderAll formats the status of replica sets, one after the other.
func renderAll(sets []ops.ReplicaSetStatus) string {
	if len(sets) == 0 {
		return "No worker of any replica set has run yet.\n"
	}
	var parts []string
	for _, s := range sets {
		parts = append(parts, render(s))
	}
	return strings.Join(parts, "\n")
}

// render formats the status of a replica set: first what is stalled, then workers and partitions.
func render(s ops.ReplicaSetStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: generation %d %s", clean(string(s.ReplicaSet)), s.Generation, s.Phase)
	switch {
	case s.Phase == "draining" && s.OpenedAt != nil:
		fmt.Fprintf(&b, " for %s", span(s.At.Sub(*s.OpenedAt)))
	case s.ActivatedAt != nil:
		fmt.Fprintf(&b, " for %s", span(s.At.Sub(*s.ActivatedAt)))
	}
	fmt.Fprintf(&b, ", %s (%s)\n", plural(s.TotalPartitions, "partition"), clean(s.Reason))
	for _, w := range s.Waits {
		fmt.Fprintf(&b, "  ! %s\n", clean(w.Text))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Rewinds)) {
		fmt.Fprintf(&b, "  ! rewind of %s to position %d is pending: it takes effect when the next generation is activated\n", clean(name), s.Rewinds[name])
	}
	for _, o := range s.ParkOrders {
		fmt.Fprintf(&b, "  ! order to park event %d of projection %s is pending, given by %s at %s UTC\n",
			o.Position, clean(o.Projection), clean(o.By), o.OrderedAt.UTC().Format(time.DateTime))
	}
	for _, r := range s.Rebuilds {
		fmt.Fprintf(&b, "  > %s\n", clean(r.Text))
	}
	b.WriteString("\n" + workers(s))
	if len(s.Partitions) > 0 {
		b.WriteString("\n" + partitions(s))
	}
	return b.String()
}

func workers(s ops.ReplicaSetStatus) string {
	if len(s.Workers) == 0 {
		return "  no workers\n"
	}
	rows := [][]string{{"WORKER", "STATE", "PARTITIONS", "LEASE"}}
	for _, w := range s.Workers {
		state := string(w.State)
		switch {
		case w.Vacant:
			state = "vacant"
		case !w.Alive:
			state = "expired"
		case w.Drained:
			state = "drained"
		case state == "":
			state = "-"
		}
		rows = append(rows, []string{w.Worker, state, numbers(w.Partitions), span(w.LeaseUntil.Sub(s.At))})
	}
	return table(rows)
}

func partitions(s ops.ReplicaSetStatus) string {
	rows := [][]string{{"PROJECTION", "PARTITION", "WORKER", "POSITION", "BEHIND", "FOR", "STATE"}}
	for _, p := range s.Partitions {
		row := []string{p.Projection, fmt.Sprintf("%d/%d", p.Partition, p.TotalPartitions), dash(p.Worker), fmt.Sprint(p.Position), "-", "-", "-"}
		if r := p.Report; r != nil {
			row[3], row[6] = fmt.Sprint(max(p.Position, r.Position)), string(r.State)
			if r.Behind >= 0 {
				row[4], row[5] = fmt.Sprint(r.Behind), span(time.Duration(r.BehindSeconds*float64(time.Second)))
			}
			if r.Stalled {
				row[6] += ", stalled"
			}
		}
		if p.Paused {
			row[6] = whyPaused(s, p.Projection)
		}
		if p.Parked > 0 {
			row[6] += fmt.Sprintf(", %d parked", p.Parked)
		}
		rows = append(rows, row)
	}
	return table(rows)
}

// whyPaused returns why a projection is stopped.
func whyPaused(s ops.ReplicaSetStatus, projection string) string {
	for _, r := range s.Rebuilds {
		if r.Projection == projection && r.State == ops.RebuildReplaced {
			return "replaced"
		}
	}
	if _, held := s.Held[projection]; held {
		return "held"
	}
	return "paused"
}

// renderHistory formats generations, newest first.
func renderHistory(records []ops.GenerationRecord) string {
	rows := [][]string{{"GENERATION", "OPENED", "ACTIVE AFTER", "PARTITIONS", "WORKERS", "REASON", "WAITED FOR"}}
	for i, r := range records {
		took := "never"
		switch {
		case r.ActivatedAt != nil:
			took = span(r.ActivatedAt.Sub(r.OpenedAt))
		case i == 0:
			took = "draining"
		}
		rows = append(rows, []string{
			fmt.Sprint(r.Generation), r.OpenedAt.UTC().Format(time.DateTime), took, fmt.Sprint(r.TotalPartitions),
			fmt.Sprint(len(r.Members)), r.Reason, dash(strings.Join(r.WaitedFor, " ")),
		})
	}
	return table(rows) + renderParkOrders(records)
}

// renderParkOrders formats the orders to park events, which open no generation.
func renderParkOrders(records []ops.GenerationRecord) string {
	rows := [][]string{{"ORDER", "GIVEN", "BY", "TO PARK", "OUTCOME"}}
	for _, r := range records {
		for _, o := range r.ParkOrders {
			outcome := string(o.State)
			if o.Reason != "" {
				outcome += ": " + o.Reason
			}
			rows = append(rows, []string{
				fmt.Sprint(o.Number), o.OrderedAt.UTC().Format(time.DateTime), o.By, fmt.Sprintf("event %d of %s", o.Position, o.Projection), outcome,
			})
		}
	}
	if len(rows) == 1 {
		return ""
	}
	return "\n" + table(rows)
}

// table formats rows with aligned columns and indentation.
func table(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = clean(cell)
		}
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	w.Flush() // to memory
	return b.String()
}

// clean turns text from the database into one safe line.
func clean(text string) string {
	return safe(strings.NewReplacer("\r\n", " ", "\n", " ", "\t", " ").Replace(text))
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// numbers formats partitions as 0-3,7.
func numbers(list []int) string {
	var parts []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		part := fmt.Sprint(list[i])
		if j > i {
			part += fmt.Sprintf("-%d", list[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return dash(strings.Join(parts, ","))
}

// span formats a duration with about two digits.
func span(d time.Duration) string {
	unit := time.Microsecond
	switch abs := d.Abs(); {
	case abs >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case abs >= time.Hour:
		unit = time.Minute
	case abs >= time.Second:
		unit = time.Second / 10
		if abs >= 10*time.Second {
			unit = time.Second
		}
	case abs >= time.Millisecond:
		unit = time.Millisecond
	}
	text := d.Round(unit).String()
	if unit == time.Minute {
		text = strings.TrimSuffix(text, "0s")
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
