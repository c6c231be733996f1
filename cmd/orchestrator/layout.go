package main

import (
	"strings"
	"unicode"
)

// A line is what is printed in one line.
type line []span

// A span is text of one style. The text may be the database's: paint escapes it.
type span struct {
	text  string
	style style
}

// A style is the parameter of a control sequence. "": plain text.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31;1"
	yellow style = "33;1"
	cyan   style = "36"
)

func text(s string) line { return line{{text: s}} }

// paint formats lines for a stream, with colours or without.
func paint(lines []line, colours bool) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.paint(colours))
		b.WriteByte('\n')
	}
	return b.String()
}

func (l line) paint(colours bool) string {
	var b strings.Builder
	for _, s := range l {
		switch text := clean(s.text); {
		case colours && s.style != plain && text != "":
			b.WriteString("\x1b[" + string(s.style) + "m" + text + "\x1b[0m")
		default:
			b.WriteString(text)
		}
	}
	return b.String()
}

// cut returns the beginning of a line that fits into a width, with … if that is not all.
func (l line) cut(width int) line {
	total := 0
	for _, s := range l {
		total += columns(clean(s.text))
	}
	if total <= width {
		return l
	}
	var short line
	for _, s := range l {
		text := shorten(s.text, width)
		short = append(short, span{text, s.style})
		if width -= columns(text); text != clean(s.text) || width <= 0 {
			break
		}
	}
	return short
}

// shorten returns the beginning of a text that fits into a width, with … if that is not all.
func shorten(text string, width int) string {
	if text = clean(text); columns(text) <= width {
		return text
	}
	var b strings.Builder
	used := 1 // …
	for _, r := range text {
		if used += runeColumns(r); used > width {
			break
		}
		b.WriteRune(r)
	}
	return b.String() + "…"
}

// squeeze returns the beginning and the end of a text, with … between, in a width: names often
// differ at their end.
func squeeze(text string, width int) string {
	if text = clean(text); columns(text) <= width {
		return text
	}
	head := shorten(text, (width+2)/2) // with …
	rest := []rune(text)
	for room := width - columns(head); columns(string(rest)) > room; {
		rest = rest[1:]
	}
	return head + string(rest)
}

// clean turns text into one safe line.
func clean(text string) string {
	return safe(strings.NewReplacer("\r\n", " ", "\n", " ", "\t", " ").Replace(text))
}

// wrap breaks a text into lines of a width, between words where it can. 0: into one line.
func wrap(text string, width int) []string {
	text = strings.TrimSpace(clean(text))
	if width <= 0 {
		return []string{text}
	}
	var lines []string
	current, used := "", 0
	for word := range strings.FieldsSeq(text) {
		if n := columns(word); used > 0 && used+1+n <= width {
			current, used = current+" "+word, used+1+n
			continue
		}
		if used > 0 {
			lines = append(lines, current)
		}
		current, used = "", 0
		for _, r := range word {
			if n := runeColumns(r); used+n > width && used > 0 {
				lines = append(lines, current)
				current, used = string(r), n
			} else {
				current, used = current+string(r), used+n
			}
		}
	}
	return append(lines, current)
}

// hang returns a text after a mark. Further lines are indented as the text is.
func hang(mark span, body string, style style, width int) []line {
	indent := columns(mark.text)
	if width > 0 {
		width = max(width-indent, 20)
	}
	var lines []line
	for i, part := range wrap(body, width) {
		first := mark
		if i > 0 {
			first = span{text: strings.Repeat(" ", indent)}
		}
		lines = append(lines, line{first, {part, style}})
	}
	return lines
}

// A grid is a table with aligned columns.
type grid struct {
	head []string
	rows [][]span
	// flexible are the columns that are shortened, down to a few characters, if the table
	// is wider than the terminal.
	flexible []int
}

// flexibleMin is what is left of a flexible column at least.
const flexibleMin = 8

func (g grid) lines(width int) []line {
	rows := [][]span{{}}
	for _, h := range g.head {
		rows[0] = append(rows[0], span{h, dim})
	}
	rows = append(rows, g.rows...)
	widths := make([]int, len(g.head))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], columns(clean(cell.text)))
		}
	}
	if width > 0 {
		g.fit(widths, width)
	}
	var lines []line
	for _, row := range rows {
		l := line{{text: "  "}}
		for i, cell := range row {
			cell.text = squeeze(cell.text, widths[i])
			if l = append(l, cell); i < len(row)-1 {
				l = append(l, span{text: strings.Repeat(" ", widths[i]-columns(cell.text)+2)})
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// fit takes columns off the widest flexible column until the table fits.
func (g grid) fit(widths []int, width int) {
	total := 0
	for _, w := range widths {
		total += w + 2
	}
	for ; total > width; total-- {
		widest := -1
		for _, i := range g.flexible {
			if widths[i] > flexibleMin && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// columns returns how many columns of a terminal a text takes.
func columns(text string) (n int) {
	for _, r := range text {
		n += runeColumns(r)
	}
	return n
}

// wide are the characters that take two columns: East Asian ones and emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, {0x2e80, 0x303e, 1}, {0x3041, 0xa4cf, 1}, {0xac00, 0xd7a3, 1},
		{0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1}, {0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{{0x1f300, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1}, {0x1f900, 0x1f9ff, 1}, {0x20000, 0x3fffd, 1}},
}

func runeColumns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case unicode.Is(wide, r):
		return 2
	}
	return 1
}
