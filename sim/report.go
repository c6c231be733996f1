package sim

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	reportWidth   = 100 // columns
	reportFacts   = 24  // the most facts that a report shows
	reportWorkers = 8   // with more workers, only those that take part have a column
)

// A failure is a broken promise with the means to reproduce it.
type failure struct {
	command   string // reproduces the failure
	history   history
	violation violation
	// Empty fields are left out of the report.
	trace    string // the file with the full trace
	timeline string // the file with the timeline
	replay   string // whether a second run gave the same trace: "identical"
	shrunk   string // "2 workers, 1 fault, 14s from 6 workers, 9 faults, 120s"
}

// report writes what a reader needs to understand a failure in ten seconds:
//
//	reproduce: go test ./sim -run 'TestSeeds$' -sim.seed=8347
//	SAFETY one-owner   step 312  t=+41.2s
//	  two workers must not handle the same slot of a projection at the same time, but w2 (generation 9)
//	  and w4 (generation 10) handled slot 1705 of projection orders at the same time
//	  297 +38.1s  .  w2 .  .    frozen (fault) 6s
//	  304 +39.9s  .  .  .  w4   activated generation 10 with 3 partitions: {w1 w3 w4}
//	> 312 +41.2s  .  w2 .  .    handles event 5512, orders 1/4 under generation 9
//	full trace: failures/8347.txt    replay: identical
func report(w io.Writer, r failure) {
	var b strings.Builder
	facts := r.violation.facts
	decimals := decimalsFor(facts)
	last := lastFact(r.history, &r.violation)

	fmt.Fprintf(&b, "reproduce: %s\n", r.command)
	fmt.Fprintf(&b, "%s %s   step %d  t=%s\n", verdict(r.violation.promise), r.violation.promise, last.step, seconds(last.at, decimals))
	for _, line := range wrap(r.violation.sentence(), reportWidth-2) {
		fmt.Fprintf(&b, "  %s\n", line)
	}

	columns, others := reportColumns(r.history, facts)
	if others > 0 {
		fmt.Fprintf(&b, "  (columns: %s; %d more workers take no part)\n", strings.Join(columns, " "), others)
	}
	stepWidth, timeWidth := len(strconv.Itoa(last.step)), len(seconds(last.at, decimals))
	for _, f := range facts {
		stepWidth, timeWidth = max(stepWidth, len(strconv.Itoa(f.step))), max(timeWidth, len(seconds(f.at, decimals)))
	}
	for i, f := range facts {
		if skip := len(facts) - reportFacts; skip > 0 && i >= reportFacts/3 && i < reportFacts/3+skip {
			if i == reportFacts/3 {
				fmt.Fprintf(&b, "  ... %d facts more\n", skip)
			}
			continue
		}
		mark := " "
		if i == len(facts)-1 {
			mark = ">"
		}
		head := fmt.Sprintf("%s %*d %*s  %s   ", mark, stepWidth, f.step, timeWidth, seconds(f.at, decimals), columnsOf(columns, f.worker))
		indent := utf8.RuneCountInString(head)
		for _, line := range shorten(wrap(f.String(), max(40, reportWidth-indent)), 3) {
			fmt.Fprintf(&b, "%s%s\n", head, line)
			head = strings.Repeat(" ", indent)
		}
	}

	var where []string
	for _, p := range [][2]string{{"full trace: ", r.trace}, {"timeline: ", r.timeline}, {"replay: ", r.replay}} {
		if p[1] != "" {
			where = append(where, p[0]+p[1])
		}
	}
	if len(where) > 0 {
		fmt.Fprintln(&b, strings.Join(where, "    "))
	}
	if r.shrunk != "" {
		fmt.Fprintf(&b, "shrunk to %s\n", r.shrunk)
	}
	io.WriteString(w, b.String())
}

// trace writes each fact on one line. Two runs of one seed, and two databases under one
// plan, are compared by their traces. So a line also has the fields that [fact.String]
// leaves out.
func trace(w io.Writer, h history) {
	var b strings.Builder
	width := 1
	for _, name := range workersOf(h.facts) {
		width = max(width, utf8.RuneCountInString(name))
	}
	for _, f := range h.facts {
		name := f.worker
		if name == "" {
			name = "."
		}
		fmt.Fprintf(&b, "%6d %13s %-*s  %s", f.step, seconds(f.at, 6), width, name, oneLine(f.String()))
		if d := details(f); d != "" {
			fmt.Fprintf(&b, "  | %s", d)
		}
		b.WriteByte('\n')
	}
	io.WriteString(w, b.String())
}

// details returns the fields that String leaves out.
func details(f fact) string {
	var parts []string
	switch f.kind {
	case sessionAsks:
		parts = append(parts, fmt.Sprintf("generation %d", f.generation))
	case handlerBegins:
		parts = append(parts, fmt.Sprintf("call %d", f.call))
	case handlerEnds:
		parts = append(parts, f.projection)
	case gapWaited, gapPassed:
		parts = append(parts, fmt.Sprintf("%s %d/%d under generation %d", f.projection, f.partition, f.total, f.generation))
	}
	if len(f.events) > 0 {
		var b strings.Builder
		for i, e := range f.events {
			if i > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%d:%s", e.position, oneLine(e.aggregate))
		}
		parts = append(parts, b.String())
	}
	return strings.Join(parts, ", ")
}

func verdict(p promise) string {
	if p.safety() {
		return "SAFETY"
	}
	return "LIVENESS"
}

// lastFact returns the fact at which a violation was found, or else the last fact of the
// history.
func lastFact(h history, v *violation) fact {
	if v != nil && len(v.facts) > 0 {
		return v.facts[len(v.facts)-1]
	}
	if n := len(h.facts); n > 0 {
		return h.facts[n-1]
	}
	return fact{}
}

// workersOf returns the workers of facts, in the order in which they appear.
func workersOf(facts []fact) []string {
	var names []string
	seen := map[string]bool{"": true}
	for _, f := range facts {
		if !seen[f.worker] {
			seen[f.worker] = true
			names = append(names, f.worker)
		}
	}
	return names
}

// reportColumns returns the workers that have a column, and the number of workers that have
// none.
func reportColumns(h history, facts []fact) (columns []string, others int) {
	all := workersOf(slices.Concat(h.facts, facts))
	if len(all) <= reportWorkers {
		return all, 0
	}
	part := workersOf(facts)
	columns = slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !slices.Contains(part, name) })
	return columns, len(all) - len(columns)
}

func columnsOf(names []string, worker string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte(' ')
		}
		shown := "."
		if name == worker {
			shown = name
		}
		fmt.Fprintf(&b, "%-*s", utf8.RuneCountInString(name), shown)
	}
	return b.String()
}

// decimalsFor returns how many decimals the times of facts need so that different times
// look different.
func decimalsFor(facts []fact) int {
	for decimals := 1; decimals < 6; decimals++ {
		clear := true
		for i := 1; i < len(facts); i++ {
			a, b := facts[i-1].at, facts[i].at
			clear = clear && (a == b || seconds(a, decimals) != seconds(b, decimals))
		}
		if clear {
			return decimals
		}
	}
	return 6
}

// seconds formats a time since the start.
func seconds(d time.Duration, decimals int) string {
	return fmt.Sprintf("%+.*fs", decimals, d.Seconds())
}

// oneLine replaces the control characters of a text by spaces.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// wrap breaks a text at spaces. A word that is longer than a line gets a line of its own.
func wrap(text string, width int) []string {
	var lines []string
	line, length := "", 0
	for _, word := range strings.Fields(oneLine(text)) {
		n := utf8.RuneCountInString(word)
		switch {
		case length == 0:
			line, length = word, n
		case length+1+n <= width:
			line, length = line+" "+word, length+1+n
		default:
			lines = append(lines, line)
			line, length = word, n
		}
	}
	return append(lines, line)
}

// shorten returns the first lines.
func shorten(lines []string, most int) []string {
	if len(lines) <= most {
		return lines
	}
	lines = slices.Clone(lines[:most])
	lines[most-1] += " ..."
	return lines
}
