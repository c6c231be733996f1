package monitoring

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"flag"
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
)

// The picture of the dashboard: each panel's queries are evaluated by Prometheus's engine,
// and what they give is drawn as an SVG. It shows what there is to see, and not how Grafana
// would draw it.

var picture = flag.String("picture", "", "a file: run a small workload for two minutes, and draw the dashboard into it")

// Without the flag, what is drawn is what is said in the stories.
func TestPicture(t *testing.T) {
	if *picture != "" {
		w, lasted := scene(t)
		if err := os.WriteFile(*picture, draw(t, w, lasted, time.Second, "10s"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	svg := draw(t, play(t, everything), lasts, time.Minute, "2m")
	var texts, shapes int
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			switch e.Name.Local {
			case "text":
				texts++
			case "polyline", "rect":
				shapes++
			}
		}
	}
	if texts < 100 || shapes < 100 {
		t.Errorf("%d texts and %d shapes are drawn", texts, shapes)
	}
	for _, p := range readDashboard(t).Panels {
		if !strings.Contains(string(svg), ">"+html.EscapeString(p.Title)+"</text>") {
			t.Errorf("%s is not in the picture", p.Title)
		}
	}
	for _, never := range []string{"NaN", "Inf", "{{", "no data"} {
		if strings.Contains(string(svg), never) {
			t.Errorf("%q is in the picture", never)
		}
	}
}

// The committed picture is of this dashboard.
func TestPictureIsOfTheDashboard(t *testing.T) {
	svg, err := os.ReadFile("../../../docs/dashboard.svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range readDashboard(t).Panels {
		if !strings.Contains(string(svg), ">"+html.EscapeString(p.Title)+"</text>") {
			t.Errorf("%s is not in docs/dashboard.svg: make dashboard-picture", p.Title)
		}
	}
}

const (
	column, unit, gap, margin = 50, 24, 8, 16 // a dashboard has 24 columns
	across                    = 24*column + 2*margin
	entries                   = 8 // of a legend, at most
)

const style = `<style>
text { font: 12px system-ui, sans-serif; fill: #24292f }
.row { font-weight: 600; font-size: 15px } .title { font-weight: 600 }
.small { font-size: 10px; fill: #57606a } .big { font-size: 26px; font-weight: 600; fill: #fff; text-anchor: middle } .on { fill: #fff; font-weight: 600 }
.page { fill: #f6f8fa } .panel { fill: #fff; stroke: #d0d7de } .axis { stroke: #d0d7de; stroke-width: 1 } .line { fill: none; stroke-width: 1.5 }
.green { fill: #1a7f37 } .orange { fill: #bc4c00 } .red { fill: #cf222e } .blue { fill: #0969da } .cell { fill: #0969da }
.s0 { stroke: #0969da } .s1 { stroke: #cf222e } .s2 { stroke: #1a7f37 } .s3 { stroke: #8250df } .s4 { stroke: #bf8700 } .s5 { stroke: #1b7c83 } .s6 { stroke: #bf3989 } .s7 { stroke: #57606a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #8d96a0 } .big, .on { fill: #fff }
  .page { fill: #010409 } .panel { fill: #0d1117; stroke: #3d444d } .axis { stroke: #3d444d } .cell { fill: #4493f8 }
  .s0 { stroke: #4493f8 } .s1 { stroke: #f85149 } .s2 { stroke: #3fb950 } .s3 { stroke: #ab7df8 } .s4 { stroke: #d29922 } .s5 { stroke: #39c5cf } .s6 { stroke: #db61a2 } .s7 { stroke: #9198a1 }
}</style>
`

// A canvas is an SVG under way.
type canvas struct {
	bytes.Buffer
	t    *testing.T
	w    *world
	to   time.Duration // from 0
	step time.Duration
	rate string // $__rate_interval
}

func draw(t *testing.T, w *world, to, step time.Duration, rate string) []byte {
	t.Helper()
	c := &canvas{t: t, w: w, to: to, step: step, rate: rate}
	panels, bottom := readDashboard(t).Panels, 0
	for _, p := range panels {
		bottom = max(bottom, p.GridPos.Y+p.GridPos.H)
	}
	high := bottom*unit + 2*margin
	c.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="The dashboard">`+"\n", across, high)
	c.WriteString(style)
	c.put(`<rect class="page" width="%d" height="%d"/>`+"\n", across, high)
	for _, p := range panels {
		c.panel(p)
	}
	c.put("</svg>\n")
	return c.Bytes()
}

func (c *canvas) put(format string, args ...any) { fmt.Fprintf(c, format, args...) }

func (c *canvas) text(class string, x, y float64, text string, more ...string) {
	c.put(`<text class="%s" x="%.0f" y="%.0f"%s>%s</text>`+"\n", class, x, y, strings.Join(more, ""), html.EscapeString(text))
}

// A box is where something is drawn.
type box struct{ x, y, w, h float64 }

func (c *canvas) panel(p panel) {
	g := p.GridPos
	b := box{float64(margin + g.X*column), float64(margin + g.Y*unit), float64(g.W*column - gap), float64(g.H*unit - gap)}
	if p.Type == "row" {
		c.text("row", b.x, b.y+16, p.Title)
		return
	}
	inner := box{b.x + 44, b.y + 30, b.w - 56, b.h - 68}
	switch p.Type {
	case "stat":
		c.stat(p, b)
		return
	case "timeseries":
		c.frame(b, p.Title)
		c.series(p, inner)
	case "heatmap":
		c.frame(b, p.Title)
		c.heatmap(p, inner)
	case "table":
		c.frame(b, p.Title)
		c.table(p, b)
	default:
		c.t.Fatalf("%s: a panel of the type %s can't be drawn", p.Title, p.Type)
	}
}

func (c *canvas) frame(b box, title string) {
	c.put(`<rect class="panel" x="%.0f" y="%.0f" width="%.0f" height="%.0f" rx="4"/>`+"\n", b.x, b.y, b.w, b.h)
	c.text("title", b.x+10, b.y+18, title)
}

func (c *canvas) expr(text string) string {
	return expand(text, c.rate, fmt.Sprintf("%ds", int(c.to.Seconds())))
}

func (c *canvas) stat(p panel, b box) {
	color, shown := "green", p.FieldConfig.Defaults.NoValue
	if values := c.w.eval(c.t, c.expr(p.Targets[0].Expr), c.to); len(values) > 0 {
		v := values[0].F
		shown = quantity(v, p.FieldConfig.Defaults.Unit)
		for _, s := range p.FieldConfig.Defaults.Thresholds.Steps {
			if s.Value == nil || v >= *s.Value {
				color = s.Color
			}
		}
	}
	c.put(`<rect class="%s" x="%.0f" y="%.0f" width="%.0f" height="%.0f" rx="4"/>`+"\n", color, b.x, b.y, b.w, b.h)
	c.text("on", b.x+10, b.y+18, p.Title)
	c.text("big", b.x+b.w/2, b.y+b.h/2+20, shown)
}

func (c *canvas) rangeOf(expr string) promql.Matrix {
	q, err := c.w.engine.NewRangeQuery(context.Background(), c.w, nil, c.expr(expr), time.UnixMilli(0), time.UnixMilli(c.to.Milliseconds()), c.step)
	if err != nil {
		c.t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	m, err := q.Exec(context.Background()).Matrix()
	if err != nil {
		c.t.Fatalf("%s: %v", expr, err)
	}
	var out promql.Matrix // what the engine returns is its own
	for _, s := range m {
		s.Floats = slices.DeleteFunc(slices.Clone(s.Floats), func(p promql.FPoint) bool { return math.IsNaN(p.F) || math.IsInf(p.F, 0) })
		if len(s.Floats) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// axes draws times below and values beside.
func (c *canvas) axes(b box, ticks map[float64]string) {
	for at, text := range sorted(ticks) {
		y := b.y + b.h - at*b.h
		c.put(`<line class="axis" x1="%.0f" x2="%.0f" y1="%.1f" y2="%.1f"/>`+"\n", b.x, b.x+b.w, y, y)
		c.text("small", b.x-4, y+3, text, ` text-anchor="end"`)
	}
	for i := range 5 {
		at := c.to * time.Duration(i) / 4
		c.text("small", b.x+b.w*float64(i)/4, b.y+b.h+13, fmt.Sprintf("%d:%02d", int(at.Minutes()), int(at.Seconds())%60), ` text-anchor="middle"`)
	}
}

func sorted(m map[float64]string) func(func(float64, string) bool) {
	return func(yield func(float64, string) bool) {
		var keys []float64
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// legend puts the labels of a series in a target's legend.
func legend(format string, of labels.Labels) string {
	text := regexp.MustCompile(`\{\{(\w+)\}\}`).ReplaceAllStringFunc(format, func(label string) string { return of.Get(strings.Trim(label, "{}")) })
	return strings.TrimSpace(text)
}

func (c *canvas) series(p panel, b box) {
	type line struct {
		name   string
		points []promql.FPoint
	}
	var lines []line
	top := 0.0
	for _, target := range p.Targets {
		for _, s := range c.rangeOf(target.Expr) {
			lines = append(lines, line{legend(target.LegendFormat, s.Metric), s.Floats})
			for _, f := range s.Floats {
				top = max(top, f.F)
			}
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.name, b.name) })
	top = above(top)
	ticks := map[float64]string{}
	for i := range 4 {
		ticks[float64(i)/3] = quantity(top*float64(i)/3, p.FieldConfig.Defaults.Unit)
	}
	c.axes(b, ticks)
	x, full := b.x, false // of the legend
	for i, l := range lines {
		color := fmt.Sprintf("s%d", i%8)
		var runs [][]string // a line is broken where there is nothing
		last := int64(math.MinInt64 / 2)
		for _, f := range l.points {
			if f.T-last > c.step.Milliseconds() {
				runs = append(runs, nil)
			}
			last = f.T
			runs[len(runs)-1] = append(runs[len(runs)-1], fmt.Sprintf("%.1f,%.1f", b.x+b.w*float64(f.T)/float64(c.to.Milliseconds()), b.y+b.h-b.h*f.F/top))
		}
		for _, run := range runs {
			if len(run) == 1 {
				run = append(run, run[0])
			}
			c.put(`<polyline class="line %s" points="%s"/>`+"\n", color, strings.Join(run, " "))
		}
		if full {
			continue
		}
		wide := 26 + 5.2*float64(len(l.name))
		if full = i == entries || x+wide > b.x+b.w-60; full {
			c.text("small", x, b.y+b.h+30, fmt.Sprintf("and %d more", len(lines)-i))
			continue
		}
		c.put(`<line class="line %s" x1="%.0f" x2="%.0f" y1="%.0f" y2="%.0f"/>`+"\n", color, x, x+12, b.y+b.h+27, b.y+b.h+27)
		c.text("small", x+16, b.y+b.h+30, l.name)
		x += wide
	}
	if len(lines) == 0 {
		c.text("small", b.x+b.w/2, b.y+b.h/2, "no data", ` text-anchor="middle"`)
	}
}

// above returns a round number that is not less.
func above(v float64) float64 {
	if v <= 0 {
		return 1
	}
	e := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1.5, 3, 6, 9, 15} {
		if v <= m*e {
			return m * e
		}
	}
	return v
}

func (c *canvas) heatmap(p panel, b box) {
	buckets := c.rangeOf(p.Targets[0].Expr)
	le := func(s promql.Series) float64 { v, _ := strconv.ParseFloat(s.Metric.Get("le"), 64); return v }
	slices.SortFunc(buckets, func(a, b promql.Series) int { return cmp.Compare(le(a), le(b)) })
	// Buckets are cumulative.
	count := map[int64][]float64{}
	most, filled := 0.0, 0
	for i, s := range buckets {
		for _, f := range s.Floats {
			if count[f.T] == nil {
				count[f.T] = make([]float64, len(buckets))
			}
			count[f.T][i] = f.F
		}
	}
	for _, column := range count {
		for i := len(column) - 1; i > 0; i-- {
			column[i] = max(0, column[i]-column[i-1])
		}
		for i, n := range column {
			if most = max(most, n); n > 0 {
				filled = max(filled, i+1)
			}
		}
	}
	filled = min(len(buckets), filled+1)
	ticks := map[float64]string{}
	for i, s := range buckets[:filled] {
		if i%2 == 1 && !math.IsInf(le(s), 0) {
			ticks[float64(i+1)/float64(filled)] = quantity(le(s), "s")
		}
	}
	c.axes(b, ticks)
	columns := min(60, int(c.to/c.step))
	every := int(c.to/c.step) / columns
	wide, high := b.w/float64(columns), b.h/float64(filled)
	for i := range columns {
		at := (c.step * time.Duration((i+1)*every)).Milliseconds()
		for k, n := range count[at] {
			if n > 0 {
				c.put(`<rect class="cell" x="%.1f" y="%.1f" width="%.1f" height="%.1f" opacity="%.2f"/>`+"\n",
					b.x+float64(i)*wide, b.y+b.h-float64(k+1)*high, wide-1, high-1, .12+.88*math.Sqrt(n/most))
			}
		}
	}
}

func (c *canvas) table(p panel, b box) {
	values := c.w.eval(c.t, c.expr(p.Targets[0].Expr), c.to)
	columns := []string{"replica_set", "projection", "partition"}
	y := b.y + 42
	for i, name := range append(slices.Clone(columns), "lag") {
		c.text("small", b.x+10+float64(i)*b.w/4, y, name)
	}
	for _, v := range values[:min(len(values), 6)] {
		y += 20
		for i, name := range columns {
			c.text("", b.x+10+float64(i)*b.w/4, y, v.Metric.Get(name))
		}
		c.text("", b.x+10+3*b.w/4, y, quantity(v.F, "s"))
	}
	if len(values) == 0 {
		c.text("", b.x+10, y+20, p.FieldConfig.Defaults.NoValue)
	}
}

// quantity writes a number as Grafana would.
func quantity(v float64, unit string) string {
	short := func(v float64) string { return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64) }
	switch {
	case unit != "s" && v >= 1e6:
		return short(v/1e6) + " M"
	case unit != "s" && v >= 1e4:
		return short(v/1e3) + " K"
	case unit != "s":
		return short(v)
	case v == 0:
		return "0 s"
	case v < 1:
		return strconv.FormatFloat(v*1e3, 'g', 3, 64) + " ms"
	case v < 90:
		return short(v) + " s"
	case v < 5400:
		return short(v/60) + " min"
	}
	return short(v/3600) + " h"
}
