package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// A view says how a status is shown.
type view struct {
	width   int  // of the terminal; 0: lines are as long as they are
	verbose bool // with partitions, workers, and the stalls that a reason explains
	watched bool // on the screen of watch, where lines must not be longer than it
	by      sorting
}

// A sorting is the order of projections.
type sorting string

const (
	byWorst  sorting = "worst"
	byName   sorting = "name"
	byBehind sorting = "behind"
	byParked sorting = "parked"
)

// all shows replica sets, those with the most urgent reasons first.
func (v view) all(sets []ops.ReplicaSetStatus) []line {
	if len(sets) == 0 {
		return []line{text("No worker of any replica set has run yet.")}
	}
	sets = slices.Clone(sets)
	slices.SortStableFunc(sets, func(a, b ops.ReplicaSetStatus) int { return cmp.Compare(worst(a), worst(b)) })
	var lines []line
	for i, s := range sets {
		if i > 0 {
			lines = append(lines, nil)
		}
		lines = append(lines, v.set(s)...)
	}
	return lines
}

var severities = []ops.Severity{ops.SeverityCritical, ops.SeverityWarning, ops.SeverityInfo}

// worst returns the place in severities of the most urgent reason of a replica set.
func worst(s ops.ReplicaSetStatus) int {
	place := len(severities)
	for _, w := range s.Waits {
		place = min(place, slices.Index(severities, w.Severity))
	}
	return place
}

// set shows a replica set: what is stalled and why, then its projections, then its workers.
func (v view) set(s ops.ReplicaSetStatus) []line {
	state := fmt.Sprintf("generation %d %s", s.Generation, s.Phase)
	switch {
	case s.Phase == ops.PhaseDraining && s.OpenedAt != nil:
		state += " for " + elapsed(s.At.Sub(*s.OpenedAt))
	case s.ActivatedAt != nil:
		state += " for " + elapsed(s.At.Sub(*s.ActivatedAt))
	}
	lines := v.header(s, fmt.Sprintf("%s, %s (%s)", state, plural(s.TotalPartitions, "partition"), s.Reason))
	lines = append(lines, v.waits(s)...)
	for _, name := range slices.Sorted(maps.Keys(s.Rewinds)) {
		lines = append(lines, hang(marks[ops.SeverityInfo],
			fmt.Sprintf("rewind of %s to position %d is pending: it takes effect when the next generation is activated", name, s.Rewinds[name]), plain, v.width)...)
	}
	for _, o := range s.ParkOrders {
		lines = append(lines, hang(marks[ops.SeverityInfo], fmt.Sprintf("order to park event %d of projection %s is pending, given by %s at %s UTC",
			o.Position, o.Projection, o.By, o.OrderedAt.UTC().Format(time.DateTime)), plain, v.width)...)
	}
	for _, r := range s.Rebuilds {
		lines = append(lines, hang(span{text: "   > "}, r.Text, plain, v.width)...)
	}
	lines = append(lines, nil)
	if len(s.Partitions) > 0 {
		lines = append(lines, v.projections(s)...)
		if v.verbose {
			lines = append(lines, nil)
			lines = append(lines, v.partitions(s)...)
		}
		lines = append(lines, nil)
	}
	return append(lines, v.workers(s)...)
}

// header shows the name of a replica set, and its state.
func (v view) header(s ops.ReplicaSetStatus, state string) (lines []line) {
	width := v.width
	if width > 0 {
		width = max(width-2, 20)
	}
	name := clean(string(s.ReplicaSet)) + ": "
	for i, part := range wrap(name+state, width) {
		switch rest, ok := strings.CutPrefix(part, name); {
		case i > 0:
			lines = append(lines, text("  "+part))
		case ok:
			lines = append(lines, line{{name, bold}, {text: rest}})
		default:
			lines = append(lines, line{{part, bold}})
		}
	}
	return lines
}

// marks stand before reasons.
var marks = map[ops.Severity]span{
	ops.SeverityCritical: {"  !! ", red},
	ops.SeverityWarning:  {"   ! ", yellow},
	ops.SeverityInfo:     {"   i ", cyan},
}

const indent = "     " // as wide as the marks

// alikeMax is how many reasons of one kind and projection are shown, and waitLines how many
// lines of each, unless the view is verbose.
const (
	alikeMax  = 3
	waitLines = 6
)

// waits shows the reasons, in the order of Status.
func (v view) waits(s ops.ReplicaSetStatus) (lines []line) {
	type alike struct {
		severity   ops.Severity
		kind       ops.WaitKind
		projection string
	}
	of := func(w ops.Wait) alike { return alike{w.Severity, w.Kind, w.Projection} }
	shown, count := map[alike]int{}, map[alike]int{}
	for _, w := range s.Waits {
		count[of(w)]++
	}
	for _, w := range s.Waits {
		shown[of(w)]++
		switch n := shown[of(w)]; {
		case v.verbose || n <= alikeMax:
			lines = append(lines, v.wait(s, w)...)
		case n == count[of(w)]:
			which := string(w.Kind)
			if w.Projection != "" {
				which += ", " + w.Projection
			}
			more := n - alikeMax
			lines = append(lines, hang(span{text: indent}, fmt.Sprintf("… %d more like these (%s): %s shows them", more, which, v.details()), dim, v.width)...)
		}
	}
	return lines
}

// wait shows a reason: what it is, what ends it, and what it explains.
func (v view) wait(s ops.ReplicaSetStatus, w ops.Wait) []line {
	mark, ok := marks[w.Severity]
	if !ok {
		mark = marks[ops.SeverityWarning]
	}
	reason, details := causeFirst(w)
	lines := hang(mark, reason, plain, v.width)
	if len(lines) > waitLines && !v.verbose {
		lines = append(lines[:waitLines-1], line{{text: indent}, {"… " + v.details() + " shows all of it", dim}})
	}
	if n := len(w.Effects); n > 0 {
		var of []string
		for _, e := range w.Effects {
			if !slices.Contains(of, e.Projection) {
				of = append(of, e.Projection)
			}
		}
		whose := strings.Join(of, ", ")
		if len(of) > alikeMax && !v.verbose {
			whose = plural(len(of), "projection")
		}
		details = append(details, fmt.Sprintf("explains %s of %s", plural(n, "stalled partition"), whose))
	}
	for _, d := range details {
		lines = append(lines, hang(span{text: indent}, d, dim, v.width)...)
	}
	if w.Remedy != "" {
		width := 0 // a terminal breaks the line itself, so that it can be copied
		if v.watched {
			width = v.width
		}
		lines = append(lines, hang(span{indent + "→ ", cyan}, w.Remedy, cyan, width)...)
	}
	if v.verbose {
		for _, e := range w.Effects {
			reason, _ := causeFirst(e)
			lines = append(lines, hang(span{text: indent + "· "}, reason, dim, v.width)...)
		}
	}
	return lines
}

// details is what to type for a verbose view.
func (v view) details() string {
	if v.watched {
		return "v"
	}
	return "-v"
}

// causeFirst shortens the place with which the text of a reason begins, and takes the worker out
// of it, so that the cause comes first.
func causeFirst(w ops.Wait) (reason string, details []string) {
	if w.Partition == nil {
		return w.Text, nil
	}
	rest, ok := strings.CutPrefix(w.Text, fmt.Sprintf("projection %s, partition %d of ", w.Projection, *w.Partition))
	if !ok {
		return w.Text, nil
	}
	total := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	rest = rest[len(total):]
	if after, found := strings.CutPrefix(rest, ", on worker "+w.Worker+": "); found {
		details, rest = []string{"on worker " + w.Worker}, after
	} else if rest, ok = strings.CutPrefix(rest, ": "); !ok {
		return w.Text, nil
	}
	return fmt.Sprintf("%s %d/%s: %s", w.Projection, *w.Partition, total, rest), details
}

// A lane is what is shown of a partition.
type lane struct {
	state string
	rank  int // the lower, the more urgent
	// behind and seconds are -1 if they are not known.
	behind  int64
	seconds float64
	rate    float64
}

// The ranks of lanes.
const (
	rankBroken  = iota // and stalled, or can't be read
	rankStalled        // what holds it up is elsewhere
	rankFails
	rankIdles // no worker runs it
	rankParked
	rankRuns
	rankDone
	rankPaused
)

func laneOf(s ops.ReplicaSetStatus, p ops.PartitionStatus) lane {
	l := lane{state: "-", rank: rankIdles, behind: -1, seconds: -1}
	if r := p.Report; r != nil {
		l.behind, l.seconds, l.rate = r.Behind, r.BehindSeconds, r.PerSecond
		if l.state = string(r.State); r.Behind < 0 {
			l.seconds = -1
		}
		switch r.State {
		case orchestrator.LaneRefused, orchestrator.LaneBeyond:
			l.rank = rankBroken
		case orchestrator.LaneRetrying, orchestrator.LaneDatabase, orchestrator.LaneFull:
			l.rank = rankFails
		case orchestrator.LaneHandling, orchestrator.LaneReading:
			l.rank = rankRuns
		case orchestrator.LaneIdle, orchestrator.LaneFollows:
			l.rank = rankDone
		}
		if r.Stalled {
			l.state, l.rank = l.state+", stalled", rankBroken
			if r.State == orchestrator.LaneIdle { // it can't read
				l.state, l.rank = "stalled", rankStalled
			}
		}
	}
	if p.Paused {
		l.state, l.rank = whyPaused(s, p.Projection), rankPaused
	}
	if p.Parked > 0 && l.rank > rankParked && l.state != "replaced" {
		l.rank = rankParked
	}
	return l
}

func (l lane) style() style {
	switch {
	case l.rank <= rankStalled:
		return red
	case l.rank <= rankParked:
		return yellow
	case l.rank == rankPaused:
		return dim
	}
	return plain
}

// A summary is what is shown of a projection.
type summary struct {
	projection string
	partitions int
	lane           // the worst partition's state; behind and seconds are the highest
	alike      int // partitions in that state
	unknown    int // partitions of which it is not known how far they are behind
	parked     int
}

// summaries returns what is shown of each projection, by name.
func summaries(s ops.ReplicaSetStatus) []summary {
	of := map[string]*summary{}
	for _, p := range s.Partitions {
		l := laneOf(s, p)
		sum := of[p.Projection]
		if sum == nil {
			sum = &summary{projection: p.Projection, lane: lane{rank: rankPaused + 1, behind: -1, seconds: -1}}
			of[p.Projection] = sum
		}
		sum.partitions++
		sum.parked += p.Parked
		switch {
		case l.rank < sum.rank:
			sum.rank, sum.state, sum.alike = l.rank, l.state, 1
		case l.state == sum.state:
			sum.alike++
		}
		if l.behind < 0 {
			sum.unknown++
		}
		sum.behind, sum.seconds, sum.rate = max(sum.behind, l.behind), max(sum.seconds, l.seconds), sum.rate+l.rate
	}
	var list []summary
	for _, name := range slices.Sorted(maps.Keys(of)) {
		sum := of[name]
		sum.rate /= float64(sum.partitions) // each partition goes past the events of the others
		list = append(list, *sum)
	}
	return list
}

// compare orders projections.
func (v view) compare(a, b summary) int {
	behind := cmp.Or(cmp.Compare(b.seconds, a.seconds), cmp.Compare(b.behind, a.behind))
	switch v.by {
	case byName:
		return 0
	case byBehind:
		return cmp.Or(cmp.Compare(b.behind, a.behind), behind)
	case byParked:
		return cmp.Compare(b.parked, a.parked)
	}
	return cmp.Or(cmp.Compare(a.rank, b.rank), behind)
}

func (v view) projections(s ops.ReplicaSetStatus) []line {
	list := summaries(s)
	slices.SortStableFunc(list, v.compare)
	g := grid{head: []string{"PROJECTION", "PARTS", "STATE", "BEHIND", "FOR", "RATE", "PARKED"}, flexible: []int{0}}
	for _, p := range list {
		state := p.state
		if p.alike < p.partitions {
			state += fmt.Sprintf(" (%d of %d)", p.alike, p.partitions)
		}
		behind, since := figures(p.lane)
		if p.unknown > 0 && p.behind >= 0 {
			behind += "+" // at least
		}
		parked := span{text: "-"}
		if p.parked > 0 {
			parked = span{fmt.Sprint(p.parked), yellow}
		}
		g.rows = append(g.rows, []span{
			{text: p.projection}, {text: fmt.Sprint(p.partitions)}, {state, p.style()}, {text: behind}, {text: since}, {text: rate(p.rate)}, parked,
		})
	}
	return g.lines(v.width)
}

// figures formats how far behind a partition is, and for how long.
func figures(l lane) (behind, since string) {
	behind, since = "-", "-"
	if l.behind >= 0 {
		behind = fmt.Sprint(l.behind)
	}
	if l.seconds >= 0 {
		since = elapsed(time.Duration(l.seconds * float64(time.Second)))
	}
	return behind, since
}

// rate formats positions per second.
func rate(perSecond float64) string {
	switch {
	case perSecond <= 0:
		return "-"
	case perSecond < 9.95:
		return fmt.Sprintf("%.1f/s", perSecond)
	}
	return fmt.Sprintf("%.0f/s", perSecond)
}

func (v view) partitions(s ops.ReplicaSetStatus) []line {
	type row struct {
		ops.PartitionStatus
		lane
	}
	var rows []row
	for _, p := range s.Partitions {
		rows = append(rows, row{p, laneOf(s, p)})
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		return v.compare(summary{lane: a.lane, parked: a.Parked}, summary{lane: b.lane, parked: b.Parked})
	})
	g := grid{head: []string{"PROJECTION", "PARTITION", "STATE", "BEHIND", "FOR", "POSITION", "WORKER"}, flexible: []int{0, 6}}
	for _, p := range rows {
		state, position := p.state, p.Position
		if p.Report != nil {
			position = max(position, p.Report.Position)
		}
		if p.Parked > 0 {
			state += fmt.Sprintf(", %d parked", p.Parked)
		}
		behind, since := figures(p.lane)
		g.rows = append(g.rows, []span{
			{text: p.Projection}, {text: fmt.Sprintf("%d/%d", p.Partition, p.TotalPartitions)}, {state, p.style()},
			{text: behind}, {text: since}, {text: fmt.Sprint(position)}, {text: dash(p.Worker)},
		})
	}
	return g.lines(v.width)
}

// workers shows how many workers are in which state; verbose, each of them.
func (v view) workers(s ops.ReplicaSetStatus) []line {
	if len(s.Workers) == 0 {
		return []line{text("  no workers")}
	}
	g := grid{head: []string{"WORKER", "STATE", "PARTITIONS", "LEASE"}, flexible: []int{0, 2}}
	count := map[string]int{}
	for _, w := range s.Workers {
		state := workerState(w)
		count[state]++
		g.rows = append(g.rows, []span{{text: w.Worker}, {state, workerStyle(state)}, {text: numbers(w.Partitions)}, {text: elapsed(w.LeaseUntil.Sub(s.At))}})
	}
	if v.verbose {
		return g.lines(v.width)
	}
	l := text("  " + plural(len(s.Workers), "worker") + ": ")
	for i, state := range slices.SortedFunc(maps.Keys(count), func(a, b string) int { return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b)) }) {
		if i > 0 {
			l = append(l, span{text: ", "})
		}
		name := state
		if state == "-" {
			name = "not reported yet"
		}
		l = append(l, span{fmt.Sprintf("%d %s", count[state], name), workerStyle(state)})
	}
	return []line{l}
}

func workerState(w ops.WorkerStatus) string {
	switch {
	case w.Vacant:
		return "vacant"
	case !w.Alive:
		return "expired"
	case w.Drained:
		return "drained"
	}
	return dash(string(w.State))
}

func workerStyle(state string) style {
	switch state {
	case "expired", string(orchestrator.WorkerSuspended), "drained", "vacant":
		return yellow
	}
	return plain
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
			took = elapsed(r.ActivatedAt.Sub(r.OpenedAt))
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

// table formats rows with aligned columns and indentation. The first row is the head.
func table(rows [][]string) string {
	g := grid{head: rows[0]}
	for _, row := range rows[1:] {
		var cells []span
		for _, cell := range row {
			cells = append(cells, span{text: cell})
		}
		g.rows = append(g.rows, cells)
	}
	var b strings.Builder
	for _, l := range g.lines(0) {
		b.WriteString(l.paint(false) + "\n")
	}
	return b.String()
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

// elapsed formats a duration with about two digits.
func elapsed(d time.Duration) string {
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
