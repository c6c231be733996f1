package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A workerRow is the row of a worker in a timeline, and what is true of the
// worker at the moment that is being drawn. From top to bottom:
//
//	badges   the violation's facts, if there are any
//	faults   frozen and cut off as bands, crashes and lost packets as marks
//	runs     a bar for each, in it the handler calls, a line per projection
//	commits
//	lease    a line while it lasts, its renewals as ticks
type workerRow struct {
	*chartRow
	top    int // below the badges
	starts time.Duration
	began  bool
	gone   time.Duration
	runs   []*workerRun
	levels int // bars on top of each other
	calls  int // lines in a bar

	frozen, cut, waits *fact // since when
	lease              [2]time.Duration
	leased             bool
}

// A workerRun is one partition that a worker runs, from its start until its handlers have
// returned. Only runs of one generation overlap, unless the protocol is broken.
type workerRun struct {
	generation       int64
	partition, total int
	from, to         time.Duration
	drains, cancels  time.Duration // -1: it does not
	open             bool
	how              string // how it ended
	level            int
}

// runs takes in what the workers run, and when they start and end.
func (d *drawing) runs(f fact) {
	r := d.workers[f.worker]
	if r == nil {
		return
	}
	switch f.kind {
	case workerStarts:
		r.starts, r.began = f.at, true
	case workerGone:
		r.gone = f.at
		for _, o := range r.runs {
			o.end(f.at, "ends with the worker")
		}
	case runStarts:
		if o := r.runOf(f); o != nil {
			o.end(f.at, "starts again")
		}
		level := 0
		for slices.ContainsFunc(r.runs, func(o *workerRun) bool { return o.open && o.level == level }) {
			level++
		}
		r.levels = max(r.levels, level+1)
		r.runs = append(r.runs, &workerRun{generation: f.generation, partition: f.partition, total: f.total,
			from: f.at, to: d.beyond, drains: -1, cancels: -1, open: true, how: "still runs at the end", level: level})
	case runDrains, runCancels, runStopped:
		for _, o := range r.runs {
			if o.generation == f.generation && o.open {
				o.take(f)
			}
		}
	}
}

// take takes in a fact about all runs of the worker.
func (o *workerRun) take(f fact) {
	switch f.kind {
	case runDrains:
		o.drains = f.at
	case runCancels:
		o.cancels = f.at
	case runStopped:
		o.end(f.at, "stopped")
	}
}

func (o *workerRun) end(at time.Duration, how string) {
	if o.open {
		o.to, o.open, o.how = at, false, how
	}
}

// runOf returns the run that a fact is about: the latest of its generation, and of its
// partition if it has one, that had begun by then.
func (r *workerRow) runOf(f fact) *workerRun {
	for _, o := range slices.Backward(r.runs) {
		if o.generation == f.generation && o.from <= f.at && (f.total == 0 || o.partition == f.partition) {
			return o
		}
	}
	return nil
}

func (r *workerRow) layOut(d *drawing) {
	r.calls = max(1, len(d.projections))
	r.Height = r.leaseY() + leaseHeight
	if r.began {
		r.Marks = append(r.Marks, chartMark{Class: "life", Style: d.style(r.starts, r.gone, -1, "")})
	}
}

func (r *workerRow) barHeight() int { return labelHeight + callPitch*r.calls + 2 }
func (r *workerRow) commitY() int   { return r.top + faultHeight + r.levels*(r.barHeight()+2) }
func (r *workerRow) leaseY() int    { return r.commitY() + commitHeight }
func (r *workerRow) runY(o *workerRun) int {
	if o == nil { // it is not known to run
		return r.top + faultHeight
	}
	return r.top + faultHeight + o.level*(r.barHeight()+2)
}

// bars draws what a worker runs.
func (d *drawing) bars(r *workerRow) {
	for _, o := range r.runs {
		place := fmt.Sprintf("%s;height:%dpx", hue(o.generation), r.barHeight())
		title := fmt.Sprintf("%s runs %d/%d of generation %d\nfrom %s %s (%s)", r.Name, o.partition, o.total, o.generation, exactly(o.from), d.until(o.to), o.how)
		if o.drains >= 0 {
			title += "\ndrains from " + exactly(o.drains)
		}
		if o.cancels >= 0 {
			title += "\ncancels its handlers at " + exactly(o.cancels)
		}
		r.Marks = append(r.Marks, chartMark{Class: "bar", Style: d.style(o.from, o.to, r.runY(o), place), Title: title})
		if stops := earliest(o.drains, o.cancels); stops >= 0 {
			r.Marks = append(r.Marks, chartMark{Class: "hatch", Style: d.style(stops, o.to, r.runY(o), place), Title: title})
		}
		r.Marks = append(r.Marks, chartMark{Class: "word", Style: d.style(o.from, o.to, r.runY(o)+1, hue(o.generation)),
			Label: fmt.Sprintf("%d: %d/%d", o.generation, o.partition, o.total)})
	}
}

// earliest returns the earlier of two times; -1 is none.
func earliest(a, b time.Duration) time.Duration {
	if a < 0 || b >= 0 && b < a {
		return b
	}
	return a
}

// running returns the handler calls that run, of one worker, or of all if worker is "".
func (d *drawing) running(worker string) []int {
	var calls []int
	for call, f := range d.calls {
		if worker == "" || f.worker == worker {
			calls = append(calls, call)
		}
	}
	slices.Sort(calls)
	return calls
}

// handled draws a handler call. end is nil if the history has no end of it.
func (d *drawing) handled(call int, end *fact) {
	f, ok := d.calls[call]
	if !ok { // an end without a begin
		d.label(d.world, 0, *end, "fault", end.String(), "")
		return
	}
	delete(d.calls, call)
	r := d.workers[f.worker]
	class, to, how := "call", d.beyond, "does not end"
	if end != nil {
		to, how = end.at, hint(*end)
		if end.kind == handlerEnds && end.text != "" {
			class = "call failed"
		}
	}
	if d.numbers[f.step] > 0 || end != nil && d.numbers[end.step] > 0 {
		class = "call broken"
	}
	y := r.runY(r.runOf(f)) + labelHeight + callPitch*slices.Index(d.projections, f.projection)
	d.put(r.chartRow, class, y, dot{step: f.step, from: f.at, to: to, title: hint(f) + "\n" + how, n: 1})
}

// renew extends a worker's lease.
func (d *drawing) renew(r *workerRow, f fact) {
	if f.length == 0 {
		return
	}
	if r.leased && f.at > r.lease[1] {
		d.endLease(r, f.at)
	}
	if !r.leased {
		r.leased, r.lease[0] = true, f.at
	}
	r.lease[1] = f.at + f.length
}

func (d *drawing) endLease(r *workerRow, at time.Duration) {
	if !r.leased {
		return
	}
	r.leased = false
	to := min(at, r.lease[1])
	r.Marks = append(r.Marks, chartMark{Class: "lease", Style: d.style(r.lease[0], to, r.leaseY()+2, ""),
		Title: fmt.Sprintf("%s: lease from %s %s", r.Name, exactly(r.lease[0]), d.until(to))})
}

func (d *drawing) thaw(r *workerRow, at time.Duration) {
	if r.frozen != nil {
		d.shade(r, "frozen", "frozen", *r.frozen, at)
		r.frozen = nil
	}
}

func (d *drawing) mend(r *workerRow, at time.Duration) {
	if r.cut != nil {
		d.shade(r, "cutoff", "cut off", *r.cut, at)
		r.cut = nil
	}
}

// shade draws a fault that lasts: a band with a label, and a shade over the row.
func (d *drawing) shade(r *workerRow, class, label string, f fact, to time.Duration) {
	if to <= d.end {
		label += " " + (to - f.at).Round(100*time.Millisecond).String()
	}
	r.Marks = append(r.Marks,
		chartMark{Class: "shade " + class, Style: d.style(f.at, to, -1, "")},
		chartMark{Class: "band " + class, Style: d.style(f.at, to, r.top+1, ""), Title: hint(f) + "\n" + d.until(to), Label: label})
}

// until returns the end of a period in words.
func (d *drawing) until(at time.Duration) string {
	if at > d.end {
		return "to the end"
	}
	return "until " + exactly(at)
}

func (d *drawing) up(at time.Duration) {
	if d.down != nil {
		d.Lines = append(d.Lines, chartMark{Class: "down", Style: d.style(d.down.at, at, -1, "")})
		d.down = nil
	}
}

// passed ends a worker's wait at a gap.
func (d *drawing) passed(r *workerRow, at time.Duration) {
	if r != nil && r.waits != nil {
		d.gaps.Marks = append(d.gaps.Marks, chartMark{Class: "gap", Style: d.style(r.waits.at, at, 4, ""), Title: hint(*r.waits) + "\n" + d.until(at)})
		r.waits = nil
	}
}

// glyph draws a mark with a shape of its own in a worker's row.
func (d *drawing) glyph(r *workerRow, f fact, class, label string) {
	r.Marks = append(r.Marks, chartMark{Class: "glyph " + class, Style: d.style(f.at, -1, r.top+1, ""), Title: hint(f), Label: label})
}

// line draws a line over all rows.
func (d *drawing) line(f fact, class, more string) {
	d.Lines = append(d.Lines, chartMark{Class: "line " + class, Style: d.style(f.at, -1, -1, more)})
}

// A labelSeries is labels on one line. Each is clipped where the next begins.
type labelSeries struct {
	row   *chartRow
	line  int
	marks []labelMark
}

type labelMark struct {
	fact               fact
	class, label, more string
}

func (d *drawing) label(row *chartRow, line int, f fact, class, label, more string) {
	i := slices.IndexFunc(d.labels, func(s *labelSeries) bool { return s.row == row && s.line == line })
	if i < 0 {
		i = len(d.labels)
		d.labels = append(d.labels, &labelSeries{row: row, line: line})
	}
	d.labels[i].marks = append(d.labels[i].marks, labelMark{f, class, oneLine(label), more})
}

func (d *drawing) putLabels() {
	for _, s := range d.labels {
		for i, m := range s.marks {
			to := d.from + d.span
			if i+1 < len(s.marks) {
				to = s.marks[i+1].fact.at
			}
			s.row.Marks = append(s.row.Marks, chartMark{Class: "label " + m.class,
				Style: d.style(m.fact.at, max(to, m.fact.at), 2+s.line*laneLine, m.more), Title: hint(m.fact), Label: m.label})
		}
	}
}

// A dotSeries is small marks of one kind on one line. Neighbors are merged if there are too
// many.
type dotSeries struct {
	seriesKey
	dots []dot
}

type seriesKey struct {
	row   *chartRow
	class string
	y     int
}

type dot struct {
	step     int
	from, to time.Duration
	title    string
	n        int // the number of facts
}

func (d *drawing) dot(row *chartRow, class string, f fact, y int) {
	if d.numbers[f.step] > 0 {
		class += " broken"
	}
	d.put(row, class, y, dot{step: f.step, from: f.at, to: f.at, title: hint(f), n: 1})
}

func (d *drawing) put(row *chartRow, class string, y int, o dot) {
	k := seriesKey{row, class, y}
	s := d.found[k]
	if s == nil {
		s = &dotSeries{seriesKey: k}
		d.found[k] = s
		d.series = append(d.series, s)
	}
	s.dots = append(s.dots, o)
}

func (d *drawing) putDots() {
	all := 0
	for _, s := range d.series {
		slices.SortStableFunc(s.dots, func(a, b dot) int { return cmp.Compare(a.from, b.from) })
		all += len(s.dots)
	}
	left := all
	for gap := d.span >> 16; left > timelineDots && gap < d.span; gap = 2*gap + 1 {
		left = 0
		for _, s := range d.series {
			s.dots = d.merge(s.dots, gap)
			left += len(s.dots)
		}
	}
	d.Merged = all - left
	for _, s := range d.series {
		for _, o := range s.dots {
			to := o.to
			if to == o.from {
				to = -1
			}
			title := o.title
			if o.n > 1 {
				title = fmt.Sprintf("%d of these %s, the first:\n%s", o.n, d.until(o.to), title)
			}
			s.row.Marks = append(s.row.Marks, chartMark{Class: s.class, Style: d.style(o.from, to, s.y, ""), Title: title})
		}
	}
}

// merge merges neighbors that are less than gap apart, except near a fact of the violation.
func (d *drawing) merge(dots []dot, gap time.Duration) []dot {
	var out []dot
	for _, o := range dots {
		if n := len(out) - 1; n >= 0 && o.from-out[n].to < gap && o.to-out[n].from < 4*gap && !d.near(o) && !d.near(out[n]) {
			out[n].to = max(out[n].to, o.to)
			out[n].n += o.n
			continue
		}
		out = append(out, o)
	}
	return out
}

func (d *drawing) near(o dot) bool {
	return slices.ContainsFunc(d.broken, func(f fact) bool { return max(f.step-o.step, o.step-f.step) <= timelineNear })
}
