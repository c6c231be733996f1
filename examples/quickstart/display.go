package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
)

// A display shows what happens. On a terminal, lines scroll above a block that is redrawn
// with the current state. Elsewhere it prints lines only, without colour.
type display struct {
	out      io.Writer
	live     bool // out is a terminal
	colour   bool
	begun    time.Time
	recorded bool // out is a recorder

	mu     sync.Mutex
	footer []string // the last lines of the block
	block  []string // what is below the lines now
	status time.Time
}

const (
	columns = 79 // one less than a terminal has: some wrap a full line
	// How often the state is shown.
	blockInterval  = 200 * time.Millisecond
	statusInterval = time.Second
	// Workers beyond these have no row in the block.
	rowsMax = 8
)

func newDisplay(out io.Writer) *display {
	return &display{out: out, live: terminal.Draws(out), colour: terminal.Colours(out), begun: time.Now()}
}

// What the display asks of a terminal. screen.go reads the same.
const (
	lineUp     = "\x1b[%dA"
	clearBelow = "\x1b[J"
	noWrap     = "\x1b[?7l" // a line that is too long must not become two
	wrap       = "\x1b[?7h"

	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// workerStyles are the colours of w1, w2, … They are none of those that mean something.
var workerStyles = []string{"36", "35", "34", "96", "95", "94"}

func styleOf(worker string) string {
	var n int
	if _, err := fmt.Sscanf(worker, "w%d", &n); err != nil || n < 1 {
		return ""
	}
	return workerStyles[(n-1)%len(workerStyles)]
}

func (d *display) paint(style, text string) string {
	if !d.colour || style == "" || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// say shows a line that stays. who is a worker, or "" for the demo itself.
func (d *display) say(who, format string, args ...any) { d.tell("", who, format, args...) }

// announce is say for what the demo or the user does.
func (d *display) announce(who, format string, args ...any) { d.tell(bold, who, format, args...) }

// tell is say in a style.
func (d *display) tell(style, who, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.line(style, who, fmt.Sprintf(format, args...))
}

func (d *display) line(style, who, text string) {
	clock := fmt.Sprintf("+%4.1fs  ", time.Since(d.begun).Seconds())
	indent := len(clock) + 5
	prefix := d.paint(dim, clock) + d.paint(styleOf(who), fmt.Sprintf("%-3s", who)) + "  "
	var b strings.Builder
	for _, line := range wrapped(text, columns-indent) {
		b.WriteString(prefix + d.paint(style, line) + "\n")
		prefix = strings.Repeat(" ", indent)
	}
	if d.live {
		d.draw(b.String(), d.block)
		return
	}
	fmt.Fprint(d.out, b.String())
}

// quote shows a line as it is, to be copied.
func (d *display) quote(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live {
		d.draw(wrap+text+"\n"+noWrap, d.block)
		return
	}
	fmt.Fprintln(d.out, text)
}

// draw replaces the block by text and a block below it, in one write.
func (d *display) draw(text string, block []string) {
	var b strings.Builder
	b.WriteString(noWrap)
	if len(d.block) > 0 {
		fmt.Fprintf(&b, "\r"+lineUp+clearBelow, len(d.block))
	}
	b.WriteString(text)
	for _, line := range block {
		b.WriteString(line + "\n")
	}
	b.WriteString(wrap)
	d.block = block
	fmt.Fprint(d.out, b.String())
}

// below sets the last lines of the block.
func (d *display) below(lines ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.footer = lines
}

// end takes the block away.
func (d *display) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.block) > 0 {
		d.draw("", nil)
	}
}

// linesMax is how many lines one message takes at most: workers may print anything.
const linesMax = 3

// wrapped breaks a text into lines of at most width printable characters.
func wrapped(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(strings.Map(printable, text)) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, fit(line, width)), word
		}
	}
	lines = append(lines, fit(line, width))
	if len(lines) > linesMax {
		lines = append(lines[:linesMax-1], fit(lines[linesMax-1]+" "+strings.Repeat(".", width), width))
	}
	return lines
}

func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}

// fit cuts a line to a width.
func fit(line string, width int) string {
	runes := []rune(line)
	if len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return line
}

// A row is a worker as the block shows it.
type row struct {
	name, pid, partition, generation string
	state, style                     string
	gone                             bool
}

// rows puts together what the demo and the tables know of the workers.
func rows(s state, processes []*process) []row {
	var rows []row
	for _, p := range processes {
		r := row{name: p.name, pid: fmt.Sprint(p.cmd.Process.Pid), partition: "-", generation: "-"}
		m, found := s.member(p.name)
		if found && m.partition >= 0 {
			r.partition, r.generation = fmt.Sprintf("%d/%d", m.partition, m.total), fmt.Sprint(m.generation)
		}
		r.state, r.style = stateOf(s, p.is(), m, found)
		r.gone = r.style == dim && !found
		if found && m.incarnation != "" {
			r.state += ", joined again"
		}
		rows = append(rows, r)
	}
	if extra := len(rows) - rowsMax; extra > 0 { // leave out the oldest of those that are gone
		rows = slices.DeleteFunc(rows, func(r row) bool {
			if r.gone {
				extra--
			}
			return r.gone && extra >= 0
		})
	}
	return rows
}

func stateOf(s state, f fate, m member, found bool) (text, style string) {
	switch {
	case f == frozen && found:
		return "frozen, its lease runs out", red
	case f == frozen:
		return "frozen, its lease is over", red
	case (f == killed || f == ended) && found:
		return string(f) + ", not noticed yet", red
	case f != running:
		return string(f), dim
	case !found:
		return "starting", yellow
	case m.partition < 0:
		return "joined", yellow
	case m.holds == m.generation && s.phase == "active":
		return "handling events", green
	case m.holds != 0:
		return fmt.Sprintf("stopping generation %d", m.holds), yellow
	}
	return "waiting for the others to stop", yellow
}

// show shows the state, if it is time to.
func (d *display) show(s state, processes []*process, appended, total int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	interval := statusInterval
	if d.live {
		interval = blockInterval
	}
	if time.Since(d.status) < interval || s.generation == 0 {
		return
	}
	d.status = time.Now()
	if d.live {
		d.draw("", d.blockOf(s, rows(s, processes), appended, total))
		return
	}
	var lags []string
	for _, p := range projectionNames {
		lags = append(lags, fmt.Sprintf("%s %d", p, s.head-s.position(p)))
	}
	d.line("", "", fmt.Sprintf("position %d; lag: %s", s.head, strings.Join(lags, ", ")))
}

func (d *display) blockOf(s state, rows []row, appended, total int64) []string {
	block := []string{
		d.paint(dim, strings.Repeat("─", columns)),
		d.paint(dim, "worker      pid  partition  generation  state"),
	}
	for _, r := range rows[:min(len(rows), rowsMax)] {
		block = append(block, d.paint(styleOf(r.name), fmt.Sprintf("%-6s", r.name))+
			fmt.Sprintf(" %8s  %9s  %10s  ", r.pid, r.partition, r.generation)+d.paint(r.style, fit(r.state, columns-39)))
	}
	if more := len(rows) - rowsMax; more > 0 {
		block = append(block, fmt.Sprintf("and %d more", more))
	}
	block = append(block, d.paint(dim, "projection     position     lag"))
	for _, p := range projectionNames {
		position := s.position(p)
		block = append(block, fmt.Sprintf("%-13s  %8d  %6d  %s", p, position, s.head-position, d.bar(position, s.head)))
	}
	progress := fmt.Sprintf("%d of %d events appended", appended, max(appended, total))
	block = append(block, fit(fmt.Sprintf("%s; generation %d is %s", progress, s.generation, s.phase), columns))
	for _, line := range d.footer {
		block = append(block, d.paint(cyan, fit(line, columns)))
	}
	return block
}

// bar shows how much of the stream a projection has handled.
func (d *display) bar(position, head int64) string {
	const width = 40
	done := 0
	if head > 0 {
		done = int(min(position, head) * width / head)
	}
	return d.paint(green, strings.Repeat("█", done)) + d.paint(dim, strings.Repeat("░", width-done))
}
