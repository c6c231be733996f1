package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A result is the result of a run.
type result struct {
	Machine machine `json:"machine"`
	Rows    []row   `json:"rows"`
}

// report prints the result, and writes charts if requested.
func (r *result) report(w io.Writer, o options) error {
	if o.charts != "" {
		if err := r.charts(o.charts); err != nil {
			return err
		}
	}
	if o.json {
		out := json.NewEncoder(w)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	return r.table(w)
}

func (r *result) table(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n\n", r.Machine)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "row\tvalue\trange\tn\tratio\trange\tgoal\tmet\t")
	for _, r := range r.Rows {
		ratio, spread := "", ""
		if r.Ratio != nil {
			ratio = figure(r.Ratio.Median)
			spread = figure(r.Ratio.Low) + " … " + figure(r.Ratio.High)
		}
		met := ""
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "no"}[*r.Met]
		}
		fmt.Fprintln(t, strings.Join([]string{
			r.Name, figure(r.Value.Median) + " " + r.Unit, r.spread(), fmt.Sprint(r.Value.N), ratio, spread, r.Goal, met, r.Note,
		}, "\t"))
	}
	return t.Flush()
}

// spread returns the range of a row; for times, the tail, which matters more.
func (r row) spread() string {
	switch {
	case r.Value.N == 1:
		return ""
	case r.Unit == milliseconds:
		return fmt.Sprintf("p90 %s p99 %s max %s", figure(r.Value.P90), figure(r.Value.P99), figure(r.Value.High))
	}
	return figure(r.Value.Low) + " … " + figure(r.Value.High)
}

// figure formats a number with three digits and without an exponent.
func figure(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
