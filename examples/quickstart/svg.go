package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A movie is a recording of a terminal, which encode writes as an animated SVG: no script,
// no font of its own, legible on light and on dark ground. All frames are beside each other
// in one strip, and CSS shows them one after the other, again and again. Where the viewer
// asks for less motion, or the animation is not supported, the last frame is shown.
type movie struct {
	title, description string
	columns, rows      int
	speed              int           // how much faster than it was it is played
	rest               time.Duration // how long the last frame is shown
	frames             []frame
}

// A frame is what the terminal showed from a time on.
type frame struct {
	at    time.Duration
	lines [][]span
}

// A span is a piece of a line. Its style is what an SGR escape sequence has: "1;32".
type span struct {
	style  string
	column int
	text   string
}

// Sizes, in pixels.
const (
	cellWidth  = 8.4
	cellHeight = 18
	margin     = 14
	titleBar   = 32
)

// movieStyle has a class for each SGR number. The window has a dark ground of its own.
const movieStyle = `
.w{fill:#0d1117;stroke:#57606a}.h{fill:#161b22}
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#e6edf3}
.t{fill:#9198a1;font-size:13px}rect{fill:#e6edf3}
.s1{font-weight:700}.s2{fill:#9198a1}.s31{fill:#ff7b72}.s32{fill:#56d364}.s33{fill:#e3b341}
.s34{fill:#79c0ff}.s35{fill:#d2a8ff}.s36{fill:#56d4dd}.s94{fill:#a5d6ff}.s95{fill:#f0a6e0}.s96{fill:#b3f0ff}
rect.s2{fill:#30363d}
`

// encode writes the movie. Frames that show the same are one.
func encode(b *bytes.Buffer, m movie) {
	frames := slices.CompactFunc(slices.Clone(m.frames), func(a, b frame) bool {
		return slices.EqualFunc(a.lines, b.lines, slices.Equal[[]span])
	})
	w, h := float64(m.columns)*cellWidth+2*margin, m.rows*cellHeight+titleBar+2*margin
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %d" width="%[1]s" height="%[2]d" role="img" aria-labelledby="title desc">`+"\n", px(w), h)
	fmt.Fprintf(b, "<title id=\"title\">%s</title>\n<desc id=\"desc\">%s</desc>\n", escaped(m.title), escaped(m.description))
	fmt.Fprintf(b, "<style>%s%s</style>\n", movieStyle, m.keyframes(frames, w))

	var shown strings.Builder // the frames, which refer to the lines
	lines := map[string]string{}
	b.WriteString("<defs>\n")
	for i, f := range frames {
		fmt.Fprintf(&shown, `<g class="f" transform="translate(%s)">`, px(float64(i)*w))
		for row, line := range f.lines {
			text := lineOf(line)
			if text == "" {
				continue
			}
			id, known := lines[text]
			if !known {
				id = "l" + strconv.FormatInt(int64(len(lines)), 36)
				lines[text] = id
				fmt.Fprintf(b, "<g id=%q>%s</g>\n", id, text)
			}
			fmt.Fprintf(&shown, `<use href="#%s" y="%d"/>`, id, row*cellHeight)
		}
		shown.WriteString("</g>\n")
	}
	b.WriteString("</defs>\n")
	fmt.Fprintf(b, `<rect class="w" x=".5" y=".5" width="%s" height="%d" rx="8"/><path class="h" d="M1 %d V9 a8 8 0 0 1 8-8 H%s a8 8 0 0 1 8 8 V%[3]d Z"/>`+"\n", px(w-1), h-1, titleBar, px(w-9))
	fmt.Fprintf(b, `<text class="t" x="%d" y="21">$ %s</text><text class="t" x="%s" y="21" text-anchor="end">%d× speed</text>`+"\n", margin, escaped(m.title), px(w-margin), m.speed)
	fmt.Fprintf(b, "<svg x=\"%d\" y=\"%d\" width=\"%s\" height=\"%d\"><g class=\"s\">\n%s</g></svg>\n</svg>\n",
		margin, titleBar+margin, px(w-2*margin), m.rows*cellHeight, shown.String())
}

// keyframes are the CSS that moves the strip.
func (m movie) keyframes(frames []frame, width float64) string {
	begun, last := frames[0].at, len(frames)-1
	whole := (frames[last].at-begun)/time.Duration(m.speed) + m.rest
	var b strings.Builder
	fmt.Fprintf(&b, ".s{transform:translateX(%spx)}\n", px(float64(-last)*width))
	fmt.Fprintf(&b, "@media (prefers-reduced-motion:no-preference){.s{animation:s %.2fs step-end infinite}}\n@keyframes s{\n", whole.Seconds())
	for i, f := range frames {
		at := float64((f.at - begun) / time.Duration(m.speed))
		fmt.Fprintf(&b, "%.2f%%{transform:translateX(%spx)}\n", 100*at/float64(whole), px(float64(-i)*width))
	}
	b.WriteString("}\n")
	return b.String()
}

// lineOf draws a line: bars as rectangles, which fit together in every font, and words at
// the columns where they are on the terminal, whatever the font's width.
func lineOf(line []span) string {
	var b strings.Builder
	for _, s := range line {
		class := ""
		if s.style != "" {
			class = ` class="s` + strings.ReplaceAll(s.style, ";", " s") + `"`
		}
		for column, text := s.column, s.text; text != ""; {
			piece := pieceOf(text)
			n := utf8.RuneCountInString(piece)
			x, width := px(float64(column)*cellWidth), px(float64(n)*cellWidth)
			switch r, _ := utf8.DecodeRuneInString(piece); r {
			case ' ':
			case '█', '░':
				fmt.Fprintf(&b, `<rect%s x="%s" y="3" width="%s" height="12"/>`, class, x, width)
			case '─':
				fmt.Fprintf(&b, `<rect%s x="%s" y="9" width="%s" height="1"/>`, class, x, width)
			default:
				fmt.Fprintf(&b, `<text%s x="%s" y="14" textLength="%s">%s</text>`, class, x, width, escaped(piece))
			}
			text, column = text[len(piece):], column+n
		}
	}
	return b.String()
}

// pieceOf returns the beginning of a text that is drawn as one: equal characters of a bar or
// of space, or words with single spaces between them.
func pieceOf(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	if strings.ContainsRune(" █░─", first) {
		return text[:len(text)-len(strings.TrimLeft(text, string(first)))]
	}
	end := len(text)
	for _, stop := range []string{"  ", "█", "░", "─"} {
		if i := strings.Index(text[size:], stop); i >= 0 {
			end = min(end, size+i)
		}
	}
	return text[:cmp.Or(len(strings.TrimRight(text[:end], " ")), size)]
}

func px(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', 1, 64), "0"), ".")
}

func escaped(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}
