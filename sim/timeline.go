package sim

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed timeline.html
var timelineHTML string

var timelineTemplate = template.Must(template.New("timeline").Parse(timelineHTML))

// These bound the size of a page, however long the history is.
const (
	timelineDots  = 6000 // small marks: handler calls, commits, requests, appends, packets
	timelineNear  = 100  // facts within so many steps of a fact of the violation are never merged
	timelineStory = 400  // rows in the table of the main facts
)

// timeline writes a history as one HTML page without external resources. Workers are rows,
// and time runs to the right.
func timeline(w io.Writer, h history, v *violation, title string) error {
	return timelineTemplate.Execute(w, drawChart(h, v, title))
}

// A chart is the data of the template.
type chart struct {
	Title, Summary string
	Verdict, What  string       // "" if nothing was broken
	Broken         []chartEntry // the violation's facts
	Story          []chartEntry // the main facts, as text
	LeftOut        int          // main facts that are left out
	Merged         int          // small marks that are merged with others
	From, Span     float64      // seconds
	Between        [2]float64   // seconds from the violation's first fact to its last
	Ticks, Lines   []chartMark  // through all rows, behind the marks
	Front          []chartMark  // in front of them
	Rows           []*chartRow
}

// A chartEntry is a fact in a table. Number counts the facts of the violation; it is 0 for
// others.
type chartEntry struct {
	Number, Step int
	Seconds      float64
	Time         string
	Worker, Text string
}

type chartRow struct {
	Name, Class string
	Height      int
	Marks       []chartMark
}

// A chartMark is anything that has a place in time.
type chartMark struct {
	Class string
	Style template.CSS // contains only numbers
	Title string       // shown on hover
	Label string
}

// These are heights and offsets within rows, in pixels.
const (
	badgeHeight  = 18
	faultHeight  = 16
	labelHeight  = 15
	callPitch    = 6
	commitHeight = 11
	leaseHeight  = 8
	laneLine     = 17
)

// A drawing is a chart under construction.
type drawing struct {
	chart
	from, span  time.Duration
	end, beyond time.Duration // the end of the history, and the end of bars that go on
	projections []string
	numbers     map[int]int // the facts of the violation by step, counted from 1
	broken      []fact      // those facts

	group, world, events, gaps *chartRow
	workers                    map[string]*workerRow
	order                      []*workerRow

	calls  map[int]fact // handler calls that run
	down   *fact        // since when the database is down
	series []*dotSeries
	found  map[seriesKey]*dotSeries
	labels []*labelSeries
}

func drawChart(h history, v *violation, title string) chart {
	d := &drawing{
		numbers: map[int]int{}, workers: map[string]*workerRow{}, calls: map[int]fact{}, found: map[seriesKey]*dotSeries{},
		group: &chartRow{Name: "group", Class: "lane", Height: 2*laneLine + 4}, world: &chartRow{Name: "world", Class: "lane", Height: 2*laneLine + 4},
		events: &chartRow{Name: "events", Class: "lane", Height: 18}, gaps: &chartRow{Name: "gaps", Class: "lane", Height: 18},
	}
	d.Title = title
	if v != nil {
		d.violated(h, v)
	}
	d.measure(slices.Concat(h.facts, d.broken))
	for _, f := range h.facts {
		d.runs(f)
	}
	for _, r := range d.order {
		r.layOut(d)
	}
	for _, f := range h.facts {
		d.fact(f)
	}
	d.finish()
	d.badges()
	d.tell(h)
	d.tick()
	d.Rows = append(d.Rows, d.group, d.world)
	for _, r := range d.order {
		d.Rows = append(d.Rows, r.chartRow)
	}
	d.Rows = append(d.Rows, d.events, d.gaps)
	return d.chart
}

func (d *drawing) violated(h history, v *violation) {
	last := lastFact(h, v)
	d.Verdict = fmt.Sprintf("%s %s, step %d, %s", verdict(v.promise), v.promise, last.step, exactly(last.at))
	d.What, d.broken = oneLine(v.sentence()), v.facts
	d.Between = [2]float64{last.at.Seconds(), last.at.Seconds()}
	for i, f := range v.facts {
		d.Between[0] = min(d.Between[0], f.at.Seconds())
		d.numbers[f.step] = i + 1
		d.Broken = append(d.Broken, d.entry(f))
	}
}

// measure finds the time span, the workers and the projections.
func (d *drawing) measure(facts []fact) {
	for _, f := range facts {
		d.end = max(d.end, f.at)
		if f.projection != "" && !slices.Contains(d.projections, f.projection) {
			d.projections = append(d.projections, f.projection)
		}
	}
	slices.Sort(d.projections)
	span := max(d.end, time.Millisecond)
	d.from, d.beyond = -span/80, d.end+span/50 // room for marks at the ends
	d.span = d.end + span/30 - d.from
	d.From, d.Span = d.from.Seconds(), d.span.Seconds()
	bad := workersOf(d.broken)
	for _, name := range workersOf(facts) {
		r := &workerRow{chartRow: &chartRow{Name: name, Class: "worker"}, gone: d.beyond, levels: 1}
		if slices.Contains(bad, name) {
			r.Class += " bad"
			r.top = badgeHeight
		}
		d.workers[name] = r
		d.order = append(d.order, r)
	}
}

// fact draws a fact, or keeps it until what it begins has ended.
func (d *drawing) fact(f fact) {
	if tells(f.kind) {
		d.Story = append(d.Story, d.entry(f))
	}
	r := d.workers[f.worker]
	if r == nil && ofWorker(f.kind) { // a fault of all workers, or a fact without its worker
		d.label(d.world, 0, f, "fault", f.String(), "")
		return
	}
	switch f.kind {
	case workerStarts:
		d.glyph(r, f, "start", "")
	case workerGone:
		d.glyph(r, f, "gone", "")
		for _, call := range d.running(f.worker) {
			d.handled(call, &f)
		}
		d.thaw(r, f.at)
		d.mend(r, f.at)
		d.endLease(r, f.at)
	case sessionAsks:
		d.dot(r.chartRow, "ask", f, r.leaseY())
		d.renew(r, f)
	case workerExpired:
		d.glyph(r, f, "expired", "†")
		d.endLease(r, f.at)

	case sessionProven, proofAwaited, checkpointShown:
		d.dot(r.chartRow, "ask", f, r.leaseY())
	case runStarts:
	case runDrains:
		d.dot(r.chartRow, "drains", f, r.runY(r.runOf(f)))
	case runCancels:
		d.dot(r.chartRow, "cancels", f, r.runY(r.runOf(f)))
	case runStopped:
		d.dot(r.chartRow, "stopped", f, r.runY(r.runOf(f)))

	case groupOpened:
		d.line(f, "opened", hue(f.generation))
		d.label(d.group, 0, f, "opened", fmt.Sprintf("opens %d", f.generation), hue(f.generation))
	case groupActivated:
		d.line(f, "activated", hue(f.generation))
		d.label(d.group, 1, f, "activated", fmt.Sprintf("gen %d: %s", f.generation, plural(f.total, "partition")), hue(f.generation))

	case handlerBegins:
		if _, ok := d.calls[f.call]; ok {
			d.handled(f.call, &f)
		}
		d.calls[f.call] = f
	case handlerEnds:
		d.handled(f.call, &f)
	case committed, eventsParked, parkedRetried, parkedDiscarded:
		d.dot(r.chartRow, "commit", f, r.commitY())
	case refused:
		d.dot(r.chartRow, "refused", f, r.commitY())
	case gapWaited:
		d.dot(d.gaps, "wait", f, 2)
		if r != nil && r.waits == nil {
			r.waits = &f
		}
	case gapPassed:
		d.dot(d.gaps, "passed", f, 2)
		d.passed(r, f.at)
	case appended:
		d.dot(d.events, "append", f, 2)
	case rolledBack:
		d.dot(d.events, "rollback", f, 2)

	case faultFreeze:
		d.thaw(r, f.at)
		r.frozen = &f
	case faultThaw:
		d.glyph(r, f, "over", "")
		d.thaw(r, f.at)
	case faultCutOff:
		d.mend(r, f.at)
		r.cut = &f
	case faultMended:
		d.glyph(r, f, "over", "")
		d.mend(r, f.at)
	case faultDatabaseDown:
		d.label(d.world, 0, f, "fault", "database down", "")
		d.up(f.at)
		d.down = &f
	case faultDatabaseUp:
		d.label(d.world, 1, f, "note", "database up", "")
		d.up(f.at)
	case faultClockStep:
		d.line(f, "clock", "")
		d.label(d.world, 0, f, "fault", fmt.Sprintf("clock %+gs", f.length.Seconds()), "")
	case faultCrash:
		d.glyph(r, f, "crash", "×")
	case faultLeave:
		d.glyph(r, f, "leave", "→")
	case faultDeploy:
		d.line(f, "clock", "")
		d.label(d.world, 0, f, "fault", "deploy", "")
	case faultLost:
		d.dot(r.chartRow, "lost", f, r.top+4)
	case faultSlow:
		d.dot(r.chartRow, "slow", f, r.top+4)

	case healed:
		d.line(f, "healed", "")
		d.label(d.world, 1, f, "note", "faults stop", "")
	case settled:
		d.line(f, "settled", "")
		d.label(d.world, 1, f, "note", "must have settled", "")
	case ended:
		d.line(f, "ended", "")
		d.label(d.world, 1, f, "note", "end", "")
	default:
		if r == nil {
			d.label(d.world, 0, f, "fault", f.String(), "")
			return
		}
		d.glyph(r, f, "other", "!")
	}
}

// ofWorker reports whether a kind is drawn in a worker's row.
func ofWorker(k kind) bool {
	switch k {
	case workerStarts, workerGone, sessionAsks, sessionProven, proofAwaited, checkpointShown, workerExpired, runStarts, runDrains, runCancels, runStopped,
		handlerBegins, committed, eventsParked, parkedRetried, parkedDiscarded, refused,
		faultFreeze, faultThaw, faultCutOff, faultMended, faultCrash, faultLeave, faultLost, faultSlow:
		return true
	}
	return false
}

// tells reports whether a kind belongs to the main facts.
func tells(k kind) bool {
	switch k {
	case sessionAsks, sessionProven, proofAwaited, checkpointShown, hintsCome, hintsGone, handlerBegins, handlerEnds, committed, eventsParked, parkedRetried, parkedDiscarded, retryFailed, parkedFull, unreadable, readAgain, parkRequested, served, gapWaited, gapScoped, gapPassed, appended, rolledBack, faultLost, faultSlow:
		return false
	}
	return true
}

// finish ends what the history left open.
func (d *drawing) finish() {
	for _, call := range d.running("") {
		d.handled(call, nil)
	}
	for _, r := range d.order {
		d.thaw(r, d.beyond)
		d.mend(r, d.beyond)
		d.passed(r, d.beyond)
		d.endLease(r, d.beyond)
		d.bars(r)
	}
	d.up(d.beyond)
	d.Lines = append(d.Lines, chartMark{Class: "beyond", Style: d.style(d.end, d.from+d.span, -1, "")})
	d.putLabels()
	d.putDots()
}

// badges number the violation's facts in their rows, and mark the last one over all rows.
func (d *drawing) badges() {
	latest, shift := map[*chartRow]time.Duration{}, map[*chartRow]int{}
	for i, f := range d.broken {
		row := d.world
		switch r := d.workers[f.worker]; {
		case f.kind == groupOpened || f.kind == groupActivated:
			row = d.group
		case f.kind == appended || f.kind == rolledBack:
			row = d.events
		case f.kind == gapWaited || f.kind == gapPassed:
			row = d.gaps
		case r != nil:
			row = r.chartRow
		}
		// Neighbors would cover each other.
		if at, ok := latest[row]; ok && f.at-at < d.span/50 {
			shift[row]++
		} else {
			shift[row] = 0
		}
		latest[row] = f.at
		class := ""
		if i == len(d.broken)-1 {
			class = " final"
			d.Front = append(d.Front, chartMark{Class: "line broken", Style: d.style(f.at, -1, -1, "")})
		}
		row.Marks = append(row.Marks,
			chartMark{Class: "badge-line" + class, Style: d.style(f.at, -1, -1, "")},
			chartMark{Class: "badge" + class, Style: d.style(f.at, -1, 1, fmt.Sprintf("margin-left:%dpx", 17*shift[row])),
				Title: hint(f), Label: strconv.Itoa(i + 1)})
	}
}

// tell completes the texts of the page.
func (d *drawing) tell(h history) {
	var generations int64
	calls, commits, refusals, faults := 0, 0, 0, 0
	for _, f := range h.facts {
		switch k := f.kind; {
		case k == groupOpened:
			generations++
		case k == handlerBegins:
			calls++
		case k == committed:
			commits++
		case k == refused:
			refusals++
		case k >= faultFreeze && k <= faultOther && k != faultThaw && k != faultMended && k != faultDatabaseUp:
			faults++
		}
	}
	d.Summary = fmt.Sprintf("%s: %s, %s, %s, %s, %s refused, %s.", strings.TrimPrefix(exactly(d.end), "+"), plural(len(d.order), "worker"),
		plural(int(generations), "generation"), plural(calls, "handler call"), plural(commits, "commit"), plural(refusals, "commit"), plural(faults, "fault"))
	if n := len(d.Story) - timelineStory; n > 0 { // the end matters most
		d.LeftOut = n
		d.Story = slices.Delete(d.Story, timelineStory/4, timelineStory/4+n)
	}
}

// tick draws the axis for readers without scripts.
func (d *drawing) tick() {
	step := time.Millisecond
	for _, factor := 0, []int{2, 5, 10}; d.span/step > 12; {
		for _, n := range factor {
			if d.span/(step*time.Duration(n)) <= 12 || n == 10 {
				step *= time.Duration(n)
				break
			}
		}
	}
	for at := time.Duration(0); at <= d.end; at += step {
		d.Ticks = append(d.Ticks, chartMark{Style: d.style(at, -1, -1, ""), Label: strings.TrimPrefix(exactly(at), "+")})
	}
}

func (d *drawing) entry(f fact) chartEntry {
	return chartEntry{Number: d.numbers[f.step], Step: f.step, Seconds: f.at.Seconds(), Time: seconds(f.at, 3), Worker: f.worker, Text: oneLine(f.String())}
}

// style places a mark from one moment to another (-1: it has no width), so many pixels from
// the top (-1: as in the stylesheet).
func (d *drawing) style(from, to time.Duration, top int, more string) template.CSS {
	var b strings.Builder
	b.WriteString("left:")
	b.WriteString(d.percent(from - d.from))
	if to >= 0 {
		b.WriteString(";width:")
		b.WriteString(d.percent(to - from))
	}
	if top >= 0 {
		fmt.Fprintf(&b, ";top:%dpx", top)
	}
	if more != "" {
		b.WriteString(";" + more)
	}
	return template.CSS(b.String())
}

// percent returns a duration as a share of the width, to 1e-8.
func (d *drawing) percent(t time.Duration) string {
	s := strconv.FormatFloat(100*float64(t)/float64(d.span), 'f', 6, 64)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + "%"
}

// hue returns the color of a generation. Neighbors differ, and none is red.
func hue(generation int64) string {
	hues := []int{210, 135, 275, 48, 180, 312, 95, 240}
	return fmt.Sprintf("--h:%d", hues[uint64(generation)%uint64(len(hues))])
}

// hint returns the text that is shown on hover.
func hint(f fact) string {
	worker := f.worker
	if worker != "" {
		worker += " "
	}
	return fmt.Sprintf("%s %s%s (step %d)", exactly(f.at), worker, oneLine(f.String()), f.step)
}

// exactly formats a time since the start with all of its digits.
func exactly(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimRight(strings.TrimSuffix(seconds(d, 6), "s"), "0"), ".") + "s"
}
