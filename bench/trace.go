package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg"
)

// traceChanges prints a time line of one join and one leave among ten workers at a distance from
// the database: which worker sends which statement, when the answer arrives, and the chain of
// waits. It helps to make a change shorter.
func traceChanges(ctx context.Context, roundTrip time.Duration, out io.Writer) (err error) {
	server, err := embedpg.Start(ctx, embedpg.Options{Fsync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	b := &bench{server: server}
	defer func() { err = errors.Join(err, b.close(context.WithoutCancel(ctx))) }()
	t := &tape{}
	d, err := newDistant(ctx, b, roundTrip, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.end(ctx)) }()
	for n, c := range []change{joining, leaving, joining, leaving, joiningCold} {
		time.Sleep(300 * time.Millisecond) // the rest of the previous change must not count
		t.take()
		began, ended, err := d.change(ctx, c)
		if err != nil {
			return err
		}
		floor, err := d.floor(ctx)
		if err != nil {
			return err
		}
		if n < 2 {
			continue // the first changes also open connections
		}
		trips, heard, notes := t.take()
		(&trace{c, began, ended, floor, d.fleet.window, trips, heard, notes}).print(out)
	}
	return nil
}

// A trace is the record of a change.
type trace struct {
	change       change
	began, ended time.Time
	floor        float64 // of a round trip, in milliseconds
	window       time.Duration
	trips        []trip
	heard        []hint
	notes        []note
}

// A line of the time line.
type line struct {
	from, to       time.Time
	site           string
	conn           int
	trips, serving string
	text           string
}

func (t *trace) print(out io.Writer) {
	took := millis(t.ended.Sub(t.began))
	counted := took
	fmt.Fprintf(out, "\n== %s: %.1f ms", t.change, took)
	if t.change != leaving {
		counted -= millis(t.window)
		fmt.Fprintf(out, ", including JoinWindow %.0f", millis(t.window))
	}
	fmt.Fprintf(out, "; without it %.1f round trips of %.2f ms\n", counted/t.floor, t.floor)
	fmt.Fprintln(out, "\n-- what waited for what, as far as times tell")
	t.table(out, t.path())
	fmt.Fprintln(out, "\n-- round trips of each worker:", t.counts())
	fmt.Fprintln(out, "\n-- everything; \"server\" is how long the answer took there, in ms")
	t.table(out, t.lines())
}

func (t *trace) table(out io.Writer, lines []line) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "from\tto\ttrips\tserver\tworker\t  what")
	for _, l := range lines {
		to, who := "", l.site
		if !l.to.IsZero() {
			to = fmt.Sprintf("%.1f", millis(l.to.Sub(t.began)))
		}
		if l.conn > 0 {
			who += fmt.Sprintf("/%d", l.conn)
		}
		fmt.Fprintf(w, "%.1f\t%s\t%s\t%s\t%s\t  %s\n", millis(l.from.Sub(t.began)), to, l.trips, l.serving, who, l.text)
	}
	_ = w.Flush()
}

// lines returns everything that began before the change ended.
func (t *trace) lines() (lines []line) {
	for _, trip := range t.trips {
		lines = append(lines, t.tripLine(trip))
	}
	for _, h := range t.heard {
		lines = append(lines, hintLine(h))
	}
	for _, n := range t.notes {
		lines = append(lines, line{from: n.at, site: n.site, text: n.text})
	}
	lines = slices.DeleteFunc(lines, func(l line) bool { return l.from.Before(t.began.Add(-time.Millisecond)) || l.from.After(t.ended) })
	slices.SortStableFunc(lines, func(a, b line) int { return a.from.Compare(b.from) })
	return lines
}

func (t *trace) tripLine(trip trip) line {
	text := first(trip.text)
	if trip.how != "" {
		text = trip.how + ": " + text
	}
	if trip.failed {
		text += "  (an error)"
	}
	return line{trip.sent, trip.got, trip.site, trip.conn,
		fmt.Sprintf("%.1f", millis(trip.got.Sub(trip.sent))/t.floor),
		fmt.Sprintf("%.1f", millis(trip.answered.Sub(trip.arrived))), text}
}

func hintLine(h hint) line {
	return line{from: h.sent, to: h.got, site: h.site, text: fmt.Sprintf("hears %s %q", h.channel, h.payload)}
}

// firstMax is how many characters of a statement are shown.
const firstMax = 110

func first(text string) string {
	if r := []rune(text); len(r) > firstMax {
		return string(r[:firstMax]) + " …"
	}
	return text
}

// counts returns the number of round trips of each worker until the change ended.
func (t *trace) counts() string {
	n := map[string]int{}
	for _, trip := range t.trips {
		if trip.sent.Before(t.ended) && !trip.sent.Before(t.began) {
			n[trip.site]++
		}
	}
	var all []string
	for site, trips := range n {
		all = append(all, fmt.Sprintf("%s %d", site, trips))
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return strings.Join(all, ", ")
}

// prompt is the time within which a worker reacts to what it has learnt.
const prompt = 1500 * time.Microsecond

// path goes back from the last worker's first event to the start of the change. A worker's
// action follows the answer or notification that it received last before. A notification follows
// the statement of another worker that was answered when the notification was sent. An answer
// that took long at the server follows a statement that was answered meanwhile. These are
// guesses from the times alone.
func (t *trace) path() (lines []line) {
	var end note
	for _, n := range t.notes {
		if strings.HasPrefix(n.text, "handles") && n.at.After(end.at) && !n.at.After(t.ended) {
			end = n
		}
	}
	site, at := end.site, end.at
	lines = append(lines, line{from: at, site: site, text: end.text})
	for range 200 { // a chain of guesses may contain a cycle
		trip, h := t.before(site, at)
		switch {
		case trip == nil && h == nil:
			slices.Reverse(lines)
			return lines
		case trip != nil && (h == nil || at.Sub(trip.got) < prompt || trip.got.After(h.got)):
			lines = append(lines, t.tripLine(*trip))
			at = trip.sent
			if other := t.answeredBy(trip.answered, site); other != nil && trip.answered.Sub(trip.arrived) > 2*prompt && other.answered.After(trip.arrived) {
				lines[len(lines)-1].text += "  (waits for " + other.site + "?)"
				lines = append(lines, t.tripLine(*other))
				site, at = other.site, other.sent
			}
		default:
			lines = append(lines, hintLine(*h))
			other := t.answeredBy(h.sent.Add(prompt), "")
			if other == nil {
				slices.Reverse(lines)
				return lines
			}
			lines = append(lines, t.tripLine(*other))
			site, at = other.site, other.sent
		}
	}
	slices.Reverse(lines)
	return lines
}

// before returns what a site received last before a moment, within the change.
func (t *trace) before(site string, at time.Time) (last *trip, h *hint) {
	for i, trip := range t.trips {
		if trip.site == site && !trip.got.After(at) && !trip.sent.Before(t.began) && (last == nil || trip.got.After(last.got)) {
			last = &t.trips[i]
		}
	}
	for i, heard := range t.heard {
		if heard.site == site && !heard.got.After(at) && !heard.sent.Before(t.began) && (h == nil || heard.got.After(h.got)) {
			h = &t.heard[i]
		}
	}
	return last, h
}

// answeredBy returns the last statement of another site that was answered before a moment and
// may have changed something.
func (t *trace) answeredBy(at time.Time, except string) (last *trip) {
	for i, trip := range t.trips {
		if trip.site != except && trip.how != "prepare" && writes(trip.text) && trip.answered.Before(at) && (last == nil || trip.answered.After(last.answered)) {
			last = &t.trips[i]
		}
	}
	return last
}

func writes(text string) bool {
	for _, word := range []string{"COMMIT", "UPDATE", "INSERT", "DELETE"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}
