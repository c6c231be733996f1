package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// charts writes the charts of the result.
func (r *result) charts(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, c := range map[string]*chart{
		"throughput": r.throughputChart(),
		"rebalance":  r.tailChart("Rebalance", "ms from the change until all workers work: median, p90, p99, most", "rebalance-"),
		"workers":    r.workersChart(),
		"failover":   r.tailChart("Failover", "ms from SIGKILL until the partition is handled elsewhere: median, p90, p99, most", "failover"),
	} {
		if c == nil {
			continue // its rows were not measured
		}
		if err := os.WriteFile(filepath.Join(folder, name+".svg"), []byte(c.svg(r.Machine)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A chart is an SVG picture that is readable on light and on dark backgrounds.
type chart struct {
	title, subtitle string
	height          int
	body            strings.Builder
}

const (
	chartWidth = 760
	plotLeft   = 250 // where the bars start
	plotRight  = 690
	firstLine  = 70
	lineHeight = 26
)

const chartStyle = `
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 16px }
.small { font-size: 11px; fill: #6e7781 }
.bar { fill: #0969da } .other { fill: #8c959f } .tail { stroke: #0969da; stroke-width: 2 }
.dot { fill: #0969da } .line { fill: none; stroke: #0969da; stroke-width: 2 }
.axis { stroke: #d0d7de } .range { stroke: #24292f } .goal { stroke: #cf222e; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #8d96a0 }
  .bar, .dot { fill: #4493f8 } .tail, .line { stroke: #4493f8 }
  .other { fill: #656c76 } .axis { stroke: #3d444d } .range { stroke: #e6edf3 } .goal { stroke: #f85149 }
}`

func (c *chart) svg(m machine) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">
<style>%s</style>
<text class="title" x="20" y="28">%s</text>
<text class="small" x="20" y="46">%s</text>
%s<text class="small" x="20" y="%d">%s</text>
</svg>
`, chartWidth, c.height, html.EscapeString(c.title), chartStyle, html.EscapeString(c.title), html.EscapeString(c.subtitle),
		c.body.String(), c.height-12, html.EscapeString(m.short()))
}

func (c *chart) add(format string, args ...any) { fmt.Fprintf(&c.body, format+"\n", args...) }

func (c *chart) text(x float64, y int, anchor, text string) {
	c.add(`<text x="%.0f" y="%d" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(text))
}

// newChart returns a chart with space for a number of lines.
func newChart(title, subtitle string, lines int) *chart {
	return &chart{title: title, subtitle: subtitle, height: firstLine + lines*lineHeight + 36}
}

// throughputChart shows each ratio of throughput as a bar, and the goals.
func (r *result) throughputChart() *chart {
	var rows []row
	most := 1.0
	for _, row := range r.Rows {
		if row.Unit == eventsPerSecond && row.Ratio != nil {
			rows = append(rows, row)
			most = max(most, row.Ratio.High)
		}
	}
	if rows == nil {
		return nil
	}
	c := newChart("Throughput", "relative to a bare loop that does only what is needed (red: goal; line: range)", len(rows))
	x := func(v float64) float64 { return plotLeft + v/most*(plotRight-plotLeft) }
	for i, row := range rows {
		y := firstLine + i*lineHeight
		class := "other"
		if row.Met != nil {
			class = "bar"
		}
		c.text(plotLeft-8, y+13, "end", row.Name)
		c.add(`<rect class="%s" x="%d" y="%d" width="%.1f" height="18"/>`, class, plotLeft, y, x(row.Ratio.Median)-plotLeft)
		c.add(`<line class="range" x1="%.1f" x2="%.1f" y1="%d" y2="%[3]d"/>`, x(row.Ratio.Low), x(row.Ratio.High), y+9)
		var goal float64
		if _, err := fmt.Sscanf(row.Goal, "≥ %g", &goal); err == nil {
			c.add(`<line class="goal" x1="%.1f" x2="%.1[1]f" y1="%d" y2="%d"/>`, x(goal), y-2, y+20)
		}
		c.text(plotRight+8, y+13, "start", figure(row.Ratio.Median))
	}
	return c
}

// logScale maps milliseconds to a range of x or y. Each power of ten has the same width.
func logScale(most, from, to float64) func(float64) float64 {
	decades := max(math.Ceil(math.Log10(most)), 1)
	return func(v float64) float64 {
		return from + (to-from)*max(math.Log10(max(v, 1)), 0)/decades
	}
}

// tailChart shows a line for each distribution.
func (r *result) tailChart(title, subtitle, prefix string) *chart {
	var rows []row
	most := 10.0
	for _, row := range r.Rows {
		if strings.HasPrefix(row.Name, prefix) && row.Unit == milliseconds && !strings.Contains(row.Name, "/") {
			rows = append(rows, row)
			most = max(most, row.Value.High)
		}
	}
	if rows == nil {
		return nil
	}
	c := newChart(title, subtitle+" (logarithmic)", len(rows))
	x := logScale(most, plotLeft, plotRight)
	for v := 1.0; x(v) < plotRight+1; v *= 10 {
		c.add(`<line class="axis" x1="%.1f" x2="%.1[1]f" y1="%d" y2="%d"/>`, x(v), firstLine-4, firstLine+len(rows)*lineHeight)
		c.add(`<text class="small" x="%.1f" y="%d" text-anchor="middle">%.0f</text>`, x(v), firstLine-8, v)
	}
	for i, row := range rows {
		y := firstLine + i*lineHeight + 9
		c.text(plotLeft-8, y+4, "end", row.Name)
		c.add(`<line class="axis" x1="%d" x2="%d" y1="%d" y2="%[3]d"/>`, plotLeft, plotRight, y)
		c.add(`<line class="tail" x1="%.1f" x2="%.1f" y1="%d" y2="%[3]d"/>`, x(row.Value.Median), x(row.Value.High), y)
		c.add(`<circle class="dot" cx="%.1f" cy="%d" r="5"/>`, x(row.Value.Median), y)
		for _, v := range []float64{row.Value.P90, row.Value.P99, row.Value.High} {
			c.add(`<line class="tail" x1="%.1f" x2="%.1[1]f" y1="%d" y2="%d"/>`, x(v), y-5, y+5)
		}
		c.text(plotRight+8, y+4, "start", figure(row.Value.Median))
	}
	return c
}

// workersChart shows the median latency by the number of workers.
func (r *result) workersChart() *chart {
	type point struct{ workers, ms float64 }
	var points []point
	most := 10.0
	for _, row := range r.Rows {
		var workers float64
		if n, _ := fmt.Sscanf(row.Name, "rebalance-%g", &workers); n == 1 && row.Name == fmt.Sprintf("rebalance-%g", workers) {
			points = append(points, point{workers, row.Value.Median})
			most = max(most, row.Value.Median)
		}
	}
	if len(points) < 2 {
		return nil
	}
	const top, bottom = firstLine + 10, firstLine + 210
	c := newChart("Rebalance over workers", "median ms from the change until all workers work, over the number of workers (both logarithmic)", 9)
	x, y := logScale(1000, 60, chartWidth-60), logScale(most, bottom, top)
	c.add(`<line class="axis" x1="40" x2="%d" y1="%d" y2="%[2]d"/>`, chartWidth-40, bottom)
	var line []string
	for _, p := range points {
		line = append(line, fmt.Sprintf("%.1f,%.1f", x(p.workers), y(p.ms)))
		c.add(`<circle class="dot" cx="%.1f" cy="%.1f" r="4"/>`, x(p.workers), y(p.ms))
		c.text(x(p.workers), int(y(p.ms))-9, "middle", figure(p.ms))
		c.text(x(p.workers), bottom+16, "middle", fmt.Sprint(p.workers))
	}
	c.add(`<polyline class="line" points="%s"/>`, strings.Join(line, " "))
	return c
}
